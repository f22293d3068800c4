"""`edgeapp cache`: the folder into which the one file unpacks itself; hooks/launcher says what lies there."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

from edgeapp import errors, launched, paths
from edgeapp.log import Talk, tell
from edgeapp.stopping import Stop

NAME = re.compile(r"[0-9a-f]{32}")


def cache(action: str, as_json: bool, stop: Stop, talk: Talk) -> int:
    """Do it; 0, or 65 if verify finds a damaged content.

    Raises:
        NotFoundError: this is no one file, so nothing was unpacked.
        CannotWriteError, NotPermittedError: clear may not remove something.
    """
    if not launched.launched().content:
        raise errors.NotFoundError(
            "there is no cache", "only the one file unpacks itself; this program runs from a folder", ""
        )
    folder = paths.library_root().parents[1]
    try:
        if action == "path":
            tell([f"{json.dumps({'path': paths.text(str(folder))}) if as_json else folder}\n"])
        elif action == "list":
            _list(folder, as_json)
        elif action == "verify":
            return _verify(folder, as_json, stop, talk)
        else:
            _clear(folder, as_json)
    except OSError as error:
        raise paths.refusal(f"cannot {action} {folder}", error, writing=action == "clear") from error
    return 0


def contents(folder: Path) -> list[Path]:
    """The contents in a cache folder, the newest first."""
    found = [path for path in folder.iterdir() if NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=lambda path: path.stat().st_ctime, reverse=True)


@contextmanager
def _alone(content: Path) -> Iterator[bool]:
    """Whether nobody else runs this content; while inside, nobody can start it either."""
    own = content.name == launched.launched().content
    if own and launched.launched().lock < 0:
        yield False
        return
    lock = launched.launched().lock if own else os.open(content, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        alone = True
    except OSError:
        alone = False
    try:
        yield alone
    finally:
        if own:
            fcntl.flock(lock, fcntl.LOCK_SH)
        else:
            os.close(lock)


def _list(folder: Path, as_json: bool) -> None:
    for content in contents(folder):
        status = content.stat()
        size = sum(path.lstat().st_size for path in content.rglob("*") if path.is_file() and not path.is_symlink())
        with _alone(content) as alone:
            facts = {
                "name": content.name,
                "bytes": size,
                "unpacked": datetime.fromtimestamp(status.st_ctime, timezone.utc).isoformat(timespec="seconds"),
                "this": content.name == launched.launched().content,
                "used_by_others": not alone,
            }
        if as_json:
            tell([json.dumps(facts) + "\n"])
        else:
            notes = [note for note, true in (("this program", facts["this"]), ("in use", not alone)) if true]
            tell([f"{content.name}  {size / 1e6:.0f} MB  {facts['unpacked']}  {', '.join(notes)}".rstrip() + "\n"])


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def faults(content: Path, stop: Stop) -> Iterator[str]:
    """What differs from the manifest, a line for each file.

    Raises:
        OSError: a file cannot be read.
    """
    manifest = (content / "manifest").read_bytes()
    if hashlib.sha256(manifest).hexdigest()[: len(content.name)] != content.name:
        yield "manifest: it is not the one that names this content"
        return
    listed = {"manifest"}
    for line in manifest.decode().splitlines():
        kind, _, rest = line.partition(" ")
        if kind not in ("file", "link", "dir"):
            continue
        *facts, name = rest.split(" ", {"file": 3, "link": 1, "dir": 0}[kind])
        listed.add(name)
        path = content / name
        stop.check()
        if not os.path.lexists(path):
            yield f"{name}: missing"
        elif kind == "link":
            if not path.is_symlink() or os.readlink(path) != facts[0]:
                yield f"{name}: not the link it was"
        elif path.is_symlink() or path.is_dir() != (kind == "dir"):
            yield f"{name}: of another kind"
        elif kind == "file" and _sha256(path) != facts[2]:
            yield f"{name}: its SHA-256 differs"
    for path in sorted(content.rglob("*")):
        if str(path.relative_to(content)) not in listed:
            yield f"{path.relative_to(content)}: not one of its files"


def _verify(folder: Path, as_json: bool, stop: Stop, talk: Talk) -> int:
    whole = True
    for content in contents(folder):
        found = list(faults(content, stop))
        whole = whole and not found
        if as_json:
            tell([json.dumps({"name": content.name, "whole": not found, "faults": found}) + "\n"])
        else:
            tell([f"{content.name}  {'DAMAGED' if found else 'whole'}\n", *(f"  {fault}\n" for fault in found)])
    if not whole:
        talk.note("edgeapp: edgeapp cache clear removes what is damaged, and all else that no running program uses")
    return 0 if whole else errors.DataError.exit_code


def _clear(folder: Path, as_json: bool) -> None:
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # as the launcher does: nobody unpacks in the meantime
        for left in folder.glob(".new-*"):  # of killed starts: with the lock, none of them is at work
            shutil.rmtree(left, ignore_errors=True)
        # This program's own files last: it runs from them.
        for content in sorted(contents(folder), key=lambda path: path.name == launched.launched().content):
            with _alone(content) as alone:
                if alone:
                    hidden = folder / f".new-{os.getpid()}-{content.name[:8]}"
                    content.rename(hidden)  # nobody starts it half removed
                    shutil.rmtree(hidden)
            if as_json:
                tell([json.dumps({"name": content.name, "removed": alone}) + "\n"])
            else:
                tell([f"{content.name}  {'removed' if alone else 'kept: a running program uses it'}\n"])
