"""The threads of a run: order, bounds, slow lists, errors in any of them, and their end."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import select
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from serving import until
from support import Program, plain_png

from edgeapp import errors
from edgeapp.commands import opening
from edgeapp.commands.bench_modes import resident_bytes
from edgeapp.cpu.engine import CpuEngine
from edgeapp.direct import Direct
from edgeapp.model import complete
from edgeapp.pipeline import BATCHES_PER_HOST, MOST_TIMES, Pipeline, Summary
from edgeapp.postprocess import make_postprocess
from edgeapp.preprocess import Preprocessor
from edgeapp.records import Frame, Letterbox, Result, Tensors, TensorSpec
from edgeapp.settings import Settings
from edgeapp.sources import FileSource
from edgeapp.stopping import Stop

COLORS = ((255, 0, 0), (0, 255, 0), (0, 0, 255))
SOON_S = 60.0
"""Long enough for a busy machine, short enough to tell a hang."""


@dataclass
class Run:
    """A pipeline on a real engine; a test replaces the step that it is about.

    Attributes:
        batches: how many pictures each inference got.
        written: the results, in the order in which they were written.
    """

    engine: CpuEngine
    batch: int = 1
    decoders: int = 2
    hosts: int = 4
    side_by_side: bool = False
    draw: Callable[[Result], None] | None = None
    stop: Stop = field(default_factory=Stop)
    batches: list[int] = field(default_factory=list)
    written: list[Result] = field(default_factory=list)

    def __post_init__(self) -> None:
        card, _ = complete({}, self.engine.inputs, self.engine.outputs)
        preprocess = Preprocessor(card, self.engine.inputs[0].dtype)
        self.postprocess, _ = make_postprocess(card, self.engine.outputs)
        self.fill = preprocess.fill
        self.shape, self.dtype = preprocess.shape, preprocess.dtype

    def write(self, result: Result) -> None:
        self.written.append(result)

    def __call__(self, source: Any) -> Summary:
        runner = Direct(self.engine, self.fill, self.shape, self.dtype, batch=self.batch, least=1, hosts=self.hosts)
        launch = runner.launch

        def counted(host: Any, count: int) -> None:
            self.batches.append(count)
            launch(host, count)

        runner.launch = counted  # type: ignore[method-assign]
        pipeline = Pipeline(
            self.engine, runner, self.postprocess, [self], task="classify", batch=self.batch, decoders=self.decoders,
            keep_pictures=False, finished=lambda _: None, stop=self.stop, draw=self.draw,
            side_by_side=self.side_by_side,
        )  # fmt: skip
        return pipeline.run(source)

    def files(self, *names: str | Path, **options: Any) -> FileSource:
        return FileSource([str(name) for name in names], max_pixels=10**7, stop=self.stop, **options)


@pytest.fixture(params=[False, True], ids=["one-after-the-other", "side-by-side"])
def run(models: Path, request: pytest.FixtureRequest) -> Run:
    return Run(CpuEngine(str(models / "classifier.onnx")), side_by_side=request.param)


@pytest.fixture
def inputs(tmp_path: Path) -> list[Path]:
    """97 inputs that take unlike times: pictures of many sizes, tensors, damaged and missing files."""
    made = []
    for i in range(97):
        path = tmp_path / f"{i}.png"
        if i % 13 == 5:
            path = path.with_suffix(".npy")
            np.save(path, np.full((1, 3, 32, 32), i, np.float32))
        elif i % 17 == 3:
            path.write_bytes(b"no picture")
        elif i % 29 != 7:  # missing
            plain_png(path, COLORS[i % 3], (10 + i * 37 % 500, 10 + i * 91 % 400))
        made.append(path)
    return made


@pytest.mark.parametrize("hosts", [1, 3, 64])
@pytest.mark.parametrize("decoders", [1, 5, 64])
@pytest.mark.parametrize("batch", [1, 3, 8, 200])
def test_every_input_is_answered_once_and_in_order(
    run: Run, inputs: list[Path], batch: int, decoders: int, hosts: int
) -> None:
    """Whatever the numbers of threads, pictures per inference and batches on their way."""
    run.batch, run.decoders, run.hosts = batch, decoders, hosts
    summary = run(run.files(*inputs))
    assert [result.frame.path for result in run.written] == list(map(str, inputs))
    for i, result in enumerate(run.written):
        path = inputs[i]
        if not path.exists():
            assert isinstance(result.error, errors.NotFoundError)
        elif path.suffix == ".png" and path.stat().st_size == len(b"no picture"):
            assert isinstance(result.error, errors.DataError)
        elif path.suffix == ".npy":
            assert list(result.tensors) == ["logits"]
        else:
            assert result.classes[0].class_id == i % 3
            assert list(result.times_ms) == ["decode", "preprocess", "infer", "postprocess"]
    assert summary.done + len(summary.failures) == len(inputs)


def test_no_more_is_read_than_there_are_batches(run: Run, tmp_path: Path) -> None:
    """While the results are not taken, reading stops: memory is bounded however long the list is."""
    picture = plain_png(tmp_path / "p.png", COLORS[0])
    run.batch, run.hosts = 3, 4
    files = run.files(*[picture] * 180)
    read = 0
    most = 0

    def counted(frame: Frame, read_one: Callable[[Frame], None] = files.read) -> None:
        nonlocal read
        read += 1
        read_one(frame)

    def write(result: Result) -> None:
        nonlocal most
        time.sleep(0.005)
        most = max(most, read - len(run.written))
        run.written.append(result)

    files.read = counted  # type: ignore[method-assign]
    run.write = write  # type: ignore[method-assign]
    run(files)
    assert len(run.written) == 180
    assert 3 < most <= 3 * 4 * BATCHES_PER_HOST


def test_threads_and_descriptors_are_given_back(run: Run, inputs: list[Path]) -> None:
    """A run leaves the process as it was, whether it ends well or not."""

    def fail(_: Result) -> None:
        raise errors.CannotWriteError("full")

    run(run.files(*inputs[:10]))
    threads, descriptors = set(threading.enumerate()), len(os.listdir("/proc/self/fd"))
    write = run.write
    for i in range(10):
        if i % 2:
            run.write = fail  # type: ignore[method-assign]
            with pytest.raises(errors.CannotWriteError):
                run(run.files(*inputs))
        else:
            run.write = write  # type: ignore[method-assign]
            run(run.files(*inputs[:10]))
    assert set(threading.enumerate()) <= threads
    assert len(os.listdir("/proc/self/fd")) == descriptors


@pytest.mark.parametrize("hosts", [1, 4])
@pytest.mark.parametrize("batch", [1, 8])
def test_pictures_are_drawn_on_before_they_are_written(run: Run, inputs: list[Path], batch: int, hosts: int) -> None:
    """Each once, several at a time, and their pixels are let go; what has none is not drawn on."""
    chance = np.random.default_rng(batch)
    naps_s = iter(chance.uniform(0, 0.01, len(inputs)).tolist())

    def draw(result: Result) -> None:
        assert result.frame.image is not None
        time.sleep(next(naps_s))
        result.drawn += Path(result.frame.path).name.encode()

    run.batch, run.decoders, run.hosts, run.draw = batch, 6, hosts, draw
    run(run.files(*inputs))
    assert [result.frame.path for result in run.written] == list(map(str, inputs))
    for result in run.written:
        assert result.frame.image is None
        assert result.drawn == (Path(result.frame.path).name.encode() if result.classes else b"")


@pytest.mark.parametrize("step", ["list", "read", "fill", "enter", "infer", "postprocess", "draw", "write"])
def test_an_unforeseen_error_in_any_thread_ends_the_run(run: Run, inputs: list[Path], step: str) -> None:
    """The caller gets it, soon, and no thread stays behind."""
    if step == "enter" and run.side_by_side:
        pytest.skip("no thread has the engine for itself")
    threads = set(threading.enumerate())
    source = run.files(*inputs)
    if step == "list":
        source._items.insert(50, b"neither path nor error")  # type: ignore[arg-type]
        source.is_tensors = lambda frame: frame.path.endswith(".npy")  # type: ignore[method-assign]
    holder, name = {
        "read": (source, "read"), "fill": (run, "fill"), "enter": (run.engine, "enter"),
        "infer": (run.engine, "infer"), "postprocess": (run, "postprocess"), "draw": (run, "draw"),
        "write": (run, "write"),
    }.get(step, (None, ""))  # fmt: skip
    run.draw = lambda _: None
    calls = 0

    def broken(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == (1 if step == "enter" else 20):
            raise ZeroDivisionError(step)
        return sound(*arguments)

    if holder is not None:
        sound = getattr(holder, name)
        setattr(holder, name, broken)
    started = time.monotonic()
    with pytest.raises(TypeError if step == "list" else ZeroDivisionError):
        run(source)
    assert time.monotonic() - started < SOON_S
    assert set(threading.enumerate()) <= threads


def test_what_waits_for_the_engine_is_given_up_at_the_end(run: Run, tmp_path: Path) -> None:
    """A run that has to end does not infer first what is already decoded."""
    if run.side_by_side:
        pytest.skip("nothing waits: who reads a batch infers it")
    run.hosts = 64
    picture = plain_png(tmp_path / "p.png", COLORS[0])
    infer = run.engine.infer
    failing = threading.Event()

    def slow(tensors: Tensors) -> Tensors:
        if len(run.batches) == 6:  # in the middle of it the run has to end
            assert failing.wait(SOON_S)
            time.sleep(0.7)
        return infer(tensors)

    def fail(_: Result) -> None:
        until(lambda: len(run.batches) == 6, "an inference to fail in")
        failing.set()
        raise errors.CannotWriteError("full")

    run.engine.infer = slow  # type: ignore[method-assign]
    run.write = fail  # type: ignore[method-assign]
    with pytest.raises(errors.CannotWriteError):
        run(run.files(*[picture] * 64))
    assert len(run.batches) <= 6 + 3


def test_earliest_input_has_the_engine_first(run: Run, tmp_path: Path) -> None:
    """A picture that takes long to read does not wait for all that were read meanwhile."""
    run.hosts = 64
    names = [plain_png(tmp_path / f"{i}.png", COLORS[i % 3] if i else (255, 255, 255)) for i in range(40)]
    files = run.files(*names)
    infer, read = run.engine.infer, files.read
    is_read = threading.Event()
    light: list[float] = []

    def slow(tensors: Tensors) -> Tensors:
        light.extend(float(array.mean()) for array in tensors.values())
        if len(light) == 6:  # it is read meanwhile
            assert is_read.wait(SOON_S)
            time.sleep(0.3)
        return infer(tensors)

    def read_first_late(frame: Frame) -> None:
        if frame.path == str(names[0]):
            until(lambda: len(light) == 6, "others")
        read(frame)
        if frame.path == str(names[0]):
            is_read.set()

    run.engine.infer = slow  # type: ignore[method-assign]
    files.read = read_first_late  # type: ignore[method-assign]
    run(files)
    assert [result.frame.path for result in run.written] == list(map(str, names))
    assert light.index(max(light)) == 6  # the white one is the next


def test_inferences_side_by_side_do_not_wait_for_each_other(run: Run, tmp_path: Path) -> None:
    """As many as there are threads are under way at a time; otherwise one is."""
    names = [plain_png(tmp_path / f"{i}.png", COLORS[i % 3]) for i in range(12)]
    run.decoders = 3
    met = threading.Barrier(3 if run.side_by_side else 1)
    infer = run.engine.infer
    most = under_way = 0
    lock = threading.Lock()

    def counted(tensors: Tensors) -> Tensors:
        nonlocal most, under_way
        with lock:
            under_way += 1
            most = max(most, under_way)
        met.wait(SOON_S)
        found = infer(tensors)
        with lock:
            under_way -= 1
        return found

    run.engine.infer = counted  # type: ignore[method-assign]
    run(run.files(*names))
    assert most == met.parties
    assert [result.classes[0].class_id for result in run.written] == [i % 3 for i in range(12)]


@pytest.mark.parametrize(
    ("cores", "decoders", "total", "words", "side_by_side"),
    [
        (2, 2, 4, {}, True),
        (2, 2, None, {}, True),
        (2, 2, 3, {}, False),  # the last ones would leave a core without work
        (2, 2, 4, {"batch": 2}, False),
        (2, 2, 8, {"batch": 2}, True),
        (2, 2, 4, {"batch": "auto"}, True),
        (1, 4, None, {}, False),
        (4, 2, None, {}, False),  # fewer threads than cores
        (2, 2, None, {"slots": 1}, False),
        (2, 2, None, {"slots": 2}, True),
        (64, 64, None, {}, False),  # memory for 64 inferences
    ],
)
def test_run_infers_side_by_side_where_there_is_work_for_all_cores(
    monkeypatch: pytest.MonkeyPatch, cores: int, decoders: int, total: int | None, words: dict[str, Any],
    side_by_side: bool,
) -> None:  # fmt: skip
    """Else one inference has all cores, and an answer comes sooner."""
    monkeypatch.setattr(opening.cores, "usable", lambda: cores)
    settings = Settings(**words)
    assert opening.infers_side_by_side(settings, decoders=decoders, total=total) is side_by_side


def test_refused_threads_are_the_systems_refusal(run: Run, inputs: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit on processes is no bug of the program. Stand-in: the limit binds no test that is run as root."""
    start, left = threading.Thread.start, 0

    def limited(thread: threading.Thread) -> None:
        nonlocal left
        if left == 0:
            raise RuntimeError("can't start new thread")
        left -= 1
        start(thread)

    before = set(threading.enumerate())
    monkeypatch.setattr(threading.Thread, "start", limited)
    run.decoders = 64
    for left in range(6):  # noqa: B007 counted down by limited()
        with pytest.raises(errors.SystemRefusedError, match="cannot start 64 threads"):
            run(run.files(*inputs))
    assert set(threading.enumerate()) <= before


