"""Several GPUs share a run: one output in order, whatever happens to a worker. The GPUs are a stand-in, see
fleet_on_cpu.py; the processes are real.
"""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import ROOT, Outcome, Program, plain_png
from test_bootstrap import has_driver

from edgeapp.commands.bench_several import Lap, rate, ratio

COLORS = ((255, 0, 0), (0, 255, 0), (0, 0, 255))
SOON_S = 60.0
"""Long enough for a busy machine, short enough to tell a hang."""


@pytest.fixture
def fleet(tmp_path: Path) -> Program:
    """edgeapp on two GPUs; FLEET_GPUS says otherwise."""
    env = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "LC_ALL": "C.UTF-8", "PYTHONPATH": str(ROOT)}
    return Program([sys.executable, str(ROOT / "tests" / "fleet_on_cpu.py")], tmp_path, env | {"FLEET_GPUS": "2"})


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """100 small pictures of three colours."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    return [plain_png(folder / f"{i:03d}.png", COLORS[i % 3], (20 + i % 7, 20)) for i in range(100)]


@pytest.fixture
def mixed(tmp_path: Path, noise: Callable[[int, int], Image.Image]) -> list[Path]:
    """Pictures of many kinds with what cameras write into them, tensors, damaged and missing files."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    made = []
    for i in range(60):
        path = folder / f"{i:02d}.jpg"
        if i % 13 == 5:
            path = path.with_suffix(".npy")
            np.save(path, np.full((1, 3, 32, 32), i, np.float32))
        elif i % 17 == 3:
            path.write_bytes(b"no picture")
        elif i % 4 == 1:
            path = plain_png(path.with_suffix(".png"), (*COLORS[i % 3], 99)[: 3 + i % 2])
        elif i % 29 != 7:  # missing
            exif = Image.Exif()
            exif[0x0112] = 1 + i % 8
            noise(30 + i * 37 % 200, 40 + i * 91 % 150).save(path, exif=exif, comment=f"picture {i}", icc_profile=b"i")
        made.append(path)
    return made


def written(folder: Path) -> dict[str, object]:
    """All that a run wrote, without its times."""
    found: dict[str, object] = {}
    for line in (folder / "r.jsonl").read_text().splitlines():
        values = json.loads(line)
        values.pop("times_ms", None)
        found.setdefault("jsonl", []).append(values)  # type: ignore[attr-defined]
    found["csv"] = (folder / "r.csv").read_bytes()
    with zipfile.ZipFile(folder / "r.npz") as archive:
        found["npz"] = [(name, archive.read(name)) for name in archive.namelist()]
    found["saved"] = {path.name: path.read_bytes() for path in sorted((folder / "out").iterdir())}
    return found


def check(lines: list[dict[str, object]], wanted: list[Path]) -> None:
    """A line for every input, in order, with the right answer."""
    assert [line["path"] for line in lines] == list(map(str, wanted))
    for line in lines:
        number = int(Path(str(line["path"])).stem)
        assert line["classes"][0]["class_id"] == number % 3  # type: ignore[index]


