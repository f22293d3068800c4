"""Results by HTTP: POST of JSON Lines; what the receiver has answered with 2xx is its own."""

from __future__ import annotations

import hashlib
import http.client
import re
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from edgeapp import __version__, errors
from edgeapp.service.publisher import DownError, RefusedError
from edgeapp.service.targets import Target, read_headers, tls_context

TIMEOUT_S = 10.0
"""For a request from its first byte to the last one of the answer, and for the connection before it."""

MOST_ANSWER_BYTES = 64 << 10
REFUSED = (400, 409, 413, 422)
"""Answers about what was sent. All others are about the receiver: they may be mended, and nothing is left out."""

ID = re.compile(rb'"id": "([0-9a-f]+)"')


class Webhook:
    """A receiver at a URL.

    Redirects are not followed: the one who answers need not be the one who was meant.

    Args:
        headers_file: further headers, read anew for each connection; for tokens.
        ca_file: as tls_context takes it.

    Raises:
        EdgeappError: a file cannot be used, or there is no TLS.
    """

    kind = "webhook"

    def __init__(self, target: Target, headers_file: str | None, ca_file: str | None) -> None:
        self._target = target
        self._headers_file = headers_file
        self._headers: dict[str, str] = read_headers(headers_file) if headers_file else {}
        self._context = tls_context(ca_file) if target.secure else None
        self._connection: http.client.HTTPConnection | None = None

    def send(self, lines: Sequence[bytes]) -> None:
        kept = self._connection is not None
        try:
            self._post(lines)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            # A server may close a connection that was idle, just as the next request comes.
            if not kept or isinstance(error, TimeoutError):
                raise DownError(_told(error)) from error
            try:
                self._post(lines)
            except (OSError, http.client.HTTPException) as second:
                self.close()
                raise DownError(_told(second)) from second

    def idle(self) -> None:
        """The connection stays as it is."""

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _post(self, lines: Sequence[bytes]) -> None:
        connection = self._connected()
        headers = {
            "User-Agent": f"edgeapp/{__version__}",
            "Content-Type": "application/x-ndjson",
            "Idempotency-Key": _key(lines),
            **self._headers,
        }
        sock = connection.sock
        assert sock is not None
        with _cut_after(TIMEOUT_S, sock):
            connection.request("POST", self._target.path, b"".join(lines), headers)
            answer = connection.getresponse()
        self._finish(answer, sock)
        if answer.status in REFUSED:
            raise RefusedError(_status(answer))
        if not 200 <= answer.status < 300:
            self.close()
            raise DownError(_status(answer), _seconds(answer.getheader("Retry-After")))

    def _connected(self) -> http.client.HTTPConnection:
        if self._connection is None or self._connection.sock is None:  # None: the server wants one for each request
            if self._headers_file:
                try:
                    self._headers = read_headers(self._headers_file)
                except errors.EdgeappError as error:
                    raise DownError(f"{error.what}: {error.why}") from error
            host, port = self._target.host, self._target.port
            if self._context is None:
                connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
            else:
                connection = http.client.HTTPSConnection(host, port, timeout=TIMEOUT_S, context=self._context)
            connection.connect()
            self._connection = connection
        return self._connection

    def _finish(self, answer: http.client.HTTPResponse, sock: socket.socket) -> None:
        """Read the rest of the answer, so that the connection can be used again; else close it."""
        try:
            with _cut_after(TIMEOUT_S, sock):
                answer.read(MOST_ANSWER_BYTES)
            whole = answer.isclosed()
        except (OSError, http.client.HTTPException):
            whole = False
        if not whole:
            answer.close()
            self.close()


@contextmanager
def _cut_after(seconds: float, sock: socket.socket) -> Iterator[None]:
    """End a conversation that takes longer: a time-out of the socket begins anew with each byte.

    Raises:
        TimeoutError: it did.
    """
    cut = threading.Event()

    def shut() -> None:
        cut.set()
        with suppress(OSError):
            socket.socket.shutdown(sock, socket.SHUT_RDWR)  # that of TLS sockets is not for other threads

    timer = threading.Timer(seconds, shut)
    timer.daemon = True
    timer.start()
    try:
        yield
    except (OSError, http.client.HTTPException):
        if not cut.is_set():
            raise
    finally:
        timer.cancel()
    if cut.is_set():  # what was read up to then looks as if the server had ended there
        raise TimeoutError


def _key(lines: Sequence[bytes]) -> str:
    """The same for the same results in the same order."""
    ids = (found[1] if (found := ID.search(line)) else line for line in lines)
    return hashlib.sha256(b"".join(ids)).hexdigest()


def _status(answer: http.client.HTTPResponse) -> str:
    if 300 <= answer.status < 400:
        return f"it answered {answer.status} {answer.reason}: redirects are not followed"
    return f"it answered {answer.status} {answer.reason}"


def _seconds(text: str | None) -> float:
    """Of Retry-After; 0 for a date, and for nothing."""
    return float(text) if text and text.isascii() and text.isdigit() and len(text) < 6 else 0.0


def _told(error: OSError | http.client.HTTPException) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {TIMEOUT_S:g} s"
    if isinstance(error, OSError):
        reason = getattr(error, "verify_message", "") or error.strerror or str(error)
        return str(reason).lower() or "it closed the connection"
    return f"no HTTP answer: {type(error).__name__}"
