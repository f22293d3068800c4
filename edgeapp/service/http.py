"""A small HTTP server that cannot hold up the work: one thread, few connections, short deadlines, GET and HEAD.

Every connection is for one request. Bodies are never read as such; nothing is taken from the file system by name.
"""

from __future__ import annotations

import ipaddress
import os
import re
import selectors
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field

from edgeapp import errors
from edgeapp.log import Talk
from edgeapp.service.listening import BACKLOG, Address, listener_at

MOST_CONNECTIONS = 16
"""When there are more the oldest gives way: in good faith they last milliseconds."""

MOST_HEADER_BYTES, MOST_HEADERS = 8192, 64
REQUEST_S, RESPONSE_S, LINGER_S = 5.0, 5.0, 1.0
"""Deadlines for the whole request, for taking the whole response, and for the client's end afterwards."""

MOST_IGNORED_BYTES = 1 << 18
"""What a client may still send after its response; closing with unread data would tear the response away."""

MOST_PER_S, BURST = 100, 50
"""Responses; more are slowed down, for each takes about as much as a picture takes of the interpreter."""

TICK_S, PAUSE_S = 0.5, 0.1

REQUEST_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,32}) ([!-~]{1,2048}) HTTP/(\d)\.(\d)")
HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*)")
HEADER_END = re.compile(rb"\r?\n\r?\n")
REASONS = {
    200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed",
    421: "Misdirected Request", 431: "Request Header Fields Too Large", 500: "Internal Server Error",
    503: "Service Unavailable", 505: "HTTP Version Not Supported",
}  # fmt: skip


@dataclass(frozen=True)
class Response:
    """Status, type and bytes of an answer, and headers beside those that all answers have."""

    status: int
    content_type: str = "text/plain; charset=utf-8"
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


class _Connection:
    """A client: what it sent, what it is still to get, and until when it is waited for."""

    def __init__(self, client: socket.socket) -> None:
        self.socket = client
        self.until_s = time.monotonic() + REQUEST_S
        self.request = bytearray()
        self.response: memoryview | None = None
        self.ignored = 0