def shares(done: Outcome) -> dict[int, int]:
    """How much each GPU did, as the last line says."""
    return {int(gpu): int(count) for gpu, count in re.findall(r"GPU (\d+): (\d+)", done.stderr.splitlines()[-1])}


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def gone(pid: int) -> bool:
    """Whether a process has ended, reaped or not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def all_gone(pids: list[int]) -> bool:
    until = time.monotonic() + SOON_S
    while not all(map(gone, pids)) and time.monotonic() < until:
        time.sleep(0.01)
    return all(map(gone, pids))


class Fed:
    """A run whose list stays open, and that has given some results."""

    def __init__(self, fleet: Program, models: Path, pictures: list[Path], *words: str) -> None:
        self.child = fleet.start(
            "--engine", models / "classifier.onnx", "--device", "all", "--input", "-", "--batch", "4", *words,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        self.listed = b"".join(os.fsencode(path) + b"\n" for path in pictures)
        self.lines: list[dict[str, object]] = []
        self.feed()
        self.read(len(pictures))
        self.workers = children(self.child.pid)

    def feed(self) -> None:
        assert self.child.stdin is not None
        self.child.stdin.write(self.listed)
        self.child.stdin.flush()

    def read(self, count: int) -> None:
        assert self.child.stdout is not None
        for _ in range(count):
            self.lines.append(json.loads(self.child.stdout.readline()))

    def end(self) -> Outcome:
        """Close the list, and see the run end."""
        with self.child as child:
            assert child.stdin is not None
            assert child.stdout is not None
            assert child.stderr is not None
            with contextlib.suppress(BrokenPipeError):
                child.stdin.close()
            self.lines += [json.loads(line) for line in child.stdout.read().splitlines()]
            talk = child.stderr.read().decode()
            return Outcome(child.wait(timeout=SOON_S), "", talk)


# ---- what comes out


def test_outputs_are_those_of_one_process(
    fleet: Program, source_program: Program, models: Path, mixed: list[Path], tmp_path: Path
) -> None:
    """Lines, tables, arrays and drawn pictures are the same to the byte with 1, 2 and 4 workers as without any."""
    found = []
    for program, gpus in ((source_program, ""), (fleet, "1"), (fleet, "2"), (fleet, "4")):
        folder = tmp_path / f"by{gpus}"
        folder.mkdir()
        done = program(
            "--engine", models / "classifier.onnx", "--batch", "3", "--input", *mixed, "--decode-threads", "4",
            "--output", folder / "r.jsonl", folder / "r.csv", folder / "r.npz", "--save", folder / "out",
            *(["--device", "all"] if gpus else []), env={"FLEET_GPUS": gpus},
        )  # fmt: skip
        assert done.returncode == 1, done
        found.append(written(folder))
        if gpus:
            assert len(shares(done)) == int(gpus)
            assert sum(shares(done).values()) == len(mixed)
            assert done.stderr.count("guessed") == 1  # said once, not by every worker
    alone, *others = found
    assert len(alone["jsonl"]) == len(mixed)  # type: ignore[arg-type]
    assert len(alone["saved"]) > 30  # type: ignore[arg-type]
    assert all(other == alone for other in others)


def test_tensors_are_those_of_one_process(
    fleet: Program, source_program: Program, models: Path, mixed: list[Path]
) -> None:
    """An engine that takes no pictures, and all its outputs."""
    (folder := fleet.cwd / "tensors").mkdir()
    for i in range(30):
        np.savez(folder / f"{i}.npz", image=np.full((1, 3, 8, 8), i, np.float32), scale=np.float32([2]),
                 shift=np.int32([i]))  # fmt: skip
    words = ("--engine", models / "multi_io.onnx", "--task", "raw", "--input", folder, *mixed[:5], "--output")
    alone = source_program(*words, "-", "1.npz")
    done = fleet(*words, "-", "2.npz", "--device", "0,5")
    assert done.returncode == alone.returncode == 1, done
    for outcome in (done, alone):
        for line in (lines := outcome.lines):
            line.pop("times_ms", None)
        assert len(lines) == 35
    assert [line["path"] for line in done.lines] == [line["path"] for line in alone.lines]
    arrays = [np.load(fleet.cwd / name) for name in ("1.npz", "2.npz")]
    assert list(arrays[0]) == list(arrays[1])
    assert len(arrays[0]) > 30
    assert all(np.array_equal(arrays[0][key], arrays[1][key]) for key in arrays[0])
    assert set(shares(done)) == {0, 5}


def test_slow_worker_gets_less(fleet: Program, models: Path, pictures: list[Path]) -> None:
    """A GPU gets the next group when it has answered one; order stays."""
    words = ("--engine", models / "classifier.onnx", "--device", "all", "--batch", "2", "--slots", "1")
    env = {"FLEET_SLOW": "1", "FLEET_SLOW_S": "0.2"}  # much longer than the other takes on a busy machine
    done = fleet(*words, "--input", *pictures * 4, "--decode-threads", "1", env=env)
    assert done.returncode == 0, done
    check(done.lines, pictures * 4)
    assert 0 < shares(done)[1] * 2 < shares(done)[0]


@pytest.mark.parametrize("limit", ["FLEET_HELD", "FLEET_AHEAD"])
def test_little_room_for_results_ahead_only_slows(
    fleet: Program, models: Path, pictures: list[Path], limit: str
) -> None:
    """While the earliest is missing and no more may be held, the run goes on; so it does when a worker dies then."""
    env = {limit: "10", "FLEET_SLOW": "1", "FLEET_GPUS": "3", "FLEET_SHY": str(fleet.cwd / "shy")}
    done = fleet("--engine", models / "classifier.onnx", "--device", "all", "--input", *pictures, env=env)
    assert done.returncode == 0, done
    check(done.lines, pictures)
    assert "then lost" in done.stderr


def test_silent_list_has_its_results_at_once(fleet: Program, models: Path, pictures: list[Path]) -> None:
    """A group does not wait for paths that nobody has written yet."""
    child = fleet.start(
        "--engine", models / "classifier.onnx", "--batch", "8", "--quiet", "--device", "all", "--input", "-",
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0,
    )  # fmt: skip
    assert child.stdin is not None
    assert child.stdout is not None
    for count in (1, 3, 2):
        child.stdin.write(b"".join(os.fsencode(path) + b"\n" for path in pictures[:count]))
        for path in pictures[:count]:
            assert select.select([child.stdout], [], [], SOON_S)[0], "no result while the list is silent"
            assert json.loads(child.stdout.readline())["path"] == str(path)
    rest, _ = child.communicate(timeout=SOON_S)
    assert (child.returncode, rest) == (0, b"")


def test_empty_list_is_no_work(fleet: Program, models: Path) -> None:
    """It ends with 0, as with one GPU."""
    done = fleet("--engine", models / "classifier.onnx", "--device", "all", "--input", "-")
    assert (done.returncode, done.stdout) == (0, ""), done


def test_memory_does_not_grow_with_the_list(fleet: Program, models: Path, pictures: list[Path]) -> None:
    """After 10,000 inputs the parent has taken no more than after 1,000, and has no more descriptors."""
    run = Fed(fleet, models, pictures, "--batch", "32")

    def state() -> tuple[int, int]:
        text = Path(f"/proc/{run.child.pid}/status").read_text()
        peak_kb = int(re.findall(r"VmHWM:\s+(\d+)", text)[0])
        return peak_kb, len(os.listdir(f"/proc/{run.child.pid}/fd"))

    states = []
    for count in (9, 90):
        for _ in range(count):
            run.feed()
            run.read(len(pictures))
        states.append(state())
    done = run.end()
    assert done.returncode == 0, done
    assert len(run.lines) == 10_000
    check(run.lines, pictures * 100)
    (peak_kb, descriptors), (peak_later_kb, later) = states
    assert peak_later_kb - peak_kb < 4096
    assert later == descriptors


# ---- workers that are lost


def test_killed_worker_has_its_inputs_done_by_the_others(fleet: Program, models: Path, pictures: list[Path]) -> None:
    """Nothing is lost, nothing comes twice, the GPU is named; the exit code is that of the inputs."""
    fleet.env["FLEET_GPUS"] = "3"
    run = Fed(fleet, models, pictures)
    run.feed()
    run.read(50)
    os.kill(run.workers[1], signal.SIGKILL)
    for _ in range(4):
        run.feed()
    done = run.end()
    assert done.returncode == 0, done
    check(run.lines, pictures * 6)
    assert "edgeapp: GPU 1 is lost: process killed by SIGKILL" in done.stderr
    assert "why: the kernel kills what takes too much memory" in done.stderr
    assert re.search(r"GPU 1: \d+, then lost", done.stderr.splitlines()[-1])
    assert all_gone(run.workers)


@pytest.mark.parametrize("gpus", ["2", "4"])
def test_worker_that_dies_with_inputs_in_hand_loses_none(
    fleet: Program, models: Path, pictures: list[Path], gpus: str
) -> None:
    """In the middle of a batch."""
    env = {"FLEET_GPUS": gpus, "FLEET_SHY": str(fleet.cwd / "shy")}
    words = ("--engine", models / "classifier.onnx", "--batch", "4", "--input", *pictures)
    done = fleet(*words, "--device", "all", env=env)
    assert done.returncode == 0, done
    check(done.lines, pictures)
    assert done.stderr.count(" is lost: ") == 1


def test_all_killed_is_75(fleet: Program, models: Path, pictures: list[Path]) -> None:
    """What was done is there; the error names every GPU."""
    run = Fed(fleet, models, pictures)
    for pid in run.workers:
        os.kill(pid, signal.SIGSTOP)  # so that none is idle and takes what the other had in hand
    run.feed()
    for pid in run.workers:
        os.kill(pid, signal.SIGKILL)
    done = run.end()
    assert done.returncode == 75, done
    assert "edgeapp: no GPU is left" in done.stderr
    assert "GPU 0: process killed by SIGKILL; GPU 1: process killed by SIGKILL" in done.stderr
    assert "Traceback" not in done.stderr
    check(run.lines, (pictures * 2)[: len(run.lines)])


@pytest.mark.parametrize("gpus", ["1", "2", "4"])
def test_input_that_kills_is_found_and_left_out(fleet: Program, models: Path, pictures: list[Path], gpus: str) -> None:
    """It costs two processes at most, has an error of its own, and the GPUs are used on. One GPU alone is lost."""
    env = {"FLEET_GPUS": gpus, "FLEET_POISON": "050.png"}
    words = ("--engine", models / "classifier.onnx", "--batch", "4", "--input", *pictures)
    done = fleet(*words, "--device", "all", env=env)
    if gpus == "1":
        assert done.returncode == 75, done
        assert "why: GPU 0: process killed by SIGSEGV" in done.stderr
        return
    assert done.returncode == 1, done
    assert [line["path"] for line in done.lines if "error" in line] == [str(pictures[50])]
    assert [line["path"] for line in done.lines] == list(map(str, pictures))
    check([line for line in done.lines if "error" not in line], pictures[:50] + pictures[51:])
    assert done.lines[50]["error"]["why"] == "process killed by SIGSEGV"
    assert done.stderr.count("is started again") == 2
    assert "then lost" not in done.stderr


def test_each_input_that_kills_is_found(fleet: Program, models: Path, pictures: list[Path]) -> None:
    """The processes are started again as often as it takes. Two that kill at the same time would end them all."""
    env = {"FLEET_POISON": "050.png", "FLEET_AHEAD": "50"}
    done = fleet("--engine", models / "classifier.onnx", "--input", *pictures * 3, "--device", "all", env=env)
    assert done.returncode == 1, done
    assert [line["path"] for line in done.lines] == list(map(str, pictures * 3))
    assert [i for i, line in enumerate(done.lines) if "error" in line] == [50, 150, 250]


def test_restart_works_beside_the_progress_bar(fleet: Program, models: Path, pictures: list[Path]) -> None:
    """On a terminal there is a thread that draws, when a process is started again."""
    fleet.env |= {"TERM": "xterm", "FLEET_POISON": "050.png"}
    ours, theirs = pty.openpty()
    child = fleet.start(
        "--engine", models / "classifier.onnx", "--input", *pictures, "--device", "all", "--output", "r.jsonl",
        stdin=subprocess.DEVNULL, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    talk = b""
    try:
        while data := os.read(ours, 1 << 16):
            talk += data
    except OSError:  # the other end is closed
        pass
    os.close(ours)
    assert child.wait(timeout=SOON_S) == 1, talk
    assert talk.count(b"is started again") == 2
    assert len((fleet.cwd / "r.jsonl").read_text().splitlines()) == len(pictures)


def test_lost_gpu_is_told_with_its_reason(fleet: Program, models: Path, pictures: list[Path]) -> None:
    """A CUDA context that broke in the run: the others go on; alone it is 75, as it always was."""
    many = pictures * 4  # so that it gets its 20 also when it is slower than the other
    words = ("--engine", models / "classifier.onnx", "--input", *many, "--device", "all", "--batch", "4")
    done = fleet(*words, env={"FLEET_BROKEN": "0"})
    assert done.returncode == 0, done
    check(done.lines, many)
    assert "edgeapp: GPU 0 is lost: the GPU fell off the bus" in done.stderr
    done = fleet(*words, env={"FLEET_BROKEN": "0", "FLEET_GPUS": "1"})
    assert done.returncode == 75, done


def test_gpu_on_which_the_model_cannot_be_opened_is_left_out(
    fleet: Program, models: Path, pictures: list[Path]
) -> None:
    """And said; when it can be opened on none, that is the error, once, and no output is made."""
    words = ("--engine", models / "classifier.onnx", "--input", *pictures, "--device", "all", "--output", "r.jsonl")
    done = fleet(*words, env={"FLEET_GPUS": "3", "FLEET_CLOSED": "0,2"})
    assert done.returncode == 0, done
    assert len((fleet.cwd / "r.jsonl").read_text().splitlines()) == len(pictures)
    assert shares(done) == {0: 0, 1: len(pictures), 2: 0}
    for gpu in (0, 2):
        assert f"edgeapp: GPU {gpu} is lost: cannot run the model" in done.stderr
    (fleet.cwd / "r.jsonl").unlink()
    done = fleet(*words, env={"FLEET_CLOSED": "0,1"})
    assert done.returncode == 65, done
    assert done.stderr.count("cannot run the model") == 1
    assert not (fleet.cwd / "r.jsonl").exists()


# ---- the end


@pytest.mark.parametrize(
    ("number", "group"),
    [(signal.SIGTERM, False), (signal.SIGTERM, True), (signal.SIGINT, True), (signal.SIGHUP, False),
     (signal.SIGKILL, False)],
    ids=["SIGTERM", "SIGTERM to all", "SIGINT of a terminal", "SIGHUP", "SIGKILL"],
)  # fmt: skip
def test_signal_ends_all_processes(
    fleet: Program, models: Path, pictures: list[Path], number: signal.Signals, group: bool
) -> None:
    """The exit code is the signal's, no worker is taken for lost, none stays."""
    run = Fed(fleet, models, pictures)
    assert len(run.workers) == 2
    run.feed()
    (os.killpg if group else os.kill)(run.child.pid, number)
    assert run.child.wait(timeout=SOON_S) == -number  # the list stays open: its end would end the run, too
    assert all_gone(run.workers)
    done = run.end()
    assert "lost" not in done.stderr
    assert "Traceback" not in done.stderr
    if number != signal.SIGKILL:
        assert "stopped after" in done.stderr


