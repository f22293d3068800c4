"""Hangs and starts that cannot be: the real program as a service under a real systemd (tests/systemd.py).

Nothing stands in for a hang: a model whose loop has 2**62 rounds for a white picture, a JPEG of 80 MB of filling that
takes its decoder many seconds. Only for the disk there is a stand-in, a library whose fdatasync() takes a minute.
"""

from __future__ import annotations

import io
import json
import re
import shutil
import time

import make_models
import pytest
from campaigning import CAMPAIGN, Row, found, long_control, size
from installed import CONFIG, CURRENT, MODEL, SPOOL, UNIT, drop_in, put, results
from PIL import Image
from serving import WAIT_S, until
from systemd import Machine

pytestmark = [pytest.mark.frozen, pytest.mark.timeout(3600)]

WATCHDOG_S = 3.0
LATE_S = 1.0 if CAMPAIGN else 30.0
"""How long after that it may be ended at most; in the middle of other tests a machine has little time."""

FOLDER = "/run/given"
CARD = {"schema": 1, "task": "classify", "size_wh": [32, 32], "resize": "stretch", "antialias": False,
        "color_order": "RGB", "scale": 1 / 255, "mean": [0, 0, 0], "std": [1, 1, 1],
        "labels": ["red", "green", "blue"]}  # fmt: skip
FILLING = b"\xff\xd8" + b"\xff" * (80 << 20) + b"\xd9"


def colour(rgb: tuple[int, int, int], comment: str = "") -> bytes:
    """A PNG of one colour; bytes of its own by the comment."""
    data = io.BytesIO()
    Image.new("RGB", (32, 32), rgb).save(data, "PNG")
    return data.getvalue() + comment.encode()


@pytest.fixture
def sick(real: Machine) -> Machine:
    """A machine with the service on a model that white pictures keep busy for ever."""
    folder = real.path(FOLDER)
    folder.mkdir()
    make_models.hanging(folder / "model.onnx")
    (folder / "model.json").write_text(json.dumps(CARD))
    (folder / "model.onnx").chmod(0o644)
    real.run("/src/edgeapp", "service", "install", "--engine", f"{FOLDER}/model.onnx", check=True, timeout=120)
    real.wait(UNIT, ActiveState="active", SubState="running")
    with real.path(CONFIG).open("a") as config:
        config.write("settle_s = 0.05\n")  # what lies there at a start is taken up soon
    return real


def watched(machine: Machine, seconds: float = WATCHDOG_S, more: str = "") -> None:
    """Start it anew with a short watchdog."""
    drop_in(machine, f"WatchdogSec={seconds}\nRestartSec=50ms\n{more}")
    machine.run("systemctl", "reset-failed", UNIT)
    machine.run("systemctl", "restart", UNIT, check=True)
    machine.wait(UNIT, ActiveState="active", NRestarts="0")


def give(machine: Machine, data: bytes, name: str) -> None:
    machine.path(f"{FOLDER}/next").write_bytes(data)
    put(machine, f"{FOLDER}/next", name)


def ended_by_the_watchdog(machine: Machine, times: int, since_s: float, within_s: float = WAIT_S) -> float:
    """The longest time from a start, or from `since_s` (monotonic), until it was ended, seconds."""
    until(lambda: machine.show(UNIT, "NRestarts")["NRestarts"] == str(times), f"{times} restarts", within_s)
    longest = 0.0
    for entry in machine.entries(UNIT):
        at_s, text = int(entry["__MONOTONIC_TIMESTAMP"]) / 1e6, str(entry["MESSAGE"])
        if text.startswith("Started "):
            since_s = max(since_s, at_s)
        elif "Watchdog timeout" in text and at_s > since_s:
            longest = max(longest, at_s - since_s)
    assert WATCHDOG_S / 2 < longest < WATCHDOG_S + LATE_S, longest
    return longest


