"""What systemd is told, over real datagram sockets."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from support import ROOT, Clock

from edgeapp.service.notify import MOST_STATUS, Notifier


class Manager:
    """The other end: a stand-in for systemd that only listens."""

    def __init__(self, address: str) -> None:
        self.name = address
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address.replace("@", "\0", 1) if address.startswith("@") else address)
        self.socket.setblocking(False)

    def messages(self) -> list[dict[str, str]]:
        """All that came so far, each as variable -> value."""
        found = []
        while True:
            try:
                data = self.socket.recv(1 << 16)
            except BlockingIOError:
                return found
            found.append(dict(line.split("=", 1) for line in data.decode().split("\n")))


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(str(tmp_path / "notify"))
    yield manager
    manager.socket.close()


def notifier_of(manager: Manager, clock: Clock | None = None, **variables: str) -> Notifier:
    return Notifier({"NOTIFY_SOCKET": manager.name, **variables}, clock or Clock())


def fill(manager: Manager) -> None:
    """Send until the queue takes no more."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other, suppress(BlockingIOError):
        while True:
            other.sendto(b"X=1", socket.MSG_DONTWAIT, manager.name)


def test_each_message_has_its_variables(manager: Manager) -> None:
    """One datagram a message; RELOADING comes with the monotonic time that systemd 253 wants."""
    with notifier_of(manager) as notifier:
        notifier.status("warming up")
        notifier.extend_timeout(90)
        notifier.ready("serves model.plan")
        before_us = time.monotonic_ns() // 1000
        notifier.reloading()
        notifier.stopping("12 in flight")
        notifier.ending(75, 5)
    *others, reloading, stopping, ending = manager.messages()
    assert others == [
        {"STATUS": "warming up"},
        {"EXTEND_TIMEOUT_USEC": "90000000"},
        {"READY": "1", "STATUS": "serves model.plan"},
    ]
    assert reloading["RELOADING"] == "1"
    assert before_us <= int(reloading["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000
    assert stopping == {"STOPPING": "1", "STATUS": "12 in flight"}
    assert ending == {"EXIT_STATUS": "75", "ERRNO": "5"}


def test_abstract_address_is_understood() -> None:
    """@ stands for the NUL of an abstract socket."""
    manager = Manager(f"@edgeapp-test-{os.getpid()}")
    try:
        with notifier_of(manager) as notifier:
            notifier.ready("")
        assert manager.messages() == [{"READY": "1", "STATUS": ""}]
    finally:
        manager.socket.close()


def say_everything(notifier: Notifier) -> None:
    notifier.ready("a")
    notifier.status("b")
    notifier.watchdog()
    notifier.reloading()
    notifier.extend_timeout(1)
    notifier.stopping()
    notifier.ending(1)


@pytest.mark.parametrize(
    "place",
    ["", "vsock:2:1234", "relative/path", "/nowhere/at/all", "/" + "x" * 300, "@" + "x" * 300, "/a\0b", "/\udcff"],
    ids=["none", "vsock", "relative", "missing", "long path", "long name", "NUL", "no UTF-8"],
)  # fmt: skip
def test_no_manager_means_silence(place: str) -> None:
    """Whatever the variable holds, nothing is raised."""
    with Notifier({"NOTIFY_SOCKET": place, "WATCHDOG_USEC": "1000000"}) as notifier:
        say_everything(notifier)
    say_everything(notifier)  # closed


def test_manager_that_goes_away_harms_nothing(manager: Manager, tmp_path: Path) -> None:
    """Its socket is closed, then its file is gone."""
    with notifier_of(manager) as notifier:
        manager.socket.close()
        say_everything(notifier)
        (tmp_path / "notify").unlink()
        say_everything(notifier)


def test_environment_is_cleared_for_children(manager: Manager) -> None:
    """A child neither finds the socket nor believes that it is watched."""
    code = (
        "import os, subprocess, sys\nfrom edgeapp.service.notify import Notifier\n"
        "with Notifier() as notifier:\n    print(notifier.watchdog_s, notifier.listening, flush=True)\n"
        "    subprocess.run(['/usr/bin/env'], check=True)\n"
    )
    env = {"NOTIFY_SOCKET": manager.name, "WATCHDOG_USEC": "30000000", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    first, *children = done.stdout.splitlines()
    assert first == "30.0 True"
    assert children
    assert not [line for line in children if line.startswith(("NOTIFY", "WATCHDOG"))]


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"WATCHDOG_USEC": "3000000"}, 3.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}, 3.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getppid())}, None),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "x"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "-5"}, None),
        ({"WATCHDOG_USEC": "much"}, None),
        ({"WATCHDOG_USEC": "٣"}, None),
        ({"WATCHDOG_USEC": "18446744073709551615"}, 184467440737.09552),
        ({}, None),
    ],
    ids=["on", "ours", "another's", "no pid", "zero", "negative", "word", "other digits", "for ever", "off"],
)  # fmt: skip
def test_watchdog_time_is_for_this_process_alone(
    manager: Manager, variables: dict[str, str], expected: float | None
) -> None:
    """A pid that is not ours, or no number, means that nobody watches."""
    with notifier_of(manager, **variables) as notifier:
        assert notifier.watchdog_s == (pytest.approx(expected) if expected else None)


