"""Several GPUs share a run of the frozen file; skips on machines with fewer than two."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gpu.compare import DEMO, PLANS, unpacked
from gpu.conftest import COUNT
from support import Program

pytestmark = pytest.mark.skipif(COUNT < 2, reason="fewer than two GPUs here")

SOON_S = 60.0


@pytest.fixture
def demo(tmp_path: Path) -> list[str | Path]:
    """The words for the demo's model and pictures, 100 inputs."""
    plan = unpacked(DEMO / "model.plan.xz", tmp_path)
    return ["--engine", plan, "--model-card", DEMO / "model.json", "--input", *[DEMO] * 20]


def untimed(text: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in text.splitlines()]
    for line in lines:
        line.pop("times_ms", None)
    return lines


def shares(talk: str) -> dict[int, int]:
    return {int(gpu): int(count) for gpu, count in re.findall(r"GPU (\d+): (\d+)", talk.splitlines()[-1])}


def workers(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize("batch", ["1", "4"])
def test_all_gpus_give_what_one_gives(edgeapp: Program, demo: list[str | Path], batch: str, tmp_path: Path) -> None:
    """Line by line, picture by picture; every GPU has its share."""
    alone = edgeapp(*demo, "--batch", batch, "--device", "0", "--save", tmp_path / "one", timeout=120)
    done = edgeapp(*demo, "--batch", batch, "--device", "all", "--save", tmp_path / "all", timeout=120)
    assert (alone.returncode, done.returncode) == (0, 0), done
    assert len(done.lines) == 100
    assert untimed(done.stdout) == untimed(alone.stdout)
    saved = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "all")]
    assert saved[0] == saved[1]
    assert sum(shares(done.stderr).values()) == 100
    assert set(shares(done.stderr)) == set(range(COUNT))


def test_tensors_of_all_gpus_are_those_of_one(edgeapp: Program, tmp_path: Path) -> None:
    """Raw outputs, bit for bit."""
    for i in range(40):
        np.save(tmp_path / f"{i:02d}.npy", np.random.default_rng(i).random((1, 3, 32, 32), np.float32))
    words = ("--engine", PLANS / "conv.plan", "--task", "raw", "--input", tmp_path, "--output")
    for device, name in (("0", "one.npz"), ("1,0", "all.npz")):
        folder = tmp_path / f"by{device}"
        folder.mkdir()
        done = edgeapp(*words, folder / name, "--device", device)
        assert done.returncode == 0, done
    one, both = np.load(tmp_path / "by0" / "one.npz"), np.load(tmp_path / "by1,0" / "all.npz")
    assert list(one) == list(both)
    assert len(list(one)) == 40
    assert all(np.array_equal(one[key], both[key]) for key in one)


def start(edgeapp: Program, tmp_path: Path, count: int) -> subprocess.Popen[bytes]:
    """A run over a list of so many inputs, when its first results are there."""
    np.save(tmp_path / "x.npy", np.ones((1, 3, 32, 32), np.float32))
    (tmp_path / "list").write_text("".join(f"{tmp_path}/x.npy\n" for _ in range(count)))
    with (tmp_path / "list").open("rb") as listed:
        child = edgeapp.start("--engine", PLANS / "conv.plan", "--input", "-", "--output", tmp_path / "r.jsonl",
                              "--device", "all", stdin=listed, stderr=subprocess.PIPE)  # fmt: skip
    deadline = time.monotonic() + SOON_S
    while not (tmp_path / "r.jsonl").exists() or (tmp_path / "r.jsonl").stat().st_size < 100_000:
        assert time.monotonic() < deadline
        assert child.poll() is None
        time.sleep(0.01)
    return child


def test_killed_worker_costs_nothing_but_time(edgeapp: Program, tmp_path: Path) -> None:
    """Every input has its line, once; the GPU is named."""
    with start(edgeapp, tmp_path, 50_000) as child:
        assert len(workers(child.pid)) == COUNT
        os.kill(workers(child.pid)[-1], signal.SIGKILL)
        _, talk = child.communicate(timeout=SOON_S)
    assert child.returncode == 0, talk
    assert f"GPU {COUNT - 1} is lost: process killed by SIGKILL".encode() in talk
    lines = (tmp_path / "r.jsonl").read_text().splitlines()
    assert len(lines) == 50_000
    assert all(json.loads(line)["tensors"] for line in lines)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_signal_ends_all_processes(edgeapp: Program, tmp_path: Path, number: signal.Signals) -> None:
    """And leaves no process and no memory of a GPU in use."""
    with start(edgeapp, tmp_path, 1_000_000) as child:
        pids = workers(child.pid)
        child.send_signal(number)
        _, talk = child.communicate(timeout=SOON_S)
    assert child.returncode == -number, talk
    deadline = time.monotonic() + SOON_S
    while any(Path(f"/proc/{pid}/maps").exists() and Path(f"/proc/{pid}/maps").read_bytes() for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_gpu_that_is_not_there_is_refused(edgeapp: Program, demo: list[str | Path]) -> None:
    """69 before anything is started."""
    done = edgeapp(*demo, "--device", f"0,{COUNT}")
    assert done.returncode == 69, done
    assert f"cannot use GPU {COUNT}" in done.stderr


def test_one_visible_gpu_is_all(edgeapp: Program, demo: list[str | Path]) -> None:
    """--device all is then the usual single process."""
    done = edgeapp(*demo, "--device", "all", env={"CUDA_VISIBLE_DEVICES": "1"}, timeout=120)
    assert done.returncode == 0, done
    assert "GPU 0:" not in done.stderr


@pytest.mark.timeout(300)
def test_bench_of_all_gpus_tells_the_ratio(edgeapp: Program, demo: list[str | Path]) -> None:
    """The goal on an idle machine is 1.9 with two and 3.7 with four; below 1 something is broken."""
    done = edgeapp("bench", *demo, "--batch", "8", "--device", "all", "--json", "--duration", "5", timeout=240)
    assert done.returncode == 0, done
    (found,) = done.lines
    print(json.dumps(found, indent=1))
    assert found["gpus"] == list(range(COUNT))
    assert (len(found["alone"]["blocks"]), len(found["together"]["blocks"])) == (6, 5)
    assert found["ratio"] > 1
