"""`edgeapp service`, `update` and `model` under a real systemd, in a machine that is thrown away (tests/systemd.py).

EDGEAPP_CAMPAIGN=1 (`./build.sh campaign service`) kills an update at every step. Where a test says stand-in, the file
is the real launcher with a shell script inside, which gives the words service, update, rollback and model to the real
program and does the rest itself.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import struct
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from campaigning import CAMPAIGN, Row, found, long_control
from installed import CURRENT, MODEL, OURS, UNIT, drop_in, served
from serving import until
from support import ROOT, write_keys, write_signature
from systemd import Machine

pytestmark = [pytest.mark.frozen, pytest.mark.timeout(3600)]

BACKUPS = [f"/etc/{name}-" for name in ("passwd", "group", "shadow", "gshadow", "subuid", "subgid")]
"""What useradd and userdel keep of the account database of before; nobody's leftover."""

SCRIPT = """
case "$1" in
--version) echo '{{"edgeapp": "{version}"}}' ;;
self-test) {self_test} ;;
serve | ctl)
  export PYTHONHOME=/src/python LD_LIBRARY_PATH=/src/python/lib
  exec /src/python/bin/{python} -S /src/standin_serve.py {how} "$@" ;;
*) exec /src/real/edgeapp "$@" ;;
esac"""

