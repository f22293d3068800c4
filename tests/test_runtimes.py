"""Which runtime serves which plan, told from its version alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgeapp import errors, paths
from edgeapp.gpu import runtimes
from edgeapp.plan import ModelFile


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle's root with files of the right names; nothing of them is loaded."""
    for runtime in runtimes.LEAN:
        for name in filter(None, (*runtime.libraries, runtime.guest)):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).touch()
    monkeypatch.setattr(paths, "library_root", lambda: tmp_path)
    return tmp_path


def plan(*version: int) -> ModelFile:
    return ModelFile("m.plan", "plan", version)


@pytest.mark.parametrize(
    ("version", "name"),
    [((8, 6, 0, 12), "lean 8.6.0"), ((10, 0, 0, 6), "lean 10.16.1"), ((10, 3, 0, 30), "lean 10.16.1"),
     ((10, 16, 1, 11), "lean 10.16.1")],
)  # fmt: skip
def test_lean_program_chooses_by_version(root: Path, version: tuple[int, ...], name: str) -> None:
    """8.6.0 plans go through the guest, 10.x plans run directly."""
    found = runtimes.choose(plan(*version))
    assert found.name == name
    assert bool(found.guest) == (name == "lean 8.6.0")


@pytest.mark.parametrize(
    "version", [(7, 2, 3, 4), (8, 5, 3, 1), (8, 6, 1, 6), (9, 0, 0, 0), (10, 16, 2, 10), (11, 4, 0, 0)]
)
def test_lean_program_refuses_other_versions(root: Path, version: tuple[int, ...]) -> None:
    """What no runtime here can run is refused by both versions, before any library is loaded."""
    with pytest.raises(errors.DataError) as caught:
        runtimes.choose(plan(*version))
    assert "carries lean 8.6.0, lean 10.16.1" in caught.value.what
    newer = version[:3] > (10, 16, 1)
    assert ("newer TensorRT" in caught.value.why) == newer


def test_missing_library_is_not_offered(root: Path) -> None:
    """A bundle without lean 8 (aarch64) does not promise 8.6 plans."""
    (root / "tensorrt_lean8_libs" / "libnvinfer_lean.so.8").unlink()
    assert [r.name for r in runtimes.catalogue()] == ["lean 10.16.1"]
    with pytest.raises(errors.DataError, match=r"built by TensorRT 8\.6\.0, this program carries lean 10\.16\.1"):
        runtimes.choose(plan(8, 6, 0, 12))


def test_full_program_takes_its_own_version(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program frozen with another TensorRT runs that version's plans and older ones of its major."""
    facts = {"tensorrt": "system", "tensorrt_version": "10.3.0.30", "libraries": "./libnvinfer.so.10"}
    (root / "build.json").write_text(json.dumps(facts))
    monkeypatch.setattr(paths, "FROZEN", True)
    assert runtimes.choose(plan(10, 3, 0, 30)).libraries == ("./libnvinfer.so.10",)
    for version in ((10, 4, 0, 0), (8, 6, 0, 12), (11, 0, 0, 0)):
        with pytest.raises(errors.DataError, match="this program carries TensorRT"):
            runtimes.choose(plan(*version))
