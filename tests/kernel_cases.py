"""Cases for the kernels of edgeapp.cu, and the answers of the CPU reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import numpy as np
import PIL
from PIL import Image

from edgeapp.fitting import fitting, reduced_fitting
from edgeapp.gpu.filter import Nms, split_kept, split_picked
from edgeapp.gpu.preprocess import PICTURE, picture_row
from edgeapp.model import Card
from edgeapp.postprocess.detect import Candidates, best, decode_filtered, decode_yolov5, decode_yolov8, yolox_grid
from edgeapp.preprocess import Preprocessor
from edgeapp.records import CANDIDATE, Letterbox
from edgeapp.tensors import bfloat16_bits

# (card, dtype, pixels as bytes, pictures, batch) -> the input tensor as bytes
Prepare = Callable[[Card, str, np.ndarray, np.ndarray], np.ndarray]
# (head, transposed, array (batch, rows, columns), threshold, most, NMS or None) -> results as bytes
Filter = Callable[[str, bool, np.ndarray, float, int, Nms | None], np.ndarray]

SIZES_WH = [
    (64, 64), (65, 63), (640, 360), (191, 47), (33, 21), (1, 1), (2, 1), (1, 7), (3, 200), (5000, 2), (2, 3000),
    (96, 64), (128, 128), (1200, 1100), (16, 12), (63, 65), (100, 31),
]  # fmt: skip
NETWORKS_WH = [(64, 64), (70, 45), (32, 96)]
FITS = [("letterbox", 0.875), ("stretch", 0.875), ("center_crop", 0.875), ("center_crop", 1.0), ("center_crop", 0.3)]

PILLOW = int(PIL.__version__.split(".")[0])

MEMORY_DTYPES = {
    "float32": np.dtype(np.float32), "float16": np.dtype(np.float16), "bfloat16": np.dtype(np.uint16),
    "uint8": np.dtype(np.uint8),
}  # fmt: skip


def card(**values: Any) -> Card:
    return Card(**{"task": "detect", "size_wh": (64, 64), **values})


def picture(width: int, height: int, seed: int) -> Image.Image:
    """Noise, a smooth gradient, stripes or one colour."""
    rng = np.random.default_rng(seed)
    kind = seed % 4
    if kind == 0:
        pixels = rng.integers(0, 256, (height, width, 3))
    elif kind == 1:
        y, x = np.mgrid[:height, :width]
        pixels = np.stack((x * 255 / max(1, width - 1), y * 255 / max(1, height - 1), (x + y) % 256), 2)
    elif kind == 2:
        pixels = np.repeat(rng.integers(0, 2, (1, width, 3)) * 255, height, 0)
    else:
        pixels = np.broadcast_to(rng.integers(0, 256, 3), (height, width, 3))
    return Image.fromarray(pixels.astype(np.uint8))


def picture_wh(image: Image.Image, n: int) -> tuple[int, int]:
    """The least size of a picture of which this is 1/n."""
    return (image.width - 1) * n + 1, (image.height - 1) * n + 1


def pack(
    images: Sequence[Image.Image | None], card: Card, *, rgbx: bool, gap: int = 0, n: int = 1
) -> tuple[np.ndarray, np.ndarray, list[Letterbox]]:
    """Pixel buffer and PICTURE of each place; None is a place that nobody uses.

    Args:
        gap: bytes between rows and before pictures that belong to nobody.
        n: the images are the pictures decoded at 1/n.
    """
    pictures = np.zeros(len(images), PICTURE)
    parts, letterboxes, offset = [], [], 0
    pixel_bytes = 4 if rgbx else 3
    for place, image in enumerate(images):
        if image is None:
            continue
        pixels = np.full((image.height, image.width * pixel_bytes + gap), 201, np.uint8)
        rows = pixels[:, : image.width * pixel_bytes].reshape(image.height, image.width, pixel_bytes)
        rows[:, :, :3] = np.asarray(image)
        parts += [np.full(gap, 77, np.uint8), pixels.reshape(-1)]
        where = reduced_fitting(image.size, picture_wh(image, n), card)
        pictures[place] = picture_row(
            where, image.size, antialias=card.antialias, offset=offset + gap, row_bytes=pixels.shape[1],
            pixel_bytes=pixel_bytes,
        )  # fmt: skip
        offset += gap + pixels.size
        letterboxes.append(where.letterbox)
    return np.concatenate([*parts, np.zeros(4, np.uint8)]), pictures, letterboxes


def reference(
    images: Sequence[Image.Image | None], card: Card, dtype: str, n: int = 1
) -> tuple[np.ndarray, list[Letterbox]]:
    """The input tensor by edgeapp.preprocess; places that nobody uses are zeros, as in edgeapp.pipeline."""
    made = Preprocessor(card, dtype)
    tensor = np.zeros((len(images), *made.shape), made.dtype)
    letterboxes = [
        made.fill(image, picture_wh(image, n), tensor[place]) for place, image in enumerate(images) if image is not None
    ]
    if dtype == "bfloat16":
        tensor = bfloat16_bits(tensor)
    return tensor, letterboxes


def check_prepare(
    prepare: Prepare,
    images: Sequence[Image.Image | None],
    card: Card,
    dtype: str,
    *,
    rgbx: bool,
    gap: int = 0,
    n: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """(found, wanted) tensors of a batch; the letterboxes must be those of the reference."""
    wanted, letterboxes = reference(images, card, dtype, n)
    pixels, pictures, found_letterboxes = pack(images, card, rgbx=rgbx, gap=gap, n=n)
    assert found_letterboxes == letterboxes
    found = prepare(card, dtype, pixels, pictures).view(MEMORY_DTYPES[dtype])
    assert found.size == wanted.size
    return found.reshape(wanted.shape), wanted


def check_levels(found: np.ndarray, wanted: np.ndarray, images: Sequence[Image.Image], card: Card) -> None:
    """Whether uint8 tensors are as near as promised: antialiased the same to the bit, else within one grey level.

    Pillow 13 makes the vertical pass first for some pictures that are tall or shrink in height, those within one, too.
    """
    for place, image in enumerate(images):
        inner_wh = fitting(*image.size, card).inner_wh
        shrinks_x, shrinks_y = (image.size[i] / inner_wh[i] for i in (0, 1))
        other_order = PILLOW >= 13 and (shrinks_y > shrinks_x or image.height > image.width)
        largest, _ = grey_levels(found[place], wanted[place])
        assert largest <= (not card.antialias or other_order), (place, image.size)
    if not card.antialias:
        assert grey_levels(found, wanted)[1] < 0.02  # where Pillow's double falls just short of a whole number


def grey_levels(found: np.ndarray, wanted: np.ndarray) -> tuple[int, float]:
    """Of uint8 tensors: the largest difference, and the share of numbers that differ."""
    difference = np.abs(found.astype(int) - wanted)
    return int(difference.max()), float((difference > 0).mean())


def layouts() -> list[tuple[str, str, str]]:
    """(dtype, layout, colour order), all of them."""
    return list(product(MEMORY_DTYPES, ("NCHW", "NHWC"), ("RGB", "BGR", "GRAY")))


# --- detector heads ---------------------------------------------------------------------------------------------------

HEADS = ("yolov8", "yolov8_transposed", "yolov5", "yolox")
NMS_HEADS = HEADS[:-1]
NMS_SIZES = [(1, 1), (2, 2), (33, 1), (300, 3), (1024, 80)]
"""(boxes, classes)"""

NMS_RULES = [(0.0, 0.45, 300), (0.05, 0.5, 7), (0.3, 0.0, 300), (0.02, 1.0, 1024), (0.1, 1 / 3, 1)]
"""(least score, IoU, boxes that stay)"""


def dense(head: str, dtype: type, boxes: int, classes: int, seed: int) -> np.ndarray:
    """Two places of a head's output; scores are 0 to 1, some equal, as float16 makes them."""
    rng = np.random.default_rng(seed)
    numbers = 4 if head.startswith("yolov8") else 5
    array = np.concatenate(
        (
            rng.normal(0, 2, (2, boxes, 4)) if head == "yolox" else rng.uniform(0, 640, (2, boxes, 4)),
            rng.uniform(0, 1, (2, boxes, numbers - 4 + classes)) ** 3,
        ),
        2,
    )
    array[0, :, numbers:] = np.round(array[0, :, numbers:], 1)  # ties
    return np.ascontiguousarray(array.transpose(0, 2, 1) if head == "yolov8" else array).astype(dtype)


