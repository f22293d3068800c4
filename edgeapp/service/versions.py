"""A folder of versions of one thing, a program or a model, of which one is current; switched in one step.

    versions/NAME/    what a version consists of; complete, for it gets its name when it is
    versions/.new-*   what is being made; of killed ones nothing else is left
    current           link to the version in use
    previous          link to the one before

Whatever is killed, and whenever the power fails, `current` names a complete version: links and folders are made beside
and renamed, and what they name is on disk before.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgeapp import errors

CURRENT, PREVIOUS, VERSIONS = "current", "previous", "versions"
NEW = ".new-"


@dataclass(frozen=True)
class State:
    """The names of the version in use and of the one before; "" for none."""

    current: str = ""
    previous: str = ""


class Versions:
    """The versions in a folder.

    Every method raises OSError where the file system refuses.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def current(self) -> Path:
        """The path that always leads to the version in use."""
        return self.folder / CURRENT

    def path(self, name: str) -> Path:
        return self.folder / VERSIONS / name

    def state(self) -> State:
        return State(self._named(CURRENT), self._named(PREVIOUS))

    def _named(self, link: str) -> str:
        try:
            name = os.path.basename(os.readlink(self.folder / link))
        except (FileNotFoundError, NotADirectoryError):
            return ""
        return name if self.path(name).is_dir() else ""

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Nobody else changes the versions while the body runs.

        Raises:
            SystemRefusedError: somebody does.
        """
        (self.folder / VERSIONS).mkdir(parents=True, exist_ok=True)
        lock = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise errors.SystemRefusedError(
                    f"cannot change {self.folder}", "another edgeapp is changing it now", "try again when it has ended"
                ) from None
            yield
        finally:
            os.close(lock)

    @contextmanager
    def new(self) -> Iterator[Path]:
        """A folder to make a version in; what is still there at the end is removed. Only `alone`."""
        for left in (self.folder / VERSIONS).glob(f"{NEW}*"):
            shutil.rmtree(left)
        made = Path(tempfile.mkdtemp(prefix=NEW, dir=self.folder / VERSIONS))
        made.chmod(0o755)
        try:
            yield made
        finally:
            shutil.rmtree(made, ignore_errors=True)

    def keep(self, made: Path, name: str) -> Path:
        """Give what new() made its name; one of that name must be the same thing, and stays."""
        for path in (*(path for path in made.rglob("*") if path.is_file()), made):
            _sync(path)
        if not self.path(name).is_dir():
            os.rename(made, self.path(name))
            _sync(self.folder / VERSIONS)
        return self.path(name)

    def activate(self, name: str) -> State:
        """Make a version the current one; gives what was before, for restore()."""
        before = self.state()
        if before.current not in ("", name):
            self._link(PREVIOUS, before.current)
        self._link(CURRENT, name)
        return before

    def restore(self, state: State) -> None:
        """Go back to what activate() found."""
        for link, name in ((CURRENT, state.current), (PREVIOUS, state.previous)):
            if name:
                self._link(link, name)
            elif os.path.lexists(self.folder / link):
                os.unlink(self.folder / link)
        _sync(self.folder)

    def earlier(self) -> str:
        """The name of the version before; NotFoundError if there is none."""
        state = self.state()
        if state.previous in ("", state.current):
            raise errors.NotFoundError(
                f"there is nothing to go back to in {self.folder}", "no version before the current one is kept", ""
            )
        return state.previous

    def rollback(self) -> State:
        """Exchange the current version and the one before; gives what was before.

        Raises:
            NotFoundError: there is none before.
        """
        before = self.state()
        self._link(CURRENT, self.earlier())
        if before.current:
            self._link(PREVIOUS, before.current)
        return before

    def prune(self) -> None:
        """Remove all versions but the current one and the one before."""
        state = self.state()
        for path in (self.folder / VERSIONS).iterdir():
            if path.name not in (state.current, state.previous):
                # First out of sight: nobody shall find half of a version under its name.
                hidden = path.with_name(f"{NEW}{path.name}")
                os.rename(path, hidden)
                shutil.rmtree(hidden)

    def _link(self, link: str, name: str) -> None:
        """Let a link name a version, in one step that lasts."""
        made = self.folder / f".{link}"
        if os.path.lexists(made):
            os.unlink(made)  # of one who was killed
        made.symlink_to(Path(VERSIONS) / name)
        os.rename(made, self.folder / link)
        _sync(self.folder)


def _sync(path: Path) -> None:
    number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(number)
    finally:
        os.close(number)
