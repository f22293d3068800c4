"""Files that may be read: regular ones, for a FIFO or a device could block or never end."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from typing import BinaryIO

from edgeapp import errors, paths

MOST_BYTES_AT_ONCE = 16 << 20

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)

Opened = Callable[[BinaryIO, int], None]
"""Is given a file before anything else is read of it, and its size in bytes; leaves it at its beginning."""


def open_regular(path: str) -> BinaryIO:
    """Open a file for reading, but no FIFO or device, which could block or never end.

    Raises:
        EdgeappError: it cannot be opened or is no regular file.
    """
    return os.fdopen(_descriptor(path)[0], "rb")


def _descriptor(path: str) -> tuple[int, int]:
    """A descriptor of a regular file, and its size, bytes."""
    what = f"cannot read {paths.printable(path)}"
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise errors.DataError(f"{what}: it is a socket", "", "name a picture file") from error
        raise paths.refusal(what, error) from error
    except ValueError as error:  # a NUL in the name
        raise errors.NotFoundError(what, str(error), "check the name") from error
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode):
        os.close(handle)
        kind = next(
            (text for test, text in _KINDS if test(status.st_mode)),
            "no regular file",
        )
        raise errors.DataError(f"{what}: it is {kind}", "", "name a picture file")
    return handle, status.st_size


def whole(path: str) -> bytes:
    """A file of at most MOST_BYTES_AT_ONCE with few calls, as each gives up the interpreter's lock; b"" of others."""
    handle, size = _descriptor(path)
    try:
        return os.read(handle, size) if size <= MOST_BYTES_AT_ONCE else b""
    except OSError as error:
        raise paths.refusal(f"cannot read {paths.printable(path)}", error) from error
    finally:
        os.close(handle)
