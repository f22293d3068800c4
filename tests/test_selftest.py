"""`edgeapp self-test`: what travels can be loaded; from the source tree and frozen."""

from __future__ import annotations

import json
import shlex
import subprocess

import pytest
from support import Program


def test_self_test_loads_every_part_without_a_gpu(program: Program) -> None:
    """Each part with its version and time; nothing on standard error."""
    done = program("self-test", "--json")
    assert done.returncode == 0, done
    assert done.stderr == ""
    lines = {line["name"]: line for line in map(json.loads, done.stdout.splitlines())}
    assert list(lines) == ["numpy", "pillow", "pynacl", "onnxruntime", "tensorrt", "libraries"]
    assert "lean 10.16.1" in lines["tensorrt"]["version"]
    assert all(line["ms"] >= 0 and line["version"] for line in lines.values())


def test_self_test_of_one_part_loads_that_one(program: Program) -> None:
    """By its name; an unknown one is refused with the known ones."""
    assert program("self-test", "pillow").stdout.startswith("pillow ")
    refused = program("self-test", "pilow")
    assert refused.returncode == 64
    assert "pillow" in refused.stderr


@pytest.mark.parametrize(
    "words", ["self-test", "doctor", "doctor --json", "cache list", "--version", "--version --json", "--licenses"]
)
def test_what_standard_output_does_not_take_is_an_error(program: Program, words: str) -> None:
    """Full: 73; closed: 74; each with a reason and no stack trace. The source tree has no cache and no licences: 66."""
    nothing = 66 if len(program.command) > 1 and words.split()[0] in ("cache", "--licenses") else 0
    with open("/dev/full", "wb") as full:
        done = program(*words.split(), stdout=full)
    assert done.returncode == (nothing or 73), done
    assert "edgeapp: " in done.stderr
    assert "Traceback" not in done.stderr
    command = " ".join(map(shlex.quote, program.command))
    closed = subprocess.run(
        ["/bin/sh", "-c", f"{command} {words} >&-"], env=program.env, capture_output=True, text=True, check=False
    )
    assert closed.returncode == (nothing or 74), closed
    assert "Traceback" not in closed.stderr
