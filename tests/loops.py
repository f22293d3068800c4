"""Loops around ONNX Runtime as they are written by hand, and edgeapp's pipeline: runs for bench_pipeline.py."""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

KINDS = {"sequential": 0, "ahead, 1 thread": 1, "ahead, 2 threads": 2, "whole, 2 threads": 2}
ORT = {"1": (1, True), "2": (2, False), "2 spinning": (2, True)}
"""Threads of an inference, and whether they wait by turning, as is ONNX Runtime's default."""

Way = tuple[str, str, str]
"""Of a loop: its kind, ONNX Runtime's threads, whose steps."""

Prepare = Callable[[str], tuple[Any, Any]]
"""Path -> (network input of one picture, what `Answer` has to know of it)."""

Answer = Callable[[dict[str, Any], Any], dict[str, Any]]
"""(outputs, what `Prepare` kept) -> the line of JSON."""


# --- the steps of a loop ----------------------------------------------------------------------------------------------


def card_of(model: str, session: Any) -> Any:
    from edgeapp import model as cards
    from edgeapp.cpu.engine import CpuEngine

    path = cards.find_card(model)
    assert path is not None
    specs = [CpuEngine._spec(arg, is_input=False) for arg in session.get_outputs()]
    inputs = [CpuEngine._spec(arg, is_input=True) for arg in session.get_inputs()]
    return cards.complete(cards.read_card(path), inputs, specs)[0], specs


def own_steps(model: str, session: Any) -> tuple[Prepare, Answer]:
    """Those of edgeapp, with all that makes them fast."""
    import numpy as np

    from edgeapp import memory
    from edgeapp.postprocess import make_postprocess
    from edgeapp.preprocess import Preprocessor
    from edgeapp.records import Frame, Result
    from edgeapp.sinks.jsonl import to_json
    from edgeapp.sources.files import read_frame

    memory.keep_freed()
    card, specs = card_of(model, session)
    preprocessor = Preprocessor(card, "float32")
    postprocess, _ = make_postprocess(card, specs)

    def prepare(path: str) -> tuple[Any, Any]:
        frame = Frame(path)
        read_frame(frame, 10**9, fit=preprocessor.wanted_wh)
        assert frame.image is not None
        assert frame.picture_wh is not None
        tensor = np.empty((1, *preprocessor.shape), np.float32)
        letterbox = preprocessor.fill(frame.image, frame.picture_wh, tensor[0])
        frame.image = None
        return tensor, (frame, letterbox)

    def answer(outputs: dict[str, Any], kept: Any) -> dict[str, Any]:
        frame, letterbox = kept
        result = Result(frame, card.task)
        postprocess(outputs, [(0, letterbox, result)])
        return to_json(result)

    return prepare, answer