Make = Callable[..., Path]
READY = ("ready", "exit 0")


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """What the machine sees as /src/files."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def standin(tiny: Make, folder: Path) -> Make:
    """Makes a stand-in, once: the path of it inside."""

    def make(version: str, how: str = "ready", self_test: str = "exit 0") -> Path:
        script = SCRIPT.format(version=version, how=how, self_test=self_test, python=f"python3.{sys.version_info[1]}")
        name = f"edgeapp-{version}" + (f"-{zlib.crc32(script.encode()):x}" if (how, self_test) != READY else "")
        if not (folder / name).exists():
            shutil.copy(tiny(script, name), folder)
        return Path("/src/files") / name

    return make


@pytest.fixture
def machine(content: Path, folder: Path) -> Iterator[Machine]:
    """A machine with the real program, unpacked, as /src/real, and a Python for the stand-in."""
    places = {
        content: "/src/real",
        sys.base_prefix: "/src/python",
        ROOT / "tests/frozen/standin_serve.py": "/src/standin_serve.py",
        folder: "/src/files",
        ROOT / "edgeapp/data/demo": "/src/demo",
    }
    with Machine(places, hidden=OURS) as machine:
        machine.environment["HOME"] = "/run/root"  # what a file unpacks that is started before it is installed
        machine.run("mkdir", "/run/root", check=True)
        yield machine


@pytest.fixture
def installed(machine: Machine, standin: Make) -> Machine:
    """A machine with stand-in 1.0 as a running service."""
    machine.run(standin("1.0"), "service", "install", "--engine", "/src/demo/model.onnx", check=True)
    machine.wait(UNIT, ActiveState="active")
    return machine


def difference(now: dict[str, Any], before: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """path -> (now, before) of what is not the same."""
    return {path: (a, b) for path in now | before if (a := now.get(path)) != (b := before.get(path))}


def held(machine: Machine) -> str:
    """The version of the current program."""
    return str(json.loads(machine.run(f"{CURRENT}/edgeapp", "--version", check=True).stdout)["edgeapp"])


def runs(machine: Machine) -> str:
    """The file of the program that the service runs now, as it said itself."""
    machine.wait(UNIT, ActiveState="active")
    return re.findall(r"stand-in: \S*/versions/(\S+?)-\w+/edgeapp", machine.journal(UNIT))[-1]


def test_install_runs_the_program_and_purge_leaves_nothing(machine: Machine, standin: Make) -> None:
    """Ready as its own user, in a unit that systemd finds no fault with; afterwards no file is new, changed or gone."""
    before = machine.changes(without=BACKUPS)
    file = standin("1.0")
    done = machine.run(file, "service", "install", "--engine", "/src/demo/model.onnx", check=True)
    found = machine.wait(UNIT, ActiveState="active", SubState="running", UnitFileState="enabled", NRestarts="0")
    assert machine.show(UNIT, "StatusText") == {"StatusText": "0.0 a second, 0 waiting"}, (done, found)
    verify = machine.run("systemd-analyze", "verify", "--man=no", UNIT)
    assert (verify.returncode, verify.stderr) == (0, ""), verify
    main = machine.show(UNIT, "MainPID")["MainPID"]
    assert machine.run("ps", "-o", "user=", "-p", main).stdout.strip() == "edgeapp"
    assert held(machine) == "1.0"
    assert machine.run("readlink", "-f", "/usr/local/bin/edgeapp").stdout.startswith("/opt/edgeapp/versions/1.0-")
    assert machine.run("stat", "-c", "%U %a", "/var/lib/edgeapp/in").stdout == "edgeapp 2770\n"
    assert not machine.path("/var/cache/edgeapp").joinpath("lock").exists(), "it unpacked itself once more"
    assert len(machine.changes(without=BACKUPS)) > len(before) + 10

    again = machine.run("edgeapp", "service", "install", check=True)
    assert "useradd" not in again.stderr
    machine.wait(UNIT, ActiveState="active")
    machine.run("edgeapp", "service", "uninstall", "--purge", check=True)
    assert difference(machine.changes(without=BACKUPS), before) == {}
    assert machine.show(UNIT, "LoadState") == {"LoadState": "not-found"}
    assert machine.run("id", "edgeapp").returncode == 1
    assert not machine.path("/run/edgeapp").exists()
    machine.run(file, "service", "uninstall", "--purge", check=True)
    assert difference(machine.changes(without=BACKUPS), before) == {}


def test_uninstall_keeps_config_state_and_models(installed: Machine) -> None:
    """Without --purge an installation afterwards finds all of it."""
    installed.run("sh", "-c", "echo '# mine' >>/etc/edgeapp/config.toml; echo x >/var/lib/edgeapp/in/x.jpg", check=True)
    installed.run("edgeapp", "service", "uninstall", check=True)
    assert installed.show(UNIT, "LoadState", "ActiveState") == {"LoadState": "not-found", "ActiveState": "inactive"}
    assert os.listdir(installed.path("/opt/edgeapp")) == ["models"]
    assert not os.path.lexists(installed.path("/usr/local/bin/edgeapp"))
    installed.run("/src/files/edgeapp-1.0", "service", "install", check=True)
    installed.wait(UNIT, ActiveState="active")
    assert installed.path("/etc/edgeapp/config.toml").read_text().endswith("# mine\n")
    assert installed.run("stat", "-c", "%U", "/var/lib/edgeapp/in").stdout == "edgeapp\n"
    assert installed.path("/var/lib/edgeapp/in/x.jpg").exists()
    assert installed.run("cmp", f"{MODEL}/model.onnx", "/src/demo/model.onnx").returncode == 0


def test_dry_run_as_root_changes_nothing(machine: Machine, standin: Make) -> None:
    """Neither a file nor a unit."""
    before = machine.changes()
    file = standin("1.0")
    machine.run(file, "service", "install", "--dry-run", check=True)
    machine.run(file, "service", "uninstall", "--dry-run", "--purge", check=True)
    assert difference(machine.changes(), before) == {}


def test_purge_keeps_a_user_and_a_command_that_are_not_its_own(machine: Machine, standin: Make) -> None:
    """A user edgeapp and a file /usr/local/bin/edgeapp of before are left as they were."""
    machine.run("useradd", "--system", "--comment", "somebody", "edgeapp", check=True)
    machine.write("/usr/local/bin/edgeapp", "mine")
    before = machine.changes(without=BACKUPS)
    machine.run(standin("1.0"), "service", "install", "--no-start", check=True)
    machine.run("/src/files/edgeapp-1.0", "service", "uninstall", "--purge", check=True)
    assert difference(machine.changes(without=BACKUPS), before) == {}
    assert machine.run("id", "edgeapp").returncode == 0


def test_install_without_a_model_says_what_is_next(machine: Machine, standin: Make) -> None:
    """It is not started in vain; the model makes it complete."""
    done = machine.run(standin("1.0"), "service", "install", check=True)
    assert "edgeapp model install FILE" in done.stderr
    assert machine.show(UNIT, "ActiveState") == {"ActiveState": "inactive"}
    done = machine.run("edgeapp", "model", "install", "/src/demo/model.onnx", check=True)
    assert 'names another engine; this one is engine = "/opt/edgeapp/models/model/current/model.onnx"' in done.stderr
    assert machine.run("edgeapp", "service", "status").returncode == 1


def test_exit_code_decides_whether_it_is_started_again(installed: Machine) -> None:
    """What a restart cannot heal ends the service at once, the rest after 8 starts; status tells the code's meaning."""
    installed.write("/etc/systemd/system/edgeapp.service.d/x.conf", "[Service]\nRestartSec=50ms\n")
    installed.run("systemctl", "daemon-reload", check=True)
    for code, restarts, meaning in (
        (64, "0", "the command line is wrong"), (66, "0", "a named file does not exist"),
        (78, "0", "a model card, a setting or a signature is wrong"), (75, "8", "the cuda context is broken"),
    ):  # fmt: skip
        installed.write("/var/lib/edgeapp/exit", str(code))
        installed.run("systemctl", "reset-failed", UNIT)
        assert installed.run("systemctl", "restart", UNIT).returncode != 0
        installed.wait(UNIT, ActiveState="failed", Result="exit-code", NRestarts=restarts, ExecMainStatus=str(code))
        status = installed.run("edgeapp", "service", "status")
        assert (status.returncode, f"ended with {code}: {meaning}" in status.stdout) == (1, True), status


