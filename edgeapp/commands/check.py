"""`edgeapp check`: everything that is wrong with a configuration, before anything is opened; `serve` asks it, too."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from edgeapp import errors, paths, plan, trust
from edgeapp.commands.opening import given_card, verified
from edgeapp.commands.publishing import wrong_with_receivers
from edgeapp.gpu import runtimes, selection
from edgeapp.log import Talk, tell
from edgeapp.settings import OPTIONS, OUT, Settings
from edgeapp.stopping import Stop

SCHEMA = 1

Found = TypeVar("Found")


def check(problems: Sequence[errors.EdgeappError], as_json: bool, settings: Settings, stop: Stop, talk: Talk) -> int:
    """Print a line for each problem.

    Args:
        problems: what is wrong with the settings themselves.

    Returns:
        0, or the exit code of the first problem.

    Raises:
        InputOutputError, CannotWriteError: standard output does not take it.
    """
    if problems and settings.engine is None:  # it may stand where something is wrong
        found = [*problems, *_folders(settings), *wrong_with_receivers(settings)]
    else:
        found = [*problems, *wrong_with(settings, stop, Talk(quiet=True, debug=talk.debug))]
    if as_json:
        told = [{"what": e.what, "why": e.why, "fix": e.fix, "exit_code": e.exit_code} for e in found]
        tell([json.dumps({"schema": SCHEMA, "config": _text(settings.config), "problems": told}) + "\n"])
    else:
        tell([*map(_line, found), _sum(found, settings)])
    return found[0].exit_code if found else 0


def wrong_with(settings: Settings, stop: Stop, talk: Talk) -> list[errors.EdgeappError]:
    """All that can be seen to be wrong without a GPU and without making anything; empty where nothing is."""
    found = [*_folders(settings), *wrong_with_receivers(settings)]

    def attempt(part: Callable[[], Found]) -> Found | None:
        stop.check()
        try:
            return part()
        except errors.EdgeappError as error:
            found.append(error)
            return None

    if settings.engine is None:
        found.append(errors.UsageError("no engine is named", "", "--engine FILE, or engine = in the configuration"))
        return found
    if os.path.isdir(settings.engine):
        attempt(lambda: _one_may_run(settings))
        attempt(lambda: _demands(settings, {}))
        return found
    model = attempt(lambda: plan.identify(str(settings.engine)))
    if model is not None:
        attempt(lambda: _runtime(model, settings))
    card = attempt(lambda: given_card(settings))
    if card is not None and "golden" in card:
        attempt(lambda: _golden(card))
    if model is None or card is None:
        attempt(lambda: _demands(settings, card or {}))
    else:
        attempt(lambda: verified(model, card, settings, talk, stop))
    return found


class _MayRunError(Exception):
    """A plan of the folder may run; on which GPU is for another time."""


def _one_may_run(settings: Settings) -> None:
    """Raise EdgeappError unless a plan of the folder fits a runtime."""

    def no_gpu_is_asked() -> tuple[int, int]:
        raise _MayRunError

    with suppress(_MayRunError):
        selection.pick(
            str(settings.engine), settings.tensorrt_library, no_gpu_is_asked, host_code=settings.allow_host_code
        )


def _runtime(model: plan.ModelFile, settings: Settings) -> None:
    """Raise EdgeappError unless something here runs such a file."""
    if model.kind == plan.PLAN:
        runtimes.choose(model, settings.tensorrt_library, host_code=settings.allow_host_code)
        return
    verdict = runtimes.verdict(model)
    if verdict.runs == runtimes.NO:
        raise errors.DataError(f"cannot run {paths.printable(model.path)}", verdict.why, verdict.fix)


def _demands(settings: Settings, card: dict[str, Any]) -> trust.Demands:
    """What the engine has to be; raises EdgeappError where that cannot be said."""
    return trust.demands(
        keys=settings.trust_key, required=settings.require_signature, sha256=settings.engine_sha256, card=card
    )


def _golden(card: dict[str, Any]) -> None:
    """Raise ConfigurationError unless the golden output of a card can be compared with."""
    from edgeapp.golden import Golden

    Golden(card["golden"])


def _folders(settings: Settings) -> Iterator[errors.EdgeappError]:
    """What is wrong with the folders that are written to: those of files have to be there, others may be made."""
    for option in OPTIONS:
        value = getattr(settings, option.name, None)
        for path in (value,) if isinstance(value, str) else value or () if option.many else ():
            if path == "-":
                continue
            try:
                if option.metavar == "DIR":
                    _writable(path, made=True)
                elif option.group == OUT or option.metavar == "SOCKET":
                    _writable(os.path.dirname(path) or ".", made=False)
            except (OSError, ValueError) as error:
                what = f"cannot write to {option.name} = {paths.printable(path)}"
                refused = error if isinstance(error, OSError) else OSError(str(error))
                yield paths.refusal(what, refused, writing=True)


def _writable(folder: str, *, made: bool) -> None:
    """Raise OSError unless files can be made there.

    Args:
        made: the folder is made when it is missing, and those above it.
    """
    folder = os.path.abspath(folder)
    while made and not os.path.lexists(folder):
        folder = os.path.dirname(folder)
    with os.scandir(folder):  # raises where it is no folder
        pass
    if not os.access(folder, os.W_OK | os.X_OK):
        read_only = os.statvfs(folder).f_flag & os.ST_RDONLY
        number = errno.EROFS if read_only else errno.EACCES
        raise OSError(number, os.strerror(number))


def _line(error: errors.EdgeappError) -> str:
    """A problem in one line."""
    text = error.what + (f": {error.why}" if error.why else "") + (f"; fix: {error.fix}" if error.fix else "")
    return " ".join(text.split()) + "\n"


def _sum(found: Sequence[errors.EdgeappError], settings: Settings) -> str:
    where = f" in {paths.printable(settings.config)}" if settings.config else ""
    count = {0: "nothing wrong", 1: "1 problem"}.get(len(found), f"{len(found)} problems")
    return f"{count}{where}\n"


def _text(path: str | None) -> str | None:
    return None if path is None else paths.text(path)
