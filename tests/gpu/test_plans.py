"""Real plans on a real GPU, driven from outside through the frozen file."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import make_models
import numpy as np
import pytest
from gpu.compare import PLANS, assert_equal, unpacked
from PIL import Image
from support import Program

FP32, FP16 = 1e-3, 2e-2


@pytest.mark.parametrize(
    ("plan", "reference", "tolerance"),
    [
        ("conv_static_fp32_native", "conv_static", FP32),
        ("conv_static_fp32_sm80plus", "conv_static", FP32),
        ("tiny_classifier_fp32_sm80plus", "tiny_classifier", FP32),
        ("tiny_classifier_fp16_sm80plus", "tiny_classifier", FP16),
        ("multi_io_fp32_two_profiles", "multi_io", FP32),
    ],
)
def test_fixture_plan_equals_its_reference(
    edgeapp: Program, shared_fixtures: Path, tmp_path: Path, plan: str, reference: str, tolerance: float
) -> None:
    """Every plan gives what its float32 original gives."""
    with np.load(shared_fixtures / f"{reference}.npz") as wanted:
        np.savez(tmp_path / "in.npz", **{k[3:]: wanted[k] for k in wanted.files if k.startswith("in_")})
        done = edgeapp(
            "--engine", shared_fixtures / f"{plan}.plan", "--input", "in.npz", "--task", "raw", "--output", "out.npz"
        )
        assert done.returncode == 0, done
        with np.load(tmp_path / "out.npz") as out:
            assert {f"out_{k}" for k in out.files} == {k for k in wanted.files if k.startswith("out_")}
            for key in out.files:
                assert_equal(out[key], wanted[f"out_{key}"], tolerance)


def inputs_of(name: str, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Random inputs for one of make_models.py's models."""
    if name == "conv":
        return {"x": rng.normal(0, 1, (1, 3, 32, 32)).astype(np.float32)}
    if name.startswith("classifier"):
        return {"images": rng.uniform(0, 1, (4, 3, 32, 32)).astype(np.float32)}
    if name == "nonzero":
        return {"x": rng.normal(0, 1, 20).astype(np.float32)}
    if name == "dtypes":
        return {
            "half": rng.normal(0, 1, 4).astype(np.float16),
            "count": rng.integers(-9, 9, 4, dtype=np.int32),
            "flag": rng.integers(0, 2, 4).astype(bool),
            "pixel": rng.integers(0, 256, (1, 1, 2, 2), dtype=np.uint8),
        }
    return {
        "image": rng.normal(0, 1, (2, 3, 48, 64)).astype(np.float32),
        "scale": rng.uniform(0.5, 2, 2).astype(np.float32),
        "shift": np.int32([0, 100]),
    }


@pytest.mark.parametrize("name", ["conv", "classifier", "classifier_batch4", "multi_io", "dtypes"])
def test_own_plan_equals_the_onnx_model(edgeapp: Program, models: Path, tmp_path: Path, name: str) -> None:
    """TensorRT on the GPU and ONNX Runtime on the CPU agree on every output tensor, three times over.

    dtypes has one tensor of each dtype that TensorRT 8.6 passes.
    """
    compare_with_onnx(edgeapp, edgeapp, models, tmp_path, name)


def compare_with_onnx(gpu_program: Program, cpu_program: Program, models: Path, tmp_path: Path, name: str) -> None:
    """Run three random inputs through the plan and the ONNX model; everything must be equal."""
    rng = np.random.default_rng(7)
    files = []
    for i in range(3):
        files.append(f"in{i}.npz")
        np.savez(tmp_path / files[-1], **inputs_of(name, rng))
    for program, engine, out in (
        (gpu_program, PLANS / f"{name}.plan", "gpu.npz"),
        (cpu_program, models / f"{name}.onnx", "cpu.npz"),
    ):
        done = program("--engine", engine, "--input", *files, "--task", "raw", "--output", out)
        assert done.returncode == 0, done
    with np.load(tmp_path / "gpu.npz") as gpu, np.load(tmp_path / "cpu.npz") as cpu:
        assert set(gpu.files) == set(cpu.files)
        assert len(gpu.files) % 3 == 0
        for key in cpu.files:
            assert_equal(gpu[key], cpu[key], FP32)


def test_data_dependent_output_on_lean_8_is_refused(edgeapp: Program, tmp_path: Path) -> None:
    """What would crash inside TensorRT is refused before, with the way out."""
    np.save(tmp_path / "x.npy", np.float32([1, -1, 2]))
    done = edgeapp("--engine", PLANS / "nonzero.plan", "--input", "x.npy")
    assert done.returncode == 65, done
    assert "output tensor where: its shape depends on the values" in done.stderr
    assert "--tensorrt full" in done.stderr


@pytest.mark.parametrize(
    ("batch", "height", "width", "fits"),
    [(1, 32, 32, True), (4, 64, 64, True), (2, 128, 100, True), (1, 64, 65, True), (2, 64, 64, True),
     (3, 100, 100, False), (5, 32, 32, False), (1, 16, 32, False), (1, 129, 64, False)],
)  # fmt: skip
def test_profile_is_chosen_or_all_are_named(
    edgeapp: Program, models: Path, tmp_path: Path, batch: int, height: int, width: int, fits: bool
) -> None:
    """Profile 0 takes batch 1..4 of 32..64 pixels, profile 1 batch 1..2 of 64..128; nothing else runs."""
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "in.npz", image=rng.normal(0, 1, (batch, 3, height, width)).astype(np.float32),
        scale=np.ones(batch, np.float32), shift=np.zeros(batch, np.int32),
    )  # fmt: skip
    done = edgeapp("--engine", PLANS / "multi_io.plan", "--input", "in.npz", "--task", "raw", "--output", "gpu.npz")
    if not fits:
        assert done.returncode == 65, done
        assert f"no optimisation profile takes image ({batch}, 3, {height}, {width})" in done.stderr
        assert "profile 0: image (1, 3, 32, 32) to (4, 3, 64, 64)" in done.stderr
        assert "profile 1: image (1, 3, 64, 64) to (2, 3, 128, 128)" in done.stderr
        return
    assert done.returncode == 0, done
    edgeapp("--engine", models / "multi_io.onnx", "--input", "in.npz", "--task", "raw", "--output", "cpu.npz")
    with np.load(tmp_path / "gpu.npz") as gpu, np.load(tmp_path / "cpu.npz") as cpu:
        for key in cpu.files:
            assert_equal(gpu[key], cpu[key], FP32)


