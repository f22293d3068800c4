"""What systemd is told and asked."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence

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


def last_end() -> str:
    """How the service's process ended the last time, in words; "" if it has not."""
    found = show("ExecMainCode", "ExecMainStatus", "ExecMainExitTimestamp", "Result")
    if not found.get("ExecMainExitTimestamp"):
        return ""
    status = int(found.get("ExecMainStatus", "0"))
    if found.get("ExecMainCode") == str(os.CLD_EXITED):
        words = f"it ended with {status}: {errors.meaning(status)}"
    else:
        words = f"it was ended by {_signal_name(status)}"
    result = found.get("Result", "")
    return f"{words} ({RESULTS[result]})" if result in RESULTS else words


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


RESULTS = {
    "timeout": "it took too long to start, reload or stop",
    "watchdog": "it hung: nothing fed the watchdog",
    "start-limit-hit": "it failed too often to be started again",
    "oom-kill": "the kernel wanted its memory",
}
"""systemd's words for what was not the process's own doing."""
