"""What a GPU and an engine can do, measured with CUDA events: the yardstick of `edgeapp bench`."""

from __future__ import annotations

import ctypes
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np
import pycuda.driver as cuda
from numpy.typing import NDArray

from edgeapp.gpu.infer import HOST_DTYPES, GpuEngine
from edgeapp.gpu.intake import ReadyInput
from edgeapp.gpu.ring import Ring
from edgeapp.records import Picture, Shape, nbytes
from edgeapp.tensors import noise

FEWEST = 10
"""Batches in a block at least."""


@dataclass
class Pace:
    """How long a number of batches took.

    Attributes:
        wall_s: seconds, of the GPU's clock where nothing else counts, else of the host's.
        thread_s: CPU seconds of the thread that feeds the GPU, waiting included.
        launch_s: of them, those of launching.
    """

    batches: int
    wall_s: float
    thread_s: float = 0.0
    launch_s: float = 0.0


@dataclass
class Steps:
    """Milliseconds of each step of batches that ran one at a time, in the order in which they ran.

    Attributes:
        total: from the start of the copy in until the outputs are in host memory and the host knows it.
        enqueue: the host's time to put the engine, or its graph, on the stream.
        h2d, compute, d2h: by CUDA events.
    """

    started: list[float] = field(default_factory=list)
    total: list[float] = field(default_factory=list)
    enqueue: list[float] = field(default_factory=list)
    h2d: list[float] = field(default_factory=list)
    compute: list[float] = field(default_factory=list)
    d2h: list[float] = field(default_factory=list)


class Meter:
    """Runs the ring of an engine in several ways; between two calls nothing is in flight.

    Args:
        batch: pictures in a batch.
        check_stop: called between batches; raises when a signal came.
    """

    def __init__(self, ring: Ring, engine: GpuEngine, batch: int, check_stop: Callable[[], None]) -> None:
        self._check_stop = check_stop
        self._ring = ring
        self._engine = engine
        self._driver = engine.driver
        self._batch = batch
        self._undo = ExitStack()
        self._events = [self._driver.create("cuEventCreate", 0) for _ in range(4)]
        for event in self._events:
            self._undo.callback(self._driver.function("cuEventDestroy_v2"), event)

    def close(self) -> None:
        self._undo.close()

    def randomise(self) -> None:
        """Give the network input made on the CPU random values, 0 to 1: zeros cost a GPU less than numbers."""
        for host in self._ring.hosts:
            assert isinstance(host.input, ReadyInput)
            array = host.input.array
            array[...] = noise(array.shape).astype(array.dtype)

    def show(self, pictures: Sequence[tuple[Picture, tuple[int, int]]]) -> None:
        """Fill all hosts with pictures."""
        number = 0
        for host in self._ring.hosts:
            self._ring.begin(host)
            for place in range(self._batch):
                self._ring.fill(host, place, *pictures[number % len(pictures)])
                number += 1

    def preprocessing(self) -> float:
        """Milliseconds of the kernel that makes the input tensor of the pictures shown last, back to back."""
        self._ring.copy_in(self._ring.hosts[0], self._batch)
        return self._alone(self._ring.prepare_once, 10 * FEWEST)

    def floor(self, seconds: float) -> Pace:
        """The engine back to back without any copy, by the GPU's clock: nothing that feeds it can be faster."""
        ring, (start, end, *_) = self._ring, self._events
        count, done, gpu_s = FEWEST, 0, 0.0
        until = time.perf_counter() + seconds
        while time.perf_counter() < until or not done:
            self._check_stop()
            self._driver.call("cuEventRecord", start, ring.compute)
            for _ in range(count):
                ring.enqueue_once(self._batch)
            self._driver.call("cuEventRecord", end, ring.compute)
            self._driver.call("cuEventSynchronize", end)
            gpu_s += self._between(start, end) / 1e3
            done += count
            # Few long runs: the first launch of each one waits for the host.
            count = max(FEWEST, min(4096, int(done * seconds / 3 / gpu_s)))
        return Pace(done, gpu_s)

    def loop(self, seconds: float, *, copies: bool, computes: bool = True) -> Pace:
        """Batches through the ring, as many in flight as it holds; with their copies, without, or nothing but these."""
        ring = self._ring
        flying: deque[int] = deque()
        done, launch_s = 0, 0.0
        thread_s, started = time.thread_time(), time.perf_counter()
        until = started + seconds
        while time.perf_counter() < until or done < FEWEST:
            self._check_stop()
            host = done % len(ring.hosts)
            before = time.thread_time()
            ring.launch(ring.hosts[host], self._batch, copies=copies, computes=computes)
            launch_s += time.thread_time() - before
            flying.append(host)
            done += 1
            if len(flying) == ring.depth:
                ring.finish(ring.hosts[flying.popleft()])
        while flying:
            ring.finish(ring.hosts[flying.popleft()])
        return Pace(done, time.perf_counter() - started, time.thread_time() - thread_s, launch_s)

    def steps(self, seconds: float, least: int) -> Steps:
        """One batch at a time, step by step on one stream."""
        ring, driver = self._ring, self._driver
        found = Steps()
        first = time.perf_counter()
        while time.perf_counter() < first + seconds or len(found.total) < least:
            self._check_stop()
            started = time.perf_counter()
            driver.call("cuEventRecord", self._events[0], ring.compute)
            ring.copy_in(ring.hosts[0], self._batch)
            driver.call("cuEventRecord", self._events[1], ring.compute)
            before = time.perf_counter()
            ring.enqueue_once(self._batch, first=True)
            after = time.perf_counter()
            driver.call("cuEventRecord", self._events[2], ring.compute)
            ring.copy_out(ring.hosts[0], self._batch)
            driver.call("cuEventRecord", self._events[3], ring.compute)
            driver.call("cuEventSynchronize", self._events[3])
            found.total.append((time.perf_counter() - started) * 1e3)
            found.started.append((started - first) * 1e3)
            found.enqueue.append((after - before) * 1e3)
            for i, times in enumerate((found.h2d, found.compute, found.d2h)):
                times.append(self._between(self._events[i], self._events[i + 1]))
        return found

    def latency(self, seconds: float, least: int) -> list[float]:
        """Milliseconds of batches that go through the ring one at a time, from the launch to the outputs."""
        times: list[float] = []
        host = self._ring.hosts[0]
        until = time.perf_counter() + seconds
        while time.perf_counter() < until or len(times) < least:
            self._check_stop()
            started = time.perf_counter()
            self._ring.launch(host, self._batch)
            self._ring.finish(host)
            times.append((time.perf_counter() - started) * 1e3)
        return times

    def copies(self) -> tuple[float, float]:
        """Milliseconds of the copy in and of the copy out of a batch, each back to back."""
        host = self._ring.hosts[0]
        into = self._alone(lambda batch: self._ring.copy_in(host, batch), FEWEST)
        return into, self._alone(lambda batch: self._ring.copy_out(host, batch), FEWEST)

    def _alone(self, put: Callable[[int], None], count: int) -> float:
        """Milliseconds of something on the compute stream, back to back."""
        start, end, *_ = self._events
        put(self._batch)
        self._driver.call("cuEventRecord", start, self._ring.compute)
        for _ in range(count):
            put(self._batch)
        self._driver.call("cuEventRecord", end, self._ring.compute)
        self._driver.call("cuEventSynchronize", end)
        return self._between(start, end) / count

    def tutorial(self, shape: Shape) -> TutorialLoop:
        """The loop to compare with, on the same engine."""
        return TutorialLoop(self._engine, shape)

    def graph(self) -> str:
        """What was recorded, or why nothing was."""
        return self._ring.not_captured or f"{self._ring.nodes(self._batch)} nodes"

    def device_bytes(self) -> int:
        """GPU memory in use since before TensorRT was loaded."""
        return int(self._engine.describe()["device_used_bytes"])

    def _between(self, start: int, end: int) -> float:
        """Milliseconds between two events that are over."""
        ms = ctypes.c_float()
        self._driver.call("cuEventElapsedTime", ctypes.byref(ms), start, end)
        return ms.value


