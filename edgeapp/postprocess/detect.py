"""Detector heads -> boxes in picture pixels: decoding, thresholds and NMS in NumPy.

The order matters for speed: the row-wise maximum and the threshold come first, everything else
touches only the survivors; float16 scores are compared as integers, which NumPy does 10 times
faster (non-negative float16 values sort as their bits do).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeapp import errors
from edgeapp.labels import label
from edgeapp.model import Card
from edgeapp.records import CANDIDATES, COUNTS, KEPT, Detection, Letterbox, Result, Tensors, TensorSpec
from edgeapp.tensors import least_float16

Candidates = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]
"""boxes_xyxy (n, 4) in network pixels, scores (n,), class ids (n,)."""

Owned = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]
"""Candidates of several pictures, and which picture each belongs to, ascending (n,)."""

Grid = tuple[NDArray[np.float32], NDArray[np.float32]]
"""cells (n, 2) and strides (n,) of YOLOX, see yolox_grid."""

MOST_CANDIDATES = 8192
"""NMS looks at no more boxes, the best ones: its time grows with the square of their number."""

MOST_PAIRS = 1 << 17
"""NMS of up to 362 boxes compares each with each, of several pictures at once: a few steps on large arrays, for which
NumPy gives up the interpreter's lock, where many on small ones would wait for it beside threads that decode."""

NMS_BLOCK = 48
"""Boxes handled at once by NMS; 32 to 64 are equally fast."""

YOLOX_STRIDES = (8, 16, 32)


def make_detect(card: Card, outputs: Sequence[TensorSpec]) -> tuple[Any, list[str]]:
    """See `make_postprocess`; the head is taken from the card, else told from the shapes."""
    head, transposed = choose_head(card, outputs)
    guesses = [] if card.head else [f"head={head}"]
    if head == "nms":
        names = _nms_names(outputs)

        def decode(tensors: Tensors, place: int) -> Candidates:
            count, boxes, scores, classes = (tensors[name][place] for name in names)
            return decode_nms(count, boxes, scores, classes, card.score_threshold)
    else:
        name = outputs[0].name
        decoder = _decoder(head, transposed, card)

        def decode(tensors: Tensors, place: int) -> Candidates:
            return decoder(tensors[name][place])

    grid = yolox_grid(card.size_wh) if head == "yolox" else None
    iou_threshold = card.iou_threshold if head in ("yolov8", "yolov5", "yolox") else None

    def pick(tensors: Tensors, places: Sequence[int]) -> Owned:
        if KEPT in tensors:
            return _kept(tensors, places)
        if CANDIDATES in tensors:
            found = _filtered(tensors, places, grid)
        else:
            found = _joined([decode(tensors, place) for place in places])
        return best(found, len(places), iou_threshold, card.max_detections)

    def detect(tensors: Tensors, shown: Sequence[tuple[int, Letterbox, Result]]) -> None:
        places = [place for place, _, _ in shown]
        boxes, scores, classes, owners = pick(tensors, places)
        corners = to_picture(boxes, owners, [letterbox for _, letterbox, _ in shown]).tolist()
        names = [label(card.labels, class_id) for class_id in classes.tolist()]
        rows = [
            Detection(class_id, name, score, (x0, y0, x1, y1))
            for class_id, name, score, (x0, y0, x1, y1) in zip(
                classes.tolist(), names, scores.tolist(), corners, strict=True
            )
        ]
        ends = np.searchsorted(owners, np.arange(len(places) + 1)).tolist()
        for (_, _, result), start, end in zip(shown, ends[:-1], ends[1:], strict=True):
            result.detections = rows[start:end]

    return detect, guesses


def _kept(tensors: Tensors, places: Sequence[int]) -> Owned:
    """What NMS on the GPU left of all places, each best first."""
    kept, owners = _rows(tensors[KEPT], tensors[COUNTS], places)
    return _xyxy(kept["xywh"].T), kept["score"], kept["class_id"].astype(np.int64), owners


