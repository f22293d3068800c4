"""The HTTP server of the service over real sockets: what it answers, and what it takes without harm."""

from __future__ import annotations

import html.parser
import http.client
import json
import os
import re
import resource
import shutil
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from PIL import Image
from serving import WAIT_S, until
from support import Clock

from edgeapp import errors
from edgeapp.records import Detection, Frame, Result
from edgeapp.service import metrics
from edgeapp.service.http import REQUEST_S, Response, Server
from edgeapp.service.listening import Address, parse_address
from edgeapp.service.pages import Pages
from edgeapp.service.state import State
from edgeapp.service.storms import EventLog
from edgeapp.service.thumbnails import thumbnail

EVIL = [
    "<script>document.title='stolen'</script>",
    '"><img src=x onerror="document.title=\'stolen\'">',
    "a\nb",
    "caf\udce9",
]


@pytest.fixture
def state(clock: Clock) -> State:
    """A service that is ready and has done something."""
    state = State({"commit": "abc"}, clock)
    state.release("starting")
    state.model = {"file": "/models/parts.plan"}
    for name in ("good.jpg", *EVIL):
        clock.now += 1
        found = [Detection(0, name, 0.9, (0, 0, 1, 1))]
        image = Image.new("RGB", (64, 48), (200, 30, 30))
        frame = Frame(f"/in/{name}", image=image, picture_wh=image.size)
        result = Result(frame, "detect", detections=found, times_ms={"infer": 2.0})
        state.done(result, 0.02, thumbnail=thumbnail(result))
        state.failed(f"/in/{name}", "damaged", errors.DataError(f"cannot read {name}", name, name))
    return state


class Log(EventLog):
    """Keeps what it is told."""

    def __init__(self) -> None:
        super().__init__(descriptor=os.open(os.devnull, os.O_WRONLY))
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)

    def error(self, error: errors.EdgeappError) -> None:
        self.said.append(str(error))


@contextmanager
def serving(state: State, text: str = "127.0.0.1:0", log: Log | None = None) -> Iterator[Server]:
    before = set(threading.enumerate())
    with Server(parse_address(text), Pages(state), log or Log()) as server:
        yield server
    assert set(threading.enumerate()) <= before


@pytest.fixture
def server(state: State) -> Iterator[Server]:
    with serving(state) as server:
        yield server


def connect(server: Server) -> socket.socket:
    if server.address.path:
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(WAIT_S)
        client.connect(server.address.path)
        return client
    return socket.create_connection((server.address.host, server.address.port), timeout=WAIT_S)


def everything(client: socket.socket) -> bytes:
    """All until the server closes; a reset ends it too."""
    data = b""
    with suppress(ConnectionResetError):
        while part := client.recv(1 << 16):
            data += part
    return data


def exchange(server: Server, request: bytes) -> bytes:
    with connect(server) as client:
        with suppress(BrokenPipeError, ConnectionResetError):
            client.sendall(request)
        return everything(client)


