"""What the service knows of itself, and the metrics made of it."""

from __future__ import annotations

import io
import json
import math
import os
import resource
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support import ROOT, Clock

import edgeapp
from edgeapp.errors import CannotWriteError, DataError, EdgeappError
from edgeapp.records import Classification, Detection, Frame, Result
from edgeapp.service import metrics
from edgeapp.service.latency import BUCKETS_S, Histogram
from edgeapp.service.state import HOLDS, MOST_KEPT, MOST_LABELS, MOST_THUMBNAILS, State
from edgeapp.service.thumbnails import thumbnail


@pytest.fixture
def state(clock: Clock) -> State:
    return State({"commit": "abc"}, clock)


def result_of(name: str = "a.jpg", *labels: str, infer_ms: float = 2.0) -> Result:
    found = [Detection(0, label, 0.9, (1.0, 2.0, 30.0, 40.0)) for label in labels]
    return Result(Frame(name), "detect", detections=found, times_ms={"decode": 9.0, "infer": infer_ms})


ERROR = DataError("cannot read b.jpg", "it is cut short", "send it again")


# --- readiness -------------------------------------------------------------------------------------------------------


def test_new_state_is_starting(state: State) -> None:
    """Nothing is ready by itself."""
    assert not state.ready
    assert state.reason == "starting"
    assert state.status_text() == "not ready, starting: 0/s, 0 queued, 0 done"


def test_gravest_reason_is_told_until_all_are_released(state: State) -> None:
    """Several can hold at once; who frees the disk does not end a pause."""
    assert state.hold("paused")
    assert state.hold("disk full", "12 MB free")
    assert not state.hold("disk full", "11 MB free"), "it is no news"
    assert state.release("starting")
    assert not state.release("starting")
    assert state.reason == "disk full (11 MB free)"
    assert [held["reason"] for held in state.snapshot()["reasons"]] == ["disk full", "paused"]
    state.release("disk full")
    assert state.reason == "paused"
    state.release("paused", "draining")
    assert state.ready
    assert state.reason == ""


def test_reload_keeps_ready(state: State) -> None:
    """The model before it serves on."""
    state.release("starting")
    state.reloading(True)
    assert state.ready
    assert state.snapshot()["state"] == "ready, reloading"
    state.reloading(False)
    state.reload("failed", "its signature is wrong")
    told = state.snapshot()
    assert told["state"] == "ready"
    assert told["reloads"] == {"done": 0, "failed": 1}
    assert told["last_reload"]["detail"] == "its signature is wrong"


def test_unknown_words_are_mistakes_of_ours(state: State) -> None:
    """A misspelt reason or stage would stay unseen for ever."""
    with pytest.raises(ValueError, match="disk full"):
        state.hold("full disk")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="postprocess"):
        state.done(result_of(), 1.0, {"after": 1.0})
    assert HOLDS[0] == "GPU lost"


def test_beat_tells_how_long_the_loop_rests(state: State, clock: Clock) -> None:
    """None before its first."""
    assert state.still_s() is None
    state.beat()
    clock.now += 31
    assert state.still_s() == 31


# --- counters and rates ----------------------------------------------------------------------------------------------


def test_counters_and_rates(state: State, clock: Clock) -> None:
    """100/s for 90 s: the last second, the last minute, each second."""
    for n in range(9000):
        state.done(result_of(f"{n}.jpg"), 0.05)
        clock.now += 0.01
    state.failed("b.jpg", "damaged", ERROR)
    clock.now = math.floor(clock.now) + 0.5
    told = state.snapshot()
    assert told["inputs"] == {"done": 9000, "failed": 1}
    assert told["failed_by_reason"] == {"damaged": 1}
    assert told["rate_1s"] == 100
    assert told["rate_1m"] == pytest.approx(100, abs=1)
    assert len(told["rates"]) == 60
    clock.now += 30
    assert state.snapshot()["rate_1s"] == 0
    assert state.snapshot()["rate_1m"] == pytest.approx(50, abs=2)
    clock.now += 3600
    assert state.snapshot()["rates"] == [0] * 60