def crowd(head: str, dtype: type, boxes: int, classes: int, seed: int) -> np.ndarray:
    """Two places of a head's output with boxes on top of each other, some of them just as far as a threshold allows.

    Whole numbers for corners, so that in float16, too, some pairs lie on a threshold exactly; some boxes are no
    numbers, without an end, or inside out.
    """
    rng = np.random.default_rng(seed)
    array = dense(head, dtype, boxes, classes, seed)
    rows = array.transpose(0, 2, 1) if head == "yolov8" else array
    rows[:, :3, -1] = np.nan
    rows[:, :, :2] = rng.integers(0, 12, (2, boxes, 2)) * 2
    rows[:, :, 2:4] = rng.integers(1, 8, (2, boxes, 2)) * 4
    odd = rng.uniform(0, 1, (2, boxes, 4)) < 0.02
    rows[:, :, :4][odd] = rng.choice([np.nan, np.inf, -8, 0, 65504], int(odd.sum()))
    return array


def _grid(head: str) -> Any:
    return yolox_grid((96, 64)) if head == "yolox" else None


def _decoded(head: str, one: np.ndarray, threshold: float) -> Candidates:
    if head.startswith("yolov8"):
        return decode_yolov8(one if head == "yolov8" else one.T, threshold)
    return decode_yolov5(one, threshold, _grid(head))


