"""What the fault campaigns share: sizes, what a process holds, rows of the table, faults planted from outside."""

from __future__ import annotations

import itertools
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from support import ROOT, Program

CAMPAIGN = os.environ.get("EDGEAPP_CAMPAIGN") == "1"
SHARE = float(os.environ.get("EDGEAPP_SHARE", "1"))
"""Of the full sizes, for a machine that has less time."""

PLANTED = ROOT / "tests" / "faults" / "planted.py"
Row = Callable[..., None]

long_control = pytest.mark.skipif(not CAMPAIGN, reason="the negative control takes a campaign")


def size(short: int, full: int) -> int:
    """How often: the full number in a campaign, the short one in every test run."""
    return max(short, round(full * SHARE)) if CAMPAIGN else short


def planted(source_program: Program, fault: str) -> Program:
    """The source tree with a fault in it, which the campaign must find."""
    return Program([sys.executable, str(PLANTED), fault], source_program.cwd, source_program.env)


def found(how: str, check: Callable[[], object]) -> None:
    """The negative control: the check must fail, and for this reason (a regular expression)."""
    with pytest.raises(AssertionError, match=how):
        check()


@dataclass(frozen=True)
class Usage:
    """What a process holds: resident and most resident memory in kB, descriptors, threads."""

    rss_kb: int
    peak_kb: int
    descriptors: int
    threads: int

    @classmethod
    def of(cls, pid: int) -> Usage:
        fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        numbers = (int(fields[name].split()[0]) for name in ("VmRSS", "VmHWM"))
        return cls(*numbers, len(os.listdir(f"/proc/{pid}/fd")), int(fields["Threads"]))


def growth(values: Sequence[float]) -> float:
    """Over the last three quarters, for the first is for warming up: the median of all slopes (Theil and Sen).

    A leak is a slope. A step is none: freed memory is kept (memory.py), and once two large pictures come together.
    """
    kept = values[len(values) // 4 :]
    slopes = [(b - a) / (j - i) for (i, a), (j, b) in itertools.combinations(enumerate(kept), 2)]
    return statistics.median(slopes) * (len(kept) - 1)


def assert_flat(samples: Sequence[Usage], most_kb: float) -> float:
    """Neither memory nor descriptors nor threads grow; gives the growth of memory in kB."""
    grown = growth([one.rss_kb for one in samples])
    assert grown <= most_kb, f"{grown:.0f} kB more: {[one.rss_kb for one in samples]}"
    for name in ("descriptors", "threads"):
        values = [getattr(one, name) for one in samples]
        assert growth(values) < 2, (name, values)
    return grown


def percentile(values: Sequence[float], percent: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]
