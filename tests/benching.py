"""What the benchmarks share: functions measured in a process of their own, turn about."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))


def in_child(call: str, *arguments: object) -> Any:
    """What a function, MODULE.NAME of this folder, returns in a process of its own: JSON."""
    module, _, name = call.partition(".")
    code = f"import json, {module}\nprint(json.dumps({module}.{name}(*{arguments!r})))"
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    done = subprocess.run([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def turn_about(call: str, cases: Sequence[tuple[object, ...]], turns: int) -> list[float]:
    """The median of each case's turns."""
    times = [[float(in_child(call, *case)) for case in cases] for _ in range(turns)]
    return [statistics.median(column) for column in zip(*times, strict=True)]


def beside(times: Sequence[tuple[float, float]]) -> str:
    """The median of both columns and their ratio, and the same of their minima, for a table."""
    pairs = [tuple(best(column) for column in zip(*times, strict=True)) for best in (statistics.median, min)]
    return " | ".join(f"{a:.2f} | {b:.2f} | {b / a:.2f}" for a, b in pairs)
