"""Which TensorRT libraries are at hand, and which of them serves a plan of which version.

Imports nothing of TensorRT: the choice is made before the first library is loaded, because a process can hold one
TensorRT family only, and because some combinations crash instead of failing (a plan of 8.6 in lean 11, measured).

Measured on an H200: plans of 8.6.0 run in the 10.16.1 bindings through `load_runtime` of the 8.6.0 library, version
compatible or native as long as the lean runtime has all their parts; deserialising them directly is refused. Plans of
10.x and 11.x could not be built to be tried: that a lean runtime runs version compatible plans of its major version up
to its own version is NVIDIA's word.
"""

from __future__ import annotations

import ctypes
import glob
import json
import os
import re
import stat
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec

from edgeapp import errors, gpus, paths
from edgeapp.plan import ONNX, PLAN, ModelFile

Version = tuple[int, int, int]


@dataclass(frozen=True)
class Runtime:
    """One way to run plans.

    Attributes:
        name: for messages.
        module: the Python bindings.
        libraries: what to load before the bindings, relative to the library root, in order; a
            bare name is left to the system's loader.
        guest: a lean runtime of an older major version that the bindings load for a plan
            (`IRuntime.load_runtime`); "" when the plan runs directly.
        oldest, newest: plans of these versions are accepted, both ends included.
        lean: only version compatible plans run for sure.
        origin: bundled, system (found on this machine) or given (--tensorrt-library).
    """

    name: str
    module: str
    libraries: tuple[str, ...]
    oldest: Version
    newest: Version
    guest: str = ""
    lean: bool = True
    origin: str = "bundled"

    @property
    def files(self) -> tuple[str, ...]:
        """Every library that it needs."""
        return (*self.libraries, self.guest) if self.guest else self.libraries

    @property
    def plans(self) -> str:
        """The versions that it takes, for people: 8.6.0, or 10.0 to 10.16.1."""
        return text(self.newest) if self.oldest == self.newest else f"{text(self.oldest)} to {text(self.newest)}"


@dataclass(frozen=True)
class Verdict:
    """Whether and how a file can be run here.

    Attributes:
        runs: yes, if_version_compatible (the bytes do not tell) or no.
        runtime: which runs it, None where none does; "ONNX Runtime on the CPU" has none either.
        why, fix: for no, the reason and the way out; else what to know.
    """

    runs: str
    runtime: Runtime | None = None
    why: str = ""
    fix: str = ""


YES, MAYBE, NO = "yes", "if_version_compatible", "no"
REBUILD = "trtexec --versionCompatible --excludeLeanRuntime"

_LEAN_10 = ("tensorrt_lean_libs/libnvinfer_lean.so.10",)

LEAN = (
    Runtime("lean 8.6.0", "tensorrt_lean_bindings", _LEAN_10, (8, 6, 0), (8, 6, 0),
            "tensorrt_lean8_libs/libnvinfer_lean.so.8"),
    Runtime("lean 10.16.1", "tensorrt_lean_bindings", _LEAN_10, (10, 0, 0), (10, 16, 1)),
    Runtime("lean 11.4.0", "tensorrt_lean11_bindings", ("tensorrt_lean11_libs/libnvinfer_lean.so.11",),
            (11, 0, 0), (11, 4, 0)),
)  # fmt: skip

SYSTEM_FOLDERS = (
    "/usr/lib/*-linux-gnu",
    "/usr/lib64",
    "/usr/local/lib",
    "/usr/local/tensorrt*/lib",
    "/opt/tensorrt*/lib",
)
"""Where packages (libnvinfer-lean10 of JetPack and of the CUDA repository) and NVIDIA's archives put libraries."""


def text(version: Sequence[int]) -> str:
    """10.16.1; 10.0 for 10.0.0."""
    return ".".join(map(str, version)).removesuffix(".0") if version[1:] == (0, 0) else ".".join(map(str, version))


def flavour() -> dict[str, str]:
    """What the frozen file was built with: keys tensorrt (lean, system, full), tensorrt_version."""
    file = paths.library_root() / "build.json"
    if not paths.FROZEN or not file.is_file():
        return {"tensorrt": "lean"}
    values: dict[str, str] = json.loads(file.read_bytes())
    return values


def catalogue() -> tuple[Runtime, ...]:
    """The runtimes inside this program whose files are there."""
    built = flavour()
    root = paths.library_root()
    if built["tensorrt"] == "lean":
        return tuple(r for r in LEAN if all((root / file).is_file() for file in r.files))
    version = _version(built["tensorrt_version"])
    oldest = (8, 6, 0) if version[0] == 8 and version[1] >= 6 else (version[0], 0, 0)
    name, libraries = f"TensorRT {text(version)}", tuple(built.get("libraries", "").split())
    return (Runtime(name, "tensorrt", libraries, oldest, version, lean=False),)


