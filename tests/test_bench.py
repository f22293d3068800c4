"""`edgeapp bench`: its numbers hang together, and its flags are those that users of trtexec know."""

from __future__ import annotations

import json
import signal
import subprocess
import time
import xml.dom.minidom
from pathlib import Path

import pytest
from serving import until
from support import ROOT, Program

from edgeapp.commands.bench_report import advice

DEMO = ROOT / "edgeapp" / "data" / "demo"
SHORT = ("--duration", "0.2", "--rounds", "2", "--warm-up", "0")


def test_modes_of_an_onnx_model_agree_with_each_other(program: Program, tmp_path: Path) -> None:
    """All modes are measured in as many blocks as asked for, and rates and milliseconds are the same number."""
    done = program(
        "bench", "--engine", DEMO / "model.onnx", "--input", DEMO, "--compare", "--json", "--batch", "2",
        "--plot", tmp_path / "b.svg", "--export-times", tmp_path / "t.json", *SHORT,
    )  # fmt: skip
    assert done.returncode == 0, done
    (found,) = done.lines
    assert [mode["mode"] for mode in found["modes"]] == ["engine", "frames", "files", "tutorial"]
    for mode in found["modes"]:
        assert len(mode["blocks_ms"]) == 2
        assert mode["images_per_s"] == pytest.approx(mode["batch"] * 1e3 / mode["ms_per_batch"])
        assert mode["batch"] == (1 if mode["mode"] == "tutorial" else 2)
        assert mode["cpu_ms_per_image"] > 0
    assert set(found["modes"][2]["stages_ms"]) == {"decode", "preprocess", "infer", "postprocess"}
    assert found["device"].startswith("ONNX Runtime")
    assert "latency_ms" not in found  # steps of a GPU
    xml.dom.minidom.parse(str(tmp_path / "b.svg"))
    assert json.loads((tmp_path / "t.json").read_text()) == []


def test_table_names_every_mode(program: Program) -> None:
    """Without --json a person reads the same."""
    done = program("bench", "--engine", DEMO / "model.onnx", "--input", DEMO, *SHORT)
    assert done.returncode == 0, done
    for word in ("images/s", "one batch after the other", "files, end to end", "memory: host"):
        assert word in done.stdout


def test_engine_without_pictures_is_measured_with_random_tensors(program: Program, models: Path) -> None:
    """Several inputs, whole numbers among them, of shapes that were given."""
    shapes = "image:2x3x40x40,scale:2,shift:2"
    done = program("bench", "--engine", models / "multi_io.onnx", "--shapes", shapes, "--json", *SHORT)
    assert done.returncode == 0, done
    assert [mode["mode"] for mode in done.lines[0]["modes"]] == ["engine"]


