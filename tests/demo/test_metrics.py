"""The metrics against cases worked out by hand."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

import metrics

LABELS = ("a", "b")


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        pytest.param((0, 0, 10, 10), 1.0, id="same"),
        pytest.param((5, 0, 15, 10), 50 / 150, id="half-shifted"),
        pytest.param((2, 2, 7, 7), 25 / 100, id="inside"),
        pytest.param((10, 0, 20, 10), 0.0, id="touching"),
        pytest.param((30, 30, 40, 40), 0.0, id="apart"),
    ],
)
def test_box_iou_of_two_boxes_is_shared_over_union(other: tuple[float, ...], expected: float) -> None:
    """The overlap is the shared area over the area of both together."""
    first = np.array([[0.0, 0.0, 10.0, 10.0]])
    assert metrics.box_iou(first, np.array([other], dtype=float))[0, 0] == pytest.approx(expected)


def test_box_iou_of_empty_boxes_is_zero() -> None:
    """Boxes without area do not divide by zero."""
    nothing = np.zeros((1, 4))
    assert metrics.box_iou(nothing, nothing)[0, 0] == 0.0


def test_evaluate_perfect_detections_gives_one() -> None:
    """Every truth found exactly, nothing else: both means are 1."""
    truths = {"p.jpg": [(0, 0, 0, 10, 10), (1, 20, 20, 40, 50)], "q.jpg": [(0, 5, 5, 9, 9)]}
    found = {name: [(row[0], 0.9, *row[1:]) for row in rows] for name, rows in truths.items()}
    report = metrics.evaluate(found, truths, LABELS)
    assert report["mAP50"] == pytest.approx(1.0)
    assert report["mAP50_95"] == pytest.approx(1.0)
    assert report["best_f1"] == pytest.approx(1.0)
    assert (report["images"], report["truths"]) == (2, 3)


def test_evaluate_iou_of_four_fifths_counts_at_seven_thresholds() -> None:
    """A box of IoU 0.8 is right at 0.50, 0.55 ... 0.80 and wrong at the three above."""
    report = metrics.evaluate({"p": [(0, 0.5, 0, 0, 8, 10)]}, {"p": [(0, 0, 0, 10, 10)]}, LABELS)
    assert report["mAP50"] == pytest.approx(1.0)
    assert report["mAP50_95"] == pytest.approx(0.7)


def test_evaluate_false_alarm_between_two_hits_lowers_the_second_half() -> None:
    """Right, wrong, right: precision 1 up to recall 0.5, then 2/3; 51 and 50 of 101 recalls."""
    truths = {"p": [(0, 0, 0, 10, 10), (0, 50, 50, 60, 60)]}
    found = {"p": [(0, 0.9, 0, 0, 10, 10), (0, 0.8, 80, 80, 90, 90), (0, 0.7, 50, 50, 60, 60)]}
    report = metrics.evaluate(found, truths, LABELS)
    assert report["mAP50"] == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert report["best_f1"] == pytest.approx(2 * 2 / (3 + 2))
    assert report["best_f1_score"] == pytest.approx(0.7)


def test_evaluate_missed_truth_stops_the_curve() -> None:
    """One of two found: recalls 0.00 to 0.50 are reached, the other 50 count as zero."""
    truths = {"p": [(0, 0, 0, 10, 10), (0, 50, 50, 60, 60)]}
    report = metrics.evaluate({"p": [(0, 0.9, 0, 0, 10, 10)]}, truths, LABELS)
    assert report["mAP50"] == pytest.approx(51 / 101)


def test_evaluate_second_detection_of_one_truth_is_a_false_alarm() -> None:
    """A truth can be claimed once, and the higher score claims it."""
    truths = {"p": [(0, 0, 0, 10, 10)], "q": [(0, 0, 0, 10, 10)]}
    found = {
        "p": [(0, 0.9, 0, 0, 10, 10), (0, 0.8, 0, 0, 10, 9)],
        "q": [(0, 0.7, 0, 0, 10, 10)],
    }
    report = metrics.evaluate(found, truths, LABELS)
    assert report["mAP50"] == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_evaluate_detection_takes_the_truth_it_overlaps_most() -> None:
    """Two neighbours are both found although the first box also overlaps the second truth."""
    truths = {"p": [(0, 0, 0, 10, 10), (0, 2, 0, 12, 10)]}
    found = {"p": [(0, 0.9, 2, 0, 12, 10), (0, 0.8, 0, 0, 10, 10)]}
    assert metrics.evaluate(found, truths, LABELS)["mAP50_95"] == pytest.approx(1.0)


def test_evaluate_wrong_class_finds_nothing() -> None:
    """The right box under the wrong label is a miss, and the label without truth is left out."""
    report = metrics.evaluate({"p": [(1, 0.9, 0, 0, 10, 10)]}, {"p": [(0, 0, 0, 10, 10)]}, LABELS)
    assert report["mAP50"] == 0.0
    assert report["per_class"]["b"] == {"AP50": None, "AP50_95": None, "truths": 0}


def test_evaluate_false_alarm_on_an_empty_picture_counts() -> None:
    """A stronger detection where nothing is halves the precision everywhere."""
    truths = {"p": [(0, 0, 0, 10, 10)], "empty": []}
    found = {"p": [(0, 0.5, 0, 0, 10, 10)], "empty": [(0, 0.9, 0, 0, 10, 10)]}
    assert metrics.evaluate(found, truths, LABELS)["mAP50"] == pytest.approx(0.5)


def test_evaluate_only_the_best_hundred_count() -> None:
    """The hundred-and-first detection of a picture is dropped, though it is right."""
    wrong = [(0, 0.9, 200 + k, 200, 210 + k, 210) for k in range(100)]
    found = {"p": [*wrong, (0, 0.1, 0, 0, 10, 10)]}
    truths = {"p": [(0, 0, 0, 10, 10)]}
    assert metrics.evaluate(found, truths, LABELS)["mAP50"] == 0.0
    found["p"] = found["p"][1:]
    assert metrics.evaluate(found, truths, LABELS)["mAP50"] == pytest.approx(0.01)


def test_evaluate_no_truth_at_all_gives_none() -> None:
    """Without a truth there is no mean to speak of."""
    report = metrics.evaluate({}, {"p": []}, LABELS)
    assert report["mAP50"] is None
    assert report["mAP50_95"] is None


def _line(path: str, *boxes: tuple[int, float, tuple[float, ...]]) -> str:
    items = [{"class_id": c, "label": LABELS[c], "score": s, "box_xyxy": b} for c, s, b in boxes]
    return json.dumps({"schema": 1, "path": path, "task": "detect", "detections": items})


def test_command_reads_json_lines_and_counts_an_error_as_nothing(tmp_path: Path) -> None:
    """Pictures are matched by file name; the line with an error misses its truth."""
    results = tmp_path / "results.jsonl"
    results.write_text(
        _line("some/where/p.jpg", (0, 0.9, (0, 0, 10, 10)))
        + "\n\n"
        + json.dumps({"schema": 1, "path": "q.jpg", "error": "not a picture"})
        + "\n"
        + _line("not-in-truth.jpg", (0, 0.99, (0, 0, 10, 10)))
        + "\n",
        encoding="utf-8",
    )
    truth = tmp_path / "truth.json"
    images = {"p.jpg": [[0, 0, 0, 10, 10]], "q.jpg": [[0, 0, 0, 10, 10]]}
    truth.write_text(json.dumps({"labels": LABELS, "images": images}), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, metrics.__file__, str(results), str(truth)],
        check=True,
        capture_output=True,
        text=True,
    )
    report = json.loads(done.stdout)
    assert report["mAP50"] == pytest.approx(51 / 101)
    assert report["images"] == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("{", "r.jsonl:1", id="not-json"),
        pytest.param('{"path": "p.jpg"}', "not a detection result", id="no-detections"),
        pytest.param(_line("a/p.jpg") + "\n" + _line("b/p.jpg"), "second result", id="twice"),
    ],
)
def test_read_results_of_a_bad_file_says_where(tmp_path: Path, text: str, message: str) -> None:
    """A wrong line is named, never passed over."""
    path = tmp_path / "r.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        metrics.read_results(path)
