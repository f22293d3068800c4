"""The service with a plan on a real GPU: python -m pytest tests/gpu/test_serve.py -s

About two minutes; longer with EDGEAPP_GPU_RELOADS=1000 (F10), EDGEAPP_GPU_FAULTS=10 (F12, times each) and
EDGEAPP_GPU_INFERENCES=1000000 (F15). The numbers F10 to F15 are those of tests/service_results.md.
"""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from campaigning import Usage, assert_flat, growth, percentile
from gpu.compare import DEMO, PLANS, unpacked
from gpu.provoking import (
    Memory,
    Sting,
    confined_by,
    hidden_words,
    impossible,
    neighbour,
    read_only_words,
    show,
    sting_library,
)
from PIL import Image
from serving import Serving, Spool, serving, until
from support import Program
from test_growth import MOST_KB_A_MILLION, RELOAD_KB, Paths

RELOADS = int(os.environ.get("EDGEAPP_GPU_RELOADS", "60"))
FAULTS = int(os.environ.get("EDGEAPP_GPU_FAULTS", "1"))
INFERENCES = int(os.environ.get("EDGEAPP_GPU_INFERENCES", "20000"))

pytestmark = pytest.mark.timeout(7200 if max(RELOADS, FAULTS * 100, INFERENCES // 20) > 300 else 300)

PICTURES = sorted(DEMO.glob("bench-*.jpg"))
LOST_S = 1.0
"""So soon after the driver told of an error that lasts the process has to be gone."""

MOST_WARMING_KB = 128 << 10
"""Of host memory that the first reloads may take: what a model of 8 MB frees is kept for the next one."""

GPU_KB = 2 << 10
"""GPU memory comes in blocks of 2 MB."""


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool")


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    """The demo's plan with its card, to be changed."""
    folder = tmp_path / "model"
    folder.mkdir()
    shutil.copy(DEMO / "model.json", folder)
    return unpacked(DEMO / "model.plan.xz", folder)


def small(number: int) -> bytes:
    """A small picture of its own bytes."""
    data = io.BytesIO()
    Image.new("RGB", (64, 48), (number % 256, number // 256 % 256, 90)).save(data, "JPEG")
    return data.getvalue() + b"%d" % number


def show_row(fault: str, **numbers: object) -> None:
    """One line of a table, as the campaigns print it."""
    told = (f"{name.replace('_', ' ')} {f'{n:.3g}' if isinstance(n, float) else n}" for name, n in numbers.items())
    print(f"\n| {fault} | {', '.join(told)} |")


@contextmanager
def served(
    program: Program, spool: Spool, *words: str | Path, engine: Path | None, env: dict[str, str] | None = None,
    ready: bool = True,
) -> Iterator[Serving]:  # fmt: skip
    """A service whose log is shown when the test fails."""
    log = spool.root / "log"
    try:
        with log.open("ab") as stderr, serving(
            program, spool, "--settle-s", "0.05", *words, engine=engine, env=env, ready=ready, stderr=stderr
        ) as it:  # fmt: skip
            yield it
    except BaseException:
        print("the service said:", *log.read_text(errors="replace").splitlines()[-25:], sep="\n  ")
        raise


def said(spool: Spool) -> str:
    return (spool.root / "log").read_text()


def wait_for_end(process: subprocess.Popen[bytes], seconds: float) -> float:
    """Wait for the end of a process; the second of the monotonic clock at which it came."""
    until(lambda: process.poll() is not None, "its end", seconds, 0.002)
    return time.monotonic()


class Feeder:
    """Keeps some small pictures waiting in the folder, until it is ended."""

    def __init__(self, spool: Spool, waiting: int = 100) -> None:
        self._spool, self._waiting, self._ended = spool, waiting, threading.Event()
        self._thread = threading.Thread(target=self._feed, daemon=True)

    def __enter__(self) -> Feeder:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _feed(self) -> None:
        while not self._ended.wait(0.005):
            for _ in range(self._waiting - len(self._spool.waiting)):
                number = len(self._spool.given)
                self._spool.put(small(number), f"{number}.jpg")


@contextmanager
def fed(spool: Spool) -> Iterator[Paths]:
    """A client of the service's socket whose pictures lie elsewhere."""
    files = [spool.root / f"{number}.jpg" for number in range(256)]
    for number, path in enumerate(files):
        path.write_bytes(small(number))
    with socket.socket(socket.AF_UNIX) as client, client.makefile("rb") as answers:
        client.settimeout(60)
        client.connect(str(spool.root / "paths"))
        yield Paths(client, answers, files)


def assert_all_done_once(spool: Spool) -> None:
    """Every picture has one result, lies in done/, and none failed."""
    spool.assert_each_once()
    assert not spool.waiting
    assert not os.listdir(spool.failed), os.listdir(spool.failed)
    times = Counter(line["name"] for line in spool.lines())
    assert set(times) == {os.fsdecode(name) for name in spool.given}
    assert set(times.values()) == {1}, times.most_common(3)


def finish(program: Program, spool: Spool, engine: Path) -> None:
    """The next process, as systemd starts it, does what waits."""
    with served(program, spool, engine=engine) as it:
        until(lambda: not spool.waiting, "all")
        assert it.stop() == 0


def assert_close(found: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> None:
    """The same objects; numbers differ a little with the batch size, and with them the order."""
    found, wanted = (sorted(boxes, key=lambda one: (one["label"], one["box_xyxy"])) for boxes in (found, wanted))
    assert [one["label"] for one in found] == [one["label"] for one in wanted]
    for one, other in zip(found, wanted, strict=True):
        assert one["score"] == pytest.approx(other["score"], abs=0.01)
        assert one["box_xyxy"] == pytest.approx(other["box_xyxy"], abs=1.0)


def falsify(card: dict[str, Any]) -> None:
    """Have a model card keep another golden output."""
    for kept in card["golden"]["outputs"].values():
        kept["values"] = kept["values"][1:] + kept["values"][:1]


# --- what it does -----------------------------------------------------------------------------------------------------


def test_folder_and_socket_give_what_run_gives(edgeapp: Program, spool: Spool, plan: Path) -> None:
    """The same objects for the same pictures; health and metrics tell of them."""
    alone = {Path(line["path"]).name: line for line in edgeapp("--engine", plan, "--input", *PICTURES).lines}
    assert sum(len(line["detections"]) for line in alone.values()) >= len(PICTURES)
    words = ("--listen", spool.root / "paths", "--http", spool.root / "http")

    def get(page: str) -> str:
        with socket.socket(socket.AF_UNIX) as client, client.makefile("rb") as answer:
            client.connect(str(spool.root / "http"))
            client.sendall(f"GET {page} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
            return answer.read().decode()

    with served(edgeapp, spool, *words, engine=plan) as it:
        assert "TensorRT" in it.status()["model"]["runtime"]
        for path in PICTURES:
            spool.put(path, path.name)
        with socket.socket(socket.AF_UNIX) as client, client.makefile("rb") as answers:
            client.settimeout(60)
            client.connect(str(spool.root / "paths"))
            client.sendall(b"".join(os.fsencode(path) + b"\n" for path in PICTURES))
            listed = [json.loads(answers.readline()) for _ in PICTURES]
        it.wait_done(2 * len(PICTURES))
        assert get("/healthz").startswith("HTTP/1.1 200")
        assert get("/readyz").startswith("HTTP/1.1 200")
        assert f'edgeapp_inputs_total{{result="done"}} {2 * len(PICTURES)}' in get("/metrics")
        assert it.stop() == 0
    spool.assert_each_once()
    lines = [line for line in spool.lines() if not os.path.isabs(line["name"])]
    for found in (lines, listed):
        assert {Path(line["name"]).name for line in found} == set(alone)
        for line in found:
            assert_close(line["detections"], alone[Path(line["name"]).name]["detections"])


def test_sigterm_under_load_finishes_what_was_begun(edgeapp: Program, spool: Spool, plan: Path) -> None:
    """Exit 0 soon, nothing lost or torn; the next process does the rest."""
    with served(edgeapp, spool, engine=plan) as it, Feeder(spool, 200):
        it.wait_done(300)
        started = time.monotonic()
        it.process.send_signal(signal.SIGTERM)
        took_s = wait_for_end(it.process, 30) - started
        assert it.process.returncode == 0
    assert spool.waiting
    spool.assert_each_once()
    finish(edgeapp, spool, plan)
    assert_all_done_once(spool)
    show_row("SIGTERM under load", inputs=len(spool.given), until_the_end_s=took_s)


def test_golden_output_comes_before_ready(edgeapp: Program, spool: Spool, plan: Path) -> None:
    """READY when the plan gives it; never, and 65, when it gives another one."""
    assert edgeapp("golden", "--engine", plan, "--write").returncode == 0
    place = spool.root / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(place))
        listener.settimeout(60)
        with served(edgeapp, spool, engine=plan, env={"NOTIFY_SOCKET": str(place)}, ready=False) as it:
            heard = ""
            while "READY=1" not in heard:
                heard = listener.recv(4096).decode()
            assert it.ready()
            assert it.stop() == 0
        card = plan.with_name("model.json")
        keys = json.loads(card.read_text())
        falsify(keys)
        card.write_text(json.dumps(keys))
        listener.setblocking(False)
        with suppress(BlockingIOError):
            while listener.recv(4096):
                pass
        with served(edgeapp, spool, engine=plan, env={"NOTIFY_SOCKET": str(place)}, ready=False) as it:
            wait_for_end(it.process, 60)
            assert it.process.returncode == 65
        heard = ""
        with suppress(BlockingIOError):
            while data := listener.recv(4096):
                heard += data.decode()
    assert "READY=1" not in heard
    assert "differs by" in said(spool)


# --- F10: reloads -----------------------------------------------------------------------------------------------------

BAD = {"truncated": 65, "garbage": 65, "another model": 78, "another answer": 65, "none": 66}
"""Ways to spoil a plan, and what a reload of it answers."""


class Plans:
    """A good plan and bad ones, for a configuration file to name.

    Args:
        apart: each has a place of its own; else one is renamed into the place of the other, as who installs it does.
    """

    def __init__(self, path: Path, *, apart: bool) -> None:
        self.config = path.parents[1] / "config.toml"
        self._path, self._apart = path, apart
        self._good, self._other = path.read_bytes(), (PLANS / "conv.plan").read_bytes()
        self._keys = json.loads(path.with_name("model.json").read_text())
        self.place("good")

    def place(self, kind: str) -> None:
        """Have the next reload find this one."""
        data, keys = self._good, json.loads(json.dumps(self._keys))
        if kind == "truncated":
            data = data[: len(data) // 2]
        elif kind == "garbage":
            data = random.Random(0).randbytes(1 << 20)
        elif kind == "another model":
            data = self._other
        elif kind == "another answer":
            falsify(keys)
        folder = self._path.parent / kind.replace(" ", "-") if self._apart else self._path.parent
        folder.mkdir(exist_ok=True)
        self._write(folder / "model.json", json.dumps(keys).encode())
        self._write(folder / self._path.name, data)
        if kind == "none":
            (folder / self._path.name).unlink()
        self._write(self.config, f'engine = "{folder / self._path.name}"\n'.encode())

    def _write(self, path: Path, data: bytes) -> None:
        part = path.with_suffix(".new")
        part.write_bytes(data)
        part.rename(path)


@pytest.mark.parametrize("way", ["beside", "swap"])
def test_f10_reloads_good_and_bad(edgeapp: Program, spool: Spool, plan: Path, way: str) -> None:
    """No inference fails; memory of host and GPU, descriptors and threads stay."""
    count = RELOADS if way == "beside" else max(20, RELOADS // 3)
    assert edgeapp("golden", "--engine", plan, "--write").returncode == 0
    plans, memory, chance = Plans(plan, apart=way == "swap"), Memory(), random.Random(10)
    samples: list[Usage] = []
    on_gpu_kb: list[float] = []
    took_s: list[float] = []
    failed: list[bytes] = []
    ended = threading.Event()
    codes: Counter[int] = Counter()
    loads = 0
    tried: set[str] = set()
    words = ("--config", plans.config, "--reload", way, "--listen", spool.root / "paths", "--segment-mb", "1")
    with served(edgeapp, spool, *words, engine=None) as it, fed(spool) as client:

        def work() -> None:
            with suppress(OSError, ValueError):  # the service is gone: others tell of it
                while not ended.is_set():
                    failed.extend(line for _, line in client.work(20, 4) if b'"error"' in line)

        worker = threading.Thread(target=work, daemon=True)
        worker.start()
        for number in range(count):
            kind = chance.choice(list(BAD)) if number % 2 else "good"
            plans.place(kind)
            started = time.monotonic()
            answer = it.ask(do="reload", wait=True)
            code = int(answer.get("exit_code", 0))
            assert code == BAD.get(kind, 0), (number, kind, answer)
            if kind not in tried:  # once more, as an operator does it
                done = it.ctl("reload", "--wait")
                assert done.returncode == code, done
            tried.add(kind)
            if kind == "good":
                took_s.append(time.monotonic() - started)
            codes[code] += 1
            loads += kind in ("good", "another answer")
            samples.append(Usage.of(it.process.pid))
            if (kb := memory.kb(it.process.pid)) is not None:
                on_gpu_kb.append(kb)
        plans.place("good")
        before = it.status()["inputs"]["done"]
        until(lambda: it.status()["inputs"]["done"] > before, "it serves after all that")
        ended.set()
        worker.join(60)
        inputs = it.status()["inputs"]
        assert it.stop() == 0
    gpu_kb = growth(on_gpu_kb) if on_gpu_kb else None
    assert not failed, failed[:1]
    assert not inputs["failed"]
    grown = growth([one.rss_kb for one in samples])
    show_row(
        f"F10 reloads, {way}", reloads=count, bad=count - codes[0], inferences=inputs["done"], failed_inferences=0,
        median_s=percentile(took_s, 50), longest_s=max(took_s), kB_a_reload=grown / (0.75 * count), loads=loads,
        memory_MB=[one.rss_kb >> 10 for one in samples[:: max(1, count // 10)]],
        GPU_MB=[round(kb / 1024) for kb in on_gpu_kb[:: max(1, count // 10)]],
        GPU_kB_in_all="not told" if gpu_kb is None else int(gpu_kb), descriptors=samples[-1].descriptors,
        threads=samples[-1].threads, exit_codes=dict(sorted(codes.items())),
    )  # fmt: skip
    assert_flat(samples, RELOAD_KB * count if count > 500 else MOST_WARMING_KB)
    assert gpu_kb is None or gpu_kb <= GPU_KB, on_gpu_kb


# --- F12: the GPU fails -----------------------------------------------------------------------------------------------


@pytest.fixture
def sting(tmp_path: Path) -> Callable[[], Sting]:
    """A maker of stings, one for each process."""
    library = sting_library(tmp_path)
    return lambda: Sting(library, Path(tempfile.mkdtemp(dir=tmp_path)) / "sting")


KINDS = {"wild": (700,), "crooked": (716,), "assert": (710,), "trap": (719, 715)}
"""Kernels that fail, and the CUDA error that it is."""


def break_context(thorn: Sting, kind: str) -> tuple[int, float]:
    """Run such a kernel; the CUDA error, and the second of the monotonic clock at which the driver told it."""
    thorn.thrust(kind)
    code, told_s = until(thorn.answer, "the driver's answer", 20, 0.002)
    assert code in KINDS[kind], f"no such kernel could be run: CUDA error {code}"
    return code, told_s


@pytest.mark.parametrize("kind", KINDS)
def test_f12_error_that_lasts_ends_the_process_at_once(
    edgeapp: Program, spool: Spool, plan: Path, sting: Callable[[], Sting], kind: str
) -> None:
    """75 within a second; nothing is lost or blamed, and the next process does each waiting input once."""
    after_s: list[float] = []
    found: set[int] = set()
    for round_ in range(FAULTS):
        thorn = sting()
        with served(edgeapp, spool, engine=plan, env=thorn.env) as it, Feeder(spool):
            it.wait_done(100)
            code, told_s = break_context(thorn, kind)
            after_s.append(wait_for_end(it.process, 20) - told_s)
            assert it.process.returncode == 75
        found.add(code)
        assert said(spool).count("the GPU is lost to this process") == round_ + 1
        spool.assert_each_once()
        assert not os.listdir(spool.failed)
    finish(edgeapp, spool, plan)
    assert_all_done_once(spool)
    show_row(f"F12 {kind} kernel", times=FAULTS, CUDA_errors=sorted(found), exit_code=75, inputs=len(spool.given),
             lost=0, longest_until_the_end_s=max(after_s))  # fmt: skip
    assert max(after_s) <= LOST_S


def test_f12_error_while_idle_is_found_by_the_probe(
    edgeapp: Program, spool: Spool, plan: Path, sting: Callable[[], Sting]
) -> None:
    """Within a third of the watchdog's time and a second; systemd hears no more signs of life, but why it ends."""
    thorn, watchdog_s = sting(), 3.0
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(spool.root / "notify"))
        listener.setblocking(False)
        env = {**thorn.env, "NOTIFY_SOCKET": str(spool.root / "notify"), "WATCHDOG_USEC": str(int(watchdog_s * 1e6))}
        with served(edgeapp, spool, engine=plan, env=env) as it:
            _, told_s = break_context(thorn, "wild")
            after_s = wait_for_end(it.process, 20) - told_s
            assert it.process.returncode == 75
        heard = []
        with suppress(BlockingIOError):
            while True:
                heard.append(listener.recv(4096).decode())
    assert any("STOPPING=1" in one for one in heard), heard
    assert "the GPU is lost to this process" in said(spool)
    show_row("F12 while idle", until_the_end_s=after_s, watchdog_s=watchdog_s)
    assert after_s <= watchdog_s / 3 + LOST_S


def test_f12_no_gpu_memory_at_the_start(edgeapp: Program, spool: Spool, plan: Path) -> None:
    """71, with how much is free; once there is some it starts."""
    with neighbour(0) as left, served(edgeapp, spool, engine=plan, ready=False) as it:
        wait_for_end(it.process, 60)
        assert it.process.returncode == 71
    told = said(spool)
    assert "memory" in told
    assert "nvidia-smi" in told, "what to do"
    finish(edgeapp, spool, plan)
    show_row("F12 no GPU memory at the start", neighbour_left_MB=left, exit_code=71,
             said=repr(told.splitlines()[0][:120]))  # fmt: skip


def test_f12_no_gpu_memory_at_a_reload(edgeapp: Program, spool: Spool, plan: Path) -> None:
    """71, and the old model goes on, also with batch sizes that it has not had yet; later the reload is done."""
    with served(edgeapp, spool, "--batch", "auto", engine=plan) as it:
        with neighbour(0) as left:
            reload = it.ctl("reload", "--wait")
            assert reload.returncode == 71, reload
            assert it.ready()
            for number in range(200):
                spool.put(small(number), f"{number}.jpg")
            it.wait_done(200)
        reload = it.ctl("reload", "--wait")
        assert reload.returncode == 0, reload
        assert it.stop() == 0
    assert_all_done_once(spool)
    show_row("F12 no GPU memory at a reload", neighbour_left_MB=left, exit_code=71, inputs=200, failed=0)


def test_f12_swap_needs_no_second_place_in_gpu_memory(edgeapp: Program, spool: Spool, plan: Path) -> None:
    """The declared way for a GPU that has room for one model only."""
    with served(edgeapp, spool, "--reload", "swap", engine=plan) as it:
        with neighbour(64) as left, Feeder(spool, 20):
            it.wait_done(50)
            reload = it.ctl("reload", "--wait")
            assert reload.returncode == 0, reload
            it.wait_done(sum(it.status()["inputs"].values()) + 50)
        until(lambda: not spool.waiting, "all")
        assert it.stop() == 0
    assert_all_done_once(spool)
    show_row("F12 swap in a full GPU memory", neighbour_left_MB=left, inputs=len(spool.given), failed=0)


def test_f12_hidden_gpu_is_waited_for(edgeapp: Program, spool: Spool, plan: Path) -> None:
    """CUDA_VISIBLE_DEVICES= : not ready and said once, never the CPU; a signal ends the waiting with 0."""
    place, started = spool.root / "state" / "control.sock", time.monotonic()
    with served(edgeapp, spool, engine=plan, env={"CUDA_VISIBLE_DEVICES": ""}, ready=False) as it:
        until(lambda: place.exists() and not it.ready(), "control")
        until(lambda: it.status()["reason"].startswith("waiting for the GPU"), "waiting")
        waiting_s = time.monotonic() - started
        spool.put(small(0), "0.jpg")
        time.sleep(5)
        assert not it.ready()
        assert spool.waiting == [b"0.jpg"]
        assert it.stop() == 0
    assert said(spool).count("CUDA_VISIBLE_DEVICES is ''") == 1
    show_row("F12 GPU hidden by CUDA_VISIBLE_DEVICES=", waits_after_s=waiting_s, exit_code_of_SIGTERM=0)


def test_f12_gpu_that_comes_late_is_taken(edgeapp: Program, spool: Spool, plan: Path) -> None:
    """The device nodes appear while it waits, as at boot: ready without a restart."""
    program = Program([*hidden_words(), *edgeapp.command], edgeapp.cwd, {**edgeapp.env, "PATH": os.environ["PATH"]})
    spool.put(small(0), "0.jpg")
    with served(program, spool, engine=plan, ready=False) as it:
        place = spool.root / "state" / "control.sock"
        until(lambda: place.exists() and not it.ready(), "control")
        until(lambda: it.status()["reason"].startswith("waiting for the GPU"), "waiting")
        time.sleep(2.5)
        show(it.process.pid)
        started = time.monotonic()
        until(it.ready, "ready", 30)
        took_s = time.monotonic() - started
        it.wait_done(1)
        assert it.stop() == 0
    assert_all_done_once(spool)
    show_row("F12 GPU comes late", ready_after_s=took_s)


# --- F15: a soak by count ---------------------------------------------------------------------------------------------


def test_f15_inferences_leave_nothing(edgeapp: Program, spool: Spool, plan: Path) -> None:
    """Memory of host and GPU, descriptors and threads stay; none fails."""
    samples: list[Usage] = []
    on_gpu_kb: list[float] = []
    latencies: list[float] = []
    memory = Memory()
    words = ("--listen", spool.root / "paths", "--segment-mb", "1")
    with served(edgeapp, spool, *words, engine=plan) as it, fed(spool) as client:
        started = time.monotonic()
        for number, (latency, line) in enumerate(client.work(INFERENCES, 48), 1):
            assert b'"error"' not in line, line
            latencies.append(latency)
            if number % max(1, INFERENCES // 40) == 0:
                samples.append(Usage.of(it.process.pid))
                if (kb := memory.kb(it.process.pid)) is not None:
                    on_gpu_kb.append(kb)
                print(f"{number} inferences, {time.monotonic() - started:.0f} s, {samples[-1]}", flush=True)
                for path in spool.results.glob("2*.jsonl"):  # a million lines take 500 MB
                    path.unlink()
        rate = len(latencies) / (time.monotonic() - started)
        assert it.stop() == 0
    assert len(latencies) == INFERENCES
    grown = assert_flat(samples, max(0 if INFERENCES >= 500_000 else 5 << 10, MOST_KB_A_MILLION * INFERENCES / 1e6))
    gpu_kb = growth(on_gpu_kb) if on_gpu_kb else None
    show_row(
        "F15 soak", inferences=INFERENCES, a_second=rate, p50_ms=percentile(latencies, 50) * 1e3,
        p99_ms=percentile(latencies, 99) * 1e3, memory_kB=int(grown), memory_MB=samples[-1].rss_kb >> 10,
        GPU_kB="not told" if gpu_kb is None else int(gpu_kb), descriptors=samples[-1].descriptors,
        threads=samples[-1].threads,
    )  # fmt: skip
    assert gpu_kb is None or gpu_kb <= GPU_KB, on_gpu_kb


# --- what the unit file takes away ------------------------------------------------------------------------------------

UNIT = ("nobody", "own_users", "no_network", "no_new_privileges", "mdwe", "no_new_code", "unix_sockets_only",
        "service_calls_only")  # fmt: skip
CONFINED: dict[str, Sequence[str]] = {
    "NoNewPrivileges": ("no_new_privileges",),
    "MemoryDenyWriteExecute, from systemd 253": ("mdwe",),
    "MemoryDenyWriteExecute, before": ("no_new_code",),
    "User": ("nobody",),
    "User, LimitMEMLOCK=64K": ("nobody", "little_locked_memory"),
    "User, PrivateUsers": ("nobody", "own_users"),
    "PrivateNetwork": ("no_network",),
    "RestrictAddressFamilies=AF_UNIX": ("unix_sockets_only",),
    "SystemCallFilter": ("service_calls_only",),
    "all of them": UNIT,
}
READ_ONLY = "ProtectSystem=strict, ProtectKernelTunables"


@pytest.fixture
def open_to_all() -> Iterator[Path]:
    """A folder that any user may reach and write; pytest's own are for one user."""
    with tempfile.TemporaryDirectory(prefix="edgeapp-gpu-") as name:
        folder = Path(name)
        folder.chmod(0o777)
        yield folder


@pytest.fixture
def outside(edgeapp: Program, plan: Path, open_to_all: Path) -> Program:
    """The program where any user may run it, with a plan and a cache of each user's own."""
    shutil.copy(edgeapp.command[0], open_to_all / "edgeapp")
    shutil.copytree(plan.parent, open_to_all / "model")
    shutil.copy(PICTURES[0], open_to_all / "picture.jpg")
    for path in open_to_all.rglob("*"):
        path.chmod(0o777)
    env = {"HOME": str(open_to_all), "EDGEAPP_CACHE": str(open_to_all / "cache")}
    return Program([str(open_to_all / "edgeapp")], open_to_all, env)


def confined(program: Program, words: list[str], user: str) -> Program:
    """Started by these words; a user has a cache that nobody else writes."""
    env = {"PATH": os.environ["PATH"], **program.env, "EDGEAPP_CACHE": f"{program.env['EDGEAPP_CACHE']}-{user}"}
    return Program([*words, *program.command], program.cwd, env)


def test_unit_file_takes_nothing_that_cuda_needs(outside: Program, plan: Path) -> None:
    """One inference under each of what the unit file for servers sets, and the same result."""
    words = ("--engine", outside.cwd / "model" / plan.name, "--input", outside.cwd / "picture.jpg", "--quiet")
    wanted = outside(*words).line["detections"]
    ways = {name: confined_by(*steps) for name, steps in CONFINED.items()}
    ways[READ_ONLY] = read_only_words(outside.cwd)
    rows, broken = [], {}
    for name, start in ways.items():
        if wrong := impossible(start):
            rows.append((name, f"not possible here: {wrong}"))
            continue
        user = "nobody" if "nobody" in CONFINED.get(name, ()) else "root"
        started = time.monotonic()
        done = confined(outside, start, user)(*words)
        took_s = time.monotonic() - started
        if done.returncode == 0 and done.line["detections"] == wanted:
            rows.append((name, f"works, {took_s:.1f} s"))
        else:
            broken[name] = done
            rows.append((name, f"exit code {done.returncode}: {done.stderr.strip()[:300]!r}"))
    print(f"\n| unit file ({os.uname().release}, {sys.platform}) | with CUDA |\n|---|---|")
    for name, result in rows:
        print(f"| {name} | {result} |")
    assert not broken, broken
    assert any(result.startswith("works") for _, result in rows), "nothing could be tried"


def test_service_works_with_all_that_the_unit_file_sets(outside: Program, plan: Path) -> None:
    """Ready, a result, a reload, exit 0; with what of it can be had here."""
    steps = [step for step in UNIT if not impossible(confined_by(step))]
    start = confined_by(*steps)
    if wrong := impossible(start):
        pytest.skip(f"not possible here: {wrong}")
    program = confined(outside, start, "nobody" if "nobody" in steps else "root")
    spool = Spool(outside.cwd / "spool")
    for folder in (spool.root, spool.incoming):
        folder.chmod(0o777)
    with served(program, spool, engine=outside.cwd / "model" / plan.name) as it:
        for number in range(20):
            spool.put(small(number), f"{number}.jpg")
        it.wait_done(20)
        assert "exit_code" not in it.ask(do="reload", wait=True)
        assert it.stop() == 0
    assert_all_done_once(spool)
    show_row("service as the unit file runs it", steps=" ".join(steps), inputs=20)
