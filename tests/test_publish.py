"""Results are sent on: every one at least once and in order, whatever the receiver does, and without holding up."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
import receivers
from PIL import Image
from receivers import Authority, Broker, Hook, Listener, answer, listening, reserved_port
from serving import Spool, serving, until
from support import ROOT, Program

from edgeapp import errors
from edgeapp.cli import parse
from edgeapp.commands.publishing import wrong_with_receivers
from edgeapp.service import metrics, publisher, segments, targets
from edgeapp.service.durable import Appended
from edgeapp.service.publisher import MOST_BYTES, MOST_LINES, Publisher
from edgeapp.service.state import Published, State
from edgeapp.service.storms import EventLog
from edgeapp.service.unsent import Unsent
from edgeapp.service.webhook import Webhook

MODEL = ROOT / "edgeapp" / "data" / "demo" / "model.onnx"
KILLS = 1


class Results:
    """A folder of results as the recorder keeps it."""

    def __init__(self, root: Path) -> None:
        self.folder = root / "results"
        self.folder.mkdir()
        self.current = Appended(str(self.folder / segments.CURRENT))
        self.lines: list[bytes] = []

    @property
    def written(self) -> tuple[int, int]:
        return self.current.inode, self.current.size

    def add(self, count: int = 1, text: str = "") -> None:
        new = [json.dumps({"name": text, "id": f"{len(self.lines) + n:064x}"}).encode() + b"\n" for n in range(count)]
        self.current.append(b"".join(new))
        self.lines += new

    def rotate(self) -> Path:
        name = segments.name_after(segments.newest(str(self.folder)), datetime.now(timezone.utc))
        os.rename(self.current.path, self.folder / name)
        self.current.close()
        self.current = Appended(str(self.folder / segments.CURRENT))
        return self.folder / name


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return Results(tmp_path)


def unsent(results: Results, said: list[str] | None = None) -> Unsent:
    path = results.folder.parent / "webhook.position"
    return Unsent(str(results.folder), str(path), lambda: results.written, ([] if said is None else said).append)


def drained(it: Unsent, most: int = 3) -> list[bytes]:
    found: list[bytes] = []
    while lines := it.next(most, MOST_BYTES):
        it.sent(lines)
        found += lines
    return found


# --- where a receiver stands -----------------------------------------------------------------------------------------


def test_first_start_begins_with_what_comes(results: Results) -> None:
    """The past of years is not sent; what came between that start and the next one is."""
    results.add(5)
    results.rotate()
    results.add(5)
    unsent(results).close()
    results.add(2)
    assert drained(unsent(results)) == results.lines[10:]


@pytest.mark.parametrize("seed", range(3))
def test_every_line_comes_in_order_however_files_are_closed_and_processes_end(results: Results, seed: int) -> None:
    """Written, closed, read and begun anew in any order: nothing is left out, and only repeats are out of order."""
    it, chance, got = unsent(results), random.Random(seed), []
    for _ in range(120):
        step = chance.choice(["add", "add", "send", "send", "rotate", "rotate", "again", "killed"])
        if step == "add":
            results.add(chance.randrange(1, 8), "x" * chance.choice([0, 10, 6000]))
        elif step == "send" and (lines := it.next(chance.randrange(1, 5), chance.choice([1, 500, MOST_BYTES]))):
            if chance.random() < 0.8:
                it.sent(lines[: chance.randrange(len(lines)) + 1])
            got += lines
        elif step == "rotate" and results.current.size:
            results.rotate()
        elif step == "again":
            it.close()
            it = unsent(results)
        elif step == "killed":
            it = unsent(results)
    got += drained(it)
    assert set(got) == set(results.lines)
    assert list(dict.fromkeys(got)) == results.lines
    assert it.waiting_bytes() == 0


def test_waiting_bytes_are_those_that_are_not_sent(results: Results) -> None:
    """Over closed segments, too."""
    it = unsent(results)
    results.add(4)
    results.rotate()
    results.add(3)
    it.sent(it.next(2, MOST_BYTES))
    assert it.waiting_bytes() == sum(map(len, results.lines[2:]))


def test_removed_segment_is_skipped_and_said(results: Results) -> None:
    """What the operator deletes is gone; what comes after it is sent from its beginning."""
    said: list[str] = []
    it = unsent(results, said)
    results.add(4)
    it.sent(it.next(2, MOST_BYTES))
    it.close()
    results.rotate().unlink()
    results.add(9)
    assert drained(unsent(results, said)) == results.lines[4:]
    assert len(said) == 1
    assert "gone" in said[0]


def test_segment_that_is_removed_while_it_is_read_is_sent_whole(results: Results) -> None:
    """It is still open."""
    it = unsent(results)
    results.add(4)
    it.sent(it.next(2, MOST_BYTES))
    results.rotate().unlink()
    results.add(2)
    assert drained(it) == results.lines[2:]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"after": 1}', '{"after": "", "head": "", "offset": -1}', "\0" * 50])
def test_damaged_position_sends_all_again(results: Results, text: str) -> None:
    """Better twice than not at all, and it is said."""
    said: list[str] = []
    results.add(3)
    results.rotate()
    results.add(2)
    (results.folder.parent / "webhook.position").write_text(text)
    assert drained(unsent(results, said)) == results.lines
    assert "damaged" in said[0]


def test_line_is_not_sent_before_it_is_on_the_disk(results: Results) -> None:
    """What a full disk makes the recorder take back was never there."""
    it = unsent(results)
    results.add(2)
    with open(results.current.path, "ab") as file:
        file.write(b"not synchronised\n")
    assert drained(it) == results.lines


def test_names_of_segments_follow_each_other_when_the_clock_is_set_back() -> None:
    """The order of the names is that of writing."""
    now = datetime(2026, 5, 1, tzinfo=timezone.utc)
    first = segments.name_after("", now)
    assert first == "20260501T000000.000000Z.jsonl"
    second = segments.name_after(first, datetime(1970, 1, 1, tzinfo=timezone.utc))
    assert second == "20260501T000000.000001Z.jsonl"
    assert segments.name_after(second, datetime(2026, 5, 2, tzinfo=timezone.utc)) > second
    assert segments.CLOSED.fullmatch(segments.name_after("99999999T999999.999999Z.jsonl", now))


# --- webhook ---------------------------------------------------------------------------------------------------------


@contextmanager
def publishing(results: Results, hook: Hook, log: Path, **options: Any) -> Iterator[tuple[Publisher, Published]]:
    """A publisher to the hook, to the end of the body."""
    target = targets.parse_webhook(hook.url)
    state = State()
    with ExitStack() as stack:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        stack.callback(os.close, file)
        receiver = Webhook(target, options.get("headers"), options.get("ca_file"))
        it = Publisher(receiver, str(target), unsent(results), state, EventLog(form="json", descriptor=file))
        try:
            yield it, state.publishing["webhook"]
        finally:
            it.end(time.monotonic() + 5)
            it.join(60)
            assert not it._thread.is_alive()


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short times, so that the tests are short."""
    monkeypatch.setattr(publisher, "FIRST_DELAY_S", 0.02)
    monkeypatch.setattr(publisher, "LONGEST_DELAY_S", 0.1)
    monkeypatch.setattr(publisher, "IDLE_S", 0.05)


