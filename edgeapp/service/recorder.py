"""What came out of each input: on the disk before the input moves to done/ or failed/.

Results are committed in groups: while one is brought to the disk the next comes together, so a slow flash makes the
groups larger and not the service slower than it must be.
"""

from __future__ import annotations

import hashlib
import json
import os
import queue
import threading
import time
from collections.abc import Callable, Container, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import partial
from typing import Any

from edgeapp import errors, paths
from edgeapp.records import Frame, Result
from edgeapp.service.durable import Appended, rename_new, sync_folder
from edgeapp.service.ledger import Ledger
from edgeapp.service.room import NoRoomError, Room
from edgeapp.service.segments import CURRENT, name_after, newest
from edgeapp.service.spool import ERROR_SUFFIX, PICTURE_SUFFIX, RESULT_SUFFIX, Spool, Stamp, dumps
from edgeapp.sinks.jsonl import to_json

MOST_IN_GROUP = 256
MOST_WAITING = 512
MOST_WAITING_BYTES = 128 << 20
"""Results that wait for the disk, and what their pictures and tensors may take: then the engine waits too."""

SEARCHED_BYTES = 8 << 20
"""At the end of the results, for what was written just before the process was killed."""

TRANSIENT = (errors.SystemRefusedError, errors.InputOutputError)
"""Errors that the next attempt may not meet: out of memory or of descriptors, a disk that stumbles."""


@dataclass
class SpoolFrame(Frame):
    """An input of a spool.

    Attributes:
        name: in the watched folder.
        stamp: of the file that was read; None when there was none.
        sha256: of its bytes, hex; "" where it was not read.
        engine_sha256: of the model file that it is for, hex.
        taken_s: when it was taken, seconds of time.perf_counter.
        worn_out: it was begun too often to be begun again.
        probe: no input but one of ours, that shows that all steps work.
        thumbnail: a small JPEG of it, for who looks at the page.
        kept_bytes: what its result keeps in memory until it is recorded, without the small things.
    """

    name: str = ""
    stamp: Stamp | None = None
    sha256: str = ""
    engine_sha256: str = ""
    taken_s: float = 0.0
    worn_out: bool = False
    probe: bool = False
    thumbnail: bytes | None = None
    kept_bytes: int = 0


@dataclass(frozen=True)
class Outcome:
    """What became of an input.

    Attributes:
        kind: done, failed, gone (deleted or replaced meanwhile: nothing is left to do), again (it is begun once more
            later) or probe.
        line: of its result; b"" for one that has none.
        write_s: from when its result came to when it was on the disk.
    """

    result: Result
    frame: SpoolFrame
    kind: str
    line: bytes
    write_s: float


@dataclass(frozen=True)
class Writing:
    """What is written.

    Attributes:
        jsonl: a line for every input into results/results.jsonl.
        json: NAME.json beside each input in done/.
        delete: inputs that are done are deleted, not moved.
        segment_bytes, segment_s: results.jsonl is closed and named by its time when it is so large or old.
        group_s: wait so long for more results before a group is written.
    """

    jsonl: bool = True
    json: bool = False
    delete: bool = False
    segment_bytes: int = 64 << 20
    segment_s: float = 3600.0
    group_s: float = 0.0


@dataclass
class _Item:
    result: Result
    frame: SpoolFrame
    kind: str
    line: bytes = b""
    known: bool = False
    folder: str = ""
    target: str = ""
    sidecars: dict[str, bytes] = field(default_factory=dict)


