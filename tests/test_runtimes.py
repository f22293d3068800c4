"""Which runtime serves which plan, told from its version alone."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from support import Program

from edgeapp import errors, paths
from edgeapp.gpu import runtimes, selection
from edgeapp.plan import ModelFile, PlanFacts


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle's root with files of the right names; nothing of them is loaded."""
    for runtime in runtimes.LEAN:
        for name in runtime.files:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).touch()
    monkeypatch.setattr(paths, "library_root", lambda: tmp_path)
    return tmp_path


def plan(*version: int) -> ModelFile:
    return ModelFile("m.plan", "plan", version)


def library(path: Path, number: int) -> Path:
    """A stand-in for a TensorRT library: it knows its version and nothing else."""
    code = f"int getInferLibVersion(void) {{ return {number}; }}"
    subprocess.run(["gcc", "-shared", "-x", "c", "-", "-o", path], input=code.encode(), check=True)
    return path


@pytest.mark.parametrize(
    ("version", "name"),
    [((8, 6, 0, 12), "lean 8.6.0"), ((10, 0, 0, 6), "lean 10.16.1"), ((10, 3, 0, 30), "lean 10.16.1"),
     ((10, 16, 1, 11), "lean 10.16.1"), ((11, 0, 0, 114), "lean 11.4.0"), ((11, 4, 0, 106), "lean 11.4.0")],
)  # fmt: skip
def test_lean_program_chooses_by_version(root: Path, version: tuple[int, ...], name: str) -> None:
    """8.6.0 plans go through the guest, 10.x plans run directly."""
    found = runtimes.choose(plan(*version))
    assert found.name == name
    assert bool(found.guest) == (name == "lean 8.6.0")


@pytest.mark.parametrize(
    "version", [(7, 2, 3, 4), (8, 5, 3, 1), (8, 6, 1, 6), (9, 0, 0, 0), (10, 16, 2, 10), (11, 4, 1, 0), (12, 0, 0, 0)]
)
def test_lean_program_refuses_other_versions(root: Path, version: tuple[int, ...]) -> None:
    """What no runtime here can run is refused by both versions, before any library is loaded."""
    with pytest.raises(errors.DataError) as caught:
        runtimes.choose(plan(*version))
    assert "carries lean 8.6.0, lean 10.16.1, lean 11.4.0" in caught.value.what
    newer = version[:3] in ((10, 16, 2), (11, 4, 1), (12, 0, 0))
    assert ("newer TensorRT" in caught.value.why) == newer
    assert ("--tensorrt-library" in caught.value.fix) == (version[0] in (10, 11))


def test_missing_library_is_not_offered(root: Path) -> None:
    """A bundle without lean 8 (aarch64) does not promise 8.6 plans."""
    (root / "tensorrt_lean8_libs" / "libnvinfer_lean.so.8").unlink()
    assert [r.name for r in runtimes.catalogue()] == ["lean 10.16.1", "lean 11.4.0"]
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