@pytest.fixture
def port() -> Iterator[int]:
    """One that nobody listens on until the test does."""
    with reserved_port() as reserved:
        yield int(reserved.getsockname()[1])


def events(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


@pytest.mark.parametrize(
    ("misdeed", "why"),
    [
        (answer(500), "500"),
        (answer(503, Retry_After="0"), "503"),
        (answer(429), "429"),
        (answer(408), "408"),
        (answer(401), "401"),
        (answer(404), "404"),
        (receivers.redirect, "redirects are not followed"),
        (receivers.close, "closed"),
        (receivers.reset, "reset"),
        (receivers.hang, "no answer within"),
        (receivers.trickle, "no answer within"),
        (receivers.nonsense, "no HTTP answer"),
    ],
    ids=["500", "503", "429", "408", "401", "404", "redirect", "close", "reset", "hang", "trickle", "nonsense"],
)
@pytest.mark.usefixtures("hasty")
def test_receiver_that_fails_gets_all_in_order_later(
    results: Results, tmp_path: Path, misdeed: receivers.Misdeed, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line of the log for the outage, one for its end."""
    if why == "no answer within":  # a good answer may take its time on a busy machine
        monkeypatch.setattr("edgeapp.service.webhook.TIMEOUT_S", 1.0)
    log = tmp_path / "log"
    with listening(Hook()) as hook, publishing(results, hook, log) as (it, told):
        hook.misdeeds = [misdeed] * 2
        results.add(250)
        it.more()
        until(lambda: len(hook.got) >= 250, "all lines")
        until(lambda: told.published == 250 and not told.waiting_bytes, "counted")
    assert hook.got == results.lines
    assert {request.path for request in hook.requests} == {"/results?line=3"}
    assert told.failures >= 2
    kinds = [event["event"] for event in events(log)]
    assert kinds == ["publish_down", "publish_up"]
    assert why in events(log)[0]["fields"]["why"]
    assert "line=3" not in log.read_text()


@pytest.mark.usefixtures("hasty")
def test_batches_are_bounded_and_go_over_one_connection(results: Results, tmp_path: Path) -> None:
    """At most a hundred lines or a megabyte, each with a key that tells a repeat, over a connection that stays."""
    with listening(Hook()) as hook, publishing(results, hook, tmp_path / "log") as (it, _):
        results.add(250)
        results.add(3, "x" * 700_000)
        results.add(1, "x" * 3_000_000)
        it.more()
        until(lambda: len(hook.got) == 254, "all lines")
    assert hook.got == results.lines
    assert max(len(request.lines) for request in hook.requests) == MOST_LINES
    assert all(len(r.lines) == 1 or sum(map(len, r.lines)) <= MOST_BYTES for r in hook.requests)
    assert hook.connections == 1
    assert all(request.headers["Content-Type"] == "application/x-ndjson" for request in hook.requests)
    keys = [request.headers["Idempotency-Key"] for request in hook.requests]
    assert len(set(keys)) == len(keys)


@pytest.mark.usefixtures("hasty")
def test_connection_that_was_closed_while_idle_is_no_outage(results: Results, tmp_path: Path) -> None:
    """Servers do that; the next request goes over a new one, with the same key if it is a repeat."""
    log = tmp_path / "log"
    with listening(Hook()) as hook, publishing(results, hook, log) as (it, told):
        results.add()
        it.more()
        until(lambda: len(hook.got) == 1, "the first line")
        hook.misdeeds = [receivers.close]
        results.add()
        it.more()
        until(lambda: len(hook.got) == 2, "the second line")
    assert hook.connections == 2
    assert (told.failures, log.read_text()) == (0, "")
    assert hook.requests[1].headers["Idempotency-Key"] == hook.requests[2].headers["Idempotency-Key"]


@pytest.mark.usefixtures("hasty")
def test_server_that_takes_one_request_for_each_connection_is_served(
    results: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of HTTP/1.0 do."""
    monkeypatch.setattr(receivers.Handler, "protocol_version", "HTTP/1.0")
    with listening(Hook()) as hook, publishing(results, hook, tmp_path / "log") as (it, told):
        results.add(250)
        it.more()
        until(lambda: told.published == 250, "all")
    assert hook.got == results.lines
    assert (told.failures, hook.connections) == (0, 3)


@pytest.mark.usefixtures("hasty")
def test_endless_answer_is_not_read_to_its_end(results: Results, tmp_path: Path) -> None:
    """It says 200, so it has the lines; the rest is not wanted."""

    def endless(handler: receivers.Handler) -> None:
        hook.got += hook.requests[-1].lines
        handler.answer(200, Content_Length=str(1 << 40))
        while True:
            handler.wfile.write(bytes(1 << 16))

    with listening(Hook()) as hook, publishing(results, hook, tmp_path / "log") as (it, told):
        hook.misdeeds = [endless]
        results.add(3)
        it.more()
        until(lambda: told.published == 3, "three lines")
        results.add(3)
        it.more()
        until(lambda: told.published == 6, "six lines")
    assert hook.got == results.lines
    assert hook.connections == 2


@pytest.mark.parametrize("status", [400, 409, 413, 422])
@pytest.mark.usefixtures("hasty")
def test_line_that_is_refused_is_left_out_alone(results: Results, tmp_path: Path, status: int) -> None:
    """The others of its batch and all that follow arrive, in order; it is counted and said."""
    log = tmp_path / "log"
    results_of = Hook(judge=lambda request: status if results.lines[7] in request.lines else 200)
    with listening(results_of) as hook, publishing(results, hook, log) as (it, told):
        results.add(150)
        it.more()
        until(lambda: len(hook.got) == 149, "the others")
        until(lambda: told.published == 149, "counted")
    assert hook.got == [line for line in results.lines if line != results.lines[7]]
    assert (told.refused, told.failures) == (1, 0)
    assert [event["event"] for event in events(log)] == ["publish_refused"]
    assert str(status) in events(log)[0]["fields"]["why"]


@pytest.mark.usefixtures("hasty")
def test_receiver_that_takes_only_small_batches_gets_small_ones(results: Results, tmp_path: Path) -> None:
    """413 for more than ten lines leaves nothing out."""
    small = Hook(judge=lambda request: 413 if len(request.lines) > 10 else 200)
    with listening(small) as hook, publishing(results, hook, tmp_path / "log") as (it, told):
        results.add(60)
        it.more()
        until(lambda: told.published == 60, "all")
    assert hook.got == results.lines
    assert told.refused == 0


@pytest.mark.usefixtures("hasty")
def test_token_of_a_file_is_sent_and_read_anew_when_it_is_not_taken(results: Results, tmp_path: Path) -> None:
    """A token that has expired is replaced in the file, and the service goes on without a restart."""
    headers = tmp_path / "headers"
    headers.write_text("# of the factory\nAuthorization: Bearer old\n\nX-Line: 3\n")
    guarded = Hook(judge=lambda request: 200 if request.headers["Authorization"] == "Bearer new" else 401)
    with listening(guarded) as hook, publishing(results, hook, tmp_path / "log", headers=str(headers)) as (it, told):
        results.add(3)
        it.more()
        until(lambda: told.failures, "refused")
        headers.write_text("Authorization: Bearer new\n")
        until(lambda: told.published == 3, "taken")
    assert hook.requests[0].headers["X-Line"] == "3"
    assert "old" not in (tmp_path / "log").read_text()


@pytest.mark.usefixtures("hasty")
def test_end_tries_once_and_leaves_the_rest(results: Results, tmp_path: Path, port: int) -> None:
    """A publisher in the middle of a long wait ends at once; what was not sent goes out from the next one."""
    hook = Hook(port=port)
    with publishing(results, hook, tmp_path / "log") as (it, told):
        results.add(3)
        it.more()
        until(lambda: told.down, "down")
        before_s = time.monotonic()
    assert time.monotonic() - before_s < 4
    with listening(hook, hook.port), publishing(results, hook, tmp_path / "log") as (_, told):
        until(lambda: told.published == 3, "the rest")
    assert hook.got == results.lines


def test_metrics_tell_of_each_receiver() -> None:
    """Nothing of receivers that there are not."""
    state = State()
    assert "publish" not in metrics.render(state)
    state.publishing["mqtt"] = Published(published=3, refused=1, failures=2, waiting_bytes=99)
    told = metrics.render(state)
    for line in (
        'edgeapp_published_total{to="mqtt"} 3',
        'edgeapp_publish_refused_total{to="mqtt"} 1',
        'edgeapp_publish_failures_total{to="mqtt"} 2',
        'edgeapp_publish_waiting_bytes{to="mqtt"} 99',
    ):
        assert f"{line}\n" in told


# --- TLS -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return receivers.make_authority(tmp_path_factory.mktemp("authority"))


@pytest.mark.usefixtures("hasty")
def test_certificate_of_a_trusted_authority_is_taken(results: Results, tmp_path: Path, authority: Authority) -> None:
    """A self-made one, named by --ca-file."""
    with (
        listening(Hook(), tls=authority.here) as hook,
        publishing(results, hook, tmp_path / "log", ca_file=str(authority.file)) as (it, told),
    ):
        results.add(120)
        it.more()
        until(lambda: told.published == 120, "all")
    assert hook.got == results.lines


@pytest.mark.parametrize("case", ["other authority", "other name"])
@pytest.mark.usefixtures("hasty")
def test_certificate_that_is_not_right_gets_nothing(
    results: Results, tmp_path: Path, authority: Authority, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Signed by nobody who is trusted here, or made out to somebody else: not a byte of a result goes there."""
    (tmp_path / "others").mkdir()
    trusted = receivers.make_authority(tmp_path / "others").file if case == "other authority" else authority.file
    shown = authority.here if case == "other authority" else authority.elsewhere
    monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
    log = tmp_path / "log"
    with listening(Hook(), tls=shown) as hook, publishing(results, hook, log) as (it, told):
        results.add(3)
        it.more()
        until(lambda: told.failures >= 2, "failures")
    assert hook.requests == []
    why = events(log)[0]["fields"]["why"]
    assert ("signed" if case == "other authority" else "ip address mismatch") in why or "issuer" in why


def test_authorities_of_the_system_are_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """At the well-known places, and not where OpenSSL's builder kept them; without any it is said."""
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)
    authority = receivers.make_authority(tmp_path)
    monkeypatch.setattr(targets, "WELL_KNOWN_AUTHORITIES", (str(tmp_path / "missing"), str(authority.file)))
    assert len(targets.tls_context(None).get_ca_certs()) == 1
    monkeypatch.setattr(targets, "WELL_KNOWN_AUTHORITIES", ())
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "missing"))
    with pytest.raises(errors.ConfigurationError, match="cannot send") as caught:
        targets.tls_context(None)
    assert "apt-get install ca-certificates" in caught.value.fix


