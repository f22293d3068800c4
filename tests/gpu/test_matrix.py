"""What `edgeapp inspect` says of a plan from its bytes, and what TensorRT then does with it: no disagreement, no crash.

    EDGEAPP_PLANS=FOLDER python -m pytest tests/gpu/test_matrix.py      takes your own plans in as well

Plans of TensorRT 10 and 11 could not be built for the tests: with such plans this is how to try them.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from gpu.compare import PLANS, assert_equal, unpacked
from gpu.conftest import capability
from support import ROOT, Program

FOLDERS = (
    PLANS,
    Path(os.environ.get("EDGEAPP_FIXTURES", ROOT.parent / "shared" / "fixtures")),
    Path(os.environ.get("EDGEAPP_PLANS", "/nonexistent")),
)
ENDINGS = (".plan", ".engine", ".plan.xz")
ALL = [
    path for folder in FOLDERS if folder.is_dir() for path in sorted(folder.iterdir()) if path.name.endswith(ENDINGS)
]

TABLE = {0, 65}
"""A plan runs, or it is refused: no other code of the table fits, and no signal."""


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.name)
def test_verdict_is_what_tensorrt_does(edgeapp: Program, tmp_path: Path, path: Path) -> None:
    """No plan that was said not to run is loaded, none that was said to run is refused."""
    plan = unpacked(path, tmp_path) if path.suffix == ".xz" else path
    before = edgeapp("inspect", "--json", plan).line
    after = edgeapp("inspect", "--engine", plan, "--json", timeout=120)
    assert after.returncode in TABLE, after
    runs = before["verdict"]["runs"]
    if runs == "no":
        assert after.returncode == 65, after
        assert before["verdict"]["why"] in after.stderr
        return
    if after.returncode == 65:
        assert "  why: " in after.stderr
        assert "  fix: " in after.stderr
        other_gpu = "was built for" in after.stderr
        assert other_gpu or runs == "if_version_compatible", after
        return
    engine = after.line["engine"]
    assert engine["tensors"]
    assert engine["layer_count"] >= 1
    if before["plan"]["refittable"] is not None:
        assert engine["refittable"] == before["plan"]["refittable"]


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.name)
def test_other_runtimes_are_refused_before_tensorrt_is_touched(edgeapp: Program, tmp_path: Path, path: Path) -> None:
    """Each bundled library that is not for this plan: exit 65 and both versions, though some would crash."""
    plan = unpacked(path, tmp_path) if path.suffix == ".xz" else path
    version = edgeapp("inspect", "--json", plan).line["plan"]["tensorrt"]
    np.save(tmp_path / "x.npy", np.zeros(1, np.float32))
    libraries = {file for line in edgeapp("runtimes", "--json").lines for file in line["libraries"]}
    assert len(libraries) >= 2
    for library in libraries:
        if f".so.{version.split('.')[0]}" in library:
            continue
        done = edgeapp("--engine", plan, "--input", "x.npy", "--tensorrt-library", library)
        assert done.returncode == 65, done
        assert f"it was built by TensorRT {'.'.join(version.split('.')[:3])}" in done.stderr


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [("native", 1e-3), ("native_any_gpu", 1e-3), ("this_gpu", 1e-3), ("refit", 1e-3), ("fp16", 2e-2)],
)
def test_variant_that_runs_equals_the_onnx_model(
    edgeapp: Program, models: Path, tmp_path: Path, name: str, tolerance: float
) -> None:
    """A plan that the lean runtime takes gives what ONNX Runtime gives, whatever flags it was built with."""
    plan = unpacked(PLANS / f"variant_{name}.plan.xz", tmp_path)
    np.savez(tmp_path / "in.npz", x=np.random.default_rng(0).normal(0, 1, (1, 3, 32, 32)).astype(np.float32))
    words = ("--input", "in.npz", "--task", "raw", "--output")
    done = edgeapp("--engine", plan, *words, "gpu.npz")
    assert done.returncode in TABLE, done
    if done.returncode == 65:
        assert "lean runtime lacks a part" in done.stderr or "was built for" in done.stderr, done
        return
    assert edgeapp("--engine", models / "conv.onnx", *words, "cpu.npz").returncode == 0
    with np.load(tmp_path / "gpu.npz") as gpu, np.load(tmp_path / "cpu.npz") as cpu:
        assert_equal(gpu["y"], cpu["y"], tolerance)


def for_capability(plan: Path, major: int, minor: int) -> bytes:
    """A native plan that says it was built on another GPU: the two numbers at 124 and 132, see plan/header.py."""
    data = bytearray(plan.read_bytes())
    data[124:128], data[132:136] = major.to_bytes(4, "little"), minor.to_bytes(4, "little")
    return bytes(data)


def test_plan_for_another_gpu_is_refused_with_both_names(edgeapp: Program, tmp_path: Path) -> None:
    """Before TensorRT sees it; the same plan with its own numbers is not refused for that."""
    plan = unpacked(PLANS / "variant_native.plan.xz", tmp_path)
    (tmp_path / "other.plan").write_bytes(for_capability(plan, 8, 7))
    done = edgeapp("inspect", "--engine", "other.plan")
    assert done.returncode == 65, done
    assert "was built for compute capability 8.7 (Jetson Orin), this GPU has" in done.stderr


def test_folder_gives_the_plan_for_this_gpu(edgeapp: Program, tmp_path: Path) -> None:
    """Exactly this GPU first, then hardware compatible; never another's, and it is said which and why."""
    folder = tmp_path / "plans"
    folder.mkdir()
    native = unpacked(PLANS / "variant_native.plan.xz", tmp_path)
    (folder / "orin.plan").write_bytes(for_capability(native, 8, 7))
    (folder / "old.plan").write_bytes(
        b"ftrt" + native.read_bytes()[4:24] + bytes((8, 4, 1, 5)) + native.read_bytes()[28:]
    )
    np.save(tmp_path / "x.npy", np.zeros((1, 3, 32, 32), np.float32))
    words = ("--engine", "plans", "--input", "x.npy", "--task", "raw", "--output", "y.npz")
    done = edgeapp(*words)
    assert done.returncode == 65, done
    assert "orin.plan was built for compute capability 8.7 (Jetson Orin)" in done.stderr
    assert "old.plan is a TensorRT plan of 8.4.1" in done.stderr
    (folder / "any.plan").write_bytes((PLANS / "conv.plan").read_bytes())
    done = edgeapp(*words)
    assert done.returncode == 0, done
    assert "chose any.plan of 3 plans: it is hardware compatible" in done.stderr
    (folder / "a.plan").write_bytes(for_capability(native, *capability()))
    done = edgeapp(*words)
    assert "chose a.plan of 4 plans: it was built for this kind of GPU" in done.stderr


def test_inspect_of_a_loaded_engine_tells_what_it_takes(edgeapp: Program) -> None:
    """Tensors with formats and profiles, memory, layers and times."""
    line = json.loads(edgeapp("inspect", "--engine", PLANS / "multi_io.plan", "--json").stdout)
    engine = line["engine"]
    image = next(tensor for tensor in engine["tensors"] if tensor["name"] == "image")
    assert image["profiles"][1] == [[1, 3, 64, 64], [2, 3, 128, 128], [2, 3, 128, 128]]
    assert image["format"]
    assert engine["profiles"] == 2
    assert engine["device_memory_bytes"] > 0
    assert engine["device_used_bytes"] > 0
    assert engine["host_peak_bytes"] > 10 << 20
    assert engine["load_ms"] > 1
    assert engine["layers"] is None  # lean 8.6.0 does not tell them to the bindings of 10.16
    done = edgeapp("inspect", "--engine", PLANS / "multi_io.plan")
    assert "profile 1: min opt max 1x3x64x64 2x3x128x128 2x3x128x128" in done.stdout
