"""`edgeapp doctor` with a real driver and real GPUs, the frozen file from outside."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from gpu.compare import PLANS, unpacked
from gpu.conftest import COUNT, capability
from support import ROOT, Outcome, Program

KEYS = set(json.loads((ROOT / "edgeapp/data/doctor.schema.json").read_bytes())["required"])
ENDED_WELL = (0, 1)
"""1 is for warnings: a clock that is not synchronised, a GPU that is too hot."""


def checks_of(done: Outcome) -> dict[str, dict[str, Any]]:
    """The lines by name, each with all keys; a failure has an exit code, nothing else has."""
    found = {line["name"]: line for line in done.lines}
    assert len(found) == len(done.lines), done
    for line in done.lines:
        assert set(line) == KEYS
        assert (line["exit_code"] is not None) == (line["state"] == "failure"), line
    return found


def test_machine_with_a_gpu_has_all_its_lines(edgeapp: Program) -> None:
    """Driver, CUDA, every GPU with name, memory and capability, device nodes; nothing fails."""
    done = edgeapp("doctor", "--json")
    assert done.returncode in ENDED_WELL, done
    assert done.stderr == ""
    found = checks_of(done)
    assert re.search(r"/libcuda\.so", found["driver library"]["found"])
    assert found["driver library"]["state"] == found["CUDA of the driver"]["state"] == found["GPUs"]["state"] == "ok"
    assert re.fullmatch(r"\d+\.\d+", found["CUDA of the driver"]["found"])
    assert found["GPUs"]["found"].startswith(f"{COUNT} visible")
    for number in range(COUNT):
        assert re.search(r"compute capability \d+\.\d.*, [\d.]+ [GM]iB", found[f"GPU {number}"]["found"])
    assert f"compute capability {capability()[0]}.{capability()[1]}" in found["GPU 0"]["found"]
    assert found["device nodes"]["state"] in ("ok", "note"), found["device nodes"]
    assert "lean" in found["TensorRT inside"]["found"]
    assert found["Jetson"]["state"] in ("ok", "skipped")


@pytest.mark.skipif(shutil.which("nvidia-smi") is None, reason="no nvidia-smi to compare with")
def test_gpu_facts_are_those_of_nvidia_smi(edgeapp: Program) -> None:
    """Name and temperature of GPU 0, found by its PCI address; memory that is free is less than all of it."""
    query = "--query-gpu=name,temperature.gpu,memory.total"
    said = subprocess.run(
        ["nvidia-smi", query, "--format=csv,noheader,nounits"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    rows = [row.split(", ") for row in said]
    found = checks_of(edgeapp("doctor", "--json"))
    assert found["GPU 0"]["found"].split(",")[0] in [row[0] for row in rows]
    state = found["GPU 0 state"]["found"]
    degrees = re.search(r"(\d+) °C", state)
    assert degrees is not None
    assert min(abs(int(degrees[1]) - int(row[1])) for row in rows) <= 15
    free = re.search(r"([\d.]+) (GiB|MiB) free", state)
    assert free is not None
    mebibytes = float(free[1]) * (1024 if free[2] == "GiB" else 1)
    assert 0 < mebibytes <= max(int(row[2]) for row in rows) + 1024
    assert re.search(r"persistence mode (on|off)", state)


def test_plan_is_tried_up_to_its_engine(edgeapp: Program) -> None:
    """The whole start in a child: engine and card are lines, and nothing fails."""
    done = edgeapp("doctor", "--json", "--engine", PLANS / "yolov8.plan")
    assert done.returncode in ENDED_WELL, done
    found = checks_of(done)
    assert found["model file"]["found"].endswith("for lean 8.6.0")
    assert found["engine"]["state"] == "ok"
    assert re.match(r"TensorRT .* on .*: I/O tensors 1 in, 1 out, ready in \d+ ms", found["engine"]["found"])
    assert found["card and engine"]["found"].startswith("task detect")


def test_people_read_it_too(edgeapp: Program) -> None:
    """Every line has a mark and a name; the last one counts."""
    done = edgeapp("doctor", "--engine", PLANS / "conv.plan")
    assert done.returncode in ENDED_WELL, done
    assert re.search(r"^ok +engine +TensorRT ", done.stdout, re.MULTILINE)
    assert re.match(r"\d+ checks: \d+ ok", done.stdout.splitlines()[-1])


def test_refused_plan_names_the_step_and_the_reason(edgeapp: Program, tmp_path: Path) -> None:
    """A native plan on the lean runtime: TensorRT's reason in the words of a run, with the step."""
    done = edgeapp("doctor", "--json", "--engine", unpacked(PLANS / "demo_native.plan.xz", tmp_path))
    assert done.returncode == 65, done
    found = checks_of(done)
    assert found["engine"]["state"] == "failure"
    assert found["engine"]["found"].endswith("(in step engine)")
    assert "lean runtime" in found["engine"]["why"]
    assert "--versionCompatible" in found["engine"]["fix"]
    assert found["GPU 0"]["state"] == "ok"


