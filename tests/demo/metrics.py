"""Mean average precision of edgeapp's results against ``truth.json``.

    python metrics.py results.jsonl truth.json

The rules are COCO's (https://cocodataset.org/#detection-eval): detections of a class are taken
by falling score and each claims the free truth that it overlaps most, if the overlap reaches the
threshold; precision is read at 101 recalls; mAP50-95 is the mean over ten thresholds from 0.50 to
0.95. A class without a truth is left out of the mean. There are no crowd or ignored boxes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]

THRESHOLDS: F64 = np.linspace(0.50, 0.95, 10)
RECALLS: F64 = np.linspace(0.0, 1.0, 101)
MAX_DETECTIONS = 100  # a picture's best so many count, as in COCO

# A detection is (class_id, score, x0, y0, x1, y1), a truth (class_id, x0, y0, x1, y1), in pixels.
Detection = Sequence[float]
Truth = Sequence[float]


def box_iou(a: F64, b: F64) -> F64:
    """Gives intersection over union, float64 (n, m), of boxes (n, 4) and (m, 4), x0 y0 x1 y1."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.prod(np.clip(high - low, 0, None), axis=2)
    area_a = np.prod(a[:, 2:] - a[:, :2], axis=1)
    area_b = np.prod(b[:, 2:] - b[:, :2], axis=1)
    union = area_a[:, None] + area_b[None] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def match(boxes: F64, truths: F64) -> NDArray[np.bool_]:
    """Says which detections of one class in one picture are right.

    Args:
        boxes: float64 (n, 4), x0 y0 x1 y1, by falling score.
        truths: float64 (m, 4).

    Returns:
        bool (10, n): for each of ``THRESHOLDS`` whether the detection claims a truth.
    """
    hits = np.zeros((len(THRESHOLDS), len(boxes)), dtype=bool)
    if len(boxes) == 0 or len(truths) == 0:
        return hits
    overlap = box_iou(boxes, truths)
    free = np.ones((len(THRESHOLDS), len(truths)), dtype=bool)
    rows = np.arange(len(THRESHOLDS))
    for k in range(len(boxes)):
        open_to = np.where(free, overlap[k], -1.0)
        best = open_to.argmax(axis=1)
        hit = open_to[rows, best] >= THRESHOLDS
        hits[:, k] = hit
        free[rows[hit], best[hit]] = False
    return hits


def average_precision(scores: F64, hits: NDArray[np.bool_], truths: int) -> F64:
    """Gives the average precision, float64 (10,), of one class over all pictures.

    Args:
        scores: float64 (n,).
        hits: bool (10, n) from ``match``.
        truths: How many there were to find, at least 1.
    """
    order = np.argsort(-scores, kind="stable")
    right = np.cumsum(hits[:, order], axis=1)
    precision = right / np.arange(1, len(scores) + 1)
    recall = right / truths
    # Precision at a recall is the best that is reached at that recall or beyond.
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    result = np.zeros(len(THRESHOLDS))
    for t in range(len(THRESHOLDS)):
        at = np.searchsorted(recall[t], RECALLS, side="left")
        reached = at < len(scores)
        result[t] = envelope[t, at[reached]].sum() / len(RECALLS)
    return result


