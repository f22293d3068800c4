"""The demo detector is as good as its page says, through the program itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import metrics
from support import ROOT, Program

SCENES = int(os.environ.get("EDGEAPP_SCENES", "60"))
FIRST_SEED = 910_000_000  # never seen in training (from 1,000,000) or validation (from 500,000,000)


def test_demo_detector_reaches_its_map(program: Program, tmp_path: Path) -> None:
    """mAP50 of at least 0.9 on held-out scenes with the CPU engine; EDGEAPP_SCENES=2000 for the full number."""
    scenes = tmp_path / "scenes"
    subprocess.run(
        [sys.executable, ROOT / "tests" / "demo" / "scenes.py", scenes, "--count", str(SCENES), "--first-seed",
         str(FIRST_SEED)], check=True, capture_output=True,
    )  # fmt: skip
    data = ROOT / "edgeapp" / "data" / "demo"
    done = program(
        "--engine", data / "model.onnx", "--input", scenes, "--score-threshold", "0.01", "--output", "r.jsonl",
        timeout=1200,
    )  # fmt: skip
    assert done.returncode == 0, done
    truth = json.loads((scenes / "truth.json").read_text())
    report = metrics.evaluate(metrics.read_results(tmp_path / "r.jsonl"), truth["images"], truth["labels"])
    assert report["images"] == SCENES
    assert report["mAP50"] >= 0.9
