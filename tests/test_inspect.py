"""`edgeapp inspect`: what a file is and whether it runs here, without a GPU."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import make_heads
import pytest
from support import Program


@pytest.fixture
def heads(tmp_path: Path) -> Path:
    """A folder with the beginnings of real files."""
    folder = tmp_path / "heads"
    folder.mkdir()
    make_heads.write_all(folder)
    return folder


def test_inspect_plan_tells_its_gpu_and_the_runtime(program: Program, heads: Path) -> None:
    """The bytes of a real plan, for people and for programs."""
    done = program("inspect", heads / "conv_refit.plan")
    assert done.returncode == 0, done
    rows = dict(line.strip().split("  ", 1) for line in done.stdout.splitlines()[1:])
    rows = {key: value.strip() for key, value in rows.items()}
    assert rows["built by"] == "TensorRT 8.6.0.12"
    assert rows["built on"].startswith("compute capability 9.0 (H100, H200, GH200), 132 multiprocessors, 140 GiB")
    assert rows["refittable"] == "yes"
    assert rows["runs here"].startswith("with lean 8.6.0, if it was built version compatible")
    line = program("inspect", "--json", heads / "conv_native_hw.plan").line
    assert line["plan"]["compute_capability"] == "9.0"
    assert line["plan"]["hardware_compatibility"] == "ampere+"
    assert line["plan"]["version_compatible"] is None
    assert line["plan"]["lean_runtime_inside"] is False
    assert line["verdict"]["runs"] == "if_version_compatible"
    assert line["verdict"]["runtime"] == "lean 8.6.0"


def test_inspect_plan_with_the_lean_runtime_inside_names_the_fix(program: Program, heads: Path) -> None:
    """Its code would be run: refused before any driver is asked, with the flag that leaves it out."""
    done = program("inspect", heads / "lean_inside.plan")
    assert done.returncode == 65, done
    assert "--excludeLeanRuntime" in done.stdout
    done = program("--engine", heads / "lean_inside.plan", "--input", "x.npy")
    assert done.returncode == 65, done
    assert "it carries its own runtime code" in done.stderr


def test_inspect_ultralytics_plan_shows_its_metadata(program: Program, heads: Path, tmp_path: Path) -> None:
    """Task, classes, size, stride and batch, from the JSON before the plan; the rest is told of the plan after it."""
    metadata = {"task": "detect", "names": {"0": "bolt", "1": "nut\n"}, "imgsz": [640, 480], "stride": 32, "batch": 1}
    text = json.dumps(metadata).encode()
    engine = tmp_path / "m.engine"
    engine.write_bytes(struct.pack("<i", len(text)) + text + (heads / "conv_native.plan").read_bytes())
    done = program("inspect", engine)
    assert done.returncode == 0, done
    for words in ("detect", "2: bolt, nut", "[640, 480]", "stride", "132 multiprocessors"):
        assert words in done.stdout
    line = program("inspect", "--json", engine).line
    assert line["ultralytics"] == metadata
    assert line["plan"]["offset"] == 4 + len(text)


def test_inspect_onnx_model_lists_its_tensors(program: Program, models: Path) -> None:
    """Opset, inputs and outputs; it runs on the CPU."""
    done = program("inspect", models / "multi_io.onnx")
    assert done.returncode == 0, done
    assert "image float32 (batch, 3, h, w_)" in done.stdout
    assert "ai.onnx 13" in done.stdout
    line = program("inspect", "--json", models / "multi_io.onnx").line
    assert [tensor["name"] for tensor in line["onnx"]["outputs"]] == ["features", "winner", "bright"]
    assert line["verdict"]["runtime"] == "ONNX Runtime"


def test_inspect_onnx_model_with_another_name_says_to_rename_it(program: Program, models: Path, tmp_path: Path) -> None:
    """A run would refuse it: it was meant for TensorRT."""
    (tmp_path / "m.plan").write_bytes((models / "conv.onnx").read_bytes())
    done = program("inspect", "m.plan")
    assert done.returncode == 65, done
    assert "rename it to .onnx" in done.stdout
    assert "x float32 (1, 3, 32, 32)" in done.stdout


def test_inspect_loaded_onnx_model_tells_memory_and_time(program: Program, models: Path) -> None:
    """--engine loads the model as a run would."""
    line = program("inspect", "--engine", models / "conv.onnx", "--json").line
    assert line["engine"]["tensors"][0]["shape"] == [1, 3, 32, 32]
    assert line["engine"]["load_ms"] > 0
    assert line["engine"]["host_peak_bytes"] > 10 << 20


def test_inspect_exit_codes_tell_all_some_or_none(program: Program, heads: Path, tmp_path: Path) -> None:
    """0 when all run here, 1 when some do, 65 when none does, 66 for a missing file alone, 64 without any."""
    good, bad = heads / "conv_native.plan", heads / "rtx_sm86.plan"
    assert program("inspect", good, good).returncode == 0
    assert program("inspect", good, bad).returncode == 1
    assert program("inspect", bad).returncode == 65
    assert program("inspect", tmp_path / "no").returncode == 66
    assert program("inspect", bad, tmp_path / "no").returncode == 65
    assert program("inspect", good, tmp_path / "no").returncode == 1
    assert program("inspect").returncode == 64
    assert program("inspect", good, "--engine", good).returncode == 64


def test_inspect_every_head_prints_json(program: Program, heads: Path) -> None:
    """Every kind of file gives one object with a verdict, and no word on standard error."""
    done = program("inspect", "--json", *sorted(heads.iterdir()))
    assert done.stderr == ""
    assert len(done.lines) == len(list(heads.iterdir()))
    for line in done.lines:
        assert set(line["verdict"]) == {"runs", "runtime", "why", "fix"}


def test_inspect_name_with_newline_stays_in_its_line(program: Program, tmp_path: Path) -> None:
    """A file name or a text inside cannot forge a line."""
    path = tmp_path / "a\n  runs here  yes"
    path.write_bytes(b"vtrt" + bytes(100))
    done = program("inspect", path)
    assert "a\\n  runs here" in done.stdout
    assert done.returncode == 65


def test_inspect_loads_no_numpy(source_program: Program, heads: Path) -> None:
    """It answers fast because it imports little."""
    code = "import sys; from edgeapp import cli; sys.argv = ['edgeapp', 'inspect', sys.argv[1]]\n"
    code += (
        "try: cli.main()\nfinally: print([m for m in sys.modules if m in ('numpy', 'PIL', 'zipfile', 'onnxruntime')])"
    )
    program = Program([source_program.command[0], "-c", code], source_program.cwd, source_program.env)
    assert program(heads / "conv_native.plan").stdout.splitlines()[-1] == "[]"
    assert os.path.exists(heads / "conv_native.plan")


@pytest.mark.parametrize(
    ("data", "words"),
    [(b"ptrt", "8.5 or older"), (b"ptrt1234", "8.5 or older"), (b"ftrt", "cut short"), (b"vtrt", "TensorRT-RTX"),
     (b"TR01" + b"text " * 20, "ExecuTorch"), (b"\x08\x08\x12\0\0\0\0\0", "damaged or cut short")],
)  # fmt: skip
def test_inspect_stub_of_a_file_is_no_bug(program: Program, tmp_path: Path, data: bytes, words: str) -> None:
    """A few bytes of each kind: told, and not run."""
    (tmp_path / "m.onnx").write_bytes(data)
    done = program("inspect", "m.onnx")
    assert done.returncode == 65, done
    assert words in done.stdout
    assert program("--engine", "m.onnx", "--input", "x.npy").returncode in (65, 66)


def test_inspect_truncated_onnx_model_does_not_run(program: Program, models: Path, tmp_path: Path) -> None:
    """Its graph ends behind its end."""
    data = (models / "classifier.onnx").read_bytes()
    (tmp_path / "m.onnx").write_bytes(data[: len(data) // 2])
    done = program("inspect", "--json", "m.onnx")
    assert done.returncode == 65, done
    assert done.line["verdict"]["runs"] == "no"


def test_inspect_prints_json_for_every_file_whatever_is_in_it(program: Program, heads: Path, tmp_path: Path) -> None:
    """NaN and 1e999 of an Ultralytics text are no JSON; a file that cannot be read has its line, too."""
    text = b'{"task": "detect", "a": NaN, "b": 1e999}'
    data = struct.pack("<i", len(text)) + text + (heads / "conv_native.plan").read_bytes()
    (tmp_path / "m.engine").write_bytes(data)
    done = program("inspect", "--json", "m.engine", "no.plan")
    assert [line.get("ultralytics", {}).get("a") for line in done.lines] == [None, None]
    assert "NaN" not in done.stdout
    assert "Infinity" not in done.stdout
    assert done.lines[1]["error"]["why"] == "no such file or directory"


def test_inspect_refuses_flags_that_it_would_not_heed(program: Program, heads: Path) -> None:
    """Signatures are checked of what is loaded; an engine of the environment does not stand in the way."""
    plan = heads / "conv_native.plan"
    assert program("inspect", plan, "--require-signature").returncode == 64
    assert program("inspect", plan, env={"EDGEAPP_ENGINE": "other.plan"}).returncode == 0
