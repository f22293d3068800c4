"""Receivers of results, for tests: a real HTTP server that can be told to misbehave, a real broker."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from serving import until

MOSQUITTO = shutil.which("mosquitto", path="/usr/sbin:/usr/bin:/usr/local/sbin")


@dataclass
class Request:
    """What came, and over which connection."""

    path: str
    headers: dict[str, str]
    lines: list[bytes]
    connection: int


Misdeed = Callable[["Handler"], None]
"""Does something with a request in place of the answer 200."""


@dataclass
class Hook:
    """What a webhook has got, and what it does to the next requests.

    Attributes:
        misdeeds: one for each of the next requests.
        judge: the answer to a request, by its lines.
        got: lines that were acknowledged, in order.
    """

    judge: Callable[[Request], int] = lambda _: 200
    misdeeds: list[Misdeed] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    got: list[bytes] = field(default_factory=list)
    connections: int = 0
    port: int = 0
    scheme: str = "http"

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}/results?line=3"

    @property
    def firsts(self) -> list[str]:
        """The ids of what was acknowledged, in order, repeats left out."""
        return list(dict.fromkeys(json.loads(line)["id"] for line in self.got))


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hook: Hook

    def setup(self) -> None:
        super().setup()
        self.hook.connections += 1
        self.number = self.hook.connections

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        request = Request(self.path, dict(self.headers), body.splitlines(keepends=True), self.number)
        self.hook.requests.append(request)
        if self.hook.misdeeds:
            self.hook.misdeeds.pop(0)(self)
            return
        status = self.hook.judge(request)
        if status == 200:
            self.hook.got += request.lines
        self.answer(status)

    def answer(self, status: int, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_: Any) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, *words: Any) -> None:
        super().__init__(*words)
        self._open: set[socket.socket] = set()

    def finish_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        try:
            super().finish_request(request, client_address)
        finally:
            self._open.discard(request)

    def hang_up(self) -> None:
        """End the connections that are open, as the end of a process does."""
        for request in list(self._open):
            with suppress(OSError):
                request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, *_: Any) -> None:
        """The other side went away, as some tests want it."""


@contextmanager
def listening(hook: Hook, port: int = 0, tls: tuple[Path, Path] | None = None) -> Iterator[Hook]:
    """The hook's server, on a free port by default."""
    server = _Server(("127.0.0.1", port), type("OfHook", (Handler,), {"hook": hook}))
    if tls is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*tls)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        hook.scheme = "https"
    hook.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hook
    finally:
        server.shutdown()
        server.server_close()
        server.hang_up()
        thread.join()


def reserved_port() -> socket.socket:
    """A port that nobody listens on, and that is given to nobody else while this socket is open.

    Who asks for this very port with SO_REUSEADDR, as servers do, gets it (Linux: for the socket does not listen).
    """
    reserved = socket.socket()
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reserved.bind(("127.0.0.1", 0))
    return reserved


@dataclass(frozen=True)
class Authority:
    """A certificate authority of our own, and what it signed: for 127.0.0.1, and for another name."""

    file: Path
    here: tuple[Path, Path]
    elsewhere: tuple[Path, Path]


def make_authority(folder: Path) -> Authority:
    """Certificates that are valid for a day."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is missing: apt-get install openssl")

    def run(*words: str | Path) -> None:
        subprocess.run([openssl, *words], cwd=folder, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    run("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-days", "1", "-subj", "/CN=tests")

    def signed(name: str, san: str) -> tuple[Path, Path]:
        run("req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        (folder / f"{name}.ext").write_text(f"subjectAltName={san}\n")
        run(
            "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "1",
            "-extfile", f"{name}.ext", "-out", f"{name}.pem",
        )  # fmt: skip
        return folder / f"{name}.pem", folder / f"{name}.key"

    return Authority(folder / "ca.pem", signed("here", "IP:127.0.0.1"), signed("elsewhere", "DNS:elsewhere.test"))


class Broker:
    """A mosquitto on a port of its own, which can be stopped and started again."""

    def __init__(self, folder: Path, *configuration: str) -> None:
        if MOSQUITTO is None:
            pytest.skip("mosquitto is missing: apt-get install mosquitto")
        self._reserved = reserved_port()
        self.port = int(self._reserved.getsockname()[1])
        self._file = folder / "mosquitto.conf"
        lines = [
            f"listener {self.port} 127.0.0.1",
            "persistence true",
            f"persistence_location {folder}/",
            *configuration,
        ]
        if "allow_anonymous false" not in lines:
            lines.append("allow_anonymous true")
        self._file.write_text("user root\n" + "\n".join(lines) + "\n")
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Broker:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._reserved.close()

    def start(self) -> None:
        self._process = subprocess.Popen([str(MOSQUITTO), "-c", str(self._file)], stderr=subprocess.DEVNULL)
        until(self._answers, "the broker listens")

    def _answers(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except OSError:
            return False
        return True

    def stop(self) -> None:
        """It writes down what its listeners have not got yet, and who they are."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None


def hash_passwords(file: Path) -> None:
    """Make what mosquitto reads of USER:PASSWORD lines."""
    subprocess.run(["mosquitto_passwd", "-U", str(file)], check=True)


class Listener:
    """A subscriber; connects again by itself.

    Attributes:
        heard: topic -> payloads, in order.
    """

    def __init__(self, broker: Broker, **options: Any) -> None:
        import paho.mqtt.client as paho
        from paho.mqtt.enums import CallbackAPIVersion

        self.heard: dict[str, list[bytes]] = {}
        self._client = paho.Client(CallbackAPIVersion.VERSION2, "listener", clean_session=False)
        if "login" in options:
            self._client.username_pw_set(*options["login"])
        if "ca_file" in options:
            self._client.tls_set(str(options["ca_file"]))
        self._subscribed = threading.Event()
        self._client.on_connect = lambda client, *_: client.subscribe("#", 1)
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        self._client.on_message = lambda _, __, told: self.heard.setdefault(told.topic, []).append(told.payload)
        self._client.reconnect_delay_set(1, 1)
        self._client.connect("127.0.0.1", broker.port)

    def __enter__(self) -> Listener:
        self._client.loop_start()
        assert self._subscribed.wait(60)
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()


def trickle(handler: Handler) -> None:
    """An answer that never comes to its end, and never stands still."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    for _ in range(200):
        handler.wfile.write(b"x")
        time.sleep(0.02)


def hang(handler: Handler) -> None:
    """No answer."""
    handler.rfile.read(1)
    handler.close_connection = True


def reset(handler: Handler) -> None:
    """The connection ends hard."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    handler.connection.close()
    handler.close_connection = True


def close(handler: Handler) -> None:
    """The connection ends in place of an answer."""
    handler.close_connection = True


def nonsense(handler: Handler) -> None:
    handler.wfile.write(b"\x16\x03\x01 no HTTP\r\n\r\n")
    handler.close_connection = True


def redirect(handler: Handler) -> None:
    handler.answer(302, Location="/elsewhere")


def answer(status: int, **headers: str) -> Misdeed:
    def misdeed(handler: Handler) -> None:
        handler.answer(status, **headers)

    return misdeed