# --- what is given ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    ["", "x", "ftp://a/", "http://", "http:///x", "http://a:0/", "http://a:99999/", "http://a:/", "http://a:x/",
     "http://[::1/", "http://a/ b", "http://a/\n", "http://ä/", "http://a/#b", "http://u:p@a/", "mqtt://a"],
)  # fmt: skip
def test_url_that_is_none_is_refused(url: str) -> None:
    """Each is a usage error, without a password in it."""
    with pytest.raises(errors.UsageError) as caught:
        targets.parse_webhook(url)
    assert "u:p" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "host", "port", "path"),
    [
        ("http://a", "a", 80, "/"),
        ("https://a.b:8443/x/y?z=1&w", "a.b", 8443, "/x/y?z=1&w"),
        ("http://[::1]:8/x", "::1", 8, "/x"),
    ],
)
def test_url_is_taken_apart(url: str, host: str, port: int, path: str) -> None:
    """Host, port and all that is asked for; what is shown of it holds no path."""
    target = targets.parse_webhook(url)
    assert (target.host, target.port, target.path) == (host, port, path)
    assert path == "/" or path not in str(target)


@pytest.mark.parametrize(
    "url",
    [
        "mqtt://",
        "http://a",
        "mqtt://a/b+c",
        "mqtt://a/#",
        "mqtt://a/b/%23",
        "mqtt://a/$SYS",
        "mqtt://a?b",
        "mqtt://a/%00",
        "mqtt://a/%ff",
        "mqtt://a/b//c",
    ],
)
def test_broker_that_is_none_is_refused(url: str) -> None:
    """Wildcards cannot be published to."""
    with pytest.raises(errors.UsageError):
        targets.parse_mqtt(url)


