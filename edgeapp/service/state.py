"""What the service is doing, for all who ask: systemd, `edgeapp ctl status`, Prometheus, the page."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Literal, get_args

from edgeapp import __version__, paths
from edgeapp.errors import EdgeappError
from edgeapp.service.latency import Histogram

if TYPE_CHECKING:
    from edgeapp.records import Result

Hold = Literal["GPU lost", "draining", "disk full", "paused", "waiting for the GPU", "warming up", "starting"]
"""Why the service is not ready, the gravest first; several can hold at once."""

HOLDS: tuple[Hold, ...] = get_args(Hold)

STAGES = {"decode": "decode", "preprocess": "pre", "h2d": "h2d", "infer": "infer", "d2h": "d2h", "postprocess": "post",
          "write": "write"}  # fmt: skip
"""Names of a result's times -> names in the metrics, in the order of the work."""

MOST_KEPT = 20
MOST_THUMBNAILS = 60
MOST_LABELS = 32
"""Distinct reasons, codes and outcomes that are counted by name; what comes after them counts as OTHER."""

OTHER = "other"
MOST_LABEL, MOST_TEXT = 64, 500
"""Characters."""

SHOWN_EVERY_S = 0.25
"""Of a quick succession of results one is shown in this time, and the last: the page must have time to fetch them."""

WATCHED_S = 10.0
"""So long after somebody looked at the page thumbnails are made."""

RECENT_S = 60
RING_S = 64


@dataclass
class Published:
    """What became of the results that are sent on to a receiver.

    Attributes:
        published: results that it has acknowledged.
        refused: those that it does not want, and that were left out.
        failures: attempts that failed, each to be made again.
        waiting_bytes: results that are not sent yet.
        down: the last attempt failed.
    """

    published: int = 0
    refused: int = 0
    failures: int = 0
    waiting_bytes: int = 0
    down: bool = False