def test_signal_while_workers_start_ends_all(fleet: Program, models: Path, pictures: list[Path]) -> None:
    """Before any is ready."""
    child = fleet.start(
        "--engine", models / "classifier.onnx", "--device", "all", "--input", *pictures,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    until = time.monotonic() + SOON_S
    while not (workers := children(child.pid)) and time.monotonic() < until:
        pass
    child.terminate()
    _, talk = child.communicate(timeout=SOON_S)
    assert child.returncode == -signal.SIGTERM, talk
    assert all_gone(workers)


def test_output_that_is_full_ends_all(fleet: Program, models: Path, pictures: list[Path]) -> None:
    """73, as with one GPU, and no process stays."""
    with open("/dev/full", "wb") as full:
        done = fleet("--engine", models / "classifier.onnx", "--device", "all", "--input", *pictures, stdout=full)
    assert done.returncode == 73, done
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("closed", ["0<&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_closed_descriptors_are_not_mixed_up(fleet: Program, models: Path, pictures: list[Path], closed: str) -> None:
    """The pipes of the workers do not become their standard input or output."""
    words = " ".join(map(str, [*fleet.command, "--engine", models / "classifier.onnx", "--input", *pictures]))
    done = subprocess.run(
        ["/bin/bash", "-c", f"exec {words} --device all --output r.jsonl {closed}"], cwd=fleet.cwd, env=fleet.env,
        timeout=SOON_S, check=False, capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done
    check([json.loads(line) for line in (fleet.cwd / "r.jsonl").read_text().splitlines()], pictures)


# ---- what can be asked for


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("--device", "0,0"), 64, "a GPU is named twice"),
        (("--device", "0,"), 64, "a list such as 0,2,3, or all"),
        (("--device", "every"), 64, "a list such as 0,2,3, or all"),
        (("--device", "-1,2"), 64, "--device"),
        (("--device", "0,1"), 64, "an ONNX model runs on the CPU"),
        (("--device", "all"), 64, "an ONNX model runs on the CPU"),
    ],
)
def test_wrong_wish_is_explained(
    source_program: Program, models: Path, picture: Path, words: tuple[str, ...], code: int, told: str
) -> None:
    """Each with its exit code, and before anything is done."""
    done = source_program("--engine", models / "classifier.onnx", "--input", picture, *words)
    assert (done.returncode, done.stdout) == (code, ""), done
    assert told in done.stderr


@pytest.mark.parametrize("command", ["demo", "doctor", "inspect"])
def test_other_commands_take_one_gpu(source_program: Program, command: str) -> None:
    """They say so; where the environment says all, too, but not to commands that need no GPU."""
    for words, env in ((("--device", "0,1"), {}), ((), {"EDGEAPP_DEVICE": "all"})):
        done = source_program(command, *words, env=env)
        assert done.returncode == 64, done
        assert f"edgeapp: {command} uses one GPU" in done.stderr
    assert source_program("runtimes", env={"EDGEAPP_DEVICE": "all"}).returncode == 0


def test_service_takes_one_gpu(source_program: Program, tmp_path: Path) -> None:
    """And `check` knows it before."""
    (tmp_path / "c.toml").write_text('device = [0, 1]\nspool = "spool"\n')
    for command in ("serve", "check"):
        done = source_program(command, "--config", "c.toml")
        assert done.returncode == 64, done
        assert "serve uses one GPU" in done.stdout + done.stderr


@pytest.mark.skipif(has_driver(), reason="there is a driver here")
@pytest.mark.parametrize("devices", ["all", "0,1"])
@pytest.mark.parametrize("command", ["run", "bench"])
def test_no_driver_is_the_known_error(program: Program, picture: Path, command: str, devices: str) -> None:
    """69, once, from the process that asks."""
    plan = ROOT / "tests" / "gpu" / "plans" / "yolov8.plan"
    done = program(command, "--engine", plan, "--input", picture, "--device", devices)
    assert done.returncode == 69, done
    assert done.stderr.count("there is no NVIDIA driver") == 1


# ---- edgeapp bench


def test_rate_of_gpus_counts_from_the_first_begin_to_the_last_end() -> None:
    """A GPU that comes late or lags makes all slower; it is not averaged away."""
    assert rate([Lap(10.0, 12.0, 300)]) == pytest.approx(150)
    assert rate([Lap(10.0, 12.0, 300), Lap(10.0, 12.0, 100)]) == pytest.approx(200)
    assert rate([Lap(10.0, 12.0, 300), Lap(12.0, 14.0, 100)]) == pytest.approx(100)


def test_ratio_compares_each_block_with_those_around_it() -> None:
    """A machine that becomes slower and slower does not change it; one bad block of five neither."""
    assert ratio([100, 80, 60, 40], [180, 140, 100]) == pytest.approx(2.0)
    assert ratio([100] * 6, [190, 190, 10, 190, 190]) == pytest.approx(1.9)


def test_bench_measures_one_gpu_and_all_at_once(fleet: Program, models: Path, pictures: list[Path]) -> None:
    """As many blocks as asked for, one more alone; the numbers hang together."""
    words = ("bench", "--engine", models / "classifier.onnx", "--input", pictures[0].parent, "--device", "all",
             "--batch", "2", "--duration", "0.2", "--rounds", "2", "--warm-up", "0")  # fmt: skip
    done = fleet(*words, "--json")
    assert done.returncode == 0, done
    (found,) = done.lines
    assert (found["gpus"], found["mode"], found["batch"]) == ([0, 1], "frames", 2)
    assert (len(found["alone"]["blocks"]), len(found["together"]["blocks"])) == (3, 2)
    assert found["ratio"] == pytest.approx(ratio(found["alone"]["blocks"], found["together"]["blocks"]))
    assert found["of_linear"] == pytest.approx(found["ratio"] / 2)
    assert sum(found["together"]["of_each_gpu"]) > 0.5 * found["together"]["images_per_s"]
    table = fleet(*words)
    assert table.returncode == 0, table
    for line in ("GPU 0 alone", "2 GPUs at once", "GPU 1 of them", "times as fast as one"):
        assert line in table.stdout


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ((), 64, "with pictures"),
        (("--compare", "--input", "pictures"), 64, "--compare goes with one GPU"),
        (("--mode", "files", "frames", "--input", "pictures"), 64, "--mode files frames goes with one GPU"),
        (("--plot", "x.svg", "--input", "pictures"), 64, "--plot goes with one GPU"),
        (("--shapes", "images:2x3x32x32", "--input", "pictures"), 64, "--shapes goes with one GPU"),
        (("--input", "missing.jpg"), 66, "missing.jpg"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_wrong_wish_of_the_bench_is_explained(
    fleet: Program, models: Path, pictures: list[Path], words: tuple[str, ...], code: int, told: str
) -> None:
    """With its exit code; what several GPUs do not measure is not left out in silence."""
    assert pictures
    done = fleet("bench", "--engine", models / "classifier.onnx", "--device", "all", *words)
    assert (done.returncode, done.stdout) == (code, ""), done
    assert told in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_signal_ends_the_bench_and_its_processes(
    fleet: Program, models: Path, pictures: list[Path], number: signal.Signals
) -> None:
    """In the middle of a block."""
    child = fleet.start("bench", "--engine", models / "classifier.onnx", "--input", pictures[0].parent,
                        "--device", "all", "--duration", "600",
                        stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    until = time.monotonic() + SOON_S
    while len(workers := children(child.pid)) < 2 and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(0.5)
    child.send_signal(number)
    found, _ = child.communicate(timeout=SOON_S)
    assert (child.returncode, found) == (-number, b"")
    assert all_gone(workers)


# ---- processes and messages


def forked(tmp_path: Path, body: str) -> Outcome:
    """A script that uses edgeapp.forking; in a process of its own, which has one thread."""
    script = f"import os, signal, sys\nfrom edgeapp import errors, forking\nfrom edgeapp.stopping import Stop\n{body}"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=SOON_S,
                          env={"PYTHONPATH": str(ROOT)}, check=False)  # fmt: skip
    return Outcome(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        ("return {'gpus': 4}", "{'gpus': 4}"),
        ("return b'x' * 10**7 == b'x' * 10**7 and 'x' * 10", "xxxxxxxxxx"),
        ("raise errors.NoGpuError('no GPU', 'none', 'buy one')", "NoGpuError no GPU/none/buy one 69"),
        ("raise ZeroDivisionError('x')", "EdgeappError internal error: ZeroDivisionError: x/this is a bug in edgeapp"),
        ("raise MemoryError", "SystemRefusedError not enough memory"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "GpuLostError the child: process killed by SIGSEGV//"),
        ("print('last words', flush=True); os._exit(3)", "GpuLostError the child: process ended with 3/last words/"),
        ("os.kill(os.getpid(), signal.SIGTERM); return 'deaf'", "deaf"),
    ],
)
def test_child_answers_or_its_end_is_an_error(tmp_path: Path, call: str, told: str) -> None:
    """Whatever happens in it; and the parent has no more descriptors or children than before."""
    body = f"""
def call():
    {call}
before = os.listdir('/proc/self/fd')
stop = Stop()
pipe = len(os.listdir('/proc/self/fd')) - len(before)
try:
    print(forking.ask(call, 'the child', stop))
except errors.EdgeappError as error:
    print(type(error).__name__, '/'.join((error.what, error.why, error.fix)), error.exit_code)
assert len(os.listdir('/proc/self/fd')) == len(before) + pipe
try:
    os.wait()
except ChildProcessError:
    print('none left')
"""
    done = forked(tmp_path, body)
    assert done.returncode == 0, done
    assert done.stdout.startswith(told)
    assert done.stdout.endswith("none left\n")


def test_messages_of_any_size_come_through_in_both_directions(tmp_path: Path) -> None:
    """Empty ones, and those that fill the socket many times over, while the other end writes, too."""
    body = """
sizes = (0, 1, 100, 1 << 20, 0, 50 << 20, 3)
def echo(link):
    stop = Stop()
    count = 0
    while count < len(sizes):
        stop.wait_readable(link.fileno())
        for number, data in link.receive():
            link.send(bytes(data), number)
            count += 1
process = forking.start(echo, 'the child')
stop = Stop()
for number, size in enumerate(sizes):
    process.link.post(bytes([number]) * size, number)
found = []
while len(found) < len(sizes):
    fd = process.link.fileno()
    stop.wait_any([fd], [fd] if process.link.unsent else [])
    process.link.flush()
    found += process.link.receive()
assert [(number, len(data)) for number, data in found] == list(enumerate(sizes))
assert all(bytes(data) == bytes([number]) * len(data) for number, data in found)
assert process.wait(60) == 0
try:
    process.link.receive()
except EOFError:
    print('end')
"""
    done = forked(tmp_path, body)
    assert (done.returncode, done.stdout) == (0, "end\n"), done


def test_refused_process_is_the_systems_refusal(tmp_path: Path) -> None:
    """71, and no descriptor is left open."""
    body = """
import resource
before = len(os.listdir('/proc/self/fd'))
os.fork = lambda: (_ for _ in ()).throw(BlockingIOError(11, 'Resource temporarily unavailable'))  # a stand-in
for limit in (None, before, before + 1, before + 3):
    if limit:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    try:
        forking.start(print, 'GPU 1')
    except errors.SystemRefusedError as error:
        print(error.what)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    assert len(os.listdir('/proc/self/fd')) == before
"""
    done = forked(tmp_path, body)
    assert (done.returncode, done.stdout) == (0, "cannot start a process for GPU 1\n" * 4), done
