"""Where files go: the cache of the program, the temporary folder, the current folder."""

from __future__ import annotations

import os
import pwd
import tempfile
import time
from collections.abc import Iterator

from edgeapp import launched, paths
from edgeapp.checks import FAILURE, NOTE, OK, SKIPPED, WARNING, Check, Machine, size
from edgeapp.errors import CannotWriteError

LEAST_CACHE = 400 << 20
"""Bytes: the next version unpacks beside this one."""

LEAST_TEMPORARY = 64 << 20
LEAST_RESULTS = 100 << 20
FULL = 64 << 10
"""Bytes: a file system with less is full; some keep a last block that nobody can use."""

SYNCS, SYNC_BYTES = 5, 4096
SLOW_SYNC_MS = 100.0


def cache_folder() -> Check:
    """Where this program is unpacked; the launcher has refused noexec and other people's folders."""
    name = "cache folder"
    if not launched.launched().content:
        return Check(name, SKIPPED, "only the one file unpacks itself; this program runs from a folder")
    folder = str(paths.library_root().parents[1])
    status, system = os.stat(folder), os.statvfs(folder)
    free = system.f_bavail * system.f_frsize
    found = f"{folder}, of {_user(status.st_uid)}, {size(free)} free"
    if folder.startswith(("/tmp/", "/var/tmp/")):
        return Check(
            name, NOTE, found, "a folder that is never emptied",
            "what cleans old temporary files may remove it; then the next start unpacks again",
            "set EDGEAPP_CACHE or HOME",
        )  # fmt: skip
    if free < LEAST_CACHE and system.f_blocks and not system.f_flag & os.ST_RDONLY:
        return Check(name, WARNING, found, f"{size(LEAST_CACHE)} or more free",
                     "a new version of the program cannot unpack here",
                     "edgeapp cache clear, free some space, or set EDGEAPP_CACHE")  # fmt: skip
    return Check(name, OK, found)


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"user {number}"


def temporary_folder(machine: Machine) -> Check:
    """TMPDIR or /tmp: writable, with space, programs allowed."""
    name = "temporary folder"
    folder = machine.environ.get("TMPDIR") or "/tmp"
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(SYNC_BYTES))
        system = os.statvfs(folder)
    except OSError as error:
        return Check(
            name, WARNING, f"{folder}: {(error.strerror or str(error)).lower()}", "a folder that can be written",
            "libraries inside and the driver may want it", "set TMPDIR to a folder that can be written",
        )  # fmt: skip
    free = system.f_bavail * system.f_frsize
    found = f"{folder}, {size(free)} free"
    if system.f_flag & os.ST_NOEXEC:
        return Check(name, NOTE, f"{found}, noexec", "", "programs may not run there; this one does not need it",
                     "set EDGEAPP_CACHE where neither HOME nor CACHE_DIRECTORY can hold the program")  # fmt: skip
    if free < LEAST_TEMPORARY and system.f_blocks:
        return Check(name, WARNING, found, f"{size(LEAST_TEMPORARY)} or more free", "it is nearly full",
                     "free some space there, or set TMPDIR")  # fmt: skip
    return Check(name, OK, found)


def current_folder() -> Iterator[Check]:
    """Its space, and how long a small write takes until it is on the disk (median of five)."""
    name, sync = "current folder", "sync to disk"
    folder = os.getcwd()
    system = os.statvfs(folder)
    free = system.f_bavail * system.f_frsize
    found = f"{folder}, {size(free)} free"
    if system.f_flag & os.ST_RDONLY or not os.access(folder, os.W_OK | os.X_OK):
        why = "read-only" if system.f_flag & os.ST_RDONLY else "this user may not write there"
        yield Check(name, NOTE, found, "", why, "write results to another folder: --output, --save")
        yield Check(sync, SKIPPED, "nothing can be written to the current folder")
        return
    full = Check(name, FAILURE, found, f"{size(LEAST_RESULTS)} or more free", "the disk is full",
                 "free some space, or write results to another file system", CannotWriteError.exit_code)  # fmt: skip
    if free < FULL and system.f_blocks:
        yield full
        yield Check(sync, SKIPPED, "the disk is full")
        return
    if free < LEAST_RESULTS and system.f_blocks:
        yield Check(name, WARNING, found, full.wanted, "the disk is nearly full", full.fix)
    else:
        yield Check(name, OK, found)
    yield judge_sync(_sync_ms(folder))


def _sync_ms(folder: str) -> float:
    """Milliseconds of an fsync after 4096 bytes; the file has no name, so nothing of it stays."""
    times_ms = []
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        for _ in range(SYNCS):
            began = time.perf_counter()
            file.write(bytes(SYNC_BYTES))
            os.fsync(file.fileno())
            times_ms.append((time.perf_counter() - began) * 1e3)
    return sorted(times_ms)[SYNCS // 2]


def judge_sync(median_ms: float) -> Check:
    """`median_ms`: as measured in the current folder."""
    found, wanted = f"{median_ms:.1f} ms, median of {SYNCS}", f"less than {SLOW_SYNC_MS:.0f} ms"
    if median_ms >= SLOW_SYNC_MS:
        return Check("sync to disk", WARNING, found, wanted, "this disk is slow, or busy, or worn",
                     "write results to another disk; see iostat, and the life time of eMMC and SD cards")  # fmt: skip
    return Check("sync to disk", OK, found, wanted)