def test_status_and_logs_of_a_running_service(installed: Machine) -> None:
    """What systemd knows, what the service says, and its journal."""
    done = installed.run("edgeapp", "service", "status", "--json", check=True)
    status = json.loads(done.stdout)
    assert status["state"] == "active (running)"
    assert (status["at_boot"], status["restarts"], status["ended_last"]) == ("enabled", 0, None)
    assert status["answer"] == {"queue_depth": 0}
    assert "0.0 a second" in installed.run("edgeapp", "service", "status", check=True).stdout
    assert "stand-in: /opt/edgeapp/" in installed.run("edgeapp", "service", "logs", "--lines", "100", check=True).stdout
    installed.run("systemctl", "stop", UNIT, check=True)
    assert "it ended with 0: done, " in installed.run("edgeapp", "service", "status").stdout
    installed.run("edgeapp", "service", "uninstall", "--purge", check=True)
    assert installed.run("/src/files/edgeapp-1.0", "service", "status").returncode == 66


def test_other_users_are_told_that_only_root_may(installed: Machine) -> None:
    """Exit code 77 and the command with sudo, before anything is looked at."""
    before = installed.changes()
    as_daemon = ["runuser", "-u", "daemon", "--", "edgeapp"]
    for words in ("service install", "service uninstall --purge", "update x", "rollback", "model install x",
                  "model rollback"):  # fmt: skip
        done = installed.run(*as_daemon, *words.split())
        assert (done.returncode, "fix: sudo edgeapp " in done.stderr) == (77, True), done
    assert difference(installed.changes(), before) == {}


# ---- the real program


def test_real_program_serves_under_all_restrictions(real: Machine) -> None:
    """Ready, a picture in, its result out, another model without a restart, a clean stop; nothing is left by purge."""
    before = real.changes(without=BACKUPS)
    real.run("/src/edgeapp", "service", "install", "--engine", "/src/demo/model.onnx", check=True, timeout=120)
    real.wait(UNIT, ActiveState="active", SubState="running")
    assert len(served(real, "a.jpg")["detections"]) > 3
    process = real.show(UNIT, "MainPID")
    assert os.listdir(real.path("/var/cache/edgeapp")) == [], "it unpacked itself once more"
    status = json.loads(real.run("edgeapp", "service", "status", "--json", check=True).stdout)
    assert status["answer"]["model"]["file"] == f"{MODEL}/model.onnx"

    real.run("sh", "-c", "cp /src/demo/model.* /run; sed -i 's/bolt/spike/' /run/model.json", check=True)
    real.run("edgeapp", "model", "install", "/run/model.onnx", check=True)
    labels = {found["label"] for found in served(real, "b.jpg")["detections"]}
    assert "spike" in labels
    assert "bolt" not in labels
    real.run("sh", "-c", "head -c 100000 /src/demo/model.onnx >/run/model.onnx", check=True)
    done = real.run("edgeapp", "model", "install", "/run/model.onnx")
    assert done.returncode == 65, done
    assert "spike" in {found["label"] for found in served(real, "c.jpg")["detections"]}
    real.run("systemctl", "reload", UNIT, check=True)
    assert real.show(UNIT, "MainPID") == process

    real.run("systemctl", "stop", UNIT, check=True)
    stopped = real.show(UNIT, "Result", "ExecMainCode", "ExecMainStatus")
    assert stopped == {"Result": "success", "ExecMainCode": "1", "ExecMainStatus": "0"}
    real.run("edgeapp", "service", "uninstall", "--purge", check=True)
    assert difference(real.changes(without=BACKUPS), before) == {}


