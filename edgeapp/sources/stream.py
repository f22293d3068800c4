"""Pictures of a stream of JPEGs, one after the other, as cameras and `ffmpeg -f mjpeg -` give them."""

from __future__ import annotations

import math
import os
import re
import stat
import sys
import threading
import time
from collections.abc import Iterator

from edgeapp import errors, paths
from edgeapp.records import Frame
from edgeapp.sources.files import FileSource
from edgeapp.stopping import Stop

PREFIX = "mjpeg:"
"""Of an input that is such a stream: mjpeg:PATH, or mjpeg:- for standard input."""

START = b"\xff\xd8\xff"
START_OF_SCAN, END = 0xDA, 0xD9
ALONE = (0x01, *range(0xD0, 0xD9))
"""Markers without a segment, ITU T.81 B.1.1.3."""

FREE = (*range(0xE0, 0xF0), 0xFE)
"""Markers of segments that may hold anything, another JPEG too: applications' data, a comment."""

NEXT_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
"""In compressed data: FF 00 is a byte, FF D0 to D7 is a place to restart at."""

FILLING = re.compile(rb"\xff*")
"""A marker may have any number of FF before it."""

MOST_BYTES = 256 << 20
"""Of one picture."""

CHUNK_BYTES = 1 << 20
LOOK_S = 0.1
"""How soon a live stream that is silent sees a signal."""


class Splitter:
    """Cuts a stream into JPEGs by their segments, so that a thumbnail ends nothing; leaves out what lies between.

    What breaks the rules goes up to where the next JPEG begins: whoever decodes it says what is wrong. One that is cut
    short in a segment which may hold anything takes those with it that lie within the length of that segment.
    """

    def __init__(self) -> None:
        self._data = bytearray()
        self._at = 0
        self._scanning = False
        self._broken = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The pictures that are complete with these bytes."""
        self._data += data
        while (end := self._end()) is not None:
            yield self._cut(end)

    def rest(self) -> bytes:
        """What is left at the end of the stream, b"" if that is no picture's beginning."""
        return bytes(self._data) if self._begun() else b""

    def _begun(self) -> bool:
        """Whether a picture lies at the beginning; what is none is thrown away."""
        if not self._data.startswith(START):
            found = self._data.find(START)
            del self._data[: found if found >= 0 else max(0, len(self._data) - len(START) + 1)]
        return self._data.startswith(START)

    def _cut(self, end: int) -> bytes:
        found = bytes(self._data[:end])
        del self._data[:end]
        self._at, self._scanning, self._broken = 0, False, False
        return found

    def _end(self) -> int | None:
        """Where the first picture ends; None while that is not there yet."""
        if not self._begun():
            return None
        if len(self._data) > MOST_BYTES:
            self._broken = True
        self._at = max(self._at, 2)
        while not self._broken:
            found = self._marker()
            if found is None:
                return None
            if found:
                return found
        if (following := self._data.find(START, self._at)) >= 0:
            return following
        self._at = max(self._at, len(self._data) - len(START) + 1)
        return len(self._data) if len(self._data) > MOST_BYTES else None

    def _marker(self) -> int | None:
        """Go over the next marker: 0, or where the picture ends, or None where bytes are missing."""
        data, at = self._data, self._at
        if self._scanning:
            found = NEXT_MARKER.search(data, at)
            if found is None:
                self._at = max(at, len(data) - 1)  # FF may be the first half of a marker
                return None
            self._at, self._scanning = found.start(), False
            return 0
        if filling := FILLING.match(data, at):
            self._at = at = max(at, filling.end() - 1)
        if len(data) < at + 2:
            return None
        kind = data[at + 1]
        if data[at] != 0xFF or kind in (0, 0xD8):
            self._at, self._broken = at, True
            return 0
        if kind == END:
            return at + 2
        if kind in ALONE:
            self._at = at + 2
            return 0
        if len(data) < at + 4:
            return None
        end = at + 2 + max(2, int.from_bytes(data[at + 2 : at + 4], "big"))
        if kind not in FREE:
            if len(data) < end + 2:
                return None
            # It was cut short if another picture begins in it, be it with its last byte; its last two may be FF D8.
            if (other := data.find(START, at, end + 2)) >= 0 and other != end - 2:
                self._at, self._broken = other, True
                return 0
        self._at, self._scanning = end, kind == START_OF_SCAN
        return 0