def test_watchdog_is_fed_four_times_in_its_time(manager: Manager) -> None:
    """A call for every input costs a message only now and then."""
    clock = Clock()
    with notifier_of(manager, clock, WATCHDOG_USEC="8000000") as notifier:
        for _ in range(1000):  # 10 s
            notifier.watchdog()
            clock.now += 0.01
    assert manager.messages() == [{"WATCHDOG": "1"}] * 5


def test_status_is_sent_once_a_second_but_at_once_when_its_words_change(manager: Manager) -> None:
    """Numbers that change are old news; other words are not."""
    clock = Clock()
    with notifier_of(manager, clock) as notifier:
        for n in range(192):  # 3 s
            notifier.status(f"ready: {n}/s")
            clock.now += 0.015625
        notifier.status("not ready: disk full")
        notifier.status("not ready: disk full")
    texts = [message["STATUS"] for message in manager.messages()]
    assert texts == ["ready: 0/s", "ready: 64/s", "ready: 128/s", "not ready: disk full"]


@pytest.mark.parametrize("text", ["a\nREADY=1", "a\0b", "x" * 100_000, "ß" * 9000, "\ud800\udcff", "\x1b[31m"])
def test_status_is_one_short_line_of_utf8(manager: Manager, text: str) -> None:
    """A newline in a name begins no variable of its own."""
    with notifier_of(manager) as notifier:
        notifier.status(text)
        notifier.ready(text)
    first, second = manager.messages()
    assert set(first) == {"STATUS"}
    assert set(second) == {"STATUS", "READY"}
    assert 0 < len(first["STATUS"]) <= MOST_STATUS
    assert first["STATUS"].isprintable()


def test_full_queue_delays_what_must_arrive_and_nobody(manager: Manager) -> None:
    """READY waits for room and keeps its place; a status is dropped; no call blocks."""
    fill(manager)
    with notifier_of(manager) as notifier:
        notifier.ready("serves")
        notifier.reloading()
        notifier.status("1/s")
        assert all(message == {"X": "1"} for message in manager.messages())
        notifier.status("2/s, told")
    assert [sorted(message) for message in manager.messages()] == [
        ["READY", "STATUS"], ["MONOTONIC_USEC", "RELOADING"], ["STATUS"],
    ]  # fmt: skip


def test_what_waits_is_bounded(manager: Manager) -> None:
    """A manager that never reads costs a message of each kind, the latest; READY is not pushed out."""
    fill(manager)
    with notifier_of(manager) as notifier:
        notifier.ready("")
        for n in range(10_000):
            notifier.extend_timeout(n)
        manager.messages()
        notifier.status("told")
    assert manager.messages() == [
        {"READY": "1", "STATUS": ""}, {"EXTEND_TIMEOUT_USEC": "9999000000"}, {"STATUS": "told"},
    ]  # fmt: skip


def test_threads_share_a_notifier(manager: Manager) -> None:
    """Every datagram is whole."""
    with notifier_of(manager, Clock(), WATCHDOG_USEC="8000000") as notifier:
        seen: list[dict[str, str]] = []
        threads = [
            threading.Thread(target=lambda: [notifier.extend_timeout(7) for _ in range(200)]) for _ in range(4)
        ]  # fmt: skip
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            seen += manager.messages()
        seen += manager.messages()
        notifier.ready("")
        seen += manager.messages()
    assert all(message in ({"EXTEND_TIMEOUT_USEC": "7000000"}, {"READY": "1", "STATUS": ""}) for message in seen)
    assert seen[-1]["READY"] == "1"


def test_no_descriptor_left_means_silence() -> None:
    """At the limit of open files there is no socket, and no error."""
    code = (
        "import os, resource\nfrom edgeapp.service.notify import Notifier\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))\n"
        "with Notifier({'NOTIFY_SOCKET': '/run/x', 'WATCHDOG_USEC': '1000000'}) as notifier:\n"
        "    notifier.ready('a')\n    assert not notifier.listening and notifier.watchdog_s is None\n"
    )
    subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(ROOT)}, check=True)
