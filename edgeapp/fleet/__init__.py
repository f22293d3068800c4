"""Several GPUs for one run: a process for each, one list of inputs, one output in their order.

The parent lists the inputs, hands out groups of them, and writes the results. A worker is a child that runs the usual
pipeline between a source and a sink that lead to the parent, so pictures are decoded there. What a worker had in hand
when it died goes to the others, an input at a time and with nothing beside it: one that ends a second process is known.
"""

from __future__ import annotations

import heapq
import os
import pickle
import time
from collections.abc import Callable, Sequence
from typing import IO

from edgeapp import errors, forking, paths
from edgeapp.fleet.desk import Chorus, Desk, Ready, Relay
from edgeapp.fleet.listing import Listing
from edgeapp.log import Talk
from edgeapp.pipeline import Grouping, Sink, Source, Summary
from edgeapp.records import Frame, Result
from edgeapp.stopping import Stop

__all__ = ["Chorus", "Desk", "Fleet", "Ready", "Relay"]

MOST_HELD_BYTES = min(256 << 20, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 16)
"""Of results that wait for an earlier one; above that only the worker that has the earliest is heard."""

MOST_AHEAD = 1 << 16
"""Inputs that are handed out and not written yet."""

MOST_DEATHS = 2
"""An input that was in hand in so many processes that died is not tried again."""

MOST_VAIN_STARTS = 3
"""A GPU is started anew so often without a single result in between."""

END_S = 10.0
"""A worker that has nothing to do any more gives back its GPU within this time."""

LOST_FIX = "its inputs go to the other GPUs; look at dmesg and edgeapp doctor"


class Worker:
    """A GPU and its process, seen from the parent.

    Attributes:
        process: None when it is lost.
        ready: None until it is.
        groups: what it has in hand: number of the first input -> frames.
        done: how many inputs it has answered.
        vain_starts: how often it was started anew since its last result.
        error: why it was lost.
    """

    def __init__(self, device: int) -> None:
        self.device = device
        self.process: forking.Process | None = None
        self.ready: Ready | None = None
        self.groups: dict[int, list[Frame]] = {}
        self.done = 0
        self.vain_starts = 0
        self.error: errors.EdgeappError | None = None

    def give(self, first: int, frames: list[Frame]) -> None:
        assert self.process is not None
        self.groups[first] = frames
        self.process.link.post(pickle.dumps(frames, pickle.HIGHEST_PROTOCOL), first)
        self.process.link.flush()

    def end(self) -> None:
        """Whatever it does."""
        if self.process is not None:
            self.process.end()
        self.process = self.ready = None