def plain_steps(model: str, session: Any) -> tuple[Prepare, Answer]:
    """Pillow and NumPy as a good script uses them, written without edgeapp."""
    import numpy as np
    from PIL import Image

    card = json.loads(Path(model).with_suffix(".json").read_text())
    (width, height), labels = card["size_wh"], card["labels"]
    fill = np.float32(card.get("pad_value", 114) / 255)

    def prepare(path: str) -> tuple[Any, Any]:
        image = Image.open(path)
        wh = image.size
        scale = min(width / wh[0], height / wh[1])
        inner = (round(wh[0] * scale), round(wh[1] * scale)) if card["resize"] == "letterbox" else (width, height)
        image.draft("RGB", inner)
        pixels = np.asarray(image.convert("RGB").resize(inner, Image.Resampling.BILINEAR))
        left, top = (width - inner[0]) // 2, (height - inner[1]) // 2
        tensor = np.full((1, 3, height, width), fill, np.float32)
        live = tensor[0, :, top : top + inner[1], left : left + inner[0]]
        np.multiply(pixels.transpose(2, 0, 1), np.float32(1 / 255), out=live)
        return tensor, (path, wh, (inner[0] / wh[0], inner[1] / wh[1]), (left, top))

    def classify(scores: Any) -> list[dict[str, Any]]:
        odds = np.exp(scores - scores.max())
        odds /= odds.sum()
        best = np.argsort(-odds)[: card["top_k"]].tolist()
        return [{"class_id": i, "label": labels[i], "score": round(float(odds[i]), 4)} for i in best]

    def detect(head: Any, wh: Any, scale: Any, offset: Any) -> list[dict[str, Any]]:
        chosen = head[4:].max(0) >= card["score_threshold"]
        rows = head[:, chosen]
        scores, classes = rows[4:].max(0), rows[4:].argmax(0)
        boxes = np.concatenate((rows[:2] - rows[2:4] / 2, rows[:2] + rows[2:4] / 2)).T
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
        order, found = np.argsort(-scores, kind="stable"), []
        while order.size:
            i, order = order[0], order[1:]
            x0, y0, x1, y1 = ((float(n) - offset[axis % 2]) / scale[axis % 2] for axis, n in enumerate(boxes[i]))
            corners = (max(x0, 0.0), max(y0, 0.0), min(x1, wh[0]), min(y1, wh[1]))
            found.append({
                "class_id": int(classes[i]), "label": labels[classes[i]], "score": round(float(scores[i]), 4),
                "box_xyxy": [round(n, 2) for n in corners],
            })  # fmt: skip
            low, high = np.maximum(boxes[i, :2], boxes[order, :2]), np.minimum(boxes[i, 2:], boxes[order, 2:])
            shared = np.clip(high - low, 0, None).prod(1)
            alike = shared / (areas[i] + areas[order] - shared) > card["iou_threshold"]
            order = order[~(alike & (classes[order] == classes[i]))]
        return found

    def answer(outputs: dict[str, Any], kept: Any) -> dict[str, Any]:
        path, wh, scale, offset = kept
        (array,) = outputs.values()
        line = {"path": path, "size_wh": list(wh), "task": card["task"]}
        if card["task"] == "classify":
            return {**line, "classes": classify(array[0])}
        return {**line, "detections": detect(array[0], wh, scale, offset)}

    return prepare, answer


STEPS = {"edgeapp's": own_steps, "plain": plain_steps}


# --- the runs, each in a process of its own ---------------------------------------------------------------------------


def loop(model: str, files: list[str], output: str, kind: str, threads: str, steps: str) -> list[float]:
    """Wall and CPU seconds of a loop written by hand."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, spins = ORT[threads]
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spins)))
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    name, names = session.get_inputs()[0].name, [output.name for output in session.get_outputs()]
    prepare, answer = STEPS[steps](model, session)

    def infer(prepared: tuple[Any, Any]) -> str:
        tensor, kept = prepared
        outputs = dict(zip(names, session.run(None, {name: tensor}), strict=True))
        return json.dumps(answer(outputs, kept)) + "\n"

    def lines() -> Iterator[str]:
        if kind == "sequential":
            yield from (infer(prepare(path)) for path in files)
            return
        with ThreadPoolExecutor(KINDS[kind]) as pool:
            if kind.startswith("ahead"):
                yield from (infer(prepared) for prepared in in_order(pool, prepare, files))
            else:
                yield from in_order(pool, lambda path: infer(prepare(path)), files)

    with open(output, "w", encoding="utf-8") as file:
        started, cpu = time.perf_counter(), time.process_time()
        file.writelines(lines())
        file.flush()
        return [time.perf_counter() - started, time.process_time() - cpu]


def in_order(
    pool: ThreadPoolExecutor, call: Callable[[str], Any], files: Iterable[str], ahead: int = 6
) -> Iterator[Any]:
    """What `call` gives for each file, so many of them under way at most."""
    waiting: deque[Future[Any]] = deque()
    for path in files:
        waiting.append(pool.submit(call, path))
        if len(waiting) == ahead:
            yield waiting.popleft().result()
    yield from (future.result() for future in waiting)


def edgeapp(model: str, files: list[str], output: str, *words: str) -> list[float]:
    """Wall and CPU seconds of the pipeline inside the command `run`."""
    from edgeapp import cli, pipeline
    from edgeapp.commands.run import run
    from edgeapp.log import Talk
    from edgeapp.stopping import Stop

    inner, times = pipeline.Pipeline.run, []

    def timed(self: Any, source: Any) -> Any:
        started, cpu = time.perf_counter(), time.process_time()
        summary = inner(self, source)
        times.extend((time.perf_counter() - started, time.process_time() - cpu))
        return summary

    pipeline.Pipeline.run = timed  # type: ignore[method-assign]
    _, settings = cli.parse(["--engine", model, "--output", output, *words, "--input", *files])
    assert run(settings, Stop(), Talk(quiet=True)) == 0
    return times
