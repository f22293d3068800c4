"""What the finished files weigh, and what the small one says about what it lacks."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from support import ROOT

pytestmark = pytest.mark.frozen
FULL_BYTES_MAX, SLIM_BYTES_MAX = 80_000_000, 50_000_000


def test_file_is_small_enough(binary: Path, lean_bundle: Path) -> None:
    """With Python, NumPy, Pillow, PyCUDA, ONNX Runtime, two TensorRT lean runtimes and the CUDA runtime inside."""
    assert lean_bundle.is_dir()
    assert binary.stat().st_size <= FULL_BYTES_MAX


@pytest.fixture
def slim() -> Path:
    """dist/edgeapp-slim; `build.sh check` makes it."""
    path = ROOT / "dist" / "edgeapp-slim"
    if not path.is_file():
        pytest.skip("dist/edgeapp-slim is missing: ./build.sh freeze --slim makes it")
    return path


def test_slim_file_is_smaller_and_says_what_it_lacks(slim: Path, tmp_path: Path) -> None:
    """No ONNX Runtime, no lean 8.6.0, no demo: each with its own words; everything inside can be loaded."""
    assert slim.stat().st_size <= SLIM_BYTES_MAX
    (tmp_path / "model.onnx").write_bytes((ROOT / "edgeapp" / "data" / "demo" / "model.onnx").read_bytes())

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        env = {"EDGEAPP_CACHE": str(tmp_path / "cache"), "PATH": os.defpath}
        return subprocess.run([slim, *words], env=env, cwd=tmp_path, capture_output=True, text=True, check=False)

    done = run("self-test", "--json")
    assert done.returncode == 0, done
    parts = {line["name"]: line["version"] for line in map(json.loads, done.stdout.splitlines())}
    assert parts["tensorrt"] == "lean 10.16.1"
    assert "--slim" in parts["onnxruntime"]
    (tmp_path / "x.npy").write_bytes(b"")
    assert "carries no ONNX Runtime" in run("--engine", "model.onnx", "--input", "x.npy").stderr
    assert "carries no ONNX Runtime" in run("inspect", "model.onnx").stdout
    assert run("demo").returncode == 66
