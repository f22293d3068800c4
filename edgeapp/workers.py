"""Threads that do one kind of work; handing it over costs a few microseconds, a tenth of concurrent.futures."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any


class Workers:
    """Some threads that make a call with each set of arguments that is put.

    Args:
        count: of threads.
        name: of each.
        call: must not raise.
    """

    def __init__(self, count: int, name: str, call: Callable[..., None]) -> None:
        self._call = call
        self._work: SimpleQueue[tuple[Any, ...] | None] = SimpleQueue()
        self._ended = False
        self._threads = [threading.Thread(target=self._run, name=name, daemon=True) for _ in range(count)]

    def start(self) -> None:
        """Start the threads.

        Raises:
            RuntimeError: the system refuses one of them.
        """
        for thread in self._threads:
            thread.start()

    def put(self, *arguments: Any) -> None:
        """Have the call made by the next thread that is free."""
        self._work.put(arguments)

    def end(self) -> None:
        """Give up what has not begun, and wait for the rest."""
        self._ended = True
        started = [thread for thread in self._threads if thread.ident is not None]
        for _ in started:
            self._work.put(None)
        for thread in started:
            thread.join()

    def _run(self) -> None:
        while (arguments := self._work.get()) is not None:
            if not self._ended:
                self._call(*arguments)
