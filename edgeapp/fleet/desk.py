"""The worker's side: where its pipeline takes inputs from and leaves results."""

from __future__ import annotations

import pickle
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from edgeapp import forking
from edgeapp.log import Talk
from edgeapp.pipeline import Source
from edgeapp.records import Frame, Result
from edgeapp.stopping import Stop


@dataclass(frozen=True)
class Ready:
    """What a worker tells when it can begin.

    Attributes:
        name: of its engine.
        batch: inputs of a group.
        depth: groups that keep it busy.
        pictures: whether pictures share a group; else each input is a group.
    """

    name: str
    batch: int
    depth: int
    pictures: bool


class Relay(Talk):
    """In a worker: has the parent say it, which does so by a Chorus."""

    def __init__(self, talk: Talk, link: forking.Link) -> None:
        super().__init__(quiet=talk.quiet, debug=talk.debug)
        self._link = link

    def _write(self, text: str) -> None:
        self._link.tell(forking.NOTE, text)

    def detail(self, text: str) -> None:
        if self.debug:
            self._link.tell(forking.DETAIL, text)


class Chorus:
    """In the parent: says what workers want said; what several say, once; details with the GPU."""

    def __init__(self, talk: Talk) -> None:
        self._talk = talk
        self._said: set[str] = set()

    def __call__(self, process: forking.Process, kind: str, text: str) -> None:
        if kind == forking.DETAIL:
            self._talk.detail(f"{process.name}: {text}")
        elif text not in self._said:
            self._said.add(text)
            self._talk.always(text)


class Desk:
    """The worker's side: source and sink of its pipeline.

    Attributes:
        device: the worker's GPU.
        stop: of its own; the parent sees to signals.
        talk: what is said there is said by the parent.
    """

    def __init__(self, device: int, link: forking.Link, talk: Talk) -> None:
        self.device = device
        self.stop = Stop()
        self.talk = Relay(talk, link)
        self._link = link
        self._files: Source
        self._taken: deque[tuple[int, int]] = deque()
        self._results: list[Result] = []

    def begin(self, files: Source, ready: Ready) -> None:
        """Tell the parent that inputs can come; `files` reads them."""
        self._files = files
        self._link.tell(forking.READY, ready)

    def __iter__(self) -> Iterator[Frame | None]:
        """The frames of each group, and None behind it: they are a batch."""
        while True:
            self.stop.wait_readable(self._link.fileno())
            for number, data in self._link.receive():
                if number == forking.NO_NUMBER:
                    return
                frames = pickle.loads(data)
                self._taken.append((number, len(frames)))
                yield from frames
                yield None

    def read(self, frame: Frame) -> None:
        self._files.read(frame)

    def is_tensors(self, frame: Frame) -> bool:
        return self._files.is_tensors(frame)

    def write(self, result: Result) -> None:
        """Send a group's results, when they are whole."""
        self._results.append(result)
        number, count = self._taken[0]
        if len(self._results) == count:
            self._taken.popleft()
            self._link.send(pickle.dumps(self._results, pickle.HIGHEST_PROTOCOL), number)
            self._results = []