def poisoned(
    machine: Machine, data: bytes, stack: str, *, watchdog_s: float = WATCHDOG_S, within_s: float = WAIT_S
) -> float:
    """An input that hangs whoever takes it up: three watchdogs, then it is put aside, and the others are done."""
    watched(machine, watchdog_s)
    seen = len(machine.entries(UNIT))
    began_s = time.monotonic()
    give(machine, data, "poison")
    give(machine, colour((200, 30, 30), str(began_s)), "good.png")
    longest = ended_by_the_watchdog(machine, 3, began_s, within_s)
    until(lambda: machine.path(f"{SPOOL}/failed/poison.error.json").exists(), "it is put aside")
    until(lambda: machine.path(f"{SPOOL}/done/good.png").exists(), "the good one is done")
    machine.wait(UNIT, ActiveState="active", NRestarts="3")
    said = "\n".join(str(entry["MESSAGE"]) for entry in machine.entries(UNIT)[seen:])
    assert len(re.findall(stack, said)) >= 3, said
    report = json.loads(machine.path(f"{SPOOL}/failed/poison.error.json").read_text())
    assert "3 times" in json.dumps(report["error"]), report
    machine.run("sh", "-c", f"rm {SPOOL}/failed/* {SPOOL}/done/*", check=True)
    return longest


INFER, DECODE, WRITE = (rf'File "\S*{name}", line \d+ in ' for name in
                        ("edgeapp/cpu/engine.py", "PIL/JpegImagePlugin.py", "edgeapp/service/durable.py"))  # fmt: skip


@pytest.mark.parametrize(("what", "stack"), [("inference", INFER), ("decoding", DECODE)])
def test_f11_input_that_hangs_is_put_aside_after_three_watchdogs(
    sick: Machine, row: Row, what: str, stack: str
) -> None:
    """The watchdog ends the process in time, its stack is in the journal, and the work goes on."""
    times, longest = size(1, 4), 0.0
    for _ in range(times):
        data = colour((255, 255, 255)) if what == "inference" else FILLING
        longest = max(longest, poisoned(sick, data, stack))
    row(f"F11 hang in {what}", inputs=times, watchdogs=3 * times, limit_s=WATCHDOG_S, longest_s=longest)


SLOW_DISK = """
#include <sys/syscall.h>
#include <unistd.h>
int fdatasync(int file) {
    if (access("/run/edgeapp/slow", F_OK) == 0) sleep(60);
    return syscall(SYS_fdatasync, file);
}
"""
"""The folder of the trigger is one that systemd empties when the service ends."""


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler for a disk that is slow")
def test_f11_hang_while_writing_ends_and_the_next_start_writes(sick: Machine, row: Row) -> None:
    """Nobody is blamed: each input is done, and has one line."""
    source, times, longest = sick.path(f"{FOLDER}/slow.c"), size(1, 9), 0.0
    source.write_text(SLOW_DISK)
    sick.run("cc", "-shared", "-fPIC", "-o", f"{FOLDER}/slow.so", f"{FOLDER}/slow.c", check=True)
    for number in range(times):
        watched(sick, more=f"Environment=LD_PRELOAD={FOLDER}/slow.so")
        seen = len(sick.entries(UNIT))
        sick.path("/run/edgeapp/slow").touch()
        began_s = time.monotonic()
        give(sick, colour((30, 200, number)), f"{number}.png")
        longest = max(longest, ended_by_the_watchdog(sick, 1, began_s))
        until(sick.path(f"{SPOOL}/done/{number}.png").exists, "the next start finishes it")
        said = "\n".join(str(entry["MESSAGE"]) for entry in sick.entries(UNIT)[seen:])
        assert re.search(WRITE, said), said
    names = [line["name"] for line in results(sick)]
    assert sorted(set(names)) == [f"{number}.png" for number in range(times)]
    assert not list(sick.path(f"{SPOOL}/failed").iterdir())
    row("F11 hang in writing", inputs=times, watchdogs=times, limit_s=WATCHDOG_S, longest_s=longest)


@long_control
def test_f11_finds_a_watchdog_that_sleeps(sick: Machine) -> None:
    """The negative control: with a watchdog of an hour the same check must fail."""
    white = colour((255, 255, 255))
    found("not within .* 3 restarts", lambda: poisoned(sick, white, INFER, watchdog_s=3600.0, within_s=15.0))


