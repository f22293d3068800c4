"""The program as one file: whether a file is one that runs here, and how it becomes a version of /opt/edgeapp."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
from pathlib import Path

from edgeapp import errors, paths
from edgeapp.service import systemctl
from edgeapp.service.unit import CACHE, HOME
from edgeapp.service.versions import State, Versions

TRAILER_BYTES = 64
MAGIC = b"edgeapp\x01"
"""The last 64 bytes of the one file begin with it (hooks/launcher/content.h)."""

ELF_HEADER_BYTES = 20
MACHINES = {62: "x86-64", 183: "aarch64"}

VERSION_S, SELF_TEST_S = 120.0, 300.0
"""The first one unpacks 400 MB, the second loads all of it; on an SD card that takes its time."""

STARTS = 2


def versions() -> Versions:
    """The installed programs."""
    return Versions(HOME)


def check_form(file: Path) -> None:
    """Whether a file looks like a whole edgeapp for this kind of machine, before anything of it is run.

    Raises:
        DataError: it is none. OSError: it cannot be read.
    """
    name = paths.printable(str(file))
    if not stat.S_ISREG(os.stat(file).st_mode):  # a pipe without a writer would never be open
        raise errors.DataError(f"cannot install {name}: it is no regular file", "", "name a file")
    with open(file, "rb") as opened:
        head = opened.read(ELF_HEADER_BYTES)
        opened.seek(max(0, os.fstat(opened.fileno()).st_size - TRAILER_BYTES))
        tail = opened.read()
    if head[:4] != b"\x7fELF" or len(head) < ELF_HEADER_BYTES:
        raise errors.DataError(f"cannot install {name}: it is no program", "", "name the file edgeapp of a release")
    machine, here = int.from_bytes(head[18:20], "little"), _machine_here()
    if machine != here:
        words = [MACHINES.get(number, f"machine {number}") for number in (machine, here)]
        raise errors.DataError(
            f"cannot install {name}: it is a program for {words[0]}", f"this machine is {words[1]}",
            f"take the file for {words[1]}",
        )  # fmt: skip
    if not tail.startswith(MAGIC):
        raise errors.DataError(
            f"cannot install {name}: it is no edgeapp, or it is cut short",
            "what every edgeapp ends with is not there",
            "copy it again and compare sha256sum with the original",
        )


def _machine_here() -> int:
    with open("/proc/self/exe", "rb") as file:
        return int.from_bytes(file.read(ELF_HEADER_BYTES)[18:20], "little")


def stage(file: Path, data: bytes | None, *, tried: bool) -> str:
    """Make a file a version, not yet the current one; its unpacked content is ready for all users.

    Args:
        file: the one file.
        data: its bytes where they were read to be verified; the file may be another one since.
        tried: everything inside is known to work here, because it runs.

    Returns:
        the name of the version.

    Raises:
        DataError: it does not work here. OSError: something cannot be read or written.
    """
    with versions().new() as folder:
        program = folder / "edgeapp"
        if data is None:
            shutil.copyfile(file, program)
        else:
            program.write_bytes(data)
        program.chmod(0o755)
        check_form(program)
        try:
            facts = json.loads(ask(program, "--version", "--json", limit_s=VERSION_S))
            version = str(facts["edgeapp"])
        except (ValueError, KeyError, TypeError):
            version = ""
        if not re.fullmatch(r"[0-9A-Za-z][0-9A-Za-z.+-]{0,40}", version):
            raise errors.DataError(
                f"cannot install {paths.printable(str(file))}: it does not tell its version", "",
                "name the file edgeapp of a release",
            )  # fmt: skip
        if not tried:
            ask(program, "self-test", limit_s=SELF_TEST_S)
        name = f"{version}-{_sha256(program)[:12]}"
        versions().keep(folder, name)
    return name


def ask(program: Path, *words: str, limit_s: float) -> str:
    """What a program prints; it unpacks itself where all users find it.

    Raises:
        DataError: it cannot be started, fails, or takes too long.
    """
    environ = {key: value for key, value in os.environ.items() if not key.startswith("EDGEAPP_")}
    what = f"cannot use {program.name}: its {words[0].removeprefix('--')}"
    try:
        done = subprocess.run(
            [program, *words], env={**environ, "EDGEAPP_CACHE": str(CACHE)}, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, errors="backslashreplace", check=False, timeout=limit_s,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise errors.DataError(f"{what} does not end", f"it was given {limit_s:g} s") from None
    except OSError as error:
        raise errors.DataError(f"{what} cannot be asked for", (error.strerror or str(error)).lower()) from error
    if done.returncode:
        why = " / ".join(done.stderr.strip().splitlines()[-3:])
        raise errors.DataError(f"{what} ended with {done.returncode}", why, "take another build for this machine")
    return done.stdout


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with open(file, "rb") as opened:
        while chunk := opened.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def settle(changed: Versions, before: State) -> None:
    """Let the service run with the version that is current now, or go back to what was before.

    Args:
        changed: the versions of the program, or of its model.

    Raises:
        SystemRefusedError: it did not become ready, and what was before runs again, or neither does.
    """
    now = changed.state()
    if not systemctl.is_running():
        return
    for _ in range(STARTS):
        if systemctl.restart():
            return
    why = systemctl.last_end()
    if not before.current:
        raise errors.SystemRefusedError("the service does not become ready", why, "edgeapp service logs")
    changed.restore(before)
    back = systemctl.restart()
    raise errors.SystemRefusedError(
        f"{now.current} did not become ready, twice; {before.current} is current again"
        + ("" if back else ", and does not become ready either"),
        why,
        "edgeapp service logs",
    )
