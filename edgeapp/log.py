"""What the program says to a person: always on standard error, never among the results."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from edgeapp import paths
from edgeapp.errors import EdgeappError, InputOutputError

if TYPE_CHECKING:
    from edgeapp.records import Result


def tell(texts: Iterable[str]) -> None:
    """Write to standard output what a command was asked for.

    Raises:
        InputOutputError: it is closed, or its reader went away. CannotWriteError: it is full.
    """
    try:
        if sys.stdout is None:
            raise InputOutputError("cannot write standard output", "it is closed")
        for text in texts:
            sys.stdout.buffer.write(text.encode("utf-8", "backslashreplace"))
        sys.stdout.buffer.flush()
    except BrokenPipeError as error:
        raise InputOutputError("cannot write standard output", "its reader went away") from error
    except OSError as error:
        raise paths.refusal("cannot write standard output", error, writing=True) from error


class Talk:
    """Messages, a progress bar and errors on standard error.

    Args:
        quiet: only errors are said.
        debug: `detail` is said too.
    """

    def __init__(self, *, quiet: bool = False, debug: bool = False) -> None:
        self.quiet = quiet
        self.debug = debug
        self._bar: Any = None

    @staticmethod
    def on_terminal() -> bool:
        """Whether a person watches, on a terminal that can move its cursor."""
        stream = sys.stderr
        return stream is not None and stream.isatty() and os.environ.get("TERM") not in (None, "dumb")

    def note(self, text: str) -> None:
        if not self.quiet:
            self._write(text)

    def always(self, text: str) -> None:
        """Say what was asked for by a flag."""
        self._write(text)

    def detail(self, text: str) -> None:
        if self.debug:
            self._write(text)

    def error(self, error: EdgeappError) -> None:
        """Print the three parts; the name stands out where colours are wanted (NO_COLOR)."""
        name = "edgeapp:"
        if self.on_terminal() and not os.environ.get("NO_COLOR"):
            name = f"\x1b[1;31m{name}\x1b[0m"
        self._write(f"{name} {error}")

    def _write(self, text: str) -> None:
        if sys.stderr is None:
            return
        text = text.encode(sys.stderr.encoding or "utf-8", "backslashreplace").decode(sys.stderr.encoding or "utf-8")
        with contextlib.suppress(OSError):  # nobody reads: the exit code still tells
            if self._bar is not None:
                self._bar.console.out(text, highlight=False)
            else:
                sys.stderr.write(text + "\n")
                sys.stderr.flush()

    @contextmanager
    def progress(self, total: int | None) -> Iterator[Progress]:
        """A bar with count, rate and time left while the body runs; nothing without a terminal."""
        if self.quiet or not self.on_terminal() or total == 1:
            yield Progress(self, None, 0)
            return
        from rich import progress as rich  # late: 0.1 s, and only people on terminals need it
        from rich.console import Console

        columns = (
            rich.BarColumn(),
            rich.MofNCompleteColumn(),
            rich.TextColumn("{task.fields[rate]}"),
            rich.TimeRemainingColumn(),
        )
        with rich.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            self._bar = bar
            try:
                yield Progress(self, bar, bar.add_task("", total=total, rate=""))
            finally:
                self._bar = None


class Progress:
    """Counts finished inputs on a bar, or does nothing without one."""

    def __init__(self, talk: Talk, bar: Any, task: Any) -> None:
        self._talk = talk
        self._bar = bar
        self._task = task

    def finished(self, result: Result) -> None:
        """Say what was wrong with an input, and count it."""
        if result.error is not None:
            self._talk.error(result.error)
        self.advance()

    def advance(self) -> None:
        if self._bar is not None:
            task = self._bar.tasks[0]
            rate = f"{(task.completed + 1) / max(task.elapsed or 0, 1e-9):.1f}/s"
            self._bar.update(self._task, advance=1, rate=rate)