def test_results_of_a_silent_list_come_at_once(program: Program, models: Path, picture: Path) -> None:
    """A batch does not wait for paths that nobody has written yet; a path without its end is not one."""
    child = program.start(
        "--engine", models / "classifier.onnx", "--batch", "8", "--quiet", "--input", "-",
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0,
    )  # fmt: skip
    assert child.stdin is not None
    assert child.stdout is not None
    name = os.fsencode(picture)
    for count in (1, 3, 2):
        child.stdin.write((name + b"\n") * count + name[:5])
        for _ in range(count):
            assert select.select([child.stdout], [], [], SOON_S)[0], "no result while the list is silent"
            assert json.loads(child.stdout.readline())["path"] == str(picture)
        child.stdin.write(name[5:] + b"\n")
        assert json.loads(child.stdout.readline())["path"] == str(picture)
    rest, _ = child.communicate(name, timeout=SOON_S)  # the last line has no newline
    assert len(rest.splitlines()) == 1
    assert child.returncode == 0


@pytest.fixture
def listed() -> Iterator[tuple[Any, Callable[[bytes], None]]]:
    """A pipe: what to read a list from, and how to write to it."""
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb", buffering=0) as stream, os.fdopen(writer, "wb", buffering=0) as file:
        yield stream, lambda data: file.write(data) and None if data else file.close()


