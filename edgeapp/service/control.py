"""A Unix socket by which a running service is asked and told: a line of JSON there, one back."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from edgeapp import errors, paths

Answer = Callable[[dict[str, Any]], Mapping[str, Any]]

MOST_REQUEST_BYTES = 1 << 16
MOST_CLIENTS = 16
REQUEST_S = 5.0
"""A client that says nothing for so long is left."""


class Control:
    """Answers requests, each on a thread of its own, for a request may wait.

    Args:
        path: of the socket; who may write into its folder may replace it. Mode 0660.
        answer: gives the answer to a request; errors are told to the client.

    Raises:
        EdgeappError: the socket cannot be made.
    """

    def __init__(self, path: str, answer: Answer) -> None:
        self._path = path
        self._answer = answer
        self._clients = threading.BoundedSemaphore(MOST_CLIENTS)
        self._socket = listen(path)
        threading.Thread(target=self._accept, name="control", daemon=True).start()

    def _accept(self) -> None:
        while True:
            self._clients.acquire()
            try:
                client, _ = self._socket.accept()
            except OSError:  # closed
                return
            threading.Thread(target=self._serve, args=(client,), name="control client", daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        try:
            with client, suppress(OSError):
                client.settimeout(REQUEST_S)
                try:
                    answer = dict(self._answer(_request(client)))
                except errors.EdgeappError as error:
                    answer = {"error": {"what": error.what, "why": error.why, "fix": error.fix},
                              "exit_code": error.exit_code}  # fmt: skip
                client.sendall(json.dumps(answer).encode() + b"\n")
        finally:
            self._clients.release()

    def close(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        with suppress(OSError):
            os.unlink(self._path)


def listen(path: str) -> socket.socket:
    """A Unix socket that takes connections, mode 0660.

    Raises:
        EdgeappError: it cannot be made.
    """
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with suppress(FileNotFoundError):
            os.unlink(path)  # of a process that was killed: the spool's lock says that there is no other
        listening.bind(path)
        os.chmod(path, 0o660)
        listening.listen(MOST_CLIENTS)
    except OSError as error:
        listening.close()
        what = f"cannot make the socket {paths.printable(path)}"
        if "path too long" in str(error):
            raise errors.ConfigurationError(what, "its name is too long: 107 bytes are allowed",
                                            "give a shorter --control") from error  # fmt: skip
        raise paths.refusal(what, error, writing=True) from error
    return listening


def _request(client: socket.socket) -> dict[str, Any]:
    data = b""
    while not data.endswith(b"\n"):
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
