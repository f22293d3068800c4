"""What an installation consists of: steps that can be shown as well as done."""

from __future__ import annotations

import os
import pwd
import shlex
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeapp import errors, paths
from edgeapp.service import systemctl
from edgeapp.stopping import Stop


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
        text: what it does, as a command or nearly so.
        do: does it; raises OSError or EdgeappError.
        content: of the file that it writes.
    """

    text: str
    do: Callable[[], object]
    content: str = ""


def as_root(what: str, command: str) -> None:
    """What is made from now on, everybody may read; raises NotPermittedError for anybody but root."""
    if os.geteuid() != 0:
        raise errors.NotPermittedError(
            f"cannot {what}", f"only root may, and this is user {os.geteuid()}", f"sudo {command}"
        )
    os.umask(0o022)


def show(steps: Iterable[Step]) -> Iterable[str]:
    """The steps as text; nothing is done."""
    for step in steps:
        yield f"{step.text}\n"
        yield "".join(f"    {line}\n" for line in step.content.splitlines())


def do(steps: Sequence[Step], stop: Stop, say: Callable[[str], None]) -> None:
    """Do them in order.

    Raises:
        EdgeappError: one cannot be done; those before it are. Stopped: a signal came.
    """
    for step in steps:
        stop.check()
        say(f"edgeapp: {step.text}")
        try:
            step.do()
        except OSError as error:
            raise paths.refusal(f"cannot do: {step.text}", error, writing=True) from error


def command(*words: str, may_fail: bool = False) -> Step:
    return Step(shlex.join(words), lambda: systemctl.run(words, may_fail=may_fail))


def folder(path: Path, mode: int = 0o755, owner: str = "root") -> Step:
    """A folder of that mode and owner; both stay as they are where it exists."""

    def make() -> None:
        if not path.is_dir():
            path.mkdir(parents=True)
            shutil.chown(path, owner, owner)
            path.chmod(mode)

    return Step(f"mkdir --parents --mode={mode:04o} {path}  # of {owner}", make)


def file(path: Path, content: str) -> Step:
    """A file that everybody may read, in one piece or not at all."""

    def write() -> None:
        new = path.with_name(f".{path.name}.new")
        with open(new, "w", encoding="utf-8") as out:
            os.fchmod(out.fileno(), 0o644)
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        os.replace(new, path)

    return Step(f"write {path}", write, content)


def link(path: Path, target: Path) -> Step:
    """A link in one piece, in place of another link or of nothing."""

    def make() -> None:
        new = path.with_name(f".{path.name}.new")
        new.unlink(missing_ok=True)
        new.symlink_to(target)
        os.replace(new, path)

    return Step(f"ln --symbolic {target} {path}", make)


def remove(path: Path) -> Step:
    """A file, or a folder with all in it; nothing where there is none."""

    def make() -> None:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    return Step(f"rm --recursive --force {path}", make)


def remove_empty(path: Path) -> Step:
    """A folder, if nothing is in it."""

    def make() -> None:
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()

    return Step(f"rmdir --ignore-fail-on-non-empty {path}", make)


def user_comment(name: str) -> str | None:
    """What the account database says of a user; None if there is none."""
    try:
        return pwd.getpwnam(name).pw_gecos
    except KeyError:
        return None