@pytest.mark.parametrize(
    ("data", "code"),
    [(b"no header\n", 78), (b"Bad Name: x\n", 78), (b"X: \x01\n", 78), (b"Content-Length: 3\n", 78), (b"\xff: x\n", 78),
     (b"X:\n", 78), (b"#" * 70_000, 78), (None, 66)],
)  # fmt: skip
def test_file_of_headers_that_is_none_is_refused(tmp_path: Path, data: bytes | None, code: int) -> None:
    """With the number of the line; nothing of it can break a request apart."""
    file = tmp_path / "headers"
    if data is not None:
        file.write_bytes(data)
    with pytest.raises(errors.EdgeappError) as caught:
        targets.read_headers(str(file))
    assert caught.value.exit_code == code


@pytest.mark.parametrize("data", [b"", b"user", b":password\n", b"\n", b"a\0:b"])
def test_login_that_is_none_is_refused(tmp_path: Path, data: bytes) -> None:
    """USER:PASSWORD is wanted; a password may hold colons."""
    (tmp_path / "login").write_bytes(data)
    with pytest.raises(errors.ConfigurationError):
        targets.read_login(str(tmp_path / "login"))
    (tmp_path / "login").write_text("user:pass:word\nmore\n")
    assert targets.read_login(str(tmp_path / "login")) == ("user", "pass:word")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--webhook", "localhost:80"], 64, "no URL"),
        (["--webhook", "http://a/", "--write", "json"], 64, "--write jsonl"),
        (["--webhook", "http://a/", "--webhook-headers", "missing"], 66, "missing"),
        (["--webhook", "https://a/", "--ca-file", "junk"], 78, "certificates"),
        (["--mqtt", "mqtt://u:p@a/"], 64, "--mqtt-login"),
        (["--mqtt", "mqtt://a/", "--mqtt-login", "junk"], 78, "USER:PASSWORD"),
    ],
    ids=["url", "write", "headers", "authorities", "user", "login"],
)
def test_wrong_receivers_are_found(
    words: list[str], code: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without connecting to any."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "junk").write_text("junk\n")
    [problem] = wrong_with_receivers(parse(["serve", *words])[1])
    assert (problem.exit_code, said in str(problem)) == (code, True), problem


def test_wrong_receivers_are_named_before_anything_starts(source_program: Program, spool: Spool) -> None:
    """`serve` ends with the code of the first, `check` names all."""
    words = ["--engine", MODEL, "--spool", spool.root, "--webhook", "localhost", "--mqtt", "mqtt://a/+"]
    served = source_program("serve", *words)
    assert (served.returncode, "no URL" in served.stderr) == (64, True), served
    checked = source_program("check", *words)
    assert (checked.returncode, len(checked.stdout.splitlines())) == (64, 3), checked
    assert not (spool.root / "state").exists()


def test_settings_of_openssl_that_leave_nothing_to_use_are_no_bug(program: Program, spool: Spool) -> None:
    """As a machine's openssl.cnf that asks for the FIPS module alone, which is not there."""
    settings = spool.root.with_name("openssl.cnf")
    settings.write_text("openssl_conf = a\n[a]\nproviders = b\n[b]\nfips = c\n[c]\nactivate = 1\n")
    words = ("--engine", MODEL, "--spool", spool.root, "--webhook", "https://localhost")
    done = program("serve", *words, env={"OPENSSL_CONF": str(settings)})
    assert (done.returncode, "OPENSSL_CONF=FILE" in done.stderr) == (78, True), done


# --- the service -----------------------------------------------------------------------------------------------------


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool")


@pytest.fixture
def picture_of(tmp_path: Path) -> Callable[[int], bytes]:
    """Small pictures, each of its own bytes."""

    def make(number: int) -> bytes:
        path = tmp_path / "x.jpg"
        Image.new("RGB", (64, 48), (number % 256, 255 - number % 256, number // 256)).save(path)
        return path.read_bytes() + str(number).encode()

    return make


def put(spool: Spool, picture_of: Callable[[int], bytes], first: int, count: int) -> None:
    for number in range(first, first + count):
        spool.put(picture_of(number), f"{number:04}.jpg")


def ids(spool: Spool) -> list[str]:
    return list(dict.fromkeys(line["id"] for line in spool.lines()))


def test_results_go_to_a_webhook_and_to_a_broker_over_tls(
    program: Program, spool: Spool, picture_of: Callable[[int], bytes], authority: Authority, tmp_path: Path
) -> None:
    """Both get the lines of results.jsonl; the frozen program does TLS and MQTT, too."""
    headers = tmp_path / "headers"
    headers.write_text("Authorization: Bearer secret\n")
    certificate, key = authority.here
    with (
        Broker(tmp_path, f"certfile {certificate}", f"keyfile {key}") as broker,
        Listener(broker, ca_file=authority.file) as listener,
        listening(Hook(), tls=authority.here) as hook,
    ):
        words = (
            "--ca-file",
            authority.file,
            "--webhook-headers",
            headers,
            "--mqtt",
            f"mqtts://127.0.0.1:{broker.port}/x",
        )
        with serving(program, spool, "--webhook", hook.url, *words, engine=MODEL) as it:
            put(spool, picture_of, 0, 5)
            spool.put(b"junk", "junk.jpg")
            it.wait_done(6)
            told = it.status()["publishing"]
            assert set(told) == {"webhook", "mqtt"}
            assert it.stop() == 0
        until(lambda: len(listener.heard.get("x/results", [])) == 6, "messages")
        assert [json.loads(line) for line in hook.got] == spool.lines()
        assert [json.loads(line) for line in listener.heard["x/results"]] == spool.lines()
    assert hook.requests[0].headers["Authorization"] == "Bearer secret"


def test_outage_with_closed_segments_holds_nothing_up_and_loses_nothing(
    source_program: Program, spool: Spool, picture_of: Callable[[int], bytes], port: int
) -> None:
    """Inputs are done while nobody listens; later all their results arrive in order, those of closed files, too."""
    hook = Hook(port=port)
    with serving(source_program, spool, "--webhook", hook.url, "--segment-s", "1", engine=MODEL) as it:
        for first in (0, 10, 20):
            time.sleep(1.05 if first else 0)  # older than --segment-s
            put(spool, picture_of, first, 10)
            it.wait_done(first + 10)
        told = it.status()["publishing"]["webhook"]
        assert told["down"]
        assert told["failures"] < 10
        assert (told["published"], told["waiting_bytes"] > 0) == (0, True)
        assert len(list(spool.results.glob("2*.jsonl"))) >= 2
        with listening(hook, hook.port):
            until(lambda: len(hook.firsts) == 30, "all results")
            until(lambda: not it.status()["publishing"]["webhook"]["down"], "no longer down")
            assert it.stop() == 0
    assert hook.firsts == ids(spool)


def test_killed_service_sends_every_result_at_least_once_and_in_order(
    source_program: Program, spool: Spool, picture_of: Callable[[int], bytes]
) -> None:
    """Killed while it publishes, with a receiver that fails now and then."""
    chance = random.Random(4)

    def judge(_: receivers.Request) -> int:
        time.sleep(0.01)
        return 503 if chance.random() < 0.05 else 200

    with listening(Hook(judge=judge)) as hook:
        for round_ in range(KILLS):
            with serving(source_program, spool, "--webhook", hook.url, "--segment-s", "1", engine=MODEL) as it:
                put(spool, picture_of, 20 * round_, 20)
                wanted = len(hook.firsts) + chance.randrange(1, 15)
                until(lambda wanted=wanted: len(hook.firsts) >= wanted, "some")
                it.process.send_signal(signal.SIGKILL)
                it.process.wait(60)
        with serving(source_program, spool, "--webhook", hook.url, engine=MODEL) as it:
            until(lambda: len(hook.firsts) == 20 * KILLS, "all results")
            assert it.stop() == 0
    assert hook.firsts == ids(spool)
    spool.assert_each_once()


def test_receiver_that_hangs_does_not_hold_up_the_end(
    source_program: Program, spool: Spool, picture_of: Callable[[int], bytes]
) -> None:
    """SIGTERM ends with 0 within the two seconds that are meant for sending the rest, and a bit."""
    with listening(Hook()) as hook:
        hook.misdeeds = [receivers.hang] * 100
        with serving(source_program, spool, "--webhook", hook.url, engine=MODEL) as it:
            put(spool, picture_of, 0, 10)
            it.wait_done(10)
            until(lambda: hook.requests, "a request")
            started = time.monotonic()
            assert it.stop() == 0
            assert time.monotonic() - started < 8


# --- MQTT ------------------------------------------------------------------------------------------------------------


def test_broker_knows_who_is_there_and_loses_nothing(
    source_program: Program, spool: Spool, picture_of: Callable[[int], bytes], tmp_path: Path
) -> None:
    """Online, results in order, a status, offline; by the broker itself after a kill; nothing lost in its absence."""
    with Broker(tmp_path) as broker, Listener(broker) as listener:
        heard, url = listener.heard, f"mqtt://127.0.0.1:{broker.port}/line/3"

        def arrived() -> list[str]:
            return list(dict.fromkeys(json.loads(line)["id"] for line in heard.get("line/3/results", [])))

        with serving(source_program, spool, "--mqtt", url, engine=MODEL) as it:
            put(spool, picture_of, 0, 20)
            until(lambda: len(arrived()) == 20, "results")
            status = until(lambda: heard.get("line/3/status"), "a status")[0]
            assert "inputs" in json.loads(status)
            assert heard["line/3/available"] == [b"online"]
            it.process.kill()
            it.process.wait(60)
            until(lambda: heard["line/3/available"] == [b"online", b"offline"], "its last will")
        with serving(source_program, spool, "--mqtt", url, engine=MODEL) as it:
            until(lambda: heard["line/3/available"][-1] == b"online", "online again")
            broker.stop()
            put(spool, picture_of, 20, 20)
            it.wait_done(20)
            broker.start()
            until(lambda: len(arrived()) == 40, "all results")
            assert it.stop() == 0
            until(lambda: heard["line/3/available"][-1] == b"offline", "offline")
    assert arrived() == ids(spool)


def test_broker_takes_who_has_the_password_over_tls(
    source_program: Program, spool: Spool, picture_of: Callable[[int], bytes], tmp_path: Path, authority: Authority
) -> None:
    """A wrong password is said as such; the right one, put into the file, is taken without a restart."""
    login, passwords = tmp_path / "login", tmp_path / "passwords"
    passwords.write_text("belt:right word\n")
    certificate, key = authority.here
    with ExitStack() as stack:
        broker = Broker(
            tmp_path, "allow_anonymous false", f"password_file {passwords}", f"certfile {certificate}", f"keyfile {key}"
        )
        receivers.hash_passwords(passwords)
        stack.enter_context(broker)
        listener = stack.enter_context(Listener(broker, login=("belt", "right word"), ca_file=authority.file))
        login.write_text("belt:wrong\n")
        words = ("--mqtt", f"mqtts://127.0.0.1:{broker.port}/x", "--mqtt-login", login, "--ca-file", authority.file)
        log = stack.enter_context((tmp_path / "log").open("w"))
        it = stack.enter_context(serving(source_program, spool, *words, engine=MODEL, stderr=log))
        until(lambda: "not authorized" in (tmp_path / "log").read_text(), "the refusal")
        login.write_text("belt:right word\n")
        put(spool, picture_of, 0, 3)
        until(lambda: len(listener.heard.get("x/results", [])) == 3, "results")
        assert it.stop() == 0
    assert "right word" not in (tmp_path / "log").read_text()


@pytest.mark.usefixtures("hasty")
def test_message_over_which_a_broker_always_hangs_up_is_left_out(
    results: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is too large for it does not block all that follow."""
    from edgeapp.service.mqtt import Mqtt

    with Broker(tmp_path, "max_packet_size 2000") as broker, Listener(broker) as listener:
        target, state = targets.parse_mqtt(f"mqtt://127.0.0.1:{broker.port}/x"), State()
        it = Publisher(
            Mqtt(target, None, None, state.figures), str(target), unsent(results), state, EventLog(quiet=True)
        )
        results.add(20)
        results.add(1, "x" * 5000)
        results.add(20)
        it.more()
        told = state.publishing["mqtt"]
        until(lambda: told.published == 40, "the others")
        it.end(time.monotonic() + 5)
        it.join(60)
        until(lambda: len(set(listener.heard["x/results"])) == 40, "heard")
    assert told.refused == 1
    arrived = list(dict.fromkeys(listener.heard["x/results"]))
    assert arrived == [line.rstrip() for line in results.lines if len(line) < 5000]