def test_damaged_plan_is_a_line_whatever_tensorrt_does(edgeapp: Program, tmp_path: Path) -> None:
    """The body is zeros behind a good header: refused by its bytes, by TensorRT, or by a crash, it is a failure."""
    data = (PLANS / "conv.plan").read_bytes()
    (tmp_path / "m.plan").write_bytes(data[:200] + bytes(len(data) - 200))
    done = edgeapp("doctor", "--json", "--engine", "m.plan")
    assert done.returncode == 65, done
    found = checks_of(done)
    assert [name for name, line in found.items() if line["state"] == "failure"] in (["model file"], ["engine"])


def test_hidden_gpu_ends_with_69(edgeapp: Program) -> None:
    """CUDA_VISIBLE_DEVICES= : the driver is fine, the GPUs are not; an ONNX model does not mind."""
    done = edgeapp("doctor", "--json", env={"CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 69, done
    found = checks_of(done)
    assert found["driver library"]["state"] == "ok"
    assert "CUDA error 100" in found["GPUs"]["found"]
    assert "CUDA_VISIBLE_DEVICES" in found["GPUs"]["fix"]
    model = ROOT / "edgeapp/data/demo/model.onnx"
    on_cpu = edgeapp("doctor", "--json", "--engine", model, env={"CUDA_VISIBLE_DEVICES": ""})
    assert on_cpu.returncode in ENDED_WELL, on_cpu
    assert checks_of(on_cpu)["GPUs"]["state"] == "note"


def test_device_beyond_the_last_is_a_failure(edgeapp: Program) -> None:
    """All GPUs are shown nevertheless."""
    done = edgeapp("doctor", "--json", "--device", "99")
    assert done.returncode == 69, done
    found = checks_of(done)
    assert found["GPUs"]["wanted"] == "GPU 99"
    assert "GPU 0" in found


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("after_s", [0.1, 0.5, 1.0])
def test_killed_doctor_leaves_no_process(edgeapp: Program, number: signal.Signals, after_s: float) -> None:
    """Whatever step its child is in, that ends with it; the next one finds the GPU as it was."""
    child = edgeapp.start("doctor", "--engine", PLANS / "conv.plan", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        time.sleep(after_s)
        children = Path(f"/proc/{child.pid}/task/{child.pid}/children")
        listed = [int(pid) for pid in children.read_text().split()] if children.exists() else []
        child.send_signal(number)
        child.communicate(timeout=30)
    finally:
        child.kill()
    assert child.returncode in (0, 1, -number)
    deadline = time.monotonic() + 10
    while left := [pid for pid in listed if Path(f"/proc/{pid}/exe").exists()]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)
    assert edgeapp("doctor", "--json").returncode in ENDED_WELL
