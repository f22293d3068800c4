"""Which TensorRT libraries are at hand, and which of them serves a plan of which version.

Imports nothing of TensorRT: the choice is made before the first library is loaded, because a
process can hold one TensorRT family only.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from edgeapp import errors, paths
from edgeapp.plan import ModelFile


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
    """

    name: str
    module: str
    libraries: tuple[str, ...]
    oldest: tuple[int, int, int]
    newest: tuple[int, int, int]
    guest: str = ""


_LEAN_10 = ("tensorrt_lean_libs/libnvinfer_lean.so.10",)

LEAN = (
    # Measured on an H200: 8.6.0 plans run in the 10.16.1 bindings through load_runtime of the 8.6.0
    # library, version compatible or native as long as the lean runtime has all parts; deserialising
    # them directly is refused ("old deserialization call").
    Runtime("lean 8.6.0", "tensorrt_lean_bindings", _LEAN_10, (8, 6, 0), (8, 6, 0),
            "tensorrt_lean8_libs/libnvinfer_lean.so.8"),
    Runtime("lean 10.16.1", "tensorrt_lean_bindings", _LEAN_10, (10, 0, 0), (10, 16, 1)),
)  # fmt: skip


def flavour() -> dict[str, str]:
    """What the frozen file was built with: keys tensorrt (lean, system, full), tensorrt_version."""
    file = paths.library_root() / "build.json"
    if not paths.FROZEN or not file.is_file():
        return {"tensorrt": "lean"}
    values: dict[str, str] = json.loads(file.read_bytes())
    return values


def catalogue() -> tuple[Runtime, ...]:
    """The runtimes of this program whose files are there."""
    built = flavour()
    root = paths.library_root()
    if built["tensorrt"] == "lean":
        return tuple(r for r in LEAN if all((root / file).is_file() for file in (*r.libraries, r.guest) if file))
    version = tuple(int(n) for n in built["tensorrt_version"].split(".")[:3])
    major, minor, patch = version[0], version[1], version[2]
    libraries = tuple(built.get("libraries", "").split())
    oldest = (8, 6, 0) if major == 8 and minor >= 6 else (major, 0, 0)
    return (
        Runtime(
            f"TensorRT {'.'.join(map(str, version))}",
            "tensorrt",
            libraries,
            oldest,
            (major, minor, patch),
        ),
    )


def choose(plan: ModelFile) -> Runtime:
    """The runtime for a plan.

    Raises:
        DataError: none of the runtimes at hand can run a plan of that version.
    """
    runtimes = catalogue()
    version = (plan.version[0], plan.version[1], plan.version[2])
    for runtime in runtimes:
        if runtime.oldest <= version <= runtime.newest:
            return runtime
    names = ", ".join(runtime.name for runtime in runtimes) or "no TensorRT at all"
    newest = max((runtime.newest for runtime in runtimes), default=(0, 0, 0))
    if version > newest:
        why = "a runtime does not run plans of a newer TensorRT"
    else:
        why = "a plan runs on the TensorRT that built it, or when it is version compatible, on a newer one of its major"
    raise errors.DataError(
        f"cannot run {paths.printable(plan.path)}: it was built by TensorRT {plan.version_text}, "
        f"this program carries {names}",
        why,
        "rebuild it with one of these versions: trtexec --versionCompatible --excludeLeanRuntime",
    )


def file_of(name: str) -> str:
    """The absolute path of a bundled library; a bare name stays as it is."""
    return str(paths.library_root() / name) if "/" in name else name