def test_rate_of_a_young_service_is_over_its_age(state: State, clock: Clock) -> None:
    """Eight inputs in the first two seconds are four a second."""
    for _ in range(8):
        state.done(result_of(), 0.05)
        clock.now += 0.25
    assert state.snapshot()["rate_1m"] == 4


def test_stages_tell_of_the_last_minutes_only(state: State, clock: Clock) -> None:
    """Yesterday's latencies are in the metrics and no longer in what a person sees."""
    for _ in range(100):
        state.done(result_of(infer_ms=400.0), 0.5)
    for _ in range(130):
        clock.now += 1
        state.done(result_of(infer_ms=1.5), 0.02, {"write": 0.004})
    stages = {stage["stage"]: stage for stage in state.snapshot()["stages"]}
    assert list(stages) == ["decode", "infer", "write", "total"]
    assert 1 <= stages["infer"]["p50_ms"] <= 2
    assert 1 <= stages["infer"]["p99_ms"] <= 2
    assert 60 <= stages["infer"]["count"] <= 120
    assert state.latencies()["infer"].count == 230
    clock.now += 700
    assert state.snapshot()["stages"] == []


def test_histogram_percentiles_are_within_their_bucket() -> None:
    """Of 10,000 log-normal durations each percentile falls into the bucket of the true one."""
    values = np.random.default_rng(7).lognormal(-5, 1, 10_000)
    times = Histogram()
    for value in values:
        times.add(float(value))
    bounds = (0.0, *BUCKETS_S)
    for p in (1, 50, 90, 99, 99.9):
        true = float(np.percentile(values, p, method="inverted_cdf"))
        place = int(np.searchsorted(BUCKETS_S, true))
        assert bounds[place] <= times.percentile_s(p) <= bounds[place + 1]
    assert times.sum_s == pytest.approx(values.sum())
    for none in (math.nan, math.inf, -1.0):
        times.add(none)
    assert times.count == 10_000
    assert Histogram().percentile_s(50) == 0


# --- latest results and errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("result", "found"),
    [
        (result_of("a.jpg", "dog", "person", "person"), "2 person, 1 dog"),
        (result_of("a.jpg"), "nothing"),
        (Result(Frame("a"), "classify", classes=[Classification(1, "cat", 0.987)]), "cat 0.99"),
        (Result(Frame("a"), "raw", tensors={"x": np.zeros(1), "y": np.zeros(1)}), "2 tensors"),
        (result_of("a.jpg", "<b>\n"), "1 <b>\\n"),
    ],
    ids=["objects", "nothing", "class", "tensors", "label with markup"],
)
def test_result_has_a_line(state: State, result: Result, found: str) -> None:
    """What was found, in a few words."""
    state.done(result, 0.0123456)
    (shown,) = state.snapshot()["results"]
    assert shown["found"] == found
    assert shown["seconds"] == 0.0123
    assert shown["thumbnail"] is None


def test_latest_results_are_spread_over_time_and_hold_the_last(state: State, clock: Clock) -> None:
    """At 5,000/s a person sees some of each moment; of slow ones every one."""
    for n in range(50_000):
        state.done(result_of(f"{n}.jpg"), 0.01)
        clock.now += 1 / 5000
    results = state.snapshot()["results"]
    assert len(results) == MOST_KEPT
    assert results[0]["name"] == "49999.jpg"
    assert int(results[-1]["name"][:-4]) < 50_000 - 3 * 5000
    for n in range(MOST_KEPT):
        clock.now += 1
        state.done(result_of(f"slow{n}.jpg"), 0.01)
    names = [shown["name"] for shown in state.snapshot()["results"]]
    assert names == [f"slow{n}.jpg" for n in reversed(range(MOST_KEPT))]


def test_thumbnails_are_wanted_while_somebody_looks(state: State, clock: Clock) -> None:
    """Nobody looks: none is made. Somebody does: four a second."""
    assert not state.wants_thumbnail()
    state.watched()
    asked = 0
    for _ in range(1500):  # 15 s
        asked += state.wants_thumbnail()
        clock.now += 0.01
    assert 35 <= asked <= 41


