"""`edgeapp doctor`: looks at the machine and, with --engine, tries the model; each check with what to do."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

from edgeapp import errors
from edgeapp.checks import FAILURE, NOTE, OK, SKIPPED, WARNING, Check, Machine, files, gpu, jetson, system
from edgeapp.checks.child import Child, Work
from edgeapp.log import Talk, tell
from edgeapp.settings import Settings
from edgeapp.stopping import Stop

SCHEMA = 1

QUICK_S = 15.0
"""For what only reads small files; ldconfig and nvpmodel get 5 s of it."""

DRIVER_S = 60.0
"""A server with eight GPUs and no persistence mode takes half of that to start its driver."""

ENGINE_S = 300.0
"""A plan of gigabytes from an SD card takes minutes."""

MARKS = {OK: "ok", NOTE: "note", WARNING: "WARNING", FAILURE: "FAILURE", SKIPPED: "-"}
COLOURS = {OK: "32", NOTE: "36", WARNING: "1;33", FAILURE: "1;31", SKIPPED: "2"}
MARK_WIDTH, NAME_WIDTH = 8, 22

DRIVER_FIX = "see dmesg for lines of NVRM or Xid, reboot, or install the driver again"
DISK_FIX = "check the disk and what is mounted: dmesg, mount"


@dataclass(frozen=True)
class Part:
    """Checks that share a child process.

    Attributes:
        name: of its line when it crashes or hangs; work, limit_s: see Child.
        error: the class whose exit code a crash or a hang gets; fix: what to do then.
        gpu: whether it does not matter where an ONNX model runs on the CPU.
        needs_model: whether it is left out when the model file or the driver failed before.
    """

    name: str
    work: Work
    limit_s: float = QUICK_S
    error: type[errors.EdgeappError] = errors.SystemRefusedError
    fix: str = "see dmesg"
    gpu: bool = False
    needs_model: bool = False


def parts(machine: Machine, settings: Settings, stop: Stop, talk: Talk) -> Iterator[Part]:
    """All that is looked at, in the order in which one thing needs the other."""
    yield Part("system", lambda _: system.system(machine))
    yield Part("processors", lambda _: system.processors(machine))
    yield Part("memory", lambda _: system.memory(machine))
    yield Part("clock", lambda _: system.clock())
    yield Part("limits", lambda _: system.limits())
    yield Part("library path", lambda _: system.library_path(machine))
    yield Part("container", lambda _: gpu.container(machine), gpu=True)
    yield Part("Jetson", lambda _: jetson.jetson(machine))
    yield Part("kernel driver", lambda _: gpu.kernel_driver(machine), gpu=True)
    yield Part("driver", lambda say: gpu.driver(machine, settings.device, say), DRIVER_S,
                  errors.NoGpuError, DRIVER_FIX, gpu=True)  # fmt: skip
    yield Part("device nodes", lambda _: gpu.device_nodes(machine), error=errors.NoGpuError, fix=DRIVER_FIX, gpu=True)
    yield Part("TensorRT inside", lambda _: gpu.tensorrt_inside(), gpu=True)
    yield Part("TensorRT of the system", lambda _: gpu.tensorrt_of_the_system(machine), gpu=True)
    on_disk = partial(Part, error=errors.InputOutputError, fix=DISK_FIX)
    yield on_disk("cache folder", lambda _: files.cache_folder())
    yield on_disk("temporary folder", lambda _: files.temporary_folder(machine))
    yield on_disk("current folder", lambda _: files.current_folder())
    if settings.engine is not None:
        from edgeapp.commands import trial

        yield on_disk("model file", lambda _: trial.model_file(settings), DRIVER_S)
        yield on_disk("model card", lambda _: trial.model_card(settings), DRIVER_S, needs_model=True)
        yield Part("engine", lambda say: trial.engine(settings, stop, talk, say), ENGINE_S, errors.DataError,
                   "copy or build the model again; if edgeapp demo fails too, install the driver again",
                   needs_model=True)  # fmt: skip


def doctor(as_json: bool, settings: Settings, stop: Stop, talk: Talk, machine: Machine | None = None) -> int:
    """Print a line for each check as it is done; never crashes, never hangs.

    JSON Lines have the keys schema, name, state, found, wanted, why, fix and exit_code, see data/doctor.schema.json:
    state is ok, note, warning, failure or skipped; exit_code is a number for failures only; texts may be "".

    Args:
        machine: where to look; this machine if None.

    Returns:
        0, 1 when there are warnings, or the exit code of the first failure: 69 without a driver or a GPU, unless
        --engine is an .onnx model.

    Raises:
        InputOutputError, CannotWriteError: standard output does not take it. Stopped: a signal came.
    """
    coloured = not as_json and sys.stdout is not None and sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    done: list[Check] = []
    for check in _checks(parts(machine or Machine(), settings, stop, talk), settings, stop, talk):
        done.append(check)
        tell([json.dumps({"schema": SCHEMA, **asdict(check)}) + "\n"] if as_json else _for_people(check, coloured))
    if not as_json:
        tell([_sum(done)])
    return exit_code(done)


def _checks(parts: Iterable[Part], settings: Settings, stop: Stop, talk: Talk) -> Iterator[Check]:
    """Each part in its child; where nothing needs a GPU, what is wrong with it is a note."""
    on_cpu = settings.engine is not None and settings.engine.lower().endswith(".onnx")
    reason = ""

    def heard(line: str) -> None:
        """Pass on what edgeapp itself says, of signatures and of plugins; what libraries print is a detail."""
        (talk.note if line.startswith("edgeapp: ") else talk.detail)(line)

    for part in parts:
        stop.check()
        if part.needs_model and reason:
            yield Check(part.name, SKIPPED, reason)
            continue
        child = Child(part.name, part.work, part.limit_s, part.error.exit_code, part.fix, heard)
        for check in child.checks(stop):
            if part.gpu and on_cpu and check.state in (WARNING, FAILURE):
                check = replace(check, state=NOTE, exit_code=None)
            if check.name in ("model file", "model card") and check.state == FAILURE:
                reason = f"the {check.name} cannot be used"
            yield check
        if part.gpu and child.hung and not on_cpu:
            reason = "the driver gives no answer"


def exit_code(checks: Sequence[Check]) -> int:
    """0, 1 when there are warnings only, or that of the first failure."""
    for check in checks:
        if check.exit_code is not None:
            return check.exit_code
    return 1 if any(check.state == WARNING for check in checks) else 0


def _for_people(check: Check, coloured: bool) -> list[str]:
    mark = f"{MARKS[check.state]:{MARK_WIDTH}s}"
    if coloured:
        mark = f"\x1b[{COLOURS[check.state]}m{mark}\x1b[0m"
    lines = [f"{mark}{check.name:{NAME_WIDTH}s} {_line(check.found)}\n"]
    bad = check.state in (WARNING, FAILURE)
    rows = (("wanted", check.wanted if bad else ""), ("why", check.why), ("fix", check.fix))
    return lines + [f"{'':{MARK_WIDTH}s}  {word}: {_line(text)}\n" for word, text in rows if text]


def _line(text: str) -> str:
    """In one line, whatever is in it."""
    return "".join(c if c.isprintable() else " " for c in text)


def _sum(checks: Sequence[Check]) -> str:
    """23 checks: 18 ok, 2 notes, 1 warning, 1 failure, 1 skipped"""
    counts = []
    for state in (OK, NOTE, WARNING, FAILURE, SKIPPED):
        count = sum(check.state == state for check in checks)
        plural = "s" if count != 1 and state in (NOTE, WARNING, FAILURE) else ""
        if count:
            counts.append(f"{count} {state}{plural}")
    return f"{len(checks)} checks: {', '.join(counts)}\n"
