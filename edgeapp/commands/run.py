"""`edgeapp [run]`: inputs through an engine, results out."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import IO, TYPE_CHECKING

from edgeapp import errors, paths, plan
from edgeapp.bootstrap import Trace, head_start
from edgeapp.commands import several
from edgeapp.commands.opening import chosen, decoders_for, infers_side_by_side, open_to_run
from edgeapp.log import Talk
from edgeapp.settings import Settings
from edgeapp.stopping import Stop

if TYPE_CHECKING:
    from edgeapp.records import Result
    from edgeapp.sources import FileSource

LIVE_SLOTS = 4
"""Batches under way of a live stream: three on the GPU and one that is decoded; each more would make all older."""


def run(settings: Settings, stop: Stop, talk: Talk) -> int:
    """Work through all inputs; returns the exit code.

    Raises:
        EdgeappError: nothing could be done; the reason is inside.
    """
    if settings.engine is None:
        raise errors.UsageError("no --engine given", "", "edgeapp --engine model.plan --input img.jpg")
    if not settings.input:
        raise errors.UsageError("no --input given", "", f"edgeapp --engine {settings.engine} --input img.jpg")
    settings = several.resolved(settings, stop)
    assert settings.engine is not None
    if settings.devices is None and os.path.isdir(settings.engine):
        settings = chosen(settings, talk)
    assert settings.engine is not None
    model_file = plan.identify(settings.engine) if settings.devices is None else None
    trace = Trace()
    with ExitStack() as stack:
        if model_file is not None and model_file.kind == plan.PLAN:
            stack.enter_context(
                head_start(
                    model_file, settings.device, trace,
                    library=settings.tensorrt_library, host_code=settings.allow_host_code,
                )
            )  # fmt: skip
        return _run(model_file, settings, trace, stop, talk)


def _run(model_file: plan.ModelFile | None, settings: Settings, trace: Trace, stop: Stop, talk: Talk) -> int:
    """The same with a model file that was looked at; without one, on several GPUs."""
    with trace.step("import NumPy and Pillow"):
        from edgeapp.pipeline import Pipeline
        from edgeapp.sinks import open_sinks
        from edgeapp.sources.files import standard_input

        draw: Callable[[Result], None] | None = None
        if settings.save is not None:
            from edgeapp.sinks.pictures import draw

    stream = standard_input() if "-" in settings.input else None
    source = _source(settings, stream, stop)
    _protect(settings, source)
    if model_file is None:
        return several.run(settings, source, stream, stop, talk)
    if settings.live and settings.slots is None:
        settings = replace(settings, slots=LIVE_SLOTS)
    with ExitStack() as stack:
        decoders = decoders_for(model_file, settings)
        model, runner = open_to_run(
            model_file, source, settings, trace, talk, stop, stack, decoders=decoders, total=source.total,
            # Of a list, whose end nobody knows, the next result may be waited for.
            side_by_side=source.total is not None
            and infers_side_by_side(settings, decoders=decoders, total=source.total),
        )  # fmt: skip
        sinks = open_sinks(settings.output, settings.save, many_inputs=source.total != 1, stack=stack)
        with talk.progress(source.total) as progress:
            pipeline = Pipeline(
                model.engine,
                runner,
                model.postprocess,
                sinks,
                task=model.card.task,
                batch=model.batch,
                decoders=decoders,
                keep_pictures=False,
                draw=draw,
                finished=progress.finished,
                stop=stop,
                side_by_side=model.side_by_side,
            )
            try:
                summary = pipeline.run(source)
            except errors.Stopped:
                talk.note(f"edgeapp: stopped after {pipeline.summary}{_left_out(source)}")
                raise
    talk.note(f"edgeapp: {summary}{_left_out(source)} ({model.engine.name})")
    return summary.exit_code


def _left_out(source: FileSource) -> str:
    return f"; {source.left_out} left out for newer ones" if source.left_out else ""


def _source(settings: Settings, stream: IO[bytes] | None, stop: Stop) -> FileSource:
    """The files of --input, or the stream that it names."""
    from edgeapp.sources import FileSource
    from edgeapp.sources.stream import PREFIX, StreamSource

    patience_s = settings.max_delay_ms / 1e3 if settings.devices is None else 0.0
    named = [uri for uri in settings.input if uri.startswith(PREFIX)]
    if not named:
        if settings.live:
            raise errors.UsageError("--live goes with a stream", "of files none is left out", f"--input {PREFIX}-")
        return FileSource(
            settings.input,
            recursive=settings.recursive,
            max_pixels=settings.max_pixels,
            stop=stop,
            stream=stream,
            patience_s=patience_s,
        )
    if named[0] == PREFIX:
        raise errors.UsageError(f"{PREFIX} names no stream", "", f"{PREFIX}PATH, or {PREFIX}- for standard input")
    if len(settings.input) > 1 or settings.devices is not None:
        what = "beside other inputs" if len(settings.input) > 1 else "on several GPUs"
        raise errors.UsageError(f"{named[0]} cannot be {what}", "a stream is one, and goes to one GPU", "give it alone")
    return StreamSource(named[0], live=settings.live, max_pixels=settings.max_pixels, stop=stop, patience_s=patience_s)


def _protect(settings: Settings, source: FileSource) -> None:
    """Refuse outputs that would overwrite the engine, the card, the labels or an input."""
    from edgeapp.model import find_card
    from edgeapp.sources.files import same_file

    assert settings.engine is not None
    cards = (settings.model_card, find_card(settings.engine), settings.card.get("labels"))
    known = [settings.engine, *filter(None, cards), *source.paths]
    if os.path.isdir(settings.engine):
        known += [os.path.join(settings.engine, name) for name in os.listdir(settings.engine)]
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
