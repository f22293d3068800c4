"""Where things lie, frozen or not, and what an OSError means to a user."""

from __future__ import annotations

import errno
import importlib.util
import os
import sys
import sysconfig
from pathlib import Path

from edgeapp import errors

FROZEN = bool(getattr(sys, "frozen", False))


def resource(name: str) -> Path:
    """A file or folder of edgeapp/data, in the source tree and in the frozen file alike."""
    return Path(__file__).parent / "data" / name


def library_root() -> Path:
    """The folder that bundled libraries are named relative to: the bundle, or site-packages."""
    if FROZEN:
        return Path(sys._MEIPASS)  # type: ignore[attr-defined]
    found = importlib.util.find_spec("tensorrt_lean_libs")
    if found is None or found.origin is None:
        return Path(sysconfig.get_paths()["purelib"])
    return Path(found.origin).parents[1]


def restore_environment() -> None:
    """Give child processes the environment of the user.

    PyInstaller's bootloader puts the bundle first in LD_LIBRARY_PATH and keeps the original in
    LD_LIBRARY_PATH_ORIG (PyInstaller 6, "common issues and pitfalls"). The dynamic loader read
    the variable when this process started, so changing it now alters nothing here. By other
    variables the bootloader would take this program, called by itself, for a part of this
    process that has the bundle in LD_LIBRARY_PATH, and leave it out there.
    """
    if FROZEN:
        for name in [name for name in os.environ if name.startswith("_PYI_")]:
            del os.environ[name]
        original = os.environ.pop("LD_LIBRARY_PATH_ORIG", None)
        if original is None:
            os.environ.pop("LD_LIBRARY_PATH", None)
        else:
            os.environ["LD_LIBRARY_PATH"] = original


def loader_words(error: BaseException) -> str:
    """What the dynamic loader said; in the frozen program PyInstaller puts words of its own over it."""
    return str(error.__cause__ or error.__context__ or error)


def text(path: str) -> str:
    """A path as valid Unicode: bytes that are no UTF-8 are shown as \\xNN."""
    try:
        return os.fsencode(path).decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half a letter, out of a JSON text: no file has such a name
        return path.encode("utf-8", "backslashreplace").decode()


def printable(path: str) -> str:
    """A path in one line: a file name may hold a newline, which must not break a line of a log."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text(path))


def refusal(what: str, error: OSError, *, writing: bool = False) -> errors.EdgeappError:
    """The error to raise for an OSError.

    Args:
        what: what could not be done, "cannot read x.jpg".
        error: as caught.
        writing: whether an output was concerned.
    """
    why = (error.strerror or str(error)).lower()
    if isinstance(error, PermissionError):
        return errors.NotPermittedError(what, why, "check the owner and the mode of the file and its folders")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return errors.CannotWriteError(what, why, "free some space, or write to another file system")
    if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN):
        return errors.SystemRefusedError(what, why, "raise the limit (ulimit -n, memory) and try again")
    if error.errno == errno.EIO:
        return errors.InputOutputError(what, why, "check the disk: dmesg tells more")
    if writing and error.errno == errno.EROFS:
        return errors.CannotWriteError(what, why, "name another place, or make this one writable (mount -o remount,rw)")
    if writing:
        return errors.CannotWriteError(what, why, "name an output that can be written")
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return errors.NotFoundError(what, why, "check the name")
    if error.errno == errno.ENAMETOOLONG:
        return errors.NotFoundError(what, why, "use a shorter name")
    return errors.InputOutputError(what, why)
