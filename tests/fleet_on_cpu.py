"""Stand-in for a machine with several GPUs: edgeapp whose --device finds as many as FLEET_GPUS says, each the CPU.

    FLEET_GPUS=3 python tests/fleet_on_cpu.py --engine model.onnx --input photos/ --device all

Coordinator, workers, pipelines and engines are the real ones; only the question to the driver is not asked. What the
other variables say goes wrong in the workers: see `misbehave`.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from edgeapp import cli, errors, fleet
from edgeapp.commands import several
from edgeapp.fleet import Desk
from edgeapp.records import Frame
from edgeapp.settings import Settings
from edgeapp.stopping import Stop

work = several._work
first_ready = fleet.Fleet.first_ready


def resolved(settings: Settings, _: Stop) -> Settings:
    """As many GPUs as the test wants, whatever the model."""
    if settings.devices is None:
        return settings
    return replace(settings, devices=settings.devices or tuple(range(int(os.environ["FLEET_GPUS"]))))


def all_ready(self: fleet.Fleet) -> fleet.Ready:
    """The work begins when all can, so that none is done before the one that a test is about has a share."""
    while any(worker.process is not None and worker.ready is None for worker in self.workers):
        self._step()
    return first_ready(self)


def misbehave(settings: Settings, total: int | None, desk: Desk) -> None:
    """A worker of which something may be wrong.

    FLEET_CLOSED: the GPUs, separated by commas, on which no model can be opened. FLEET_SLOW: the one that takes 20 ms
    longer for each input, or as many seconds as FLEET_SLOW_S says. FLEET_POISON: a file name that ends the process that
    reads it. FLEET_SHY: the same, but only once, at the 20th input of whoever is first: then the file of this name
    exists. FLEET_BROKEN: the GPU that is lost at its 20th input.
    """
    environ = os.environ
    if str(desk.device) in environ.get("FLEET_CLOSED", "").split(","):
        raise errors.DataError("cannot run the model", "a stand-in", "choose another GPU")
    read, numbers = desk.read, itertools.count(1)

    def broken(frame: Frame) -> None:
        count = next(numbers)  # several threads read
        name = os.path.basename(frame.path)
        if name == environ.get("FLEET_POISON"):
            print("the poison works", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGSEGV)
        if (shy := environ.get("FLEET_SHY")) and count == 20:
            with suppress(FileExistsError):  # of all processes only one makes it
                Path(shy).touch(exist_ok=False)
                os.kill(os.getpid(), signal.SIGKILL)
        if environ.get("FLEET_SLOW") == str(desk.device):
            time.sleep(float(environ.get("FLEET_SLOW_S", "0.02")))
        if environ.get("FLEET_BROKEN") == str(desk.device) and count >= 20:
            raise errors.GpuLostError("the GPU fell off the bus", "a stand-in", "start again")
        read(frame)

    desk.read = broken  # type: ignore[method-assign]
    work(settings, total, desk)


if __name__ == "__main__":
    several.resolved = resolved
    several._work = misbehave
    fleet.Fleet.first_ready = all_ready  # type: ignore[method-assign]
    fleet.MOST_HELD_BYTES = int(os.environ.get("FLEET_HELD", fleet.MOST_HELD_BYTES))
    fleet.MOST_AHEAD = int(os.environ.get("FLEET_AHEAD", fleet.MOST_AHEAD))
    cli.main()
