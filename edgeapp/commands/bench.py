"""`edgeapp bench`: how fast a model runs here, how fast it could, and what stands between."""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

from edgeapp import errors, paths, plan
from edgeapp.bootstrap import Trace
from edgeapp.commands import several
from edgeapp.commands.bench_report import advice, report
from edgeapp.commands.bench_wanted import Wanted
from edgeapp.commands.opening import Model, chosen, decoders_for, infers_side_by_side, open_to_run
from edgeapp.log import Talk, tell
from edgeapp.settings import Settings
from edgeapp.stopping import Stop

if TYPE_CHECKING:
    from edgeapp.gpu.meter import Steps

SCHEMA = 1


def bench(wanted: Wanted, settings: Settings, stop: Stop, talk: Talk) -> int:
    """Measure and print; returns the exit code.

    Raises:
        EdgeappError: the model cannot be run, or no input be read.
    """
    if settings.engine is None:
        raise errors.UsageError("no --engine given", "", "edgeapp bench --engine model.plan")
    for mode in ("pixels", "frames", "files", "tutorial"):
        if mode in wanted.modes and not settings.input:
            raise errors.UsageError(f"--mode {mode} needs pictures", "", "name a folder with --input")
    if "-" in settings.input:
        raise errors.UsageError("bench reads no list from standard input", "", "name a folder with --input")
    for path in filter(None, (wanted.export_times, wanted.plot)):
        folder = os.path.dirname(path) or "."
        if not os.access(folder, os.W_OK | os.X_OK):
            why = "permission denied" if os.path.isdir(folder) else "there is no such folder"
            raise errors.CannotWriteError(f"cannot write {paths.printable(path)}", why, "name another file")
    settings = several.resolved(settings, stop)
    assert settings.engine is not None
    if settings.devices is not None:
        from edgeapp.commands import bench_several

        return bench_several.bench(wanted, settings, stop, talk)
    if os.path.isdir(settings.engine):
        settings = chosen(settings, talk)
    if wanted.shapes and settings.batch is None:
        settings = replace(settings, batch=wanted.shapes[0][1][0])
    assert settings.engine is not None
    trace = Trace()
    with trace.step("import NumPy and Pillow"):
        from edgeapp.commands.bench_modes import Modes
        from edgeapp.sources import FileSource

    source = FileSource(settings.input, recursive=settings.recursive, max_pixels=settings.max_pixels, stop=stop)
    with ExitStack() as stack:
        model_file = plan.identify(settings.engine)
        decoders = decoders_for(model_file, settings)
        as_run_does = bool(settings.input) and not wanted.compare and not {"engine", "tutorial"} & set(wanted.modes)
        model, runner = open_to_run(
            model_file, source, settings, trace, talk, stop, stack, decoders=decoders, total=None,
            side_by_side=as_run_does and infers_side_by_side(settings, decoders=decoders, total=None),
        )  # fmt: skip
        _check_shapes(model, wanted)
        modes = Modes(model, runner, source, wanted, settings, stop, stack, decoders=decoders)
        found = modes.measure(talk)
    found = {"schema": SCHEMA, "engine": paths.text(settings.engine), **found}
    found["start_ms"] = {name: round(ms, 3) for name, ms in trace.steps}
    found["advice"] = advice(found)
    if wanted.export_times:
        _export(wanted.export_times, modes.steps)
    if wanted.plot:
        from edgeapp.commands.bench_plot import draw

        draw(wanted.plot, found, modes.steps)
    tell([json.dumps(found) + "\n"] if wanted.as_json else report(found))
    return 0


def _check_shapes(model: Model, wanted: Wanted) -> None:
    for name, shape in wanted.shapes:
        spec = next((spec for spec in model.engine.inputs if spec.name == name), None)
        fits = spec is not None and len(shape) == len(spec.shape)
        if spec is None or not fits or any(b not in (-1, a) for a, b in zip(shape, spec.shape, strict=True)):
            raise errors.UsageError(
                f"--shapes {name}:{'x'.join(map(str, shape))} does not fit",
                f"the engine's inputs are {'; '.join(map(str, model.engine.inputs))}",
                "name an input and its dimensions",
            )


def _export(path: str, steps: Steps | None) -> None:
    from edgeapp.sinks.writing import whole_file

    rows = []
    if steps is not None:
        for i, total in enumerate(steps.total):
            rows.append(
                {"startMs": steps.started[i], "latencyMs": total, "enqueueMs": steps.enqueue[i],
                 "h2dMs": steps.h2d[i], "computeMs": steps.compute[i], "d2hMs": steps.d2h[i]}
            )  # fmt: skip
    with whole_file(path) as file:
        file.write(json.dumps(rows, indent=1).encode() + b"\n")