def test_quick_list_fills_the_batches(run: Run, tmp_path: Path, listed: Any) -> None:
    """Paths that are there are inferred together; only the last batch is short."""
    stream, write = listed
    write(b"%b\n" % os.fsencode(plain_png(tmp_path / "p.png", COLORS[1])) * 30)
    write(b"")
    run.batch = 8
    run(run.files("-", stream=stream))
    assert sorted(run.batches) == [6, 8, 8, 8]  # they start as they are decoded


@pytest.mark.parametrize(("patience_s", "batches"), [(0.0, [1, 1, 1, 1]), (10 * SOON_S, [4])])
def test_patience_fills_the_batches_of_a_slow_list(
    run: Run, tmp_path: Path, listed: Any, patience_s: float, batches: list[int]
) -> None:
    """With --max-delay-ms four paths a fifth of a second apart share an inference; a full batch does not wait."""
    stream, write = listed
    line = b"%b\n" % os.fsencode(plain_png(tmp_path / "p.png", COLORS[1]))

    def slowly() -> None:
        for count in range(1, 5):
            write(line)
            time.sleep(0.2)
            if not patience_s or count == 4:
                until(lambda count=count: len(run.written) == count, "its result")  # type: ignore[misc]
        write(b"")

    writer = threading.Thread(target=slowly)
    writer.start()
    run.batch = 4
    started = time.monotonic()
    run(run.files("-", stream=stream, patience_s=patience_s))
    writer.join()
    assert run.batches == batches
    assert time.monotonic() - started < SOON_S


