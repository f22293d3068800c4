"""Errors that a user can act on: what happened, why, and what to do; one exit code each.

The codes follow sysexits.h, so that a unit file can tell the curable from the incurable.
"""

from __future__ import annotations

import errno


class EdgeappError(Exception):
    """An error with its three parts; `cli` prints it and returns `exit_code`.

    Args:
        what: what failed, with the values in it; lower case, no full stop.
        why: the cause, where it is known.
        fix: what to do next, where there is something to do.
    """

    exit_code = 70

    def __init__(self, what: str, why: str = "", fix: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.why = why
        self.fix = fix

    def __str__(self) -> str:
        lines = [self.what]
        if self.why:
            lines.append(f"  why: {self.why}")
        if self.fix:
            lines.append(f"  fix: {self.fix}")
        return "\n".join(lines)


class UsageError(EdgeappError):
    """The command line is wrong."""

    exit_code = 64


class DataError(EdgeappError):
    """A plan, a model or an input is not what it should be."""

    exit_code = 65


class NotFoundError(EdgeappError):
    """A named file does not exist."""

    exit_code = 66


class NoGpuError(EdgeappError):
    """There is no usable NVIDIA driver or GPU."""

    exit_code = 69


class SystemRefusedError(EdgeappError):
    """The operating system refused memory, processes or file handles."""

    exit_code = 71


class CannotWriteError(EdgeappError):
    """An output cannot be created or is full."""

    exit_code = 73


class InputOutputError(EdgeappError):
    """Reading or writing failed half-way."""

    exit_code = 74


class GpuLostError(EdgeappError):
    """The CUDA context is broken for good; only a new process heals it."""

    exit_code = 75


class NotPermittedError(EdgeappError):
    """A file may not be read or written by this user."""

    exit_code = 77


class ConfigurationError(EdgeappError):
    """A model card, a setting or a signature is wrong."""

    exit_code = 78


class Stopped(BaseException):
    """A signal asked the program to end; BaseException, so that no `except Exception` eats it."""


REFUSED = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN)
STARVED = ("cannot allocate memory", "can't start new thread", "failed to map segment", "pthread_create failed")
"""What Python, the dynamic loader and libraries say in exceptions of any type when memory is refused, in lower case."""


def starved(error: BaseException) -> str | None:
    """The line that tells that the system refused memory, a thread or a file; None if it is about something else."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in REFUSED):
        return str(error)
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if any(words in line.lower() for words in STARVED)), None)


def unforeseen(error: Exception) -> EdgeappError:
    """What to tell of an exception that is none of these."""
    if (why := starved(error)) is not None:
        if isinstance(error, OSError):
            return SystemRefusedError("the system refused a resource", why, "raise the limit (ulimit -n, memory)")
        return SystemRefusedError("not enough memory", why, "use a smaller --batch or smaller pictures")
    return EdgeappError(
        f"internal error: {type(error).__name__}: {error}",
        "this is a bug in edgeapp",
        "report it with the lines above",
    )


def meaning(code: int) -> str:
    """What an exit code says, in words."""
    known = {0: "done", 1: "some inputs failed, the others are done", 70: "a bug in edgeapp"}
    for kind in EdgeappError.__subclasses__():
        known.setdefault(kind.exit_code, str(kind.__doc__).splitlines()[0].rstrip(".").lower())
    if code > 128:
        return f"ended by signal {code - 128}"
    return known.get(code, "no code of edgeapp")
