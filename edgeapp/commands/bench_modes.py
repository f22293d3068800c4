"""What `edgeapp bench` measures: each mode in blocks, turn about."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from edgeapp import cores, errors, paths
from edgeapp.commands.bench_sources import Again, Decoding, Memory
from edgeapp.commands.bench_wanted import MODES, Wanted
from edgeapp.commands.opening import Model, open_ring
from edgeapp.log import Talk
from edgeapp.pipeline import Pipeline, Runner, Source, percentile
from edgeapp.records import Frame, Picture
from edgeapp.settings import Settings
from edgeapp.sources import FileSource
from edgeapp.stopping import Stop
from edgeapp.tensors import noise

if TYPE_CHECKING:
    from edgeapp.gpu.meter import Meter, Pace, Steps

COPIERS = 4
"""Threads of the mode `frames`, where nothing is decoded: more of them only get into each other's way."""

MOST_PICTURES = 64
"""Pictures that are kept decoded in memory for the mode `frames`."""


@dataclass
class Row:
    """The blocks of one mode, a number for each.

    Attributes:
        batch: pictures in a batch.
        ms: milliseconds a batch.
        cpu_ms: CPU milliseconds of the whole process a batch.
        thread_us: CPU microseconds a batch of the thread that feeds the GPU; empty where that is not told.
        launch_us: of them, those of launching; the rest is waiting.
        joules: of the GPU a batch; empty where it does not tell.
        stages_ms: what the pipeline measured of every picture.
    """

    mode: str
    what: str
    batch: int
    run: Callable[[float], Block]
    ms: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)
    thread_us: list[float] = field(default_factory=list)
    launch_us: list[float] = field(default_factory=list)
    joules: list[float] = field(default_factory=list)
    stages_ms: Mapping[str, Sequence[float]] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """Images per second."""
        return self.batch * 1e3 / statistics.median(self.ms)

    def told(self, floor: Row | None) -> dict[str, Any]:
        """As JSON."""
        found: dict[str, Any] = {
            "mode": self.mode,
            "what": self.what,
            "batch": self.batch,
            "images_per_s": self.rate,
            "ms_per_batch": statistics.median(self.ms),
            "blocks_ms": self.ms,
            "cpu_ms_per_image": statistics.median(self.cpu_ms) / self.batch,
        }
        if floor is not None:
            found["of_floor"] = self.rate / floor.rate
        if self.thread_us:
            found["gpu_thread_cpu_us_per_batch"] = statistics.median(self.thread_us)
            found["launch_cpu_us_per_batch"] = statistics.median(self.launch_us)
        if self.joules:
            found["joules_per_image"] = statistics.median(self.joules) / self.batch
        if self.stages_ms:
            found["stages_ms"] = {
                stage: {f"p{p}": percentile(times, p) for p in (50, 99)} for stage, times in self.stages_ms.items()
            }
        return found


@dataclass
class Block:
    """One stretch of work: batches (a part of one counts as such), and the seconds of edgeapp.gpu.meter.Pace."""

    batches: float
    wall_s: float
    thread_s: float = 0.0
    launch_s: float = 0.0


