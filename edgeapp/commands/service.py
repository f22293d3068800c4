"""`edgeapp service`: the program as a service of systemd; installed, removed and looked at."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from edgeapp import errors, launched, paths
from edgeapp.log import Talk, tell
from edgeapp.service import program, steps, systemctl, unit
from edgeapp.service.steps import Step
from edgeapp.service.versions import State, Versions
from edgeapp.settings import Settings
from edgeapp.stopping import Stop

ACTIONS = ("install", "uninstall", "status", "logs")

HELP = """actions:
  install    put this file under /opt/edgeapp, write unit, user, folders and config, start it
  uninstall  take it away again; config, state and models stay, with --purge nothing does
  status     what systemd knows of it, how it ended last and what that means, and what it says itself
  logs       its journal

examples:
  sudo edgeapp service install --engine model.plan
  edgeapp service install --dry-run --profile jetson
  edgeapp service logs --follow

exit codes of status: 0 it runs, 1 it does not, 66 it is not installed"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The words and flags of `edgeapp service`; main's options --engine, --quiet and so on come beside."""
    parser.epilog = HELP
    parser.add_argument("action", choices=ACTIONS, help="see below")
    parser.add_argument("--dry-run", action="store_true", help="print every file and command, change nothing")
    install = parser.add_argument_group("install")
    install.add_argument(
        "--profile", choices=unit.PROFILES, help="which GPU nodes and restrictions (default: what this machine is)"
    )
    install.add_argument(
        "--http", default="", metavar="HOST:PORT", help="health and metrics on this address of this machine alone"
    )
    install.add_argument("--no-start", action="store_true", help="neither start nor restart it")
    uninstall = parser.add_argument_group("uninstall")
    uninstall.add_argument("--purge", action="store_true", help="config, state, results, models and user go too")
    look = parser.add_argument_group("status, logs")
    look.add_argument("--json", action="store_true", help="status as JSON")
    look.add_argument("--follow", action="store_true", help="go on with new lines")
    look.add_argument("--lines", type=int, metavar="N", help="the last N lines only")


def service(given: argparse.Namespace, settings: Settings, stop: Stop, talk: Talk) -> int:
    """Do it; 0, or what `status` says.

    Raises:
        NotPermittedError: only root may. SystemRefusedError: there is no systemd, or it refuses.
        NotFoundError: this program is no one file, or no service is installed.
    """
    if given.action == "install":
        return _install(given, settings, stop, talk)
    if given.action == "uninstall":
        return _uninstall(given, stop, talk)
    systemctl.demand()
    if given.action == "logs":
        _logs(given)
    from edgeapp.commands.service_status import status

    return status(given.json)


# ---- install


def _install(given: argparse.Namespace, settings: Settings, stop: Stop, talk: Talk) -> int:
    from edgeapp.gpu.machine import is_jetson

    http = unit.loopback(given.http) if given.http else ""
    wanted = unit.here(given.profile or ("jetson" if is_jetson() else "x86"), http)
    work = _Installation(launched.launched().file, wanted, settings, stop, talk, start=not given.no_start)
    if given.dry_run:
        tell(steps.show(work.steps()))
        return 0
    steps.as_root("install the service", "edgeapp service install")
    systemctl.demand()
    if work.file is None:
        raise errors.NotFoundError(
            "cannot install this program: it is no one file",
            "it runs from a folder, or its file was replaced since it was started",
            "./build.sh freeze, then sudo dist/edgeapp service install",
        )
    with work.versions.alone():
        steps.do(list(work.steps()), stop, talk.note)
        work.versions.prune()
    return 0


