"""The service as its operator sees it: every input ends in done/ or failed/, whatever happens."""

from __future__ import annotations

import http.client
import io
import json
import lzma
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from serving import WAIT_S, Serving, Spool, copy_model, serving, until
from support import ROOT, Program

from edgeapp.commands.serve import IDLE_PROBE_S

DEMO = ROOT / "edgeapp" / "data" / "demo"
MODEL = DEMO / "model.onnx"
PICTURES = sorted(DEMO.glob("*.jpg"))

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Forty small pictures, each of its own bytes."""
    path = tmp_path_factory.mktemp("small") / "x.jpg"
    found = []
    for number in range(40):
        Image.new("RGB", (64, 48), (number * 6, 255 - number * 6, 90)).save(path)
        found.append(path.read_bytes())
    return found


def test_pictures_are_done_and_junk_fails(program: Program, spool: Spool) -> None:
    """Each has a line; a failed one has a report beside it; the boxes are those of `run`."""
    with serving(program, spool, engine=MODEL) as it:
        for path in PICTURES:
            spool.put(path, path.name)
        spool.put(b"no picture", "junk.jpg")
        spool.put(b"", "empty.png")
        it.wait_done(len(PICTURES) + 2)
        assert it.stop() == 0
    spool.assert_each_once()
    assert not spool.waiting
    assert {path.name for path in spool.done.iterdir()} == {path.name for path in PICTURES}
    report = json.loads((spool.failed / "junk.jpg.error.json").read_text())
    assert report["name"] == "junk.jpg"
    assert report["error"]["why"] == "it is no picture of a known format"
    assert report["error"]["exit_code"] == 65
    lines = {line["name"]: line for line in spool.lines()}
    alone = program("--engine", MODEL, "--input", *PICTURES).lines
    for line in alone:
        assert lines[Path(line["path"]).name]["detections"] == line["detections"]
    ids = {line["id"] for line in lines.values()}
    assert len(ids) == len(lines)


ODD_NAMES = [b"new\nline.jpg", b"\xff\xfe.jpg", b"a" * 251 + b".jpg", "é☃.jpg".encode(), b"~2.jpg", b" .jpg",
             b"noending", b"x.error.json", b"x.json", b"'\"\\.jpg"]  # fmt: skip


def test_odd_names_are_harmless(source_program: Program, spool: Spool, small: list[bytes]) -> None:
    """Newlines, bytes that are no UTF-8, the longest name, names like those of our own files."""
    with serving(source_program, spool, "--write", "jsonl", "json", engine=MODEL) as it:
        for name, data in zip(ODD_NAMES, small, strict=False):
            spool.put(data, name)
        it.wait_done(len(ODD_NAMES))
        assert it.stop() == 0
    assert not spool.waiting
    assert len(spool.lines()) == len(ODD_NAMES)
    inputs = [p for p in spool.done.iterdir() if Image.MIME and p.read_bytes()[:2] == b"\xff\xd8"]
    assert len(inputs) == len(ODD_NAMES)
    assert all(Path(f"{path}.json").is_file() for path in inputs)


def test_what_is_no_file_or_not_finished_is_left_or_fails(
    source_program: Program, spool: Spool, small: list[bytes]
) -> None:
    """Folders, hidden and unfinished files stay; links and FIFOs fail, and are not followed or waited for."""
    with serving(source_program, spool, "--settle-s", "0.2", engine=MODEL) as it:
        (spool.incoming / "folder").mkdir()
        (spool.incoming / ".hidden.jpg").write_bytes(small[0])
        (spool.incoming / "upload.jpg.part").write_bytes(small[0])
        (spool.incoming / "link.jpg").symlink_to(PICTURES[0])
        (spool.incoming / "nowhere.jpg").symlink_to("/nonexistent")
        os.mkfifo(spool.incoming / "fifo.jpg")
        it.wait_done(3)
        assert it.stop() == 0
    names = {path.name for path in spool.incoming.iterdir()}
    assert names == {"folder", ".hidden.jpg", "upload.jpg.part"}
    failed = {path.name for path in spool.failed.iterdir() if not path.name.endswith(".error.json")}
    assert failed == {"link.jpg", "nowhere.jpg", "fifo.jpg"}
    assert PICTURES[0].is_file()


def test_same_name_again_loses_nothing(source_program: Program, spool: Spool, small: list[bytes]) -> None:
    """A camera that always writes snapshot.jpg: all its pictures are kept, under names of their time."""
    with serving(source_program, spool, "--write", "jsonl", "json", "pictures", engine=MODEL) as it:
        for number in range(12):
            until(lambda: not spool.waiting, "taken")
            spool.put(small[number], "snapshot.jpg")
            spool.given[b"%d" % number] = spool.given.pop(b"snapshot.jpg")
        it.wait_done(12)
        assert it.stop() == 0
    spool.assert_each_once()
    pictures = [path for path in spool.done.iterdir() if path.name.endswith(".annotated.jpg")]
    assert len(pictures) == 12
    for path in pictures:
        with Image.open(path) as image:
            assert image.size == (64, 48)


def test_done_inputs_can_be_deleted(program: Program, spool: Spool, small: list[bytes]) -> None:
    """Only what failed is kept."""
    with serving(program, spool, "--done", "delete", engine=MODEL) as it:
        for number, data in enumerate(small[:5]):
            spool.put(data, f"{number}.jpg")
        spool.put(b"junk", "junk.jpg")
        it.wait_done(6)
        assert it.stop() == 0
    assert not list(spool.done.iterdir())
    assert not spool.waiting
    assert len(spool.lines()) == 6
    assert (spool.failed / "junk.jpg").is_file()


def test_slow_writer_is_waited_for(source_program: Program, spool: Spool) -> None:
    """Half a file is not taken while it is written, closed or not in between."""
    data = PICTURES[0].read_bytes()
    settle_s, pauses = 2.0, 16
    with serving(source_program, spool, "--settle-s", str(settle_s), engine=MODEL) as it:
        with open(spool.incoming / "slow.jpg", "wb") as file:
            for start in range(0, len(data), len(data) // pauses):
                file.write(data[start : start + len(data) // pauses])
                file.flush()
                time.sleep(1.2 * settle_s / pauses)
                assert not sum(it.status()["inputs"].values())
        it.wait_done(1)
        assert it.stop() == 0
    assert (spool.done / "slow.jpg").read_bytes() == data


def test_tensors_are_inputs_too(source_program: Program, spool: Spool, models: Path, tmp_path: Path) -> None:
    """A model without pictures: its probe is noise, its inputs .npy files."""
    model = models / "multi_io.onnx"
    inputs = {
        "image": np.ones((1, 3, 8, 8), np.float32),
        "scale": np.ones(1, np.float32),
        "shift": np.ones(1, np.int32),
    }
    np.savez(tmp_path / "x.npz", **inputs)
    with serving(source_program, spool, engine=model) as it:
        spool.put(tmp_path / "x.npz", "x.npz")
        spool.put(PICTURES[0], "picture.jpg")
        it.wait_done(2)
        assert it.stop() == 0
    spool.assert_each_once()
    lines = {line["name"]: line for line in spool.lines()}
    assert lines["x.npz"]["tensors"]
    assert lines["picture.jpg"]["error"]


# --- ends and starts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_finishes_what_was_begun(program: Program, spool: Spool, small: list[bytes], number: int) -> None:
    """Exit 0; what was not begun waits in its folder; a second SIGTERM changes nothing."""
    with serving(program, spool, engine=MODEL) as it:
        for index in range(400):
            spool.put(small[index % 40] + b"%d" % index, f"{index}.jpg")
        it.wait_done(5)
        it.process.send_signal(number)
        if number == signal.SIGTERM:
            time.sleep(0.1)
            it.process.send_signal(number)
        assert it.process.wait(WAIT_S) == 0
    spool.assert_each_once()
    assert '"begin"' not in (spool.root / "state" / "ledger").read_text().splitlines()[-1]


READS_SLOWLY = """
import sys, time
from edgeapp import cli
from edgeapp.service import source
read = source.read_frame
def read_frame(frame, *words, **named):
    if frame.path.endswith("large.png"):
        time.sleep(3600)
    read(frame, *words, **named)
