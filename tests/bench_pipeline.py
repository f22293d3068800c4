"""The pipeline on the CPU beside loops written by hand around ONNX Runtime; exits with 1 if their answers differ.

    python tests/bench_pipeline.py                                # 20 minutes; --case and --rounds make it shorter
    EDGEAPP_BINARY=dist/edgeapp python tests/bench_pipeline.py    # the frozen file, too

Every run is a process of its own. First each kind of loop is tried with each setting of ONNX Runtime's threads:

- sequential: one picture after the other
- ahead: threads read pictures, the main thread infers and answers
- whole: threads do all, each for its own picture

The best of each kind, and the threaded one of the least CPU time, are then measured beside edgeapp, turn about. Loops
take edgeapp's own steps for a picture, so that only the pipeline differs; the best are tried with plain steps of Pillow
and NumPy, too. All write a line of JSON for each picture. Times go from the loaded model to the last line; of the
frozen file, which is seen from outside, they are those of a run less the median of runs with one picture.

The columns of ratios: to the best loop by the wall clock, the median of the rounds; to the best run of any loop, of
each way its best; to the threaded loop that takes the least CPU time, which is what counts where others use the cores.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from benching import ROOT, in_child
from loops import KINDS, ORT, Way

SIZES = {"VGA": (640, 480), "HD": (1920, 1080)}
LONG_S = 1.5
"""About how long a run shall take."""

SAME_SCORE, SAME_PIXELS = 3e-4, 0.1
"""By so much answers may differ: rounding in the lines, and sums of another order."""


@dataclass(frozen=True)
class Case:
    """A model and pictures for it; a run goes through them `times` times."""

    name: str
    model: str
    pictures: list[str]
    times: int = 1

    @property
    def files(self) -> list[str]:
        return self.pictures * self.times


@dataclass
class Runs:
    """The runs of one way, seconds of wall and CPU time."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def add(self, seconds: Sequence[float]) -> None:
        self.wall.append(seconds[0])
        self.cpu.append(seconds[1])

    def subtract(self, starts: Runs) -> None:
        """Leave the start out, of which the median is taken."""
        self.wall = [wall - statistics.median(starts.wall) for wall in self.wall]
        self.cpu = [cpu - statistics.median(starts.cpu) for cpu in self.cpu]

    def row(self, count: int) -> str:
        rate = count / statistics.median(self.wall), count / min(self.wall)
        return f"{rate[0]:.1f} | {rate[1]:.1f} | {statistics.median(self.cpu) * 1e3 / count:.2f}"


