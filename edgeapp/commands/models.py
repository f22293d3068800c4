"""`edgeapp model install FILE` and `edgeapp model rollback`: another model for the service, without a restart.

/opt/edgeapp/models/NAME/current is a link to a folder with engine, card and signature, named by the SHA-256 of
all three. The service is told to reload, and what it refuses does not stay.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
from pathlib import Path

from edgeapp import errors, minisign, paths, plan, trust
from edgeapp.log import Talk
from edgeapp.service import program, steps, systemctl, unit
from edgeapp.service.versions import State, Versions
from edgeapp.settings import Settings
from edgeapp.stopping import Stop

RELOAD_S = 600.0
"""Deserialising a large plan from an SD card, beside a model that goes on working."""

HELP = """examples:
  sudo edgeapp model install new.plan        with its card and its .minisig, where they lie beside it
  sudo edgeapp model rollback

The config names /opt/edgeapp/models/model/current/model.plan, or model.onnx; another NAME is for another service."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The words and flags of `edgeapp model`; some of main's options come beside."""
    parser.epilog = HELP
    parser.add_argument("action", choices=("install", "rollback"), help="put a model in place, or go back")
    parser.add_argument("file", nargs="?", metavar="FILE", help="plan or .onnx model")
    parser.add_argument("--name", default=unit.DEFAULT_MODEL, metavar="N", help="which model of this machine (model)")


def model(given: argparse.Namespace, settings: Settings, stop: Stop, talk: Talk) -> int:
    """Do it; 0.

    Raises:
        UsageError: a word is missing or too many. NotPermittedError: only root may.
        NotFoundError: there is no such file, or nothing to go back to.
        ConfigurationError: digest, signature or card is wrong.
        DataError: it cannot be run here, or the running service refused it; what was before is current again.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", given.name):
        raise errors.UsageError(
            f"--name {paths.printable(given.name)} is no name", "letters, digits and . _ - are wanted", ""
        )
    if (given.file is None) == (given.action == "install"):
        words = "FILE is missing" if given.file is None else "rollback takes no FILE"
        raise errors.UsageError(words, "", "edgeapp model install FILE, edgeapp model rollback")
    steps.as_root(f"{given.action} a model", f"edgeapp model {given.action}")
    versions = Versions(unit.MODELS / given.name)
    try:
        with versions.alone():
            before = put(versions, settings, stop, talk) if given.action == "install" else versions.rollback()
            _take_up(versions, before, talk)
    except OSError as error:
        raise paths.refusal(f"cannot change {versions.folder}", error, writing=True) from error
    return 0


def engine_path(versions: Versions, file: str) -> Path:
    """Where an engine lies while its version is the current one; a service has either a plan or an ONNX model."""
    return versions.current / ("model.onnx" if file.lower().endswith(".onnx") else "model.plan")


def put(versions: Versions, settings: Settings, stop: Stop, talk: Talk) -> State:
    """Make the engine of the settings the current version; gives what was before. Only `alone`.

    Raises:
        EdgeappError: it is not what it must be. OSError: a file cannot be read or written.
    """
    from edgeapp.commands.opening import given_card
    from edgeapp.gpu import runtimes

    assert settings.engine is not None
    found = plan.identify(settings.engine)
    card = given_card(settings)
    wanted = trust.demands(
        keys=settings.trust_key, required=settings.require_signature, sha256=settings.engine_sha256, card=card
    )
    data = trust.check(settings.engine, wanted, talk.note, stop.check)
    data = minisign.read_file(settings.engine) if data is None else data
    found = plan.identify(settings.engine, data)
    if found.kind == plan.PLAN:
        runtimes.choose(found, settings.tensorrt_library)
    signature = settings.engine + minisign.SUFFIX
    with versions.new() as folder:
        engine = folder / engine_path(versions, settings.engine).name
        engine.write_bytes(data)
        if os.path.lexists(signature):
            text = minisign.read_file(signature, minisign.MOST_SIGNATURE_BYTES)
            Path(f"{engine}{minisign.SUFFIX}").write_bytes(text)
        if card:
            (folder / "model.json").write_text(json.dumps(card, indent=1) + "\n", "utf-8")
        for path in folder.iterdir():
            path.chmod(0o644)
        name = hashlib.sha256(b"".join(hashlib.sha256(p.read_bytes()).digest() for p in sorted(folder.iterdir())))
        versions.keep(folder, name.hexdigest())
    stop.check()
    return versions.activate(name.hexdigest())


def _take_up(versions: Versions, before: State, talk: Talk) -> None:
    """Let the service run what is current now, or go back."""
    now = versions.state().current
    if now == before.current:
        talk.note(f"edgeapp: {now[:12]} is the current model already")
        return
    try:
        state = systemctl.state()
        if state in ("active", "reloading"):
            _reload(versions, before, talk)
        elif state == "activating":
            program.settle(versions, before)
        else:
            talk.note(f"edgeapp: the service is not running; systemctl start {unit.NAME}")
    finally:
        versions.prune()
    talk.note(f"edgeapp: {versions.folder.name} is {now[:12]}, was {before.current[:12] or 'none'}")
    hint(versions, talk)


def hint(versions: Versions, talk: Talk) -> None:
    """Tell where the config names another engine than this one."""
    engine = next(path for path in sorted(versions.current.iterdir()) if path.name in ("model.onnx", "model.plan"))
    if unit.CONFIG.is_file() and str(engine) not in unit.CONFIG.read_text("utf-8", "replace"):
        talk.note(f'edgeapp: {unit.CONFIG} names another engine; this one is engine = "{engine}"')


def _reload(versions: Versions, before: State, talk: Talk) -> None:
    talk.note("edgeapp: edgeapp ctl reload --wait")
    try:
        done = subprocess.run(
            [unit.PROGRAM, "ctl", "reload", "--wait"], stdin=subprocess.DEVNULL, capture_output=True, text=True,
            errors="backslashreplace", check=False, timeout=RELOAD_S,
        )  # fmt: skip
        said = done.stderr.strip().replace("\n", " / ")
        why = "" if done.returncode == 0 else said or f"ended with {done.returncode}"
    except (OSError, subprocess.TimeoutExpired) as error:
        why = str(error)
    if why:
        now = versions.state().current
        versions.restore(before)
        raise errors.DataError(
            f"the service refused the model {now[:12]}; {before.current[:12] or 'none'} is current again", why,
            "edgeapp service logs",
        )  # fmt: skip
