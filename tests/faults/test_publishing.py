"""F18: whoever receives the results is lost, and the service is killed, again and again."""

from __future__ import annotations

import json
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Protocol

import pytest
from campaigning import CAMPAIGN, Row, found, long_control, planted, size
from receivers import Broker, Hook, Listener, listening, reserved_port
from serving import WAIT_S, Spool, serving, until
from support import Program

pytestmark = pytest.mark.timeout(7200 if CAMPAIGN else 300)

Small = Callable[[int], bytes]
INPUTS_A_ROUND = 10


class Receiver(Protocol):
    """A webhook or a broker that can go away and come back."""

    words: tuple[str, str]

    def lose(self) -> None: ...

    def find(self) -> None: ...

    def arrived(self) -> list[str]:
        """The ids of all that came, repeats included."""
        ...


class WebhookReceiver:
    def __init__(self, stack: ExitStack) -> None:
        self._hook, self._stack = Hook(), ExitStack()
        self._reserved = stack.enter_context(reserved_port())
        self._port = int(self._reserved.getsockname()[1])
        stack.callback(self.lose)
        self.find()
        self.words = ("--webhook", self._hook.url)

    def lose(self) -> None:
        self._stack.close()

    def find(self) -> None:
        self._stack.enter_context(listening(self._hook, self._port))

    def arrived(self) -> list[str]:
        return [json.loads(line)["id"] for line in list(self._hook.got)]


class BrokerReceiver:
    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self._broker = stack.enter_context(Broker(folder))
        self._heard = stack.enter_context(Listener(self._broker)).heard
        self.words = ("--mqtt", f"mqtt://127.0.0.1:{self._broker.port}/line/3")

    def lose(self) -> None:
        self._broker.stop()

    def find(self) -> None:
        self._broker.start()

    def arrived(self) -> list[str]:
        return [json.loads(line)["id"] for line in list(self._heard.get("line/3/results", []))]


@contextmanager
def receiver(kind: str, folder: Path) -> Iterator[Receiver]:
    with ExitStack() as stack:
        yield WebhookReceiver(stack) if kind == "webhook" else BrokerReceiver(stack, folder)


def lose_often(
    program: Program, spool: Spool, engine: Path, small: Small, it: Receiver, rounds: int, within_s: float = WAIT_S
) -> dict[str, object]:
    """In each round the service is killed, the receiver goes away for a while, or both; all arrives in the end."""
    chance, killed, lost = random.Random(18), 0, 0
    words = ("--settle-s", "0.02", "--attempts", "1000", "--segment-s", "1", *it.words)
    for round_ in range(rounds):
        what = ("service", "receiver", "both")[round_ % 3]
        with serving(program, spool, *words, engine=engine, stderr=subprocess.DEVNULL) as service:
            for number in range(INPUTS_A_ROUND * round_, INPUTS_A_ROUND * (round_ + 1)):
                spool.put(small(number), f"{number:05}.jpg")
                if number % INPUTS_A_ROUND == INPUTS_A_ROUND // 2 and what != "service":
                    time.sleep(chance.random() * 0.3)
                    it.lose()
                    lost += 1
            time.sleep(chance.random() * 0.5)
            if what != "receiver":
                service.process.kill()
                service.process.wait()
                killed += 1
            if what != "service":
                it.find()
            if what == "receiver":
                assert service.stop() == 0
    with serving(program, spool, *words, engine=engine, stderr=subprocess.DEVNULL) as service:
        until(lambda: not spool.waiting, "all are done")
        wanted = list(dict.fromkeys(line["id"] for line in spool.lines()))
        until(lambda: set(it.arrived()) >= set(wanted), "all results arrive", within_s)
        assert service.stop() == 0
    spool.assert_each_once()
    arrived = it.arrived()
    assert list(dict.fromkeys(arrived)) == wanted
    assert len(wanted) == INPUTS_A_ROUND * rounds
    return {"service_killed": killed, "receiver_lost": lost, "results": len(wanted), "missing": 0,
            "repeats": len(arrived) - len(wanted)}  # fmt: skip


@pytest.mark.parametrize("kind", ["webhook", "mqtt"])
def test_f18_every_result_arrives_in_order_whoever_dies(
    service: Program, spool: Spool, tiny: Path, small: Small, row: Row, tmp_path: Path, kind: str
) -> None:
    """At least once, in order, with the same id each time."""
    with receiver(kind, tmp_path) as it:
        row(f"F18 losses, {kind}", **lose_often(service, spool, tiny, small, it, size(3, 100)))


@long_control
def test_f18_finds_who_ticks_off_before_it_sends(
    source_program: Program, spool: Spool, tiny: Path, small: Small, tmp_path: Path
) -> None:
    """The negative control: a result counts as sent before the receiver has it."""
    with receiver("webhook", tmp_path) as it:
        program = planted(source_program, "forgets")
        found("all results arrive", lambda: lose_often(program, spool, tiny, small, it, 6, within_s=10.0))
