"""Milliseconds of decoding and NMS beside the loop that is usual in NumPy; prints a table.

    python tests/bench_postprocess.py

Boxes are clusters around objects, as a detector gives them: (84, 8400) with 80 classes. The usual way:
transpose, argmax and max over all boxes, then NMS one kept box at a time (Girshick's loop). Medians of 30,
turn about.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np

from edgeapp.postprocess.detect import decode_yolov8, nms

BOXES, CLASSES = 8400, 80


def head(candidates: int, objects: int, dtype: type) -> np.ndarray:
    """A yolov8 head (84, 8400) in which `candidates` boxes around `objects` objects pass 0.25."""
    rng = np.random.default_rng(candidates)
    array = np.zeros((4 + CLASSES, BOXES), np.float32)
    array[:4] = rng.uniform(10, 600, (4, BOXES))
    array[4:] = rng.uniform(0, 0.05, (CLASSES, BOXES))
    centre, size, kind = (
        rng.uniform(60, 580, (2, objects)),
        rng.uniform(30, 90, (2, objects)),
        rng.integers(0, 80, objects),
    )
    which = rng.integers(0, objects, candidates)
    where = rng.choice(BOXES, candidates, replace=False)
    array[:2, where] = centre[:, which] + rng.normal(0, 2, (2, candidates))
    array[2:4, where] = size[:, which] * rng.uniform(0.9, 1.1, (2, candidates))
    array[4 + kind[which], where] = rng.uniform(0.3, 0.95, candidates)
    return array.astype(dtype)


def usual(array: np.ndarray) -> int:
    """Decode and NMS as most scripts do it."""
    rows = array.astype(np.float32).T
    scores, classes = rows[:, 4:].max(1), rows[:, 4:].argmax(1)
    good = scores >= 0.25
    rows, scores, classes = rows[good], scores[good], classes[good]
    half = rows[:, 2:4] / 2
    boxes = np.concatenate((rows[:, :2] - half, rows[:, :2] + half), 1) + classes[:, None] * 4096.0
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    order, kept = scores.argsort()[::-1], 0
    while order.size:
        i, rest = order[0], order[1:]
        kept += 1
        low = np.maximum(boxes[i, :2], boxes[rest, :2])
        high = np.minimum(boxes[i, 2:], boxes[rest, 2:])
        shared = np.clip(high - low, 0, None).prod(1)
        order = rest[shared / (areas[i] + areas[rest] - shared) <= 0.45]
    return kept


def ours(array: np.ndarray) -> int:
    return len(nms(*decode_yolov8(array, 0.25), 0.45, 300))


def milliseconds(work: Callable[[], int]) -> float:
    started = time.perf_counter()
    work()
    return (time.perf_counter() - started) * 1e3


def main() -> None:
    print("| head (84, 8400), candidates / kept | usual, ms | edgeapp, ms | ratio |\n|---|---|---|---|")
    for dtype in (np.float32, np.float16):
        for candidates, objects in ((120, 11), (1000, 44), (3000, 112)):
            array = head(candidates, objects, dtype)
            kept = ours(array)
            assert kept == usual(array)
            times = [(milliseconds(lambda a=array: usual(a)), milliseconds(lambda a=array: ours(a))) for _ in range(30)]
            a, b = (statistics.median(column) for column in zip(*times, strict=True))
            print(f"| {np.dtype(dtype).name}, {candidates} / {kept} | {a:.2f} | {b:.2f} | {a / b:.1f} |")


if __name__ == "__main__":
    main()
