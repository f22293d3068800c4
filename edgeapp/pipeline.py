"""Walks the sentence: source -> preprocess -> infer -> postprocess -> sinks."""

from __future__ import annotations

import heapq
import math
import sys
import threading
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Protocol

from edgeapp import errors
from edgeapp.records import Frame, Letterbox, Picture, Result, Tensors, TensorSpec
from edgeapp.stopping import HANDLER_S, Stop
from edgeapp.workers import Workers


class Engine(Protocol):
    """Runs a model: on a GPU with TensorRT, or on the CPU with ONNX Runtime."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def infer(self, tensors: Tensors) -> Tensors:
        """Run once; the arrays that come back belong to the caller."""
        ...

    def enter(self) -> None:
        """Make the engine usable on this thread, which until `leave` is the only one to run it."""
        ...

    def leave(self) -> None: ...


class Source(Protocol):
    """Lists frames, and reads them on any thread."""

    def __iter__(self) -> Iterator[Frame | None] | Iterator[Frame]:
        """Frames that are not read yet; None where the next one lets itself be waited for."""
        ...

    def read(self, frame: Frame, /) -> None:
        """Fill in picture, tensors or error."""
        ...

    def is_tensors(self, frame: Frame, /) -> bool: ...


class Runner(Protocol):
    """Runs batches of pictures, up to `depth` of them at a time.

    `launch` and `finish` are called by one thread, between the engine's `enter` and `leave` (those of a pipeline that
    infers side by side by any); the others by any, each for another host or place.

    Attributes:
        hosts: memory of one batch each, from its first picture until its results are written.
        takes_pixels: `fill` wants a picture's pixels rather than the picture.
    """

    depth: int

    @property
    def takes_pixels(self) -> bool: ...

    @property
    def hosts(self) -> Sequence[Any]: ...

    def begin(self, host: Any) -> None:
        """Make all its places unused."""
        ...

    def fill(self, host: Any, place: int, image: Picture, picture_wh: tuple[int, int]) -> Letterbox:
        """Put a picture into its place of the batch."""
        ...

    def launch(self, host: Any, count: int) -> None:
        """Start the inference of the first `count` places."""
        ...

    def finish(self, host: Any) -> None:
        """Wait for it."""
        ...

    def outputs(self, host: Any) -> Tensors:
        """What came out; valid until the host is filled again."""
        ...


class Sink(Protocol):
    def write(self, result: Result) -> None: ...


Postprocess = Callable[[Tensors, Sequence[tuple[int, Letterbox, Result]]], None]
"""See edgeapp.postprocess."""

STAGES = ("decode", "preprocess", "infer", "postprocess")

BATCHES_PER_HOST = 3
"""Batches under way for each that has memory for pictures: those that are done wait for slower ones before them."""

MOST_TIMES = 1 << 16
"""Times that are kept of a stage: a run over a list can last for months."""


@dataclass
class Summary:
    """What a run did.

    Attributes:
        failures: the exit code of every input that failed.
        times_ms: of each stage, of the latest inputs that did not fail, in no order. Numbers that are kept so long
            would lie between those that are not, as objects, and keep their memory; an array that is moved would, too.
    """

    done: int = 0
    failures: list[int] = field(default_factory=list)
    wall_s: float = 0.0
    times_ms: dict[str, array[float]] = field(default_factory=lambda: {stage: array("d") for stage in STAGES})

    @property
    def exit_code(self) -> int:
        """0, 1 when some inputs failed, or the code that says why all of them did."""
        if not self.failures:
            return 0
        if self.done:
            return 1
        return self.failures[0] if len(set(self.failures)) == 1 else errors.DataError.exit_code

    def add(self, result: Result) -> None:
        """Count an input."""
        if result.error is not None:
            self.failures.append(result.error.exit_code)
            return
        self.done += 1
        for stage, ms in result.times_ms.items():
            times = self.times_ms[stage]
            if len(times) < MOST_TIMES:
                times.append(ms)
            else:
                times[self.done % MOST_TIMES] = ms

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


def drawers(decoders: int) -> int:
    """Threads that read outputs, and as many that draw, beside some that decode."""
    return max(1, decoders // 2)


def percentile(values: Sequence[float], p: float) -> float:
    """The p-th percentile by the nearest-rank method."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * p / 100) - 1)]