def of_this_machine() -> tuple[Runtime, ...]:
    """Lean runtimes that are installed here and newer than the bundled one of their major version."""
    bundled = catalogue()
    found: dict[str, Runtime] = {}
    for folder in SYSTEM_FOLDERS:
        for path in sorted(glob.glob(f"{folder}/libnvinfer_lean.so.[0-9]*")):
            real = os.path.realpath(path)
            match = re.search(r"\.so\.(\d+\.\d+\.\d+)$", real)
            if match and os.access(real, os.R_OK) and (runtime := _with_library(bundled, real, _version(match[1]))):
                found[real] = replace(runtime, origin="system", name=f"{runtime.name} of this system")
    return tuple(found.values())


def given(path: str) -> Runtime:
    """The runtime of --tensorrt-library.

    Raises:
        NotFoundError, NotPermittedError: it cannot be read. DataError: it is no lean runtime that fits the bindings.
    """
    what = f"cannot use --tensorrt-library {paths.printable(path)}"
    check_library(path, what)
    real = os.path.realpath(path)
    try:
        number = int(ctypes.CDLL(real, mode=ctypes.RTLD_LOCAL).getInferLibVersion())
    except (OSError, AttributeError) as error:
        why = paths.loader_words(error)
        raise errors.DataError(what, why, "name libnvinfer_lean.so.10 or .11 for this machine") from error
    # NvInferRuntimeBase.h: major * 10000 + minor * 100 + patch since 10.0, thousands before.
    unit = 10000 if number >= 100000 else 1000
    version = number // unit, number % unit // 100, number % 100
    runtime = _with_library(catalogue(), real, version, older=True)
    if "lean" not in os.path.basename(real):
        why = "its name is not libnvinfer_lean.so, by which the bindings ask for it"
        raise errors.DataError(what, why, "name the lean runtime, under its own name")
    if runtime is None:
        majors = ", ".join(str(r.newest[0]) for r in catalogue() if not r.guest)
        raise errors.DataError(
            what, f"it is TensorRT {text(version)}; this program's bindings are for the lean runtime of {majors}",
            "name libnvinfer_lean.so of one of these major versions",
        )  # fmt: skip
    return replace(runtime, origin="given", name=f"{runtime.name} of {paths.printable(path)}")


def check_library(path: str, what: str) -> None:
    """Refuse what is no whole ELF library: the loader maps one that is cut short, and the process dies by SIGBUS.

    Raises:
        NotFoundError, NotPermittedError: it cannot be read. DataError: it is none, or cut short.
    """
    fix = "name a library, and copy it again if it should be one"
    try:
        number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(number)
            head = os.pread(number, 64, 0) if stat.S_ISREG(status.st_mode) else b""
            if len(head) < 64 or head[:5] != b"\x7fELF\2":
                raise errors.DataError(what, "it is no library", fix)
            programs, sections = struct.unpack_from("<QQ", head, 32)
            size, count, section_size, section_count = struct.unpack_from("<HHHH", head, 54)
            table = os.pread(number, size * count, programs) if programs < 1 << 62 else b""
            ends = [programs + size * count, sections + section_size * section_count]
            for at in range(0, len(table) - 55, max(size, 56)):
                offset, length = struct.unpack_from("<Q16xQ", table, at + 8)
                ends.append(offset + length)
            if max(ends) > status.st_size:
                raise errors.DataError(what, f"it is cut short: {status.st_size} of {max(ends)} bytes are there", fix)
        finally:
            os.close(number)
    except OSError as error:
        raise paths.refusal(what, error) from error
    except ValueError as error:  # a NUL in the name
        raise errors.NotFoundError(what, str(error), "check the name") from error


def _with_library(bundled: Sequence[Runtime], file: str, version: Version, *, older: bool = False) -> Runtime | None:
    """The bundled runtime of that major version with another library, if that one is newer."""
    for runtime in bundled:
        same_major = runtime.lean and not runtime.guest and runtime.newest[0] == version[0]
        if same_major and (version > runtime.newest or older):
            return replace(runtime, name=f"lean {text(version)}", libraries=(file,), newest=version)
    return None


def _version(dotted: str) -> Version:
    major, minor, patch = (int(n) for n in dotted.split(".")[:3])
    return major, minor, patch


