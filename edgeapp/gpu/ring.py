"""Batches of pictures in flight: copy in, compute and copy out of neighbouring batches at the same time.

Three streams and a few slots. The compute graph of a slot runs on one stream, the copies of its neighbours on the two
others, joined by events. Measured on an H200: this reaches 0.996 of what the GPU can do, the same copies inside the
graph 0.57 to 0.91 of it. Where a batch is too small to fill a GPU there may be more streams that compute.
"""

from __future__ import annotations

from contextlib import ExitStack, suppress
from functools import partial

import numpy as np
import pycuda.driver as cuda
from numpy.typing import NDArray

from edgeapp import errors
from edgeapp.gpu import faults
from edgeapp.gpu.buffers import Buffer
from edgeapp.gpu.driver import CallError
from edgeapp.gpu.filter import Filter
from edgeapp.gpu.graphs import Graph
from edgeapp.gpu.infer import HOST_DTYPES, GpuEngine
from edgeapp.gpu.intake import Intake, PixelIntake, up
from edgeapp.gpu.slots import Host, Lane, Layout, Slot
from edgeapp.records import Letterbox, Picture, Shape, Tensors, nbytes
from edgeapp.tensors import bfloat16_values

SLOTS = 3
"""Batches on the GPU at a time, for each stream that computes: one copied in, one computed, one copied out."""

NON_BLOCKING = 1
"""CU_STREAM_NON_BLOCKING: the stream does not wait for the default stream."""

BLOCKING_SYNC, DISABLE_TIMING = 1, 2
"""CU_EVENT_*: a waiting thread sleeps; no time stamps."""


