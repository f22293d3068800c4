"""Brings a plan up, step by step: driver -> context -> TensorRT -> engine; undone in reverse.

TensorRT is never touched before a CUDA context exists: without a driver it crashes the process
(measured with 10.16 and 11.4: `Runtime(logger)` returns an object, its first use segfaults).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from edgeapp import headstart
from edgeapp.plan import ModelFile

if TYPE_CHECKING:
    from edgeapp.gpu.driver import Driver
    from edgeapp.gpu.infer import GpuEngine
    from edgeapp.gpu.runtimes import Runtime


@dataclass
class Trace:
    """What happened in which order: (step, milliseconds), what happened beside it, and the steps that were undone."""

    steps: list[tuple[str, float]] = field(default_factory=list)
    beside: list[tuple[str, float]] = field(default_factory=list)
    undone: list[str] = field(default_factory=list)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.steps.append((name, (time.perf_counter() - started) * 1e3))

    def __str__(self) -> str:
        rows = [*self.steps, ("together", sum(ms for _, ms in self.steps)), *self.beside]
        return "\n".join(f"{ms:9.1f} ms  {name}" for name, ms in rows)


class Bootstrap:
    """The objects that the steps make, in the order in which they are made."""

    def __init__(
        self,
        plan: ModelFile,
        device_number: int,
        detail: Callable[[str], None],
        trace: Trace,
        library: str | None = None,
        *,
        plugins: Sequence[str] = (),
        host_code: bool = False,
        own_context: bool = False,
    ) -> None:
        self._plan = plan
        self._library = library
        self._device_number = device_number
        self._detail = detail
        self._trace = trace
        self._plugins = plugins
        self._host_code = host_code
        self._own_context = own_context
        self._undo = ExitStack()
        self._driver: Driver
        self._choice: Runtime
        self._device: Any = None
        self._cuda_context: Any = None
        self._free_bytes = 0
        self._trt: Any = None
        self._log: Any = None
        self._runtimes: list[Any] = []
        self._engine: Any = None
        self._context: Any = None
        self.ready: GpuEngine | None = None

    STEPS = (
        ("find libcuda.so.1", "_find_driver"),
        ("cuInit", "_initialise"),
        ("count the devices", "_count"),
        ("choose the device", "_choose_device"),
        ("push a CUDA context", "_push_context"),
        ("choose the TensorRT library", "_choose_tensorrt"),
        ("load the TensorRT library", "_load_tensorrt"),
        ("import the bindings", "_import_bindings"),
        ("runtime", "_create_runtime"),
        ("plugins", "_load_plugins"),
        ("engine", "_deserialise"),
        ("execution context", "_create_context"),
        ("I/O tensors", "_look_at_tensors"),
    )

    def up(self, check_stop: Callable[[], None]) -> GpuEngine:
        """Take all steps; a signal between two of them ends it."""
        for name, method in self.STEPS:
            check_stop()
            with self._trace.step(name):
                getattr(self, method)()
        assert self.ready is not None
        return self.ready

    def down(self) -> None:
        """Undo what was done, in reverse; nothing that fails here hides an earlier error."""
        self._undo.close()

    def _on_exit(self, name: str, undo: Callable[[], None]) -> None:
        def guarded() -> None:
            self._trace.undone.append(name)
            self._detail(f"undo: {name}")
            try:
                undo()
            except Exception as error:  # after a broken CUDA context every call fails
                self._detail(f"undo: {name}: {error}")

        self._undo.callback(guarded)

    def _find_driver(self) -> None:
        from edgeapp.gpu.driver import Driver

        self._driver = Driver()

    def _initialise(self) -> None:
        from edgeapp.gpu import faults, runtimes

        self._driver.initialise()
        needed = int(runtimes.flavour().get("cuda") or 0)
        if too_old := faults.old_driver(self._driver.version(), needed):
            raise too_old

    def _count(self) -> None:
        self._driver.require(self._device_number)

    def _choose_device(self) -> None:
        import pycuda.driver as cuda

        cuda.init()
        self._device = cuda.Device(self._device_number)

    def _push_context(self) -> None:
        import pycuda.driver as cuda

        from edgeapp.gpu import faults

        # The CUDA runtime inside TensorRT uses the one that is current.
        try:
            if self._own_context:
                self._cuda_context = self._device.make_context()  # pushes it, too
            else:
                self._cuda_context = self._device.retain_primary_context()
                self._cuda_context.push()
            self._free_bytes = cuda.mem_get_info()[0]
        except cuda.Error as error:
            raise faults.from_cuda(error, 0, "making the CUDA context") from error

        def pop() -> None:
            # Left on PyCUDA's stack, it would abort the process at exit.
            context, self._cuda_context = self._cuda_context, None
            context.pop()
            context.detach()

        self._on_exit("CUDA context", pop)

    def _choose_tensorrt(self) -> None:
        from edgeapp.gpu import runtimes

        self._choice = runtimes.choose(self._plan, self._library, host_code=self._host_code)
        runtimes.check_gpu(self._plan, self._device.compute_capability())

    def _load_tensorrt(self) -> None:
        from edgeapp.gpu import engine

        engine.load_libraries(self._choice)

    def _import_bindings(self) -> None:
        from edgeapp.gpu import engine

        self._trt = engine.import_bindings(self._choice)

    def _create_runtime(self) -> None:
        from edgeapp.gpu import engine, runtimes

        self._log = engine.make_logger(self._trt, self._detail)

        def drop() -> None:
            while self._runtimes:
                self._runtimes.pop()  # the guest goes before its host

        self._on_exit("runtime", drop)
        self._runtimes.append(engine.create_runtime(self._trt, self._log, host_code=self._host_code))
        if self._choice.guest:
            guest = runtimes.file_of(self._choice.guest)
            self._runtimes.append(engine.load_guest(self._runtimes[0], self._log, guest, host_code=self._host_code))

    def _load_plugins(self) -> None:
        from edgeapp.gpu import engine

        for file in self._plugins:
            engine.load_plugin(self._runtimes[-1], self._log, file)

    def _deserialise(self) -> None:
        from edgeapp.gpu import engine

        self._on_exit("engine", lambda: setattr(self, "_engine", None))
        self._engine = engine.deserialise(self._runtimes[-1], self._log, self._plan)

    def _create_context(self) -> None:
        from edgeapp.gpu import engine

        self._on_exit("execution context", lambda: setattr(self, "_context", None))
        self._context = engine.create_context(self._engine, self._log)

    def _look_at_tensors(self) -> None:
        from edgeapp.gpu.infer import GpuEngine

        name = f"TensorRT {self._choice.name.removeprefix('TensorRT ')} on {self._device.name()}"
        self.ready = GpuEngine(
            self._trt, self._engine, self._context, self._log, self._driver,
            cuda_context=self._cuda_context, name=name, guest=bool(self._choice.guest), free_bytes=self._free_bytes,
        )  # fmt: skip
        self._on_exit("buffers", self.ready.close)


@contextmanager
def head_start(
    plan: ModelFile, device: int, trace: Trace, *, library: str | None = None, host_code: bool = False
) -> Iterator[None]:
    """Have the driver, the primary context and TensorRT begin on a thread, beside what the `with` block does first.

    They take 0.25 s, most of it outside of Python. What fails is left to `bring_up`, which takes the same steps again:
    they are quick the second time.

    Args:
        plan, device, library, host_code: as for `bring_up`.
        trace: told how long they take.
    """
    release: list[Callable[[], None]] = []

    def begin() -> None:
        with suppress(Exception):
            with headstart.step("driver"):
                from edgeapp.gpu.driver import Driver

                driver = Driver()
                driver.initialise()
                driver.require(device)
                driver.retain_context(device)
                release.append(partial(driver.release_context, device))
                while headstart.contexts:
                    release.append(partial(driver.release_context, headstart.contexts.pop()))
            with headstart.step("TensorRT and PyCUDA"):
                from edgeapp.gpu import engine, runtimes

                choice = runtimes.choose(plan, library, host_code=host_code)
                engine.load_libraries(choice)
                engine.import_bindings(choice)
                import pycuda.driver  # noqa: F401
        trace.beside += headstart.steps

    headstart.go_on(begin)
    try:
        yield
    finally:
        headstart.wait()
        for undo in release:
            undo()


@contextmanager
def bring_up(
    plan: ModelFile,
    *,
    device: int,
    library: str | None,
    detail: Callable[[str], None],
    trace: Trace,
    check_stop: Callable[[], None],
    plugins: Sequence[str] = (),
    host_code: bool = False,
    own_context: bool = False,
) -> Iterator[GpuEngine]:
    """A running engine for a plan, for the length of the `with` block.

    Args:
        device: GPU number.
        library: --tensorrt-library.
        detail: takes TensorRT's log lines and the steps of the end.
        trace: filled in with every step and its time.
        check_stop: called between the steps; raises when a signal came.
        plugins: libraries with plugins that the plan needs.
        host_code: let the plan run native code that it carries.
        own_context: a CUDA context for this engine alone, instead of the primary one; it takes with it what TensorRT
            leaves behind. 8.6.0 never unloads the kernels of a softmax: 90 kB, and 25 kB of the GPU, for each engine.

    Raises:
        NoGpuError: no driver or GPU. DataError: the plan cannot run here.
    """
    with trace.step("wait for what runs beside"):
        headstart.wait()
    bootstrap = Bootstrap(
        plan, device, detail, trace, library, plugins=plugins, host_code=host_code, own_context=own_context
    )
    try:
        yield bootstrap.up(check_stop)
    finally:
        bootstrap.down()