class State:
    """Counters, gauges and the latest results and errors; any thread may call, thousands of times a second.

    A new State is held by "starting".

    Args:
        build: what `edgeapp_build_info` tells beside the version, {"commit": ...}.
        clock: seconds that never jump.

    Attributes:
        queue_depth: inputs that wait. in_flight: those that are being worked on. Set them, whenever it is convenient.
        disk_free_bytes: of the folder that results are written to; None until it is set.
        model: file, sha256, runtime ... of what serves now, keys being names of labels. Replace it as a whole.
        publishing: webhook, mqtt -> what became of the results there.
    """

    def __init__(self, build: Mapping[str, str] | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.build = {"version": __version__, "python": ".".join(map(str, sys.version_info[:3])), **(build or {})}
        self.queue_depth = self.in_flight = 0
        self.disk_free_bytes: int | None = None
        self.model: Mapping[str, str] = {}
        self.publishing: dict[str, Published] = {}
        self._clock = clock
        self._lock = threading.Lock()
        self._started_at, self._started_s = time.time(), clock()
        self._holds: dict[str, str] = {"starting": ""}
        self._reloading = False
        self._beat_s: float | None = None
        self._inputs = {"done": 0, "failed": 0}
        self._dead_letters: Counter[str] = Counter()
        self._gpu_errors: Counter[str] = Counter()
        self._reloads: Counter[str] = Counter({"done": 0, "failed": 0})
        self._last_reload: dict[str, Any] | None = None
        self._latencies: dict[str, Histogram] = {}
        self._total = Histogram()
        self._marks: deque[tuple[float, dict[str, Histogram]]] = deque([(self._started_s, {})], maxlen=2)
        self._seconds, self._second = [0] * RING_S, int(self._started_s)
        self._results: deque[_Shown] = deque(maxlen=MOST_KEPT)
        self._errors: deque[dict[str, Any]] = deque(maxlen=MOST_KEPT)
        self._thumbnails: OrderedDict[int, bytes] = OrderedDict()
        self._watched_s = self._thumbnail_s = float("-inf")

    # --- readiness ---------------------------------------------------------------------------------------------------

    def hold(self, reason: Hold, detail: str = "") -> bool:
        """Be not ready for this reason until it is released; whether it is a new one.

        Args:
            detail: numbers or names that belong to it; may change from call to call.
        """
        if reason not in HOLDS:
            raise ValueError(f"{reason!r} is none of {', '.join(HOLDS)}")
        with self._lock:
            new = reason not in self._holds
            self._holds[reason] = _text(detail)
        return new

    def release(self, *reasons: Hold) -> bool:
        """These hold no longer; whether one of them did."""
        with self._lock:
            return any([self._holds.pop(reason, None) is not None for reason in reasons])

    def reloading(self, under_way: bool) -> None:
        """A new model is loaded beside the present one, which goes on: nothing changes in being ready."""
        self._reloading = under_way

    @property
    def ready(self) -> bool:
        return not self._holds

    @property
    def reason(self) -> str:
        """Why it is not ready: the gravest reason with its detail; "" when it is."""
        with self._lock:
            return next((_told(name, self._holds[name]) for name in HOLDS if name in self._holds), "")

    def beat(self) -> None:
        """The loop that does the work has moved; call it after work, and while idle."""
        self._beat_s = self._clock()

    def still_s(self) -> float | None:
        """For how long it has not moved, seconds; None before it began."""
        beat_s = self._beat_s
        return None if beat_s is None else max(0.0, self._clock() - beat_s)

    # --- what happens ------------------------------------------------------------------------------------------------

    def done(
        self,
        result: Result,
        seconds: float,
        stages_s: Mapping[str, float] | None = None,
        thumbnail: bytes | None = None,
    ) -> None:
        """An input is finished and its result is safe.

        Args:
            result: as the pipeline gave it; its picture and tensors are not kept.
            seconds: from the moment at which it was taken.
            stages_s: seconds of stages that its times_ms lack, {"write": 0.002}.
            thumbnail: a small JPEG, if `wants_thumbnail` said so.
        """
        now = self._clock()
        with self._lock:
            self._inputs["done"] += 1
            self._count(now)
            self._total.add(seconds)
            for stage, ms in result.times_ms.items():
                self._latency(stage, ms / 1e3)
            for stage, stage_s in (stages_s or {}).items():
                self._latency(stage, stage_s)
            self._show(_Shown(self._inputs["done"], now, seconds, result, thumbnail is not None))
            if thumbnail is not None:
                self._thumbnails[self._inputs["done"]] = thumbnail
                if len(self._thumbnails) > MOST_THUMBNAILS:
                    self._thumbnails.popitem(last=False)

    def failed(self, name: str, reason: str, error: EdgeappError) -> None:
        """An input was given up and put aside.

        Args:
            name: its path.
            reason: a word for its kind, from a small set: "damaged", "too large", "poison" ...
        """
        with self._lock:
            self._inputs["failed"] += 1
            self._count(self._clock())
            _add(self._dead_letters, reason)
        self.error(error, name)

    def error(self, error: EdgeappError, name: str = "") -> None:
        """Something went wrong, with an input or without; it is shown among the latest errors."""
        kept = {
            "when": _utc(time.time()),
            "name": _text(name),
            "what": _text(error.what),
            "why": _text(error.why),
            "fix": _text(error.fix),
        }
        with self._lock:
            self._errors.append(kept)

    def gpu_error(self, code: int | str) -> None:
        """CUDA answered with this code."""
        with self._lock:
            _add(self._gpu_errors, str(code))

    def reload(self, outcome: Literal["done", "failed"], detail: str = "") -> None:
        """A reload is over; `failed` means that the model before it serves on."""
        with self._lock:
            self._reloads[outcome] += 1
            self._last_reload = {"when": _utc(time.time()), "result": outcome, "detail": _text(detail)}

    # --- pictures for those who look ---------------------------------------------------------------------------------

    def watched(self) -> None:
        """Somebody looks at the page."""
        self._watched_s = self._clock()

    def wants_thumbnail(self) -> bool:
        """Whether the next result should come with one: somebody looks, and the last one is a moment old."""
        now = self._clock()
        if now - self._watched_s > WATCHED_S or now - self._thumbnail_s < SHOWN_EVERY_S:
            return False
        self._thumbnail_s = now
        return True

    def thumbnail(self, number: int) -> bytes | None:
        """The JPEG of the result with this id, while it is kept."""
        with self._lock:
            return self._thumbnails.get(number)

    # --- what is told ------------------------------------------------------------------------------------------------

    def figures(self) -> dict[str, Any]:
        """Counters and gauges, JSON-able."""
        now = self._clock()
        with self._lock:
            rates = self._rates(now)
            return {
                "ready": not self._holds,
                "reasons": [{"reason": name, "detail": self._holds[name]} for name in HOLDS if name in self._holds],
                "reloading": self._reloading,
                "uptime_s": round(now - self._started_s, 1),
                "inputs": dict(self._inputs),
                "failed_by_reason": dict(self._dead_letters),
                "gpu_errors": dict(self._gpu_errors),
                "reloads": dict(self._reloads),
                "rate_1s": rates[-1],
                "rate_1m": round(sum(rates) / len(rates), 2),
                "rates": rates,
                "queue_depth": self.queue_depth,
                "in_flight": self.in_flight,
                "disk_free_bytes": self.disk_free_bytes,
                "publishing": {kind: asdict(told) for kind, told in self.publishing.items()},
                "model": {key: _text(str(value)) for key, value in self.model.items()},
                "build": {key: _text(str(value)) for key, value in self.build.items()},
            }

    def latencies(self) -> dict[str, Histogram]:
        """Since the start, of each stage under its name in the metrics, in order; "total" from taken to safe."""
        with self._lock:
            return self._copied()

    def snapshot(self) -> dict[str, Any]:
        """All that is known, JSON-able; `stages` are of the last one or two minutes."""
        told = self.figures()
        now, wall = self._clock(), time.time()
        with self._lock:
            self._mark(now)
            recent = _since(self._copied(), self._marks[0][1])
            results, errors, reload = list(self._results), list(self._errors), self._last_reload
        return {
            "state": self._word(),
            "reason": self.reason,
            **told,
            "now": _utc(wall),
            "started_at": _utc(self._started_at),
            "last_reload": reload,
            "stages": [_summary(stage, times) for stage, times in recent.items() if times.count],
            "results": [shown.told(wall - (now - shown.at_s)) for shown in reversed(results)],
            "errors": errors[::-1],
        }

    def status_text(self) -> str:
        """A line for STATUS=."""
        told = self.figures()
        inputs = told["inputs"]
        text = f"{self._word()}: {told['rate_1s']}/s, {told['queue_depth']} queued, {inputs['done']} done"
        if inputs["failed"]:
            text += f", {inputs['failed']} failed"
        return text

    def _word(self) -> str:
        reason = self.reason
        return f"not ready, {reason}" if reason else "ready, reloading" if self._reloading else "ready"

    # --- under the lock ----------------------------------------------------------------------------------------------

    def _latency(self, stage: str, seconds: float) -> None:
        times = self._latencies.get(stage)
        if times is None:
            if stage not in STAGES:
                raise ValueError(f"{stage!r} is none of {', '.join(STAGES)}")
            times = self._latencies[stage] = Histogram()
        times.add(seconds)

    def _copied(self) -> dict[str, Histogram]:
        found = {told: self._latencies[stage].copy() for stage, told in STAGES.items() if stage in self._latencies}
        return found | {"total": self._total.copy()}

    def _mark(self, now: float) -> None:
        """Note every minute where the histograms stand: what is new since the mark before last is recent."""
        since_s = now - self._marks[-1][0]
        if since_s >= RECENT_S:
            mark = now, self._copied()
            # All that was counted since the last mark was so within a minute of it, or there were a later one.
            self._marks.extend([mark, mark] if since_s >= 2 * RECENT_S else [mark])

    def _count(self, now: float) -> None:
        self._turn(now)
        self._seconds[self._second % RING_S] += 1
        self._mark(now)

    def _turn(self, now: float) -> None:
        """Empty the seconds that have passed since the last count."""
        second = int(now)
        for passed in range(max(self._second + 1, second - RING_S + 1), second + 1):
            self._seconds[passed % RING_S] = 0
        self._second = max(self._second, second)

    def _rates(self, now: float) -> list[int]:
        """Inputs in each of the last seconds, at most 60, the latest last; the present one is not over and left out."""
        self._turn(now)
        age = min(RECENT_S, max(1, self._second - int(self._started_s)))
        return [self._seconds[second % RING_S] for second in range(self._second - age, self._second)]

    def _show(self, shown: _Shown) -> None:
        """Keep a result in place of the last one, when that one has hardly been there."""
        kept = self._results
        if len(kept) > 1 and not kept[-1].has_thumbnail and kept[-1].at_s - kept[-2].at_s < SHOWN_EVERY_S:
            kept.pop()
        kept.append(shown)


class _Shown:
    """A result as it is kept for showing: what was found, no pixels."""

    __slots__ = ("at_s", "classes", "detections", "has_thumbnail", "name", "number", "seconds", "tensors")

    def __init__(self, number: int, at_s: float, seconds: float, result: Result, has_thumbnail: bool) -> None:
        self.number, self.at_s, self.seconds, self.has_thumbnail = number, at_s, seconds, has_thumbnail
        self.name = result.frame.path
        self.detections, self.classes = result.detections, result.classes
        self.tensors = len(result.tensors) if result.task == "raw" else None

    def told(self, when: float) -> dict[str, Any]:
        return {
            "id": self.number,
            "name": _text(self.name),
            "when": _utc(when),
            "seconds": round(self.seconds, 4),
            "found": _text(self._found()),
            "thumbnail": f"/thumbnail/{self.number}.jpg" if self.has_thumbnail else None,
        }

    def _found(self) -> str:
        """As in 2 person, 1 dog; dog 0.93; 3 tensors."""
        if self.tensors is not None:
            return f"{self.tensors} tensor{'' if self.tensors == 1 else 's'}"
        if self.classes:
            return f"{self.classes[0].label} {self.classes[0].score:.2f}"
        counts = Counter(found.label for found in self.detections)
        return ", ".join(f"{n} {label}" for label, n in counts.most_common(8)) or "nothing"


def _summary(stage: str, times: Histogram) -> dict[str, Any]:
    return {
        "stage": stage,
        "count": times.count,
        "mean_ms": round(times.sum_s / times.count * 1e3, 3),
        **{f"p{p}_ms": round(times.percentile_s(p) * 1e3, 3) for p in (50, 90, 99)},
    }


def _since(now: Mapping[str, Histogram], then: Mapping[str, Histogram]) -> dict[str, Histogram]:
    return {stage: times.since(then[stage]) if stage in then else times for stage, times in now.items()}


def _add(counter: Counter[str], label: str) -> None:
    label = _text(label)[:MOST_LABEL]
    counter[label if label in counter or len(counter) < MOST_LABELS else OTHER] += 1


def _told(reason: str, detail: str) -> str:
    return f"{reason} ({detail})" if detail else reason


def _text(text: str) -> str:
    """One line of valid UTF-8 and of bounded length."""
    text = paths.printable(text[:MOST_TEXT])
    return text if len(text) <= MOST_TEXT else text[: MOST_TEXT - 1] + "…"


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"
