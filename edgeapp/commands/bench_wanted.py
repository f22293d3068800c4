"""What `edgeapp bench` can be asked for: its own flags; the names are those of trtexec where they mean the same."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from edgeapp import errors
from edgeapp.settings import choice, integer, name, number, typed

MODES = ("engine", "copies", "pixels", "frames", "files", "tutorial")


@dataclass(frozen=True)
class Wanted:
    """What the bench was asked for.

    Attributes:
        rounds: blocks of every mode, turn about, so that a slow minute of the machine hits all alike.
        duration_s: of all blocks of a mode together.
        warm_up_ms: before the first block of every mode.
        iterations: batches of the latency measurement at least.
        percentiles: of the latency, 0 to 100.
    """

    modes: tuple[str, ...] = ()
    rounds: int = 5
    duration_s: float = 3.0
    warm_up_ms: float = 200.0
    iterations: int = 100
    percentiles: tuple[float, ...] = (50.0, 90.0, 95.0, 99.0)
    shapes: tuple[tuple[str, tuple[int, ...]], ...] = ()
    compare: bool = False
    as_json: bool = False
    export_times: str | None = None
    plot: str | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that only the bench has."""
    group = parser.add_argument_group("what is measured")
    group.add_argument("--mode", nargs="+", type=typed(choice(*MODES)), metavar="MODE", default=None,
                       help="engine: alone, back to back; copies: with inputs and outputs; pixels: with "
                       "preprocessing on the GPU; frames: decoded pictures "
                       "through the whole pipeline; files: from the files on; tutorial: the loop of the tutorials "
                       "(default: all that --input allows)")  # fmt: skip
    group.add_argument("--compare", action="store_true", help="with the tutorials' loop on the same pictures")
    group.add_argument("--shapes", metavar="NAME:NxCxHxW[,...]", type=typed(_shapes), default=(),
                       help="input shapes; the first dimension is the batch")  # fmt: skip
    group.add_argument("--duration", metavar="S", type=typed(number(0.05, 86_400)), default=3.0,
                       help="seconds of each mode (3)")  # fmt: skip
    group.add_argument("--warm-up", "--warmUp", dest="warm_up", metavar="MS", type=typed(number(0, 600_000)),
                       default=200.0, help="milliseconds before each mode (200)")  # fmt: skip
    group.add_argument("--rounds", metavar="N", type=typed(integer(1, 1000)), default=5,
                       help="blocks of each mode, turn about (5)")  # fmt: skip
    group.add_argument("--iterations", metavar="N", type=typed(integer(1, 10_000_000)), default=100,
                       help="batches of the latency measurement at least (100)")  # fmt: skip
    group.add_argument("--percentile", metavar="P[,P]", type=typed(_percentiles), default=(50.0, 90.0, 95.0, 99.0),
                       help="of the latency (50,90,95,99)")  # fmt: skip
    group.add_argument("--use-spin-wait", "--useSpinWait", dest="spin", action="store_true", help="as --sync spin")
    group.add_argument("--infStreams", dest="inference_streams", type=typed(integer(1, 16)), metavar="N",
                       help="as --streams N")  # fmt: skip
    group.add_argument("--no-data-transfers", "--noDataTransfers", dest="no_copies", action="store_true",
                       help="as --mode engine")  # fmt: skip
    group.add_argument("--export-times", "--exportTimes", dest="export_times", metavar="FILE.json", type=typed(name),
                       help="every batch of the latency measurement")  # fmt: skip
    group.add_argument(
        "--plot", metavar="FILE.svg", type=typed(name), help="a picture of the latencies and of what a batch waits for"
    )
    group.add_argument("--json", action="store_true", help="print one JSON object")


def wanted_of(given: argparse.Namespace) -> Wanted:
    """The bench's own flags."""
    modes = tuple(given.mode or ())
    if given.no_copies:
        if modes:
            raise errors.UsageError("--no-data-transfers and --mode go not together", "", "leave one out")
        modes = ("engine",)
    return Wanted(
        modes, given.rounds, given.duration, given.warm_up, given.iterations, given.percentile, given.shapes,
        given.compare, given.json, given.export_times, given.plot,
    )  # fmt: skip


def _percentiles(text: str) -> tuple[float, ...]:
    return tuple(number(0, 100)(part) for part in text.split(","))


def _shapes(text: str) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """NAME:1x3x224x224,NAME:..., as trtexec takes it."""
    found = []
    for part in text.split(","):
        name, colon, dims = part.rpartition(":")
        if not colon or not name:
            raise ValueError("NAME:NxCxHxW is wanted")
        found.append((name, tuple(integer(1, 1 << 30)(n) for n in dims.lower().split("x"))))
    return tuple(found)
