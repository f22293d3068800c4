"""Inputs of a spool, as frames, for as long as the service runs."""

from __future__ import annotations

import hashlib
import os
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import BinaryIO

from edgeapp import errors, paths
from edgeapp.records import Frame
from edgeapp.service.intake import Intake
from edgeapp.service.ledger import Ledger
from edgeapp.service.recorder import SpoolFrame
from edgeapp.service.room import NoRoomError, Room
from edgeapp.service.spool import Spool, dumps, stamp_of
from edgeapp.service.stream import Reply
from edgeapp.settings import DEFAULT_MAX_PIXELS
from edgeapp.sources.files import FileSource, read_frame
from edgeapp.sources.pictures import Fit
from edgeapp.sources.regular import open_regular
from edgeapp.stopping import Stop

MOST_AT_ONCE = 64
"""Inputs that are begun with one entry in the ledger."""

MOST_LISTED = 256
MOST_INPUT_BYTES = 2 << 30
READ_BYTES = 1 << 20


class SpoolSource:
    """Frames of a watched folder; ends when it is told to.

    An input that was begun before, and not finished, runs alone: if it kills the process again, no other is blamed.

    Attributes:
        fit, as_pixels, max_pixels: see FileSource.
        over: the service is ending.
        engine_sha256: of the model file that the frames are for.

    Args:
        quit: ends the waiting when the pipeline ends early.
        most_attempts: an input that was begun so often is not begun again: it fails.
        probe_s: when nothing was given out for so long, a probe is, as at the beginning.
        probe: makes one.
        say: told what is odd.
    """

    def __init__(
        self,
        spool: Spool,
        ledger: Ledger,
        room: Room,
        quit: Stop,
        *,
        settle_s: float,
        most_attempts: int,
        probe_s: float,
        probe: Callable[[], SpoolFrame],
        say: Callable[[str], None],
    ) -> None:
        self._spool = spool
        self._ledger = ledger
        self._room = room
        self._quit = quit
        self._most_attempts = most_attempts
        self.probe_s = probe_s
        self._probe = probe
        self._busy: set[str] = set()
        self._intake = Intake(spool.watched, settle_s, lambda: self._busy, say)
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._ended = False
        self._listed: deque[str] = deque(name for name in ledger.unfinished() if os.path.isabs(name))
        self._replies: dict[str, Reply] = {}
        self._room_for_more = threading.Condition()
        self._going = threading.Event()
        self._going.set()
        self._given_s = time.monotonic()
        self.over = False
        self.fit: Fit | None = None
        self.as_pixels = False
        self.max_pixels = DEFAULT_MAX_PIXELS
        self.engine_sha256 = ""

    def __len__(self) -> int:
        """How many inputs are known to wait."""
        return len(self._intake) + len(self._listed)

    @property
    def under_way(self) -> int:
        """How many inputs were given out and are not finished."""
        return len(self._busy)

    # --- any thread --------------------------------------------------------------------------------------------------

    def end(self, *, over: bool = False) -> None:
        """End the iteration; inputs that were given out are not taken back.

        Args:
            over: nothing is submitted any more.
        """
        self._ended = True
        if over:
            with self._room_for_more:
                self.over = True
                self._room_for_more.notify_all()
        self._notify()

    def again(self) -> None:
        """Make it ready to be iterated again."""
        self._ended = False

    def look(self) -> None:
        """End the waiting for inputs, to look whether there is room."""
        self._notify()

    def pause(self) -> None:
        self._going.clear()

    def resume(self) -> None:
        self._going.set()
        self._notify()

    def submit(self, path: str, reply: Reply) -> bool:
        """Take an input that lies elsewhere, where it stays; waits while there are many.

        Args:
            reply: is given the line of its result, when that is on the disk.

        Returns:
            False when the service is ending.
        """
        with self._room_for_more:
            self._room_for_more.wait_for(lambda: len(self._listed) < MOST_LISTED or self.over)
            if self.over:
                return False
            if path in self._replies or path in self._busy:
                reply(dumps({"name": paths.text(path), "error": {"what": "cannot take this input",
                             "why": "it is under way", "fix": "wait for its result"}}))  # fmt: skip
                return True
            self._replies[path] = reply
            self._listed.append(path)
        self._notify()
        return True

    def finished(self, names: Mapping[str, bytes]) -> None:
        """These need no more attention; if they still lie in the folder, they are found again.

        Args:
            names: name -> line of its result, for who listed it.
        """
        with self._room_for_more:
            replies = [(self._replies.pop(name), line) for name, line in names.items() if name in self._replies]
            self._busy.difference_update(names)
        for reply, line in replies:
            reply(line)
        self._notify()

    def _notify(self) -> None:
        os.eventfd_write(self._wake, 1)

    @staticmethod
    def is_tensors(frame: Frame) -> bool:
        return FileSource.is_tensors(frame)

    def read(self, frame: Frame) -> None:
        """Read and decode a frame, and note of which bytes it is."""
        assert isinstance(frame, SpoolFrame)
        if frame.probe:
            return
        try:
            status = os.lstat(frame.path)
        except OSError as error:
            frame.error = frame.error or paths.refusal(f"cannot read {paths.printable(frame.path)}", error)
            return
        if stat.S_ISDIR(status.st_mode) and not os.path.isabs(frame.name):
            frame.error = errors.DataError(f"cannot read {paths.printable(frame.path)}: it became a folder")
            return  # without a stamp, as one that is gone: folders in the folder are left alone
        frame.stamp = stamp_of(status)
        refused = _refused(frame.path, status)
        if frame.worn_out and refused is None:
            with suppress(errors.EdgeappError, OSError), open_regular(frame.path) as file:
                _note_digest(frame, file, os.fstat(file.fileno()).st_size)
        frame.error = frame.error or refused
        if frame.error is None:
            read_frame(
                frame, self.max_pixels, fit=self.fit, as_pixels=self.as_pixels, opened=partial(_note_digest, frame)
            )

    # --- the pipeline's thread ---------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[SpoolFrame | None]:
        try:
            yield self._probe()
            yield None
            while not self._ending():
                self._room.wait_for_least(self._ending)
                if names := self._take() if self._going.is_set() else []:
                    yield from self._begun(names)
                    self._given_s = time.monotonic()
                    continue
                yield None
                if time.monotonic() - self._given_s >= self.probe_s:
                    yield self._probe()
                    yield None
                    self._given_s = time.monotonic()
                self._wait()
        except NoRoomError:
            return
        except OSError as error:
            what = f"cannot look into {paths.printable(str(error.filename or self._spool.watched))}"
            if isinstance(error, FileNotFoundError):
                raise errors.InputOutputError(
                    what, "it was deleted or moved away", "a restart makes it anew"
                ) from error
            raise paths.refusal(what, error) from error

    def _take(self) -> list[str]:
        """Inputs to begin, those that were listed first."""
        names = self._room.with_descriptors(lambda: self._intake.take(MOST_AT_ONCE))
        with self._room_for_more:
            listed = [self._listed.popleft() for _ in range(min(MOST_AT_ONCE, len(self._listed)))]
            self._room_for_more.notify_all()
        return [*listed, *names]

    def _ending(self) -> bool:
        return self._ended or self._quit.asked()

    def _wait(self) -> None:
        """Until something may have come, or has to be done."""
        until_s = max(0.0, self._given_s + self.probe_s - time.monotonic())
        streams = [self._wake]
        if self._going.is_set():
            until_s = min(until_s, self._intake.wait_s())
            streams += filter(None, (self._intake.descriptor,))
        if not self._ending():
            self._quit.poll(*streams, timeout_s=until_s)
        self._drain_wake()

    def _drain_wake(self) -> None:
        with suppress(BlockingIOError):
            os.eventfd_read(self._wake)

    def _begun(self, names: list[str]) -> Iterator[SpoolFrame | None]:
        """Frames of inputs, after the ledger knows of them; those that are suspected one at a time."""
        self._busy.update(names)
        fresh = dict.fromkeys(name for name in names if not self._ledger.count(name))
        if fresh:
            self._begin(fresh, names, ())
        for index, name in enumerate(names):
            if self._ending():
                self._give_back(names[index:], fresh)
                return
            count = self._ledger.count(name)
            if name in fresh:
                yield self._frame(name)
            elif count >= self._most_attempts:
                yield self._frame(name, _worn_out(name, count))
            else:
                self._begin([name], names[index:], fresh)
                yield None
                yield self._frame(name)
                yield None
                self._wait_for(name)

    def _begin(self, names: Collection[str], taken: list[str], begun: Collection[str]) -> None:
        """Have the ledger know of some names; if there is no room for that, give back those of them that were taken."""
        try:
            self._room.patiently("write the ledger", partial(self._ledger.begin, names), self._ending)
        except NoRoomError:
            self._give_back(taken, begun)
            raise

    def _frame(self, name: str, error: errors.EdgeappError | None = None) -> SpoolFrame:
        return SpoolFrame(
            self._spool.input(name),
            name=name,
            engine_sha256=self.engine_sha256,
            taken_s=time.perf_counter(),
            error=error,
            worn_out=error is not None,
        )

    def _wait_for(self, name: str) -> None:
        while name in self._busy and not self._ending():
            self._quit.poll(self._wake)
            self._drain_wake()

    def _give_back(self, names: list[str], begun: Collection[str]) -> None:
        """They did not reach the engine after all."""
        with suppress(OSError):  # the disk is full: they count as begun once, and run alone next time
            self._ledger.end(name for name in names if name in begun)
        self._busy.difference_update(names)
        with self._room_for_more:
            self._listed.extendleft(name for name in reversed(names) if os.path.isabs(name))
        self._intake.look_again()

    def close(self) -> None:
        self._intake.close()
        os.close(self._wake)