class Fleet:
    """The parent's side; a context manager, in which the workers live.

    Args:
        devices: GPU numbers.
        work: what a worker does: bring up the model on `desk.device`, `desk.begin`, run its pipeline on the desk.
    """

    def __init__(self, devices: Sequence[int], work: Callable[[Desk], None], *, stop: Stop, talk: Talk) -> None:
        self.workers = [Worker(device) for device in devices]
        self.summary = Summary()
        self._work = work
        self._stop = stop
        self._talk = talk
        self._chorus = Chorus(talk)
        self._unsaid: list[Worker] = []
        self._ending = False
        self._listing: Listing | None = None
        self._total: int | None = None
        self._written = 0
        self._done: dict[int, bytes | bytearray] = {}
        self._held_bytes = 0
        self._deaths: dict[int, list[Worker]] = {}
        self._suspects: list[tuple[int, Frame]] = []

    def __enter__(self) -> Fleet:
        try:
            for worker in self.workers:
                self._start(worker)
        except BaseException:
            self._end_all()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._let_end()
        finally:
            self._end_all()

    def first_ready(self) -> Ready:
        """Wait until a worker can begin.

        Raises:
            EdgeappError: none can. Stopped: a signal came.
        """
        while True:
            for worker in self.workers:
                if worker.ready is not None:
                    return worker.ready
            self._step()

    def run(
        self,
        source: Source,
        sinks: Sequence[Sink],
        finished: Callable[[Result], None],
        *,
        total: int | None,
        stream: IO[bytes] | None,
        patience_s: float,
    ) -> Summary:
        """Work through the source.

        Args:
            source: yields None at once when its stream is silent.
            finished: told every result that was written.
            total: how many inputs there will be, None if nobody knows.
            stream, patience_s: see Listing.

        Raises:
            GpuLostError: all workers are lost. EdgeappError: the source or a sink failed for good.
            Stopped: a signal came.
        """
        started = time.perf_counter()
        ready = self.first_ready()
        grouping = Grouping(ready.batch, lambda frame: not ready.pictures or source.is_tensors(frame))
        self._listing = Listing(source, grouping, stream, patience_s)
        self._total = total
        try:
            while True:
                self._hand_out(self._listing)
                if self._listing.ended and self._written == self._listing.count:
                    return self.summary
                self._step()
                self._write(sinks, finished)
        finally:
            self.summary.wall_s = time.perf_counter() - started

    @property
    def shares(self) -> str:
        """Who did how much: "GPU 0: 512, GPU 1: 488"."""
        return ", ".join(
            f"GPU {worker.device}: {worker.done}{', then lost' if worker.error else ''}" for worker in self.workers
        )

    # --- what workers send --------------------------------------------------------------------------------------------

    def _start(self, worker: Worker) -> None:
        worker.process = forking.start(
            lambda link: self._work(Desk(worker.device, link, self._talk)),
            f"GPU {worker.device}",
            [other.process for other in self.workers if other.process is not None],
        )
        worker.error = None

    def _step(self, timeout_s: float | None = None) -> None:
        """Wait until something happens, and see to it."""
        alive = [worker for worker in self.workers if worker.process is not None]
        if not alive:
            raise self._all_lost()
        readers = [worker.process.printed for worker in alive if worker.process]
        readers += [worker.process.link.fileno() for worker in self._audible(alive) if worker.process]
        writers = [w.process.link.fileno() for w in alive if w.process and w.process.link.unsent]
        streams: list[int] = []
        if self._listing is not None and not self._ending:
            streams, timeout_s = self._listing.waits_for()
        ready = self._stop.wait_any(readers + streams, writers, timeout_s)
        if self._listing is not None and any(stream in ready for stream in streams):
            self._listing.heard()
        for worker in self.workers:
            process = worker.process
            if process is not None and any(descriptor in ready for descriptor in process.descriptors):
                self._hear(worker, process)

    def _audible(self, alive: list[Worker]) -> list[Worker]:
        """Whose results there is room for: everyone's, or those of the worker that has the earliest in hand."""
        if self._held_bytes < MOST_HELD_BYTES:
            return alive
        owners = [
            worker
            for worker in alive
            if any(first <= self._written < first + len(frames) for first, frames in worker.groups.items())
        ]
        return owners or alive

    def _hear(self, worker: Worker, process: forking.Process) -> None:
        for line in process.read_printed():
            self._chorus(process, forking.DETAIL, line)
        process.link.flush()
        try:
            messages = process.link.receive()
        except EOFError:
            how, why = process.ending()
            self._lose(worker, errors.GpuLostError(f"process {how}", why, LOST_FIX))
            return
        for number, data in messages:
            if number != forking.NO_NUMBER:
                self._take(worker, number, data)
                continue
            kind, value = pickle.loads(data)
            if kind == forking.FAILED:
                self._lose(worker, value)
                return
            if kind == forking.READY:
                worker.ready = value
                self._say_losses()
            else:
                self._chorus(process, kind, value)

    def _take(self, worker: Worker, first: int, data: bytearray) -> None:
        """The results of a group."""
        frames = worker.groups.pop(first)
        self._hold(first, data)
        self._deaths.pop(first, None)
        worker.done += len(frames)
        worker.vain_starts = 0

    def _hold(self, first: int, data: bytes | bytearray) -> None:
        self._done[first] = data
        self._held_bytes += len(data)

    # --- workers that are lost ----------------------------------------------------------------------------------------

    def _lose(self, worker: Worker, error: errors.EdgeappError) -> None:
        """A worker has ended: others get what it had in hand."""
        worker.end()
        if self._ending:
            self._talk.detail(f"GPU {worker.device}: {error}")
            return
        worker.error = error
        self._unsaid.append(worker)
        groups, worker.groups = worker.groups, {}
        for first, frames in groups.items():
            for number, frame in enumerate(frames, first):
                self._suspect(worker, number, frame)
        if self._listing is not None or any(other.ready for other in self.workers):
            self._say_losses()

    def _suspect(self, worker: Worker, number: int, frame: Frame) -> None:
        """An input that was in hand in a process that died: it is tried alone, but no third time."""
        deaths = self._deaths.setdefault(number, [])
        deaths.append(worker)
        if len(deaths) < MOST_DEATHS:
            heapq.heappush(self._suspects, (number, frame))
            return
        del self._deaths[number]
        self._say_losses()
        assert worker.error is not None
        error = errors.DataError(
            f"cannot run {paths.printable(frame.path)}: it was in hand when the processes of {_gpus(deaths)} died",
            worker.error.what,
            "leave it out; edgeapp --debug with it alone tells more",
        )
        self._hold(number, pickle.dumps([Result(frame, "", error=error)], pickle.HIGHEST_PROTOCOL))
        for other in deaths:  # it was the input, not the GPU
            self._start_again(other)

    def _start_again(self, worker: Worker) -> None:
        if worker.process is not None or worker.vain_starts == MOST_VAIN_STARTS:
            return
        worker.vain_starts += 1
        try:
            self._start(worker)
        except errors.EdgeappError as error:
            worker.error = error
            self._unsaid.append(worker)
            return
        self._talk.note(f"edgeapp: GPU {worker.device} is started again")

    def _say_losses(self) -> None:
        """Tell which GPUs are lost, when others go on; else the caller tells."""
        for worker in self._unsaid:
            error = worker.error
            if error is not None and any(other.process for other in self.workers):
                self._talk.error(type(error)(f"GPU {worker.device} is lost: {error.what}", error.why, error.fix))
        self._unsaid.clear()

    def _all_lost(self) -> errors.EdgeappError:
        """Why nothing can go on: the one reason that all have, or each one's."""
        found = [(worker, worker.error) for worker in self.workers if worker.error is not None]
        first = found[0][1]
        if self._listing is None and all(str(error) == str(first) for _, error in found):
            return first
        same = all(type(error) is type(first) for _, error in found)
        return (type(first) if same else errors.GpuLostError)(
            "no GPU is left",
            "; ".join(f"GPU {worker.device}: {error.what}" for worker, error in found),
            first.fix if same and first.fix != LOST_FIX else "look at dmesg and edgeapp doctor, then start again",
        )

    # --- handing out and writing --------------------------------------------------------------------------------------

    def _hand_out(self, listing: Listing) -> None:
        """Give to whoever has least, until all have enough."""
        ready = [worker for worker in self.workers if worker.ready is not None]
        while ready:
            worker = min(ready, key=lambda worker: len(worker.groups))
            group = self._next(worker, listing)
            if group is None:
                ready.remove(worker)
            else:
                worker.give(*group)

    def _next(self, worker: Worker, listing: Listing) -> tuple[int, list[Frame]] | None:
        """What a worker gets next; None for now."""
        if self._suspects or any(first in self._deaths for first in worker.groups):
            if worker.groups or not self._suspects:
                return None
            number, frame = heapq.heappop(self._suspects)
            return number, [frame]
        if len(worker.groups) >= self._limit(worker) or listing.count - self._written >= MOST_AHEAD:
            return None
        return listing.next()

    def _limit(self, worker: Worker) -> int:
        """Groups that a worker may have in hand: enough to be busy, near the end no more than its share."""
        assert worker.ready is not None
        if self._total is None:
            return worker.ready.depth
        alive = sum(other.process is not None for other in self.workers)
        return min(worker.ready.depth, max(1, -(-(self._total - self._written) // (worker.ready.batch * alive))))

    def _write(self, sinks: Sequence[Sink], finished: Callable[[Result], None]) -> None:
        """Write what is next in the order of the inputs."""
        while (data := self._done.pop(self._written, None)) is not None:
            self._held_bytes -= len(data)
            results: list[Result] = pickle.loads(data)
            for result in results:
                self._stop.check()
                for sink in sinks:
                    sink.write(result)
                self.summary.add(result)
                finished(result)
            self._written += len(results)

    # --- the end ------------------------------------------------------------------------------------------------------

    def _let_end(self) -> None:
        """Have the workers give back their GPUs."""
        self._ending = True
        for worker in self.workers:
            if worker.process is not None and worker.ready is not None:
                worker.process.link.post(b"")
                worker.process.link.flush()
            else:
                worker.end()
        until_s = time.monotonic() + END_S
        while any(worker.process for worker in self.workers) and time.monotonic() < until_s:
            self._step(until_s - time.monotonic())

    def _end_all(self) -> None:
        alive = [worker for worker in self.workers if worker.process is not None]
        for worker in alive:
            assert worker.process is not None
            worker.process.kill()
        for worker in alive:
            worker.end()


def _gpus(workers: Sequence[Worker]) -> str:
    return " and ".join(f"GPU {worker.device}" for worker in workers)
