"""dist/edgeapp-aarch64 under qemu, in a Debian with nothing but the C and the C++ library.

It shows that the file starts, unpacks, imports all it carries and computes the same on the CPU. What a GPU would do
it cannot show.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest
from support import ROOT, Outcome

import edgeapp

pytestmark = [pytest.mark.frozen, pytest.mark.slow, pytest.mark.timeout(600)]
BINARY = ROOT / "dist" / "edgeapp-aarch64"
DEBIAN = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"), "edgeapp-build", "roots", "bookworm-arm64")
BOX_PX = 1.0
SCORE = 0.01
TENSORRT = (10, 16, 1, 11)  # which it carries


@pytest.fixture(scope="module", autouse=True)
def needs() -> None:
    """Skip where something is missing; nothing is fetched or built for a test."""
    if not BINARY.is_file() or not DEBIAN.is_dir():
        pytest.skip(f"{BINARY} or {DEBIAN} is missing: ./build.sh aarch64 makes both")
    if platform.machine() != "aarch64" and not shutil.which("qemu-aarch64-static"):
        pytest.skip("no qemu-aarch64-static")


def aarch64(*words: str) -> Outcome:
    done = subprocess.run(
        ["./build.sh", "aarch64", "run", *words],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=280,
    )  # fmt: skip
    return Outcome(done.returncode, done.stdout, done.stderr)


def test_version_is_that_of_the_source_tree() -> None:
    """The file starts on the other processor."""
    done = aarch64("--version")
    assert (done.returncode, done.stdout.split()) == (0, ["edgeapp", edgeapp.__version__]), done


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two detections agree as two correct computations do."""
    return (
        one["label"] == other["label"]
        and abs(one["score"] - other["score"]) <= SCORE
        and all(abs(a - b) <= BOX_PX for a, b in zip(one["box_xyxy"], other["box_xyxy"], strict=True))
    )


def test_demo_finds_what_the_other_processor_finds(binary: Path, tmp_path: Path) -> None:
    """Every detection of the x86-64 program has its like, and there is none beside."""
    here = subprocess.run([binary, "demo"], cwd=tmp_path, capture_output=True, text=True, check=True)
    expected = [json.loads(line) for line in here.stdout.splitlines()]
    done = aarch64("demo")
    assert done.returncode == 0, done
    assert "on the CPU" in done.stderr
    assert [Path(line["path"]).name for line in done.lines] == [Path(line["path"]).name for line in expected]
    for line, wanted in zip(done.lines, expected, strict=True):
        assert len(line["detections"]) == len(wanted["detections"]) >= 8
        for detection in wanted["detections"]:
            assert any(same(detection, found) for found in line["detections"]), (detection, line)


def test_plan_without_a_driver_says_what_to_do() -> None:
    """69 and a message in three parts, not a stack trace from inside a binding."""
    header = b"ftrt" + bytes(4) + struct.pack("<QQ", 1, 128) + bytes(TENSORRT) + bytes(4) + b"NGNE"
    with tempfile.NamedTemporaryFile(dir=ROOT / "build", suffix=".plan") as plan:
        plan.write(header.ljust(128, b"\0"))
        plan.flush()
        done = aarch64(
            "--engine", f"/src/edgeapp/build/{Path(plan.name).name}",
            "--input", "/src/edgeapp/edgeapp/data/demo/bench-1.jpg",
        )  # fmt: skip
    assert done.returncode == 69, done
    what, why, fix = done.stderr.splitlines()
    assert what.startswith("edgeapp: ")
    assert "driver" in what
    assert why.startswith("  why: ")
    assert fix.startswith("  fix: ")
    assert done.stdout == ""
