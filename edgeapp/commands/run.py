"""`edgeapp [run]`: inputs through an engine, results out."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from edgeapp import errors, paths, plan, trust
from edgeapp.bootstrap import Trace, bring_up
from edgeapp.log import Talk
from edgeapp.settings import Settings
from edgeapp.stopping import Stop

if TYPE_CHECKING:
    from edgeapp.model import Card
    from edgeapp.pipeline import Engine
    from edgeapp.records import Result, TensorSpec
    from edgeapp.sources import FileSource


def run(settings: Settings, stop: Stop, talk: Talk) -> int:
    """Work through all inputs; returns the exit code.

    Raises:
        EdgeappError: nothing could be done; the reason is inside.
    """
    if settings.engine is None:
        raise errors.UsageError("no --engine given", "", "edgeapp --engine model.plan --input img.jpg")
    if not settings.input:
        raise errors.UsageError("no --input given", "", f"edgeapp --engine {settings.engine} --input img.jpg")
    if os.path.isdir(settings.engine):
        settings = chosen(settings, talk)
    assert settings.engine is not None
    model_file = plan.identify(settings.engine)
    trace = Trace()
    with trace.step("import NumPy and Pillow"):
        from edgeapp.pipeline import Pipeline
        from edgeapp.postprocess import make_postprocess
        from edgeapp.preprocess import Preprocessor
        from edgeapp.sinks import open_sinks
        from edgeapp.sources import FileSource
        from edgeapp.sources.files import standard_input

    given = given_card(settings)
    source = FileSource(
        settings.input,
        recursive=settings.recursive,
        max_pixels=settings.max_pixels,
        stop=stop,
        stream=standard_input() if "-" in settings.input else None,
    )
    _protect(settings, source)
    with ExitStack() as stack:
        engine, metadata = stack.enter_context(open_engine(model_file, given, settings, trace, talk, stop))
        if settings.startup_trace:
            talk.always(str(trace))
        if not engine.inputs:
            raise errors.DataError(
                f"cannot run {paths.printable(model_file.path)}: it has no input",
                "its outputs are constants",
                "export the model again, with its inputs",
            )
        card = _card(given, metadata, engine, talk)
        pictures = card.size_wh != (0, 0)
        preprocess = Preprocessor(card, engine.inputs[0].dtype) if pictures else None
        postprocess, guesses = make_postprocess(card, engine.outputs)
        if guesses:
            talk.note(f"edgeapp: guessed {', '.join(guesses)}")
        batch, least = _batch(settings.batch, engine.inputs)
        sinks = open_sinks(settings.output, settings.save, many_inputs=source.total != 1, stack=stack)
        with talk.progress(source.total) as progress:

            def finished(result: Result) -> None:
                if result.error is not None:
                    talk.error(result.error)
                progress.advance()

            pipeline = Pipeline(
                engine,
                preprocess,
                postprocess,
                sinks,
                task=card.task,
                batch=batch,
                least=least,
                finished=finished,
                check_stop=stop.check,
            )
            try:
                summary = pipeline.run(source)
            except errors.Stopped:
                talk.note(f"edgeapp: stopped after {pipeline.summary}")
                raise
    talk.note(f"edgeapp: {summary} ({engine.name})")
    return summary.exit_code


def chosen(settings: Settings, talk: Talk) -> Settings:
    """The settings with one plan in place of a folder of plans."""
    from edgeapp.gpu import selection
    from edgeapp.gpu.driver import Driver

    def capability() -> tuple[int, int]:
        driver = Driver()
        driver.initialise()
        return driver.compute_capability(settings.device)

    assert settings.engine is not None
    found, reason = selection.pick(
        settings.engine, settings.tensorrt_library, capability, host_code=settings.allow_host_code
    )
    talk.note(f"edgeapp: {reason}")
    return replace(settings, engine=found.path)


@contextmanager
def open_engine(
    model_file: plan.ModelFile, given: dict[str, Any], settings: Settings, trace: Trace, talk: Talk, stop: Stop
) -> Iterator[tuple[Engine, dict[str, Any]]]:
    """An engine for a plan (GPU) or an ONNX model (CPU), and the metadata inside the file.

    The one way to an engine, so that no command can leave out the check.

    Args:
        model_file: the file at first sight; when it is checked, it is looked at anew.
        given: the model card's keys, for `trust_key` and `sha256`.
    """
    with trace.step("verify the engine file"):
        model_file = _verified(model_file, given, settings, talk, stop)
    if model_file.kind == plan.PLAN:
        from edgeapp.gpu import runtimes

        # Refuse what no runtime here can run, before the driver is asked.
        runtimes.choose(model_file, settings.tensorrt_library, host_code=settings.allow_host_code)
        with bring_up(
            model_file,
            device=settings.device,
            library=settings.tensorrt_library,
            detail=talk.detail,
            trace=trace,
            check_stop=stop.check,
            plugins=settings.plugin,
            host_code=settings.allow_host_code,
        ) as engine:
            yield engine, model_file.metadata
        return
    with trace.step("load the ONNX model"):
        from edgeapp.cpu.engine import CpuEngine

        cpu = CpuEngine(model_file.path, model_file.checked.take() if model_file.checked else None)
    try:
        yield cpu, dict(cpu.metadata)
    finally:
        cpu.close()


def _verified(
    model_file: plan.ModelFile, given: dict[str, Any], settings: Settings, talk: Talk, stop: Stop
) -> plan.ModelFile:
    """The file as trust.check() read it, or as it was when there was nothing to check; says what code may run."""
    if model_file.kind != plan.PLAN and (settings.plugin or settings.allow_host_code):
        flag = "--plugin" if settings.plugin else "--allow-host-code"
        raise errors.UsageError(f"{flag} goes with a plan, not with an ONNX model", "", f"leave {flag} out")
    wanted = trust.demands(
        keys=settings.trust_key, required=settings.require_signature, sha256=settings.engine_sha256, card=given
    )
    data = trust.check(model_file.path, wanted, talk.note, stop.check)
    for file in settings.plugin:
        talk.always(f"edgeapp: plugin {paths.printable(file)} may run its code, SHA-256 {trust.plugin_sha256(file)}")
    if settings.allow_host_code:
        talk.always(f"edgeapp: {paths.printable(model_file.path)} may run native code that it carries")
    # What was read of the file before does not count any more: it may be another one since.
    return model_file if data is None else plan.identify(model_file.path, data)


def given_card(settings: Settings) -> dict[str, Any]:
    """Card keys from the card file, overridden by flags."""
    from edgeapp.labels import read_labels
    from edgeapp.model import find_card, read_card

    assert settings.engine is not None
    path = settings.model_card or find_card(settings.engine)
    values = read_card(path) if path else {}
    flags = dict(settings.card)
    if "labels" in flags:
        flags["labels"] = read_labels(flags["labels"])
    return {**values, **flags}


def _card(given: dict[str, Any], metadata: dict[str, Any], engine: Engine, talk: Talk) -> Card:
    """The complete card; says once what had to be guessed."""
    from edgeapp.model import complete, from_ultralytics

    known = {**from_ultralytics(metadata), **given}
    card, guesses = complete(known, engine.inputs, engine.outputs)
    if guesses and card.task != "raw":
        reason = "the model card leaves open" if known else "no model card"
        talk.note(f"edgeapp: {reason}, guessed {', '.join(guesses)}")
    return card


def _batch(wanted: int | None, inputs: Sequence[TensorSpec]) -> tuple[int, int]:
    """(pictures per inference, places that an inference has at least)."""
    first = inputs[0].shape[0] if inputs and inputs[0].shape else 1
    if first > 0:
        if wanted is not None and wanted > first:
            raise errors.UsageError(
                f"--batch {wanted} does not fit: the engine was built for batches of {first}",
                "",
                f"use --batch {first}",
            )
        return wanted or first, first
    least = min((low[0] for low, _, _ in inputs[0].profiles), default=1)
    return wanted or max(1, least), least


def _protect(settings: Settings, source: FileSource) -> None:
    """Refuse outputs that would overwrite the engine, the card, the labels or an input."""
    from edgeapp.model import find_card
    from edgeapp.sources.files import same_file

    assert settings.engine is not None
    cards = (settings.model_card, find_card(settings.engine), settings.card.get("labels"))
    known = [settings.engine, *filter(None, cards), *source.paths]
    for output in settings.output:
        for name in known if output != "-" else ():
            if same_file(output, name):
                raise errors.UsageError(f"--output would overwrite {paths.printable(name)}", "", "name another file")
    if settings.save is not None:
        for folder in {os.path.dirname(name) or "." for name in source.paths}:
            if same_file(settings.save, folder):
                raise errors.UsageError(
                    f"--save {paths.printable(settings.save)} is a folder of inputs",
                    "annotated pictures would take their places",
                    "name another folder",
                )