def test_thumbnail_stays_while_it_is_shown(state: State, clock: Clock) -> None:
    """Between two looks of the page none of those that it knows of goes away; memory is bounded."""
    for n in range(20_000):
        state.done(result_of(f"{n}.jpg"), 0.01, thumbnail=b"jpeg%d" % n if n % 250 == 0 else None)
        clock.now += 0.001
    shown = [result for result in state.snapshot()["results"] if result["thumbnail"]]
    assert len(shown) >= MOST_KEPT - 1
    for result in shown:
        assert state.thumbnail(result["id"]) == b"jpeg%d" % (result["id"] - 1)
    assert sum(state.thumbnail(n) is not None for n in range(20_001)) <= MOST_THUMBNAILS
    assert state.thumbnail(10**17) is None


@pytest.mark.parametrize("size_wh", [(4000, 3000), (1, 1), (3, 2000), (240, 180), (5000, 7)], ids=str)
def test_thumbnail_is_a_small_jpeg(size_wh: tuple[int, int]) -> None:
    """Boxes are those of the whole picture, which may have been decoded smaller than it is."""
    image = Image.new("RGB", size_wh, (10, 20, 200))
    whole = (size_wh[0] * 2, size_wh[1] * 2)
    found = [Detection(0, "x", 0.9, (whole[0] * 0.25, whole[1] * 0.25, whole[0] * 0.75, whole[1] * 0.75)),
             Detection(0, "y", 0.9, (-50.0, 9e9, 3.0, -9e9)),
             Detection(0, "z", 0.9, (math.nan, math.inf, -math.inf, math.nan))]  # fmt: skip
    jpeg = thumbnail(Result(Frame("a", image=image, picture_wh=whole), "detect", detections=found))
    assert jpeg is not None
    assert len(jpeg) < 20_000
    small = Image.open(io.BytesIO(jpeg))
    assert small.format == "JPEG"
    assert 0 < small.width <= 240
    assert 0 < small.height <= 180
    if size_wh == (4000, 3000):
        pixels = np.asarray(small, np.int32)
        yellow = np.flatnonzero(pixels[90, :, 0] > pixels[90, :, 2])
        assert {*yellow} & {59, 60, 61}, "the left side of the box"
        assert {*yellow} & {179, 180, 181}, "its right side"
        assert not {*yellow} & {*range(70, 170)}, "inside of it"


def test_tensors_have_no_thumbnail() -> None:
    """There is nothing to show."""
    assert thumbnail(Result(Frame("a.npz"), "raw")) is None


def test_latest_errors_have_their_parts(state: State) -> None:
    """The newest first, twenty at most."""
    for n in range(30):
        state.failed(f"{n}.jpg", "damaged", ERROR)
    state.error(EdgeappError("the disk is full"))
    first, second, *others = state.snapshot()["errors"]
    assert (first["what"], first["name"]) == ("the disk is full", "")
    assert {key: second[key] for key in ("name", "what", "why", "fix")} == {
        "name": "29.jpg", "what": ERROR.what, "why": ERROR.why, "fix": ERROR.fix,
    }  # fmt: skip
    assert len(others) == MOST_KEPT - 2


EVIL = ["<script>alert(1)</script>", "a\nb", "caf\udce9", "\ud800", "\0", "\"'\\", "x" * 100_000, "\x1b[2J", "\u202e"]


def fill_with(state: State, text: str) -> None:
    """Put a text wherever one can go."""
    state.hold("disk full", text)
    state.model = {"file": text, "sha256": text}
    state.done(result_of(text, text), 0.01)
    state.failed(text, text, DataError(text, text, text))
    state.gpu_error(text)
    state.reload("failed", text)