# --- starts that cannot be --------------------------------------------------------------------------------------------

MODEL_FILE = f"{MODEL}/model.onnx"
AT_ONCE = (64, 66, 78)
"""No restart heals these."""

STARTS: dict[str, tuple[str, str, str, int]] = {
    # what is wrong: (what makes it so, settings of the unit, more words for the command, exit code)
    "no model": (f"rm {MODEL_FILE}", "", "", 66),
    "no config file": (f"rm {CONFIG}", "", "", 66),
    "unknown key": (f"echo sppol=1 >>{CONFIG}", "", "", 78),
    "no TOML": (f"echo = >>{CONFIG}", "", "", 78),
    "card with a number for a name": (f"echo '{{\"task\": 1}}' >{MODEL}/model.json", "", "", 78),
    "signature is missing": ("true", "", "--require-signature", 78),
    "unknown flag": ("true", "", "--no-such-flag", 64),
    "model cut short": (f"truncate -s 100 {MODEL_FILE}", "", "", 65),
    "model that it may not read": (f"chmod 600 {MODEL_FILE}", "", "", 77),
    "model that is none": (f"echo text >{MODEL_FILE}", "", "", 65),
    "disk that cannot be written": ("true", f"ReadOnlyPaths={SPOOL}", "", 73),
    "port that the unit does not allow": ("true", "", "--http 127.0.0.1:9100", 78),
}


def refused(machine: Machine, name: str, *, unit: str = "") -> int:
    """A start that must end with its code: at once where no restart helps, else after as many as the unit allows.

    Returns:
        how often it was started.
    """
    prepare, own, words, code = STARTS[name]
    machine.run("sh", "-c", prepare, check=True)
    serve = f"ExecStart=\nExecStart={CURRENT}/edgeapp serve --config {CONFIG} {words}"
    drop_in(machine, f"{serve}\nRestartSec=50ms\n{own}\n{unit}\n[Unit]\nStartLimitBurst=3")
    machine.run("systemctl", "reset-failed", UNIT)
    seen = len(machine.entries(UNIT))
    machine.run("systemctl", "restart", UNIT)
    machine.wait(UNIT, ActiveState="failed", ExecMainStatus=str(code))
    told = machine.entries(UNIT)[seen:]
    starts = sum(str(entry["MESSAGE"]).startswith("Starting ") for entry in told)
    said = [str(entry["MESSAGE"]) for entry in told if entry["SYSLOG_IDENTIFIER"] == "edgeapp"]
    assert 1 <= len(said) / starts <= 3, said
    assert not [line for line in said if "Traceback" in line], said
    assert starts == (1 if code in AT_ONCE else 3), f"{name}: {starts} starts"
    return starts


@pytest.fixture
def stopped(sick: Machine) -> Machine:
    """The same, stopped, with a copy of all that a case changes."""
    sick.run("systemctl", "stop", UNIT, check=True)
    sick.run("sh", "-c", f"cp -a /etc/edgeapp /run/etc; cp -aL {MODEL} /run/model", check=True)
    return sick


def restored(machine: Machine) -> None:
    machine.run("sh", "-c", f"cp -a /run/etc/. /etc/edgeapp; cp -a /run/model/. {MODEL}/", check=True)


def test_f20_start_that_cannot_be_says_why_and_only_what_may_heal_is_tried_again(stopped: Machine, row: Row) -> None:
    """Twelve reasons, their codes, and how often the unit tries."""
    starts = {}
    for name in STARTS:
        starts[name] = refused(stopped, name)
        restored(stopped)
    watched(stopped, 30.0)
    row("F20 starts that cannot be", cases=len(starts), started_once=sum(count == 1 for count in starts.values()))


@long_control
def test_f20_finds_a_unit_that_tries_for_ever(stopped: Machine) -> None:
    """The negative control: a unit that starts again whatever the exit code says."""
    found("no model: 3 starts", lambda: refused(stopped, "no model", unit="RestartPreventExitStatus="))