@dataclass
class Batch:
    """Neighbouring inputs on their way: pictures that share an inference, or one set of tensors.

    Attributes:
        number: counts from 0; results are written in this order.
        host: where the pictures are put, until their results are known.
        results: one for each input; a picture's place in the batch is its place here.
        letterboxes: of each place; None where there is no picture.
        unread, undrawn: how many inputs are still to be read, and to be drawn on.
        launched_s: when the inference was started, seconds of time.perf_counter.
    """

    number: int
    host: Any
    results: list[Result]
    letterboxes: list[Letterbox | None]
    unread: int
    undrawn: int = 0
    launched_s: float = 0.0

    def fail(self, error: errors.EdgeappError) -> None:
        """Give every input that had no error this one."""
        for result in self.results:
            result.error = result.error or error


class Grouping:
    """Neighbouring frames that become one batch: full, or all that are there at the moment; tensors alone.

    Args:
        size: of a full batch.
        alone: whether a frame is a batch of its own.
    """

    def __init__(self, size: int, alone: Callable[[Frame], bool]) -> None:
        self._size = size
        self._alone = alone
        self._group: list[Frame] = []

    @property
    def begun(self) -> bool:
        """Whether there is a batch that is not full."""
        return bool(self._group)

    def add(self, frame: Frame) -> Iterator[list[Frame]]:
        """The batches that are whole now."""
        alone = self._alone(frame)
        if alone:
            yield from self.rest()
        self._group.append(frame)
        if alone or len(self._group) == self._size:
            yield from self.rest()

    def rest(self) -> Iterator[list[Frame]]:
        """The batch that is not full, if there is one."""
        group, self._group = self._group, []
        if group:
            yield group


