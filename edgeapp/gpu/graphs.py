"""CUDA graphs: work on a stream, recorded once and launched again with one call.

A launch costs the CPU some microseconds, enqueueing the kernels of an engine one by one 0.5 to 2 ms.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

from edgeapp.gpu.driver import CallError, Driver

THREAD_LOCAL = 1
"""CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: what other threads do meanwhile does not disturb the recording."""


class Graph:
    """What `record` puts on a stream, ready to be launched.

    Addresses are baked in: a graph belongs to the buffers that it was recorded with.

    Args:
        stream: handle of a stream that is no default stream.
        record: puts the work on that stream, and waits for nothing.

    Raises:
        CallError: the work cannot be recorded, e.g. because it synchronises. Any error of `record`.

    Attributes:
        nodes: kernels, copies and other steps in it.
        handle: for cuGraphLaunch.
    """

    def __init__(self, driver: Driver, stream: int, record: Callable[[], None]) -> None:
        self._driver = driver
        graph = ctypes.c_void_p()
        driver.call("cuStreamBeginCapture_v2", stream, THREAD_LOCAL)
        try:
            record()
        except BaseException:
            driver.function("cuStreamEndCapture")(stream, ctypes.byref(graph))  # else the stream stays unusable
            if graph:
                driver.function("cuGraphDestroy")(graph)
            raise
        driver.call("cuStreamEndCapture", stream, ctypes.byref(graph))
        if not graph:
            raise CallError("cuStreamEndCapture", 901)  # CUDA_ERROR_STREAM_CAPTURE_INVALIDATED
        try:
            count = ctypes.c_size_t()
            driver.call("cuGraphGetNodes", graph, None, ctypes.byref(count))
            self.nodes = count.value
            self.handle = driver.create("cuGraphInstantiateWithFlags", graph, 0)
        finally:
            driver.function("cuGraphDestroy")(graph)

    def close(self) -> None:
        """Free it; no launch may be under way."""
        if self.handle:
            self._driver.function("cuGraphExecDestroy")(self.handle)
        self.handle = 0