def check_nms(filter_: Filter, head: str, array: np.ndarray, threshold: float, most: int, nms: Nms) -> list[int]:
    """Whether it leaves what NMS of the reference leaves, to the bit and in its order; how many of each place."""
    results = filter_(head.removesuffix("_transposed"), head.endswith("transposed"), array, threshold, most, nms)
    found, counts, kept = split_kept(results, len(array), nms)
    for place, count in enumerate(counts.tolist()):
        boxes, scores, classes = _decoded(head, array[place], threshold)
        assert found[place] == len(scores)
        if len(scores) > most:
            assert count == 0
            continue
        one_picture = (boxes, scores, classes, np.zeros(len(scores), np.int64))
        wanted = best(one_picture, 1, nms.iou_threshold, nms.keep)
        assert count == len(wanted[1])
        rows = kept[place][:count]
        xy, half = rows["xywh"][:, :2], rows["xywh"][:, 2:] / 2
        np.testing.assert_array_equal(np.concatenate((xy - half, xy + half), 1), wanted[0])
        np.testing.assert_array_equal(rows["score"], wanted[1])
        np.testing.assert_array_equal(rows["class_id"], wanted[2])
    return counts.tolist()


def check_limits(filter_: Filter) -> None:
    """Without boxes none is left, and neither of too many: they are counted, so that the host takes the whole head."""
    array = crowd("yolov8", np.float32, 60, 2, 0)
    array[1, 4:] = 0
    with np.errstate(all="ignore"):
        assert check_nms(filter_, "yolov8", array, 0.01, 20, Nms(0.5, 10)) == [0, 0]
        assert check_nms(filter_, "yolov8", array, 0.01, 60, Nms(0.5, 10))[0] > 0


def check_filter(filter_: Filter, head: str, array: np.ndarray, threshold: float, most: int) -> list[int]:
    """Whether filtering gives what decoding the head gives, to the bit; the candidates of each place."""
    results = filter_(head.removesuffix("_transposed"), head.endswith("transposed"), array, threshold, most, None)
    counts, candidates = split_picked(results, len(array), most)
    grid = _grid(head)
    for place, count in enumerate(counts.tolist()):
        wanted = _decoded(head, array[place], threshold)
        assert count == len(wanted[1])
        picked = candidates[place][:count]
        found = decode_filtered(picked, np.zeros(len(picked), np.int64), grid) if count <= most else None
        if count > most:
            assert found is None
            assert len(set(candidates[place]["box"].tolist())) == most  # full, and none there twice
            continue
        assert found is not None
        for a, b in zip(found, wanted, strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)
    assert candidates.dtype == CANDIDATE
    return counts.tolist()
