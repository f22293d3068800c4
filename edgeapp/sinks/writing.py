"""Files that appear under their name only when they are whole, and errors that say which file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
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
    """A file to write; it replaces `path` at the end, and nothing is left after a failure."""
    part = f"{path}.{os.getpid()}.part"
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