def verdict(found: ModelFile, library: str | None = None, *, host_code: bool = False) -> Verdict:
    """Whether a file can be run here, and by what; told from its bytes alone.

    Args:
        library: --tensorrt-library, which is then the only one that counts.
        host_code: native code inside a plan may be run.

    Raises:
        EdgeappError: that library cannot be used.
    """
    if found.problem:
        return Verdict(NO, None, found.problem, found.fix)
    if found.kind == ONNX and find_spec("onnxruntime") is None:
        return Verdict(
            NO, None, "this program carries no ONNX Runtime", "use an edgeapp that was not frozen with --slim"
        )
    if found.kind == ONNX:
        return Verdict(YES, None, "ONNX Runtime runs it on the CPU")
    assert found.kind == PLAN
    version = (found.version[0], found.version[1], found.version[2])
    runtimes = (given(library),) if library else catalogue()
    serving = [runtime for runtime in runtimes if runtime.oldest <= version <= runtime.newest]
    if not serving and not library:
        serving = [runtime for runtime in of_this_machine() if runtime.oldest <= version <= runtime.newest]
    if found.facts is not None and found.facts.lean_inside and serving and not host_code:
        return Verdict(
            NO, None, "it carries its own runtime code, which is not run for safety", f"rebuild it with: {REBUILD}"
        )
    if serving:
        runtime = serving[0]
        if found.facts is not None and found.facts.lean_inside:
            return Verdict(YES, runtime)
        if not runtime.lean and version == runtime.newest:
            return Verdict(YES, runtime)
        return Verdict(MAYBE, runtime, "its bytes do not tell whether it was built version compatible")
    return _none_serves(version, runtimes)


def _none_serves(version: Version, runtimes: Sequence[Runtime]) -> Verdict:
    newest = max((runtime.newest for runtime in runtimes), default=(0, 0, 0))
    of_major = [runtime.newest for runtime in runtimes if runtime.newest[0] == version[0] and not runtime.guest]
    if version > newest or any(version > other for other in of_major):
        why = "a runtime does not run plans of a newer TensorRT"
    elif version[0] == 8:
        why = "of the plans of 8.x only those of 8.6.0 run on another TensorRT"
    else:
        why = "a plan runs on the TensorRT that built it, or when it is version compatible, on a newer one of its major"
    fix = f"rebuild it with one of these versions: {REBUILD}"
    if any(version > other for other in of_major):
        fix += (
            f"; or name the lean runtime that it was built for: --tensorrt-library .../libnvinfer_lean.so.{version[0]}"
        )
    return Verdict(NO, None, why, fix)


def choose(plan: ModelFile, library: str | None = None, *, host_code: bool = False) -> Runtime:
    """The runtime for a plan.

    Raises:
        DataError: none of the runtimes at hand can run a plan of that version.
    """
    found = verdict(plan, library, host_code=host_code)
    if found.runtime is not None:
        return found.runtime
    if plan.facts is not None and plan.facts.lean_inside:
        raise errors.DataError(f"cannot run {paths.printable(plan.path)}", found.why, found.fix)
    if library:
        carried = given(library).name
    else:
        carried = ", ".join(r.name for r in (*catalogue(), *of_this_machine())) or "no TensorRT at all"
    raise errors.DataError(
        f"cannot run {paths.printable(plan.path)}: it was built by TensorRT {plan.version_text}, "
        f"this program carries {carried}",
        found.why,
        found.fix,
    )


def check_gpu(plan: ModelFile, capability: tuple[int, int]) -> None:
    """Refuse a plan for other GPUs, where its bytes tell; TensorRT would, in other words.

    Args:
        capability: the compute capability of the GPU here.

    Raises:
        DataError: it was built for GPUs of another compute capability.
    """
    facts = plan.facts
    if facts is None or facts.compute_capability is None or facts.level is None:
        return
    built_on = facts.compute_capability
    if facts.level == "none" and capability != built_on:
        why = (
            f"was built for compute capability {gpus.described(*built_on)}, this GPU has {gpus.described(*capability)}"
        )
    elif facts.level == "ampere+" and capability < (8, 0):
        why = f"was built for Ampere (8.0) and newer GPUs, this one has {gpus.described(*capability)}"
    else:
        return
    raise errors.DataError(
        f"cannot run {paths.printable(plan.path)} on this GPU",
        why,
        "build the plan on this kind of GPU, or with --hardwareCompatibilityLevel=ampereOrLater for Ampere and newer",
    )


def file_of(name: str) -> str:
    """The absolute path of a bundled library; a bare name stays as it is."""
    return str(paths.library_root() / name) if "/" in name else name
