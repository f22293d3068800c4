"""`edgeapp self-test`: what travels can be loaded; from the source tree and frozen."""

from __future__ import annotations

import json

from support import Program


def test_self_test_loads_every_part_without_a_gpu(program: Program) -> None:
    """Each part with its version and time; nothing on standard error."""
    done = program("self-test", "--json")
    assert done.returncode == 0, done
    assert done.stderr == ""
    lines = {line["name"]: line for line in map(json.loads, done.stdout.splitlines())}
    assert list(lines) == ["numpy", "pillow", "onnxruntime", "tensorrt", "libraries"]
    assert "lean 10.16.1" in lines["tensorrt"]["version"]
    assert all(line["ms"] >= 0 and line["version"] for line in lines.values())


def test_self_test_of_one_part_loads_that_one(program: Program) -> None:
    """By its name; an unknown one is refused with the known ones."""
    assert program("self-test", "pillow").stdout.startswith("pillow ")
    refused = program("self-test", "pilow")
    assert refused.returncode == 64
    assert "pillow" in refused.stderr