source.read_frame = read_frame
cli.main(sys.argv[1:])
"""
"""A stand-in for a picture that takes long to read."""


def reading_slowly(program: Program) -> Program:
    (program.cwd / "slowly.py").write_text(READS_SLOWLY)
    return Program([program.command[0], str(program.cwd / "slowly.py")], program.cwd, program.env)


def test_input_that_kills_fails_after_three_attempts(source_program: Program, spool: Spool, small: list[bytes]) -> None:
    """The process is killed each time the large picture is being read; the others are not blamed."""
    for index in range(8):
        spool.put(small[index], f"{index}.jpg")
    spool.put(small[8], "large.png")
    slowly = reading_slowly(source_program)
    ledger = spool.root / "state" / "ledger"

    def begun() -> int:
        """How often the ledger says that it was begun and not ended."""
        count = 0
        for line in ledger.read_text().splitlines() if ledger.exists() else ():
            record = json.loads(line)
            count = record.get("attempts", {}).get("large.png", count)
            count += record.get("begin", []).count("large.png")
        return count

    for attempt in range(3):
        with serving(slowly, spool, "--settle-s", "0.05", engine=MODEL, ready=False) as it:
            until(lambda attempt=attempt: begun() > attempt, f"attempt {attempt}")  # type: ignore[misc]
            it.process.kill()
    with serving(source_program, spool, "--settle-s", "0.05", engine=MODEL) as it:
        until(lambda: not spool.waiting, "all")
        assert it.stop() == 0
    spool.assert_each_once()
    report = json.loads((spool.failed / "large.png.error.json").read_text())
    assert "begun 3 times" in report["error"]["what"]
    assert len(list(spool.done.iterdir())) == 8


def test_retry_puts_failed_inputs_back(program: Program, spool: Spool, small: list[bytes]) -> None:
    """All, or those that are named; their reports go; the service takes them anew."""
    with serving(program, spool, "--settle-s", "0.1", engine=MODEL) as it:
        for name in ("a.jpg", "b.jpg", "c.jpg"):
            spool.put(b"junk" + name.encode(), name)
        it.wait_done(3)
        (spool.failed / "b.jpg").write_bytes(small[0])  # what was wrong with it is mended
        done = program("retry", "--spool", spool.root, "b.jpg", "missing.jpg")
        assert done.returncode == 1
        assert "missing.jpg" in done.stderr
        it.wait_done(4)
        assert (spool.done / "b.jpg").read_bytes() == small[0]
        assert not (spool.failed / "b.jpg.error.json").exists()
        assert program("retry", "--spool", spool.root, f"{spool.failed}/").returncode == 66, "a folder is no input"
        assert program("retry", "--spool", spool.root, *spool.failed.iterdir()).returncode == 0
        it.wait_done(6)
        assert it.stop() == 0
    assert sorted(path.name for path in spool.failed.iterdir() if path.suffix == ".jpg") == ["a.jpg", "c.jpg"]
    assert len(list(spool.failed.iterdir())) == 4
    assert program("retry", "--spool", "/nonexistent").returncode == 66


LOSES_ITS_GPU = """
import os, sys, time
from edgeapp import cli, errors
from edgeapp.cpu.engine import CpuEngine
whole, runs = CpuEngine.infer, 0
def infer(self, tensors):
    global runs
    runs += 1
    if runs > 6:
        while not os.listdir(os.environ["DONE"]):
            time.sleep(0.01)
        raise errors.GpuLostError("the GPU answers no more", "CUDA error 700")
    return whole(self, tensors)
