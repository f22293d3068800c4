"""The bench's findings in words: a table, and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

STEPS = {
    "total": "one batch, in and out",
    "pictures": "one batch of pictures",
    "pictures_loaded": "while others decode",
    "enqueue": "enqueue (host)",
    "h2d": "copy in (H2D)",
    "compute": "compute (GPU)",
    "d2h": "copy out (D2H)",
}
LAUNCH_BOUND = 0.8
"""Enqueueing that takes more than this share of computing holds the GPU up; trtexec warns at the same."""


def report(found: dict[str, Any]) -> Iterator[str]:
    """The text of the findings, line by line."""
    yield f"{found['engine']}: batch {found['batch']}, {', '.join(found['inputs'])}\n"
    yield f"{found['device']}\n\n"
    floored = any("of_floor" in mode for mode in found["modes"])
    yield f"{'':46s}{'images/s':>10s}{'ms/batch':>10s}" + (f"{'of floor':>10s}" if floored else "") + "  CPU ms/image\n"
    for mode in found["modes"]:
        share = f"{mode['of_floor']:10.3f}" if floored else ""
        name = f"{mode['mode']:9s} {mode['what']}"
        numbers = f"{mode['images_per_s']:10.1f}{mode['ms_per_batch']:10.3f}{share}{mode['cpu_ms_per_image']:14.3f}"
        yield f"{name:46s}{numbers}\n"
    for mode in found["modes"]:
        if stages := mode.get("stages_ms"):
            text = ", ".join(f"{name} {ms['p50']:.2f}/{ms['p99']:.2f}" for name, ms in stages.items())
            yield f"{mode['mode']}, ms of a picture, p50/p99: {text}\n"
    if latency := found.get("latency_ms"):
        columns = list(latency["total"])
        yield f"\n{'latency, ms':24s}" + "".join(f"{name:>10s}" for name in columns) + "\n"
        for step in filter(latency.__contains__, STEPS):
            yield f"{STEPS[step]:24s}" + "".join(f"{latency[step][name]:10.4f}" for name in columns) + "\n"
    yield "\n"
    if "preprocessing_ms" in found:
        yield f"preprocessing on the GPU: {found['preprocessing_ms']:.4f} ms a batch\n"
    if "graph" in found:
        yield f"CUDA graph: {found['graph']}\n"
    for mode in found["modes"]:
        if "gpu_thread_cpu_us_per_batch" in mode:
            us = mode["gpu_thread_cpu_us_per_batch"]
            launch = mode["launch_cpu_us_per_batch"]
            yield f"{mode['mode']}: {us:.1f} us of CPU a batch in the GPU's thread, {launch:.1f} to launch\n"
        if "joules_per_image" in mode:
            yield f"{mode['mode']}: {mode['joules_per_image'] * 1e3:.2f} mJ an image\n"
    yield f"memory: host {found['host_memory_bytes'] / 1e6:.0f} MB"
    yield f", GPU {found['device_memory_bytes'] / 1e6:.0f} MB\n" if "device_memory_bytes" in found else "\n"
    if found.get("clock_mhz"):
        yield f"GPU now: {found['clock_mhz']} MHz, {found['temperature_c']} C\n"
    if found.get("failed_inputs"):
        yield f"{found['failed_inputs']} inputs failed\n"
    for line in found["advice"]:
        yield f"-> {line}\n"


def advice(found: dict[str, Any]) -> list[str]:
    """What holds the model up here, and what would help."""
    modes = {mode["mode"]: mode for mode in found["modes"]}
    lines = []
    latency = found.get("latency_ms")
    if latency:
        compute, enqueue = latency["compute"]["mean"], latency["enqueue"]["mean"]
        if not found["graph"].endswith("nodes"):
            lines.append(f"no CUDA graph: {found['graph']}")
            if enqueue > LAUNCH_BOUND * compute:
                lines.append(f"launch-bound: enqueueing takes {enqueue:.3f} ms, computing {compute:.3f} ms")
        copy = max(found["copies_ms"])
        if copy > compute:
            lines.append(
                f"copy-bound: a batch's copies take {copy:.3f} ms, computing {compute:.3f} ms; "
                "an engine with uint8 input, or with NMS inside, copies less"
            )
    best = modes.get("copies") or modes.get("engine")
    files = modes.get("files")
    if files and best and files["images_per_s"] < 0.9 * best["images_per_s"]:
        slowest = max(files["stages_ms"], key=lambda stage: files["stages_ms"][stage]["p50"])
        lines.append(
            f"{slowest}-bound: {found['decode_threads']} threads on {found['cores']} cores bring "
            f"{files['images_per_s']:.0f} pictures/s from the files, the engine takes {best['images_per_s']:.0f}/s"
        )
    if found.get("slowed_by"):
        lines.append(f"the GPU is slowed down: {', '.join(found['slowed_by'])}")
    return lines
