"""Raw outputs -> answers, against hand-made truth and slow reference code."""

from __future__ import annotations

import make_models
import numpy as np
import pytest

from edgeapp import errors
from edgeapp.model import Card
from edgeapp.postprocess import detect, make_postprocess
from edgeapp.postprocess.classify import top_k
from edgeapp.records import CANDIDATE, CANDIDATES, COUNTS, KEPT, Frame, Letterbox, Result, TensorSpec

SAME = Letterbox((1.0, 1.0), (0.0, 0.0), (64, 64))


def card(**values: object) -> Card:
    return Card(**{"task": "detect", "size_wh": (64, 64), "labels": ("a", "b", "c"), **values})  # type: ignore[arg-type]


def specs(head: str) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(name, (-1, *array.shape), str(array.dtype), False)
        for name, array in make_models.head_outputs(head).items()
    )


@pytest.mark.parametrize("given", [True, False], ids=["head given", "head guessed"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("head", make_models.HEADS)
def test_every_head_gives_the_same_boxes(head: str, dtype: type, given: bool) -> None:
    """One set of boxes, written in the layout of each head, comes out the same."""
    name = head.removesuffix("_transposed") if given else ""
    postprocess, _ = make_postprocess(card(head=name), specs(head))
    outputs = {
        key: array[None].astype(dtype) if array.dtype == np.float32 else array[None]
        for key, array in make_models.head_outputs(head).items()
    }
    result = Result(Frame("x"), "detect")
    postprocess(outputs, [(0, SAME, result)])
    expected = [make_models.BOXES[i] for i in make_models.KEPT]
    assert [d.class_id for d in result.detections] == [b[4] for b in expected]
    assert [d.label for d in result.detections] == ["abc"[b[4]] for b in expected]
    tolerance = 1e-4 if dtype is np.float32 else 0.05
    for found, wanted in zip(result.detections, expected, strict=True):
        assert found.box_xyxy == pytest.approx(wanted[:4], abs=tolerance)
        assert found.score == pytest.approx(wanted[5], abs=2e-3)


def test_detect_places_of_a_batch_are_kept_apart() -> None:
    """Picture i of a batch gets row i."""
    postprocess, _ = make_postprocess(card(head="yolov8"), specs("yolov8"))
    one = make_models.head_outputs("yolov8")["output0"]
    batch = np.stack((np.zeros_like(one), one))
    first, second = Result(Frame("x"), "detect"), Result(Frame("y"), "detect")
    postprocess({"output0": batch}, [(0, SAME, first), (1, SAME, second)])
    assert (len(first.detections), len(second.detections)) == (0, 3)


@pytest.mark.parametrize(
    ("values", "shape", "word"),
    [
        ({"head": "yolov8", "labels": tuple("abcdefg")}, (-1, 7, 84), "7 numbers a box"),
        ({"head": "end2end"}, (-1, 300, 7), "do not fit the head end2end"),
        ({"head": "yolov5"}, (-1, 8, 252), r"\(batch, boxes, numbers\)"),
        ({}, (-1, 7), "three dimensions"),
        ({"head": "nms"}, (-1, 7, 84), "four outputs"),
    ],
)
def test_detect_outputs_that_do_not_fit_are_refused(
    values: dict[str, object], shape: tuple[int, ...], word: str
) -> None:
    """A head that cannot be is refused before the first picture."""
    with pytest.raises(errors.ConfigurationError, match=word):
        make_postprocess(card(**values), (TensorSpec("output0", shape, "float32", False),))


def slow_nms(boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray, threshold: float) -> list[int]:
    """Greedy NMS from its definition, one pair at a time."""
    kept: list[int] = []
    rows = boxes.tolist()  # Python's numbers: NumPy's are ten times as slow one at a time
    for i in sorted(range(len(scores)), key=lambda i: (-scores[i], i)):
        for k in kept:
            a, b = rows[i], rows[k]
            w = min(a[2], b[2]) - max(a[0], b[0])
            h = min(a[3], b[3]) - max(a[1], b[1])
            shared = max(w, 0) * max(h, 0)
            union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
            if classes[i] == classes[k] and shared / max(union, 1e-12) > threshold:
                break
        else:
            kept.append(i)
    return kept


@pytest.mark.parametrize("count", [0, 1, 2, 47, 48, 49, 500, 1500])
@pytest.mark.parametrize("ties", [False, True])
def test_nms_equals_greedy_definition(count: int, ties: bool) -> None:
    """The blocked NMS keeps exactly what the definition keeps, ties and touching boxes included."""
    rng = np.random.default_rng(count)
    corner = rng.uniform(-20, 300, (count, 2))
    boxes = np.concatenate((corner, corner + rng.uniform(0, 80, (count, 2))), 1).astype(np.float32)
    scores = rng.uniform(0, 1, count).astype(np.float32)
    if ties:
        boxes, scores = np.round(boxes / 16) * 16, np.round(scores, 1)
    classes = rng.integers(0, 3, count)
    found = detect.nms(boxes, scores, classes, 0.45, 10_000)
    assert found.tolist() == slow_nms(boxes.astype(np.float64), scores, classes, 0.45)


def test_nms_stops_at_the_wanted_number() -> None:
    """The best ones are kept, no more than asked for."""
    boxes = np.array([[i * 20, 0, i * 20 + 10, 10] for i in range(100)], np.float32)
    found = detect.nms(boxes, np.linspace(0, 1, 100, dtype=np.float32), np.zeros(100, np.int64), 0.5, 7)
    assert found.tolist() == [99, 98, 97, 96, 95, 94, 93]


def test_nms_drops_boxes_that_are_no_numbers() -> None:
    """NaN and infinity from a broken model come out as nothing, not as a crash."""
    boxes = np.array([[0, 0, np.nan, 1], [0, 0, np.inf, 1], [0, 0, 1, 1]], np.float32)
    assert detect.nms(boxes, np.array([0.9, 0.8, 0.7]), np.zeros(3, np.int64), 0.5, 10).tolist() == [2]


@pytest.mark.parametrize("pictures", [1, 3, 4, 9])
@pytest.mark.parametrize("most", [2, 300])
@pytest.mark.parametrize("crowded", [True, False])
def test_pictures_of_a_batch_are_suppressed_as_if_alone(pictures: int, most: int, crowded: bool) -> None:
    """Side by side or one by one, empty ones and crowded ones among them, NMS keeps the same boxes."""
    rng = np.random.default_rng(pictures)
    counts = rng.integers(0, 90, pictures) * crowded
    counts[0] = 0
    owners = np.repeat(np.arange(pictures), counts)
    corner = np.round(rng.uniform(-20, 300, (owners.size, 2)))
    boxes = np.concatenate((corner, corner + np.round(rng.uniform(0, 80, (owners.size, 2)))), 1).astype(np.float32)
    scores, classes = np.round(rng.uniform(0, 1, owners.size), 1).astype(np.float32), rng.integers(0, 3, owners.size)
    boxes[rng.uniform(0, 1, owners.size) < 0.05] = np.nan
    found = detect.best((boxes, scores, classes, owners), pictures, 0.45, most)
    for picture in range(pictures):
        own, chosen = owners == picture, found[3] == picture
        keep = detect.nms(boxes[own], scores[own], classes[own], 0.45, most)
        assert found[0][chosen].tolist() == boxes[own][keep].tolist()
        assert found[1][chosen].tolist() == scores[own][keep].tolist()
        assert found[2][chosen].tolist() == classes[own][keep].tolist()


def filtered(array: np.ndarray, threshold: float, *, nms: bool) -> dict[str, np.ndarray]:
    """What the GPU gives for yolov8 heads (batch, 4 + classes, n); tests/test_kernels.py compares them."""
    counts, table = np.zeros(len(array), np.int32), np.zeros((len(array), 64), CANDIDATE)
    for place, one in enumerate(array):
        chosen = np.flatnonzero(one[4:].max(0) >= threshold)[::-1]  # in another order
        if nms:
            scores, centre, half = one[4:, chosen].max(0), one[:2, chosen], one[2:4, chosen] / 2
            corners = np.concatenate((centre - half, centre + half)).T
            chosen = chosen[detect.nms(corners, scores, one[4:, chosen].argmax(0), card().iou_threshold, 300)]
        counts[place] = chosen.size
        for row, box in enumerate(chosen):
            table[place, row] = (box, one[4:, box].argmax(), one[4:, box].max(), one[:4, box])
    return {COUNTS: counts, (KEPT if nms else CANDIDATES): table}


@pytest.mark.parametrize("nms", [False, True], ids=["picked", "kept"])
def test_filtered_head_gives_what_the_head_gives(nms: bool) -> None:
    """Whether the GPU only picks boxes or leaves out those that NMS drops, too; the head itself is not there."""
    one = make_models.head_outputs("yolov8")["output0"]
    batch = np.stack((one, np.zeros_like(one), one[:, ::-1]))
    postprocess, _ = make_postprocess(card(head="yolov8"), specs("yolov8"))
    tensors = filtered(batch, 0.25, nms=nms)
    results: list[list[Result]] = []
    for outputs in ({"output0": batch}, tensors):
        results.append([Result(Frame("x"), "detect") for _ in batch])
        postprocess(outputs, [(place, SAME, result) for place, result in enumerate(results[-1])])
    assert [r.detections for r in results[0]] == [r.detections for r in results[1]]
    assert [len(r.detections) for r in results[0]] == [3, 0, 3]


def test_float16_threshold_is_exact() -> None:
    """The integer comparison of float16 scores finds the same boxes as a float comparison."""
    values = np.arange(0, 0x3C01, dtype=np.int16).view(np.float16)  # every float16 from 0 to 1
    array = np.zeros((5, values.size), np.float16)
    array[4] = values
    for threshold in (0.0, 0.1, 0.25, 0.3, 0.5, 0.9999, 1.0):
        _, scores, _ = detect.decode_yolov8(array, threshold)
        assert scores.size == (values.astype(np.float64) >= threshold).sum()


def test_boxes_end_at_the_picture() -> None:
    """No box leaves the picture."""
    corners = np.array([[-5, -5, 500, 500]], np.float32)
    box = detect.to_picture(corners, np.zeros(1, np.int64), [Letterbox((2, 2), (10, 0), (100, 50))])
    assert box.tolist() == [[0, 0, 100, 50]]


@pytest.mark.parametrize("classes", [1, 2, 3, 1000])
def test_top_k_equals_full_sort(classes: int) -> None:
    """The k best of a softmax, best first."""
    logits = np.random.default_rng(classes).normal(0, 3, classes).astype(np.float32)
    e = np.exp(logits.astype(np.float64) - logits.max())
    expected = e / e.sum()
    (found,) = top_k(logits[None], 5)
    order = np.argsort(-expected)[:5].tolist()
    assert [i for i, _ in found] == order
    assert [p for _, p in found] == pytest.approx(expected[order].tolist(), rel=1e-5)


def test_top_k_leaves_probabilities_alone() -> None:
    """Scores that sum to one are probabilities already; the card can say otherwise."""
    p = np.array([0.1, 0.7, 0.2], np.float32)
    assert top_k(p[None], 1) == [[(1, pytest.approx(0.7))]]
    assert top_k(p[None], 1, "softmax")[0][0][1] == pytest.approx(np.exp(0.7) / np.exp(p).sum(), rel=1e-5)


@pytest.mark.parametrize("shape", [(-1, 5), (1, 5, 1, 1), (-1, -1), (1, 1, 5)], ids=str)
def test_classify_takes_a_score_for_each_class(shape: tuple[int, ...]) -> None:
    """Dimensions of 1 beside that of the classes do not matter."""
    postprocess, _ = make_postprocess(card(task="classify"), (TensorSpec("y", shape, "float32", False),))
    result = Result(Frame("x"), "classify")
    scores = np.array([0, 0, 9, 0, 0], np.float32)
    postprocess({"y": scores.reshape([1, *(n if n > 0 else 5 for n in shape[1:])])}, [(0, SAME, result)])
    assert result.classes[0].class_id == 2


@pytest.mark.parametrize("shape", [(5,), (1, 8, 30, 30), (-1, 5, 2)], ids=str)
def test_classify_of_other_outputs_is_refused(shape: tuple[int, ...]) -> None:
    """A feature map is no set of classes."""
    with pytest.raises(errors.ConfigurationError, match="classify wants"):
        make_postprocess(card(task="classify"), (TensorSpec("y", shape, "float32", False),))