def get(server: Server, path: str, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
    """By Python's own client."""
    client = http.client.HTTPConnection("127.0.0.1", timeout=WAIT_S)
    client.sock = connect(server)
    client.request(method, path)
    answer = client.getresponse()
    body = answer.read()
    client.close()
    return answer.status, dict(answer.getheaders()), body


# --- pages -----------------------------------------------------------------------------------------------------------


def test_health_is_that_of_the_loop(server: Server, state: State, clock: Clock) -> None:
    """Alive before the loop begins and while it moves; not ready is no reason to be killed."""
    assert get(server, "/healthz")[::2] == (200, b"alive\n")
    state.beat()
    clock.now += 29
    state.hold("disk full")
    assert get(server, "/healthz")[::2] == (200, b"alive\n")
    clock.now += 2
    assert get(server, "/healthz")[::2] == (503, b"stuck: the loop has not moved for 31 s\n")
    state.beat()
    assert get(server, "/healthz")[0] == 200


def test_readiness_tells_the_reason(server: Server, state: State) -> None:
    """200 or 503, for load balancers and for people."""
    assert get(server, "/readyz")[::2] == (200, b"ready\n")
    state.hold("disk full", "12 MB free")
    assert get(server, "/readyz")[::2] == (503, b"not ready: disk full (12 MB free)\n")


def test_metrics_are_served_as_prometheus_wants_them(server: Server, state: State) -> None:
    """The same text as in the file, with its content type."""
    from prometheus_client.parser import text_string_to_metric_families

    status, headers, body = get(server, "/metrics")
    assert status == 200
    assert headers["Content-Type"] == metrics.CONTENT_TYPE
    names = {family.name for family in text_string_to_metric_families(body.decode())}
    assert {"edgeapp_ready", "edgeapp_inference_seconds", "process_open_fds"} <= names


def test_status_is_json_and_makes_thumbnails_wanted(server: Server, state: State) -> None:
    """Who asks for it looks at the page."""
    assert not state.wants_thumbnail()
    status, headers, body = get(server, "/status.json")
    assert (status, headers["Content-Type"]) == (200, "application/json")
    assert json.loads(body)["inputs"] == {"done": 5, "failed": 5}
    assert state.wants_thumbnail()


def test_thumbnails_are_found_by_their_number(server: Server, state: State) -> None:
    """As the status names them; others are not there."""
    (first, *_) = state.snapshot()["results"]
    status, headers, body = get(server, first["thumbnail"])
    assert (status, headers["Content-Type"], body) == (200, "image/jpeg", state.thumbnail(first["id"]))
    assert body.startswith(b"\xff\xd8")
    assert get(server, "/thumbnail/99999.jpg")[0] == 404


def test_page_may_load_nothing_from_outside(server: Server) -> None:
    """Nor run anything but its own script: the policy names it by its hash."""
    status, headers, body = get(server, "/")
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert len(re.findall(r"script-src 'sha256-[\w+/]{43}='; style-src 'sha256-[\w+/]{43}=';", policy)) == 1
    page = body.decode()
    assert not re.findall(r"https?:|//[a-z]|@import|<iframe|<form|\bstyle=|\bon[a-z]+=|innerHTML|eval\(", page)
    for name, value in (("X-Content-Type-Options", "nosniff"), ("Cross-Origin-Resource-Policy", "same-origin"),
                        ("Cache-Control", "no-store"), ("Connection", "close")):  # fmt: skip
        assert headers[name] == value


@pytest.mark.parametrize(
    "path",
    ["/x", "//", "/../../etc/passwd", "/%2e%2e/etc/passwd", "/page.html", "/metrics/", "/METRICS", "/%00",
     "/thumbnail/", "/thumbnail/1", "/thumbnail/-1.jpg", "/thumbnail/" + "9" * 400 + ".jpg", "/thumbnail/1.jpg/..",
     "/thumbnail/%D9%A3.jpg"],
)  # fmt: skip
def test_other_paths_are_not_found(server: Server, path: str) -> None:
    """No folder is behind it."""
    assert get(server, path)[0] == 404


def test_query_is_ignored(server: Server) -> None:
    assert get(server, "/readyz?verbose=1&x=/../")[0] == 200


@pytest.mark.parametrize("path", ["/", "/metrics", "/status.json", "/healthz", "/readyz", "/icon.svg", "/none"])
def test_head_is_get_without_the_body(server: Server, path: str) -> None:
    """The same status and headers."""
    status, headers, _ = get(server, path)
    raw = exchange(server, f"HEAD {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    head, _, rest = raw.partition(b"\r\n\r\n")
    assert rest == b""
    assert head.startswith(f"HTTP/1.1 {status} ".encode())
    told = dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:])
    assert told["Content-Type"] == headers["Content-Type"]
    assert path in ("/metrics", "/status.json") or told["Content-Length"] == headers["Content-Length"]


# --- requests that are none ------------------------------------------------------------------------------------------