class StreamSource(FileSource):
    """Frames of a stream of JPEGs, named by their number: stdin-000001.jpg.

    Args:
        uri: mjpeg:PATH, a file, a FIFO or a device; mjpeg:- for standard input.
        live: of the pictures that came only the newest is taken; the others are left out and counted.
        patience_s: see FileSource.

    Raises:
        EdgeappError: it cannot be opened.

    Attributes:
        left_out: pictures that newer ones replaced.
    """

    def __init__(self, uri: str, *, live: bool, max_pixels: int, stop: Stop, patience_s: float = 0.0) -> None:
        super().__init__((), max_pixels=max_pixels, stop=stop, patience_s=patience_s)
        self.total = None
        self._live = live
        self._path = uri.removeprefix(PREFIX)
        stem = os.path.splitext(os.path.basename(self._path))[0]
        self._what = "cannot read " + ("standard input" if self._path == "-" else paths.printable(self._path))
        self._name = "stdin" if self._path == "-" else stem
        self._file = _opened(self._path, self._what)
        self._number = 0
        self._changed = threading.Condition()
        self._newest: Frame | None = None
        self._ended: BaseException | bool = False

    @property
    def paths(self) -> list[str]:
        """The stream itself, if it has a name."""
        return [] if self._path == "-" else [self._path]

    def __iter__(self) -> Iterator[Frame | None]:
        return self._newest_ones() if self._live else self._as_they_come(self._patience_s)

    def _as_they_come(self, patience_s: float) -> Iterator[Frame | None]:
        """All of them; None where the stream is silent for so long."""
        splitter = Splitter()
        while True:
            if not self._stop.wait_readable(self._file, patience_s):
                yield None
                self._stop.wait_readable(self._file)
            try:
                data = os.read(self._file, CHUNK_BYTES)
            except BlockingIOError:  # somebody else reads there, too
                continue
            except OSError as error:
                raise paths.refusal(self._what, error) from error
            if not data:
                break
            yield from map(self._frame, splitter.feed(data))
        if rest := splitter.rest():
            yield self._frame(rest)
        elif self._number == 0:
            raise errors.DataError(
                self._what, "there is no JPEG in it", "send JPEGs one after the other: ffmpeg -i SOURCE -f mjpeg -"
            )  # fmt: skip

    def _frame(self, data: bytes) -> Frame:
        self._number += 1
        return Frame(f"{self._name}-{self._number:06d}.jpg", data=data)

    # --- live: a thread reads all the time ----------------------------------------------------------------------------

    def _newest_ones(self) -> Iterator[Frame | None]:
        threading.Thread(target=self._keep_reading, name="stream", daemon=True).start()
        silent_at_s = time.monotonic() + self._patience_s
        while True:
            with self._changed:
                if self._newest is None and not self._ended:
                    self._changed.wait(min(LOOK_S, max(0.0, silent_at_s - time.monotonic())))
                frame, self._newest = self._newest, None
                ended = self._ended
            self._stop.check()
            if frame is not None:
                yield frame
                silent_at_s = time.monotonic() + self._patience_s
            elif isinstance(ended, BaseException):
                raise ended
            elif ended:
                return
            elif time.monotonic() >= silent_at_s:
                silent_at_s = math.inf
                yield None

    def _keep_reading(self) -> None:
        ended: BaseException | bool = True
        try:
            for frame in filter(None, self._as_they_come(LOOK_S)):
                with self._changed:
                    self.left_out += self._newest is not None
                    self._newest = frame
                    self._changed.notify()
        except BaseException as error:
            ended = error
        with self._changed:
            self._ended = ended
            self._changed.notify()


def _opened(path: str, what: str) -> int:
    """A descriptor that may be polled."""
    if path == "-":
        if sys.stdin is None:
            raise errors.UsageError(what, "it is closed", "ffmpeg -i SOURCE -f mjpeg - | edgeapp ... --input mjpeg:-")
        return sys.stdin.fileno()
    try:
        number = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # of a FIFO the writer may come later
    except OSError as error:
        raise paths.refusal(what, error) from error
    except ValueError as error:  # a NUL in the name
        raise errors.NotFoundError(what, str(error), "check the name") from error
    if stat.S_ISDIR(os.fstat(number).st_mode):
        os.close(number)
        raise errors.DataError(f"{what}: it is a folder", "", "name a stream of JPEGs, or leave mjpeg: out")
    return number
