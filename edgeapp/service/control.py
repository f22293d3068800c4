"""A Unix socket by which a running service is asked and told: a line of JSON there, one back."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from edgeapp import errors, paths

Answer = Callable[[dict[str, Any]], Mapping[str, Any]]

MOST_REQUEST_BYTES = 1 << 16
MOST_CLIENTS = 16
REQUEST_S = 1.0
"""Who has not asked in this time is left: others may wait."""


def answering(answer: Answer) -> Callable[[socket.socket], None]:
    """What serves a client: one request, one answer; errors are told to the client."""

    def serve(client: socket.socket) -> None:
        with suppress(OSError):
            try:
                request = _request(client)
                client.settimeout(REQUEST_S)
                told = dict(answer(request))
            except errors.EdgeappError as error:
                told = {
                    "error": {"what": error.what, "why": error.why, "fix": error.fix},
                    "exit_code": error.exit_code,
                }
            client.sendall(json.dumps(told).encode() + b"\n")

    return serve


def _request(client: socket.socket) -> dict[str, Any]:
    data = b""
    until_s = time.monotonic() + REQUEST_S
    while not data.endswith(b"\n"):
        client.settimeout(max(0.001, until_s - time.monotonic()))
        part = client.recv(4096)
        data += part
        if not part or len(data) > MOST_REQUEST_BYTES:
            raise errors.UsageError("no request that is understood", "a line of JSON is wanted")
    try:
        request = json.loads(data)
    except ValueError as error:
        raise errors.UsageError("no request that is understood", str(error)) from error
    if not isinstance(request, dict):
        raise errors.UsageError("no request that is understood", "a JSON object is wanted")
    return request


def ask(path: str, request: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
    """Send a request to a running service, and give its answer.

    Raises:
        EdgeappError: there is none, or it does not answer.
    """
    what = f"cannot ask the service at {paths.printable(path)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(timeout_s)
        try:
            client.connect(path)
            client.sendall(json.dumps(request).encode() + b"\n")
            data = b""
            while not data.endswith(b"\n") and (part := client.recv(1 << 16)):
                data += part
            answer = json.loads(data)
        except TimeoutError as error:
            raise errors.InputOutputError(
                what, f"it does not answer within {timeout_s:g} s", "look at its log"
            ) from error
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise errors.NotFoundError(
                what, "no service listens there", "edgeapp service status, or --control"
            ) from error
        except OSError as error:
            raise paths.refusal(what, error) from error
        except ValueError as error:
            raise errors.InputOutputError(what, "it went away before it answered", "look at its log") from error
    if not isinstance(answer, dict):
        raise errors.InputOutputError(what, "its answer is not understood")
    return answer
