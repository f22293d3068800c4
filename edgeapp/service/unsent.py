"""The results that a receiver has not acknowledged yet, in order, read from where the recorder writes them.

Where a receiver stands is kept on the disk: after which closed segment, and at which byte of the one that follows it.
That one is results.jsonl, or what became of it: its name changes while it is read, its place in the order does not.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace

from edgeapp.service.durable import sync_folder, write_file
from edgeapp.service.segments import CURRENT, closed, newest

SAVED_EVERY_S = 1.0
"""A position that is a second old costs a few repeats after a kill; one for each batch would wear out a flash."""

HEAD_BYTES = 4096


@dataclass(frozen=True)
class Position:
    """Where a receiver stands.

    Attributes:
        after: the name of the newest segment that it has to the end, "" if there is none.
        head: SHA-256 of what it has of the segment after that, at most of its first HEAD_BYTES: tells whether that is
            still the same; "" at its beginning.
        offset: bytes of that segment that it has.
    """

    after: str = ""
    head: str = ""
    offset: int = 0


class Unsent:
    """Lines for one receiver; for one thread.

    Where there is no position on the disk it begins with what is written from now on.

    Args:
        results: the folder with the segments.
        path: the file with the position.
        written: Recorder.written.
        say: takes what went wrong, in a line.

    Raises:
        OSError: from here and from all methods: reading or writing failed.
    """

    def __init__(
        self, results: str, path: str, written: Callable[[], tuple[int, int]], say: Callable[[str], None]
    ) -> None:
        self._results = results
        self._path = path
        self._written = written
        self._say = say
        self._file: int | None = None
        self._inode = 0
        self._current = False
        self._saved: Position | None = None
        self._saved_s = float("-inf")
        self._position = self._kept() or self._end()
        try:
            self.save(now=True)
        except OSError as error:  # a full disk has room again some day: it is tried again and again
            self._say(f"cannot write {self._path}: {(error.strerror or str(error)).lower()}")

    def _kept(self) -> Position | None:
        """The position on the disk; the very beginning when it cannot be understood."""
        try:
            with open(self._path, "rb") as file:
                data = file.read(HEAD_BYTES)
        except FileNotFoundError:
            return None
        try:
            told = json.loads(data)
            position = Position(str(told["after"]), str(told["head"]), int(told["offset"]))
            if position.offset < 0:
                raise ValueError
        except (ValueError, TypeError, KeyError):
            self._say(f"{self._path} is damaged: everything in {self._results} is sent again")
            return Position()
        self._saved = position
        return position

    def _end(self) -> Position:
        """Where the next result will be."""
        size = self._written()[1]
        with open(os.path.join(self._results, CURRENT), "rb") as file:
            return Position(newest(self._results), _digest(file.fileno(), size), size)

    def next(self, most_lines: int, most_bytes: int) -> list[bytes]:
        """Lines that follow those that were sent, at least one if there is any, each with its newline."""
        while self._open():
            assert self._file is not None
            end = self._readable()
            if self._position.offset < end:
                return self._lines(self._file, end, most_lines, most_bytes)
            if self._current:
                return []
            self._go_on()
        return []

    def sent(self, lines: Sequence[bytes]) -> None:
        """The receiver has these, the first ones of what `next` gave."""
        assert self._file is not None
        offset = self._position.offset + sum(map(len, lines))
        known = self._position.offset >= HEAD_BYTES
        head = self._position.head if known else _digest(self._file, offset)
        self._position = replace(self._position, head=head, offset=offset)
        self.save()

    def save(self, *, now: bool = False) -> None:
        """Bring the position to the disk, if it has not been a moment ago."""
        if self._position == self._saved or not (now or time.monotonic() - self._saved_s > SAVED_EVERY_S):
            return
        write_file(self._path, json.dumps(asdict(self._position)).encode() + b"\n")
        sync_folder(os.path.dirname(self._path))
        self._saved, self._saved_s = self._position, time.monotonic()

    def waiting_bytes(self) -> int:
        """How much there is to send."""
        size = self._written()[1] - self._position.offset
        for name in closed(self._results, self._position.after):
            with suppress(FileNotFoundError):
                size += os.stat(os.path.join(self._results, name)).st_size
        return max(0, size)

    def close(self) -> None:
        """Save the position and let the file go."""
        self._let_go()
        self.save(now=True)

    # --- the file ----------------------------------------------------------------------------------------------------

    def _open(self) -> bool:
        """Open the segment after the last one that was sent; False when there is none."""
        if self._file is not None:
            return True
        for _ in range(2):  # results.jsonl can be closed between the look at the folder and at the file: then again
            inode = self._written()[0]
            following = closed(self._results, self._position.after)
            name = following[0] if following else CURRENT
            try:
                file = os.open(os.path.join(self._results, name), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            except FileNotFoundError:
                continue
            status = os.fstat(file)
            if not following and status.st_ino != inode:
                os.close(file)
                continue
            self._file, self._inode, self._current = file, status.st_ino, not following
            self._recognise(status.st_size)
            return True
        return False

    def _recognise(self, size: int) -> None:
        """Begin at its beginning, if it is not the one that was read before."""
        assert self._file is not None
        kept = self._position
        if kept.offset and (size < kept.offset or _digest(self._file, kept.offset) != kept.head):
            self._say(f"a file of results is gone from {self._results}: what was not sent of it is left out")
            self._position = Position(kept.after)

    def _readable(self) -> int:
        """How much of the open file is there for good."""
        inode, size = self._written()
        if inode == self._inode:
            return size
        self._current = False
        assert self._file is not None
        return os.fstat(self._file).st_size

    def _go_on(self) -> None:
        """The open file is at its end and closed: what comes after its name is next."""
        after = self._position.after
        for name in closed(self._results, after):  # it is still open: its inode is nobody else's
            with suppress(FileNotFoundError):
                if os.stat(os.path.join(self._results, name)).st_ino == self._inode:
                    after = name
                    break
        self._position = Position(after)  # the same, if somebody removed it
        self._let_go()

    def _let_go(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _lines(self, file: int, end: int, most_lines: int, most_bytes: int) -> list[bytes]:
        start, most = self._position.offset, most_bytes
        while True:
            data = os.pread(file, min(most, end - start), start)
            found = data.split(b"\n", most_lines)[:-1]
            if found or len(data) >= end - start:
                break
            most *= 2  # one line is longer than that
        return [line + b"\n" for line in found] or [data]


def _digest(file: int, size: int) -> str:
    """Of the first bytes of a file that has so many, "" of none."""
    data = os.pread(file, min(size, HEAD_BYTES), 0)
    return hashlib.sha256(data).hexdigest() if data else ""