@pytest.mark.parametrize("text", EVIL, ids=ascii)
def test_snapshot_is_json_whatever_names_are(state: State, text: str) -> None:
    """Valid UTF-8, one line each, of bounded length."""
    fill_with(state, text)
    told = json.dumps(state.snapshot(), ensure_ascii=False, allow_nan=False)
    assert len(told.encode()) < 20_000
    assert told.isprintable()


def test_many_labels_become_others(state: State) -> None:
    """A label that follows the data would fill every Prometheus that reads it."""
    for n in range(1000):
        state.failed("a", f"reason {n}", ERROR)
        state.gpu_error(n)
    told = state.snapshot()
    for counts in (told["failed_by_reason"], told["gpu_errors"]):
        assert len(counts) == MOST_LABELS + 1
        assert counts["other"] == 1000 - MOST_LABELS


# --- threads, speed, memory ------------------------------------------------------------------------------------------


def test_eight_threads_lose_no_count() -> None:
    """Writers and readers side by side, real clock."""
    state = State()

    def write(number: int) -> None:
        for n in range(2000):
            state.done(result_of(f"{number}-{n}", "a"), 0.01, {"write": 0.001}, b"x" if n % 100 == 0 else None)
            if n % 10 == 0:
                state.failed("b", "damaged", ERROR)
                state.hold("paused", str(n))
                state.release("paused")

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        json.dumps(state.snapshot())
        metrics.render(state)
        assert state.status_text()
    told = state.snapshot()
    assert told["inputs"] == {"done": 16_000, "failed": 1600}
    assert {stage: times.count for stage, times in state.latencies().items()} == dict.fromkeys(
        ("decode", "infer", "write", "total"), 16_000
    )
    assert state.reason == "starting"


