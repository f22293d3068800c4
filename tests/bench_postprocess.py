"""Milliseconds of decoding and NMS beside the loop that is usual in NumPy; prints a table.

    python tests/bench_postprocess.py

Boxes are clusters around objects, as a detector gives them: yolov8 (84, 8400) and yolov5 (25200, 85), 80 classes. The
usual way: argmax and max over all boxes, then NMS one kept box at a time (Girshick's loop). Medians and minima of 60,
turn about.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from benching import beside

from edgeapp.postprocess.detect import decode_yolov5, decode_yolov8, nms

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


def head_v5(candidates: int, objects: int, dtype: type) -> np.ndarray:
    """A yolov5 head (25200, 85) with the same boxes, sure of them; of the others it is not."""
    boxes = head(candidates, objects, np.float32).T
    array = np.zeros((3 * BOXES, 5 + CLASSES), np.float32)
    array[:, 4] = np.random.default_rng(1).uniform(0, 0.05, 3 * BOXES)
    array[:BOXES, :4], array[:BOXES, 5:] = boxes[:, :4], boxes[:, 4:]
    array[:BOXES, 4][boxes[:, 4:].max(1) >= 0.25] = 1
    return array.astype(dtype)


def usual(array: np.ndarray) -> int:
    """Decode and NMS of a yolov8 head as most scripts do it."""
    rows = array.astype(np.float32).T
    return girshick(rows[:, :4], rows[:, 4:])


def usual_v5(array: np.ndarray) -> int:
    """Decode and NMS of a yolov5 head as most scripts do it."""
    rows = array.astype(np.float32)
    return girshick(rows[:, :4], rows[:, 5:] * rows[:, 4:5])


def girshick(rows: np.ndarray, all_scores: np.ndarray) -> int:
    scores, classes = all_scores.max(1), all_scores.argmax(1)
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


def ours_v5(array: np.ndarray) -> int:
    return len(nms(*decode_yolov5(array, 0.25), 0.45, 300))


def milliseconds(work: Callable[[np.ndarray], int], array: np.ndarray) -> float:
    started = time.perf_counter()
    work(array)
    return (time.perf_counter() - started) * 1e3


HEADS = {
    "yolov8 (84, 8400)": (head, usual, ours, ((120, 11), (1000, 44), (3000, 112))),
    "yolov5 (25200, 85)": (head_v5, usual_v5, ours_v5, ((600, 30),)),
}


def main() -> None:
    print("| head, candidates / kept | usual, ms | edgeapp, ms | ratio | at best: usual, ms | edgeapp, ms | ratio |")
    print("|---|---|---|---|---|---|---|")
    for name, (make, theirs, own, sizes) in HEADS.items():
        for dtype in (np.float32, np.float16):
            for candidates, objects in sizes:
                array = make(candidates, objects, dtype)
                kept = own(array)
                assert kept == theirs(array)
                times = [(milliseconds(theirs, array), milliseconds(own, array)) for _ in range(60)]
                print(f"| {name}, {np.dtype(dtype).name}, {candidates} / {kept} | {beside(times)} |")


if __name__ == "__main__":
    main()