CpuEngine.infer = infer
if os.environ["HANGS"] == "1":
    CpuEngine.close = lambda self: time.sleep(1000)
cli.main(sys.argv[1:])
"""
"""A stand-in for a GPU that is lost: the CPU's engine says so after some inferences, when something is done. HANGS: and
its library does not come back when it shall free what it has."""


@pytest.mark.parametrize("hangs", ["0", "1"])
def test_lost_gpu_ends_the_process_at_once_and_loses_no_input(
    source_program: Program, spool: Spool, small: list[bytes], tmp_path: Path, hangs: str
) -> None:
    """75, for the restart, and why; what was done is on the disk, the rest waits, and is done by the next process."""
    (tmp_path / "loses.py").write_text(LOSES_ITS_GPU)
    env = {**source_program.env, "DONE": str(spool.done), "HANGS": hangs}
    losing = Program([source_program.command[0], str(tmp_path / "loses.py")], tmp_path, env)
    for index in range(30):
        spool.put(small[index], f"{index}.jpg")
    words = (losing, spool, "--settle-s", "0.05")
    with (tmp_path / "log").open("wb") as log, serving(*words, engine=MODEL, ready=False, stderr=log) as it:
        assert it.process.wait(WAIT_S) == 75
    assert (tmp_path / "log").read_text().count("the GPU answers no more") == 1
    assert 0 < len(spool.waiting) < 30
    spool.assert_each_once()
    with serving(source_program, spool, "--settle-s", "0.05", engine=MODEL) as it:
        until(lambda: not spool.waiting, "all")
        assert it.stop() == 0
    spool.assert_each_once()
    assert not list(spool.failed.iterdir())


SLOW_LIBRARY = """
import pathlib, sys, time
from edgeapp import cli
from edgeapp.cpu.engine import CpuEngine
load, marks = CpuEngine.__init__, pathlib.Path(sys.argv[0]).parent
def slowly(self, *words, **named):
    (marks / "begun").touch()
    time.sleep(1)
    load(self, *words, **named)
    (marks / "loaded").touch()