HOST = b"Host: localhost\r\n"
MALFORMED = {
    "no version": (b"GET /\r\n\r\n", 400),
    "old version": (b"GET / HTTP/0.9\r\n\r\n", 505),
    "new version": (b"GET / HTTP/2.0\r\n" + HOST + b"\r\n", 505),
    "HTTP/2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    "TLS hello": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    "noise": (bytes(range(256)) * 4, 400),
    "empty line first": (b"\r\n\r\n", 400),
    "two spaces": (b"GET  / HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "tab": (b"GET\t/ HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "words": (b"GET / / HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "absolute": (b"GET http://x/ HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "asterisk": (b"GET * HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "control in the path": (b"GET /\x01 HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "letters beyond ASCII": ("GET /ä HTTP/1.1\r\n\r\n".encode(), 400),
    "no host": (b"GET / HTTP/1.1\r\n\r\n", 400),
    "two hosts": (b"GET / HTTP/1.1\r\n" + HOST * 2 + b"\r\n", 400),
    "foreign host": (b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n", 421),
    "host with an address in it": (b"GET / HTTP/1.1\r\nHost: 127.0.0.1.evil.example:80\r\n\r\n", 421),
    "space before the colon": (b"GET / HTTP/1.1\r\nHost : localhost\r\n\r\n", 400),
    "no colon": (b"GET / HTTP/1.1\r\n" + HOST + b"what\r\n\r\n", 400),
    "folded header": (b"GET / HTTP/1.1\r\n" + HOST + b"A: b\r\n c\r\n\r\n", 400),
    "NUL in a header": (b"GET / HTTP/1.1\r\n" + HOST + b"A: \0\r\n\r\n", 400),
    "bare CR": (b"GET / HTTP/1.1\r\n" + HOST + b"A: b\rC: d\r\n\r\n", 400),
    "long path": (b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n", 431),
    "long method": (b"G" * 9000 + b" / HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "long header": (b"GET / HTTP/1.1\r\n" + HOST + b"A: " + b"a" * 20_000 + b"\r\n\r\n", 431),
    "many headers": (b"GET / HTTP/1.1\r\n" + HOST + b"A: b\r\n" * 100 + b"\r\n", 431),
    "POST": (b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\n\r\nabc", 405),
    "PUT": (b"PUT /metrics HTTP/1.1\r\n" + HOST + b"\r\n", 405),
    "DELETE": (b"DELETE / HTTP/1.1\r\n" + HOST + b"\r\n", 405),
    "CONNECT": (b"CONNECT evil.example:443 HTTP/1.1\r\n" + HOST + b"\r\n", 405),
    "lower case": (b"get / HTTP/1.1\r\n" + HOST + b"\r\n", 405),
    "unknown method": (b"BREW / HTTP/1.1\r\n" + HOST + b"\r\n", 405),
}


@pytest.mark.parametrize(("request_bytes", "status"), MALFORMED.values(), ids=MALFORMED)
def test_malformed_request_is_refused(server: Server, request_bytes: bytes, status: int) -> None:
    """With its status, before its deadline, and the next client is served."""
    started = time.monotonic()
    answer = exchange(server, request_bytes)
    assert time.monotonic() - started < REQUEST_S
    assert answer.startswith(b"HTTP/1.1 %d " % status), answer[:200]
    assert get(server, "/readyz")[0] == 200


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /readyz HTTP/1.0\r\n\r\n",
        b"GET /readyz HTTP/1.0\n\n",
        b"GET /readyz HTTP/1.1\r\nHost: 127.0.0.1:9\r\n\r\n",
        b"GET /readyz HTTP/1.1\r\nhost:[::1]:80\r\nX: \xe4\r\n\r\n",
        b"GET /readyz HTTP/1.1\r\nHost: LOCALHOST\r\nConnection: keep-alive\r\n\r\n",
        b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000\r\n\r\n",
        b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
    ],
    ids=["1.0", "LF alone", "address", "IPv6", "keep-alive", "body announced", "chunked"],
)
def test_unusual_request_is_answered(server: Server, request_bytes: bytes) -> None:
    """What is odd but harmless gets its answer, and the connection ends."""
    assert exchange(server, request_bytes).endswith(b"\r\n\r\nready\n")


def test_request_in_single_bytes_is_understood(server: Server) -> None:
    """However it is cut."""
    with connect(server) as client:
        for byte in b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n":
            client.sendall(bytes([byte]))
        assert everything(client).endswith(b"ready\n")


def test_pipelined_requests_get_one_answer(server: Server) -> None:
    """The first; the client sees that the connection is closed and asks again."""
    answer = exchange(server, (b"GET /readyz HTTP/1.1\r\n" + HOST + b"\r\n") * 50)
    assert answer.count(b"HTTP/1.1 ") == 1
    assert b"\r\nConnection: close\r\n" in answer


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_gigabyte_is_not_taken(server: Server) -> None:
    """Who sends a body gets its answer, and is cut off soon after; nothing of it is kept."""
    before = resident_bytes()
    block = b"x" * (1 << 20)
    sent = 0
    with connect(server) as client:
        client.sendall(b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 1073741824\r\n\r\n")
        with suppress(BrokenPipeError, ConnectionResetError):
            while sent < 1 << 30:
                sent += client.send(block)
        assert sent < 64 << 20
    assert resident_bytes() - before < 8 << 20
    assert get(server, "/readyz")[0] == 200


# --- many and slow clients -------------------------------------------------------------------------------------------


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_thousand_idle_connections_exhaust_nothing(server: Server) -> None:
    """They give way to those that ask; neither threads nor descriptors grow with them."""
    threads, before = set(threading.enumerate()), descriptors()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # the clients live here, too
    with ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        idle = []
        for n in range(1000):
            client = stack.enter_context(connect(server))
            client.sendall(b"GET / HTTP/1.1\r\nX-Slow: ")
            idle.append(client)
            if n % 100 == 99:
                started = time.monotonic()
                assert get(server, "/readyz")[0] == 200
                assert time.monotonic() - started < 0.8 * REQUEST_S, "it waited for one that is silent"
        assert set(threading.enumerate()) <= threads
        assert descriptors() - before <= len(idle) + 16 + 1
        assert len(server._connections) <= 16
    assert get(server, "/metrics")[0] == 200


def test_slow_request_ends_at_its_deadline(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    """The deadline is for the whole request: a byte now and then wins nothing."""
    monkeypatch.setattr("edgeapp.service.http.REQUEST_S", 0.3)
    monkeypatch.setattr("edgeapp.service.http.TICK_S", 0.05)
    with serving(state) as server, connect(server) as client, connect(server) as silent:
        started = time.monotonic()
        with suppress(BrokenPipeError, ConnectionResetError):
            while time.monotonic() - started < WAIT_S:
                client.sendall(b"G")
                time.sleep(0.02)
        assert time.monotonic() - started < WAIT_S
        assert everything(silent) == b""


def test_reader_that_does_not_read_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """A response that is not taken ends at its deadline and holds up no other."""
    monkeypatch.setattr("edgeapp.service.http.RESPONSE_S", 0.3)
    monkeypatch.setattr("edgeapp.service.http.TICK_S", 0.05)
    answer = lambda path: Response(200, body=b"x" * (64 << 20 if path == "/large" else 1))  # noqa: E731
    with Server(parse_address("127.0.0.1:0"), answer, Log()) as server, connect(server) as client:
        client.sendall(b"GET /large HTTP/1.0\r\n\r\n")
        assert get(server, "/small")[2] == b"x"
        until(lambda: not server._connections, "it is left")
        monkeypatch.setattr("edgeapp.service.http.RESPONSE_S", WAIT_S)
        assert get(server, "/large")[2] == b"x" * (64 << 20), "who reads gets all"


def test_answers_are_given_out_at_a_bounded_rate(server: Server) -> None:
    """A client in a loop must not take the interpreter from the work."""
    started = time.monotonic()
    for _ in range(150):
        assert exchange(server, b"GET /readyz HTTP/1.0\r\n\r\n").endswith(b"ready\n")
    assert time.monotonic() - started > 0.9


def test_no_descriptor_left_ends_no_server(server: Server) -> None:
    """When the process is out of them clients wait; then they are served."""
    with ExitStack() as stack:
        clients = [stack.enter_context(connect(server)) for _ in range(2)]
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        time.sleep(0.1)
        late = stack.enter_context(socket.socket())
        late.settimeout(WAIT_S)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            late.connect((server.address.host, server.address.port))
            late.sendall(b"GET /readyz HTTP/1.0\r\n\r\n")
            time.sleep(0.3)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert everything(late).endswith(b"ready\n")
        for client in clients:
            client.sendall(b"GET /readyz HTTP/1.0\r\n\r\n")
            assert everything(client).endswith(b"ready\n")


def test_bug_in_a_page_is_a_500_and_is_said() -> None:
    """The thread lives on; the client learns nothing of the inside."""

    def answer(path: str) -> Response:
        if path == "/bug":
            raise RuntimeError("a secret")
        return Response(200)

    log = Log()
    with Server(parse_address("127.0.0.1:0"), answer, log) as server:
        status, _, body = get(server, "/bug")
        assert (status, body) == (500, b"Internal Server Error\n")
        assert get(server, "/")[0] == 200
    assert ["a secret" in said for said in log.said] == [True]


def test_clients_side_by_side_all_get_their_answer(server: Server) -> None:
    """Eight at a time; some hang up half-way."""
    wrong: list[int] = []

    def ask() -> None:
        for n in range(10):
            with connect(server) as client:
                client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
                if n % 3 and not everything(client).startswith(b"HTTP/1.1 200"):
                    wrong.append(n)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# --- addresses -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("9100", Address("127.0.0.1", 9100)),
        ("localhost:9100", Address("127.0.0.1", 9100)),
        (":9100", Address("0.0.0.0", 9100)),
        ("10.0.0.7:80", Address("10.0.0.7", 80)),
        ("[::1]:9100", Address("::1", 9100)),
        ("/run/edgeapp/http.sock", Address(path="/run/edgeapp/http.sock")),
        ("unix:/run/x", Address(path="/run/x")),
        ("unix:x.sock", Address(path="x.sock")),
    ],
)
def test_address_is_understood(text: str, expected: Address) -> None:
    """A port alone is for this machine alone."""
    assert parse_address(text) == expected
    assert expected.local == (expected.host not in ("0.0.0.0", "10.0.0.7"))


@pytest.mark.parametrize(
    "text",
    ["", ":", "x", "-1", "65536", "99999999999", "1.2.3.4", "1.2.3.4:", "1.2.3.4:x", "example.com:80", "1.2.3:80",
     "::1:x", "[::1]", "unix:", "/" + "x" * 200, "/a\0b", "٣", "127.0.0.1:٣"],
)  # fmt: skip
def test_wrong_address_is_a_usage_error(text: str) -> None:
    """It says what is wanted."""
    with pytest.raises(errors.UsageError, match="cannot listen on") as caught:
        parse_address(text)
    assert caught.value.fix


def test_ipv6_is_served() -> None:
    """Where the machine has it."""
    if not Path("/proc/net/if_inet6").exists():
        pytest.skip("this machine has no IPv6")
    with Server(parse_address("[::1]:0"), lambda path: Response(200), Log()) as server:
        assert exchange(server, b"GET / HTTP/1.1\r\nHost: [::1]:1\r\n\r\n").startswith(b"HTTP/1.1 200")


def test_listener_for_others_is_said(state: State) -> None:
    """One line; loopback and Unix sockets need none. Others may use any name for the machine."""
    log = Log()
    with serving(state, "127.0.0.1:0", log):
        pass
    assert log.said == []
    with serving(state, ":0", log) as server:
        reached = Address("127.0.0.1", server.address.port)
        with socket.create_connection((reached.host, reached.port), timeout=WAIT_S) as client:
            client.sendall(b"GET /readyz HTTP/1.1\r\nHost: box.example\r\n\r\n")
            assert everything(client).startswith(b"HTTP/1.1 200")
    assert ["warning" in said for said in log.said] == [True]


def test_port_in_use_is_an_error(server: Server, state: State) -> None:
    """It has its code and says how to find who it is."""
    with pytest.raises(errors.SystemRefusedError, match="cannot listen") as caught:
        Server(server.address, Pages(state), Log())
    assert "ss -" in caught.value.fix


def test_foreign_address_is_an_error(state: State) -> None:
    """One that this machine does not have (documentation, RFC 5737)."""
    with pytest.raises(errors.SystemRefusedError, match=r"192\.0\.2\.1"):
        Server(parse_address("192.0.2.1:0"), Pages(state), Log())


def test_low_port_needs_rights() -> None:
    """As another user than root, where port 80 is root's."""
    if os.geteuid() != 0 or int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()) < 80:
        pytest.skip("only root can become another user, and all may take port 79 here")
    pid = os.fork()
    if pid == 0:
        os.setgid(65534)
        os.setuid(65534)
        try:
            Server(parse_address("127.0.0.1:79"), lambda path: Response(200), Log())
        except errors.EdgeappError as error:
            os._exit(error.exit_code)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == errors.NotPermittedError.exit_code


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077], ids=oct)
def test_unix_socket_is_for_user_and_group(state: State, tmp_path: Path, umask: int) -> None:
    """0660 whatever the umask is; it goes away with the server."""
    path = tmp_path / "http.sock"
    before = os.umask(umask)
    try:
        with serving(state, str(path)) as server:
            assert stat.S_IMODE(path.stat().st_mode) == 0o660
            assert stat.S_ISSOCK(path.stat().st_mode)
            assert get(server, "/readyz")[0] == 200
            assert exchange(server, b"GET /readyz HTTP/1.1\r\nHost: any.example\r\n\r\n").endswith(b"ready\n")
    finally:
        os.umask(before)
    assert os.listdir(tmp_path) == []


def test_unix_socket_of_a_killed_process_is_taken_over(state: State, tmp_path: Path) -> None:
    """Nobody listens there any more."""
    path = tmp_path / "http.sock"
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(str(path))
    with serving(state, str(path)) as server:
        assert get(server, "/readyz")[0] == 200


def in_use(path: Path, stack: ExitStack) -> None:
    listener = stack.enter_context(socket.socket(socket.AF_UNIX))
    listener.bind(str(path))
    listener.listen()


def a_file(path: Path, _: ExitStack) -> None:
    path.write_text("mine")


def a_link(path: Path, _: ExitStack) -> None:
    path.symlink_to("/dev/null")


def no_folder(path: Path, _: ExitStack) -> None:
    path.parent.rmdir()


@pytest.mark.parametrize(
    ("make", "code"),
    [(in_use, 71), (a_file, 73), (a_link, 73), (no_folder, 73)],
    ids=["in use", "file", "link", "missing"],
)  # fmt: skip
def test_unix_path_that_cannot_be_had_is_an_error(
    state: State, tmp_path: Path, make: Callable[[Path, ExitStack], None], code: int
) -> None:
    """Nothing that is not ours is removed."""
    path = tmp_path / "folder" / "http.sock"
    path.parent.mkdir()
    with ExitStack() as stack:
        make(path, stack)
        there = os.path.lexists(path)
        with pytest.raises(errors.EdgeappError, match="cannot listen on") as caught:
            Server(parse_address(str(path)), Pages(state), Log())
        assert caught.value.exit_code == code
        assert os.path.lexists(path) == there


# --- the page in a browser -------------------------------------------------------------------------------------------


class Elements(html.parser.HTMLParser):
    """The elements of a page with their attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_page_shows_the_state_and_runs_nothing_of_others(server: Server, state: State) -> None:
    """In a real browser: names that are programs are text."""
    browser = shutil.which("chromium-headless-shell") or shutil.which("chromium")
    if browser is None:
        pytest.skip("no Chromium on this machine")
    done = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=3000", "--dump-dom",
         f"http://{server.address}/"],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    page = done.stdout
    assert "<title>edgeapp: ready</title>" in page
    assert "parts.plan" in page
    assert page.count("<figure>") == 5
    assert "cannot read &lt;script&gt;document.title='stolen'&lt;/script&gt;" in page
    assert "caf\\xe9" in page
    elements = Elements()
    elements.feed(page)
    assert [name for name, _ in elements.found].count("script") == 1
    assert not [key for _, attributes in elements.found for key in attributes if key.startswith("on")]
    sources = [attributes["src"] or "" for name, attributes in elements.found if name == "img"]
    assert sources == [result["thumbnail"] for result in state.snapshot()["results"]]
