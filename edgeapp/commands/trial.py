"""The part of `doctor` that tries the model: what it is, its card, and the whole start up to an engine that could run.

Everything here runs in a child process (edgeapp.checks.child), and imports there: NumPy starts threads, and a process
with threads should not fork.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgeapp import errors, paths, plan
from edgeapp.bootstrap import Trace
from edgeapp.checks import NOTE, OK, SKIPPED, Check, Say, failed
from edgeapp.commands.opening import chosen, given_card, open_engine
from edgeapp.gpu import runtimes
from edgeapp.log import Talk
from edgeapp.settings import Settings
from edgeapp.stopping import Stop

if TYPE_CHECKING:
    from edgeapp.pipeline import Engine


def model_file(settings: Settings) -> Check:
    """What --engine is and what would run it, from its bytes; of a folder the plan that fits.

    Raises:
        EdgeappError: it cannot be read, or not be run by this program.
    """
    settings = _one(settings)
    assert settings.engine is not None
    found = plan.identify(settings.engine)
    text = f"{paths.printable(found.path)}: {found.what}"
    if found.kind == plan.ONNX:
        return Check("model file", OK, f"{text}, for ONNX Runtime on the CPU")
    runtime = runtimes.choose(found, settings.tensorrt_library, host_code=settings.allow_host_code)
    why = "a lean runtime runs it if it was built version compatible, which its bytes do not tell"
    return Check("model file", OK, f"{text}, for {runtime.name}", "", why if runtime.lean else "")


def model_card(settings: Settings) -> Check:
    """Its card: readable, known keys, possible values.

    Raises:
        EdgeappError: it cannot be used.
    """
    from edgeapp.model import find_card, read_card

    settings = _one(settings)
    assert settings.engine is not None
    path = settings.model_card or find_card(settings.engine)
    if path is None:
        return Check("model card", SKIPPED, "there is none: what it would say is guessed, or inside the model file")
    keys = read_card(path)
    return Check("model card", OK, f"{paths.printable(path)}: {len(keys)} keys")


@dataclass
class _Steps(Trace):
    """A Trace that says which step begins, so that a crash can be told by it."""

    say: Say = field(kw_only=True)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        self.say(name)
        with super().step(name):
            yield


def engine(settings: Settings, stop: Stop, talk: Talk, say: Say) -> Iterator[Check]:
    """Bring the engine up as for a run, fit the card to it, and take all down again.

    Raises:
        EdgeappError: a step failed; the reason is inside.
    """
    settings = _one(settings, talk)
    assert settings.engine is not None
    trace = _Steps(say=say)
    say("read the model card")
    given = given_card(settings)
    with open_engine(plan.identify(settings.engine), given, settings, trace, talk, stop) as (ready, metadata):
        loaded_ms = sum(ms for _, ms in trace.steps)
        tensors = f"{len(ready.inputs)} in, {len(ready.outputs)} out"
        found = Check("engine", OK, f"{ready.name}: I/O tensors {tensors}, ready in {loaded_ms:.0f} ms")
        say("fit the model card to the engine")
        try:
            fits = _fit(given, metadata, ready)
        except errors.EdgeappError as error:
            fits = failed("card and engine", error)
        say("take the engine down")
    yield found
    yield fits


def _fit(given: dict[str, Any], metadata: dict[str, Any], ready: Engine) -> Check:
    """Whether the card, with what the model file says and what is guessed, goes with the engine's tensors."""
    from edgeapp.model import complete, from_ultralytics
    from edgeapp.postprocess import make_postprocess

    card, guesses = complete({**from_ultralytics(metadata), **given}, ready.inputs, ready.outputs)
    _, more = make_postprocess(card, ready.outputs)
    found = f"task {card.task}"
    if card.size_wh != (0, 0):
        found += f", {card.size_wh[0]}x{card.size_wh[1]} pixels"
    guesses = [*guesses, *more]
    if guesses and card.task != "raw":
        why, fix = f"guessed: {', '.join(guesses)}", "name in the model card what is guessed wrong"
        return Check("card and engine", NOTE, found, "", why, fix)
    return Check("card and engine", OK, found)


def _one(settings: Settings, talk: Talk | None = None) -> Settings:
    """The settings with one plan where a folder of plans was named; `talk` is told why that one."""
    assert settings.engine is not None
    return chosen(settings, talk or Talk(quiet=True)) if os.path.isdir(settings.engine) else settings