def test_a_million_inputs_leave_no_memory() -> None:
    """Nor do they take long: some microseconds each, of the 200 that there are at 5,000/s."""
    code = (
        "import resource, sys, time\nsys.path.insert(0, 'tests')\n"
        "from test_state import ERROR, State, result_of\n"
        "state, result = State(), result_of('a.jpg', 'dog', 'cat')\n"
        "def work(count):\n"
        "    for n in range(count):\n"
        "        state.done(result, 0.01, {'write': 0.001}, b'x' * 5000 if n % 1000 == 0 else None)\n"
        "        if n % 100 == 0:\n            state.failed(f'{n}.jpg', f'{n}', ERROR)\n"
        "work(100_000)\nbefore = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\nstarted = time.process_time()\n"
        "work(900_000)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, time.process_time() - started)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    grown_kb, cpu_s = map(float, done.stdout.split())
    assert grown_kb < 1024
    assert cpu_s / 900_000 < 50e-6


# --- metrics ---------------------------------------------------------------------------------------------------------


def parsed(text: str) -> dict[str, Any]:
    """Families by name, by the parser of Prometheus' own client."""
    from prometheus_client.parser import text_string_to_metric_families

    families = list(text_string_to_metric_families(text))
    assert len({family.name for family in families}) == len(families), "each family once"
    return {family.name: family for family in families}


def values(family: Any) -> dict[tuple[str, ...], float]:
    return {(sample.name, *sample.labels.values()): sample.value for sample in family.samples}


def test_metrics_are_those_of_the_state(state: State, clock: Clock) -> None:
    """Every number is found again, under its name."""
    state.release("starting")
    state.queue_depth, state.in_flight, state.disk_free_bytes = 7, 3, 12_345_678_901
    state.model = {"file": "m.plan", "sha256": "ab", "runtime": "lean"}
    for _ in range(10):
        state.done(result_of(), 0.03, {"write": 0.0005})
    state.failed("b", "damaged", ERROR)
    state.gpu_error(700)
    state.reload("done")
    found = parsed(metrics.render(state))
    assert values(found["edgeapp_ready"]) == {("edgeapp_ready",): 1}
    assert values(found["edgeapp_inputs"]) == {
        ("edgeapp_inputs_total", "done"): 10,
        ("edgeapp_inputs_total", "failed"): 1,
    }
    assert values(found["edgeapp_dead_letter"]) == {("edgeapp_dead_letter_total", "damaged"): 1}
    assert values(found["edgeapp_gpu_errors"]) == {("edgeapp_gpu_errors_total", "700"): 1}
    assert values(found["edgeapp_reloads"])[("edgeapp_reloads_total", "done")] == 1
    assert values(found["edgeapp_queue_depth"]) == {("edgeapp_queue_depth",): 7}
    assert values(found["edgeapp_in_flight"]) == {("edgeapp_in_flight",): 3}
    assert values(found["edgeapp_disk_free_bytes"]) == {("edgeapp_disk_free_bytes",): 12_345_678_901}
    assert found["edgeapp_build_info"].samples[0].labels["version"] == edgeapp.__version__
    assert found["edgeapp_model_info"].samples[0].labels == {"file": "m.plan", "sha256": "ab", "runtime": "lean"}
    state.hold("disk full")
    assert values(parsed(metrics.render(state))["edgeapp_ready"]) == {("edgeapp_ready",): 0}


def test_histograms_are_cumulative_with_the_buckets_of_inference(state: State) -> None:
    """0.25 ms to 5 s and +Inf; sum and count agree with them."""
    for ms in (0.1, 0.25, 2.0, 2.1, 400, 9000):
        state.done(result_of(infer_ms=ms), 0.03)
    found = parsed(metrics.render(state))
    for family, labels in (("edgeapp_inference_seconds", {}), ("edgeapp_stage_seconds", {"stage": "infer"})):
        samples = [s for s in found[family].samples if labels.items() <= s.labels.items()]
        buckets = {float(s.labels["le"]): s.value for s in samples if s.name.endswith("_bucket")}
        assert list(buckets) == [
            n / 1000 for n in (0.25, 0.5, 1, 2, 3, 5, 7.5, 10, 15, 20, 30, 50, 75, 100, 200, 500, 1000, 2000, 5000)
        ] + [math.inf]
        assert [buckets[n] for n in (0.00025, 0.001, 0.002, 0.003, 0.5, 5.0, math.inf)] == [2, 2, 3, 4, 5, 5, 6]
        assert [s.value for s in samples if s.name.endswith("_count")] == [6]
        assert [s.value for s in samples if s.name.endswith("_sum")] == [pytest.approx(9.40445)]
    stages = {s.labels["stage"] for s in found["edgeapp_stage_seconds"].samples}
    assert stages == {"decode", "infer"}


def test_every_stage_has_its_name_in_the_metrics(state: State) -> None:
    """Seven of them, in the order of the work."""
    state.done(result_of(), 1.0, dict.fromkeys(("preprocess", "h2d", "d2h", "postprocess", "write"), 0.1))
    assert list(state.latencies()) == ["decode", "pre", "h2d", "infer", "d2h", "post", "write", "total"]


def test_metrics_of_the_process_are_true(state: State) -> None:
    """As the kernel has them."""
    found = {name: family.samples[0].value for name, family in parsed(metrics.render(state)).items()}
    assert found["process_start_time_seconds"] == pytest.approx(time.time() - _age_s(), abs=2)
    assert found["process_resident_memory_bytes"] > 10e6
    assert found["process_open_fds"] == pytest.approx(len(os.listdir("/proc/self/fd")), abs=2)
    assert found["process_max_fds"] == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert found["process_threads"] >= threading.active_count()
    assert found["process_cpu_seconds"] > 0


def _age_s() -> float:
    """How long this process has been running, by ps."""
    done = subprocess.run(["ps", "-o", "etimes=", "-p", str(os.getpid())], capture_output=True, text=True, check=True)
    return float(done.stdout)


@pytest.mark.parametrize("text", EVIL, ids=ascii)
def test_labels_survive_whatever_is_in_them(state: State, text: str) -> None:
    """Quotes, backslashes and newlines are escaped; the parser gives back what the state tells."""
    fill_with(state, text)
    told = metrics.render(state)
    told.encode()
    found = parsed(told)
    (reason,) = state.snapshot()["failed_by_reason"]
    assert [sample.labels["reason"] for sample in found["edgeapp_dead_letter"].samples] == [reason]


def test_help_and_type_come_before_the_samples(state: State) -> None:
    """Once for each family; every line ends."""
    text = metrics.render(state)
    assert text.endswith("\n")
    names: set[str] = set()
    for line in text.splitlines():
        word, name = line.split()[1:3] if line.startswith("#") else ("sample", line.partition("{")[0].split()[0])
        if word == "HELP":
            assert name not in names
            names.add(name)
        else:
            base = name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count")
            assert {name, base} & names
    assert {"edgeapp_inference_seconds", "edgeapp_inputs_total", "edgeapp_build_info", "edgeapp_ready"} <= names


# --- the file of metrics ---------------------------------------------------------------------------------------------


def test_file_is_replaced_whole_and_readable_by_others(tmp_path: Path) -> None:
    """Whatever the umask is, and what a killed process left; nothing else stays in the folder."""
    path = tmp_path / "edgeapp.prom"
    (tmp_path / ".edgeapp.prom.part").write_text("half a line that is longer than the whole of the next")
    before = os.umask(0o077)
    try:
        metrics.write_file(path, "a 1\n")
        metrics.write_file(path, "b 2\n")
    finally:
        os.umask(before)
    assert path.read_text() == "b 2\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert os.listdir(tmp_path) == ["edgeapp.prom"]


def missing(folder: Path) -> Path:
    return folder / "missing" / "a.prom"


def is_folder(folder: Path) -> Path:
    (folder / "a.prom" / "b").mkdir(parents=True)
    return folder / "a.prom"


def link(folder: Path) -> Path:
    (folder / "victim").write_text("mine")
    (folder / ".a.prom.part").symlink_to(folder / "victim")
    return folder / "a.prom"


def pipe(folder: Path) -> Path:
    os.mkfifo(folder / ".a.prom.part")
    return folder / "a.prom"


@pytest.mark.parametrize(
    ("make", "error"),
    [(missing, EdgeappError), (is_folder, CannotWriteError), (link, CannotWriteError), (pipe, CannotWriteError)],
)  # fmt: skip
def test_file_that_cannot_be_written_is_an_error(tmp_path: Path, make: Any, error: type[EdgeappError]) -> None:
    """It has its code, follows no link, waits for no reader, and leaves nothing."""
    path = make(tmp_path)
    with pytest.raises(error, match="cannot write"):
        metrics.write_file(path, "a 1\n")
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".part")]
    if make is link:
        assert (tmp_path / "victim").read_text() == "mine"