def _filtered(tensors: Tensors, places: Sequence[int], grid: Grid | None) -> Owned:
    """What the GPU's filter picked, of all places at once."""
    picked, owners = _rows(tensors[CANDIDATES], tensors[COUNTS], places)
    return (*decode_filtered(picked, owners, grid), owners)


def _rows(
    table: NDArray[Any], counts: NDArray[np.int32], places: Sequence[int]
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """The first counts[place] rows of each place, and which place, by its number in `places`, each belongs to."""
    sizes = counts[places]
    owners = np.repeat(np.arange(len(places)), sizes)
    numbers = np.arange(len(owners)) - (np.cumsum(sizes) - sizes)[owners]
    return table[np.array(places, np.int64)[owners], numbers], owners


def _joined(found: Sequence[Candidates]) -> Owned:
    """The candidates of some pictures in one."""
    boxes, scores, classes = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return boxes, scores, classes, np.repeat(np.arange(len(found)), [len(scores) for _, scores, _ in found])


def choose_head(card: Card, outputs: Sequence[TensorSpec]) -> tuple[str, bool]:
    """(head, whether a yolov8 head comes as (batch, n, 4 + classes))."""
    shapes = "; ".join(map(str, outputs))
    if card.head == "nms" or (not card.head and len(outputs) == 4):
        return "nms", False
    if len(outputs) != 1 or len(outputs[0].shape) != 3:
        raise errors.ConfigurationError(
            "task detect wants one output tensor of three dimensions, or the four of in-engine NMS",
            f"the engine has {shapes}",
            "use --task raw",
        )
    _, rows, columns = outputs[0].shape
    classes = len(card.labels)
    # A free dimension is the number of boxes: the classes are never free.
    boxes_last = columns == -1 or (rows != -1 and rows < columns)
    per_box = rows if boxes_last else columns
    if card.head:
        head = card.head
    elif boxes_last:
        head = "yolov8"
    elif columns == 6 and classes not in (1, 2):
        head = "end2end"
    elif rows == 3 * _grid_cells(card) and per_box != 4 + classes:
        head = "yolov5"  # three boxes a grid cell
    elif per_box == 5 + classes or (not classes and per_box == 85):  # 85 = 5 + the 80 classes of COCO
        head = "yolox" if rows == _grid_cells(card) else "yolov5"
    else:
        head = "yolov8"
    if head != "yolov8" and boxes_last and rows != -1:
        raise errors.ConfigurationError(
            f"head {head} wants an output tensor (batch, boxes, numbers)",
            f"the engine has {shapes}",
            "give --head",
        )
    numbers = {"yolov8": 4, "yolov5": 5, "yolox": 5, "end2end": 6}[head]
    wrong = per_box != 6 if head == "end2end" else per_box <= numbers
    if not wrong and head != "end2end" and classes:
        wrong = per_box != numbers + classes
    if wrong:
        raise errors.ConfigurationError(
            f"{per_box} numbers a box do not fit the head {head}"
            + (f" with {classes} labels" if classes and head != "end2end" else ""),
            f"the engine has {shapes}",
            "give the right --head or --labels, or use --task raw",
        )
    return head, not boxes_last


def _grid_cells(card: Card) -> int:
    """Cells of the usual three grids on the network's input."""
    return sum((card.size_wh[0] // s) * (card.size_wh[1] // s) for s in YOLOX_STRIDES)


def _decoder(head: str, transposed: bool, card: Card) -> Callable[[NDArray[Any]], Candidates]:
    threshold = card.score_threshold
    if head == "yolov8":
        if transposed:
            return lambda array: decode_yolov8(array.T, threshold)
        return lambda array: decode_yolov8(array, threshold)
    if head == "yolov5":
        return lambda array: decode_yolov5(array, threshold)
    if head == "yolox":
        cells, strides = yolox_grid(card.size_wh)
        return lambda array: decode_yolov5(array, threshold, (cells, strides))
    return lambda array: decode_end2end(array, threshold)


def _at_least(scores: NDArray[Any], threshold: float, axis: int) -> NDArray[np.int64]:
    """Indices of the boxes whose best score reaches the threshold."""
    if scores.dtype == np.float16:
        return np.flatnonzero(scores.view(np.int16).max(axis) >= least_float16(threshold).view(np.int16))
    return np.flatnonzero(scores.max(axis) >= threshold)


def decode_yolov8(array: NDArray[Any], threshold: float) -> Candidates:
    """Decode (4 + classes, n): centre x, y, width, height in network pixels, class scores 0..1."""
    chosen = _at_least(array[4:], threshold, 0)
    part = array[:, chosen].astype(np.float32)
    classes = part[4:].argmax(0)
    return _xyxy(part[:4]), part[4:].max(0, initial=0.0), classes


def decode_yolov5(
    array: NDArray[Any],
    threshold: float,
    grid: Grid | None = None,
) -> Candidates:
    """Decode (n, 5 + classes): centre x, y, width, height, objectness 0..1, class scores 0..1.

    Args:
        grid: for YOLOX, whose boxes are relative to their cell: cells (n, 2) and strides (n,).
    """
    chosen = _at_least(array[:, 4:5], threshold, 1)  # score = objectness * class <= objectness
    part = array[chosen].astype(np.float32)
    scores = part[:, 5:] * part[:, 4:5]
    classes = scores.argmax(1)
    best = scores.max(1, initial=0.0)
    good = best >= threshold
    return _xyxy(_off_grid(part[good, :4].T.copy(), chosen[good], grid)), best[good], classes[good]


def decode_filtered(picked: NDArray[Any], owners: NDArray[np.int64], grid: Grid | None = None) -> Candidates:
    """Decode what gpu.filter.Filter picked from heads; the same, in the same order, as decoding the heads themselves.

    Args:
        picked: CANDIDATE (n,), those of one picture in any order.
        owners: (n,) number of the picture, ascending.
        grid: for YOLOX, see decode_yolov5.
    """
    picked = picked[np.lexsort((picked["box"], owners))]
    box = _off_grid(picked["xywh"].T.copy(), picked["box"], grid)
    return _xyxy(box), picked["score"].copy(), picked["class_id"].astype(np.int64)


def _off_grid(box: NDArray[np.float32], chosen: NDArray[Any], grid: Grid | None) -> NDArray[np.float32]:
    """Boxes (4, n) that are relative to their cells, in network pixels; changed in place."""
    if grid is not None:
        cells, strides = grid
        box[:2] = (box[:2] + cells[chosen].T) * strides[chosen]
        box[2:] = np.exp(box[2:]) * strides[chosen]
    return box


def yolox_grid(size_wh: tuple[int, int]) -> Grid:
    """Cells (n, 2) as x, y and strides (n,) of YOLOX's output rows.

    Source: YOLOX, yolox/utils/demo_utils.py, demo_postprocess.
    """
    cells, strides = [], []
    for stride in YOLOX_STRIDES:
        x, y = np.meshgrid(np.arange(size_wh[0] // stride), np.arange(size_wh[1] // stride))
        cells.append(np.stack((x, y), 2).reshape(-1, 2))
        strides.append(np.full(x.size, stride))
    return np.concatenate(cells).astype(np.float32), np.concatenate(strides).astype(np.float32)


def decode_end2end(array: NDArray[Any], threshold: float) -> Candidates:
    """Decode (n, 6): x0, y0, x1, y1 in network pixels, score, class id; NMS is done already."""
    part = array[array[:, 4] >= threshold].astype(np.float32)
    return part[:, :4], part[:, 4], part[:, 5].astype(np.int64)


def decode_nms(
    count: NDArray[Any],
    boxes: NDArray[Any],
    scores: NDArray[Any],
    classes: NDArray[Any],
    threshold: float,
) -> Candidates:
    """Read the four outputs of TensorRT's EfficientNMS plugin.

    Args:
        count: () or (1,) number of valid boxes.
        boxes: (n, 4) x0, y0, x1, y1 in network pixels.
        scores, classes: (n,).
    """
    n = max(0, min(int(count.reshape(-1)[0]), len(scores)))
    good = np.flatnonzero(scores[:n] >= threshold)
    return (
        boxes[good].astype(np.float32),
        scores[good].astype(np.float32),
        classes[good].astype(np.int64),
    )


def _nms_names(outputs: Sequence[TensorSpec]) -> tuple[str, str, str, str]:
    """Names of (count, boxes, scores, classes) among the four outputs."""

    def pick(*parts: str) -> str:
        for part in parts:
            for output in outputs:
                if part in output.name.lower():
                    return output.name
        raise errors.ConfigurationError(
            "head nms wants four outputs: number, boxes, scores and classes of the detections",
            "the engine has " + "; ".join(map(str, outputs)),
            "use --task raw",
        )

    return pick("num"), pick("box"), pick("score"), pick("class", "label")


def _xyxy(xywh: NDArray[np.float32]) -> NDArray[np.float32]:
    """(4, n) centre and size -> (n, 4) corners."""
    half = xywh[2:] / 2
    corners: NDArray[np.float32] = np.concatenate((xywh[:2] - half, xywh[:2] + half))
    return np.ascontiguousarray(corners.T)


def nms(
    boxes: NDArray[np.float32],
    scores: NDArray[np.float32],
    classes: NDArray[np.int64],
    iou_threshold: float,
    max_detections: int,
) -> NDArray[np.int64]:
    """Greedy non-maximum suppression, class by class.

    Args:
        boxes: (n, 4) corners. scores, classes: (n,).
        iou_threshold: a box that overlaps a better one of its class by more is dropped.
        max_detections: stop after this many.

    Returns:
        indices of the kept boxes, best first.
    """
    order = np.argsort(-scores, kind="stable")[:MOST_CANDIDATES]
    order = order[np.isfinite(boxes[order]).all(1)]
    if order.size == 0:
        return order
    sides = np.ascontiguousarray(boxes[order].astype(np.float64).T)
    kinds = classes[order]
    # IoU > t means shared > t / (1 + t) * (area + other area): no division for every pair.
    share = iou_threshold / (1.0 + iou_threshold) * (sides[2] - sides[0]) * (sides[3] - sides[1])

    kept: list[int] = []
    alive = np.arange(order.size)
    while alive.size and len(kept) < max_detections:
        block, rest = alive[:NMS_BLOCK], alive[NMS_BLOCK:]
        inside = _overlaps(sides, share, kinds, block, block)
        chosen: list[int] = []
        dropped = np.zeros(block.size, bool)
        for i in range(block.size):
            if not dropped[i]:
                chosen.append(i)
                dropped |= inside[i]
        best = block[chosen]
        kept.extend(best.tolist())
        if rest.size:
            rest = rest[~_overlaps(sides, share, kinds, best, rest).any(0)]
        alive = rest
    return order[kept[:max_detections]]


def _overlaps(
    sides: NDArray[np.float64],
    share: NDArray[np.float64],
    kinds: NDArray[np.int64],
    rows: NDArray[np.int64],
    columns: NDArray[np.int64],
) -> NDArray[np.bool_]:
    """Whether each box of `rows` overlaps each of `columns` of its kind by more than the threshold in `share`."""
    x0, y0, x1, y1 = sides[:, columns]
    a0, b0, a1, b1 = sides[:, rows, None]
    width = np.minimum(a1, x1)
    width -= np.maximum(a0, x0)
    height = np.minimum(b1, y1)
    height -= np.maximum(b0, y0)
    np.maximum(width, 0, out=width)
    np.maximum(height, 0, out=height)
    width *= height
    result: NDArray[np.bool_] = width > share[rows, None] + share[columns]
    result &= kinds[rows, None] == kinds[columns]
    return result


def best(found: Owned, count: int, iou_threshold: float | None, max_detections: int) -> Owned:
    """Of each picture's candidates those that stay, best first.

    Args:
        count: of pictures.
        iou_threshold: for NMS, class by class; None where it is done already.
        max_detections: of a picture.
    """
    boxes, scores, classes, owners = found
    order = np.lexsort((-scores, owners))
    order = order[np.isfinite(boxes[order]).all(1)]
    sizes = np.bincount(owners[order], minlength=count)
    if iou_threshold is None:
        kept = np.ones(order.size, bool)
    elif 0 < int(sizes.max(initial=0)) ** 2 <= MOST_PAIRS:
        kept = np.zeros(order.size, bool)
        together, start = MOST_PAIRS // int(sizes.max()) ** 2, 0
        for first in range(0, count, together):
            part = sizes[first : first + together]
            end = start + int(part.sum())
            some = order[start:end]
            kept[start:end] = _nms_of_many(boxes[some], classes[some], part, iou_threshold, max_detections)
            start = end
    else:
        kept = np.zeros(order.size, bool)
        start = 0
        for size in sizes.tolist():
            part = order[start : start + size]
            kept[start + nms(boxes[part], scores[part], classes[part], iou_threshold, max_detections)] = True
            start += size
    order = order[kept]
    rank = np.arange(order.size) - np.searchsorted(owners[order], owners[order])
    order = order[rank < max_detections]
    return boxes[order], scores[order], classes[order], owners[order]


def _nms_of_many(
    boxes: NDArray[np.float32], classes: NDArray[np.int64], sizes: NDArray[np.int64], iou_threshold: float, most: int
) -> NDArray[np.bool_]:
    """Greedy NMS of several pictures at once: all pairs of boxes first, then picture by picture on bits.

    Args:
        boxes: (n, 4), picture after picture, each best first.
        sizes: how many each picture has.
        most: boxes that a picture keeps.

    Returns:
        (n,) which are kept.
    """
    kept = np.zeros(len(boxes), bool)
    if not kept.size:
        return kept
    starts = np.cumsum(sizes) - sizes
    index = np.minimum(starts[:, None] + np.arange(int(sizes.max())), len(boxes) - 1)
    x0, y0, x1, y1 = np.ascontiguousarray(boxes.astype(np.float64).T)[:, index]
    share = iou_threshold / (1.0 + iou_threshold) * (x1 - x0) * (y1 - y0)
    width = np.minimum(x1[:, :, None], x1[:, None])
    width -= np.maximum(x0[:, :, None], x0[:, None])
    height = np.minimum(y1[:, :, None], y1[:, None])
    height -= np.maximum(y0[:, :, None], y0[:, None])
    np.maximum(width, 0, out=width)
    width *= np.maximum(height, 0, out=height)
    # IoU > t means shared > t / (1 + t) * (area + other area): no division for every pair.
    overlaps = width > np.add(share[:, :, None], share[:, None], out=height)
    kinds = classes[index]
    overlaps &= kinds[:, :, None] == kinds[:, None]
    rows = np.packbits(overlaps, axis=2, bitorder="little")
    step = rows.shape[2]
    stay: list[int] = []
    for picture, (start, size) in enumerate(zip(starts.tolist(), sizes.tolist(), strict=True)):
        bits, alive, left = rows[picture].tobytes(), (1 << size) - 1, most
        while alive and left:
            lowest = alive & -alive
            first = lowest.bit_length() - 1
            stay.append(start + first)
            alive &= ~(lowest | int.from_bytes(bits[first * step : (first + 1) * step], "little"))
            left -= 1
    kept[stay] = True
    return kept


def to_picture(
    boxes: NDArray[np.float32], owners: NDArray[np.int64], letterboxes: Sequence[Letterbox]
) -> NDArray[np.float64]:
    """Boxes (n, 4) from network pixels to pixels of their pictures, cut at the picture's edges."""
    scale, offset, limit = (
        np.tile(np.array(values, np.float64).reshape(-1, 2), 2)[owners]
        for values in zip(*((box.scale_xy, box.offset_xy, box.picture_wh) for box in letterboxes), strict=True)
    )
    corners: NDArray[np.float64] = np.clip((boxes - offset) / scale, 0, limit)
    return corners
