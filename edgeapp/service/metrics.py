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

from edgeapp import paths
from edgeapp.service.latency import BUCKETS_S, Histogram
from edgeapp.service.state import State

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

FILE_MODE = 0o644
"""Those who collect the file, as node_exporter's textfile collector does, run as another user."""

BOUNDS = (*map(repr, BUCKETS_S), "+Inf")
THREADS, START_TIME, RSS = 17, 19, 21
"""Places in _stat(): fields 20, 22 and 24 of proc(5), which begins to count before the name."""


def render(state: State) -> str:
    """All metrics of this moment."""
    told, latencies = state.figures(), state.latencies()
    total = latencies.pop("total")
    infer = latencies.get("infer", Histogram())
    families = (
        _gauge("edgeapp_build_info", "What this program is.", 1, told["build"]),
        _gauge("edgeapp_model_info", "The model that serves.", 1 if told["model"] else None, told["model"]),
        _gauge("edgeapp_ready", "Whether inputs are worked on: 1 or 0.", int(told["ready"])),
        _counters("edgeapp_inputs_total", "Inputs by their result.", "result", told["inputs"]),
        _counters("edgeapp_dead_letter_total", "Inputs put aside, by reason.", "reason", told["failed_by_reason"]),
        _gauge("edgeapp_queue_depth", "Inputs that wait.", told["queue_depth"]),
        _gauge("edgeapp_in_flight", "Inputs that are being worked on.", told["in_flight"]),
        _histograms("edgeapp_inference_seconds", "Inference of an input, its share of the batch.", "", {"": infer}),
        _histograms("edgeapp_stage_seconds", "Steps of an input, its share of the batch.", "stage", latencies),
        _histograms("edgeapp_input_seconds", "From taking an input until its result is safe.", "", {"": total}),
        _counters("edgeapp_reloads_total", "Reloads of the model by result.", "result", told["reloads"]),
        _counters("edgeapp_gpu_errors_total", "CUDA errors by code.", "code", told["gpu_errors"]),
        *_publishing(told["publishing"]),
        _gauge("edgeapp_disk_free_bytes", "Free space where results are written.", told["disk_free_bytes"]),
        *_process(),
    )
    return "".join(families)


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


def _publishing(receivers: Mapping[str, Mapping[str, int]]) -> Iterator[str]:
    """What became of the results that are sent on."""
    for name, key, help_text in (
        ("edgeapp_published_total", "published", "Results that a receiver has acknowledged."),
        ("edgeapp_publish_refused_total", "refused", "Results that a receiver does not want."),
        ("edgeapp_publish_failures_total", "failures", "Attempts to send results that failed."),
    ):
        yield _counters(name, help_text, "to", {kind: told[key] for kind, told in receivers.items()})
    waiting = [f'edgeapp_publish_waiting_bytes{{{_label("to", kind)}}} {told["waiting_bytes"]}'
               for kind, told in receivers.items()]  # fmt: skip
    yield _family("edgeapp_publish_waiting_bytes", "gauge", "Results that are not sent yet.", waiting)


def _family(name: str, kind: str, help_text: str, samples: list[str]) -> str:
    """HELP, TYPE and the samples; nothing when there are none."""
    return "\n".join([f"# HELP {name} {help_text}", f"# TYPE {name} {kind}", *samples, ""]) if samples else ""


def _gauge(name: str, help_text: str, value: float | None, labels: Mapping[str, str] | None = None) -> str:
    inside = ",".join(_label(key, text) for key, text in (labels or {}).items())
    braces = f"{{{inside}}}" if inside else ""
    return _family(name, "gauge", help_text, [] if value is None else [f"{name}{braces} {_number(value)}"])


def _counters(name: str, help_text: str, label: str, counts: Mapping[str, int]) -> str:
    return _family(name, "counter", help_text, [f"{name}{{{_label(label, key)}}} {n}" for key, n in counts.items()])


def _histograms(name: str, help_text: str, label: str, histograms: Mapping[str, Histogram]) -> str:
    """One for each value of the label, or one alone without any: cumulative counts, sum, count."""
    samples = []
    for value, times in histograms.items():
        inside = _label(label, value) if label else ""
        first, alone = (f"{inside},", f"{{{inside}}}") if inside else ("", "")
        counts = list(accumulate(times.counts))
        samples += [f'{name}_bucket{{{first}le="{bound}"}} {n}' for bound, n in zip(BOUNDS, counts, strict=True)]
        samples += [f"{name}_sum{alone} {_number(times.sum_s)}", f"{name}_count{alone} {counts[-1]}"]
    return _family(name, "histogram", help_text, samples)


def _label(name: str, value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
    return f'{name}="{escaped}"'


def _number(value: float) -> str:
    return "+Inf" if value == float("inf") else repr(value)


@cache
def _started_at() -> float | None:
    """When this process began, seconds of Unix time; found out once, for it must not move when the clock is set."""
    try:
        ticks = int(_stat()[START_TIME])
    except (OSError, ValueError, IndexError):
        return None
    age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return round(time.time() - age_s, 2)


def _process() -> Iterator[str]:
    """What Prometheus' own clients tell of a process, as far as /proc tells it."""
    yield _gauge("process_start_time_seconds", "Start of the process, Unix time.", _started_at())
    usage = resource.getrusage(resource.RUSAGE_SELF)
    cpu_s = usage.ru_utime + usage.ru_stime
    yield _family("process_cpu_seconds_total", "counter", "CPU time.", [f"process_cpu_seconds_total {cpu_s}"])
    with contextlib.suppress(OSError, ValueError, IndexError):
        fields = _stat()
        rss = int(fields[RSS]) * resource.getpagesize()
        yield _gauge("process_resident_memory_bytes", "Resident memory.", rss)
        yield _gauge("process_threads", "Threads of the operating system.", int(fields[THREADS]))
    with contextlib.suppress(OSError):
        yield _gauge("process_open_fds", "Open file descriptors.", len(os.listdir("/proc/self/fd")) - 1)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    yield _gauge("process_max_fds", "Limit of open file descriptors.", most if most >= 0 else float("inf"))


def _stat() -> list[bytes]:
    """The fields of /proc/self/stat after the name, which may hold anything."""
    return Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
