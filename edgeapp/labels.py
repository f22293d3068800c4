"""Class names: from a text file, or a number when nobody knows better."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence

from edgeapp import errors, paths

MOST_BYTES = 4 << 20


def read_labels(path: str) -> list[str]:
    """The non-empty lines of a UTF-8 text file.

    Raises:
        NotFoundError, NotPermittedError, ConfigurationError: it cannot be read or holds no names.
    """
    what = f"cannot read labels from {paths.printable(path)}"
    try:
        # Not blocking: a named pipe without a writer must not hang.
        with open(path, encoding="utf-8-sig", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise errors.ConfigurationError(what, "it is no regular file", "a class name a line is wanted")
            lines = [line.strip() for line in file.read(MOST_BYTES).splitlines()]
    except OSError as error:
        raise paths.refusal(what, error) from error
    except UnicodeEncodeError as error:
        raise errors.ConfigurationError(what, "its name is none", "check the name") from error
    except UnicodeDecodeError as error:
        raise errors.ConfigurationError(what, "it is no UTF-8 text", "a class name a line is wanted") from error
    except ValueError as error:  # a NUL in the name
        raise errors.ConfigurationError(what, str(error), "check the name") from error
    names = [line for line in lines if line]
    if not names:
        raise errors.ConfigurationError(what, "it is empty", "a class name a line is wanted")
    return names


def label(names: Sequence[str], class_id: int) -> str:
    """The name of a class; "class 7" where there is none."""
    return names[class_id] if 0 <= class_id < len(names) else f"class {class_id}"
