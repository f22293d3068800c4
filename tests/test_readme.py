"""What the README shows is true: its commands run, its JSON is valid, its links lead somewhere."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from serving import Spool, serving
from support import ROOT, Program, write_keys, write_signature
from test_bootstrap import has_driver

from edgeapp import config, golden, model, settings
from edgeapp.commands.bench_wanted import add_arguments
from edgeapp.commands.models import add_arguments as add_model_arguments
from edgeapp.commands.service import add_arguments as add_service_arguments
from edgeapp.cpu.engine import CpuEngine

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
COMMANDS = [line.split("  #")[0].strip() for kind, text in BLOCKS if kind == "sh" for line in text.splitlines()]
SERVICE = [c for c in COMMANDS if "--spool " in c]
EDGEAPP = [c for c in COMMANDS if "edgeapp " in c and c not in SERVICE]
BUILD = [c for c in COMMANDS if c.startswith("./build.sh")]


@pytest.fixture
def bench(tmp_path: Path, models: Path, noise: Callable[[int, int], Image.Image]) -> Path:
    """A folder with everything that the README's commands name."""
    shutil.copy(models / "ultralytics.onnx", tmp_path / "model.onnx")
    shutil.copy(ROOT / "tests" / "gpu" / "plans" / "yolov8.plan", tmp_path / "model.plan")
    (tmp_path / "plans").mkdir()
    shutil.copy(tmp_path / "model.plan", tmp_path / "plans")
    noise(320, 240).save(tmp_path / "img.jpg")
    (tmp_path / "photos" / "more").mkdir(parents=True)
    noise(200, 100).save(tmp_path / "photos" / "a.jpg")
    noise(100, 200).save(tmp_path / "photos" / "more" / "b.jpg")
    np.savez(tmp_path / "x.npz", images=np.zeros((1, 3, 64, 64), np.float32))
    (tmp_path / "config.toml").write_text('engine = "model.onnx"\n')
    (tmp_path / "model.json").write_text(json.dumps(_card_with_golden(tmp_path / "model.onnx")))
    write_keys(tmp_path / "maker")
    write_signature(tmp_path / "model.onnx", tmp_path / "maker.key")
    return tmp_path


def _card_with_golden(path: Path) -> dict[str, Any]:
    """A card by which the model is recognised."""
    engine = CpuEngine(str(path))
    return {"golden": golden.make(engine, model.Card("detect", size_wh=(64, 64)))}


def test_readme_has_commands() -> None:
    """The patterns above find what they are for."""
    assert len(EDGEAPP) >= 8
    assert len(BUILD) >= 8
    assert len(EDGEAPP) + len(BUILD) + len(SERVICE) == len([c for c in COMMANDS if c])


@pytest.mark.parametrize("command", EDGEAPP)
def test_edgeapp_command_runs(program: Program, bench: Path, command: str) -> None:
    """Every edgeapp command of the README ends with 0; a plan without a GPU with 69.

    From the source tree nothing is unpacked, so `cache` ends with 66. What `doctor` finds is the machine's business.
    """
    if " cache " in command:
        program.env["EDGEAPP_CACHE"] = str(bench / "cache")  # not that of the other tests: one command empties it
    (bench / "edgeapp").write_text(f'#!/bin/sh\nexec {" ".join(map(shlex.quote, program.command))} "$@"\n')
    (bench / "edgeapp").chmod(0o755)
    done = subprocess.run(
        ["/bin/bash", "-o", "pipefail", "-c", command], cwd=bench, capture_output=True, text=True, check=False,
        env=program.env | {"PATH": f"{bench}:/usr/bin:/bin"}, timeout=60,
    )  # fmt: skip
    if " doctor" in command:
        assert done.returncode in ((0, 1) if has_driver() else (69,)), done
        return
    plan_without_gpu = re.search(r"--engine \S*(\.plan|plans/)", command) and not has_driver()
    no_cache = " cache " in command and len(program.command) > 1
    assert done.returncode == (69 if plan_without_gpu else 66 if no_cache else 0), done
    written = re.findall(r"--(?:output|save) (\S+)", command)
    assert plan_without_gpu or all((bench / name).exists() for name in written)