def test_real_program_that_stands_still_is_started_again(real: Machine) -> None:
    """It listens where it may, ends with its stack in the journal when it is stopped, and status tells why."""
    words = ("--engine", "/src/demo/model.onnx", "--http", "127.0.0.1:9095")
    real.run("/src/edgeapp", "service", "install", *words, check=True, timeout=120)
    drop_in(real, "WatchdogSec=4\nRestartSec=50ms")
    real.run("systemctl", "restart", UNIT, check=True)
    question = r'exec 3<>/dev/tcp/127.0.0.1/9095; printf "GET /readyz HTTP/1.0\r\n\r\n" >&3; cat <&3'
    assert " 200 " in real.run("bash", "-c", question, check=True).stdout
    real.run("kill", "-STOP", real.show(UNIT, "MainPID")["MainPID"], check=True)
    real.wait(UNIT, NRestarts="1|2|3")  # a machine that is busy may keep the next one waiting, too
    stack = re.compile(r'File "edgeapp/commands/serve.py", line \d+ in run')
    until(lambda: stack.search(journal := real.journal(UNIT)) and "Watchdog timeout" in journal, "the stack")
    real.wait(UNIT, ActiveState="active")
    status = real.run("edgeapp", "service", "status", check=True)
    assert "it was ended by SIGABRT (it hung: nothing fed the watchdog), " in status.stdout


# ---- update and rollback


def test_update_and_rollback_switch_the_running_service(installed: Machine, standin: Make) -> None:
    """The new program runs, then the old one, then the new one again; never more than two are kept."""
    installed.run("edgeapp", "update", standin("2.0"), check=True)
    assert (held(installed), runs(installed)) == ("2.0", "2.0")
    for version in ("1.0", "2.0"):
        installed.run("edgeapp", "rollback", check=True)
        assert (held(installed), runs(installed)) == (version, version)
    installed.run("edgeapp", "update", standin("3.0"), check=True)
    assert sorted(name.split("-")[0] for name in os.listdir(installed.path("/opt/edgeapp/versions"))) == ["2.0", "3.0"]
    done = installed.run("edgeapp", "update", "/src/files/edgeapp-3.0", check=True)
    assert "current version already" in done.stderr


def test_update_that_does_not_become_ready_goes_back_by_itself(installed: Machine, standin: Make) -> None:
    """Tried twice; then the program of before runs again, and the other one is gone."""
    done = installed.run("edgeapp", "update", standin("2.0", "dies"))
    assert done.returncode == 71, done
    assert "did not become ready, twice; 1.0-" in done.stderr
    assert "it ended with 1: " in done.stderr
    assert (held(installed), runs(installed)) == ("1.0", "1.0")
    assert len(os.listdir(installed.path("/opt/edgeapp/versions"))) == 1
    assert installed.run("edgeapp", "rollback").returncode == 66


def test_update_of_a_stopped_service_starts_nothing(installed: Machine, standin: Make) -> None:
    """The program is another one, the service stays stopped."""
    installed.run("systemctl", "stop", UNIT, check=True)
    installed.run("edgeapp", "update", standin("2.0"), check=True)
    assert held(installed) == "2.0"
    assert installed.show(UNIT, "ActiveState") == {"ActiveState": "inactive"}