def test_library_of_the_system_is_used_where_it_is_newer(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """JetPack 7.2 builds with 10.16.2 and installs libnvinfer-lean10, newer than what is bundled."""
    folder = root / "usr" / "lib"
    folder.mkdir(parents=True)
    for version in ("10.3.0", "10.16.2", "9.1.0"):
        (folder / f"libnvinfer_lean.so.{version}").touch()
    (folder / "libnvinfer_lean.so.10").symlink_to("libnvinfer_lean.so.10.16.2")
    monkeypatch.setattr(runtimes, "SYSTEM_FOLDERS", (f"{root}/usr/*",))
    (found,) = runtimes.of_this_machine()
    assert (found.name, found.origin) == ("lean 10.16.2 of this system", "system")
    assert found.libraries == (str(folder / "libnvinfer_lean.so.10.16.2"),)
    assert runtimes.choose(plan(10, 16, 2, 10)) == found
    assert runtimes.choose(plan(10, 16, 1, 11)).name == "lean 10.16.1"
    with pytest.raises(errors.DataError, match=r"lean 10\.16\.2 of this system"):
        runtimes.choose(plan(10, 17, 0, 1))


@pytest.mark.parametrize(("number", "version"), [(101602, (10, 16, 2)), (100300, (10, 3, 0)), (110401, (11, 4, 1))])
def test_given_library_serves_plans_up_to_its_version(root: Path, number: int, version: tuple[int, int, int]) -> None:
    """--tensorrt-library is asked for its version, and is then the only one that counts."""
    path = str(library(root / f"libnvinfer_lean.so.{version[0]}", number))
    assert runtimes.choose(plan(*version, 7), path).libraries == (path,)
    with pytest.raises(errors.DataError, match="this program carries lean"):
        runtimes.choose(plan(8, 6, 0, 12), path)


@pytest.mark.parametrize(
    ("name", "data", "error", "words"),
    [("no.so", None, errors.NotFoundError, "no such file"), ("text.so", b"hello", errors.DataError, "no library"),
     ("empty.so", b"", errors.DataError, "no library"), ("cut.so", b"\x7fELF\2\1\1", errors.DataError, "cannot use")],
)  # fmt: skip
def test_given_library_that_is_none_is_refused(
    root: Path, name: str, data: bytes | None, error: type[errors.EdgeappError], words: str
) -> None:
    """A wrong file is named before anything is loaded."""
    if data is not None:
        (root / name).write_bytes(data)
    with pytest.raises(error, match=words):
        runtimes.given(str(root / name))


def test_given_full_library_is_refused(root: Path) -> None:
    """The lean bindings need the lean library; one of version 8 or 9 has no bindings at all."""
    for name, number in (("libnvinfer.so.10", 101601), ("libnvinfer_lean.so.8", 8601), ("libc.so", 0)):
        with pytest.raises(
            errors.DataError, match=r"bindings are for the lean runtime of 10, 11|its name is not libnvinfer_lean"
        ):
            runtimes.given(str(library(root / name, number)))


NONE_90 = PlanFacts((8, 6, 0, 12), 100, compute_capability=(9, 0), level="none")
AMPERE_90 = PlanFacts((8, 6, 0, 12), 100, compute_capability=(9, 0), level="ampere+")


@pytest.mark.parametrize(
    ("facts", "gpu", "fits"),
    [(NONE_90, (9, 0), True), (NONE_90, (8, 7), False), (AMPERE_90, (8, 7), True), (AMPERE_90, (7, 5), False),
     (PlanFacts((10, 0, 0, 0), 100), (7, 5), True), (None, (7, 5), True)],
)  # fmt: skip
def test_gpu_is_checked_where_the_plan_tells_its_own(facts: PlanFacts | None, gpu: tuple[int, int], fits: bool) -> None:
    """The refusal names both GPUs; a plan that tells nothing is left to TensorRT."""
    model = ModelFile("m.plan", "plan", (8, 6, 0, 12), facts=facts)
    if fits:
        runtimes.check_gpu(model, gpu)
        return
    with pytest.raises(errors.DataError) as caught:
        runtimes.check_gpu(model, gpu)
    assert ("Jetson Orin" in caught.value.why) == (gpu == (8, 7))


def test_folder_of_plans_without_any_that_serves_names_each(root: Path, tmp_path: Path) -> None:
    """No GPU is asked where no plan can run; every reason is told."""
    folder = tmp_path / "plans"
    folder.mkdir()
    (folder / "a.plan").write_bytes(b"")
    (folder / "b.engine").write_bytes(b"vtrt" + bytes(200))
    (folder / "c.onnx").write_bytes(b"x")

    def no_gpu() -> tuple[int, int]:
        raise AssertionError("asked")

    with pytest.raises(errors.DataError) as caught:
        selection.pick(str(folder), None, no_gpu)
    assert "a.plan is empty" in caught.value.why
    assert "b.engine is a TensorRT-RTX plan" in caught.value.why


def test_runtimes_command_lists_what_each_runs(program: Program) -> None:
    """What is inside, for people and for programs; no driver is needed."""
    done = program("runtimes", "--json")
    assert done.returncode == 0, done
    assert [line["name"] for line in done.lines if line["origin"] == "bundled"] == [r.name for r in runtimes.LEAN]
    for line in done.lines:
        assert all(os.path.isfile(file) for file in line["libraries"])
    assert "plans of 10.0 to 10.16.1, built version compatible" in program("runtimes").stdout


def test_given_library_that_is_cut_short_is_refused_before_it_is_mapped(root: Path) -> None:
    """The loader would map it, and the process would die by SIGBUS."""
    whole = library(root / "libnvinfer_lean.so.10", 101602).read_bytes()
    for size in (64, 1000, len(whole) // 2, len(whole) - 1):
        (root / "libnvinfer_lean.so.10").write_bytes(whole[:size])
        with pytest.raises(errors.DataError, match="cut short"):
            runtimes.given(str(root / "libnvinfer_lean.so.10"))
    os.mkfifo(root / "fifo")
    with pytest.raises(errors.DataError, match="no library"):
        runtimes.given(str(root / "fifo"))
