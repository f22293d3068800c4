"""`edgeapp service status`: what systemd knows of the service, and what the service says itself."""

from __future__ import annotations

import json
import subprocess
from typing import Any

from edgeapp import errors
from edgeapp.log import tell
from edgeapp.service import program, systemctl, unit

ANSWER_S = 10.0


def status(as_json: bool) -> int:
    """Print it; 0 if the service is ready, 1 if not.

    Raises:
        NotFoundError: it is not installed.
    """
    found = systemctl.show(
        "LoadState", "ActiveState", "SubState", "UnitFileState", "StateChangeTimestamp", "NRestarts", "MainPID",
        "StatusText", "WatchdogUSec", "WatchdogTimestamp",
    )  # fmt: skip
    if found.get("LoadState") != "loaded":
        raise errors.NotFoundError(
            "the service is not installed", f"systemd knows no {unit.NAME}", "sudo edgeapp service install"
        )
    versions = program.versions().state()
    facts: dict[str, Any] = {
        "state": f"{found['ActiveState']} ({found['SubState']})",
        "since": found.get("StateChangeTimestamp") or None,
        "at_boot": found.get("UnitFileState") or None,
        "process": int(found.get("MainPID") or 0) or None,
        "says": found.get("StatusText") or None,
        "restarts": int(found.get("NRestarts") or 0),
        "ended_last": systemctl.last_end() or None,
        "watchdog": f"{found.get('WatchdogUSec')}, last fed {found.get('WatchdogTimestamp') or 'never'}",
        "version": versions.current or None,
        "version_before": versions.previous or None,
    }
    answer = _answer()
    if as_json:
        tell([json.dumps({**facts, "answer": _parsed(answer)}) + "\n"])
    else:
        tell(f"{key.replace('_', ' '):14s} {value}\n" for key, value in facts.items() if value not in (None, ""))
        tell([f"\n{answer}\n"] if answer else [])
    return 0 if found["ActiveState"] in ("active", "reloading") else 1


def _parsed(answer: str) -> Any:
    try:
        return json.loads(answer)
    except ValueError:
        return None


def _answer() -> str:
    """What `edgeapp ctl status` prints; "" if the service does not answer this user."""
    try:
        done = subprocess.run(
            [unit.PROGRAM, "ctl", "status"], stdin=subprocess.DEVNULL, capture_output=True, text=True,
            errors="backslashreplace", check=False, timeout=ANSWER_S,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
