"""Plan -> runtime -> engine -> execution context -> TensorSpecs, every return value checked.

TensorRT's Python objects are freed when the last reference goes: these functions keep none.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import mmap
import os
import sys
from collections import deque
from collections.abc import Callable
from typing import Any

from edgeapp import errors, paths
from edgeapp.gpu import faults, runtimes
from edgeapp.gpu.driver import Driver
from edgeapp.plan import ModelFile
from edgeapp.records import TensorSpec

DTYPES = {
    "FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "FP8": "float8", "INT8": "int8",
    "UINT8": "uint8", "INT32": "int32", "INT64": "int64", "BOOL": "bool",
}  # fmt: skip
"""TensorRT's names -> ours. INT4, FP4 and E8M0 do not occur at the border of an engine."""

KEPT_LINES = 50


def load_libraries(runtime: runtimes.Runtime) -> None:
    """Load the TensorRT libraries by their absolute path, so that no other copy is taken.

    Raises:
        EdgeappError: a library is missing or cannot be loaded.
    """
    for name in runtime.libraries:
        file = runtimes.file_of(name)
        try:
            # Local symbols: with RTLD_GLOBAL two TensorRT versions would mix theirs.
            ctypes.CDLL(file, mode=ctypes.RTLD_LOCAL)
        except OSError as error:
            raise errors.EdgeappError(
                f"cannot load {file}", paths.loader_words(error), "the program's files are damaged: copy it again"
            ) from error


def import_bindings(runtime: runtimes.Runtime) -> Any:
    """TensorRT's Python module. Only with a current CUDA context: it crashes without a driver."""
    # The lean bindings of every version import this package, and it would load all libraries beside it: of TensorRT
    # 10 for the bindings of 11. Ours are loaded.
    sys.modules["tensorrt_lean_libs"] = None  # type: ignore[assignment]
    try:
        return importlib.import_module(runtime.module)
    finally:
        del sys.modules["tensorrt_lean_libs"]