def test_profiles_change_from_input_to_input(edgeapp: Program, models: Path, tmp_path: Path) -> None:
    """Small, large, small, refused, large: each answered for its own shape, no stale values."""
    rng = np.random.default_rng(0)
    shapes = [(4, 3, 40, 40), (2, 3, 120, 90), (1, 3, 33, 33), (4, 3, 100, 100), (2, 3, 65, 128)]
    files = []
    for i, shape in enumerate(shapes):
        files.append(f"in{i}.npz")
        np.savez(
            tmp_path / files[-1], image=rng.normal(0, 1, shape).astype(np.float32),
            scale=np.ones(shape[0], np.float32), shift=np.zeros(shape[0], np.int32),
        )  # fmt: skip
    done = edgeapp("--engine", PLANS / "multi_io.plan", "--input", *files, "--output", "gpu.npz", "-")
    assert done.returncode == 1, done
    assert [("error" in line) for line in done.lines] == [False, False, False, True, False]
    edgeapp("--engine", models / "multi_io.onnx", "--input", *files, "--output", "cpu.npz")
    with np.load(tmp_path / "gpu.npz") as gpu, np.load(tmp_path / "cpu.npz") as cpu:
        assert set(cpu.files) - set(gpu.files) == {"in3/features", "in3/winner", "in3/bright"}
        for key in gpu.files:
            assert_equal(gpu[key], cpu[key], FP32)


def test_detector_answers_in_pixels_of_the_picture(edgeapp: Program, tmp_path: Path) -> None:
    """The main job on a plan: boxes with labels from an Ultralytics wrapper, batches, annotated pictures."""
    text = json.dumps({"task": "detect", "names": {"0": "bolt", "1": "nut", "2": "gear"}, "imgsz": [64, 64]}).encode()
    engine = tmp_path / "wrapped.engine"
    engine.write_bytes(struct.pack("<i", len(text)) + text + (PLANS / "yolov8.plan").read_bytes())
    for i in range(5):
        Image.new("RGB", (128, 128), (i * 40, 90, 20)).save(tmp_path / f"{i}.png")
    done = edgeapp("--engine", engine, "--input", *[f"{i}.png" for i in range(5)], "--batch", "2", "--save", "out")
    assert done.returncode == 0, done
    assert len(done.lines) == 5
    for line in done.lines:
        assert [d["label"] for d in line["detections"]] == ["bolt", "nut", "gear"]
        for found, i in zip(line["detections"], make_models.KEPT, strict=True):
            wanted = [2 * n for n in make_models.BOXES[i][:4]]
            assert found["box_xyxy"] == pytest.approx(wanted, abs=0.02)
    assert len(list((tmp_path / "out").iterdir())) == 5


def test_classifier_knows_colours(edgeapp: Program, tmp_path: Path) -> None:
    """Pictures through a fixed-batch plan that is not filled."""
    for i, color in enumerate(((255, 0, 0), (0, 255, 0), (0, 0, 255), (0, 0, 0), (255, 255, 255))):
        Image.new("RGB", (50, 40), color).save(tmp_path / f"{i}.png")
    done = edgeapp("--engine", PLANS / "classifier_batch4.plan", "--input", tmp_path, "--mean", "0", "--std", "1")
    assert done.returncode == 0, done
    assert [line["classes"][0]["class_id"] for line in done.lines] == [0, 1, 2, 3, 4]


def test_native_plan_on_the_lean_runtime_is_refused_with_the_fix(edgeapp: Program, tmp_path: Path) -> None:
    """TensorRT's "Unexpected call to stub" becomes a cause and a command."""
    np.save(tmp_path / "x.npy", np.zeros((1, 3, 416, 416), np.float32))
    done = edgeapp("--engine", unpacked(PLANS / "demo_native.plan.xz", tmp_path), "--input", "x.npy")
    assert done.returncode == 65, done
    assert "the lean runtime lacks a part" in done.stderr
    assert "--versionCompatible --excludeLeanRuntime" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("damage", ["byte", "half", "noise"])
def test_damaged_plan_never_crashes(edgeapp: Program, tmp_path: Path, damage: str) -> None:
    """A plan whose header is right and whose body is not: refused, or run with other numbers; no crash."""
    data = bytearray((PLANS / "conv.plan").read_bytes())
    if damage == "byte":
        data[len(data) // 2] ^= 0xFF
    elif damage == "half":
        data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
    else:
        rng = np.random.default_rng(0)
        data[200:] = rng.integers(0, 256, len(data) - 200, dtype=np.uint8).tobytes()
    (tmp_path / "m.plan").write_bytes(data)
    np.save(tmp_path / "x.npy", np.zeros((1, 3, 32, 32), np.float32))
    done = edgeapp("--engine", "m.plan", "--input", "x.npy")
    assert done.returncode in ((0, 65) if damage == "byte" else (65,)), done
