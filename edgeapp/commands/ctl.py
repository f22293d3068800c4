"""`edgeapp ctl`: what a running service is asked and told."""

from __future__ import annotations

import json
import os

from edgeapp import errors
from edgeapp.log import tell
from edgeapp.service.control import ask
from edgeapp.settings import Settings

RUNTIME_SOCKET = "/run/edgeapp/control.sock"
ANSWER_S, RELOAD_S = 10.0, 600.0


def ctl(do: str, wait: bool, settings: Settings) -> int:
    """Send a request and print the answer; returns the exit code.

    Raises:
        EdgeappError: there is no service, or it could not do it.
    """
    answer = ask(_socket(settings), {"do": do, "wait": wait}, RELOAD_S if do == "reload" else ANSWER_S)
    if "error" in answer:
        error = errors.EdgeappError(**answer["error"])
        error.exit_code = int(answer["exit_code"])
        raise error
    if do == "status":
        tell([json.dumps(answer, indent=2, ensure_ascii=False) + "\n"])
    elif not settings.quiet:
        tell([f"{answer['state']}\n"])
    return 0


def _socket(settings: Settings) -> str:
    """The socket of --control, of --spool, of the service's own environment, or of the installed service."""
    if settings.control is not None:
        return settings.control
    if settings.spool is not None:
        return os.path.join(settings.spool, "state", "control.sock")
    folder = os.environ.get("RUNTIME_DIRECTORY")
    return os.path.join(folder, "control.sock") if folder else RUNTIME_SOCKET