CpuEngine.__init__ = slowly
sys.exit(cli.main(sys.argv[1:]))
"""
"""A stand-in for a large model."""


def test_signal_while_a_model_is_loaded_waits_for_the_library(
    source_program: Program, spool: Spool, tmp_path: Path
) -> None:
    """0; a library whose thread loses its process under way may abort it."""
    (tmp_path / "slow.py").write_text(SLOW_LIBRARY)
    slow = Program([source_program.command[0], str(tmp_path / "slow.py")], tmp_path, source_program.env)
    with serving(slow, spool, engine=MODEL, ready=False) as it:
        until((tmp_path / "begun").exists, "loading")
        assert it.stop() == 0
    assert (tmp_path / "loaded").exists()


@pytest.mark.skipif(os.path.exists("/dev/nvidiactl"), reason="there is a GPU")
def test_plan_waits_for_its_gpu(program: Program, spool: Spool, tmp_path: Path) -> None:
    """Not ready, said once; never the CPU; a signal ends the waiting."""
    plan = tmp_path / "model.plan"
    plan.write_bytes(lzma.decompress((DEMO / "model.plan.xz").read_bytes()))
    with serving(program, spool, engine=plan, ready=False, stderr=subprocess.PIPE) as it:
        until(lambda: (spool.root / "state" / "control.sock").exists() and not it.ready(), "control")
        until(lambda: it.status()["reason"].startswith("waiting for the GPU"), "waiting")
        it.process.terminate()
        _, said = it.process.communicate(timeout=WAIT_S)
        assert it.process.returncode == 0
    assert b"libcuda" in said
    assert said.count(b"error") == 1


@pytest.mark.skipif(os.path.exists("/dev/nvidiactl"), reason="there is a GPU")
def test_service_that_waits_for_its_gpu_can_be_ended(source_program: Program, spool: Spool, tmp_path: Path) -> None:
    """By a drain too; a reload is refused, and systemd is not told that it is ready."""
    plan = tmp_path / "model.plan"
    plan.write_bytes(lzma.decompress((DEMO / "model.plan.xz").read_bytes()))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.setblocking(False)
        env = {"NOTIFY_SOCKET": str(tmp_path / "notify")}
        with serving(source_program, spool, engine=plan, env=env, ready=False) as it:
            until(lambda: (spool.root / "state" / "control.sock").exists() and not it.ready(), "control")
            reload = it.ctl("reload", "--wait")
            assert reload.returncode == 74
            assert "starting" in reload.stderr
            assert it.ctl("drain").returncode == 0
            assert it.process.wait(WAIT_S) == 0
        heard = b""
        with suppress(BlockingIOError):
            while True:
                heard += listener.recv(4096)
        assert b"STATUS" in heard
        assert b"READY" not in heard


def test_second_service_on_a_spool_is_refused(program: Program, spool: Spool) -> None:
    """71, and the first goes on."""
    with serving(program, spool, engine=MODEL) as it:
        under_way = [spool.done / ".x.jpg.json.pending", spool.results / ".1.new"]
        for path in under_way:
            path.touch()
        second = program("serve", "--engine", MODEL, "--spool", spool.root)
        assert second.returncode == 71
        assert "another process" in second.stderr
        assert all(path.exists() for path in under_way), "the second one tidied up after the first"
        assert it.ready()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ([], 64, "--engine"),
        (["--engine", MODEL], 64, "--spool"),
        (["--engine", "/nonexistent.plan", "--spool", "spool"], 66, "nonexistent"),
        (["--engine", MODEL, "--spool", "/proc/spool"], 73, "/proc/spool"),
        (["--engine", MODEL, "--spool", "spool", "--watch", "/proc"], 73, "/proc"),
        (["--engine", MODEL, "--spool", "spool", "--done", "delete", "--write", "json"], 64, "--done delete"),
        (["--engine", MODEL, "--spool", "spool", "--control", "x" * 120], 64, "107 bytes"),
        (["--engine", PICTURES[0], "--spool", "spool"], 65, "bench-1.jpg"),
    ],
    ids=[
        "no engine",
        "no spool",
        "no such plan",
        "spool in /proc",
        "watch /proc",
        "delete and json",
        "long",
        "picture",
    ],
)
def test_wrong_settings_end_with_their_code(program: Program, words: list[str | Path], code: int, said: str) -> None:
    """At once, with a cause, and nothing hangs."""
    outcome = program("serve", *words)
    assert outcome.returncode == code, outcome
    assert said in outcome.stderr


@pytest.mark.parametrize("name", ["in", "done"])
def test_folder_that_disappears_ends_the_process_until_a_restart(
    source_program: Program, spool: Spool, small: list[bytes], name: str
) -> None:
    """74, with its name; the next process makes it anew."""
    with serving(source_program, spool, engine=MODEL, stderr=subprocess.PIPE) as it:
        os.rename(spool.root / name, spool.root / "away")
        it.ctl("resume")  # it looks at once
        _, said = it.process.communicate(timeout=WAIT_S)
        assert it.process.returncode == 74
    assert f"{spool.root}/{name}; why: it was deleted or moved away" in said.decode()
    with serving(source_program, spool, engine=MODEL) as it:
        spool.put(small[0], "a.jpg")
        it.wait_done(1)
        assert it.stop() == 0


def test_result_that_cannot_be_kept_ends_the_process_soon(
    source_program: Program, spool: Spool, small: list[bytes]
) -> None:
    """Not when the next input comes; and the input is still there."""
    with serving(source_program, spool, engine=MODEL, ready=False) as it:
        until(it.ready, "ready")
        spool.done.rmdir()
        spool.done.write_text("no folder")
        spool.put(small[0], "a.jpg")
        assert it.process.wait(0.9 * IDLE_PROBE_S) == 73
    assert spool.waiting == [b"a.jpg"]


@pytest.mark.parametrize("how", ["deleted", "emptied"])
def test_results_that_somebody_removes_do_not_take_later_ones_along(
    source_program: Program, spool: Spool, small: list[bytes], how: str
) -> None:
    """The next one is in a new file, or at the beginning of the old one."""
    results = spool.results / "results.jsonl"
    for _ in range(2):
        with serving(source_program, spool, engine=MODEL) as it:
            spool.put(small[0], "a.jpg")
            it.wait_done(1)
            results.unlink() if how == "deleted" else os.truncate(results, 0)
            spool.put(small[1], "b.jpg")
            it.wait_done(2)
            assert it.stop() == 0
        assert [line["name"] for line in spool.lines()] == ["b.jpg"]


def test_same_bytes_under_another_name_have_a_result_of_their_own(
    source_program: Program, spool: Spool, small: list[bytes]
) -> None:
    """Also when the process was killed in between, and looks whether the result is there already."""
    for name in ("a.jpg", "b.jpg"):
        (spool.root / "state").mkdir(exist_ok=True)
        (spool.root / "state" / "ledger").write_text('{"begin": ["b.jpg"]}\n')
        spool.put(small[0], name)
        with serving(source_program, spool, "--settle-s", "0.05", engine=MODEL) as it:
            it.wait_done(1)
            assert it.stop() == 0
    assert [line["name"] for line in spool.lines()] == ["a.jpg", "b.jpg"]


def test_picture_that_cannot_be_drawn_fails(source_program: Program, spool: Spool, small: list[bytes]) -> None:
    """A side is longer than a JPEG's may be: that input fails, the service goes on."""
    wide = io.BytesIO()
    Image.new("RGB", (70_000, 8)).save(wide, "PNG")
    with serving(source_program, spool, "--write", "jsonl", "pictures", engine=MODEL) as it:
        spool.put(wide.getvalue(), "wide.png")
        spool.put(small[0], "a.jpg")
        it.wait_done(2)
        assert it.stop() == 0
    spool.assert_each_once()
    report = json.loads((spool.failed / "wide.png.error.json").read_text())
    assert "70000x8" in report["error"]["what"]
    assert (spool.done / "a.jpg.annotated.jpg").is_file()


