"""Several GPUs: which they are, and a run on them."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import IO, TYPE_CHECKING

from edgeapp import cores, errors, plan
from edgeapp.bootstrap import Trace
from edgeapp.commands.opening import chosen, open_to_run
from edgeapp.log import Talk
from edgeapp.settings import Settings
from edgeapp.stopping import Stop

if TYPE_CHECKING:
    from edgeapp.fleet import Desk
    from edgeapp.sources import FileSource

BESIDE_HOSTS = 2
"""Groups that wait at a worker, so that none of its memory for pictures is without one."""


def resolved(settings: Settings, stop: Stop) -> Settings:
    """The settings with the GPUs that are there: `devices` are two or more, or None where `device` is all.

    Raises:
        UsageError: the engine runs on the CPU. NoGpuError: there is no driver, or not such a GPU.
    """
    if settings.devices is None:
        return settings
    from edgeapp import forking  # late: a run on one GPU does without

    assert settings.engine is not None
    if not os.path.isdir(settings.engine) and plan.identify(settings.engine).kind != plan.PLAN:
        raise errors.UsageError(
            "--device names several GPUs, and an ONNX model runs on the CPU", "", "leave --device out, or give a plan"
        )
    # In a child: a driver that was initialised here would be of no use in the workers.
    devices = forking.ask(partial(visible, settings.devices), "asking the driver", stop)
    return replace(settings, device=devices[0], devices=devices if len(devices) > 1 else None)


def visible(devices: tuple[int, ...]) -> tuple[int, ...]:
    """These GPUs, or all if none is named.

    Raises:
        NoGpuError: one of them is not there.
    """
    from edgeapp.gpu.driver import Driver

    driver = Driver()
    driver.initialise()
    for number in devices or (0,):
        driver.require(number)
    return devices or tuple(range(driver.device_count()))


def threads_of(settings: Settings) -> int:
    """Threads that read and decode, for each GPU."""
    assert settings.devices is not None
    return max(1, (settings.decode_threads or cores.decoders(len(settings.devices))) // len(settings.devices))


def settings_of(settings: Settings, device: int, talk: Talk) -> Settings:
    """Those of one worker: its GPU, its share of the threads, and of a folder of plans the one for this GPU."""
    own = replace(settings, device=device, devices=None, decode_threads=threads_of(settings))
    assert own.engine is not None
    return chosen(own, talk) if os.path.isdir(own.engine) else own


def run(settings: Settings, source: FileSource, stream: IO[bytes] | None, stop: Stop, talk: Talk) -> int:
    """Work through all inputs on all GPUs of `settings.devices`; returns the exit code.

    A GPU that is lost on the way does not change it, as nothing is missing in what comes out; it is said as an error.

    Args:
        source: tells at once when it would have to wait for `stream`.

    Raises:
        EdgeappError: nothing could be done, or no GPU is left.
    """
    from edgeapp.fleet import Fleet
    from edgeapp.sinks import open_sinks

    assert settings.devices is not None
    fleet = Fleet(settings.devices, partial(_work, settings, source.total), stop=stop, talk=talk)
    try:
        with fleet, ExitStack() as stack:
            name = fleet.first_ready().name
            sinks = open_sinks(settings.output, settings.save, many_inputs=source.total != 1, stack=stack)
            with talk.progress(source.total) as progress:
                summary = fleet.run(
                    source, sinks, progress.finished,
                    total=source.total, stream=stream, patience_s=settings.max_delay_ms / 1e3,
                )  # fmt: skip
    except errors.Stopped:
        talk.note(f"edgeapp: stopped after {fleet.summary}")
        raise
    talk.note(f"edgeapp: {summary} ({name}; {fleet.shares})")
    return summary.exit_code


def _work(settings: Settings, total: int | None, desk: Desk) -> None:
    """What a worker does, in its own process."""
    from edgeapp.fleet import Ready
    from edgeapp.pipeline import Pipeline
    from edgeapp.sinks.pictures import draw
    from edgeapp.sources import FileSource

    settings = settings_of(settings, desk.device, desk.talk)
    assert settings.engine is not None
    assert settings.decode_threads is not None
    decoders = settings.decode_threads
    files = FileSource((), max_pixels=settings.max_pixels, stop=desk.stop)
    with ExitStack() as stack:
        model, runner = open_to_run(
            plan.identify(settings.engine), files, settings, Trace(), desk.talk, desk.stop, stack,
            decoders=decoders, total=total,
        )  # fmt: skip
        depth = (len(runner.hosts) if runner is not None else decoders) + BESIDE_HOSTS
        desk.begin(files, Ready(model.engine.name, model.batch, depth, runner is not None))
        Pipeline(
            model.engine,
            runner,
            model.postprocess,
            [desk],
            task=model.card.task,
            batch=model.batch,
            decoders=decoders,
            keep_pictures=False,
            draw=draw if settings.save is not None else None,
            finished=lambda _: None,
            stop=desk.stop,
        ).run(desk)
