"""Images per second of the frozen file beside the loop that TensorRT tutorials teach; prints a table.

    python tests/gpu/bench.py BINARY PLAN INPUT_TENSOR SIZE PICTURES [ROUNDS]

Both work on the same JPEG files with the same plan on the same GPU, turn about (A/B/A ...), and the medians
of ROUNDS rounds count. The tutorials' loop: Pillow decode and resize, float32 in NumPy, page-locked buffers
made once, copy in, execute, copy out, synchronise, one picture at a time; no drawing, no post-processing. The
frozen file does all its work (JSON Lines included) and reports its own rate, without its start.

A second table leaves the pictures out: ready float32 tensors through that loop and through edgeapp's engine.
Needs a Python with PyCUDA and TensorRT lean (./build.sh setup).
"""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from edgeapp import plan
from edgeapp.bootstrap import Trace, bring_up
from edgeapp.gpu.infer import GpuEngine

ENGINE_SECONDS = 1.0


class TutorialLoop:
    """Buffers and one step of the usual loop, on the execution context of an engine that is open."""

    def __init__(self, engine: GpuEngine, batch: int, size: int) -> None:
        import pycuda.driver as cuda

        self.cuda = cuda
        self.context = engine._context
        self.stream = cuda.Stream()
        name = engine.inputs[0].name
        assert self.context.set_input_shape(name, (batch, 3, size, size))
        self.host_in = cuda.pagelocked_empty((batch, 3, size, size), np.float32)
        self.device_in = cuda.mem_alloc(self.host_in.nbytes)
        self.context.set_tensor_address(name, int(self.device_in))
        self.outputs = []
        for spec in engine.outputs:
            host = cuda.pagelocked_empty(tuple(self.context.get_tensor_shape(spec.name)), spec.dtype)
            device = cuda.mem_alloc(host.nbytes)
            self.context.set_tensor_address(spec.name, int(device))
            self.outputs.append((host, device))

    def step(self, tensor: np.ndarray) -> None:
        np.copyto(self.host_in, tensor)
        self.cuda.memcpy_htod_async(self.device_in, self.host_in, self.stream)
        assert self.context.execute_async_v3(self.stream.handle)
        for host, device in self.outputs:
            self.cuda.memcpy_dtoh_async(host, device, self.stream)
        self.stream.synchronize()


def tutorial_pictures(loop: TutorialLoop, files: list[Path], size: int) -> float:
    """Seconds for all files, one at a time."""
    started = time.perf_counter()
    for file in files:
        image = Image.open(file).convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
        tensor = (np.asarray(image) / 255.0).astype(np.float32).transpose(2, 0, 1)[None]
        loop.step(tensor)
    return time.perf_counter() - started


def frozen_pictures(binary: str, engine: str, pictures: str, batch: int) -> float:
    """Seconds that the frozen file says it needed for all files."""
    done = subprocess.run(
        [binary, "--engine", engine, "--input", pictures, "--batch", str(batch), "--output", "/tmp/bench.jsonl"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    match = re.search(r"inputs in ([\d.]+) s", done.stderr)
    assert match, done.stderr
    print(done.stderr.splitlines()[-1], file=sys.stderr)
    return float(match[1])


def rate(step: Callable[[], object], images: int) -> float:
    """Images per second of a step, after a warm-up of a tenth."""
    until = time.perf_counter() + ENGINE_SECONDS / 10
    while time.perf_counter() < until:
        step()
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < ENGINE_SECONDS:
        step()
        count += 1
    return images * count / (time.perf_counter() - started)


def main() -> None:
    binary, engine_file, name, size, pictures = sys.argv[1:6]
    rounds = int(sys.argv[6]) if len(sys.argv) > 6 else 5
    side = int(size)
    files = sorted(Path(pictures).glob("*.jpg"))
    found = plan.identify(engine_file)

    def opened():  # type: ignore[no-untyped-def]
        return bring_up(found, device=0, library=None, detail=lambda _: None, trace=Trace(), check_stop=lambda: None)

    loops: dict[str, list[float]] = {"tutorials' loop": [], "edgeapp, batch 1": [], "edgeapp, batch 8": []}
    for _ in range(rounds):
        with opened() as engine:
            assert engine.inputs[0].name == name
            loop = TutorialLoop(engine, 1, side)
            loops["tutorials' loop"].append(tutorial_pictures(loop, files, side))
            del loop
        loops["edgeapp, batch 1"].append(frozen_pictures(binary, engine_file, pictures, 1))
        loops["edgeapp, batch 8"].append(frozen_pictures(binary, engine_file, pictures, 8))
    base = statistics.median(loops["tutorials' loop"])
    print(f"\n{Path(engine_file).name}, {len(files)} JPEG files, medians of {rounds} rounds\n")
    print("| from files | images/s | share of the tutorials' loop |\n|---|---|---|")
    for what, seconds in loops.items():
        middle = statistics.median(seconds)
        print(f"| {what} | {len(files) / middle:.1f} | {base / middle:.2f} |")

    print("\n| ready float32 tensors, images/s | tutorials' loop | edgeapp's engine | share |\n|---|---|---|---|")
    for batch in (1, 8, 16):
        tensor = np.random.default_rng(0).random((batch, 3, side, side), np.float32)
        ours, theirs = [], []
        for _ in range(rounds):
            with opened() as engine:
                loop = TutorialLoop(engine, batch, side)
                theirs.append(rate(lambda loop=loop, tensor=tensor: loop.step(tensor), batch))
                del loop
            with opened() as engine:
                ours.append(rate(lambda engine=engine, tensor=tensor: engine.infer({name: tensor}), batch))
        a, b = statistics.median(theirs), statistics.median(ours)
        print(f"| batch {batch} | {a:.0f} | {b:.0f} | {b / a:.2f} |")


if __name__ == "__main__":
    main()