class Pipeline:
    """The steps of one run, each on threads of its own: read and decode, infer, postprocess; the caller's writes.

    Results come out in the order of the source. While none of the runner's hosts is free, or too many batches wait for
    an earlier one to be written, nothing more is read.

    Args:
        engine: as opened.
        runner: runs pictures on it; None when the engine takes only tensors.
        postprocess: fills in a Result.
        sinks: called by the caller's thread.
        task: what results are called.
        batch: pictures per inference.
        decoders: threads that read and decode.
        keep_pictures: the sinks want them.
        draw: makes `Result.drawn` of a picture, on threads of its own; None where nobody wants that.
        side_by_side: the engine and the runner take batches from several threads at a time; then each of `decoders`
            threads does all for its own batch, and nothing is handed over (tests/results.md).
        finished: told every result that was written.
        stop: ends the run when a signal comes.
    """

    def __init__(
        self,
        engine: Engine,
        runner: Runner | None,
        postprocess: Postprocess,
        sinks: Sequence[Sink],
        *,
        task: str,
        batch: int,
        decoders: int,
        keep_pictures: bool,
        finished: Callable[[Result], None],
        stop: Stop,
        draw: Callable[[Result], None] | None = None,
        side_by_side: bool = False,
    ) -> None:
        self._engine = engine
        self._runner = runner
        self._postprocess = postprocess
        self._sinks = sinks
        self._task = task
        self._batch = batch
        self._decoders = decoders
        self._keep_pictures = keep_pictures
        self._draw = draw
        self._finished = finished
        self._stop = stop
        self._side_by_side = side_by_side
        self._lock = threading.Lock()
        self._free: SimpleQueue[Any] = SimpleQueue()
        self._unwritten: SimpleQueue[bool] = SimpleQueue()
        self._ready: SimpleQueue[Batch | None] = SimpleQueue()
        self._waiting: list[tuple[int, Batch]] = []
        self._events: SimpleQueue[Batch | BaseException | int | None] = SimpleQueue()
        self._last_finish_s = 0.0
        self.summary = Summary()

    def run(self, source: Source) -> Summary:
        """Work through the source.

        Raises:
            EdgeappError: the engine, the source or a sink failed for good, or the system refuses threads.
            Stopped: a signal came.
        """
        if not self._side_by_side:
            # A thread that wants the interpreter gets it after this time, not after 5 ms (measured: the stall of the
            # thread that feeds the GPU falls from 5.3 to 0.8 ms).
            sys.setswitchinterval(5e-4)
        started = time.perf_counter()
        hosts = self._runner.hosts if self._runner else range(self._decoders + 2)
        for host in hosts:
            self._free.put(host)
        for _ in range(len(hosts) * (1 if self._keep_pictures or self._draw else BATCHES_PER_HOST)):
            self._unwritten.put(True)
        batches = self._batches(source)
        steps: list[tuple[str, Callable[[], None]]] = [("signals", self._watch)]
        if self._side_by_side:
            steps += [("batches", lambda: self._do_batches(source, batches))] * self._decoders
        else:
            steps += [("source", lambda: self._read(source, batches)), ("engine", self._infer)]
        decoders, posters = (0, 0) if self._side_by_side else (self._decoders, drawers(self._decoders))
        self._decoding = Workers(decoders, "decode", partial(self._guarded, self._decode))
        # Beside threads that decode, a thread that reads outputs waits for the interpreter's lock most of its time.
        self._posting = Workers(posters, "postprocess", partial(self._guarded, self._post))
        self._drawing = Workers(posters if self._draw else 0, "draw", partial(self._guarded, self._draw_one))
        threads = [threading.Thread(target=self._guarded, args=(step,), name=name, daemon=True) for name, step in steps]
        try:
            self._decoding.start()
            self._posting.start()
            self._drawing.start()
            for thread in threads:
                thread.start()
            self._write_all()
        except RuntimeError as error:
            if "start new thread" not in str(error):
                raise
            raise errors.SystemRefusedError(
                f"cannot start {self._decoders} threads that decode",
                f"the system refuses more: {error}",
                "use fewer, --decode-threads, or raise the limit: ulimit -u, pids.max",
            ) from error
        finally:
            self._end(threads)
            self.summary.wall_s = time.perf_counter() - started
        return self.summary

    def _end(self, threads: Sequence[threading.Thread]) -> None:
        """Bring all threads to their end; what is still on its way is given up."""
        with self._stop.waking():
            self._unwritten.put(False)
            self._free.put(None)
            self._decoding.end()
            self._ready.put(None)
            for thread in threads:
                if thread.ident is not None:  # it was started
                    thread.join()
            self._posting.end()
            self._drawing.end()

    def _guarded(self, step: Callable[..., None], *arguments: Any) -> None:
        """Have the caller's thread raise what a thread or a task raises."""
        try:
            step(*arguments)
        except BaseException as error:
            self._events.put(error)

    def _watch(self) -> None:
        """Wake the caller's thread when a signal comes, until it has seen it."""
        self._stop.wait()
        while not self._stop.asked():
            self._events.put(None)
            time.sleep(HANDLER_S)
        self._events.put(None)

    # --- reading: one thread lists, some decode ----------------------------------------------------------------------

    def _batches(self, source: Source) -> Iterator[Batch]:
        """Batches with memory of their own, as it becomes free, and the end of the source for the caller's thread.

        The memory comes first: a live source then gives the newest frames that there are when they can be worked on.
        """
        count, groups = 0, self._groups(source)
        while self._unwritten.get() and (host := self._free.get()) is not None:
            if (frames := next(groups, None)) is None:
                break
            if self._runner is not None:
                self._runner.begin(host)
            results = [Result(frame, self._task) for frame in frames]
            yield Batch(count, host, results, [None] * len(frames), len(frames))
            count += 1
        else:
            return  # given up
        self._events.put(count)

    def _read(self, source: Source, batches: Iterator[Batch]) -> None:
        for batch in batches:
            for place in range(len(batch.results)):
                self._decoding.put(source, batch, place)

    def _groups(self, source: Source) -> Iterator[list[Frame]]:
        grouping = Grouping(self._batch, lambda frame: self._runner is None or source.is_tensors(frame))
        for frame in source:
            yield from grouping.rest() if frame is None else grouping.add(frame)
        yield from grouping.rest()

    def _decode(self, source: Source, batch: Batch, place: int) -> None:
        """Read an input; who reads the last one of a batch sends it on."""
        self._take_in(source, batch, place)
        with self._lock:
            batch.unread -= 1
            last = batch.unread == 0
        if last:
            self._ready.put(batch)

    def _take_in(self, source: Source, batch: Batch, place: int) -> None:
        result = batch.results[place]
        frame = result.frame
        started = time.perf_counter()
        source.read(frame)
        if frame.error is not None:
            result.error = frame.error
        elif frame.image is not None and self._runner is None:
            result.error = errors.DataError(
                f"cannot feed a picture to {'; '.join(map(str, self._engine.inputs))}",
                "a picture fits only one input tensor of four dimensions",
                "give tensors: .npy, or .npz with the input tensors' names as keys",
            )
        elif frame.image is not None and self._runner is not None:
            decoded = time.perf_counter()
            assert frame.picture_wh is not None
            batch.letterboxes[place] = self._runner.fill(batch.host, place, frame.image, frame.picture_wh)
            result.times_ms["decode"] = (decoded - started) * 1e3
            result.times_ms["preprocess"] = (time.perf_counter() - decoded) * 1e3
            if not self._keep_pictures and self._draw is None:
                frame.image = None
        else:
            result.times_ms["decode"] = (time.perf_counter() - started) * 1e3

    # --- side by side: threads that do all ---------------------------------------------------------------------------

    def _do_batches(self, source: Source, batches: Iterator[Batch]) -> None:
        while True:
            with self._lock:
                batch = next(batches, None)
            if batch is None:
                return
            for place in range(len(batch.results)):
                self._take_in(source, batch, place)
            if self._stop.asked():
                return
            if any(result.frame.tensors is not None for result in batch.results):
                self._infer_tensors(batch)
            elif self._launch(batch):
                share = (time.perf_counter() - batch.launched_s) * 1e3 / len(batch.results)
                for result in batch.results:
                    result.times_ms["infer"] = share
                self._post(batch)
            else:
                self._known(batch)

    # --- the thread of the engine ------------------------------------------------------------------------------------

    def _infer(self) -> None:
        """Keep the engine busy: start a batch whenever there is one, wait only while there is none."""
        self._engine.enter()
        try:
            flying: deque[Batch] = deque()
            depth = self._runner.depth if self._runner else 1
            while True:
                batch = None
                if len(flying) < depth:
                    try:
                        batch = self._oldest(block=not flying)
                    except Empty:
                        self._land(flying.popleft())
                        continue
                    if batch is None or self._stop.asked():
                        break
                    if any(result.frame.tensors is not None for result in batch.results):
                        while flying:
                            self._land(flying.popleft())
                        self._infer_tensors(batch)
                    elif self._launch(batch):
                        flying.append(batch)
                    else:
                        self._known(batch)
                else:
                    self._land(flying.popleft())
            while flying and self._runner is not None:
                self._runner.finish(flying.popleft().host)
        finally:
            self._engine.leave()

    def _oldest(self, *, block: bool) -> Batch | None:
        """The earliest of the batches that are read, as results are written in order; None when the run has to end.

        Raises:
            Empty: there is none, and `block` is False.
        """
        while not self._waiting or not self._ready.empty():
            batch = self._ready.get(block=block and not self._waiting)
            if batch is None:
                return None
            heapq.heappush(self._waiting, (batch.number, batch))
        return heapq.heappop(self._waiting)[1]

    def _launch(self, batch: Batch) -> bool:
        """Start a batch of pictures; False when none could be read, or the engine refuses them."""
        if self._runner is None or not any(batch.letterboxes):
            return False
        batch.launched_s = time.perf_counter()
        try:
            self._runner.launch(batch.host, len(batch.results))
        except errors.DataError as error:
            batch.fail(error)
            return False
        return True

    def _land(self, batch: Batch) -> None:
        """Wait for the oldest batch, and have its outputs read; its time is from when it had the engine for itself."""
        assert self._runner is not None
        self._runner.finish(batch.host)
        now = time.perf_counter()
        share = (now - max(batch.launched_s, self._last_finish_s)) * 1e3 / len(batch.results)
        self._last_finish_s = now
        for result in batch.results:
            result.times_ms["infer"] = share
        self._posting.put(batch)

    def _post(self, batch: Batch) -> None:
        assert self._runner is not None
        outputs = self._runner.outputs(batch.host)
        shown = [
            (place, letterbox, result)
            for place, (result, letterbox) in enumerate(zip(batch.results, batch.letterboxes, strict=True))
            if letterbox is not None
        ]
        started = time.perf_counter()
        self._postprocess(outputs, shown)
        share = (time.perf_counter() - started) * 1e3 / len(shown)
        for _, _, result in shown:
            result.times_ms["postprocess"] = share
        if self._draw is None:
            self._known(batch)
            return
        self._free.put(batch.host)
        batch.undrawn = len(shown)
        for _, _, result in shown:
            if self._side_by_side:
                self._draw_on(result)
            else:
                self._drawing.put(batch, result)
        if self._side_by_side:
            self._events.put(batch)

    def _draw_on(self, result: Result) -> None:
        assert self._draw is not None
        self._draw(result)
        if not self._keep_pictures:
            result.frame.image = None

    def _draw_one(self, batch: Batch, result: Result) -> None:
        """Draw on a picture; who draws the last one of a batch sends it on."""
        self._draw_on(result)
        with self._lock:
            batch.undrawn -= 1
            last = batch.undrawn == 0
        if last:
            self._events.put(batch)

    def _known(self, batch: Batch) -> None:
        """All results of a batch are there: its memory may be used again."""
        self._free.put(batch.host)
        self._events.put(batch)

    def _infer_tensors(self, batch: Batch) -> None:
        """Tensors in, every output tensor out."""
        (result,) = batch.results
        tensors = result.frame.tensors
        assert tensors is not None
        result.task = "raw"
        started = time.perf_counter()
        try:
            result.tensors = self._engine.infer(self._named(tensors))
        except errors.DataError as error:
            result.error = error
        result.times_ms["infer"] = (time.perf_counter() - started) * 1e3
        result.frame.tensors = None  # the outputs wait for their turn, the inputs need not
        self._known(batch)

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

    # --- the caller's thread -----------------------------------------------------------------------------------------

    def _write_all(self) -> None:
        """Write the batches in order, as they are done."""
        done: dict[int, Batch] = {}
        following, count = 0, None
        while following != count:
            event = self._events.get()
            self._stop.check()
            if isinstance(event, BaseException):
                raise event
            if isinstance(event, int):
                count = event
            elif event is not None:
                done[event.number] = event
            while batch := done.pop(following, None):
                for result in batch.results:
                    self._write(result)
                self._unwritten.put(True)
                following += 1

    def _write(self, result: Result) -> None:
        self._stop.check()
        for sink in self._sinks:
            sink.write(result)
        self.summary.add(result)
        self._finished(result)
