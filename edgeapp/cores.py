"""How many cores this process may use: those of its affinity, fewer where a container or a service has a quota."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

ROOMY = 8
"""With so many cores a GPU, each GPU's own thread has one to itself."""


def decoders(gpus: int) -> int:
    """Threads that read and decode for some GPUs, or for an engine on the CPU: one for each core.

    With many cores one is left to each thread that feeds a GPU. Measured on 16: where all decode, it waits 5 ms for a
    core every hundredth time, else 0.5 ms for Python, and no more files are done (tests/gpu/results.md).
    """
    cores = usable()
    return cores - gpus if cores >= ROOMY * gpus else cores


def usable(groups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """At least 1; a quota of 2.5 cores counts as 3.

    Args:
        groups: where control groups are mounted, version 2, or 1 with the controller cpu in a folder of its own.
        own: the lines HIERARCHY:CONTROLLERS:PATH of this process.
    """
    cores = float(len(os.sched_getaffinity(0)))
    for folder in _folders(groups, own):
        cores = min(cores, _quota(folder))
    return max(1, math.ceil(cores))


def _folders(groups: Path, own: Path) -> Iterator[Path]:
    """The control groups that this process is in, each with all above it: a quota there holds below, too."""
    try:
        lines = own.read_text().splitlines()
    except OSError:  # no such thing in this kernel
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = groups / "cpu" if controllers else groups
        inside = Path(path.lstrip("/"))
        # In a container the path is that of the host, and its own group is mounted on top.
        yield from (top / part for part in (inside, *inside.parents))


def _quota(folder: Path) -> float:
    """Cores' worth of time in one group; infinite where there is no limit."""
    try:
        version2 = folder / "cpu.max"
        if version2.exists():
            quota, period = version2.read_text().split()
        else:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        cores = float(quota) / float(period)
    except (OSError, ValueError, ZeroDivisionError):  # "max", or no such files
        return math.inf
    return cores if cores > 0 else math.inf
