"""The demo detector as a plan finds what the CPU reference finds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import metrics
import pytest
from gpu.compare import DEMO, PLANS, unpacked
from support import ROOT, Program

SCENES = int(os.environ.get("EDGEAPP_SCENES", "400"))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Held-out scenes with their truth."""
    folder = tmp_path_factory.mktemp("scenes")
    subprocess.run(
        [sys.executable, ROOT / "tests" / "demo" / "scenes.py", folder, "--count", str(SCENES),
         "--first-seed", "910000000"], check=True,
    )  # fmt: skip
    return folder


def mean_average_precision(edgeapp: Program, engine: Path, scenes: Path) -> float:
    done = edgeapp(
        "--engine", engine, "--model-card", DEMO / "model.json", "--input", scenes, "--score-threshold", "0.01",
        "--output", "r.jsonl", timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done
    print(done.stderr)
    truth = json.loads((scenes / "truth.json").read_text())
    report = metrics.evaluate(metrics.read_results(edgeapp.cwd / "r.jsonl"), truth["images"], truth["labels"])
    return float(report["mAP50"])


@pytest.mark.timeout(1800)
def test_plan_map_equals_cpu_reference(edgeapp: Program, scenes: Path) -> None:
    """mAP50 within 0.005 in float32 and 0.01 in float16 of ONNX Runtime on the CPU; at least 0.9."""
    cpu = mean_average_precision(edgeapp, DEMO / "model.onnx", scenes)
    fp32 = mean_average_precision(edgeapp, unpacked(PLANS / "demo_fp32.plan.xz", edgeapp.cwd), scenes)
    fp16 = mean_average_precision(edgeapp, unpacked(DEMO / "model.plan.xz", edgeapp.cwd), scenes)
    print(f"mAP50 on {SCENES} scenes: CPU {cpu:.4f}, TensorRT float32 {fp32:.4f}, float16 {fp16:.4f}")
    assert cpu >= 0.9
    assert abs(fp32 - cpu) <= 0.005
    assert abs(fp16 - cpu) <= 0.01


def test_demo_command_uses_the_gpu(edgeapp: Program, tmp_path: Path) -> None:
    """`edgeapp demo` takes the plan that travels along, on a GPU that can run it."""
    done = edgeapp("demo")
    assert done.returncode == 0, done
    assert "TensorRT lean" in done.stderr
    assert sum(len(line["detections"]) for line in done.lines) >= len(done.lines)
    assert len(list((tmp_path / "edgeapp-demo").iterdir())) == len(done.lines)
