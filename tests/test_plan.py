"""What a file is, from its first bytes."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from edgeapp import errors, plan


def header(version: tuple[int, ...] = (8, 6, 0, 12), size: int = 128) -> bytes:
    """The first bytes of a standard plan, laid out as in the plans that TensorRT 8.6.0 wrote."""
    return b"ftrt" + bytes(4) + struct.pack("<QQ", 1, size) + bytes(version) + bytes(4) + b"NGNE"


def plan_bytes(version: tuple[int, ...] = (8, 6, 0, 12), size: int = 128) -> bytes:
    return header(version, size).ljust(size, b"\0")


def write(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return str(path)


def test_identify_plan_gives_version(tmp_path: Path) -> None:
    """Bytes 24 to 27 are the version of the builder."""
    found = plan.identify(write(tmp_path / "a.plan", plan_bytes((10, 3, 0, 30))))
    assert (found.kind, found.version, found.version_text) == (plan.PLAN, (10, 3, 0, 30), "10.3.0")


def test_identify_ultralytics_wrapper_gives_offset_and_metadata(tmp_path: Path) -> None:
    """The JSON text before the plan is read, and the plan is found after it."""
    text = json.dumps({"task": "detect", "names": {"0": "bolt"}, "imgsz": [320, 320]}).encode()
    path = write(tmp_path / "a.engine", struct.pack("<i", len(text)) + text + plan_bytes())
    found = plan.identify(path)
    assert found.kind == plan.PLAN
    assert found.offset == 4 + len(text)
    assert found.metadata["task"] == "detect"


def test_identify_real_plans_and_models(shared_fixtures: Path) -> None:
    """Every real plan is told to be of 8.6.0, every real ONNX model to be one."""
    plans = sorted(shared_fixtures.glob("*.plan"))
    assert plans
    assert {plan.identify(str(p)).version for p in plans} == {(8, 6, 0, 12)}
    assert {plan.identify(str(p)).kind for p in shared_fixtures.glob("*.onnx")} == {plan.ONNX}


@pytest.mark.parametrize(
    ("name", "data", "word"),
    [
        ("a.plan", b"", "empty"),
        ("a.plan", b"ftrt", "cut short after 4 bytes"),
        ("a.plan", plan_bytes()[:100], "cut short: 100 of 128 bytes"),
        ("a.plan", b"vtrt" + bytes(200), "TensorRT-RTX"),
        ("a.plan", b"ptrt" + bytes(200), "8.5 or older"),
        ("a.plan", b"NLYM" + bytes(200), "safety"),
        ("a.pt", b"PK\x03\x04" + bytes(200), "zip"),
        ("a.plan", b"version https://git-lfs.github.com/spec/v1\n", "git-LFS"),
        ("a.plan", b"<!DOCTYPE html><html></html>", "web page"),
        ("a.plan", b"\x89PNG\r\n\x1a\n" + bytes(50), "picture"),
        ("a.plan", bytes(500), "neither"),
        ("a.plan", b"\xff" * 500, "neither"),
        ("a.plan", struct.pack("<i", 400) + b"{" + b"x" * 600, "neither"),
        (
            "a.plan",
            struct.pack("<i", 20) + b'{"a": 1}            ' + plan_bytes()[:60],
            "cut short",
        ),
    ],
)
def test_identify_refuses_what_is_no_model(tmp_path: Path, name: str, data: bytes, word: str) -> None:
    """Each wrong file is named for what it is, before any runtime sees it."""
    with pytest.raises(errors.DataError, match=word):
        plan.identify(write(tmp_path / name, data))


def test_identify_onnx_with_wrong_name_is_refused(models: Path, tmp_path: Path) -> None:
    """An ONNX model called .plan was meant for TensorRT: it is not run on the CPU silently."""
    path = write(tmp_path / "a.plan", (models / "conv.onnx").read_bytes())
    with pytest.raises(errors.DataError, match="ONNX model, not a plan"):
        plan.identify(path)
    assert plan.identify(str(models / "conv.onnx")).kind == plan.ONNX


def test_identify_missing_file_is_not_found(tmp_path: Path) -> None:
    """A missing file has its own exit code."""
    with pytest.raises(errors.NotFoundError):
        plan.identify(str(tmp_path / "no.plan"))


@pytest.mark.parametrize("name", ["a\0b.plan", "x" * 300])
def test_identify_impossible_name_is_not_found(name: str) -> None:
    """Names that no file can have are answered like missing ones."""
    with pytest.raises(errors.NotFoundError):
        plan.identify(name)
