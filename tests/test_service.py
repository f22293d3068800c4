"""The unit file, and what `edgeapp service`, `update` and `model` say where they cannot do what they are asked."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from support import Program

from edgeapp import errors
from edgeapp.service import unit
from edgeapp.service.unit import Unit

GROUPS = ("video", "render")
UNITS = {
    "x86-64": (Unit("x86", "", GROUPS, modprobe=True), 6),
    "x86-64 with HTTP": (Unit("x86", "127.0.0.1:9095", GROUPS, modprobe=True), 12),
    "Jetson": (Unit("jetson", "", GROUPS), 19),
    "Jetson with HTTP": (Unit("jetson", "127.0.0.1:9095", GROUPS), 19),
}


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not here")
@pytest.mark.parametrize("name", UNITS)
def test_unit_is_exposed_no_more_than_promised(name: str, tmp_path: Path) -> None:
    """systemd's own score, 0 to 100, is at most the promised one; without its restrictions the unit fails."""
    wanted, threshold = UNITS[name]
    for text, good in (
        (wanted.text(), True),
        (re.sub(r"(?m)^(Restrict|Protect|System).*\n", "", wanted.text()), False),
    ):
        file = tmp_path / "edgeapp.service"
        file.write_text(text)
        done = subprocess.run(
            ["systemd-analyze", "security", "--offline=true", f"--threshold={threshold}", "--no-pager", file],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (done.returncode == 0) == good, done.stdout[-3000:]


@pytest.mark.parametrize("name", UNITS)
def test_unit_has_no_condition_left(name: str) -> None:
    """Of the template's conditions and places nothing is left; every line is a section, a comment or a setting."""
    text = UNITS[name][0].text()
    assert not [x for x in text.splitlines() if not re.fullmatch(r"|#.*|\[\w+\]|[A-Z]\w+=.*", x)]
    assert "@PROGRAM@" not in text
    assert ("--http 127.0.0.1:9095" in text) == ("HTTP" in name)


def test_unit_of_a_jetson_makes_no_list_of_devices() -> None:
    """Each of these would hide the nodes of a Jetson's GPU."""
    text = UNITS["Jetson"][0].text()
    for setting in (
        "DeviceAllow=",
        "DevicePolicy=closed",
        "ProtectClock=yes",
        "PrivateUsers=yes",
        "PrivateDevices=yes",
    ):
        assert f"\n{setting}" not in text
        assert f"\n{setting}" in UNITS["x86-64"][0].text() or setting == "PrivateDevices=yes"
    assert "nvidia-modprobe" not in text


def test_unit_names_only_what_exists() -> None:
    """A group that is missing would keep the service from starting; nvidia-modprobe need not be there."""
    assert "SupplementaryGroups=" not in Unit("x86").text()
    assert "ExecStartPre" not in Unit("x86").text()
    assert list(unit.existing(("no-such-group", "root"))) == ["root"]


@pytest.mark.parametrize("text", ["127.0.0.1:80", "[::1]:65535", "localhost:9095", "127.1.2.3:1"])
def test_http_on_this_machine_alone_is_taken(text: str) -> None:
    """Loopback addresses of both families."""
    assert unit.loopback(text) == text


@pytest.mark.parametrize(
    "text", ["", "80", ":80", "0.0.0.0:80", "[::]:80", "192.168.1.2:80", "example.org:80", "127.0.0.1:0", "127.0.0.1:x",
             "127.0.0.1:65536", "127.0.0.1:80\nUser=root", "::1:80\n", "127.0.0.1:٣"],
)  # fmt: skip
def test_http_elsewhere_is_refused(text: str) -> None:
    """Other addresses, names and whatever could write lines of its own into the unit."""
    with pytest.raises(errors.UsageError):
        unit.loopback(text)


def test_dry_run_shows_everything_and_changes_nothing(source_program: Program) -> None:
    """The unit, the config, every command; as any user, for either machine."""
    for profile in unit.PROFILES:
        done = source_program("service", "install", "--dry-run", "--profile", profile, "--engine", "m.onnx", "--http",
                              "127.0.0.1:9095")  # fmt: skip
        assert done.returncode == 0, done
        for word in ("useradd --system", "write /etc/edgeapp/config.toml", "write /etc/systemd/system/edgeapp.service",
                     "systemctl enable edgeapp.service", "cp m.onnx /opt/edgeapp/models/model/current/model.onnx",
                     "systemctl restart edgeapp.service", '    engine = "/opt/edgeapp/models/model/current/model.onnx"',
                     "    RestartPreventExitStatus=64 66 78", "--http 127.0.0.1:9095"):  # fmt: skip
            assert word in done.stdout
        assert ("PrivateUsers=no" in done.stdout) == (profile == "jetson")
    done = source_program("service", "uninstall", "--dry-run", "--purge")
    assert (done.returncode, "rm --recursive --force /opt/edgeapp\n" in done.stdout) == (0, True)
    assert not Path("/etc/edgeapp").exists()
    assert not unit.UNIT.exists()


REFUSED: dict[str, tuple[tuple[str, ...], int, str]] = {
    "no action": (("service",), 64, "required"),
    "unknown action": (("service", "start"), 64, "invalid choice"),
    "http elsewhere": (("service", "install", "--dry-run", "--http", "0.0.0.0:80"), 64, "this machine alone"),
    "update without a file": (("update",), 64, "FILE"),
    "update, none installed": (("update", "x"), 66, "service install"),
    "rollback, none installed": (("rollback",), 66, "service install"),
    "model without a file": (("model", "install"), 64, "FILE is missing"),
    "model rollback of a file": (("model", "rollback", "x"), 64, "takes no FILE"),
    "model of a bad name": (("model", "install", "x", "--name", "../x"), 64, "is no name"),
    "lines": (("service", "logs", "--lines", "x"), 64, "invalid int"),
}


@pytest.mark.skipif(unit.HOME.exists(), reason="a service is installed on this machine")
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_done_is_refused(name: str, source_program: Program) -> None:
    """With an exit code of its own and words that help."""
    words, code, said = REFUSED[name]
    if code == 66 and os.geteuid() != 0:
        code, said = 77, "only root may"
    done = source_program(*words)
    assert (done.returncode, said in done.stderr) == (code, True), done


@pytest.mark.skipif(Path("/run/systemd/system").exists(), reason="systemd runs this machine")
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize("action", ["install", "uninstall", "status", "logs"])
def test_without_systemd_the_service_is_refused(action: str, source_program: Program) -> None:
    """Exit code 71, and the way to go in a container."""
    done = source_program("service", action)
    assert (done.returncode, "edgeapp serve" in done.stderr) == (71, True), done


def test_every_exit_code_has_a_meaning() -> None:
    """Of each kind of error, of success and of signals."""
    kinds: list[Any] = [kind for kind in vars(errors).values() if hasattr(kind, "exit_code")]
    assert len({errors.meaning(kind.exit_code) for kind in kinds}) == len({kind.exit_code for kind in kinds})
    assert errors.meaning(78) == "a model card, a setting or a signature is wrong"
    assert errors.meaning(143) == "ended by signal 15"
    assert errors.meaning(3) == "no code of edgeapp"