def small_net(path: Path) -> None:
    """A classification net of some 30 million multiplications, seeded weights, and its card."""
    import numpy as np
    from make_models import T, helper, save, value

    rng = np.random.default_rng(3)
    nodes, weights, last, channels = [], {}, "images", 3
    for number, (count, stride) in enumerate(((32, 2), (48, 2), (96, 2), (128, 2), (128, 1), (256, 2))):
        # Each but the first is depthwise 3x3, then 1x1.
        for kind in ("first",) if not number else ("depth", "point"):
            name, size, groups = f"{kind}{number}", 1 if kind == "point" else 3, channels if kind == "depth" else 1
            out = channels if kind == "depth" else count
            shape = (out, channels // groups, size, size)
            weights[f"{name}_w"] = rng.normal(0, (2 / np.prod(shape[1:])) ** 0.5, shape).astype(np.float32)
            step = 1 if kind == "point" else stride
            nodes.append(
                helper.make_node("Conv", [last, f"{name}_w"], [f"{name}_c"], group=groups, kernel_shape=[size] * 2,
                                 pads=[size // 2] * 4, strides=[step] * 2)
            )  # fmt: skip
            nodes.append(helper.make_node("Relu", [f"{name}_c"], [name]))
            last, channels = name, out
    weights["w"] = rng.normal(0, 1, (channels, 100)).astype(np.float32)
    nodes.append(helper.make_node("GlobalAveragePool", [last], ["mean"]))
    nodes.append(helper.make_node("Flatten", ["mean"], ["flat"]))
    nodes.append(helper.make_node("Gemm", ["flat", "w"], ["logits"]))
    save(
        path, nodes, [value("images", T.FLOAT, ["batch", 3, 224, 224])], [value("logits", T.FLOAT, ["batch", 100])],
        weights,
    )  # fmt: skip
    card = {
        "task": "classify", "labels": [f"kind {i}" for i in range(100)], "size_wh": [224, 224], "resize": "stretch",
        "antialias": True, "scale": 1 / 255, "mean": [0, 0, 0], "std": [1, 1, 1], "top_k": 5, "activation": "softmax",
    }  # fmt: skip
    path.with_suffix(".json").write_text(json.dumps(card))


def cases(folder: Path) -> list[Case]:
    """The small net and the demo's detector, each with the demo's pictures as JPEGs of two sizes."""
    from PIL import Image

    demo = ROOT / "edgeapp" / "data" / "demo"
    for name in ("model.onnx", "model.json"):
        shutil.copy(demo / name, folder / name.replace("model", "detector"))
    small_net(folder / "small.onnx")
    found = []
    for size, wh in SIZES.items():
        for path in sorted(demo.glob("*.jpg")):
            with Image.open(path) as image:
                image.resize(wh).save(folder / f"{size}-{path.name}", quality=85)
        pictures = sorted(map(str, folder.glob(f"{size}-*.jpg")))
        found += [Case(f"{model}, {size}", str(folder / f"{model}.onnx"), pictures) for model in ("small", "detector")]
    return sorted(found, key=lambda case: case.name, reverse=True)


def answers(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def same(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> bool:
    """Whether two runs found the same in the same pictures."""

    def alike(a: dict[str, Any], b: dict[str, Any]) -> bool:
        pairs = zip(a.get("box_xyxy", ()), b.get("box_xyxy", ()), strict=True)
        close = abs(a["score"] - b["score"]) <= SAME_SCORE and all(abs(m - n) <= SAME_PIXELS for m, n in pairs)
        return close and (a["class_id"], a["label"]) == (b["class_id"], b["label"])

    def found(line: dict[str, Any]) -> list[dict[str, Any]]:
        return line["classes"] if line["task"] == "classify" else line["detections"]

    return len(one) == len(other) and all(
        a["path"] == b["path"]
        and a["size_wh"] == b["size_wh"]
        and len(found(a)) == len(found(b)) > 0
        and all(map(alike, found(a), found(b)))
        for a, b in zip(one, other, strict=True)
    )


def _name(way: Way) -> str:
    return f"{way[0]}; ONNX Runtime {way[1]}; {way[2]} steps"


class Bench:
    """Measures one case."""

    def __init__(self, case: Case, folder: Path, binary: str | None) -> None:
        self._output = str(folder / "out.jsonl")
        self._binary = binary
        self._reference: list[dict[str, Any]] = []
        self.case = case
        self.different: list[str] = []
        seconds = self._checked("sequential", "loops.loop", "sequential", "1", "edgeapp's")
        self.case = replace(case, times=max(1, round(LONG_S / seconds[0])))
        self._reference *= self.case.times
        assert len({line.get("classes", [{}])[0].get("class_id", i) for i, line in enumerate(self._reference)}) > 1

    def _checked(self, name: str, call: str, *words: str) -> Any:
        seconds = in_child(call, self.case.model, self.case.files, self._output, *words)
        self._check(name)
        return seconds

    def _check(self, name: str) -> None:
        found = answers(Path(self._output))
        self._reference = self._reference or found
        if not same(found, self._reference):
            self.different.append(f"{self.case.name}: {name}")

    def loop(self, way: Way) -> Any:
        return self._checked(", ".join(way), "loops.loop", *way)

    def edgeapp(self) -> Any:
        return self._checked("edgeapp", "loops.edgeapp")

    def frozen(self, files: list[str]) -> list[float]:
        """Seconds of the frozen file from its start to its end."""
        assert self._binary is not None
        words = ["--engine", self.case.model, "--output", self._output, "--quiet", "--input", *files]
        before, started = os.times(), time.perf_counter()
        subprocess.run([self._binary, *words], check=True)
        wall, after = time.perf_counter() - started, os.times()
        if files == self.case.files:
            self._check("frozen")
        return [wall, sum(after[2:4]) - sum(before[2:4])]

    def best(self, tries: int) -> list[Way]:
        """The fastest loop of each kind and the threaded one of the least CPU time; prints what all of them reached."""
        found = self._tried([(kind, threads, "edgeapp's") for kind in KINDS for threads in ORT], tries)
        found |= self._tried([(kind, threads, "plain") for kind, threads, _ in self._fastest(found)], tries)
        for way, runs in found.items():
            print(f"| {self.case.name} | {' | '.join(way)} | {runs.row(len(self.case.files))} |", flush=True)
        return self._fastest(found)

    def _tried(self, ways: Sequence[Way], tries: int) -> dict[Way, Runs]:
        found = {way: Runs() for way in ways}
        for _ in range(tries):
            for way, runs in found.items():
                runs.add(self.loop(way))
        return found

    @staticmethod
    def _fastest(found: dict[Way, Runs]) -> list[Way]:
        ordered = sorted(found, key=lambda way: min(found[way].wall))
        best = [next(way for way in ordered if way[0].startswith(name)) for name in ("sequential", "ahead", "whole")]
        threaded = [way for way in found if KINDS[way[0]]]
        cheapest = min(threaded, key=lambda way: statistics.median(found[way].cpu))
        return best if cheapest in best else [*best, cheapest]

    def compare(self, loops: Sequence[Way], rounds: int) -> str:
        """The rows of edgeapp, the frozen file and the loops; ratios are medians of those of each round."""
        ways: dict[str, tuple[Runs, Callable[[], Any]]] = {"edgeapp": (Runs(), self.edgeapp)}
        for way in loops:
            ways[_name(way)] = (Runs(), partial(self.loop, way))
        starts = Runs()
        if self._binary is not None:
            ways["edgeapp, frozen"] = (Runs(), partial(self.frozen, self.case.files))
        for number in range(rounds):
            for runs, run in list(ways.values())[:: -1 if number % 2 else 1]:
                runs.add(run())
            if self._binary is not None:
                starts.add(self.frozen(self.case.pictures[:1]))
        if self._binary is not None:
            ways["edgeapp, frozen"][0].subtract(starts)
        others = [runs for name, (runs, _) in ways.items() if not name.startswith("edgeapp")]
        best = min(others, key=lambda runs: statistics.median(runs.wall))
        least_cpu = min(statistics.median(ways[_name(way)][0].cpu) for way in loops if KINDS[way[0]])
        rows = []
        for name, (runs, _) in ways.items():
            ratio = statistics.median(b / a for a, b in zip(runs.wall, best.wall, strict=True))
            least = min(min(other.wall) for other in others) / min(runs.wall)
            cpu = least_cpu / statistics.median(runs.cpu)
            numbers = f"{runs.row(len(self.case.files))} | {ratio:.3f} | {least:.3f} | {cpu:.3f}"
            rows.append(f"| {self.case.name} | {name} | {numbers} |")
        return "\n".join(rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", default="", help="only those whose names hold this: small, detector, VGA, HD")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tries", type=int, default=2, help="runs of each loop before the best are chosen")
    arguments = parser.parse_args()
    binary = os.environ.get("EDGEAPP_BINARY")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        benches = [Bench(case, folder, binary) for case in cases(folder) if arguments.case in case.name]
        print("| case | loop | ONNX Runtime's threads | steps | pictures/s | at best | CPU ms a picture |")
        print("|---|---|---|---|---|---|---|")
        chosen = [bench.best(arguments.tries) for bench in benches]
        print(f"\nload average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores, this bench included\n")
        print("| case | way | pictures/s | at best | CPU ms a picture | of the best loop | at best | by CPU time |")
        print("|---|---|---|---|---|---|---|---|")
        for bench, loops in zip(benches, chosen, strict=True):
            print(bench.compare(loops, arguments.rounds), flush=True)
        different = [text for bench in benches for text in bench.different]
        print("\nanswers: " + ("; ".join(f"{text} differs" for text in different) or "the same from all"))
        return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
