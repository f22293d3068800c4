"""Walks the sentence: source -> preprocess -> infer -> postprocess -> sinks."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeapp import errors
from edgeapp.records import Frame, Letterbox, Result, Tensors, TensorSpec


class Engine(Protocol):
    """Runs a model: on a GPU with TensorRT, or on the CPU with ONNX Runtime."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def infer(self, tensors: Tensors) -> Tensors:
        """Run once; the arrays that come back belong to the caller."""
        ...


class Sink(Protocol):
    def write(self, result: Result) -> None: ...


Preprocess = Callable[[Any], tuple[NDArray[Any], Letterbox]]
Postprocess = Callable[[Tensors, int, Letterbox, Result], None]

STAGES = ("decode", "preprocess", "infer", "postprocess")


@dataclass
class Summary:
    """What a run did; `failures` holds the exit code of every input that failed."""

    done: int = 0
    failures: list[int] = field(default_factory=list)
    wall_s: float = 0.0
    times_ms: dict[str, list[float]] = field(default_factory=lambda: {stage: [] for stage in STAGES})

    @property
    def exit_code(self) -> int:
        """0, 1 when some inputs failed, or the code that says why all of them did."""
        if not self.failures:
            return 0
        if self.done:
            return 1
        return self.failures[0] if len(set(self.failures)) == 1 else errors.DataError.exit_code

    def __str__(self) -> str:
        count = self.done + len(self.failures)
        text = f"{count} input{'' if count == 1 else 's'} in {self.wall_s:.2f} s"
        if self.wall_s > 0:
            text += f", {count / self.wall_s:.1f}/s"
        if self.failures:
            text += f", {len(self.failures)} failed"
        stages = [
            f"{stage} {percentile(times, 50):.1f}/{percentile(times, 99):.1f}"
            for stage, times in self.times_ms.items()
            if times
        ]
        return text + (f"; ms p50/p99: {', '.join(stages)}" if stages else "")


def percentile(values: Sequence[float], p: float) -> float:
    """The p-th percentile by the nearest-rank method."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * p / 100) - 1)]


class Pipeline:
    """The steps of one run.

    Args:
        engine: as opened.
        preprocess: picture -> one frame's input; None when the engine takes only tensors.
        postprocess: fills in a Result.
        task: what results are called.
        batch: pictures per inference.
        least: places that an inference has at least; those after the last picture stay zero.
        finished: told every result that was written.
        check_stop: raises Stopped when the run has to end.
    """

    def __init__(
        self,
        engine: Engine,
        preprocess: Preprocess | None,
        postprocess: Postprocess,
        sinks: Sequence[Sink],
        *,
        task: str,
        batch: int,
        least: int,
        finished: Callable[[Result], None],
        check_stop: Callable[[], None],
    ) -> None:
        self._engine = engine
        self._preprocess = preprocess
        self._postprocess = postprocess
        self._sinks = sinks
        self._task = task
        self._batch = batch
        self._least = least
        self._finished = finished
        self._check_stop = check_stop
        self.summary = Summary()

    def run(self, source: Iterable[Frame]) -> Summary:
        """Work through the source; results come out in its order."""
        started = time.perf_counter()
        waiting: list[Frame] = []
        try:
            for frame in source:
                self._check_stop()
                if frame.image is not None:
                    waiting.append(frame)
                    if len(waiting) < self._batch:
                        continue
                    self._pictures(waiting)
                    waiting = []
                else:
                    self._pictures(waiting)
                    waiting = []
                    self._other(frame)
            self._pictures(waiting)
        finally:
            self.summary.wall_s = time.perf_counter() - started
        return self.summary

    def _pictures(self, frames: Sequence[Frame]) -> None:
        """One inference over a batch of pictures; an error of the engine fails each of them."""
        if not frames:
            return
        results = [Result(frame, self._task) for frame in frames]
        try:
            if self._preprocess is None:
                raise errors.DataError(
                    f"cannot feed a picture to {'; '.join(map(str, self._engine.inputs))}",
                    "a picture fits only one input tensor of four dimensions",
                    "give tensors: .npy, or .npz with the input tensors' names as keys",
                )
            letterboxes = self._infer(frames, results)
            for place, (result, letterbox) in enumerate(zip(results, letterboxes, strict=True)):
                started = time.perf_counter()
                self._postprocess(self._outputs, place, letterbox, result)
                result.times_ms["postprocess"] = (time.perf_counter() - started) * 1e3
        except errors.DataError as error:
            for result in results:
                result.error = error
        for result in results:
            self._write(result)

    def _infer(self, frames: Sequence[Frame], results: Sequence[Result]) -> list[Letterbox]:
        assert self._preprocess is not None
        letterboxes = []
        tensor: NDArray[Any] | None = None
        for place, frame in enumerate(frames):
            started = time.perf_counter()
            assert frame.image is not None
            one, letterbox = self._preprocess(frame.image)
            if tensor is None:
                tensor = np.zeros((max(len(frames), self._least), *one.shape), one.dtype)
            tensor[place] = one
            letterboxes.append(letterbox)
            results[place].times_ms["decode"] = frame.decode_ms
            results[place].times_ms["preprocess"] = (time.perf_counter() - started) * 1e3
        assert tensor is not None
        started = time.perf_counter()
        self._outputs = self._engine.infer({self._engine.inputs[0].name: tensor})
        share = (time.perf_counter() - started) * 1e3 / len(frames)
        for result in results:
            result.times_ms["infer"] = share
        return letterboxes

    def _other(self, frame: Frame) -> None:
        """Tensors in, every output tensor out; or the error of a frame that could not be read."""
        result = Result(frame, "raw", error=frame.error)
        if frame.tensors is not None:
            started = time.perf_counter()
            try:
                result.tensors = self._engine.infer(self._named(frame.tensors))
            except errors.DataError as error:
                result.error = error
            result.times_ms = {
                "decode": frame.decode_ms,
                "infer": (time.perf_counter() - started) * 1e3,
            }
        self._write(result)

    def _named(self, tensors: Tensors) -> Tensors:
        """A .npy file has no names: its array is for the only input."""
        if set(tensors) != {""}:
            return tensors
        if len(self._engine.inputs) != 1:
            raise errors.DataError(
                "a .npy file fits only engines with one input tensor",
                f"this engine has {'; '.join(map(str, self._engine.inputs))}",
                "write a .npz file with these names as keys: numpy.savez",
            )
        return {self._engine.inputs[0].name: tensors[""]}

    def _write(self, result: Result) -> None:
        for sink in self._sinks:
            sink.write(result)
        if result.error is not None:
            self.summary.failures.append(result.error.exit_code)
        else:
            self.summary.done += 1
            for stage, ms in result.times_ms.items():
                self.summary.times_ms[stage].append(ms)
        self._finished(result)
