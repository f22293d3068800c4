"""Where the frames of `edgeapp bench` come from, and threads that decode for nothing."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator, Sequence

from edgeapp.records import Frame, Picture
from edgeapp.sources import FileSource


class Memory:
    """The same decoded pictures over and over, until a time is over."""

    def __init__(self, pictures: Sequence[tuple[Picture, tuple[int, int]]], until: float) -> None:
        self._pictures = pictures
        self._until = until

    def __iter__(self) -> Iterator[Frame]:
        i = 0
        while time.perf_counter() < self._until or not i:
            yield Frame(str(i))
            i += 1

    def is_tensors(self, _: Frame) -> bool:
        return False

    def read(self, frame: Frame) -> None:
        frame.image, frame.picture_wh = self._pictures[int(frame.path) % len(self._pictures)]


class Again:
    """The same files over and over, until a time is over."""

    def __init__(self, files: FileSource, until: float) -> None:
        self._files = files
        self._until = until

    def __iter__(self) -> Iterator[Frame]:
        while True:
            for frame in self._files:
                if frame is not None and not self._files.is_tensors(frame):
                    yield Frame(frame.path, error=frame.error)
                if time.perf_counter() > self._until:
                    return

    def is_tensors(self, _: Frame) -> bool:
        return False

    def read(self, frame: Frame) -> None:
        self._files.read(frame)


class Decoding:
    """Threads that read and decode files over and over, for the length of a `with` block.

    Args:
        count: of threads.
    """

    def __init__(self, files: FileSource, count: int) -> None:
        self._files = files
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._decode, name="decode", daemon=True) for _ in range(count)]

    def __enter__(self) -> None:
        for thread in self._threads:
            thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _decode(self) -> None:
        for frame in Again(self._files, math.inf):
            if self._ended.is_set():
                return
            self._files.read(frame)
