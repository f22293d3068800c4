"""Files that appear under their name only when they are whole, and errors that say which file."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO

from edgeapp import errors, paths


@contextmanager
def explained(path: str | None) -> Iterator[None]:
    """Turn an OSError inside into the EdgeappError that names the output."""
    try:
        yield
    except BrokenPipeError as error:
        raise errors.InputOutputError("cannot write results", "the reader of standard output went away") from error
    except OSError as error:
        name = "standard output" if path is None else paths.printable(path)
        raise paths.refusal(f"cannot write {name}", error, writing=True) from error
    except ValueError as error:  # a NUL in the name
        raise errors.CannotWriteError(f"cannot write {paths.printable(path or '')}", str(error)) from error


@contextmanager
def whole_file(path: str) -> Iterator[BinaryIO]:
    """A file to write; it replaces `path` at the end, and nothing is left after a failure.

    Raises:
        EdgeappError: it cannot be written, or would replace a device or a pipe, as root could do with /dev/null.
    """
    part = f"{path}.{os.getpid()}.part"
    with explained(path), suppress(FileNotFoundError):
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # of a folder the system says so
            raise errors.CannotWriteError(
                f"cannot write {paths.printable(path)}", "it is no regular file", "name a file to make or to replace"
            )
    try:
        with explained(path):
            with open(part, "xb") as file:
                yield file
            os.replace(part, path)
    except BaseException:
        with explained(path):
            if os.path.lexists(part):
                os.unlink(part)
        raise