def _refused(path: str, status: os.stat_result) -> errors.EdgeappError | None:
    """Why a file is no input, from what it is."""
    what = f"cannot read {paths.printable(path)}"
    if stat.S_ISLNK(status.st_mode):
        return errors.DataError(f"{what}: it is a link", "what it leads to may change or be elsewhere", "copy the file")
    if status.st_size > MOST_INPUT_BYTES:
        return errors.DataError(
            f"{what}: {status.st_size >> 20} MB are too many", f"the limit is {MOST_INPUT_BYTES >> 20} MB"
        )
    return None


def _worn_out(name: str, attempts: int) -> errors.EdgeappError:
    return errors.DataError(
        f"cannot finish {paths.printable(name)}: it was begun {attempts} times",
        "each time the process crashed, hung or was killed before the result was written",
        "look at the log of those times; edgeapp retry puts it back",
    )


def _note_digest(frame: SpoolFrame, file: BinaryIO, size: int) -> None:
    """The SHA-256 of a file that is then read from its beginning."""
    digest = hashlib.sha256()
    left = size  # not more: it may grow for ever, and files of /proc claim none
    while left > 0 and (data := file.read(min(left, READ_BYTES))):
        digest.update(data)
        left -= len(data)
    frame.sha256 = digest.hexdigest()
    file.seek(0)
