"""The GPU's driver begins to come up before the command line is read and beside the imports: it takes the longest."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

LIBRARY = "libcuda.so.1"
"""Of the NVIDIA driver; found by the loader."""

FIRST = 0
"""The GPU of a run that names none."""

ENDINGS = (".engine", ".plan", ".trt")

contexts: list[int] = []
"""GPUs whose primary context is kept since `begin`; whoever uses them takes them out and releases them."""

steps: list[tuple[str, float]] = []
"""What was done on threads of this module: (step, milliseconds)."""

_thread: threading.Thread | None = None


def begin(words: Sequence[str], environment: Mapping[str, str] = os.environ) -> None:
    """Have the driver come up on a thread if the words ask in the plainest way for a plan to be run on the first GPU.

    It is a guess: where it is wrong, the driver came up for nothing; where it says no, the driver comes up later.

    Args:
        words: the command line without the program.
    """
    if _runs_a_plan(words, environment):
        go_on(_bring_up_driver)


def go_on(call: Callable[[], None]) -> None:
    """Have a call made on a thread once what has begun before is over, or not at all, where threads are refused."""
    from edgeapp import memory  # late, as ctypes: most commands do without

    global _thread
    former = _thread
    memory.keep_freed()

    def run() -> None:
        if former is not None:
            former.join()
        call()

    thread = threading.Thread(target=run, name="head start")
    with suppress(RuntimeError):
        thread.start()
        _thread = thread


def wait() -> None:
    """Until what has begun is over."""
    if _thread is not None:
        _thread.join()


@contextmanager
def step(name: str) -> Iterator[None]:
    """Add the body of a `with` to the steps."""
    started = time.perf_counter()
    try:
        yield
    finally:
        steps.append((f"beside: {name}", (time.perf_counter() - started) * 1e3))


def _runs_a_plan(words: Sequence[str], environment: Mapping[str, str]) -> bool:
    # The workers of several GPUs are forks, for which a driver that came up before them is of no use.
    others = ("-h", "--help", "--version", "--device", "--config")
    if any(word.startswith(others) for word in words) or {"EDGEAPP_DEVICE", "EDGEAPP_CONFIG"} & environment.keys():
        return False
    if not words or not (words[0] == "run" or words[0].startswith("-")) or "--engine" not in words[:-1]:
        return False
    engine = words[words.index("--engine") + 1]
    return engine.endswith(ENDINGS) and os.path.isfile(engine)


def _bring_up_driver() -> None:
    import ctypes

    # What fails is left to edgeapp.gpu.driver, which takes the same steps again: they are quick the second time.
    with suppress(OSError, AttributeError):
        with step("find libcuda.so.1, cuInit"):
            make_lazy()
            driver = ctypes.CDLL(LIBRARY, mode=ctypes.RTLD_GLOBAL)
            driver.cuInit(0)
        with step("primary context"):
            device, context = ctypes.c_int(), ctypes.c_void_p()
            if driver.cuDeviceGet(ctypes.byref(device), FIRST) == 0:
                retained = driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device) == 0
                contexts.extend([FIRST] * retained)


def make_lazy() -> None:
    """Have the driver load kernels when they are first used: less memory and a faster start. cuInit reads it."""
    os.environ.setdefault("CUDA_MODULE_LOADING", "LAZY")