def test_commands_of_a_service_run(program: Program, tmp_path: Path) -> None:
    """The first serves until it is told to end, the others ask it."""
    spool, model_file = Spool(tmp_path / "spool"), ROOT / "edgeapp" / "data" / "demo" / "model.onnx"
    first, *others = [shlex.split(c.replace("/srv/parts", str(spool.root)))[1:] for c in SERVICE]
    assert first[:3] == ["serve", "--engine", "model.plan"]
    with serving(program, spool, engine=model_file) as it:
        for words in others:
            assert program(*words).returncode == 0, words
        assert it.stop() == 0


@pytest.mark.parametrize("command", BUILD)
def test_build_command_exists(command: str) -> None:
    """build.sh knows every verb and flag that the README names; continuous integration runs them for real.

    Here only `help` is run: the others take minutes or would start these tests again.
    """
    listed = subprocess.run(["./build.sh", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    words = command.split()[1:]
    assert not words or re.search(rf"\b{words[0]}\b", listed)
    assert all(word in listed for word in words if word.startswith("--"))


def test_every_flag_of_the_readme_exists() -> None:
    """No flag is shown that the program does not have (TensorRT's and build.sh's own aside)."""
    known = {option.flag for option in settings.OPTIONS} | {"--help", "--version", "--json", "--sbom", "--licenses"}
    known |= {"--key", "--passphrase-file", "--origin", "--write", "--check"}  # of sign, config and golden alone
    known |= {"--wait"}  # of ctl
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    known |= {flag for action in parser._actions for flag in action.option_strings}  # of bench
    for add in (add_service_arguments, add_model_arguments):
        add(parser := argparse.ArgumentParser())
        known |= {flag for action in parser._actions for flag in action.option_strings}
    foreign = {"--versionCompatible", "--excludeLeanRuntime", "--hardwareCompatibilityLevel", "--onnx", "--saveEngine",
               "--runtime", "--gpus", "--tensorrt", "--slim"}  # fmt: skip
    shown = set(re.findall(r"(?<![\w-])--[a-zA-Z][\w-]+", README))
    assert shown - known - foreign == set()


def test_json_of_the_readme_is_valid(tmp_path: Path) -> None:
    """The result has today's keys, and the card passes the schema."""
    texts = [text for kind, text in BLOCKS if kind == "json"]
    result, card = (json.loads(text) for text in texts)
    assert {"schema", "path", "size_wh", "task", "detections", "times_ms"} == set(result)
    (tmp_path / "model.json").write_text(json.dumps(card))
    assert model.read_card(str(tmp_path / "model.json"))["task"] == "detect"


def test_configuration_of_the_readme_is_valid(tmp_path: Path) -> None:
    """Its keys and values are taken."""
    [text] = [text for kind, text in BLOCKS if kind == "toml"]
    (tmp_path / "config.toml").write_text(text)
    found, wrong = config.read(str(tmp_path / "config.toml"))
    assert (len(found), wrong) == (4, [])


def test_links_of_the_readme_lead_to_files() -> None:
    """Pictures and pages that are linked exist."""
    for target in re.findall(r"\]\(([^)#]+?)\)", README):
        assert (ROOT / target).exists(), target


def test_exit_codes_of_the_readme_are_those_of_the_errors() -> None:
    """The table and the classes name the same codes."""
    from edgeapp import errors

    codes = {c.exit_code for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.EdgeappError)}
    table = {int(code) for row in re.findall(r"^\| ([\d, ]+) \|", README, re.MULTILINE) for code in row.split(",")}
    assert table == codes | {0, 1, 130, 143}


def test_version_and_changelog_agree() -> None:
    """The top entry of the changelog is this version."""
    import edgeapp

    top = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert top is not None
    assert top[1] == edgeapp.__version__
