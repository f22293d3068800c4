"""How fast the one file starts, beside PyInstaller's own forms of the same program; `build.sh campaign start` runs it.

Usage: bench_start.py EDGEAPP ONEDIR_PROGRAM ONEFILE [ROUNDS]

Every round starts each of them once, in turn; medians over the rounds, with warm page cache. "first" removes the
unpacked files before; stock onefile has no other kind of start. Prints a table in Markdown.
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


def main(edgeapp: Path, onedir: Path, onefile: Path, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        cache = Path(name) / "cache"
        cases = {
            "warm --version": [("edgeapp", edgeapp), ("onedir", onedir), ("onefile", onefile)],
            "warm imports": [("edgeapp", edgeapp), ("onedir", onedir), ("onefile", onefile)],
            "first --version": [("edgeapp", edgeapp), ("onefile", onefile)],
        }
        seconds: dict[tuple[str, str], list[float]] = {}
        written = 0
        for case, programs in cases.items():
            words = IMPORTS if "imports" in case else ("--version",)
            for program in (edgeapp, onedir, onefile):
                run(program, words, cache)
            for _ in range(rounds):
                for kind, program in programs:
                    if case.startswith("first") and kind == "edgeapp":
                        shutil.rmtree(cache)
                        os.sync()  # what was removed shall not burden the next start
                    duration, bytes_written = run(program, words, cache)
                    seconds.setdefault((case, kind), []).append(duration)
                    if case.startswith("warm") and kind == "edgeapp":
                        written = max(written, bytes_written)
    print("| | edgeapp | onedir | stock onefile | edgeapp / onedir | edgeapp / onefile |\n|---|---|---|---|---|---|")
    sizes = [size_of(edgeapp), size_of(onedir.parent), size_of(onefile)]
    print("| size, MB | " + " | ".join(f"{size / 1e6:.1f}" for size in sizes), end=" | ")
    print(f"{sizes[0] / sizes[1]:.2f} | {sizes[0] / sizes[2]:.2f} |")
    for case in cases:
        median = {kind: statistics.median(seconds[case, kind]) for c, kind in seconds if c == case}
        cells = [f"{median[kind]:.3f}" if kind in median else "" for kind in ("edgeapp", "onedir", "onefile")]
        ratios = [f"{median['edgeapp'] / median[kind]:.2f}" if kind in median else "" for kind in ("onedir", "onefile")]
        print(f"| {case}, s | {' | '.join([*cells, *ratios])} |")
    print(f"| bytes written by a warm start | {written} | | | | |")
    print(f"\nmedians of {rounds} rounds, {os.cpu_count()} processors, {' '.join(os.uname()[i] for i in (0, 2, 4))}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]), rounds=int((*sys.argv[4:], 20)[0]))