class Recorder:
    """A sink that writes results and moves their inputs, on a thread of its own.

    Args:
        most_attempts: an error that may pass makes an input fail when it was begun so often.
        finished: told the outcomes of every group, on that thread, when they are on the disk.

    Raises:
        EdgeappError: the file of results cannot be written to.

    Attributes:
        error: why nothing is recorded any more; None while all is well.
    """

    def __init__(
        self,
        spool: Spool,
        ledger: Ledger,
        room: Room,
        writing: Writing,
        *,
        most_attempts: int,
        finished: Callable[[Sequence[Outcome]], None],
    ) -> None:
        self._spool = spool
        self._ledger = ledger
        self._room = room
        self._writing = writing
        self._most_attempts = most_attempts
        self._finished = finished
        self._waiting: queue.Queue[Result | None] = queue.Queue(MOST_WAITING)
        self._waiting_bytes = 0
        self._fewer_bytes = threading.Condition()
        self.error: BaseException | None = None
        try:
            self._segment = Appended(path := os.path.join(spool.results, CURRENT))
        except OSError as error:
            raise paths.refusal(f"cannot write to {paths.printable(path)}", error, writing=True) from error
        self._opened_s = time.monotonic()
        self._written = _ids(self._segment) if ledger.unfinished() else set()
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._thread.start()

    @property
    def written(self) -> tuple[int, int]:
        """The inode of results.jsonl, and how many of its bytes are on the disk; any thread may ask."""
        segment = self._segment
        return segment.inode, segment.size

    def write(self, result: Result) -> None:
        """Have a result recorded; blocks while too many wait.

        Raises:
            EdgeappError: an earlier one could not be.
        """
        assert isinstance(result.frame, SpoolFrame)
        size = result.frame.kept_bytes = _kept_bytes(result)
        with self._fewer_bytes:
            while self._waiting_bytes and self._waiting_bytes + size > MOST_WAITING_BYTES:
                self._check()
                self._fewer_bytes.wait(1.0)
            self._waiting_bytes += size
        while True:
            self._check()
            try:
                return self._waiting.put(result, timeout=1.0)
            except queue.Full:
                continue

    def _check(self) -> None:
        if self.error is not None:
            raise self.error

    def close(self) -> None:
        """Wait until all is on the disk.

        Raises:
            EdgeappError: it could not be brought there.
        """
        self.end()
        self._check()

    def end(self) -> None:
        """Wait until all is on the disk, or cannot be brought there; can be called again."""
        if self._thread.is_alive():
            self._waiting.put(None)
            self._thread.join()
            self._segment.close()

    # --- the thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while group := self._next_group():
                started = time.perf_counter()
                items = [self._item(result) for result in group]
                self._commit(items)
                write_s = time.perf_counter() - started
                self._finished([Outcome(item.result, item.frame, item.kind, item.line, write_s) for item in items])
                self._let_go(group)
            return
        except NoRoomError:
            pass
        except BaseException as error:
            self.error = error
        while (result := self._waiting.get()) is not None:
            self._let_go([result])  # who writes must not block for ever

    def _let_go(self, group: Sequence[Result]) -> None:
        with self._fewer_bytes:
            for frame in (result.frame for result in group):
                assert isinstance(frame, SpoolFrame)
                self._waiting_bytes -= frame.kept_bytes
            self._fewer_bytes.notify_all()

    def _next_group(self) -> list[Result]:
        """The results that wait, at least one; empty at the end."""
        first = self._waiting.get()
        if first is None:
            return []
        group = [first]
        until = time.monotonic() + self._writing.group_s
        while len(group) < MOST_IN_GROUP:
            try:
                result = self._waiting.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                break
            if result is None:
                self._waiting.put(None)
                break
            group.append(result)
        return group

    def _item(self, result: Result) -> _Item:
        """What has to be written for a result."""
        frame = result.frame
        assert isinstance(frame, SpoolFrame)
        if frame.probe:
            return _Item(result, frame, "probe")
        listed = os.path.isabs(frame.name)
        if frame.stamp is None and not listed:
            return _Item(result, frame, "gone")
        if result.error is None:
            item = _Item(result, frame, "done", folder=self._spool.done)
        elif isinstance(result.error, TRANSIENT) and not listed and not self._worn_out(frame):
            return _Item(result, frame, "again")
        else:
            item = _Item(result, frame, "failed", folder=self._spool.failed)
        record = self._record(result, frame)
        item.line = line = dumps(record)
        item.known = self._ledger.count(frame.name) > 1 and (record["name"], record["id"]) in self._written
        if listed:  # it stays where it is
            item.folder = ""
            return item
        if item.kind == "failed":
            item.sidecars[ERROR_SUFFIX] = line
        elif self._writing.json:
            item.sidecars[RESULT_SUFFIX] = line
        if item.kind == "done" and result.drawn:
            item.sidecars[PICTURE_SUFFIX] = result.drawn
        return item

    def _worn_out(self, frame: SpoolFrame) -> bool:
        return self._ledger.count(frame.name) >= self._most_attempts

    def _record(self, result: Result, frame: SpoolFrame) -> dict[str, Any]:
        """The object of `run`'s JSON Lines, with what tells a repeat: the same id for the same bytes and model."""
        told = to_json(result)
        known = f"{frame.sha256 or frame.name} {frame.engine_sha256}"
        record = {
            "schema": told.pop("schema"),
            "name": paths.text(frame.name),
            "id": hashlib.sha256(known.encode("utf-8", "backslashreplace")).hexdigest(),
            "time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
            **told,
            "sha256": frame.sha256,
            "engine_sha256": frame.engine_sha256,
        }
        del record["path"]
        if result.error is not None:
            record["error"]["exit_code"] = result.error.exit_code
            record["attempts"] = self._ledger.count(frame.name)
        return record

    def _commit(self, items: list[_Item]) -> None:
        """Bring a group to the disk: results, then sidecars under waiting names, then inputs and names."""
        spool, patiently = self._spool, self._room.patiently
        lines = b"".join(item.line for item in items if not item.known) if self._writing.jsonl else b""
        if lines:
            self._rotate(len(lines))
            patiently(f"write {self._segment.path}", partial(self._append, lines))
        moved = [item for item in items if item.folder]
        taken: set[str] = set()
        for item in moved:
            item.target = patiently(f"write into {item.folder}", partial(self._prepare, item, taken))
            taken.add(item.target)
        for folder in {item.folder for item in moved if item.sidecars}:
            patiently(f"write into {folder}", partial(sync_folder, folder))
        for item in moved:
            if not patiently(f"move {spool.input(item.frame.name)}", partial(self._move, item)):
                item.kind = "gone"
        if moved:
            patiently(f"write into {spool.watched}", spool.sync)
        names = [item.frame.name for item in items if item.kind in ("done", "failed", "gone")]
        patiently(f"write into {spool.state}", partial(self._ledger.end, names))

    def _append(self, lines: bytes) -> None:
        if not self._segment.intact:  # somebody has moved, deleted or emptied it
            self._segment, gone = self._next_segment(), self._segment
            gone.close()
        self._segment.append(lines)

    def _prepare(self, item: _Item, taken: Container[str]) -> str:
        assert item.frame.stamp is not None
        return self._spool.prepare(item.frame.name, item.folder, item.frame.stamp, item.sidecars, taken)

    def _move(self, item: _Item) -> bool:
        frame, stamp = item.frame, item.frame.stamp
        assert stamp is not None
        if item.kind == "done" and self._writing.delete:
            return self._spool.remove(frame.name, stamp)
        return self._spool.move(frame.name, item.folder, stamp, item.target, item.sidecars)

    def _rotate(self, more: int) -> None:
        """Close the segment when it is full or old."""
        segment = self._segment
        full = segment.size + more > self._writing.segment_bytes
        if not segment.size or not (full or time.monotonic() - self._opened_s > self._writing.segment_s):
            return
        self._segment = self._room.patiently(f"write into {self._spool.results}", self._next_segment)
        segment.close()
        self._opened_s = time.monotonic()

    def _next_segment(self) -> Appended:
        """A new results.jsonl; what has that name is closed, and gets one that is above all others."""
        results, path = self._spool.results, self._segment.path
        with suppress(FileNotFoundError):
            if os.lstat(path).st_size:
                closed = name_after(newest(results), datetime.now(timezone.utc))
                rename_new(path, os.path.join(results, closed))
            else:
                os.unlink(path)  # a reader knows by the inode that it is another one
        fresh = Appended(path)
        sync_folder(results)
        return fresh


def _kept_bytes(result: Result) -> int:
    """Bytes of what a result keeps in memory, without the small things."""
    return len(result.drawn) + sum(array.nbytes for array in result.tensors.values())


def _ids(segment: Appended) -> set[tuple[str, str]]:
    """Names and ids of the latest results: their inputs may not have been moved yet."""
    ids = set()
    for line in segment.tail(SEARCHED_BYTES):
        try:
            record = json.loads(line)
            ids.add((record["name"], record["id"]))
        except (ValueError, TypeError, KeyError):
            continue
    return ids