def test_empty_list_is_an_empty_run(source_program: Program, models: Path, tmp_path: Path) -> None:
    """No result, no error."""
    for data in (b"", b"\n\n\r\n"):
        done = source_program("--engine", models / "classifier.onnx", "--input", "-", input=data)
        assert (done.returncode, done.stdout) == (0, "")
        assert "0 inputs in" in done.stderr


class Seen:
    """A stand-in for an engine that keeps what it is given."""

    name = "stand-in"
    inputs = (TensorSpec("x", (-1, 2), "float32", is_input=True),)
    outputs = ()

    def infer(self, tensors: Tensors) -> Tensors:
        self.array = tensors["x"].copy()
        return {}

    def enter(self) -> None: ...

    def leave(self) -> None: ...


def test_places_without_a_picture_are_zero() -> None:
    """A damaged file's place does not show the model the picture of an earlier batch; nor do those behind the last."""

    def fill(_: Image.Image, wh: tuple[int, int], out: Any) -> Letterbox:
        out[:] = 7
        return Letterbox((1, 1), (0, 0), wh)

    engine = Seen()
    direct = Direct(engine, fill, (2,), np.float32, batch=4, least=3, hosts=1)
    (host,) = direct.hosts
    for places, count, wanted in (
        ((0, 1, 2, 3), 4, [7, 7, 7, 7]),
        ((1, 3), 4, [0, 7, 0, 7]),
        ((1,), 2, [0, 7, 0]),
        ((0,), 1, [7, 0, 0]),
    ):
        direct.begin(host)
        for place in places:
            direct.fill(host, place, Image.new("RGB", (1, 1)), (1, 1))
        direct.launch(host, count)
        assert engine.array[:, 0].tolist() == wanted


