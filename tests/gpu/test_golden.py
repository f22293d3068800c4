"""Golden outputs on a real GPU: a plan is recognised, also by what its ONNX model gives, and another is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from gpu.compare import DEMO, PLANS, unpacked
from support import Program


@pytest.mark.parametrize("name", ["conv", "classifier", "classifier_batch4", "multi_io", "dtypes", "yolov8"])
def test_plan_gives_its_golden_output_again(edgeapp: Program, models: Path, tmp_path: Path, name: str) -> None:
    """In another process; and so does the ONNX model that it was built from, on the CPU."""
    card = tmp_path / "card.json"
    card.write_text("{}")
    words = ("--model-card", card)
    done = edgeapp("golden", "--engine", PLANS / f"{name}.plan", *words, "--write")
    assert done.returncode == 0, done
    done = edgeapp("golden", "--engine", PLANS / f"{name}.plan", *words, "--check")
    assert done.returncode == 0, done
    done = edgeapp("golden", "--engine", models / f"{name}.onnx", *words, "--check")
    assert done.returncode == 0, done


def test_demo_plan_is_recognised_by_the_golden_output_of_the_cpu(edgeapp: Program, tmp_path: Path) -> None:
    """A real network; with the tolerance of half precision, as the GPU calculates in TF32."""
    plan = unpacked(PLANS / "demo_fp32.plan.xz", tmp_path)
    card = tmp_path / "card.json"
    card.write_bytes((DEMO / "model.json").read_bytes())
    words = ("--model-card", card)
    assert edgeapp("golden", "--engine", DEMO / "model.onnx", *words, "--write").returncode == 0
    keys = json.loads(card.read_text())
    for kept in keys["golden"]["outputs"].values():
        kept["tolerance"] = 0.02
    card.write_text(json.dumps(keys))
    done = edgeapp("golden", "--engine", plan, *words, "--check")
    assert done.returncode == 0, done


def test_other_plan_is_found(edgeapp: Program, tmp_path: Path) -> None:
    """With other tensors, and with the same ones but another answer."""
    card = tmp_path / "card.json"
    card.write_text("{}")
    words = ("--model-card", card)
    assert edgeapp("golden", "--engine", PLANS / "conv.plan", *words, "--write").returncode == 0
    done = edgeapp("golden", "--engine", PLANS / "classifier.plan", *words, "--check")
    assert done.returncode == 65, done
    keys = json.loads(card.read_text())
    values = keys["golden"]["outputs"]["y"]["values"]
    keys["golden"]["outputs"]["y"]["values"] = values[1:] + values[:1]
    card.write_text(json.dumps(keys))
    done = edgeapp("golden", "--engine", PLANS / "conv.plan", *words, "--check")
    assert done.returncode == 65, done
    assert "output y: differs by" in done.stderr
