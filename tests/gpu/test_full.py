"""The program frozen with a full TensorRT 8.6.0: native plans, and outputs of unknown shape.

`./build.sh freeze --tensorrt full` makes dist/edgeapp-full; EDGEAPP_FULL_BINARY names another.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from gpu.compare import DEMO, PLANS, unpacked
from gpu.test_plans import compare_with_onnx
from support import ROOT, Program

BINARY = Path(os.environ.get("EDGEAPP_FULL_BINARY", ROOT / "dist" / "edgeapp-full"))


@pytest.fixture
def full(tmp_path: Path) -> Program:
    if not BINARY.is_file():
        pytest.skip(f"{BINARY} is missing: ./build.sh freeze --tensorrt full makes it")
    return Program([str(BINARY)], tmp_path, {"HOME": str(tmp_path)})


def test_native_plan_runs_and_equals_the_cpu(full: Program, tmp_path: Path) -> None:
    """The plan that the lean runtime refuses finds the parts that ONNX Runtime finds."""
    plan = unpacked(PLANS / "demo_native.plan.xz", tmp_path)
    found = {}
    for name, engine in (("gpu", plan), ("cpu", DEMO / "model.onnx")):
        done = full(
            "--engine", engine, "--model-card", DEMO / "model.json", "--input", DEMO, "--output", f"{name}.jsonl"
        )
        assert done.returncode == 0, done
        print(done.stderr)
        lines = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        found[name] = [(d["label"], *d["box_xyxy"]) for line in lines for d in line["detections"]]
    assert [label for label, *_ in found["gpu"]] == [label for label, *_ in found["cpu"]]
    boxes = [np.array([box for _, *box in found[name]]) for name in ("gpu", "cpu")]
    assert np.abs(boxes[0] - boxes[1]).max() < 1.0


@pytest.mark.parametrize("name", ["multi_io", "nonzero"])
def test_version_compatible_plans_run_too(
    full: Program, edgeapp: Program, models: Path, tmp_path: Path, name: str
) -> None:
    """Among them one whose output has another length each time."""
    compare_with_onnx(full, edgeapp, models, tmp_path, name)
