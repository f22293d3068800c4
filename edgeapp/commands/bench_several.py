"""`edgeapp bench --device all`: decoded pictures in memory on one GPU alone and on all at once, turn about."""

from __future__ import annotations

import json
import pickle
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

from edgeapp import cores, errors, forking, paths, plan
from edgeapp.bootstrap import Trace
from edgeapp.commands import several
from edgeapp.commands.bench_wanted import Wanted
from edgeapp.commands.opening import open_to_run
from edgeapp.log import Talk, tell
from edgeapp.settings import Settings
from edgeapp.stopping import Stop

SCHEMA = 1


@dataclass(frozen=True)
class Lap:
    """What one GPU did in a block; the times are those of the system's monotonic clock, the same for all processes."""

    began_s: float
    ended_s: float
    pictures: int


def rate(laps: Sequence[Lap]) -> float:
    """Pictures per second of GPUs that worked at the same time: from the first one's begin to the last one's end."""
    return sum(lap.pictures for lap in laps) / (max(lap.ended_s for lap in laps) - min(lap.began_s for lap in laps))


def ratio(alone: Sequence[float], together: Sequence[float]) -> float:
    """How many times as fast all are: the median of each block with all against the two around it with one.

    Args:
        alone: rates of one GPU, one more than of `together`.
        together: rates of all.
    """
    return statistics.median(
        both / statistics.fmean(around) for both, around in zip(together, pairwise(alone), strict=True)
    )


def bench(wanted: Wanted, settings: Settings, stop: Stop, talk: Talk) -> int:
    """Measure on `settings.devices` and print; returns the exit code.

    Raises:
        EdgeappError: the model cannot be run on one of them, or no picture be read.
    """
    from edgeapp.fleet import Chorus

    devices = settings.devices
    assert devices is not None
    _check(wanted, settings)
    heard = Chorus(talk)
    gpus: list[forking.Process] = []
    try:
        for device in devices:
            work = partial(_work, settings, wanted, device, talk)
            gpus.append(forking.start(work, f"GPU {device}", gpus))
        name, batch = forking.answers(gpus, stop, heard)[0]
        seconds = wanted.duration_s / wanted.rounds

        def measure(processes: Sequence[forking.Process]) -> list[Lap]:
            for process in processes:
                process.link.post(pickle.dumps(seconds))
                process.link.flush()
            return forking.answers(processes, stop, heard)

        with talk.progress(2 * wanted.rounds + 1) as progress:
            found = _rounds(wanted.rounds, lambda all_: measure(gpus if all_ else gpus[:1]), progress.advance)
    finally:
        for process in gpus:
            process.kill()
        for process in gpus:
            process.end()
    assert settings.engine is not None
    found = {
        "schema": SCHEMA, "engine": paths.text(settings.engine), "device": name, "mode": "frames", "batch": batch,
        "gpus": list(devices), "decode_threads_per_gpu": several.threads_of(settings), "cores": cores.usable(), **found,
    }  # fmt: skip
    tell([json.dumps(found) + "\n"] if wanted.as_json else report(found))
    return 0


def _check(wanted: Wanted, settings: Settings) -> None:
    given = {
        f"--mode {' '.join(wanted.modes)}": set(wanted.modes) - {"frames"},
        "--compare": wanted.compare,
        "--shapes": wanted.shapes,
        "--export-times": wanted.export_times,
        "--plot": wanted.plot,
    }
    for flag, is_there in given.items():
        if is_there:
            raise errors.UsageError(
                f"{flag} goes with one GPU", "of several the mode frames is measured", "leave it out, or --device 0"
            )
    if not settings.input:
        raise errors.UsageError("several GPUs are measured with pictures", "", "name a folder with --input")


def _rounds(rounds: int, measure: Callable[[bool], list[Lap]], advance: Callable[[], None]) -> dict[str, Any]:
    """One GPU, all, one, all ... one; `measure` runs a block on all or on one."""
    alone: list[float] = []
    together: list[list[Lap]] = []
    for block in range(2 * rounds + 1):
        laps = measure(block % 2 == 1)
        together.append(laps) if block % 2 else alone.append(rate(laps))
        advance()
    rates = [rate(laps) for laps in together]
    times = ratio(alone, rates)
    each = [statistics.median(rate([lap]) for lap in laps) for laps in zip(*together, strict=True)]
    return {
        "alone": {"images_per_s": statistics.median(alone), "blocks": alone},
        "together": {"images_per_s": statistics.median(rates), "blocks": rates, "of_each_gpu": each},
        "ratio": times,
        "of_linear": times / len(each),
    }


def _work(settings: Settings, wanted: Wanted, device: int, talk: Talk, link: forking.Link) -> None:
    """What happens on one GPU, in its own process: a block for each message."""
    from edgeapp.commands.bench_modes import Modes
    from edgeapp.fleet import Relay
    from edgeapp.sources import FileSource

    stop, talk = Stop(), Relay(talk, link)
    settings = several.settings_of(settings, device, talk)
    assert settings.engine is not None
    assert settings.decode_threads is not None
    decoders = settings.decode_threads
    source = FileSource(settings.input, recursive=settings.recursive, max_pixels=settings.max_pixels, stop=stop)
    with ExitStack() as stack:
        model, runner = open_to_run(
            plan.identify(settings.engine), source, settings, Trace(), talk, stop, stack, decoders=decoders, total=None
        )
        if runner is None:
            raise errors.UsageError("the engine takes no pictures", "", "measure it on one GPU: --device 0")
        row = Modes(model, runner, source, wanted, settings, stop, stack, decoders=decoders).frames()
        row.run(wanted.warm_up_ms / 1e3)  # and decodes the pictures
        link.tell(forking.READY, (model.engine.name, model.batch))
        while True:
            stop.wait_readable(link.fileno())
            for _, seconds in link.receive():
                began_s = time.perf_counter()
                block = row.run(pickle.loads(seconds))
                pictures = round(block.batches * model.batch)
                link.tell(forking.ANSWER, Lap(began_s, began_s + block.wall_s, pictures))


def report(found: dict[str, Any]) -> Iterator[str]:
    """The text of the findings, line by line."""
    gpus = found["gpus"]
    yield f"{found['engine']}: batch {found['batch']}, decoded pictures, through the pipeline\n"
    yield f"{found['device']}\n\n{'':24s}{'images/s':>10s}\n"
    yield f"{f'GPU {gpus[0]} alone':24s}{found['alone']['images_per_s']:10.1f}\n"
    yield f"{f'{len(gpus)} GPUs at once':24s}{found['together']['images_per_s']:10.1f}\n"
    for gpu, images_per_s in zip(gpus, found["together"]["of_each_gpu"], strict=True):
        yield f"{f'  GPU {gpu} of them':24s}{images_per_s:10.1f}\n"
    yield f"\n{len(gpus)} GPUs are {found['ratio']:.2f} times as fast as one, {found['of_linear']:.3f} of linear\n"