def evaluate(
    detections: Mapping[str, Sequence[Detection]],
    truths: Mapping[str, Sequence[Truth]],
    labels: Sequence[str],
) -> dict[str, Any]:
    """Compares detections with the truth.

    Args:
        detections: By picture name; a picture that is missing counts as no detections, one
            that is not in ``truths`` is left out.
        truths: By picture name.
        labels: Class names, by class id.

    Returns:
        ``mAP50``, ``mAP50_95`` (None where no class has a truth), ``images``, ``truths``,
        ``best_f1`` with its ``best_f1_score`` (the score threshold that gives the best F1 at
        IoU 0.5), and ``per_class``: label to ``AP50``, ``AP50_95`` and ``truths``.
    """
    scores: list[list[F64]] = [[] for _ in labels]
    hits: list[list[NDArray[np.bool_]]] = [[] for _ in labels]
    counts = [0] * len(labels)
    for name, wanted_list in truths.items():
        wanted = np.asarray(wanted_list, dtype=np.float64).reshape(-1, 5)
        found = np.asarray(detections.get(name, ()), dtype=np.float64).reshape(-1, 6)
        found = found[np.argsort(-found[:, 1], kind="stable")][:MAX_DETECTIONS]
        for c in range(len(labels)):
            mine, theirs = found[found[:, 0] == c], wanted[wanted[:, 0] == c]
            counts[c] += len(theirs)
            if len(mine):
                scores[c].append(mine[:, 1])
                hits[c].append(match(mine[:, 2:], theirs[:, 1:]))
    per_class: dict[str, Any] = {}
    sums: list[F64] = []
    for c, label in enumerate(labels):
        if not counts[c]:
            per_class[label] = {"AP50": None, "AP50_95": None, "truths": 0}
            continue
        ap = np.zeros(len(THRESHOLDS))
        if scores[c]:
            ap = average_precision(np.concatenate(scores[c]), np.concatenate(hits[c], axis=1), counts[c])
        sums.append(ap)
        per_class[label] = {
            "AP50": float(ap[0]),
            "AP50_95": float(ap.mean()),
            "truths": counts[c],
        }
    f1, at = _best_f1(
        np.concatenate([s for group in scores for s in group] or [np.zeros(0)]),
        np.concatenate([x[0] for group in hits for x in group] or [np.zeros(0, dtype=bool)]),
        sum(counts),
    )
    return {
        "mAP50": float(np.mean([ap[0] for ap in sums])) if sums else None,
        "mAP50_95": float(np.mean(sums)) if sums else None,
        "images": len(truths),
        "truths": sum(counts),
        "best_f1": f1,
        "best_f1_score": at,
        "per_class": per_class,
    }


def _best_f1(scores: F64, hits: NDArray[np.bool_], truths: int) -> tuple[float, float]:
    """Gives the best F1 over all score thresholds and the threshold that gives it."""
    if len(scores) == 0 or truths == 0:
        return 0.0, 0.0
    order = np.argsort(-scores, kind="stable")
    right = np.cumsum(hits[order])
    f1 = 2 * right / (np.arange(1, len(scores) + 1) + truths)
    best = int(f1.argmax())
    return float(f1[best]), float(scores[order][best])


def read_results(path: Path) -> dict[str, list[Detection]]:
    """Reads edgeapp's JSON Lines into detections by file name.

    A line with an ``error`` counts as no detections. Blank lines are passed over.

    Args:
        path: The file, UTF-8.

    Raises:
        ValueError: A line is not such a result, or two pictures have the same file name.
    """
    found: dict[str, list[Detection]] = {}
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                result = json.loads(line)
                name = str(result["path"]).replace("\\", "/").rsplit("/", 1)[-1]
                items = [] if "error" in result else result["detections"]
                boxes = [(d["class_id"], d["score"], *d["box_xyxy"]) for d in items]
            except (KeyError, TypeError, json.JSONDecodeError) as error:
                raise ValueError(f"{path}:{number}: not a detection result: {error!r}") from error
            if name in found:
                raise ValueError(f"{path}:{number}: a second result for {name}")
            found[name] = boxes
    return found


def main() -> None:
    """Prints the comparison as JSON."""
    parser = argparse.ArgumentParser(description="mAP of edgeapp's JSON Lines against the truth.")
    parser.add_argument("results", type=Path, help="JSON Lines written by edgeapp")
    parser.add_argument("truth", type=Path, help="truth.json written by scenes.py")
    args = parser.parse_args()
    truth = json.loads(args.truth.read_text(encoding="utf-8"))
    report = evaluate(read_results(args.results), truth["images"], truth["labels"])
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