def test_trtexec_names_are_understood(source_program: Program) -> None:
    """--warmUp, --noDataTransfers, --useSpinWait, --exportTimes and --percentile mean what they mean there."""
    done = source_program(
        "bench", "--engine", DEMO / "model.onnx", "--warmUp", "10", "--duration", "0.1", "--rounds", "1",
        "--noDataTransfers", "--useSpinWait", "--percentile", "50,99.9", "--shapes", "images:3x3x416x416", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done
    assert done.lines[0]["batch"] == 3


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ((), 64, "no --engine given"),
        (("--engine", DEMO / "model.onnx", "--mode", "files"), 64, "needs pictures"),
        (("--engine", DEMO / "model.onnx", "--mode", "speed"), 64, "choose from"),
        (("--engine", DEMO / "model.onnx", "--mode", "files", "--noDataTransfers"), 64, "go not together"),
        (("--engine", DEMO / "model.onnx", "--shapes", "images"), 64, "NAME:NxCxHxW"),
        (("--engine", DEMO / "model.onnx", "--shapes", "x:1x3x2x2"), 64, "does not fit"),
        (("--engine", DEMO / "model.onnx", "--shapes", "images:1x3x2x2"), 64, "does not fit"),
        (("--engine", DEMO / "model.onnx", "--percentile", "101"), 64, "0 to 100"),
        (("--engine", DEMO / "model.onnx", "--plot", ""), 64, "a name is wanted"),
        (("--engine", DEMO / "model.onnx", "--input", "-"), 64, "reads no list"),
        (("--engine", DEMO / "model.onnx", "--input", ROOT / "LICENSE", "--mode", "tutorial", *SHORT), 65, "LICENSE"),
        (("--engine", DEMO / "model.onnx", "--input", ROOT / "LICENSE", "--mode", "files", *SHORT), 65, "could be run"),
        (("--engine", "missing.onnx"), 66, "missing.onnx"),
        (("--engine", DEMO / "model.onnx", "--input", "missing.jpg", *SHORT), 66, "missing.jpg"),
        (("--engine", DEMO / "model.onnx", "--plot", "/nowhere/b.svg", *SHORT), 73, "/nowhere/b.svg"),
        (("--engine", DEMO / "model.onnx", "--exportTimes", "/nowhere/t.json", *SHORT), 73, "/nowhere/t.json"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_wrong_wish_is_explained(source_program: Program, words: tuple[str, ...], code: int, told: str) -> None:
    """Each with what, why and what to do, and its exit code."""
    done = source_program("bench", *words)
    assert (done.returncode, done.stdout) == (code, ""), done
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def found(**changed: object) -> dict[str, object]:
    """Findings in which nothing is wrong."""
    step = {"mean": 1.0}
    return {
        "modes": [
            {"mode": "copies", "images_per_s": 1000.0},
            {"mode": "files", "images_per_s": 990.0, "stages_ms": {"decode": {"p50": 9}, "infer": {"p50": 1}}},
        ],
        "latency_ms": {"compute": step, "enqueue": {"mean": 0.01}},
        "graph": "99 nodes", "copies_ms": [0.1, 0.1], "decode_threads": 3, "cores": 4, **changed,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({}, []),
        ({"graph": "it synchronises"}, ["no CUDA graph: it synchronises"]),
        (
            {"graph": "it synchronises", "latency_ms": {"compute": {"mean": 1.0}, "enqueue": {"mean": 0.9}}},
            ["no CUDA graph: it synchronises", "launch-bound"],
        ),
        ({"copies_ms": [2.0, 0.1]}, ["copy-bound"]),
        (
            {"modes": [{"mode": "copies", "images_per_s": 9999.0}, found()["modes"][1]]},  # type: ignore[index]
            ["decode-bound: 3 threads on 4 cores bring 990 pictures/s from the files, the engine takes 9999/s"],
        ),
        ({"slowed_by": ["at its power limit"]}, ["at its power limit"]),
    ],
    ids=["nothing", "graph", "launch", "copies", "decode", "slowed"],
)
def test_advice_says_what_holds_the_model_up(changed: dict[str, object], told: list[str]) -> None:
    """One line for each cause that the numbers show, none where nothing is wrong."""
    lines = advice(found(**changed))
    assert len(lines) == len(told), lines
    for line, part in zip(lines, told, strict=True):
        assert part in line


@pytest.mark.parametrize("mode", ["engine", "files", "tutorial"])
def test_signal_ends_a_long_measurement(source_program: Program, mode: str) -> None:
    """Not at the end of the block, which may be hours away."""
    child = source_program.start(
        "bench", "--engine", DEMO / "model.onnx", "--input", DEMO, "--mode", mode, "--duration", "3600",
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    until(lambda: "onnxruntime" in Path(f"/proc/{child.pid}/maps").read_text(), "the engine")
    time.sleep(1)
    child.send_signal(signal.SIGINT)
    out, talk = child.communicate(timeout=120)
    assert (child.returncode, out) == (-signal.SIGINT, b""), talk