class Ring:
    """An engine with one picture input, working on several batches at once.

    `launch` and `finish` belong to one thread at a time, on which the CUDA context is current. While batches are in
    flight `GpuEngine.infer` must not be used: both share one execution context.

    Args:
        intake: how pictures become the input tensor.
        shape: of the input of one picture.
        batch: pictures in the largest batch.
        least: in the smallest that the engine takes.
        hosts: how many batches there are between decoding and the last use of their outputs.
        spin: wait without sleeping: some microseconds sooner, at the price of a core.
        graphs: False has every launch enqueue the engine anew.
        streams: for computing; each further one has an execution context, with device memory, of its own.
        boxes: picks the boxes of the only output that reach the threshold, so that the rest need not be copied.

    Raises:
        DataError: this engine cannot work so: it has other inputs than pictures, outputs of unknown size, or TensorRT
            gives it not so many execution contexts.

    Attributes:
        intake: as given.
        depth: batches that may be in flight.
        compute: the first of the streams that compute.
        hosts: use each for one batch at a time.
        not_captured: why there are no graphs, "" if there are.
    """

    def __init__(
        self,
        engine: GpuEngine,
        intake: Intake,
        *,
        shape: Shape,
        batch: int,
        least: int,
        hosts: int,
        spin: bool = False,
        graphs: bool = True,
        streams: int = 1,
        boxes: Filter | None = None,
    ) -> None:
        if not engine.pictures_only:
            raise errors.DataError("the engine has other inputs than pictures")
        self._engine = engine
        self.intake = intake
        self._boxes = boxes
        self._driver = engine.driver
        self._batch = batch
        self._least = least
        self._shape = shape
        self.not_captured = "" if graphs else "they are switched off"
        self._layouts: dict[int, Layout] = {}
        self._turn = 0
        self._undo = ExitStack()
        self._streams: list[int] = []
        try:
            largest = self._layout(batch)
            self._in, self._out = self._stream(), self._stream()
            self._lanes = [Lane(engine, self._stream())]
            self._lanes += [self._further_lane() for _ in range(1, streams)]
            self.compute = self._lanes[0].stream
            self.depth = SLOTS * streams
            flags = 0 if spin else BLOCKING_SYNC
            self._slots = [self._slot(lane, largest.size, flags) for _ in range(SLOTS) for lane in self._lanes]
            self.hosts = [self._host(largest.fetched) for _ in range(hosts)]
            self._prepare_calls()
            self._make_graphs(batch)
        except BaseException:
            self.close()
            raise

    # --- making -------------------------------------------------------------------------------------------------------

    def _layout(self, batch: int) -> Layout:
        """For a batch size, from the engine; what the filter picks comes first."""
        if batch not in self._layouts:
            shapes = self._engine.output_shapes((batch, *self._shape))
            outputs, end = {}, up(self._boxes.nbytes(batch)) if self._boxes else 0
            for spec in self._engine.outputs:
                dtype = HOST_DTYPES[spec.dtype]
                outputs[spec.name] = (end, shapes[spec.name], dtype)
                end += up(max(1, nbytes(shapes[spec.name], dtype)))
            fetched = self._boxes.results_nbytes(batch) if self._boxes else end
            self._layouts[batch] = Layout(batch, outputs, end, fetched)
        return self._layouts[batch]

    def _stream(self) -> int:
        stream = self._driver.create("cuStreamCreate", NON_BLOCKING)
        self._streams.append(stream)
        self._undo.callback(self._driver.function("cuStreamDestroy_v2"), stream)
        return stream

    def _further_lane(self) -> Lane:
        engine = self._engine.another()
        self._undo.callback(engine.close)
        return Lane(engine, self._stream())

    def _event(self, flags: int) -> int:
        event = self._driver.create("cuEventCreate", flags)
        self._undo.callback(self._driver.function("cuEventDestroy_v2"), event)
        return event

    def _buffer(self, name: str) -> Buffer:
        buffer = Buffer(name, self._driver)
        self._undo.callback(_free, buffer)
        return buffer

    def _slot(self, lane: Lane, output_size: int, flags: int) -> Slot:
        copied, output = self._buffer("input"), self._buffer("outputs")
        copied.reserve_device(self.intake.device_size)
        output.reserve_device(output_size)
        tensor = copied.address
        if self.intake.tensor_size:
            made = self._buffer("input")
            made.reserve_device(self.intake.tensor_size)
            tensor = made.address
        # Recording runs the engine once on what lies there.
        self._driver.call("cuMemsetD8Async", copied.address, 0, self.intake.device_size, lane.stream)
        uploaded, computed = self._event(DISABLE_TIMING), self._event(DISABLE_TIMING)
        slot = Slot(lane, copied, tensor, output, uploaded, computed, self._event(DISABLE_TIMING | flags))
        self._undo.callback(self._drop_graphs, slot)
        return slot

    def _host(self, output_size: int) -> Host:
        sent, received = self._buffer("input"), self._buffer("outputs")
        sent.reserve_host(self.intake.size)
        received.reserve_host(output_size)
        memory = sent.host((self.intake.size,), np.dtype(np.uint8))
        return Host(self.intake.input(memory), sent, received)

    def _prepare_calls(self) -> None:
        """The driver's functions for every batch, looked up once."""
        quick = partial(self._driver.function, waits=False)
        self._copy_in, self._copy_out = quick("cuMemcpyHtoDAsync_v2"), quick("cuMemcpyDtoHAsync_v2")
        self._launch, self._record, self._wait = (
            quick("cuGraphLaunch"),
            quick("cuEventRecord"),
            quick("cuStreamWaitEvent"),
        )
        self._synchronize = self._driver.function("cuEventSynchronize")

    def _make_graphs(self, batch: int) -> None:
        """For every slot; where it cannot be, `not_captured` says why and launches go without."""
        for slot in self._slots:
            self._enqueue(slot, batch)  # the first run of a shape loads kernels, which cannot be recorded
            self._driver.call("cuStreamSynchronize", slot.lane.stream)
            if self.not_captured:
                return
            try:
                slot.graphs[batch] = Graph(self._driver, slot.lane.stream, partial(self._enqueue, slot, batch))
            except (CallError, errors.EdgeappError) as error:
                if self._driver.context_code() != 0:
                    raise
                self.not_captured = " ".join(str(error).split())
                return

    def _enqueue(self, slot: Slot, batch: int) -> None:
        """Put on its lane's stream all that a batch needs there."""
        layout, engine, stream = self._layout(batch), slot.lane.engine, slot.lane.stream
        if engine.bound != (slot.uploaded, batch):
            engine.output_shapes((batch, *self._shape))
            addresses = {name: slot.output.address + offset for name, (offset, _, _) in layout.outputs.items()}
            engine.bind({engine.inputs[0].name: slot.tensor, **addresses}, (slot.uploaded, batch))
        self.intake.enqueue(slot.copied.address, slot.tensor, batch, stream)
        engine.enqueue(stream)
        if self._boxes is not None:
            ((offset, _, _),) = layout.outputs.values()
            self._boxes.launch(slot.output.address + offset, slot.output.address, batch, stream)

    @property
    def takes_pixels(self) -> bool:
        """Whether pixels become network input on the GPU."""
        return isinstance(self.intake, PixelIntake)

    # --- running ------------------------------------------------------------------------------------------------------

    def begin(self, host: Host) -> None:
        """Make all its places unused."""
        host.input.clear()

    def fill(self, host: Host, place: int, image: Picture, picture_wh: tuple[int, int]) -> Letterbox:
        """Put a picture into its place of the batch; any thread may, each for another place."""
        return host.input.fill(place, image, picture_wh)

    def places(self, count: int) -> int:
        """The batch size that runs for `count` pictures: a power of two, or the largest."""
        size = max(self._least, 1 << max(0, count - 1).bit_length())
        return min(size, self._batch)

    def launch(self, host: Host, count: int, *, copies: bool = True, computes: bool = True) -> None:
        """Start a batch; at most `depth` may be in flight.

        Args:
            count: pictures in it; what lies in the places behind is computed along or left out.
            copies, computes: False leaves them out, to be measured.
        """
        batch = self.places(count)
        slot = self._slots[self._turn]
        self._turn = (self._turn + 1) % self.depth
        compute = slot.lane.stream
        host.slot, host.layout, host.whole = slot, self._layouts.get(batch) or self._layout(batch), self._boxes is None
        if batch not in slot.graphs and not self.not_captured:
            self._more_graphs(batch)
        graph = slot.graphs.get(batch)
        code = 0
        if copies:
            size = host.input.used(batch)
            code = self._copy_in(slot.copied.address, host.sent.host_address, size, self._in)
            code = code or self._record(slot.uploaded, self._in) or self._wait(compute, slot.uploaded, 0)
        if computes and graph is not None:
            code = code or self._launch(graph.handle, compute)
        elif computes and not code:
            self._enqueue(slot, batch)
        last = compute
        if copies:
            code = code or self._record(slot.computed, last) or self._wait(self._out, slot.computed, 0)
            last = self._out
            code = code or self._copy_out(host.received.host_address, slot.output.address, host.layout.fetched, last)
        code = code or self._record(slot.done, last)
        if code:
            raise self._lost(code)

    def _more_graphs(self, batch: int) -> None:
        """Record another batch size; nothing else may be computed meanwhile."""
        for lane in self._lanes:
            self._driver.call("cuStreamSynchronize", lane.stream)
        self._make_graphs(batch)

    def finish(self, host: Host) -> None:
        """Wait for a batch."""
        slot, layout = host.slot, host.layout
        assert slot is not None
        assert layout is not None
        code = self._synchronize(slot.done)
        host.slot = None
        if self._boxes is not None and not code and self._boxes.overflown(self._memory(host), layout.batch):
            # More boxes than the filter has room for: the whole output is needed after all.
            host.received.reserve_host(layout.size)
            code = self._copy_out(host.received.host_address, slot.output.address, layout.size, self._out)
            code = code or self._record(slot.done, self._out) or self._synchronize(slot.done)
            host.whole = True
        if code:
            raise self._lost(code)

    @staticmethod
    def _memory(host: Host) -> NDArray[np.uint8]:
        assert host.layout is not None
        return host.received.host((host.layout.size if host.whole else host.layout.fetched,), np.dtype(np.uint8))

    def outputs(self, host: Host) -> Tensors:
        """The outputs of a finished batch: arrays in page-locked memory, valid until the host is launched again.

        bfloat16 comes as float32, in memory of its own. With a filter what it gives, and the output itself only where a
        place had more boxes than there was room for.
        """
        assert host.layout is not None
        memory = self._memory(host)
        found: Tensors = {}
        if self._boxes is not None and not host.whole:
            found.update(self._boxes.tensors(memory, host.layout.batch))
        for spec in self._engine.outputs if host.whole else ():
            offset, shape, dtype = host.layout.outputs[spec.name]
            array = memory[offset : offset + nbytes(shape, dtype)].view(dtype).reshape(shape)
            found[spec.name] = bfloat16_values(array) if spec.dtype == "bfloat16" else array
        return found

    # --- to measure ---------------------------------------------------------------------------------------------------

    def nodes(self, batch: int) -> int:
        """How many nodes the graph of a batch size has; 0 without."""
        graph = self._slots[0].graphs.get(batch)
        return graph.nodes if graph else 0

    def enqueue_once(self, batch: int, *, first: bool = False) -> None:
        """Put one run on the compute stream, and nothing else; slot after slot of it, or always the first one."""
        slot = self._slots[0 if first else self._turn - self._turn % len(self._lanes)]
        self._turn = (self._turn + len(self._lanes)) % self.depth
        graph = slot.graphs.get(batch)
        if graph is None:
            self._enqueue(slot, batch)
        elif code := self._launch(graph.handle, self.compute):
            raise self._lost(code)

    def prepare_once(self, batch: int) -> None:
        """Put on the compute stream what makes the input tensor, and nothing else."""
        slot = self._slots[0]
        self.intake.enqueue(slot.copied.address, slot.tensor, batch, self.compute)

    def copy_in(self, host: Host, batch: int) -> None:
        """Put the copy of a batch's input on the compute stream."""
        address, size = self._slots[0].copied.address, host.input.used(batch)
        self._driver.call("cuMemcpyHtoDAsync_v2", address, host.sent.host_address, size, self.compute)

    def copy_out(self, host: Host, batch: int) -> None:
        """Put the copy of a batch's outputs on the compute stream."""
        address, size = self._slots[0].output.address, self._layout(batch).fetched
        self._driver.call("cuMemcpyDtoHAsync_v2", host.received.host_address, address, size, self.compute)

    # --- ending -------------------------------------------------------------------------------------------------------

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


def _free(buffer: Buffer) -> None:
    with suppress(cuda.Error):  # of a broken context, which somebody else tells of
        buffer.free()