def test_closed_standard_streams_harm_nothing(source_program: Program, spool: Spool, small: list[bytes]) -> None:
    """A service started without any of them serves."""
    command = ["/bin/sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *source_program.command]
    with serving(Program(command, source_program.cwd, source_program.env), spool, engine=MODEL) as it:
        spool.put(small[0], "a.jpg")
        until(lambda: (spool.done / "a.jpg").exists(), "done")
        assert it.stop() == 0


# --- what is said and asked -------------------------------------------------------------------------------------------


def test_systemd_is_told_when_it_works(source_program: Program, spool: Spool, tmp_path: Path) -> None:
    """READY only after a probe came through, WATCHDOG while idle, STOPPING at the end."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(30)
        env = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "600000"}
        with serving(source_program, spool, engine=MODEL, env=env) as it:
            heard = ""
            while heard.count("WATCHDOG=1") < 3:
                heard += listener.recv(4096).decode() + "\n"
            assert heard.index("READY=1") < heard.index("WATCHDOG=1") or "READY=1" in heard
            it.process.send_signal(signal.SIGTERM)
            while "STOPPING=1" not in heard:
                heard += listener.recv(4096).decode() + "\n"
            assert it.process.wait(WAIT_S) == 0


def test_process_that_stands_still_feeds_no_watchdog(source_program: Program, spool: Spool, tmp_path: Path) -> None:
    """The sign of life comes from the work."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        env = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "600000"}
        with serving(source_program, spool, engine=MODEL, env=env) as it:
            it.process.send_signal(signal.SIGSTOP)
            time.sleep(0.2)
            listener.setblocking(False)
            while True:
                try:
                    listener.recv(4096)
                except BlockingIOError:
                    break
            listener.settimeout(1.5)
            with pytest.raises(TimeoutError):
                listener.recv(4096)
            it.process.send_signal(signal.SIGCONT)


def test_ctl_pauses_resumes_and_drains(program: Program, spool: Spool, small: list[bytes]) -> None:
    """While paused nothing is begun; drain ends it with 0."""
    with serving(program, spool, engine=MODEL) as it:
        assert "paused" in it.ctl("pause").stdout
        spool.put(small[0], "a.jpg")
        time.sleep(0.5)
        assert spool.waiting == [b"a.jpg"]
        assert not it.status()["ready"]
        assert "not ready" not in it.ctl("resume").stdout
        it.wait_done(1)
        assert json.loads(it.ctl("status").stdout)["inputs"] == {"done": 1, "failed": 0}
        assert it.ctl("drain").returncode == 0
        assert it.process.wait(WAIT_S) == 0


def test_ctl_without_a_service_says_so(program: Program, tmp_path: Path) -> None:
    """66, and what to look at."""
    outcome = program("ctl", "status", "--spool", tmp_path)
    assert outcome.returncode == 66
    assert "no service listens there" in outcome.stderr


@pytest.mark.parametrize(
    "request_bytes",
    [b"", b"\n", b"[]\n", b"{\n", b'{"do": "fly"}\n', b'{"do": 7}\n', b"\xff\n", b"x" * 100_000],
    ids=["empty", "blank", "list", "half", "unknown", "number", "no UTF-8", "long"],
)
def test_nonsense_on_the_socket_is_answered(
    source_program: Program, spool: Spool, request_bytes: bytes, serving_once: Callable[[], Serving]
) -> None:
    """With an error, and the service goes on."""
    it = serving_once()
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(str(it.spool.root / "state" / "control.sock"))
        try:
            client.sendall(request_bytes)
            client.shutdown(socket.SHUT_WR)
            answer = client.recv(4096)
        except OSError:
            answer = b""
    assert not answer or b"error" in answer
    assert it.ready()


@pytest.fixture(scope="module")
def serving_once(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    """One service for tests that leave it as it was."""
    import sys

    folder = tmp_path_factory.mktemp("once")
    env = {"PATH": "/usr/bin:/bin", "HOME": str(folder), "LC_ALL": "C.UTF-8", "PYTHONPATH": str(ROOT)}
    program = Program([sys.executable, "-m", "edgeapp"], folder, env)
    with serving(program, Spool(folder / "spool"), engine=MODEL) as it:
        yield lambda: it


def test_page_and_metrics_are_served(program: Program, spool: Spool, tmp_path: Path) -> None:
    """Over a Unix socket here: ready, what was found, a thumbnail; the text file says the same to Prometheus."""
    socket_path, metrics = tmp_path / "http.sock", tmp_path / "metrics.prom"

    def get(path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("localhost")
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(10)
        connection.sock.connect(str(socket_path))
        connection.request("GET", path)
        response = connection.getresponse()
        data = response.read()
        connection.close()
        return response.status, data

    with serving(program, spool, "--http", socket_path, "--metrics-file", metrics, engine=MODEL) as it:
        assert get("/readyz") == (200, b"ready\n")
        assert json.loads(get("/status.json")[1])["ready"]  # somebody looks: thumbnails are made from now on
        spool.put(PICTURES[0], PICTURES[0].name)
        it.wait_done(1)
        told = json.loads(get("/status.json")[1])
        assert told["inputs"] == {"done": 1, "failed": 0}
        status, jpeg = get(told["results"][0]["thumbnail"])
        assert status == 200
        with Image.open(io.BytesIO(jpeg)) as image:
            assert max(image.size) == 240
        assert b"<script>" in get("/")[1]
        assert b'edgeapp_inputs_total{result="done"} 1' in get("/metrics")[1]
        it.ctl("pause")
        assert get("/readyz")[0] == 503
        until(lambda: metrics.exists() and "edgeapp_ready" in metrics.read_text(), "metrics file")
        assert it.stop() == 0


def test_model_without_its_golden_output_never_becomes_ready(
    program: Program, spool: Spool, small: list[bytes], tmp_path: Path
) -> None:
    """65 at the start, and at a reload the old model stays."""
    model = copy_model(DEMO, tmp_path / "model")
    assert program("golden", "--engine", model, "--write").returncode == 0
    card = model.with_name("model.json")
    right = card.read_text()
    wrong = json.loads(right)
    next(iter(wrong["golden"]["outputs"].values()))["values"][0] = 1e6
    with serving(program, spool, engine=model) as it:
        card.write_text(json.dumps(wrong))
        assert it.ctl("reload", "--wait").returncode == 65
        spool.put(small[0], "a.jpg")
        it.wait_done(1)
        card.write_text(right)
        assert it.ctl("reload", "--wait").returncode == 0
        assert it.stop() == 0
    card.write_text(json.dumps(wrong))
    outcome = program("serve", "--engine", model, "--spool", spool.root)
    assert outcome.returncode == 65
    assert "golden output" in outcome.stderr


def test_paths_on_a_socket_get_their_results(program: Program, spool: Spool, tmp_path: Path) -> None:
    """Each line an answer, also for what cannot be; the files stay; what was accepted survives a kill."""
    place = tmp_path / "paths.sock"
    (tmp_path / "junk.jpg").write_bytes(b"junk")
    wanted = [*map(str, PICTURES), str(tmp_path / "junk.jpg"), "/nonexistent.jpg", "relative.jpg"]
    with serving(program, spool, "--listen", place, engine=MODEL) as it, socket.socket(socket.AF_UNIX) as client:
        client.settimeout(30)
        client.connect(str(place))
        client.sendall("".join(f"{path}\n" for path in wanted).encode())
        with client.makefile("rb") as answers:
            lines = {line["name"]: line for line in (json.loads(answers.readline()) for _ in wanted)}
        assert lines.keys() == set(wanted)
        assert all(lines[str(path)]["detections"] for path in PICTURES)
        assert [name for name in wanted if "error" in lines[name]] == wanted[-3:]
        it.ctl("pause")
        client.sendall(f"{PICTURES[0]}\n".encode())
        assert it.stop() == 0
    assert all(path.is_file() for path in PICTURES)
    assert (tmp_path / "junk.jpg").is_file()
    assert len(spool.lines()) == len(wanted) - 1


def test_file_without_an_end_is_no_input(source_program: Program, spool: Spool, tmp_path: Path) -> None:
    """Of /proc, which claims no size and gives terabytes."""
    place = tmp_path / "paths.sock"
    with serving(source_program, spool, "--listen", place, engine=MODEL) as it, socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(str(place))
        client.sendall(b"/proc/self/pagemap\n")
        with client.makefile("rb") as answers:
            assert json.loads(answers.readline())["error"]["why"] == "the file is empty"
        assert it.stop() == 0


def test_accepted_path_is_finished_by_the_next_process(source_program: Program, spool: Spool, tmp_path: Path) -> None:
    """The ledger keeps it when the process is killed."""
    Image.new("RGB", (64, 48)).save(tmp_path / "large.png")
    place, slowly = tmp_path / "paths.sock", reading_slowly(source_program)
    with serving(slowly, spool, "--listen", place, engine=MODEL) as it, socket.socket(socket.AF_UNIX) as client:
        client.connect(str(place))
        client.sendall(f"{tmp_path}/large.png\n".encode())
        until(lambda: "large.png" in (spool.root / "state" / "ledger").read_text(), "accepted")
        it.process.kill()
    with serving(source_program, spool, engine=MODEL) as it:
        it.wait_done(1)
        assert it.stop() == 0
    assert [line["name"] for line in spool.lines()] == [f"{tmp_path}/large.png"]


def test_standard_streams_make_a_worker(program: Program, spool: Spool) -> None:
    """Paths in, results out, and the end of the input is the end of the service."""
    paths = "".join(f"{path}\n" for path in PICTURES * 40)
    outcome = program("serve", "--engine", MODEL, "--spool", spool.root, "--listen", "-", input=paths.encode())
    assert outcome.returncode == 0
    answered = [line["name"] for line in outcome.lines if "error" not in line]
    assert set(answered) == set(map(str, PICTURES))
    assert len(outcome.lines) == 200


# --- another model ----------------------------------------------------------------------------------------------------


def test_reload_serves_the_new_model_and_keeps_the_old_one_if_it_is_bad(
    program: Program, spool: Spool, small: list[bytes], tmp_path: Path
) -> None:
    """The exit code of `ctl reload --wait` tells; no input fails; ids change with the model."""
    model = copy_model(DEMO, tmp_path / "model")
    good = model.read_bytes()
    with serving(program, spool, engine=model) as it:
        spool.put(small[0], "a.jpg")
        it.wait_done(1)
        model.write_bytes(good[: len(good) // 2])
        bad = it.ctl("reload", "--wait")
        assert bad.returncode == 65, bad
        assert it.status()["reloads"] == {"done": 0, "failed": 1}
        spool.put(small[1], "b.jpg")
        it.wait_done(2)
        card = json.loads((DEMO / "model.json").read_text())
        (model.parent / "model.json").write_text(json.dumps(card | {"score_threshold": 0.99}))
        model.write_bytes(good)
        assert it.ctl("reload", "--wait").returncode == 0
        spool.put(PICTURES[0], "c.jpg")
        it.wait_done(3)
        it.process.send_signal(signal.SIGHUP)
        until(lambda: it.status()["reloads"]["done"] == 2, "reload by SIGHUP")
        assert it.stop() == 0
    lines = {line["name"]: line for line in spool.lines()}
    assert not any("error" in line for line in lines.values())
    assert not lines["c.jpg"]["detections"], "the threshold of the new card holds"


def test_swap_looks_before_it_gives_up_the_old_model(
    source_program: Program, spool: Spool, small: list[bytes], tmp_path: Path
) -> None:
    """What lies in the place of the old model now is damaged, missing or not what was promised: the old one goes on."""
    model = copy_model(DEMO, tmp_path / "model")
    card = json.loads((DEMO / "model.json").read_text())

    def place(data: bytes | None, keys: dict[str, object]) -> None:
        (model.parent / "model.json").write_text(json.dumps(card | keys))
        model.unlink(missing_ok=True)
        if data is not None:
            model.write_bytes(data)

    whole = model.read_bytes()
    with serving(source_program, spool, "--reload", "swap", engine=model) as it:
        for number, (data, keys, code) in enumerate(
            [(None, {}, 66), (b"garbage", {}, 65), (whole, {"sha256": "0" * 64}, 78), (whole, {"task": 7}, 78)], 1
        ):
            place(data, keys)
            assert it.ask(do="reload", wait=True).get("exit_code") == code
            spool.put(small[number], f"{number}.jpg")
            it.wait_done(number)
        place(whole, {})
        assert "exit_code" not in it.ask(do="reload", wait=True)
        assert it.status()["reloads"] == {"done": 1, "failed": 4}
        assert it.stop() == 0
    assert not any("error" in line for line in spool.lines())


def test_swap_without_a_way_back_ends_with_the_reason(
    source_program: Program, spool: Spool, small: list[bytes], tmp_path: Path
) -> None:
    """Another card in the place of the old one, found bad only when the model ran: 65 to who asked and to systemd."""
    model = copy_model(DEMO, tmp_path / "model")
    assert source_program("golden", "--engine", model, "--write").returncode == 0
    card = json.loads((model.parent / "model.json").read_text())
    with serving(source_program, spool, "--reload", "swap", engine=model) as it:
        for kept in card["golden"]["outputs"].values():
            kept["values"] = kept["values"][1:] + kept["values"][:1]
        (model.parent / "model.json").write_text(json.dumps(card))
        spool.put(small[0], "a.jpg")
        assert it.ask(do="reload", wait=True)["exit_code"] == 65
        assert it.process.wait(30) == 65
    spool.assert_each_once()


COUNTS_RUNNERS = """
import atexit, gc, os, sys
from edgeapp import cli
from edgeapp.direct import Direct
gc.disable()
atexit.register(lambda: print("runners", sum(isinstance(o, Direct) for o in gc.get_objects()), flush=True))
cli.main(sys.argv[1:])
"""
"""The program, with garbage collected only where it asks for that itself."""


def test_models_of_the_past_leave_no_memory_behind(source_program: Program, spool: Spool, tmp_path: Path) -> None:
    """A reload gives back the old model's memory at once, not when the interpreter comes round to it."""
    (tmp_path / "counts.py").write_text(COUNTS_RUNNERS)
    counting = Program([source_program.command[0], str(tmp_path / "counts.py")], tmp_path, source_program.env)
    with serving(counting, spool, engine=MODEL, stdout=subprocess.PIPE) as it:
        for count in range(1, 5):
            it.process.send_signal(signal.SIGHUP)
            until(lambda count=count: it.status()["reloads"]["done"] == count, "reload")  # type: ignore[misc]
        it.process.terminate()
        said, _ = it.process.communicate(timeout=WAIT_S)
    assert int(said.split()[1]) <= 2


LOADS_SLOWLY = """
import sys, time
from edgeapp import cli
from edgeapp.commands import hosting
whole, loads = hosting.open_model, 0
def open_model(file, settings, trace, talk, stop, stack, **words):
    global loads
    loads += 1
    for _ in range(50 if loads > 1 else 0):
        time.sleep(0.05)
        stop.check()
    return whole(file, settings, trace, talk, stop, stack, **words)
hosting.open_model = open_model
cli.main(sys.argv[1:])
"""
"""A stand-in for a large plan: every model but the first takes 2.5 s, and a signal ends that."""


def test_swap_of_large_models_is_no_hang_and_can_be_ended(
    source_program: Program, spool: Spool, tmp_path: Path
) -> None:
    """While there is no model the watchdog is fed all the same; SIGTERM then ends with 0."""
    (tmp_path / "slowly.py").write_text(LOADS_SLOWLY)
    slowly = Program([source_program.command[0], str(tmp_path / "slowly.py")], tmp_path, source_program.env)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(30)
        env = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "2000000"}
        with serving(slowly, spool, "--reload", "swap", engine=MODEL, env=env) as it:
            it.process.send_signal(signal.SIGHUP)
            heard = ""
            while "RELOADING=1" not in heard:
                heard = listener.recv(4096).decode()
            while "READY=1" not in heard:
                heard += listener.recv(4096).decode()
            assert heard.count("WATCHDOG=1") >= 2
            it.process.send_signal(signal.SIGHUP)
            until(lambda: it.status()["reloading"], "reload")
            assert it.stop() == 0


@pytest.mark.parametrize("how", ["beside", "swap"])
def test_reloads_under_load_fail_no_input(source_program: Program, spool: Spool, small: list[bytes], how: str) -> None:
    """A storm of SIGHUP while pictures come: each is answered once."""
    with serving(source_program, spool, "--reload", how, engine=MODEL) as it:
        for index in range(200):
            spool.put(small[index % 40] + b"%d" % index, f"{index}.jpg")
            it.process.send_signal(signal.SIGHUP)
        it.wait_done(200)
        until(lambda: it.status()["reloads"]["done"] >= 1, "a reload")
        assert it.stop() == 0
    spool.assert_each_once()
    assert not list(spool.failed.iterdir())
