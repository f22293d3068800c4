"""`edgeapp update FILE` and `edgeapp rollback`: another version of the program in place of the installed one.

The file is verified and tried before anything is changed, the change is one rename, and the service that does not
become ready with it, twice, gets back what it had. Whenever this is killed, one version that works is the current one.
"""

from __future__ import annotations

from pathlib import Path

from edgeapp import errors, paths, trust
from edgeapp.log import Talk
from edgeapp.service import program, steps, unit
from edgeapp.service.versions import State
from edgeapp.settings import Settings
from edgeapp.stopping import Stop


def update(file: str, settings: Settings, stop: Stop, talk: Talk) -> int:
    """Make a file the installed program; 0.

    Raises:
        NotFoundError: there is no such file, or nothing is installed. NotPermittedError: only root may.
        ConfigurationError: its signature is wrong, or missing and required.
        DataError: it does not work on this machine; nothing was changed.
        SystemRefusedError: the service did not become ready with it; what was before is current again.
    """
    _demand("update the program", f"edgeapp update {paths.printable(file)}")
    name = paths.printable(file)
    wanted = trust.demands(keys=settings.trust_key, required=settings.require_signature, sha256=None, card={})
    versions = program.versions()
    with versions.alone():
        try:
            program.check_form(Path(file))
            data = trust.check(file, wanted, talk.note, stop.check)
            talk.note(f"edgeapp: trying {name}")
            new = program.stage(Path(file), data, tried=False)
        except OSError as error:
            raise paths.refusal(f"cannot install {name}", error) from error
        stop.check()
        if new == versions.state().current:
            talk.note(f"edgeapp: {new} is the current version already")
            return 0
        _switch(versions.activate(new), talk)
    return 0


def rollback(stop: Stop, talk: Talk) -> int:
    """Go back to the program before; 0. A second one goes forward again.

    Raises:
        NotFoundError: nothing is installed, or there is none before. NotPermittedError: only root may.
        SystemRefusedError: the service did not become ready with it; what was before is current again.
    """
    _demand("go back to the program before", "edgeapp rollback")
    versions = program.versions()
    with versions.alone():
        stop.check()
        program.ask(versions.path(versions.earlier()) / "edgeapp", "--version", limit_s=program.VERSION_S)
        _switch(versions.rollback(), talk)
    return 0


def _demand(what: str, command: str) -> None:
    steps.as_root(what, command)
    if not program.versions().state().current:
        raise errors.NotFoundError(
            f"cannot {what}: none is installed", f"there is no {unit.PROGRAM}", "sudo edgeapp service install"
        )


def _switch(before: State, talk: Talk) -> None:
    """Tell, and let the service run it."""
    versions = program.versions()
    try:
        talk.note(f"edgeapp: systemctl restart {unit.NAME}, if it runs")
        program.settle(versions, before)
        talk.note(f"edgeapp: {versions.state().current} is current; edgeapp rollback goes back to {before.current}")
    finally:
        versions.prune()