def test_large_batch_of_few_inputs_takes_the_memory_of_few() -> None:
    """--batch 4096 may stand in a unit file; only the places that are used are touched, and no more are made."""
    inputs = (TensorSpec("x", (-1, 3, 640, 640), "float32", is_input=True),)
    assert opening._batch(4096, inputs, total=3) == (3, 1)
    assert opening._batch(4096, inputs, total=None) == (4096, 1)
    engine = Seen()
    before = resident_bytes()
    direct = Direct(engine, lambda *_: Letterbox((1, 1), (0, 0), (1, 1)), (3, 640, 640), np.float32,
                    batch=400, least=1, hosts=1)  # fmt: skip
    engine.inputs = inputs
    direct.launch(direct.hosts[0], 3)
    assert resident_bytes() - before < 100e6  # all places: 2 GB


def test_summary_of_an_endless_run_stays_small() -> None:
    """The times are those of the latest inputs, the counts those of all; once full, their memory stays where it is."""
    summary, frame, places = Summary(), Frame("p.jpg"), set()
    for i in range(3 * MOST_TIMES):
        summary.add(Result(frame, "classify", times_ms={"infer": float(i)}))
        if i >= MOST_TIMES:
            places.add(summary.times_ms["infer"].buffer_info())
    assert summary.done == 3 * MOST_TIMES
    assert sorted(summary.times_ms["infer"]) == [float(i) for i in range(2 * MOST_TIMES, 3 * MOST_TIMES)]
    assert len(places) == 1


def test_descriptors_of_any_number_can_be_waited_for() -> None:
    """The parent may have left a thousand files open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 1100:
        pytest.skip("this system allows no descriptor of 1100")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1100), hard))
    reader, writer = os.pipe()
    high = fcntl.fcntl(reader, fcntl.F_DUPFD_CLOEXEC, 1050)
    try:
        stop = Stop()
        assert not stop.wait_readable(high, 0.01)
        os.write(writer, b"x")
        assert stop.wait_readable(high, SOON_S)
        assert stop.wait_readable(high)
    finally:
        for number in (reader, writer, high):
            os.close(number)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
