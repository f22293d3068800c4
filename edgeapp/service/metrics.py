"""The state as Prometheus reads it: text format 0.0.4, from a file or over HTTP."""

from __future__ import annotations

import contextlib
import os
import resource
import time
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any

from edgeapp import paths
from edgeapp.service.latency import BUCKETS_S, Histogram
from edgeapp.service.state import State

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

FILE_MODE = 0o644
"""Those who collect the file, as node_exporter's textfile collector does, run as another user."""

Labels = Mapping[str, str]


def render(state: State) -> str:
    """All metrics of this moment."""
    told, latencies = state.figures(), state.latencies()
    total = latencies.pop("total")
    families = (
        _family("edgeapp_build_info", "gauge", "What this program is.", [(told["build"], 1)]),
        _family("edgeapp_model_info", "gauge", "The model that serves.", [(told["model"], 1)] if told["model"] else []),
        _family("edgeapp_ready", "gauge", "Whether inputs are worked on: 1 or 0.", [({}, int(told["ready"]))]),
        _family("edgeapp_inputs_total", "counter", "Inputs by their result.", _by("result", told["inputs"])),
        _family(
            "edgeapp_dead_letter_total", "counter", "Inputs put aside, by reason.",
            _by("reason", told["failed_by_reason"]),
        ),
        _family("edgeapp_queue_depth", "gauge", "Inputs that wait.", [({}, told["queue_depth"])]),
        _family("edgeapp_in_flight", "gauge", "Inputs that are being worked on.", [({}, told["in_flight"])]),
        _family(
            "edgeapp_inference_seconds", "histogram", "Inference of an input; its share of the batch.",
            _histogram({}, latencies.get("infer", Histogram())),
        ),
        _family(
            "edgeapp_stage_seconds", "histogram", "Each step of an input; its share of the batch.",
            [line for stage, times in latencies.items() for line in _histogram({"stage": stage}, times)],
        ),
        _family(
            "edgeapp_input_seconds", "histogram", "From taking an input until its result is safe.",
            _histogram({}, total),
        ),
        _family("edgeapp_reloads_total", "counter", "Reloads of the model by result.", _by("result", told["reloads"])),
        _family("edgeapp_gpu_errors_total", "counter", "CUDA errors by code.", _by("code", told["gpu_errors"])),
        _family(
            "edgeapp_disk_free_bytes", "gauge", "Free space where results are written.",
            [] if told["disk_free_bytes"] is None else [({}, told["disk_free_bytes"])],
        ),
        *(_family(name, kind, help_text, [({}, value)]) for name, kind, help_text, value in _process()),
    )  # fmt: skip
    return "".join(line for family in families for line in family)


def write_file(path: str | Path, text: str) -> None:
    """Replace a .prom file at once; call it every ten seconds or so.

    It is not brought to the disk: after a power cut nobody wants it.

    Raises:
        EdgeappError: it cannot be written; the file before it is as it was.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.part")  # always the same name: what a kill leaves is used again
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        with open(os.open(part, flags, FILE_MODE), "wb") as file:
            os.fchmod(file.fileno(), FILE_MODE)  # whatever the umask is
            file.write(text.encode())
        os.replace(part, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise paths.refusal(f"cannot write {paths.printable(str(path))}", error, writing=True) from error


def _family(name: str, kind: str, help_text: str, lines: list[tuple[Any, ...]]) -> Iterator[str]:
    """HELP, TYPE and the samples, each (labels, value) or (labels, value, what is added to the name)."""
    if not lines:
        return
    yield f"# HELP {name} {_escaped(help_text)}\n# TYPE {name} {kind}\n"
    for labels, value, *suffix in lines:
        inside = ",".join(f'{key}="{_escaped(text, quotes=True)}"' for key, text in labels.items())
        yield f"{name}{''.join(suffix)}{'{' if inside else ''}{inside}{'}' if inside else ''} {_number(value)}\n"


def _by(label: str, counts: Mapping[str, int]) -> list[tuple[Labels, int]]:
    return [({label: key}, n) for key, n in counts.items()]


def _histogram(labels: Labels, times: Histogram) -> list[tuple[Labels, float, str]]:
    """The samples of a histogram: cumulative counts, the last of them without a bound, sum and count."""
    bounds = [*map(_number, BUCKETS_S), "+Inf"]
    lines: list[tuple[Labels, float, str]] = [
        ({**labels, "le": bound}, n, "_bucket") for bound, n in zip(bounds, accumulate(times.counts), strict=True)
    ]
    return [*lines, (labels, times.sum_s, "_sum"), (labels, times.count, "_count")]


def _escaped(text: str, *, quotes: bool = False) -> str:
    text = text.replace("\\", "\\\\").replace("\n", "\\n")
    return text.replace('"', '\\"') if quotes else text


def _number(value: float) -> str:
    return "+Inf" if value == float("inf") else repr(value)


@cache
def _started_at() -> float | None:
    """When this process began, seconds of Unix time; found out once, for it must not move when the clock is set."""
    try:
        ticks = int(Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()[19])  # proc(5): field 22
    except (OSError, ValueError, IndexError):
        return None
    age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return round(time.time() - age_s, 2)


def _process() -> Iterator[tuple[str, str, str, float]]:
    """Name, kind, help and value of what Prometheus' own clients tell of a process, as far as /proc tells it."""
    if (started_at := _started_at()) is not None:
        yield "process_start_time_seconds", "gauge", "Start of the process, Unix time.", started_at
    usage = resource.getrusage(resource.RUSAGE_SELF)
    yield "process_cpu_seconds_total", "counter", "CPU time, user and system.", usage.ru_utime + usage.ru_stime
    with contextlib.suppress(OSError, ValueError, IndexError):
        fields = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
        yield "process_resident_memory_bytes", "gauge", "Resident memory.", int(fields[21]) * resource.getpagesize()
        yield "process_threads", "gauge", "Threads of the operating system.", int(fields[17])
    with contextlib.suppress(OSError):
        yield "process_open_fds", "gauge", "Open file descriptors.", len(os.listdir("/proc/self/fd")) - 1
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    yield "process_max_fds", "gauge", "Limit of open file descriptors.", most if most >= 0 else float("inf")