class TutorialLoop:
    """The loop that TensorRT tutorials teach, to compare with: one picture, page-locked buffers made once, copy in,
    execute, copy out, synchronise.

    Needs an engine with one input; no ring of that engine may have anything in flight.
    """

    def __init__(self, engine: GpuEngine, shape: Shape) -> None:
        self._engine = engine
        self._stream = cuda.Stream()
        (spec,) = engine.inputs
        shapes = engine.output_shapes(shape)
        self._host_in = cuda.pagelocked_empty(shape, HOST_DTYPES[spec.dtype])
        self._device_in = cuda.mem_alloc(self._host_in.nbytes)
        self._outputs = []
        for out in engine.outputs:
            host = cuda.pagelocked_empty(shapes[out.name], HOST_DTYPES[out.dtype])
            self._outputs.append((host, cuda.mem_alloc(max(1, nbytes(shapes[out.name], host.dtype)))))
        engine.bind(
            {
                spec.name: int(self._device_in),
                **{out.name: int(device) for out, (_, device) in zip(engine.outputs, self._outputs, strict=True)},
            },
            self,
        )

    def step(self, tensor: NDArray[np.float32]) -> None:
        """Run once."""
        np.copyto(self._host_in, tensor, casting="unsafe")
        cuda.memcpy_htod_async(self._device_in, self._host_in, self._stream)
        self._engine.enqueue(self._stream.handle)
        for host, device in self._outputs:
            cuda.memcpy_dtoh_async(host, device, self._stream)
        self._stream.synchronize()

    def close(self) -> None:
        """Free the buffers."""
        self._engine.bound = None
        self._device_in.free()
        self._host_in.base.free()
        for host, device in self._outputs:
            host.base.free()
            device.free()
