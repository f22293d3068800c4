"""`--engine FOLDER`: of several plans the one that fits this GPU and the runtimes here."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from edgeapp import errors, paths
from edgeapp.gpu import runtimes
from edgeapp.plan import ModelFile, look

ENDINGS = (".plan", ".engine", ".trt")
MOST_NAMED = 10
"""A message names this many plans."""


def pick(
    folder: str, library: str | None, capability: Callable[[], tuple[int, int]], *, host_code: bool = False
) -> tuple[ModelFile, str]:
    """The best plan of a folder, and why, for people.

    Built for exactly this compute capability comes first, then hardware compatible, then what does not tell; among
    equals the newest TensorRT, then the last name.

    Args:
        folder: its plans are looked at, not those of its folders.
        library: --tensorrt-library.
        host_code: native code inside a plan may be run.
        capability: asks for the GPU's compute capability, when a plan may run at all.

    Raises:
        DataError: none of them can run here; each is named with its reason.
        NoGpuError: `capability` finds none.
    """
    what = f"cannot choose a plan in {paths.printable(folder)}"
    try:
        names = sorted(entry.path for entry in os.scandir(folder) if entry.name.lower().endswith(ENDINGS))
    except OSError as error:
        raise paths.refusal(what, error) from error
    if not names:
        raise errors.DataError(what, f"it holds no {', '.join(ENDINGS)} file", "name a folder of plans, or one plan")
    refused: list[str] = []
    serving: list[ModelFile] = []
    for name in names:
        try:
            found = look(name)
        except errors.EdgeappError as error:
            refused.append(f"{_name(name)} cannot be read: {error.why}")
            continue
        verdict = runtimes.verdict(found, library, host_code=host_code)
        if verdict.runtime is None:
            refused.append(f"{_name(name)} is {found.what}: {verdict.why}")
        else:
            serving.append(found)
    fitting: list[tuple[int, tuple[int, ...], str, ModelFile]] = []
    if serving:
        gpu = capability()
        for found in serving:
            try:
                runtimes.check_gpu(found, gpu)
            except errors.DataError as error:
                refused.append(f"{_name(found.path)} {error.why}")
            else:
                fitting.append((_closeness(found), found.version, found.path, found))
    if not fitting:
        named = "; ".join(refused[:MOST_NAMED]) + ("; ..." if len(refused) > MOST_NAMED else "")
        raise errors.DataError(what, named, "build one for this GPU and a runtime of: edgeapp runtimes")
    best = max(fitting)[3]
    reason = ("it does not tell its GPU", "it is hardware compatible", "it was built for this kind of GPU")[
        _closeness(best)
    ]
    return best, f"chose {_name(best.path)} of {len(names)} plans: {reason}"


def _name(path: str) -> str:
    return paths.printable(Path(path).name)


def _closeness(found: ModelFile) -> int:
    """2 for exactly this GPU's compute capability, 1 for hardware compatible, 0 for unknown."""
    if found.facts is None or found.facts.compute_capability is None:
        return 0
    return 2 if found.facts.level == "none" else 1