class _Installation:
    """The steps of an installation, and what they hand on to each other."""

    def __init__(
        self, file: Path | None, wanted: unit.Unit, settings: Settings, stop: Stop, talk: Talk, *, start: bool
    ) -> None:
        from edgeapp.commands.models import engine_path

        self.file = file
        self.versions = program.versions()
        self._models = Versions(unit.MODELS / unit.DEFAULT_MODEL)
        self._engine = engine_path(self._models, settings.engine or "")
        self._unit, self._settings, self._stop, self._talk, self._start = wanted, settings, stop, talk, start
        self._before = State()

    def steps(self) -> Iterator[Step]:
        yield Step(f"cp {self.file or 'FILE'} {unit.HOME}/versions/VERSION-DIGEST/edgeapp", self._put_program)
        if steps.user_comment(unit.USER) is None:
            yield steps.command(
                "useradd", "--system", "--user-group", "--no-create-home", "--home-dir", str(unit.STATE),
                "--shell", "/usr/sbin/nologin", "--comment", unit.COMMENT, unit.USER,
            )  # fmt: skip
        yield steps.folder(unit.CONFIG_FOLDER)
        yield steps.folder(unit.KEYS)
        yield steps.folder(unit.MODELS)
        yield steps.folder(unit.STATE, 0o750, unit.USER)
        yield steps.folder(unit.STATE / "in", 0o2770, unit.USER)
        if not unit.CONFIG.exists():
            yield steps.file(unit.CONFIG, unit.config(self._engine))
        if self._settings.engine is not None:
            yield Step(f"cp {self._settings.engine} {self._engine}", self._put_model)
        if unit.COMMAND.is_symlink() or not unit.COMMAND.exists():
            yield steps.link(unit.COMMAND, unit.PROGRAM)
        yield steps.file(unit.UNIT, self._unit.text())
        yield steps.command("systemctl", "daemon-reload")
        yield steps.command("systemctl", "enable", unit.NAME)
        if self._start:
            yield Step(f"systemctl restart {unit.NAME}", self._bring_up)

    def _put_program(self) -> None:
        assert self.file is not None
        name = program.stage(self.file, None, tried=True)
        self._before = self.versions.activate(name)
        self._talk.note(f"edgeapp: {name} is current")

    def _put_model(self) -> None:
        from edgeapp.commands.models import hint, put

        with self._models.alone():
            put(self._models, self._settings, self._stop, self._talk)
            self._models.prune()
        hint(self._models, self._talk)

    def _bring_up(self) -> None:
        if systemctl.is_running():
            program.settle(self.versions, self._before)
        elif not self._engine.exists() and str(self._engine) in unit.CONFIG.read_text("utf-8", "replace"):
            self._talk.note(f"edgeapp: not yet: edgeapp model install FILE, then systemctl start {unit.NAME}")
        elif not systemctl.restart():
            raise errors.SystemRefusedError(
                "the service is installed, and does not become ready", systemctl.last_end(), "edgeapp service logs"
            )


# ---- uninstall


def _uninstall(given: argparse.Namespace, stop: Stop, talk: Talk) -> int:
    todo = list(_to_uninstall(given.purge))
    if given.dry_run:
        tell(steps.show(todo))
        return 0
    steps.as_root("uninstall the service", "edgeapp service uninstall")
    systemctl.demand()
    steps.do(todo, stop, talk.note)
    return 0


def _to_uninstall(purge: bool) -> Iterator[Step]:
    """The steps; what this very program may run from comes last."""
    yield steps.command("systemctl", "disable", "--now", unit.NAME, may_fail=True)
    yield steps.remove(unit.UNIT)
    yield steps.remove(unit.ENABLED)
    if purge:
        yield steps.remove(unit.DROP_INS)
    yield steps.command("systemctl", "daemon-reload")
    yield steps.command("systemctl", "reset-failed", unit.NAME, may_fail=True)
    if unit.COMMAND.is_symlink() and Path(os.readlink(unit.COMMAND)).is_relative_to(unit.HOME):
        yield steps.remove(unit.COMMAND)
    yield steps.remove(unit.OWN_CACHE)
    if purge:
        for path in (unit.STATE, unit.CONFIG_FOLDER):
            yield steps.remove(path)
        if steps.user_comment(unit.USER) == unit.COMMENT:
            yield steps.command("userdel", unit.USER)
    for path in (unit.HOME / "current", unit.HOME / "previous", unit.HOME / "versions"):
        yield steps.remove(path)
    yield steps.remove(unit.HOME if purge else unit.CACHE)
    yield steps.remove_empty(unit.MODELS)
    yield steps.remove_empty(unit.HOME)


# ---- logs


def _logs(given: argparse.Namespace) -> None:
    """Become journalctl."""
    words = ["journalctl", f"--unit={unit.NAME}"]
    if given.follow:
        words.append("--follow")
    if given.lines is not None:
        words.append(f"--lines={max(0, given.lines)}")
    sys.stdout.flush()
    try:
        os.execvp(words[0], words)
    except OSError as error:
        raise paths.refusal("cannot run journalctl", error) from error
