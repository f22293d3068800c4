"""What systemd is told and asked."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

from edgeapp import errors
from edgeapp.service.unit import NAME

BOOTED = "/run/systemd/system"
"""Is there exactly when systemd runs the machine (sd_booted(3))."""


def demand() -> None:
    """Raise SystemRefusedError where systemd does not run the machine."""
    if not os.path.isdir(BOOTED):
        raise errors.SystemRefusedError(
            "there is no systemd that could run a service",
            f"process 1 of this machine is another program ({BOOTED} is missing), as in most containers",
            "in a container let `edgeapp serve` be its program",
        )


def run(words: Sequence[str], *, may_fail: bool = False) -> subprocess.CompletedProcess[str]:
    """Run a program of the system to its end.

    Raises:
        SystemRefusedError: it is not there, or failed.
    """
    try:
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="backslashreplace", check=False
        )
    except OSError as error:
        raise errors.SystemRefusedError(f"cannot run {words[0]}", (error.strerror or str(error)).lower()) from error
    if done.returncode and not may_fail:
        raise errors.SystemRefusedError(
            f"{' '.join(words)} ended with {done.returncode}", (done.stderr or done.stdout).strip().replace("\n", " / ")
        )
    return done


def show(*names: str) -> dict[str, str]:
    """Properties of the service; an unknown one is left out."""
    text = run(["systemctl", "show", NAME, f"--property={','.join(names)}"]).stdout
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


def state() -> str:
    """systemd's word: active, activating (also: soon started again), inactive, failed ...; "" without systemd."""
    return show("ActiveState").get("ActiveState", "") if os.path.isdir(BOOTED) else ""


def is_running() -> bool:
    """Whether the service is ready, or systemd is about to make it so."""
    return state() in ("active", "activating", "reloading")


def restart() -> bool:
    """Start the service anew and wait; whether it became ready. What happened before does not count against it."""
    run(["systemctl", "reset-failed", NAME], may_fail=True)
    return run(["systemctl", "restart", NAME], may_fail=True).returncode == 0


RESULTS = {
    "timeout": "it took too long to start, reload or stop",
    "watchdog": "it hung: nothing fed the watchdog",
    "start-limit-hit": "it failed too often to be started again",
    "oom-kill": "the kernel wanted its memory",
}
"""systemd's words for what was not the process's own doing."""

EXITED, FAILED = "98e322203f7a4ed290d09fe03c09fe15", "d9b373ed55a64feb8242e02dbe79a49c"
"""What systemd logs when a process ends unasked, and when a unit fails: sd-messages.h."""


def last_end() -> str:
    """How the service's process ended the last time, in words; "" if it has not, or nobody knows.

    Of a service that runs again systemd itself knows no more; then the journal does, for those who may read it.
    """
    found = show("ExecMainCode", "ExecMainStatus", "ExecMainExitTimestamp", "Result")
    if time := found.get("ExecMainExitTimestamp"):
        exited = found.get("ExecMainCode") == str(os.CLD_EXITED)
        return _words(exited, int(found.get("ExecMainStatus", "0")), found.get("Result", ""), time)
    wanted = [f"MESSAGE_ID={number}" for number in (EXITED, FAILED)]
    words = ["journalctl", "--quiet", f"--unit={NAME}", "--output=json", "--reverse", "--lines=2", *wanted]
    lines: list[dict[str, Any]] = [json.loads(line) for line in run(words, may_fail=True).stdout.splitlines()]
    last = next((line for line in lines if "EXIT_CODE" in line), None)
    if last is None:
        return ""
    seconds = int(last["__REALTIME_TIMESTAMP"]) / 1e6
    time = datetime.fromtimestamp(seconds, timezone.utc).strftime("%a %Y-%m-%d %H:%M:%S UTC")
    result = next((line["UNIT_RESULT"] for line in lines if "UNIT_RESULT" in line), "")
    return _words(last["EXIT_CODE"] == "exited", int(last["EXIT_STATUS"]), result, time)


def _words(exited: bool, status: int, result: str, time: str) -> str:
    if exited:
        words = f"it ended with {status}: {errors.meaning(status)}"
    else:
        words = f"it was ended by {_signal_name(status)}"
    return f"{words}{f' ({RESULTS[result]})' if result in RESULTS else ''}, {time}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
