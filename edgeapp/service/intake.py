"""Which files of a watched folder are inputs, and when they are whole.

The kernel's notices (inotify) make it quick; looking through the folder again and again makes it true, for notices can
be lost: the queue overflows, a network file system sends none, the limit of watches is reached.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import os
import struct
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

IN_CLOSE_WRITE, IN_MOVED_TO, IN_Q_OVERFLOW, IN_ISDIR = 0x8, 0x80, 0x4000, 0x40000000
EVENT = struct.Struct("iIII")
"""struct inotify_event (inotify(7)): watch, mask, cookie, length of the name that follows."""

UNFINISHED_SUFFIXES = (".part", ".partial", ".tmp", ".crdownload")
"""How programs that copy and download call files that they have not finished; hidden files are no inputs either."""

LOOK_EVERY_S = 5.0
LOOKING_SHARE, SETTLING_SHARE = 0.05, 0.25
"""Looking through a large folder takes at most this share of the time, and while files settle this one."""


def is_input(name: str) -> bool:
    return not name.startswith(".") and not name.lower().endswith(UNFINISHED_SUFFIXES)


@dataclass
class _Seen:
    """A file that may still be written: its size and time of change, and since when they are the same."""

    size: int
    changed_ns: int
    since_s: float


class Intake:
    """Files of a folder that are whole, in the order in which they came.

    A file is whole when it was closed after writing, or moved into the folder; one of which no notice came, when it has
    not changed for a while. Folders inside the folder are left alone. One thread uses it.

    Args:
        folder: the watched one.
        settle_s: how long a file must not change.
        busy: names that were given out and are not finished; they are not given again.
        say: told when notices cannot be had.
    """

    def __init__(
        self, folder: str, settle_s: float, busy: Callable[[], Collection[str]], say: Callable[[str], None]
    ) -> None:
        self._folder = folder
        self._settle_s = settle_s
        self._busy = busy
        self._whole: dict[str, None] = {}
        self._seen: dict[str, _Seen] = {}
        self._next_look_s = 0.0
        self._say = say
        self._notices = _watch(folder, say)
        self._place = _place(folder)

    @property
    def descriptor(self) -> int | None:
        """Readable when there are notices; None when there never are."""
        return self._notices

    def __len__(self) -> int:
        """How many files are known to wait."""
        return len(self._whole) + len(self._seen)

    def wait_s(self) -> float:
        """How long nothing needs to be done while no notice comes, seconds."""
        return 0.0 if self._whole else max(0.0, self._next_look_s - time.monotonic())

    def take(self, most: int) -> list[str]:
        """Up to so many names of files that are whole; forgets them."""
        self._read_notices()
        now = time.monotonic()
        if now >= self._next_look_s:
            self._look(now)
            spent_s = time.monotonic() - now
            if self._seen:
                pause_s = max(min(LOOK_EVERY_S, self._settle_s / 2), spent_s / SETTLING_SHARE)
            else:
                pause_s = max(LOOK_EVERY_S, spent_s / LOOKING_SHARE)
            self._next_look_s = now + pause_s
        names = list(itertools.islice(self._whole, most))
        for name in names:
            del self._whole[name]
        return names

    def look_again(self) -> None:
        """At the next `take`, look through the folder."""
        self._next_look_s = 0.0

    def _read_notices(self) -> None:
        while self._notices is not None:
            try:
                data = os.read(self._notices, 1 << 16)
            except BlockingIOError:
                return
            busy = self._busy()
            at = 0
            while at < len(data):
                _, mask, _, length = EVENT.unpack_from(data, at)
                name = os.fsdecode(data[at + EVENT.size : at + EVENT.size + length].rstrip(b"\0"))
                at += EVENT.size + length
                if mask & IN_Q_OVERFLOW:
                    self._next_look_s = 0.0
                elif is_input(name) and name not in busy and not mask & IN_ISDIR:
                    self._whole[name] = None
                    self._seen.pop(name, None)

    def _look(self, now: float) -> None:
        """Look through the folder; what has settled is whole.

        Raises:
            OSError: it cannot be looked through.
        """
        if (place := _place(self._folder)) != self._place:  # another one has its name now, of which no notices come
            self.close()
            self._notices, self._place = _watch(self._folder, self._say), place
        busy = self._busy()
        seen: dict[str, _Seen] = {}
        settled: list[tuple[int, str]] = []
        with os.scandir(self._folder) as entries:
            for entry in entries:
                name = entry.name
                if name in self._whole or name in busy or not is_input(name):
                    continue
                try:
                    if entry.is_dir(follow_symlinks=False):
                        continue
                    status = entry.stat(follow_symlinks=False)
                except PermissionError:  # the folder's: it is so with all of them
                    raise
                except OSError:  # gone
                    continue
                before = self._seen.get(name)
                if before is None or (before.size, before.changed_ns) != (status.st_size, status.st_mtime_ns):
                    seen[name] = _Seen(status.st_size, status.st_mtime_ns, now)
                elif now - before.since_s < self._settle_s:
                    seen[name] = before
                else:
                    settled.append((status.st_mtime_ns, name))
        self._seen = seen
        self._whole.update((name, None) for _, name in sorted(settled))

    def close(self) -> None:
        if self._notices is not None:
            os.close(self._notices)


def _place(folder: str) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _watch(folder: str, say: Callable[[str], None]) -> int | None:
    """A descriptor of the kernel's notices of files that are closed or moved in; None if there are none."""
    library = ctypes.CDLL(None, use_errno=True)
    notices = library.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    if notices >= 0 and library.inotify_add_watch(notices, os.fsencode(folder), IN_CLOSE_WRITE | IN_MOVED_TO) >= 0:
        return int(notices)
    number = ctypes.get_errno()
    if notices >= 0:
        os.close(notices)
    limit = ": raise fs.inotify.max_user_watches" if number in (errno.ENOSPC, errno.EMFILE) else ""
    say(f"no notices of new files ({os.strerror(number).lower()}), looking every {LOOK_EVERY_S:g} s{limit}")
    return None
