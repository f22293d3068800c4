"""Files that survive a power cut: written, brought to the disk, and only then known by their name.

A rename alone is not enough: after a power cut the name can be there without the bytes (operations of ext4 and XFS
alike), so the file is synchronised before it, and the folder after it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import threading
from contextlib import suppress

TEMPORARY = ".new"
"""How the names of unfinished files of ours end; what is left of them is removed at the next start."""

AT_FDCWD, RENAME_NOREPLACE = -100, 1

LOOKED_AT_BYTES = 16 << 20
"""At the end of a file of lines, for what was not finished: more than one call appends."""


def sync_folder(path: str) -> None:
    """Bring the names in a folder to the disk."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_file(path: str, data: bytes) -> None:
    """Make or replace a file, on the disk but for its name: `sync_folder` comes last, once for many files.

    Raises:
        OSError: it could not be written; what was there before is untouched.
    """
    part = os.path.join(os.path.dirname(path), f".{threading.get_ident()}{TEMPORARY}")
    try:
        file = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            _write(file, data)
            os.fsync(file)
        finally:
            os.close(file)
        os.rename(part, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(part)
        raise


def rename_new(source: str, target: str) -> None:
    """Rename, but never over another file, where the file system knows how (renameat2(2)).

    Raises:
        FileExistsError: the name is taken.
    """
    library = ctypes.CDLL(None, use_errno=True)
    if hasattr(library, "renameat2"):
        if library.renameat2(AT_FDCWD, os.fsencode(source), AT_FDCWD, os.fsencode(target), RENAME_NOREPLACE) == 0:
            return
        number = ctypes.get_errno()
        if number not in (errno.EINVAL, errno.ENOSYS):
            raise OSError(number, os.strerror(number), source, None, target)
    os.rename(source, target)


def remove_unfinished(folder: str) -> None:
    """Remove what `write_file` left when the process was killed."""
    for name in os.listdir(folder):
        if name.startswith(".") and name.endswith(TEMPORARY):
            os.unlink(os.path.join(folder, name))


def _write(file: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(file, rest) :]


class Appended:
    """A file of lines that only grows; what could not be appended whole leaves no trace.

    Opening it cuts off what a killed process left of an unfinished line.

    Raises:
        OSError: as all that it does.

    Attributes:
        size: bytes of whole lines.
        inode: what it is, whatever it is called by now.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            self.inode = os.fstat(self._file).st_ino
            self.size = self._whole_lines()
            os.ftruncate(self._file, self.size)
            os.fsync(self._file)
        except BaseException:
            os.close(self._file)
            raise

    def _whole_lines(self) -> int:
        """Where the last line ends; after a power cut there can be zeros in place of what was not on the disk yet."""
        end = os.fstat(self._file).st_size
        while end > 0:
            start = max(0, end - LOOKED_AT_BYTES)
            data = os.pread(self._file, end - start, start)
            data = data[:found] if (found := data.find(b"\0")) >= 0 else data
            if (found := data.rfind(b"\n")) >= 0:
                return start + found + 1
            end = start
        return 0

    @property
    def intact(self) -> bool:
        """Whether its name still leads to it, and nobody else has changed its length."""
        try:
            there, here = os.lstat(self.path), os.fstat(self._file)
        except FileNotFoundError:
            return False
        return os.path.samestat(there, here) and here.st_size == self.size

    def tail(self, most: int) -> list[bytes]:
        """The last lines, of at most so many bytes."""
        start = max(0, self.size - most)
        lines = os.pread(self._file, self.size - start, start).split(b"\n")
        return lines[1 if start else 0 : -1]

    def append(self, data: bytes) -> None:
        """Append whole lines and bring them to the disk."""
        try:
            os.lseek(self._file, self.size, os.SEEK_SET)
            _write(self._file, data)
            os.fdatasync(self._file)
        except BaseException:
            with suppress(OSError):
                os.ftruncate(self._file, self.size)
            raise
        self.size += len(data)

    def close(self) -> None:
        os.close(self._file)
