"""`edgeapp check`: all that is wrong with a configuration at once, and nothing where nothing is."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from support import ROOT, Program, write_keys, write_signature

from edgeapp import cli, config, errors
from edgeapp.commands.check import wrong_with
from edgeapp.log import Talk
from edgeapp.settings import Settings
from edgeapp.stopping import Stop

PLANS = ROOT / "tests" / "gpu" / "plans"


@pytest.fixture
def bench(tmp_path: Path, models: Path) -> Path:
    """A folder with a model for the CPU, its signature, two keys, cards, a plan, and a plan that is cut short."""
    shutil.copy(models / "classifier.onnx", tmp_path / "model.onnx")
    write_keys(tmp_path / "maker", 1)
    write_keys(tmp_path / "stranger", 2)
    write_signature(tmp_path / "model.onnx", tmp_path / "maker.key")
    shutil.copy(tmp_path / "model.onnx", tmp_path / "plain.onnx")
    shutil.copy(PLANS / "yolov8.plan", tmp_path / "model.plan")
    (tmp_path / "plans").mkdir()
    shutil.copy(PLANS / "yolov8.plan", tmp_path / "plans")
    (tmp_path / "text.txt").write_text("hello")
    (tmp_path / "bad.json").write_text('{"task": "detekt"}')
    (tmp_path / "golden.json").write_text(json.dumps({"golden": {"schema": 1, "inputs": {}, "outputs": {}}}))
    card = {"inputs": {"i": {"shape": [], "range": [1, 0]}}, "outputs": {"o": {"dtype": "bool", "shape": []}}}
    (tmp_path / "golden2.json").write_text(json.dumps({"golden": {"schema": 1, **card}}))
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "a.plan").write_bytes((PLANS / "yolov8.plan").read_bytes()[:5000])
    return tmp_path


@pytest.mark.parametrize(
    "text",
    [
        'engine = "model.onnx"\nsave = "out/of/it"\noutput = ["results.jsonl", "-"]\n',
        'engine = "model.onnx"\ntrust_key = "maker.pub"\nrequire_signature = true\n',
        'engine = "model.plan"\nscore_threshold = 0.5\n',
        'engine = "plans"\n',
    ],
)
def test_good_configuration_has_no_problems(program: Program, bench: Path, text: str) -> None:
    """Without a GPU, and without making anything."""
    (bench / "c.toml").write_text(text)
    before = sorted(os.listdir(bench))
    done = program("check", "--config", "c.toml")
    assert (done.returncode, done.stdout) == (0, "nothing wrong in c.toml\n"), done
    assert sorted(os.listdir(bench)) == before


def test_all_problems_are_told_a_line_each(program: Program, bench: Path) -> None:
    """From the file, from variables, from what is named; the code is that of the first."""
    (bench / "c.toml").write_text(
        'engine = "model.onnx"\nmodel_card = "bad.json"\ndevise = 3\ntop_k = 0\nsave = "text.txt/out"\n'
        'trust_key = "missing.pub"\n'
    )
    done = program("check", "--config", "c.toml", env={"EDGEAPP_BATCH": "many"})
    lines = done.stdout.splitlines()
    assert done.returncode == 78
    assert [line.split(":")[0] for line in lines] == [
        "c.toml", "c.toml", "EDGEAPP_BATCH='many'", "cannot write to save = text.txt/out",
        "cannot use the model card bad.json", "cannot read missing.pub", "6 problems in c.toml",
    ]  # fmt: skip
    assert "c.toml:3: unknown key devise, did you mean device?; fix: " in lines[0]
    assert "c.toml:4: top_k = 0: 1 to 100000 is allowed; fix: " in lines[1]
    assert all("; fix: " in line for line in lines[:-1])


@pytest.mark.parametrize(
    ("text", "code", "says"),
    [
        ("", 64, "no engine is named"),
        ('engine = "missing.plan"', 66, "cannot read missing.plan"),
        ('engine = "text.txt"', 65, "neither a TensorRT plan nor an ONNX model"),
        ('engine = "cut/a.plan"', 65, "cut short"),
        ('engine = "cut"', 65, "cannot choose a plan in cut"),
        ('engine = "model.onnx"\nmodel_card = "missing.json"', 66, "missing.json"),
        ('engine = "model.onnx"\nmodel_card = "bad.json"', 78, "task must be one of classify"),
        ('engine = "model.onnx"\nmodel_card = "golden.json"', 78, "golden.inputs"),
        ('engine = "model.onnx"\nmodel_card = "golden2.json"', 78, "its range is none"),
        ('engine = "model.onnx"\nlabels = "missing.txt"', 66, "missing.txt"),
        ('engine = "model.onnx"\ntrust_key = "stranger.pub"', 78, "which is not trusted here"),
        ('engine = "model.onnx"\ntrust_key = "text.txt"', 78, "no public key"),
        ('engine = "plain.onnx"\ntrust_key = "maker.pub"\nrequire_signature = true', 78, "it is not signed"),
        ('engine = "plain.onnx"\nrequire_signature = true', 78, "no key is trusted"),
        ('engine = "plain.onnx"\nengine_sha256 = "00"', 78, "64 hexadecimal digits"),
        (f'engine = "plain.onnx"\nengine_sha256 = "{"0" * 64}"', 78, "it is not the file that"),
        ('engine = "plans"\ntrust_key = "text.txt"', 78, "no public key"),
        ('engine = "missing.onnx"\ntrust_key = "text.txt"', 66, "no public key"),
        ('engine = "model.onnx"\nsave = "text.txt"', 73, "cannot write to save = text.txt: not a directory"),
        ('engine = "model.onnx"\noutput = "new/x.jsonl"', 73, "cannot write to output = new/x.jsonl: no such"),
        ('engine = "model.onnx', 78, "c.toml:1:21: this is no TOML"),
    ],
)
def test_problem_has_its_exit_code(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], bench: Path, text: str, code: int, says: str
) -> None:
    """The same that a start would end with."""
    monkeypatch.chdir(bench)
    (bench / "c.toml").write_text(text)
    command, options = cli.parse(["check", "--config", "c.toml"])
    assert command(options, Stop(), Talk()) == code
    said = capfd.readouterr()
    assert said.err == ""
    assert says in said.out


def test_missing_configuration_is_a_problem(source_program: Program) -> None:
    """66, as for every file that is not there."""
    done = source_program("check", "--config", "missing.toml")
    assert done.returncode == 66
    assert done.stdout.startswith("cannot read the configuration missing.toml: no such file")


def test_json_is_one_object(source_program: Program, bench: Path) -> None:
    """For programs: what, why, fix and exit code of each problem."""
    (bench / "c.toml").write_text('engine = "plain.onnx"\nrequire_signature = true\nsave = "text.txt"\n')
    line = source_program("check", "--config", "c.toml", "--json").line
    assert line["config"] == "c.toml"
    assert [problem["exit_code"] for problem in line["problems"]] == [73, 78]
    assert all(set(problem) == {"what", "why", "fix", "exit_code"} for problem in line["problems"])
    assert source_program("check", "--engine", "model.onnx", "--json").line["problems"] == []


def test_flags_win_over_the_file(source_program: Program, bench: Path) -> None:
    """What is checked is what would be used."""
    (bench / "c.toml").write_text('engine = "missing.onnx"\n')
    assert source_program("check", "--config", "c.toml", "--engine", "model.onnx").returncode == 0


def test_folder_that_this_user_may_not_write_is_a_problem(bench: Path) -> None:
    """77, before the first result is lost."""
    (bench / "out").mkdir(mode=0o555)
    if os.access(bench / "out", os.W_OK):
        pytest.skip("this user may write everywhere")
    [error] = wrong_with(Settings(engine=str(bench / "model.onnx"), save=str(bench / "out")), Stop(), Talk())
    assert error.exit_code == 77


def test_default_file_is_read_where_it_is(
    monkeypatch: pytest.MonkeyPatch, bench: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """`check` without --config looks at what the service would use; `run` does not."""
    file = bench / "default.toml"
    file.write_text("devise = 1\n")
    monkeypatch.setattr(config, "DEFAULT_FILE", str(file))
    monkeypatch.setattr(os, "environ", {})
    command, options = cli.parse(["check", "--engine", str(bench / "model.onnx")])
    assert command(options, Stop(), Talk()) == 78
    assert f"{file}:1: unknown key devise" in capfd.readouterr().out
    with pytest.raises(errors.ConfigurationError, match="devise"):
        cli.parse(["config", "show"])
    assert cli.parse(["--engine", "x"])[1].config is None


def test_what_serve_asks_gives_all_problems(bench: Path) -> None:
    """The function, as a list of errors, without a driver."""
    assert wrong_with(Settings(engine=str(bench / "model.plan")), Stop(), Talk(quiet=True)) == []
    wrong = Settings(engine=str(bench / "model.plan"), plugin=(str(bench / "text.txt"),), save="/dev/null/x")
    found = wrong_with(wrong, Stop(), Talk(quiet=True))
    assert [error.exit_code for error in found] == [73, 65]
