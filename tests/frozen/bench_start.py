"""How fast the one file starts, beside PyInstaller's own forms of the same program; `build.sh campaign start` runs it.

Usage: bench_start.py EDGEAPP ONEFILE [ROUNDS]

onedir is what edgeapp unpacks, started without the launcher. Every round starts each of them once, in turn; medians
over the rounds, with warm page cache. "first" removes the unpacked files before; stock onefile has no other kind of
start. ONEFILE may be "-", for none. Prints a table in Markdown.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

IMPORTS = ("self-test", "numpy", "pillow", "tensorrt")


def run(program: Path, words: tuple[str, ...], cache: Path) -> tuple[float, int]:
    """Seconds, and bytes that went to the disk."""
    env = {"EDGEAPP_CACHE": str(cache), "TMPDIR": str(cache.parent)}
    began = time.perf_counter()
    with subprocess.Popen([program, *words], env=env, stdout=subprocess.DEVNULL) as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        seconds = time.perf_counter() - began
        counts = dict(line.split(": ") for line in Path(f"/proc/{child.pid}/io").read_text().splitlines())
    if child.returncode != 0:
        raise SystemExit(f"{program} ended with {child.returncode}")
    return seconds, int(counts["write_bytes"])


def size_of(path: Path) -> int:
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file() and not p.is_symlink()]
    return sum(file.stat().st_size for file in files)


PLAN = str(Path(__file__).parents[1] / "gpu" / "plans" / "conv.plan")
CASES = {
    "warm --version": ("--version",),
    "warm inspect of a plan": ("inspect", PLAN),
    "warm imports": IMPORTS,
    "first --version": ("--version",),
}


def main(edgeapp: Path, onefile: Path | None, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        cache = Path(name) / "cache"
        run(edgeapp, ("--version",), cache)
        onedir = shutil.copytree(next(cache.glob("*/edgeapp")).parent, Path(name) / "onedir", symlinks=True) / "edgeapp"
        programs = {"edgeapp": edgeapp, "onedir": onedir} | ({"onefile": onefile} if onefile else {})
        seconds: dict[tuple[str, str], list[float]] = {}
        written = 0
        for case, words in CASES.items():
            for program in programs.values():
                run(program, words, cache)
            for _ in range(rounds):
                for kind, program in programs.items():
                    if case.startswith("first") and kind == "onedir":
                        continue
                    if case.startswith("first") and kind == "edgeapp":
                        shutil.rmtree(cache)
                        os.sync()  # what was removed shall not burden the next start
                    duration, bytes_written = run(program, words, cache)
                    seconds.setdefault((case, kind), []).append(duration)
                    if case.startswith("warm") and kind == "edgeapp":
                        written = max(written, bytes_written)
        sizes = {kind: size_of(p.parent if kind == "onedir" else p) / 1e6 for kind, p in programs.items()}
    print("| | edgeapp | onedir | stock onefile | edgeapp / onedir | edgeapp / onefile |\n|---|---|---|---|---|---|")
    rows = {"size, MB": sizes}
    for case in CASES:
        rows[f"{case}, s"] = {kind: statistics.median(s) for (c, kind), s in seconds.items() if c == case}
    for title, row in rows.items():
        cells = [f"{row[kind]:.3g}" if kind in row else "" for kind in ("edgeapp", "onedir", "onefile")]
        ratios = [f"{row['edgeapp'] / row[kind]:.2f}" if kind in row else "" for kind in ("onedir", "onefile")]
        print(f"| {title} | {' | '.join([*cells, *ratios])} |")
    print(f"| bytes written by a warm start | {written} | | | | |")
    print(f"\nmedians of {rounds} rounds, {os.cpu_count()} processors, {' '.join(os.uname()[i] for i in (0, 2, 4))}")


if __name__ == "__main__":
    peer = None if sys.argv[2] == "-" else Path(sys.argv[2])
    main(Path(sys.argv[1]), peer, rounds=int((*sys.argv[3:], 20)[0]))
