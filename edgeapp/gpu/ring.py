"""Batches of pictures in flight: copy in, compute and copy out of neighbouring batches at the same time.

Three streams and a few slots. The compute graph of a slot runs on one stream, the copies of its neighbours on the two
others, joined by events. Measured on an H200: this reaches 0.996 of what the GPU can do, the same copies inside the
graph 0.57 to 0.91 of it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgeapp import errors
from edgeapp.gpu import faults
from edgeapp.gpu.buffers import Buffer
from edgeapp.gpu.driver import CallError
from edgeapp.gpu.graphs import Graph
from edgeapp.gpu.infer import HOST_DTYPES, GpuEngine
from edgeapp.records import Letterbox, Shape, Tensors, nbytes
from edgeapp.tensors import bfloat16_bits, bfloat16_values

SLOTS = 3
"""Batches on the GPU at a time: one copied in, one computed, one copied out."""

ALIGNMENT = 256
"""What CUDA aligns an allocation to, and what kernels may count on."""

NON_BLOCKING = 1
"""CU_STREAM_NON_BLOCKING: the stream does not wait for the default stream."""

BLOCKING_SYNC, DISABLE_TIMING = 1, 2
"""CU_EVENT_*: a waiting thread sleeps; no time stamps."""


Fill = Callable[[Image.Image, tuple[int, int], NDArray[Any]], Letterbox]
"""See edgeapp.preprocess.Preprocessor.fill."""


@dataclass(frozen=True)
class Layout:
    """Where the outputs of a batch of `batch` lie in one piece of memory, so that one copy fetches them.

    Attributes:
        outputs: of each output tensor the offset (bytes), shape and dtype in memory.
        size: bytes.
    """

    batch: int
    outputs: dict[str, tuple[int, Shape, np.dtype[Any]]]
    size: int


@dataclass
class Host:
    """Page-locked memory of one batch: its input goes out of here, its outputs come in.

    Attributes:
        input: the network input of every place, (batch, ...).
        slot: where it is on the GPU, while it is there.
        layout: of the outputs that are in `_output`.
    """

    input: NDArray[Any]
    _input: Buffer
    _output: Buffer
    slot: Slot | None = None
    layout: Layout | None = None


@dataclass
class Slot:
    """Device memory of one batch, and what runs on it.

    Attributes:
        graphs: by batch size.
        uploaded, computed, done: events.
    """

    input: Buffer
    output: Buffer
    uploaded: int
    computed: int
    done: int
    graphs: dict[int, Graph] = field(default_factory=dict)


class Ring:
    """An engine with one picture input, working on several batches at once.

    `launch` and `finish` belong to one thread at a time, on which the CUDA context is current. While batches are in
    flight `GpuEngine.infer` must not be used: both share one execution context.

    Args:
        fill: makes the network input of one picture.
        batch: pictures in the largest batch.
        least: in the smallest that the engine takes.
        hosts: how many batches there are between decoding and the last use of their outputs.
        spin: wait without sleeping: some microseconds sooner, at the price of a core.
        graphs: False has every launch enqueue the engine anew.

    Raises:
        DataError: this engine cannot work so: it has other inputs than pictures, or outputs of unknown size.

    Attributes:
        hosts: use each for one batch at a time.
        not_captured: why there are no graphs, "" if there are.
    """

    depth = SLOTS

    def __init__(
        self,
        engine: GpuEngine,
        fill: Fill,
        *,
        batch: int,
        least: int,
        input_shape: Shape,
        hosts: int,
        spin: bool = False,
        graphs: bool = True,
    ) -> None:
        if not engine.pictures_only:
            raise errors.DataError("the engine has other inputs than pictures")
        self._engine = engine
        self._fill = fill
        self._driver = engine.driver
        self._batch = batch
        self._least = least
        self._shape = input_shape
        self._spec = engine.inputs[0]
        self._dtype = HOST_DTYPES[self._spec.dtype]
        self.not_captured = "" if graphs else "they are switched off"
        self._layouts: dict[int, Layout] = {}
        self._turn = 0
        self._undo = ExitStack()
        self._streams: list[int] = []
        try:
            largest = self._layout(batch)
            self._in, self.compute, self._out = (self._stream() for _ in range(3))
            flags = 0 if spin else BLOCKING_SYNC
            self._slots = [self._slot(largest.size, flags) for _ in range(SLOTS)]
            self.hosts = [self._host(largest.size) for _ in range(hosts)]
            self._prepare_calls()
            self._make_graphs(batch)
        except BaseException:
            self.close()
            raise

    # --- making -------------------------------------------------------------------------------------------------------

    def _layout(self, batch: int) -> Layout:
        """For a batch size, from the engine."""
        if batch not in self._layouts:
            shapes = self._engine.output_shapes((batch, *self._shape))
            outputs, end = {}, 0
            for spec in self._engine.outputs:
                dtype = HOST_DTYPES[spec.dtype]
                outputs[spec.name] = (end, shapes[spec.name], dtype)
                end += -(-max(1, nbytes(shapes[spec.name], dtype)) // ALIGNMENT) * ALIGNMENT
            self._layouts[batch] = Layout(batch, outputs, end)
        return self._layouts[batch]

    def _stream(self) -> int:
        stream = self._driver.create("cuStreamCreate", NON_BLOCKING)
        self._streams.append(stream)
        self._undo.callback(self._driver.function("cuStreamDestroy_v2"), stream)
        return stream

    def _event(self, flags: int) -> int:
        event = self._driver.create("cuEventCreate", flags)
        self._undo.callback(self._driver.function("cuEventDestroy_v2"), event)
        return event

    def _buffer(self, name: str) -> Buffer:
        buffer = Buffer(name, self._driver)
        self._undo.callback(buffer.free)
        return buffer

    def _slot(self, output_size: int, flags: int) -> Slot:
        source, target = self._buffer(self._spec.name), self._buffer("outputs")
        source.reserve_device(nbytes((self._batch, *self._shape), self._dtype))
        target.reserve_device(output_size)
        uploaded, computed = self._event(DISABLE_TIMING), self._event(DISABLE_TIMING)
        slot = Slot(source, target, uploaded, computed, self._event(DISABLE_TIMING | flags))
        self._undo.callback(self._drop_graphs, slot)
        return slot

    def _host(self, output_size: int) -> Host:
        source, target = self._buffer(self._spec.name), self._buffer("outputs")
        shape = (self._batch, *self._shape)
        source.reserve_host(nbytes(shape, self._dtype))
        target.reserve_host(output_size)
        array = source.host(shape, self._dtype)
        array[:] = 0
        return Host(array, source, target)

    def _prepare_calls(self) -> None:
        """The driver's functions for every batch, looked up once."""
        function = self._driver.function
        self._copy_in, self._copy_out = function("cuMemcpyHtoDAsync_v2"), function("cuMemcpyDtoHAsync_v2")
        self._launch, self._record = function("cuGraphLaunch"), function("cuEventRecord")
        self._wait, self._synchronize = function("cuStreamWaitEvent"), function("cuEventSynchronize")

    def _make_graphs(self, batch: int) -> None:
        """For every slot; where it cannot be, `not_captured` says why and launches go without."""
        for slot in self._slots:
            self._bind(slot, batch)
            self._run_once()
            if self.not_captured:
                return
            try:
                slot.graphs[batch] = Graph(self._driver, self.compute, lambda: self._engine.enqueue(self.compute))
            except (CallError, errors.EdgeappError) as error:
                if self._driver.context_code() != 0:
                    raise
                self.not_captured = " ".join(str(error).split())
                self._run_once()

    def _bind(self, slot: Slot, batch: int) -> None:
        layout = self._layout(batch)
        self._engine.output_shapes((batch, *self._shape))
        addresses = {name: slot.output.address + offset for name, (offset, _, _) in layout.outputs.items()}
        self._engine.bind({self._spec.name: slot.input.address, **addresses}, (slot.uploaded, batch))

    def _run_once(self) -> None:
        """The first run of a shape loads kernels, which cannot be recorded."""
        self._engine.enqueue(self.compute)
        self._driver.call("cuStreamSynchronize", self.compute)

    # --- running ------------------------------------------------------------------------------------------------------

    def fill(self, host: Host, place: int, image: Image.Image, picture_wh: tuple[int, int]) -> Letterbox:
        """Put a picture into its place of the batch; any thread may, each for another place."""
        if self._spec.dtype != "bfloat16":
            return self._fill(image, picture_wh, host.input[place])
        values = np.empty(self._shape, np.float32)
        letterbox = self._fill(image, picture_wh, values)
        host.input[place] = bfloat16_bits(values)
        return letterbox

    def places(self, count: int) -> int:
        """The batch size that runs for `count` pictures: a power of two, or the largest."""
        size = max(self._least, 1 << max(0, count - 1).bit_length())
        return min(size, self._batch)

    def launch(self, host: Host, count: int, *, copies: bool = True) -> None:
        """Start a batch; at most `depth` may be in flight.

        Args:
            count: pictures in it; what lies in the places behind is computed along or left out.
            copies: False leaves them out, to be measured.
        """
        batch = self.places(count)
        slot = self._slots[self._turn]
        self._turn = (self._turn + 1) % SLOTS
        host.slot, host.layout = slot, self._layouts.get(batch) or self._layout(batch)
        if batch not in slot.graphs and not self.not_captured:
            self._more_graphs(batch)
        graph = slot.graphs.get(batch)
        code = 0
        if copies:
            size = nbytes((batch, *self._shape), self._dtype)
            code = self._copy_in(slot.input.address, host._input.host_address, size, self._in)
            code = code or self._record(slot.uploaded, self._in) or self._wait(self.compute, slot.uploaded, 0)
        if graph is not None:
            code = code or self._launch(graph.handle, self.compute)
        elif not code:
            if self._engine.bound != (slot.uploaded, batch):
                self._bind(slot, batch)
            self._engine.enqueue(self.compute)
        last = self.compute
        if copies:
            code = code or self._record(slot.computed, last) or self._wait(self._out, slot.computed, 0)
            last = self._out
            code = code or self._copy_out(host._output.host_address, slot.output.address, host.layout.size, last)
        code = code or self._record(slot.done, last)
        if code:
            raise self._lost(code)

    def nodes(self, batch: int) -> int:
        """How many nodes the graph of a batch size has; 0 without."""
        graph = self._slots[0].graphs.get(batch)
        return graph.nodes if graph else 0

    def enqueue_once(self, batch: int, *, first: bool = False) -> None:
        """Put one run on the compute stream, and nothing else; slot after slot, or always the first one. To measure."""
        slot = self._slots[0 if first else self._turn]
        self._turn = (self._turn + 1) % SLOTS
        graph = slot.graphs.get(batch)
        if graph is not None:
            if code := self._launch(graph.handle, self.compute):
                raise self._lost(code)
            return
        if self._engine.bound != (slot.uploaded, batch):
            self._bind(slot, batch)
        self._engine.enqueue(self.compute)

    def copy_in(self, host: Host, batch: int) -> None:
        """Put the copy of a batch's input on the compute stream; to measure."""
        size = nbytes((batch, *self._shape), self._dtype)
        self._driver.call(
            "cuMemcpyHtoDAsync_v2", self._slots[0].input.address, host._input.host_address, size, self.compute
        )

    def copy_out(self, host: Host, batch: int) -> None:
        """Put the copy of a batch's outputs on the compute stream; to measure."""
        size = self._layout(batch).size
        self._driver.call(
            "cuMemcpyDtoHAsync_v2", host._output.host_address, self._slots[0].output.address, size, self.compute
        )

    def _more_graphs(self, batch: int) -> None:
        """Record another batch size; nothing else may be on the compute stream meanwhile."""
        self._driver.call("cuStreamSynchronize", self.compute)
        self._make_graphs(batch)

    def finish(self, host: Host) -> None:
        """Wait for a batch."""
        assert host.slot is not None
        code = self._synchronize(host.slot.done)
        host.slot = None
        if code:
            raise self._lost(code)

    def outputs(self, host: Host) -> Tensors:
        """The outputs of a finished batch: arrays in page-locked memory, valid until the host is launched again.

        bfloat16 comes as float32, in memory of its own.
        """
        assert host.layout is not None
        memory = host._output.host((host.layout.size,), np.dtype(np.uint8))
        found: Tensors = {}
        for spec in self._engine.outputs:
            offset, shape, dtype = host.layout.outputs[spec.name]
            array = memory[offset : offset + nbytes(shape, dtype)].view(dtype).reshape(shape)
            found[spec.name] = bfloat16_values(array) if spec.dtype == "bfloat16" else array
        return found

    def _lost(self, code: int) -> errors.EdgeappError:
        error = CallError("a batch", code)
        return faults.from_cuda(error, self._driver.context_code(), "running the engine")

    def _drop_graphs(self, slot: Slot) -> None:
        for graph in slot.graphs.values():
            graph.close()
        slot.graphs.clear()

    def close(self) -> None:
        """Wait for what is in flight and free everything; the engine stays."""
        for stream in self._streams:
            self._driver.function("cuStreamSynchronize")(stream)
        self._undo.close()
