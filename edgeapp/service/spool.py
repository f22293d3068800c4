"""The folders of a service: inputs come into one and leave it for done/ or failed/, each exactly once."""

from __future__ import annotations

import errno
import fcntl
import itertools
import json
import os
import time
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from edgeapp import errors, paths
from edgeapp.service.durable import TEMPORARY, remove_unfinished, rename_new, sync_folder, write_file

ERROR_SUFFIX, RESULT_SUFFIX, PICTURE_SUFFIX = ".error.json", ".json", ".annotated.jpg"
SIDECARS = (ERROR_SUFFIX, RESULT_SUFFIX, PICTURE_SUFFIX)
"""How the names of files end that lie beside an input and tell of it: NAME.json."""

PENDING = ".pending"
"""Sidecars that are written before their input moves, and named after it, are hidden and end so."""

MOST_NAME_BYTES, MOST_SUFFIX_BYTES = 255, 20

Stamp = tuple[int, int, int, int]
"""Device, inode, size and time of the last change of a file: other bytes under the same name have another one."""


def stamp_of(status: os.stat_result) -> Stamp:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


@dataclass(frozen=True)
class Spool:
    """Where a service takes inputs from and where it puts them.

    Attributes:
        watched: inputs appear here.
        done, failed: they are moved here; beside a failed one lies NAME.error.json.
        results: JSON Lines, and what else is written for each input.
        state: the ledger and the lock.
    """

    watched: str
    done: str
    failed: str
    results: str
    state: str

    @classmethod
    def at(cls, root: str, watched: str | None = None) -> Spool:
        """The folders under `root`; inputs may come into another one, on the same file system."""
        done, failed, results, state = (os.path.join(root, name) for name in ("done", "failed", "results", "state"))
        return cls(watched or os.path.join(root, "in"), done, failed, results, state)

    @property
    def folders(self) -> tuple[str, ...]:
        return self.watched, self.done, self.failed, self.results, self.state

    def make(self) -> None:
        """Make the folders that are missing, and clear away what a killed process left in ours: hold `locked`.

        Raises:
            EdgeappError: one cannot be made or written, or inputs cannot be moved out of the watched folder.
        """
        for number, folder in enumerate(self.folders):
            try:
                os.makedirs(folder, exist_ok=True)
                if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
                    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
                if number > 0:  # ours
                    self._clear(folder)
            except OSError as error:
                raise paths.refusal(f"cannot use the folder {paths.printable(folder)}", error, writing=True) from error
        for folder in (self.done, self.failed):
            self._try_to_move(folder)

    def _clear(self, folder: str) -> None:
        if os.path.samefile(folder, self.watched):
            raise errors.ConfigurationError(
                f"cannot watch {paths.printable(self.watched)}",
                f"it is the spool's own {os.path.basename(folder)}/",
                "give --watch a folder for inputs alone, or leave it out",
            )
        remove_unfinished(folder)
        if folder in (self.done, self.failed):
            _settle_sidecars(folder)

    def _try_to_move(self, folder: str) -> None:
        name = f".move{TEMPORARY}"
        try:
            os.close(os.open(os.path.join(self.watched, name), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
            try:
                os.rename(os.path.join(self.watched, name), os.path.join(folder, name))
            except OSError:
                os.unlink(os.path.join(self.watched, name))
                raise
            os.unlink(os.path.join(folder, name))
        except OSError as error:
            what = f"cannot move files from {paths.printable(self.watched)} to {paths.printable(folder)}"
            if error.errno == errno.EXDEV:
                raise errors.ConfigurationError(
                    what,
                    "they are on two file systems, or two mounts of one",
                    "give a --spool beside the watched folder, inside the same mount",
                ) from error
            raise paths.refusal(what, error, writing=True) from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """While the body runs, no other process serves this spool or watches its folder; makes what is missing of both.

        Raises:
            SystemRefusedError: one does.
        """
        path = os.path.join(self.state, "lock")
        with ExitStack() as stack:
            try:
                os.makedirs(self.state, exist_ok=True)
                os.makedirs(self.watched, exist_ok=True)
                file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
                stack.callback(os.close, file)
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                folder = os.open(self.watched, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                stack.callback(os.close, folder)
                _lock_if_possible(folder)
            except BlockingIOError as error:
                raise errors.SystemRefusedError(
                    f"cannot serve {paths.printable(self.watched)}",
                    "another process does already",
                    "stop it first: systemctl stop edgeapp",
                ) from error
            except OSError as error:
                raise paths.refusal(f"cannot lock {paths.printable(path)}", error, writing=True) from error
            yield

    def input(self, name: str) -> str:
        return os.path.join(self.watched, name)

    def prepare(
        self, name: str, folder: str, stamp: Stamp, sidecars: Mapping[str, bytes], taken: Container[str] = ()
    ) -> str:
        """Write what shall lie beside an input that is about to move to done/ or failed/, under names that wait.

        Args:
            sidecars: ending of the name -> content.
            taken: names that others will have there.

        Returns:
            the input's name there, for `move`.

        Raises:
            OSError: it could not be written; it can be tried again.
        """
        target = free_name(folder, name, stamp, taken)
        for ending, data in sidecars.items():
            write_file(os.path.join(folder, f".{target}{ending}{PENDING}"), data)
        return target

    def move(self, name: str, folder: str, stamp: Stamp, target: str, sidecars: Iterable[str]) -> bool:
        """Move an input to done/ or failed/, then give its sidecars their names.

        Returns:
            False when the input is gone, or another one took its name in the meantime, which stays.

        Raises:
            OSError: it could not be moved; it can be tried again.
        """
        there = os.path.join(folder, target)
        pending = {os.path.join(folder, f".{target}{ending}{PENDING}"): there + ending for ending in sidecars}
        try:
            if stamp_of(os.lstat(self.input(name))) == stamp:
                rename_new(self.input(name), there)
                if stamp_of(moved := os.lstat(there)) == stamp:
                    for waiting, final in pending.items():
                        with suppress(FileNotFoundError):  # somebody has tidied up
                            os.rename(waiting, final)
                    return True
                # Replaced between the two calls: what came is a new input.
                rename_new(there, self.input(free_name(self.watched, name, stamp_of(moved))))
        except FileNotFoundError:
            pass
        for waiting in pending:
            with suppress(FileNotFoundError):
                os.unlink(waiting)
        return False

    def remove(self, name: str, stamp: Stamp) -> bool:
        """Delete an input that is done; False when it is gone already, or is another one by now."""
        try:
            if stamp_of(os.lstat(self.input(name))) != stamp:
                return False
            os.unlink(self.input(name))
        except FileNotFoundError:
            return False
        return True

    def sync(self) -> None:
        """Bring the moves to the disk: the new names first."""
        for folder in (self.results, self.done, self.failed, self.watched):
            sync_folder(folder)


def _lock_if_possible(folder: int) -> None:
    """Lock a folder where its file system can; NFS locks only what is open for writing, as no folder can be."""
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        pass


def free_name(folder: str, name: str, stamp: Stamp, taken: Container[str] = ()) -> str:
    """The name, or, where it or that of a sidecar is taken, NAME~TIME: when the file was last changed, UTC."""
    stem, suffix = os.path.splitext(name)
    if len(os.fsencode(suffix)) > MOST_SUFFIX_BYTES:
        stem, suffix = name, ""
    seconds, nanoseconds = divmod(stamp[3], 10**9)
    try:
        when = f"~{time.strftime('%Y%m%dT%H%M%S', time.gmtime(seconds))}.{nanoseconds:09d}"
    except (OverflowError, ValueError, OSError):  # a file can say that it is older or younger than any calendar
        when = f"~{stamp[3]}"
    for added in itertools.chain(("", when), (f"{when}~{count}" for count in range(2, 1 << 16))):
        most = MOST_NAME_BYTES - len(os.fsencode(f".{added}{suffix}{PICTURE_SUFFIX}{PENDING}"))
        tried = os.fsdecode(os.fsencode(stem)[:most]) + added + suffix
        if tried not in taken and not any(
            os.path.lexists(os.path.join(folder, tried + end)) for end in ("", *SIDECARS)
        ):
            return tried
    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)


def _settle_sidecars(folder: str) -> None:
    """Give sidecars their names where the process was killed before that, or remove them if their input stayed."""
    names = set(os.listdir(folder))
    for name in names:
        if not (name.startswith(".") and name.endswith(PENDING)):
            continue
        final = name[1 : -len(PENDING)]
        if any(final.endswith(ending) and final.removesuffix(ending) in names for ending in SIDECARS):
            os.rename(os.path.join(folder, name), os.path.join(folder, final))
        else:
            os.unlink(os.path.join(folder, name))


def dumps(record: Mapping[str, Any]) -> bytes:
    """One line of JSON."""
    return json.dumps(record, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
