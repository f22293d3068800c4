"""`edgeapp run` and `edgeapp bench` of the frozen file: the ways to the GPU agree, and the bench tells of them all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from gpu.compare import DEMO, unpacked
from support import Program


@pytest.fixture
def demo_plan(tmp_path: Path) -> Path:
    return unpacked(DEMO / "model.plan.xz", tmp_path)


def test_ways_to_the_gpu_agree(edgeapp: Program, demo_plan: Path) -> None:
    """Batches, preprocessing, waiting: the same objects in the same order whatever the way; a rest of a batch, too."""
    found = {}
    for way in (
        ("--batch", "1", "--preprocess", "cpu"),
        ("--batch", "1", "--preprocess", "gpu", "--sync", "spin"),
        ("--batch", "4", "--preprocess", "gpu", "--decode-threads", "3", "--slots", "2"),
        ("--batch", "8", "--preprocess", "cpu", "--sync", "block"),
        (
            "--batch",
            "auto",
        ),
    ):
        done = edgeapp(
            "--engine", demo_plan, "--input", *[DEMO] * 7, "--model-card", DEMO / "model.json", "--quiet", *way
        )
        assert done.returncode == 0, done
        lines = done.lines
        assert len(lines) == 35
        found[way] = lines
    first, *others = found.values()
    for lines in others:
        for line, wanted in zip(lines, first, strict=True):
            assert line["path"] == wanted["path"]
            assert [d["class_id"] for d in line["detections"]] == [d["class_id"] for d in wanted["detections"]]
            for one, other in zip(line["detections"], wanted["detections"], strict=True):
                assert one["box_xyxy"] == pytest.approx(other["box_xyxy"], abs=2)


def test_bench_tells_of_every_mode(edgeapp: Program, demo_plan: Path, tmp_path: Path) -> None:
    """All modes, latencies with their percentiles, memory, energy where it is counted, and the graph."""
    done = edgeapp(
        "bench", "--engine", demo_plan, "--input", DEMO, "--model-card", DEMO / "model.json", "--batch", "4",
        "--compare", "--json", "--duration", "0.5", "--rounds", "2", "--exportTimes", tmp_path / "t.json",
        "--plot", tmp_path / "b.svg", "--useSpinWait",
    )  # fmt: skip
    assert done.returncode == 0, done
    (found,) = done.lines
    modes = [mode["mode"] for mode in found["modes"]]
    assert modes == ["floor", "engine", "copies", "bus", "floor+", "pixels", "frames", "files", "tutorial"]
    assert found["graph"].endswith(" nodes")
    assert int(found["graph"].split()[0]) > 10
    assert set(found["latency_ms"]) == {"total", "enqueue", "h2d", "compute", "d2h", "pictures", "pictures_loaded"}
    for times in found["latency_ms"].values():
        assert times["min"] <= times["p50"] <= times["p90"] <= times["p99"] <= times["max"]
    assert found["latency_ms"]["total"]["p50"] > found["latency_ms"]["compute"]["min"]
    assert found["device_memory_bytes"] > 0
    assert len(json.loads((tmp_path / "t.json").read_text())) >= 100
    assert (tmp_path / "b.svg").read_text().startswith("<svg")


def test_bench_of_a_damaged_folder_says_so(edgeapp: Program, demo_plan: Path, tmp_path: Path) -> None:
    """Pictures that cannot be read are an error, not a division by zero."""
    (tmp_path / "x.jpg").write_bytes(b"\xff\xd8\xff")
    done = edgeapp("bench", "--engine", demo_plan, "--input", tmp_path / "x.jpg", "--duration", "0.2")
    assert done.returncode == 65, done
    assert "Traceback" not in done.stderr