class Modes:
    """All modes of one model.

    Args:
        runner: None when the engine takes no pictures.
        decoders: threads that read and decode.

    Attributes:
        steps: of the batches that ran one at a time; None where they cannot be told.
    """

    def __init__(
        self,
        model: Model,
        runner: Runner | None,
        source: FileSource,
        wanted: Wanted,
        settings: Settings,
        stop: Stop,
        stack: ExitStack,
        *,
        decoders: int,
    ) -> None:
        self._model = model
        self._runner = runner
        self._source = source
        self._wanted = wanted
        self._stop = stop
        self._decoders = decoders
        self._meter: Meter | None = None
        self._power: Power | None = None
        self._decoded: list[tuple[Picture, tuple[int, int]]] = []
        self._failed = 0
        self.steps: Steps | None = None
        self._pixels: Meter | None = None
        engine: Any = model.engine
        if model.preprocess is not None and getattr(engine, "pictures_only", False):
            from edgeapp.gpu.intake import PixelIntake
            from edgeapp.gpu.meter import Meter
            from edgeapp.gpu.ring import Ring

            if isinstance(runner, Ring):
                ring = open_ring(model, model.preprocess, settings, stack, hosts=runner.depth + 1, on_gpu=False)
                self._meter = Meter(ring, engine, model.batch, stop.check)
                stack.callback(self._meter.close)
                self._meter.randomise()
                self._power = Power(engine.driver.bus_id(settings.device))
                if isinstance(runner.intake, PixelIntake):
                    self._pixels = Meter(runner, engine, model.batch, stop.check)
                    stack.callback(self._pixels.close)

    def measure(self, talk: Talk) -> dict[str, Any]:
        """Run all blocks, turn about, then the latencies; gives everything as one object of JSON."""
        rows = self._rows()
        seconds = self._wanted.duration_s / self._wanted.rounds
        with talk.progress(len(rows) * (self._wanted.rounds + 1)) as progress:
            for row in rows:
                if self._wanted.warm_up_ms:
                    row.run(self._wanted.warm_up_ms / 1e3)
                progress.advance()
            for _ in range(self._wanted.rounds):
                for row in rows:
                    self._stop.check()
                    self._block(row, seconds)
                    progress.advance()
        floor = next((row for row in rows if row.mode == "floor"), None)
        found: dict[str, Any] = {
            "device": self._model.engine.name,
            "inputs": [str(spec) for spec in self._model.engine.inputs],
            "batch": self._model.batch,
            "decode_threads": self._decoders,
            "cores": cores.usable(),
            "modes": [row.told(floor) for row in rows],
        }
        if self._meter is not None and floor is not None:
            if self._pixels is not None and self._decoded:
                self._pixels.show(self._decoded)
                found["preprocessing_ms"] = self._pixels.preprocessing()
            found["latency_ms"] = self._latencies(self._meter, seconds)
            found["copies_ms"] = self._meter.copies()
            found["graph"] = self._meter.graph()
            found["device_memory_bytes"] = self._meter.device_bytes()
        found["host_memory_bytes"] = resident_bytes()
        if self._power is not None:
            found.update(self._power.state())
        if self._failed:
            found["failed_inputs"] = self._failed
        return found

    def _block(self, row: Row, seconds: float) -> None:
        joules = self._power.joules() if self._power else None
        cpu_s = time.process_time()
        block = row.run(seconds)
        row.cpu_ms.append((time.process_time() - cpu_s) * 1e3 / block.batches)
        row.ms.append(block.wall_s * 1e3 / block.batches)
        if block.thread_s:
            row.thread_us.append(block.thread_s * 1e6 / block.batches)
            row.launch_us.append(block.launch_s * 1e6 / block.batches)
        if self._power is not None and joules is not None and (now := self._power.joules()) is not None:
            row.joules.append((now - joules) / block.batches)

    def _latencies(self, meter: Meter, seconds: float) -> dict[str, dict[str, float]]:
        """Of batches that run one at a time, and of their steps."""
        self.steps = steps = meter.steps(seconds, self._wanted.iterations)
        times = {
            "total": meter.latency(seconds, self._wanted.iterations),
            "enqueue": steps.enqueue,
            "h2d": steps.h2d,
            "compute": steps.compute,
            "d2h": steps.d2h,
        }
        if self._pixels is not None and self._decoded:
            times["pictures"] = self._pixels.latency(seconds, self._wanted.iterations)
            with Decoding(self._source, self._decoders):
                times["pictures_loaded"] = self._pixels.latency(seconds, self._wanted.iterations)
        return {
            name: {f"p{p:g}": percentile(values, p) for p in self._wanted.percentiles}
            | {"mean": statistics.fmean(values), "min": min(values), "max": max(values)}
            for name, values in times.items()
        }

    # --- the modes ----------------------------------------------------------------------------------------------------

    def _rows(self) -> list[Row]:
        """What is to be measured, in the order of the table."""
        batch = self._model.batch
        modes = self._wanted.modes or (MODES if self._wanted.compare else MODES[:-1])
        rows = []
        if (meter := self._meter) is not None:
            if "engine" in modes or "copies" in modes:
                rows.append(Row("floor", "back to back, by the GPU's clock", batch, _of(meter.floor)))
            if "engine" in modes:
                loop = _of(lambda seconds: meter.loop(seconds, copies=False))
                rows.append(Row("engine", "through the loop, without copies", batch, loop))
            if "copies" in modes:
                loop = _of(lambda seconds: meter.loop(seconds, copies=True))
                rows.append(Row("copies", "with copies in and out", batch, loop))
                bus = _of(lambda seconds: meter.loop(seconds, copies=True, computes=False))
                rows.append(Row("bus", "copies in and out, nothing computed", batch, bus))
        elif "engine" in modes or "copies" in modes:
            alone = ", on one core" if self._model.side_by_side else ""
            rows.append(Row("engine", f"one batch after the other{alone}", batch, self._infer))
        if self._source.paths and self._runner is not None:
            if self._pixels is not None and "pixels" in modes:
                pixels = self._pixels
                pixels.show(self._pictures())
                rows.append(Row("floor+", "with preprocessing, by its clock", batch, _of(pixels.floor)))
                loop = _of(lambda seconds: pixels.loop(seconds, copies=True))
                rows.append(Row("pixels", "pictures with copies in and out", batch, loop))
            if "frames" in modes:
                rows.append(self.frames())
            if "files" in modes:
                row = Row("files", "files, end to end", batch, self._infer)
                rows.append(self._through(row, lambda until: Again(self._source, until), self._decoders))
            if "tutorial" in modes:
                rows.append(Row("tutorial", "the tutorials' loop", 1, self._tutorial))
        if not rows:
            raise errors.UsageError(
                f"--mode {' '.join(modes)} measures nothing here",
                "there are no pictures, or the engine takes none",
                "name pictures with --input",
            )
        return rows

    def frames(self) -> Row:
        """The mode `frames`, for an engine that takes pictures."""
        row = Row("frames", "decoded pictures, through the pipeline", self._model.batch, self._infer)
        few = self._decoders if self._model.side_by_side else min(self._decoders, COPIERS)
        return self._through(row, lambda until: Memory(self._pictures(), until), few)

    def _infer(self, seconds: float) -> Block:
        """Engines without a ring: whole runs, copies included."""
        tensors = self._tensors()
        done, started = 0, time.perf_counter()
        while time.perf_counter() < started + seconds or not done:
            self._stop.check()
            self._model.engine.infer(tensors)
            done += 1
        return Block(done, time.perf_counter() - started)

    def _tensors(self) -> dict[str, Any]:
        """Random inputs of the shapes that were asked for, or that the engine was tuned for."""
        given = dict(self._wanted.shapes)
        found: dict[str, Any] = {}
        for spec in self._model.engine.inputs:
            shape = given.get(spec.name) or (spec.profiles[0][1] if spec.profiles else spec.shape)
            if self._runner is not None and spec.name not in given:
                preprocess = self._model.preprocess
                assert preprocess is not None
                shape = (max(self._model.batch, self._model.least), *preprocess.shape)
            values = noise([max(1, n) for n in shape])
            whole = spec.dtype.startswith(("int", "uint", "bool"))
            found[spec.name] = (values * 2).astype(spec.dtype) if whole else values
        return found

    def _through(self, row: Row, source: Callable[[float], Source], decoders: int) -> Row:
        """A mode that is the pipeline with some source; its results go nowhere."""

        def run(seconds: float) -> Block:
            assert self._runner is not None
            endless = source(time.perf_counter() + seconds)
            pipeline = Pipeline(
                self._model.engine,
                self._runner,
                self._model.postprocess,
                [],
                task=self._model.card.task,
                batch=self._model.batch,
                decoders=decoders,
                keep_pictures=False,
                finished=lambda _: None,
                stop=self._stop,
                side_by_side=self._model.side_by_side,
            )
            summary = pipeline.run(endless)
            self._failed += len(summary.failures)
            if not summary.done:
                raise errors.DataError(
                    "no picture could be run", "each of them failed", "run them without bench to see why"
                )
            row.stages_ms = summary.times_ms
            return Block(summary.done / self._model.batch, summary.wall_s)

        row.run = run
        return row

    def _pictures(self) -> list[tuple[Picture, tuple[int, int]]]:
        """Some of the input's pictures, decoded once.

        Raises:
            EdgeappError: none of them can be read.
        """
        error: errors.EdgeappError = errors.DataError("there are no pictures", "", "name some with --input")
        for frame in self._source if not self._decoded else ():
            if frame is None or self._source.is_tensors(frame):
                continue
            self._source.read(frame)
            if frame.image is not None and frame.picture_wh is not None:
                self._decoded.append((frame.image, frame.picture_wh))
            error = frame.error or error
            if len(self._decoded) == MOST_PICTURES:
                break
        if not self._decoded:
            raise error
        return self._decoded

    def _tutorial(self, seconds: float) -> Block:
        """Pillow decode and resize, float32 in NumPy, one picture at a time, wait for each."""
        engine: Any = self._model.engine
        preprocess, card = self._model.preprocess, self._model.card
        assert preprocess is not None
        shape = (max(1, self._model.least), *preprocess.shape)
        files = [path for path in self._source.paths if not self._source.is_tensors(Frame(path))]
        mode = "L" if card.color_order == "GRAY" else "RGB"
        with ExitStack() as stack:
            step: Callable[[Any], Any] = lambda tensor: engine.infer({engine.inputs[0].name: tensor})  # noqa: E731
            if self._meter is not None:
                loop = self._meter.tutorial(shape)
                stack.callback(loop.close)
                step = loop.step
            done, started = 0, time.perf_counter()
            while time.perf_counter() < started + seconds or not done:
                self._stop.check()
                file = files[done % len(files)]
                try:
                    with Image.open(file) as picture:
                        image = picture.convert(mode).resize(card.size_wh, Image.Resampling.BILINEAR)
                except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises on damaged files
                    files.remove(file)
                    if not files:
                        what = f"cannot read {paths.printable(file)}"
                        raise errors.DataError(what, str(error), "give a JPEG, PNG, BMP or WebP picture") from error
                    continue
                tensor = (np.asarray(image) / 255.0).astype(np.float32).reshape(*card.size_wh[::-1], -1)
                step(np.broadcast_to(tensor if card.layout == "NHWC" else tensor.transpose(2, 0, 1), shape))
                done += 1
            return Block(done, time.perf_counter() - started)


class Power:
    """What NVML tells of a GPU: its energy, clock and heat.

    Args:
        bus_id: its PCI address.
    """

    def __init__(self, bus_id: str) -> None:
        from edgeapp.gpu.nvml import Nvml

        self._nvml = Nvml.open()
        self._bus_id = bus_id

    def joules(self) -> float | None:
        """Since the driver was loaded; None where it is not told."""
        return self._nvml.joules(self._bus_id) if self._nvml else None

    def state(self) -> dict[str, Any]:
        """Its clock and heat now, and what slows it."""
        if self._nvml is None:
            return {}
        state = self._nvml.state(self._bus_id)
        return {
            "clock_mhz": state.clock_mhz,
            "temperature_c": state.temperature_c,
            "slowed_by": list(state.slowed_by),
        }


def _of(run: Callable[[float], Pace]) -> Callable[[float], Block]:
    """A Meter's measurement as a block."""

    def block(seconds: float) -> Block:
        pace = run(seconds)
        return Block(pace.batches, pace.wall_s, pace.thread_s, pace.launch_s)

    return block


def resident_bytes() -> int:
    """Bytes of this process that lie in memory now."""
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
