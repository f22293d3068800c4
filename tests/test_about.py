"""What the program tells of itself: its version, its facts, its parts, their licences."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT, Program, frozen_binary

import edgeapp
from edgeapp.commands import about

KEYS = ["edgeapp", "commit", "built", "python", "machine", "tensorrt", "pycuda", "cuda_runtime", "numpy", "pillow",
        "onnxruntime", "glibc_floor", "digest", "file"]  # fmt: skip


def is_frozen(program: Program) -> bool:
    return "-m" not in program.command


def test_version_alone_is_one_line(program: Program) -> None:
    """As scripts have always read it."""
    done = program("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"edgeapp {edgeapp.__version__}\n", "")


def test_version_as_json_has_all_keys(program: Program) -> None:
    """The same keys everywhere; what only the frozen file knows is null in the source tree."""
    done = program("--version", "--json")
    assert done.returncode == 0, done
    facts = json.loads(done.stdout)
    assert list(facts) == KEYS
    assert facts["edgeapp"] == edgeapp.__version__
    assert set(facts["tensorrt"]) == {"flavour", "runtimes"}
    for key in ("python", "numpy", "pillow"):  # the slim file has no ONNX Runtime
        assert re.fullmatch(r"\d+(\.\d+)+\S*", facts[key]), key
    if is_frozen(program):
        assert re.fullmatch(r"[0-9a-f]{32}", facts["digest"])
        assert facts["file"] == str(frozen_binary().resolve())
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", facts["built"])
        assert facts["commit"] is None or re.fullmatch(r"[0-9a-f]{40}(-dirty)?", facts["commit"])
        assert facts["pycuda"]
        assert facts["tensorrt"]["runtimes"]
    else:
        assert [facts[key] for key in ("commit", "built", "glibc_floor", "digest", "file")] == [None] * 5


@pytest.mark.parametrize("flag", ["--sbom", "--licenses"])
def test_parts_of_the_source_tree_are_not_known(source_program: Program, flag: str) -> None:
    """Nothing is frozen here, so nothing is told, and the error says where it is."""
    done = source_program(flag)
    assert (done.returncode, done.stdout) == (66, "")
    what, why, fix = done.stderr.splitlines()
    assert flag in what
    assert "frozen into one file" in why
    assert f"dist/edgeapp {flag}" in fix


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--json"], "--json needs --version"),
        (["--sbom", "--licenses"], "--licenses"),
        (["--licences"], "did you mean --licenses?"),
    ],
    ids=["json alone", "two at once", "other spelling"],
)
def test_words_that_do_not_fit_are_refused(source_program: Program, words: list[str], said: str) -> None:
    """A wrong word is named, and the right one where it is near."""
    done = source_program(*words)
    assert done.returncode == 64, done
    assert said in done.stderr.splitlines()[0]


def test_reader_that_went_away_is_no_bug(program: Program) -> None:
    """`edgeapp --version | true` ends without a complaint."""
    words = ["--licenses"] if is_frozen(program) else ["--version", "--json"]
    with subprocess.Popen(
        [*program.command, *words], env=program.env, cwd=program.cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        complaint = process.stderr.read()
        assert (process.wait(60), complaint) == (74, b"")


def test_licences_of_a_bill_come_in_its_order(tmp_path: Path) -> None:
    """Each component is headed by name, version and licence; a text that was printed before is only named."""
    folder = tmp_path / "_internal" / "licences" / "a"
    folder.mkdir(parents=True)
    (folder / "LICENSE").write_text("words of a")

    def component(name: str, **more: object) -> dict[str, object]:
        text = {"type": "file", "name": "_internal/licences/a/LICENSE", "hashes": [{"content": "1"}]}
        licence = [{"license": {"id": "MIT"}}]
        return {"type": "library", "name": name, "version": "1.2", "licenses": licence, "components": [text], **more}

    bill = {"metadata": {"component": component("own")}, "components": [component("b"), component("c", components=[])]}
    parts = "".join(about.licences(bill, tmp_path)).split(about.RULE)
    assert "NVIDIA" in parts[0]
    assert [parts[i].strip() for i in (1, 3, 5)] == ["own 1.2: MIT", "b 1.2: MIT", "c 1.2: MIT"]
    assert "words of a" in parts[2]
    assert "words of a" not in parts[4]
    assert "the same as a/LICENSE, above" in parts[4]
    assert "No licence text came with it." in parts[6]


@pytest.mark.parametrize("words", [["--version", "--json"], ["--sbom"], ["--licenses"]], ids=" ".join)
def test_telling_of_itself_imports_nothing_heavy(words: list[str]) -> None:
    """Facts are read, not imported: no NumPy, no Pillow, no TensorRT."""
    heavy = ("numpy", "PIL", "onnxruntime", "rich", "pycuda", "tensorrt_lean_bindings", "tensorrt", "fastjsonschema")
    code = (
        "import sys\nfrom edgeapp.cli import main\n"
        f"try:\n    main({words!r})\nexcept SystemExit:\n    pass\n"
        f"print([name for name in {heavy!r} if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