def test_update_refuses_what_does_not_run_here(installed: Machine, standin: Make, folder: Path) -> None:
    """Cut short, another machine's, no program, no edgeapp, one that fails its self-test; nothing is changed."""
    good = folder / Path(standin("2.0")).name
    data = good.read_bytes()
    (frames_at,) = struct.unpack_from("<Q", data, len(data) - 56)
    files = {
        "cut": data[: len(data) // 2], "short": data[:-1], "empty": b"", "text": b"#!/bin/sh\necho\n",
        "foreign": data[:18] + (183 if data[18] == 62 else 62).to_bytes(2, "little") + data[20:],
        "true": Path("/bin/true").read_bytes(), "damaged": data[: frames_at + 9] + bytes(9) + data[frames_at + 18 :],
    }  # fmt: skip
    for name, content in files.items():
        (folder / name).write_bytes(content)
    before = installed.changes()
    for name, said in {
        "cut": "cut short", "short": "cut short", "empty": "no program", "text": "no program", "foreign": "aarch64",
        "true": "no edgeapp", "damaged": "ended with 74", "missing": "no such file",
    }.items():  # fmt: skip
        done = installed.run("edgeapp", "update", f"/src/files/{name}")
        assert (done.returncode, said in done.stderr) == (66 if name == "missing" else 65, True), (name, done)
    done = installed.run("edgeapp", "update", standin("4.0", self_test="echo no glibc >&2; exit 71"))
    assert (done.returncode, "self-test ended with 71" in done.stderr) == (65, True), done
    installed.run("mkfifo", "/run/fifo", check=True)
    for odd in ("/src", "/dev/zero", "/run/fifo"):
        done = installed.run("edgeapp", "update", odd)
        assert (done.returncode, "no regular file" in done.stderr) == (65, True), done
    assert not [path for path in difference(installed.changes(), before) if "/cache/" not in path]
    assert runs(installed) == "1.0"


def test_update_is_signed_where_keys_are_installed(installed: Machine, standin: Make, folder: Path) -> None:
    """A wrong signature and, if one is required, a missing one are refused before the file is run."""
    key = write_keys(folder / "maker")
    shutil.copy(folder / "maker.pub", installed.path("/etc/edgeapp/keys.d"))
    file = folder / Path(standin("2.0")).name
    done = installed.run("edgeapp", "update", "/src/files/edgeapp-2.0", "--require-signature")
    assert (done.returncode, "not signed" in done.stderr) == (78, True), done
    signature = write_signature(file, folder / "maker.key")
    right = signature.read_bytes()
    shutil.copy(standin("3.0").name and folder / "edgeapp-3.0", folder / "other")
    signature.write_bytes(write_signature(folder / "other", folder / "maker.key").read_bytes())
    done = installed.run("edgeapp", "update", "/src/files/edgeapp-2.0")
    assert (done.returncode, "signature" in done.stderr) == (78, True), done
    assert held(installed) == "1.0"
    signature.write_bytes(right)
    done = installed.run("edgeapp", "update", "/src/files/edgeapp-2.0", "--require-signature", check=True)
    assert str(key) in done.stderr
    assert runs(installed) == "2.0"


# ---- models


def test_model_is_switched_and_what_the_service_refuses_goes_back(installed: Machine, folder: Path) -> None:
    """Engine, card and signature go together; the one before stays for rollback."""
    shutil.copy(ROOT / "edgeapp/data/demo/model.onnx", folder / "new.onnx")
    card = json.loads((ROOT / "edgeapp/data/demo/model.json").read_text())
    cards = {name: {**card, "labels": [name, *card["labels"][1:]]} for name in ("good", "bad")}
    first = installed.path(f"{MODEL}/model.json").read_text()

    (folder / "new.json").write_text(json.dumps(cards["good"]))
    installed.run("edgeapp", "model", "install", "/src/files/new.onnx", check=True)
    second = installed.path(f"{MODEL}/model.json").read_text()
    assert json.loads(second)["labels"][0] == "good"

    (folder / "new.json").write_text(json.dumps(cards["bad"]))
    done = installed.run("edgeapp", "model", "install", "/src/files/new.onnx")
    assert (done.returncode, "golden output differs" in done.stderr) == (65, True), done
    assert installed.path(f"{MODEL}/model.json").read_text() == second
    for expected in (first, second):
        installed.run("edgeapp", "model", "rollback", check=True)
        assert installed.path(f"{MODEL}/model.json").read_text() == expected
    assert len(os.listdir(installed.path("/opt/edgeapp/models/model/versions"))) == 2
    assert installed.show(UNIT, "NRestarts", "ActiveState") == {"NRestarts": "0", "ActiveState": "active"}


def test_model_that_is_none_is_refused(installed: Machine, folder: Path) -> None:
    """No file, no model, a wrong digest: the model stays."""
    before = installed.changes()
    (folder / "text.onnx").write_text("no model")
    for words, code in (
        (["/src/files/missing.onnx"], 66), (["/src/files/text.onnx"], 65), (["/src/files"], 65),
        (["/src/demo/model.onnx", "--engine-sha256", "0" * 64], 78),
        (["/src/demo/model.onnx", "--require-signature"], 78),
    ):  # fmt: skip
        done = installed.run("edgeapp", "model", "install", *words)
        assert done.returncode == code, (words, done)
    assert difference(installed.changes(), before) == {}


# ---- killed


CALLS = "/^(rename|symlink|unlink|rmdir|mkdir|f?chmod|fsync|sendfile|execve|vfork|clone|sendmsg)"
"""What changes files or starts something; a pattern of strace's."""


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace kills at a system call")
def test_f19_update_killed_at_a_system_call_leaves_a_program_that_runs(
    installed: Machine, standin: Make, row: Row
) -> None:
    """SIGKILL of the update, or of what it started; the service starts, and the next update goes through."""
    points = points_of_an_update(installed, standin)
    assert len(points) > 30
    if not CAMPAIGN:
        points = [("rename", 1), ("rename", 3), ("symlink", 1), ("symlink", 2)]
    killed = 0
    for call, number in points:
        options = ["-f", "-qq", "-o", "/dev/null", "-e", f"inject={call}:signal=SIGKILL:when={number}"]
        killed += disturbed(installed, standin, "strace", *options) != 0
    assert killed >= len(points) // 2  # systemctl may be killed without harm
    last_update(installed, standin)
    row("F19 update killed at a system call", calls=len(points), killed=killed, without_a_program=0)


def points_of_an_update(machine: Machine, standin: Make) -> list[tuple[str, int]]:
    """(system call, its number among those of its kind in one process) of an update that nothing disturbs."""
    file = another(machine, standin)[1]
    machine.run(
        "strace", "-f", "-qq", "-o", "/run/trace", "-e", f"trace={CALLS}", "edgeapp", "update", file, check=True
    )
    found = re.findall(r"^(\d+) +(\w+)\(", machine.path("/run/trace").read_text(), re.MULTILINE)
    most: Counter[str] = Counter()
    for (_, call), count in Counter(found).items():
        most[call] = max(most[call], count)
    return [(call, number) for call, count in most.items() for number in range(1, count + 1)]


@pytest.mark.skipif(not CAMPAIGN, reason="for ./build.sh campaign service")
def test_f19_update_killed_at_random_leaves_a_program_that_runs(installed: Machine, standin: Make, row: Row) -> None:
    """The same at any time within the time that an update takes."""
    began = time.monotonic()
    last_update(installed, standin)
    longest_s, killed = time.monotonic() - began, 0
    for _ in range(200):
        limit = f"{random.uniform(0.01, longest_s):.3f}"
        killed += disturbed(installed, standin, "timeout", "--signal=KILL", limit) != 0
    assert killed >= 50
    last_update(installed, standin)
    row("F19 update killed at random", times=200, killed=killed, without_a_program=0)


@long_control
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace kills at a system call")
def test_f19_finds_who_writes_over_the_program(installed: Machine, standin: Make) -> None:
    """The negative control: an update that copies the new file over the old one."""
    over = ("sh", "-c", f'dd bs=4k if="$0" of={CURRENT}/edgeapp')
    kill = ("strace", "-f", "-qq", "-o", "/dev/null", "-e", "inject=write:signal=SIGKILL:when=9")
    found("edgeapp.* ended with", lambda: disturbed(installed, standin, *kill, update=over))


def another(machine: Machine, standin: Make) -> tuple[str, Path]:
    """A version that is not the current one, and its file."""
    version = "2.0" if held(machine) != "2.0" else "3.0"
    return version, standin(version)


def disturbed(machine: Machine, standin: Make, *how: str, update: Sequence[str] = ("edgeapp", "update")) -> int:
    """An update that something kills; the exit code. What is current then must run."""
    done = machine.run(*how, *update, another(machine, standin)[1])
    assert held(machine) in ("1.0", "2.0", "3.0"), (how, done)
    machine.run("systemctl", "reset-failed", UNIT)
    machine.run("systemctl", "restart", UNIT, check=True)
    assert runs(machine) == held(machine), (how, done)
    return done.returncode


def last_update(machine: Machine, standin: Make) -> None:
    """One that nothing disturbs: it goes through, and clears away what the others left."""
    version, file = another(machine, standin)
    machine.run("edgeapp", "update", file, check=True)
    assert (held(machine), runs(machine)) == (version, version)
    assert len(os.listdir(machine.path("/opt/edgeapp/versions"))) == 2
    assert sorted(os.listdir(machine.path("/opt/edgeapp"))) == ["cache", "current", "models", "previous", "versions"]
