"""Checked plans on a real GPU: what was verified is what runs."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from gpu.compare import PLANS, assert_equal, unpacked, with_lean_inside
from support import Program


@pytest.fixture
def x(tmp_path: Path) -> Path:
    """An input of the plans of one convolution."""
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(0, 1, (1, 3, 32, 32)).astype(np.float32))
    return tmp_path / "x.npy"


def test_pinned_plan_gives_the_same_and_another_is_refused(edgeapp: Program, tmp_path: Path, x: Path) -> None:
    """Deserialised from the bytes that were hashed, or from the file: no difference; the wrong digest is 78."""
    words = ("--engine", PLANS / "conv.plan", "--input", x, "--task", "raw", "--output")
    digest = hashlib.sha256((PLANS / "conv.plan").read_bytes()).hexdigest()
    assert edgeapp(*words, "mapped.npz").returncode == 0
    done = edgeapp(*words, "checked.npz", "--engine-sha256", digest, "--startup-trace")
    assert done.returncode == 0, done
    assert "verify the engine file" in done.stderr
    with np.load(tmp_path / "mapped.npz") as mapped, np.load(tmp_path / "checked.npz") as checked:
        assert_equal(checked["y"], mapped["y"], 0)
    done = edgeapp(*words, "no.npz", "--engine-sha256", digest[::-1])
    assert done.returncode == 78, done
    assert not (tmp_path / "no.npz").exists()


def test_lean_runtime_inside_runs_only_when_allowed(edgeapp: Program, models: Path, x: Path) -> None:
    """Its code is the very library that is bundled; it is refused all the same, and by inspect as well."""
    files = [Path(file) for line in edgeapp("runtimes", "--json").lines for file in line["libraries"]]
    library = next(file for file in files if file.name == "libnvinfer_lean.so.8")
    plan = unpacked(PLANS / "variant_native_any_gpu.plan.xz", x.parent).read_bytes()
    path = x.parent / "lean_inside.plan"
    path.write_bytes(with_lean_inside(plan, library.read_bytes()))
    assert edgeapp("inspect", path).returncode == 65
    assert edgeapp("inspect", path, "--allow-host-code").returncode == 0
    words = ("--input", x, "--task", "raw", "--output")
    done = edgeapp("--engine", path, *words, "gpu.npz")
    assert done.returncode == 65, done
    assert "it carries its own runtime code" in done.stderr
    done = edgeapp("--engine", path, *words, "gpu.npz", "--allow-host-code")
    assert done.returncode == 0, done
    assert "may run native code that it carries" in done.stderr
    assert edgeapp("--engine", models / "conv.onnx", *words, "cpu.npz").returncode == 0
    with np.load(x.parent / "gpu.npz") as gpu, np.load(x.parent / "cpu.npz") as cpu:
        assert_equal(gpu["y"], cpu["y"], 1e-3)
