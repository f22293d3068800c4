"""What to do when the disk is full: wait, say so, go on when there is room again. For descriptors: wait a while."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from edgeapp import paths

FULL = (errno.ENOSPC, errno.EDQUOT)
RETRY_S = 0.5
MARGIN = 2
"""So many times the least free space is wanted before it goes on: not to stop again at once."""

OUT_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)
DESCRIPTORS_S, DESCRIPTORS_RETRY_S = 10.0, 0.1
"""For how long the want of descriptors may pass by itself; then a restart may give back those that were lost."""

T = TypeVar("T")


class NoRoomError(Exception):
    """Nobody waits for space or descriptors any longer: what is not written stays undone, its input where it is."""


class Room:
    """Space on the file systems of some folders; any thread may call it.

    Args:
        folders: what is written into.
        least_bytes: with less free space, nothing new is begun.
        changed: told why nothing can be written, and "" when it can be again.
        alive: called again and again while it waits.
    """

    def __init__(
        self, folders: Sequence[str], least_bytes: int, changed: Callable[[str], None], alive: Callable[[], None]
    ) -> None:
        self._folders = folders
        self.least_bytes = least_bytes
        self._changed = changed
        self._alive = alive
        self._lock = threading.Lock()
        self._waiting: dict[str, str] = {}
        self._ended = threading.Event()

    def end(self) -> None:
        """Have those that wait give up."""
        self._ended.set()

    def free_bytes(self) -> int:
        """Of the fullest of the file systems."""
        return min(status.f_bavail * status.f_frsize for status in map(os.statvfs, self._folders))

    def wait_for_least(self, leave: Callable[[], bool]) -> None:
        """Wait until there is the least free space.

        Args:
            leave: whether to wait no longer.

        Raises:
            OSError: a folder is gone.
            NoRoomError: `end` was called, or `leave` says so.
        """
        if self.free_bytes() >= self.least_bytes:
            return
        least = f"less than {self.least_bytes >> 20} MB are free"
        self._wait("least", least, lambda: self.free_bytes() >= self.least_bytes * MARGIN, leave)

    def patiently(self, what: str, step: Callable[[], T], leave: Callable[[], bool] = lambda: False) -> T:
        """Do a step, again and again while the disk is full, and for a while when no descriptor is left.

        Args:
            what: "write /spool/results/results.jsonl".
            step: can be repeated when it raised OSError.
            leave: whether to wait no longer.

        Raises:
            EdgeappError: it failed for another reason.
            NoRoomError: `end` was called while the disk is full, or `leave` says so.
        """
        done: list[T] = []

        def tried() -> bool:
            try:
                done.append(self.with_descriptors(step))
            except OSError as error:
                if error.errno not in FULL:
                    raise paths.refusal(f"cannot {what}", error, writing=True) from error
                return False
            return True

        if not tried():
            self._wait(what, f"cannot {what}: no space is left", tried, leave)
        return done[0]

    def with_descriptors(self, step: Callable[[], T]) -> T:
        """Do a step, again and again for a while when no descriptor is left: many are in use for a moment only.

        Raises:
            OSError: it failed for another reason, or for too long.
            NoRoomError: `end` was called.
        """
        until_s = time.monotonic() + DESCRIPTORS_S
        while True:
            try:
                return step()
            except OSError as error:
                if error.errno not in OUT_OF_DESCRIPTORS or time.monotonic() > until_s:
                    raise
                if self._ended.wait(DESCRIPTORS_RETRY_S):
                    raise NoRoomError from error

    def _wait(self, key: str, reason: str, ready: Callable[[], bool], leave: Callable[[], bool]) -> None:
        self._tell(key, reason)
        try:
            while not ready():
                if self._ended.wait(RETRY_S) or leave():
                    raise NoRoomError
                self._alive()
        finally:
            self._tell(key, None)

    def _tell(self, key: str, reason: str | None) -> None:
        with self._lock:
            before = next(iter(self._waiting.values()), "")
            if reason is None:
                del self._waiting[key]
            else:
                self._waiting[key] = reason
            now = next(iter(self._waiting.values()), "")
        if now != before:
            self._changed(now)