def make_logger(trt: Any, detail: Callable[[str], None]) -> Any:
    """An ILogger that keeps the last error lines (and telling warnings) in `.errors` and passes all on to `detail`."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: deque[str] = deque(maxlen=KEPT_LINES)

        def log(self, severity: Any, message: str) -> None:
            failed = severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR)
            if failed or (severity == trt.ILogger.Severity.WARNING and faults.TELLING_WARNINGS.search(message)):
                self.errors.append(message)
            if severity != trt.ILogger.Severity.VERBOSE:
                detail(f"TensorRT: {message}")

    return Log()


def create_runtime(trt: Any, logger: Any, *, host_code: bool = False) -> Any:
    """An IRuntime; only with a current CUDA context.

    Args:
        host_code: let plans run native code that they carry: version-compatible ones a runtime of their own.
    """
    runtime = trt.Runtime(logger)
    # Where CUDA does not start, 10.16 and 11.4 give an object whose first use ends the process.
    if not runtime or any("initialization failure" in line for line in logger.errors):
        raise _refused("TensorRT cannot start", logger)
    runtime.engine_host_code_allowed = host_code
    return runtime


def load_guest(runtime: Any, logger: Any, file: str, *, host_code: bool = False) -> Any:
    """The runtime of an older TensorRT inside this one; `host_code` as for the other."""
    guest = runtime.load_runtime(file)
    if not guest:
        raise _refused(f"TensorRT cannot load {file}", logger)
    guest.engine_host_code_allowed = host_code
    return guest


def load_plugin(runtime: Any, logger: Any, file: str) -> None:
    """Load a library and enter its plugins into the runtime's registry.

    Raises:
        DataError: it cannot be loaded, or TensorRT finds no plugins in it.
    """
    path = os.path.abspath(file)  # a bare name would be searched for
    what = f"cannot use the plugin {paths.printable(file)}"
    fix = "check with ldd what it needs, and that it was built for this TensorRT"
    runtimes.check_library(path, what)
    try:
        # First by the loader alone: it says what is missing, TensorRT only that something is.
        ctypes.CDLL(path, mode=ctypes.RTLD_LOCAL)
    except OSError as error:
        raise errors.DataError(what, paths.loader_words(error), fix) from error
    registry = runtime.get_plugin_registry()
    # Before 10 (JetPack 5) there is no load_library: plugins enter the registry while their library is loaded.
    if hasattr(registry, "load_library") and not registry.load_library(path):
        why = " ".join(logger.errors) or "TensorRT says no reason"
        raise errors.DataError(what, why, fix)


def deserialise(runtime: Any, logger: Any, plan: ModelFile) -> Any:
    """An ICudaEngine from a plan: from the bytes that were checked, else from the file, which is mapped into memory.

    Raises:
        DataError: TensorRT refuses the plan; the cause is named as far as it can be told.
    """
    what = f"cannot run {paths.printable(plan.path)}"
    if plan.checked is not None:
        engine = runtime.deserialize_cuda_engine(
            memoryview(plan.checked.take())[plan.offset : plan.offset + plan.length]
        )
    else:
        engine = _deserialise_file(runtime, what, plan)
    if engine is None:
        raise _refused(what, logger)
    return engine


def _deserialise_file(runtime: Any, what: str, plan: ModelFile) -> Any:
    """The same from the file, None if TensorRT refuses it."""
    try:
        with (
            open(plan.path, "rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
            memoryview(data)[plan.offset : plan.offset + plan.length] as view,
        ):
            return runtime.deserialize_cuda_engine(view)
    except (OSError, ValueError) as error:
        refused = error if isinstance(error, OSError) else OSError(str(error))
        raise paths.refusal(what, refused) from error


def create_context(engine: Any, logger: Any) -> Any:
    """An IExecutionContext of the engine."""
    context = engine.create_execution_context()
    if context is None:
        raise _refused("TensorRT cannot make an execution context", logger)
    return context


def _refused(what: str, logger: Any) -> errors.EdgeappError:
    return faults.refused(what, list(logger.errors), Driver().memory())


def describe(trt: Any, engine: Any, *, guest: bool) -> dict[str, Any]:
    """What an ICudaEngine tells of itself beyond its tensors' dtypes and shapes.

    Args:
        guest: it is of an older major version than the bindings: what came later would crash the process.

    Returns:
        formats: tensor -> memory format, TensorRT's words. layers: the engine inspector's JSON, names only unless the
        plan was built with detailed profiling verbosity; None for a guest, whose inspector the bindings do not know.
        device_memory_bytes: activations, for all profiles.
    """
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    memory = engine.device_memory_size if guest else engine.device_memory_size_v2
    layers = None
    if not guest:
        text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
        with contextlib.suppress(ValueError, AttributeError):
            layers = json.loads(text).get("Layers")
    return {
        "formats": {name: engine.get_tensor_format_desc(name) for name in names},
        "profiles": engine.num_optimization_profiles,
        "device_memory_bytes": memory,
        "refittable": engine.refittable,
        "layer_count": engine.num_layers,
        "layers": layers,
    }


def tensor_specs(trt: Any, engine: Any) -> tuple[TensorSpec, ...]:
    """Every I/O tensor of an engine, inputs first.

    Raises:
        DataError: a tensor has a dtype or a memory format that is not supported.
    """
    specs = []
    for i in range(engine.num_io_tensors):
        name = engine.get_tensor_name(i)
        is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
        kind = engine.get_tensor_dtype(name).name
        if kind not in DTYPES:
            raise errors.DataError(f"I/O tensor {name}: dtype {kind} is not supported", "", "build it with another")
        # The lean bindings (10.16) lack the enum TensorFormat, so the description has to do.
        layout = engine.get_tensor_format_desc(name)
        if any(word in layout.lower() for word in ("vectorized", "channel major", "dla")):
            raise errors.DataError(
                f"I/O tensor {name}: memory format {layout!r} is not supported",
                "only linear tensors are",
                "rebuild the plan without --inputIOFormats and --outputIOFormats",
            )
        shape = tuple(engine.get_tensor_shape(name))
        specs.append(
            TensorSpec(
                name,
                shape,
                DTYPES[kind],
                is_input,
                _profiles(engine, name, shape, is_input=is_input),
            )
        )
    return tuple(sorted(specs, key=lambda spec: not spec.is_input))


def _profiles(
    engine: Any, name: str, shape: tuple[int, ...], *, is_input: bool
) -> tuple[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]], ...]:
    """(min, opt, max) shapes of each optimisation profile; only inputs with free dimensions have them."""
    if not is_input or -1 not in shape:
        return ()
    profiles = []
    for p in range(engine.num_optimization_profiles):
        low, best, high = (tuple(s) for s in engine.get_tensor_profile_shape(name, p))
        profiles.append((low, best, high))
    return tuple(profiles)
