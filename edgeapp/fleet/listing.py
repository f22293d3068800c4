"""The inputs in groups, listed without waiting."""

from __future__ import annotations

import time
from collections import deque
from typing import IO

from edgeapp.pipeline import Grouping, Source
from edgeapp.records import Frame


class Listing:
    """The inputs in groups, listed as they are wanted and without waiting for a list that is silent.

    Args:
        source: tells at once when it would have to wait.
        stream: what it waits for then.
        patience_s: how long a group may wait to become full while the stream is silent, seconds.

    Attributes:
        count: of the inputs that were given out.
        ended: whether there are no more.
    """

    def __init__(self, source: Source, grouping: Grouping, stream: IO[bytes] | None, patience_s: float) -> None:
        self._frames = iter(source)
        self._grouping = grouping
        self._stream = stream
        self._patience_s = patience_s
        self._groups: deque[list[Frame]] = deque()
        self._silent = False
        self._due_s = 0.0
        self._listed_all = False
        self.count = 0

    @property
    def ended(self) -> bool:
        return self._listed_all and not self._groups

    def next(self) -> tuple[int, list[Frame]] | None:
        """The number of its first input, and a group; None when there is none now."""
        while not (self._groups or self._silent or self._listed_all):
            try:
                frame = next(self._frames)
            except StopIteration:
                self._listed_all = True
                self._groups.extend(self._grouping.rest())
                break
            if frame is None:
                self._silent, self._due_s = True, time.monotonic() + self._patience_s
            else:
                self._groups.extend(self._grouping.add(frame))
        if self._silent and not self._groups and time.monotonic() >= self._due_s:
            self._groups.extend(self._grouping.rest())
        if not self._groups:
            return None
        frames = self._groups.popleft()
        self.count += len(frames)
        return self.count - len(frames), frames

    def waits_for(self) -> tuple[list[int], float | None]:
        """(what has to become readable before `next` gives more, how long to wait for it, seconds)."""
        if not self._silent or self._stream is None:
            return [], None
        timeout_s = max(0.0, self._due_s - time.monotonic()) if self._grouping.begun else None
        return [self._stream.fileno()], timeout_s

    def heard(self) -> None:
        """The stream is readable."""
        self._silent = False
