"""A camera's stream through the GPU: python -m pytest tests/gpu/test_live.py -s"""

from __future__ import annotations

import json
import re
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from campaigning import percentile
from gpu.compare import DEMO, unpacked
from support import Program

PICTURES = 600


def labels(line: dict[str, Any]) -> list[str]:
    return [found["label"] for found in line["detections"]]


@pytest.mark.parametrize("a_second", [60, 0], ids=["60 a second", "as fast as the pipe takes them"])
def test_live_stream(edgeapp: Program, tmp_path: Path, a_second: int) -> None:
    """The newest first and in order, the others counted, the last one never left out; each result is as with a file."""
    engine = unpacked(DEMO / "model.plan.xz", tmp_path)
    files = sorted(DEMO.glob("*.jpg"))
    words = ("--engine", engine, "--model-card", DEMO / "model.json")
    wanted = edgeapp(*words, "--input", "-", input="".join(f"{path}\n" for path in files).encode()).lines
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with edgeapp.start(*words, "--input", "mjpeg:-", "--live", **pipes) as child:
        numbers, left_out, ages_s = followed(child, files, wanted, a_second)
    print(f"\nlive, {a_second or 'unlimited'} a second: {len(numbers)} done, {left_out} left out, "
          f"median {percentile(ages_s[10:], 50) * 1e3:.1f} ms after it was written")  # fmt: skip
    assert numbers == sorted(set(numbers))
    assert numbers[-1] == PICTURES
    assert len(numbers) + left_out == PICTURES
    assert a_second == 0 or left_out < PICTURES // 2  # those that came while it started


def followed(
    child: subprocess.Popen[bytes], files: list[Path], wanted: list[dict[str, Any]], a_second: int
) -> tuple[list[int], int, list[float]]:
    """Feed a stream and read its results: their numbers, how many were left out, seconds after each was written."""
    given_s: list[float] = []

    def feed() -> None:
        assert child.stdin is not None
        for number in range(PICTURES):
            child.stdin.write(files[number % len(files)].read_bytes())
            child.stdin.flush()
            given_s.append(time.monotonic())
            time.sleep(1 / a_second if a_second else 0)
        child.stdin.close()

    feeder = threading.Thread(target=feed)
    feeder.start()
    assert child.stdout is not None
    assert child.stderr is not None
    numbers, ages_s = [], []
    for line in child.stdout:
        result, now_s = json.loads(line), time.monotonic()
        numbers.append(int(result["path"][6:12]))
        number = numbers[-1] - 1
        ages_s.append(now_s - given_s[min(number, len(given_s) - 1)])
        assert labels(result) == labels(wanted[number % len(files)]), result
    feeder.join()
    said = child.stderr.read().decode()
    assert child.wait(60) == 0, said
    told = re.search(r"(\d+) left out for newer ones", said)
    return numbers, int(told[1]) if told else 0, ages_s