def test_full_disk_leaves_the_file_before(tmp_path: Path) -> None:
    """A limit of file size stands in for the disk."""
    path = tmp_path / "a.prom"
    metrics.write_file(path, "a 1\n")
    code = (
        "import resource, signal, sys\nfrom edgeapp.errors import EdgeappError\nfrom edgeapp.service import metrics\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nresource.setrlimit(resource.RLIMIT_FSIZE, (2, 2))\n"
        f"try:\n    metrics.write_file({str(path)!r}, 'b 2' * 99)\n"
        "except EdgeappError as error:\n    sys.exit(error.exit_code)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(ROOT)}, check=False)
    assert done.returncode == CannotWriteError.exit_code
    assert path.read_text() == "a 1\n"
    assert os.listdir(tmp_path) == ["a.prom"]


@pytest.fixture(autouse=True)
def _no_leftover_threads() -> Iterator[None]:
    before = set(threading.enumerate())  # some of earlier tests may be about to end
    yield
    assert not set(threading.enumerate()) - before


def test_state_and_metrics_import_nothing_heavy() -> None:
    """Nor does the log, nor the notifier; the HTTP server is imported by who wants it."""
    code = (
        "import sys\nfrom edgeapp.service import metrics, notify, state, storms\n"
        "print([n for n in ('numpy', 'PIL', 'http', 'socketserver', 'ssl', 'asyncio', 'edgeapp.service.http') "
        "if n in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
