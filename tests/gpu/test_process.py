"""How the process starts and ends on a machine with a GPU."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from gpu.compare import PLANS
from support import Program

STARTS = int(os.environ.get("EDGEAPP_STARTS", "200"))


@pytest.fixture
def tensor(tmp_path: Path) -> Path:
    path = tmp_path / "x.npy"
    np.save(path, np.ones((1, 3, 32, 32), np.float32))
    return path


def start_long(edgeapp: Program, tensor: Path) -> subprocess.Popen[bytes]:
    """A run that would last for minutes."""
    listed = edgeapp.cwd / "list.txt"
    listed.write_text(f"{tensor}\n" * 1_000_000)
    with listed.open("rb") as file, (edgeapp.cwd / "r.jsonl").open("wb") as results:
        return edgeapp.start(
            "--engine",
            PLANS / "conv.plan",
            "--input",
            "-",
            stdin=file,
            stdout=results,
            stderr=subprocess.PIPE,
        )


def test_context_exists_before_tensorrt(edgeapp: Program, tensor: Path) -> None:
    """The start takes its steps in the order of the bootstrap and undoes them in reverse."""
    done = edgeapp("--engine", PLANS / "conv.plan", "--input", tensor, "--startup-trace", "--debug")
    assert done.returncode == 0, done
    steps = [line.split(" ms  ")[1] for line in done.stderr.splitlines() if " ms  " in line]
    beside = ("find libcuda.so.1, cuInit", "primary context", "driver", "TensorRT and PyCUDA")
    assert steps[-4:] == [f"beside: {name}" for name in beside]
    assert steps.index("find libcuda.so.1") < steps.index("cuInit") < steps.index("count the devices")
    assert steps.index("push a CUDA context") < steps.index("load the TensorRT library")
    assert steps.index("load the TensorRT library") < steps.index("import the bindings") < steps.index("runtime")
    undone = [line.removeprefix("undo: ") for line in done.stderr.splitlines() if line.startswith("undo: ")]
    assert undone == ["buffers", "execution context", "engine", "runtime", "CUDA context"]


@pytest.mark.timeout(900)
def test_many_starts_end_well(edgeapp: Program, tensor: Path) -> None:
    """Every start ends with 0 and says nothing of contexts or aborts."""
    bad = []
    for i in range(STARTS):
        done = edgeapp("--engine", PLANS / "conv.plan", "--input", tensor, "--quiet")
        if done.returncode != 0 or done.stderr:
            bad.append((i, done))
    assert not bad, bad[:3]


def assert_ends(edgeapp: Program, tensor: Path, child: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """The process ends by the signal, without an abort, and the next one works."""
    with child:
        child.send_signal(number)
        try:
            _, talk = child.communicate(timeout=30)
        finally:
            child.kill()
    assert child.returncode == -number, talk
    assert b"context stack" not in talk
    assert b"Traceback" not in talk
    again = edgeapp("--engine", PLANS / "conv.plan", "--input", tensor)
    assert again.returncode == 0, again


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("after_s", [0.2, 0.6, 1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.5])
def test_signal_at_any_time_ends_the_process(
    edgeapp: Program, tensor: Path, number: signal.Signals, after_s: float
) -> None:
    """While Python starts, in the bootstrap or in the work."""
    child = start_long(edgeapp, tensor)
    time.sleep(after_s)
    assert_ends(edgeapp, tensor, child, number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
def test_signal_in_the_middle_of_the_work_ends_the_process(
    edgeapp: Program, tensor: Path, number: signal.Signals
) -> None:
    """When results come already."""
    child = start_long(edgeapp, tensor)
    deadline = time.monotonic() + 60
    while not (edgeapp.cwd / "r.jsonl").stat().st_size:
        assert time.monotonic() < deadline, "no result came"
        time.sleep(0.05)
    assert_ends(edgeapp, tensor, child, number)


def test_no_visible_gpu_is_told(edgeapp: Program, tensor: Path) -> None:
    """CUDA_VISIBLE_DEVICES= hides the GPU: exit 69, no crash, no silent CPU."""
    done = edgeapp("--engine", PLANS / "conv.plan", "--input", tensor, env={"CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 69, done
    assert "cuInit failed with CUDA error 100" in done.stderr
    assert "CUDA_VISIBLE_DEVICES" in done.stderr


def test_wrong_device_number_is_told(edgeapp: Program, tensor: Path) -> None:
    """--device beyond the last GPU: exit 69."""
    done = edgeapp("--engine", PLANS / "conv.plan", "--input", tensor, "--device", "99")
    assert done.returncode == 69, done


def test_gpu_memory_is_given_back(edgeapp: Program, tensor: Path) -> None:
    """After a run, killed or not, the GPU has as much free memory as before."""

    def used() -> int:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "-i", "0"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        return int(done.stdout)

    before = used()
    for number in (signal.SIGTERM, signal.SIGKILL):
        with start_long(edgeapp, tensor) as child:
            time.sleep(2.5)
            child.send_signal(number)
            child.communicate(timeout=30)
    time.sleep(1)
    assert used() <= before + 16
