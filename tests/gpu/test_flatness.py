"""A million pictures through the frozen file: nothing grows.

EDGEAPP_GPU_FRAMES=1000000 python -m pytest tests/gpu/test_flatness.py -s        (default: 60,000)
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import time
from pathlib import Path

from campaigning import Usage, growth
from gpu.compare import DEMO, unpacked
from gpu.provoking import Memory
from support import Program

FRAMES = int(os.environ.get("EDGEAPP_GPU_FRAMES", "60000"))
SAMPLE_S = 0.5
MOST_BYTES_A_FRAME = 1.0
"""A kilobyte for 1,000 frames."""

ALLOCATORS_BYTES = 2 << 20
"""A short run cannot tell so much from what allocators hold back."""


def test_nothing_grows(edgeapp: Program, tmp_path: Path) -> None:
    """Through the whole pipeline: detector, GPU preprocessing, filter, boxes read; host and device memory."""
    engine = unpacked(DEMO / "model.plan.xz", tmp_path)
    files = sorted(DEMO.glob("*.jpg"))
    names = "".join(f"{files[i % len(files)]}\n" for i in range(1000)).encode()
    words = ["--engine", engine, "--model-card", DEMO / "model.json", "--batch", "8", "--input", "-", "--quiet"]
    child = edgeapp.start(*words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert child.stdin is not None
    samples, taken_s, given, began_s, memory = [], 0.0, 0, time.monotonic(), Memory()
    while given < FRAMES:
        child.stdin.write(names)
        given += 1000
        if given > FRAMES // 10 and time.monotonic() - taken_s > SAMPLE_S:
            used = Usage.of(child.pid)
            on_gpu = (memory.kb(child.pid) or 0) << 10
            samples.append((given, used.rss_kb << 10, on_gpu, used.descriptors, used.threads))
            taken_s = time.monotonic()
    child.communicate(timeout=600)
    assert child.returncode == 0
    seconds = time.monotonic() - began_s
    frames, host, device, descriptors, threads = (list(column) for column in zip(*samples, strict=True))
    span = frames[-1] - frames[0]
    told = {
        "frames": given, "a second": round(given / seconds), "samples": len(samples),
        "host MB": round(statistics.median(host) / 1e6), "host bytes a frame": round(growth(host) / span, 3),
        "GPU MB": round(statistics.median(device) / 1e6), "GPU bytes a frame": round(growth(device) / span, 3),
        "descriptors": sorted(set(descriptors)), "threads": sorted(set(threads)),
        "host MB by tenths": [n >> 20 for n in host[:: max(1, len(host) // 10)]],
    }  # fmt: skip
    print("\n" + json.dumps(told))
    for values in (host, device):
        assert growth(values) <= MOST_BYTES_A_FRAME * span + ALLOCATORS_BYTES, told
    assert growth(descriptors) < 1, told
    assert growth(threads) < 1, told