class Server:
    """Answers on an address while the body of `with` runs.

    Args:
        address: of listening.parse_address().
        answer: path -> Response, without the query; called by the server's thread.
        talk: told of a listener that others can reach, and of bugs.

    Attributes:
        address: the one that is listened on; its port is the one that the system chose when 0 was asked for.

    Raises:
        EdgeappError: the address is in use, not permitted, or not of this machine.
    """

    def __init__(self, address: Address, answer: Callable[[str], Response], talk: Talk) -> None:
        self._answer = answer
        self._talk = talk
        self._ended = False
        self._next_s = 0.0
        self._connections: dict[socket.socket, _Connection] = {}
        self._listener = listener_at(address)
        self._inode = os.stat(address.path).st_ino if address.path else 0
        self.address = address if address.path else Address(address.host, self._listener.getsockname()[1])
        if not address.local:
            talk.note(f"edgeapp: warning: who can reach {self.address} sees the state, the pictures and their names")

    def __enter__(self) -> Server:
        with ExitStack() as stack:
            stack.callback(self._close_listener)
            try:
                wake, self._wake = socket.socketpair()
                stack.enter_context(wake)
                stack.enter_context(self._wake)
                self._selector = stack.enter_context(selectors.DefaultSelector())
                self._selector.register(self._listener, selectors.EVENT_READ)
                self._selector.register(wake, selectors.EVENT_READ)
                self._thread = threading.Thread(target=self._run, name="http", daemon=True)
                self._thread.start()
            except (OSError, RuntimeError) as error:
                raise errors.SystemRefusedError("cannot start the HTTP server", str(error)) from error
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        self._wake.shutdown(socket.SHUT_WR)
        self._thread.join()
        for client in list(self._connections):
            self._close(client)
        self._stack.close()

    def _close_listener(self) -> None:
        self._listener.close()
        with suppress(OSError):
            if self.address.path and os.stat(self.address.path).st_ino == self._inode:
                os.unlink(self.address.path)

    # --- the thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._ended:
            for key, _ in self._selector.select(TICK_S):
                if key.fileobj is self._listener:
                    self._accept_all()
                elif isinstance(key.fileobj, socket.socket) and (found := self._connections.get(key.fileobj)):
                    self._guarded(found)
            now = time.monotonic()
            for client, connection in list(self._connections.items()):
                if now > connection.until_s:
                    self._close(client)

    def _accept_all(self) -> None:
        """Take who waits; one whose request is there is answered at once, before it could have to give way."""
        for _ in range(BACKLOG):
            try:
                client, _address = self._listener.accept()
            except ConnectionAbortedError:
                continue
            except BlockingIOError:
                return
            except OSError:  # no descriptor is left: let others give theirs back
                time.sleep(PAUSE_S)
                return
            client.setblocking(False)
            if len(self._connections) >= MOST_CONNECTIONS:
                self._make_room()
            connection = self._connections[client] = _Connection(client)
            self._selector.register(client, selectors.EVENT_READ)
            self._guarded(connection)

    def _make_room(self) -> None:
        """Close the oldest connection; rather one that has its answer."""
        answered = (
            client for client, one in self._connections.items() if one.response is not None and not one.response
        )
        self._close(next(answered, next(iter(self._connections))))

    def _guarded(self, connection: _Connection) -> None:
        """Go on with a connection; whatever goes wrong ends it and nothing else."""
        try:
            self._advance(connection)
        except BlockingIOError:  # nothing there, or no room, yet
            return
        except OSError:
            self._close(connection.socket)
        except Exception as error:
            self._close(connection.socket)
            self._talk.error(errors.EdgeappError("the HTTP server failed", f"{type(error).__name__}: {error}"))

    def _advance(self, connection: _Connection) -> None:
        if connection.response is None:
            self._receive(connection)
        elif len(connection.response):
            self._send(connection)
        else:
            self._ignore(connection)

    def _receive(self, connection: _Connection) -> None:
        data = connection.socket.recv(MOST_HEADER_BYTES)
        if not data:
            self._close(connection.socket)
            return
        connection.request += data
        response, with_body = self._respond(bytes(connection.request))
        if response is not None:
            self._slow_down()
            connection.response = memoryview(_bytes(response, with_body=with_body))
            connection.until_s = time.monotonic() + RESPONSE_S
            self._send(connection)

    def _respond(self, request: bytes) -> tuple[Response | None, bool]:
        """The answer, None while the request is not complete; and whether its body is wanted."""
        end = HEADER_END.search(request)
        line = REQUEST_LINE.fullmatch(request.partition(b"\n")[0].removesuffix(b"\r"))
        if line is None and (b"\n" in request or not re.match(rb"[A-Za-z]{1,32}( |$)", request)):
            return _refusal(400), True
        if end is None and len(request) < MOST_HEADER_BYTES:
            return None, True
        if end is None or end.start() > MOST_HEADER_BYTES:
            return _refusal(431), True
        assert line is not None
        method, target, major, minor = line.groups()
        if major != b"1":
            return _refusal(505), True
        refused = self._refused(request[line.end() : end.start()], host_needed=minor != b"0")
        if refused is not None:
            return refused, method != b"HEAD"
        if method not in (b"GET", b"HEAD"):
            return _refusal(405, Allow="GET, HEAD"), True
        if not target.startswith(b"/"):
            return _refusal(400), method != b"HEAD"
        try:
            return self._answer(target.partition(b"?")[0].decode("ascii")), method != b"HEAD"
        except Exception as error:
            self._talk.error(errors.EdgeappError("an HTTP page failed", f"{type(error).__name__}: {error}"))
            return _refusal(500), method != b"HEAD"

    def _refused(self, head: bytes, *, host_needed: bool) -> Response | None:
        """Why the headers are not taken.

        The host is looked at only so that a web page from elsewhere, whose name has come to mean this machine, reads
        nothing: a listener for this machine alone answers to addresses and to localhost.
        """
        lines = [line.removesuffix(b"\r") for line in head.split(b"\n")[1:]]
        if len(lines) > MOST_HEADERS:
            return _refusal(431)
        found = [HEADER.fullmatch(line) for line in lines]
        if not all(found):
            return _refusal(400)
        hosts = [header[2].strip() for header in found if header and header[1].lower() == b"host"]
        if len(hosts) > 1 or (host_needed and not hosts):
            return _refusal(400)
        if hosts and not self.address.path and self.address.local and not _names_an_address(hosts[0]):
            return _refusal(421)
        return None

    def _send(self, connection: _Connection) -> None:
        assert connection.response is not None
        with suppress(BlockingIOError):
            connection.response = connection.response[connection.socket.send(connection.response) :]
        if len(connection.response):
            self._selector.modify(connection.socket, selectors.EVENT_WRITE)
            return
        connection.socket.shutdown(socket.SHUT_WR)
        connection.until_s = time.monotonic() + LINGER_S
        self._selector.modify(connection.socket, selectors.EVENT_READ)

    def _ignore(self, connection: _Connection) -> None:
        data = connection.socket.recv(1 << 16)
        connection.ignored += len(data)
        if not data or connection.ignored > MOST_IGNORED_BYTES:
            self._close(connection.socket)

    def _slow_down(self) -> None:
        """Wait when answers are asked for faster than they are given out."""
        now = time.monotonic()
        self._next_s = max(self._next_s, now - BURST / MOST_PER_S) + 1 / MOST_PER_S
        if self._next_s > now:
            time.sleep(self._next_s - now)

    def _close(self, client: socket.socket) -> None:
        self._connections.pop(client, None)
        with suppress(KeyError, ValueError):
            self._selector.unregister(client)
        client.close()


def _refusal(status: int, **headers: str) -> Response:
    return Response(status, body=f"{REASONS[status]}\n".encode(), headers=headers)


def _bytes(response: Response, *, with_body: bool) -> bytes:
    headers = {
        "Content-Type": response.content_type,
        "Content-Length": str(len(response.body)),
        "Connection": "close",
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Referrer-Policy": "no-referrer",
        **response.headers,
    }
    head = f"HTTP/1.1 {response.status} {REASONS[response.status]}\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in headers.items()) + "\r\n"
    return head.encode("ascii") + (response.body if with_body else b"")


def _names_an_address(host: bytes) -> bool:
    """Whether a Host header holds an IP address or localhost, with or without a port."""
    name = re.sub(rb":\d*$", b"", host).decode("latin-1")
    if name.lower() == "localhost":
        return True
    try:
        ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True
