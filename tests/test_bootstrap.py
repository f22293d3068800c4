"""The order of the start and of the end, on machines without a GPU.

A stand-in libcuda.so.1, compiled here, answers the first driver calls as a real one would in that
situation; what it stands for is named in each case. Real drivers are tested in tests/gpu.
"""

from __future__ import annotations

import ctypes
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support import Program
from test_plan import plan_bytes

from edgeapp import errors
from edgeapp.bootstrap import Bootstrap, Trace
from edgeapp.plan import ModelFile


def has_driver() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    path = tmp_path / "m.plan"
    path.write_bytes(plan_bytes())
    return path


def stand_in(folder: Path, *, init: int = 0, devices: int = 0, sleep_s: int = 0) -> Path:
    """A libcuda.so.1 that answers cuInit with `init` and counts `devices` GPUs; it can do nothing else.

    Each cuInit makes its file "begun" one byte longer.
    """
    source = folder / "cuda.c"
    source.write_text(
        f"""
        #include <fcntl.h>
        #include <unistd.h>
        int cuInit(unsigned f) {{
            int file = open("{folder}/begun", O_WRONLY | O_CREAT | O_APPEND, 0600);
            (void)!write(file, "i", 1);
            close(file);
            sleep({sleep_s});
            return {init};
        }}
        int cuDriverGetVersion(int *v) {{ *v = 12020; return 0; }}
        int cuDeviceGetCount(int *n) {{ *n = {devices}; return 0; }}
        """
    )
    library = folder / "driver" / "libcuda.so.1"
    library.parent.mkdir()
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler for the stand-in driver")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
    return library.parent


@pytest.mark.skipif(has_driver(), reason="this machine has a driver")
def test_no_driver_is_told_and_tensorrt_never_touched(program: Program, plan: Path) -> None:
    """Without libcuda.so.1 the program ends with 69 and what to do; TensorRT would crash here."""
    done = program("--engine", plan, "--input", "x.jpg", "--debug")
    assert done.returncode == 69, done
    assert "there is no NVIDIA driver on this machine" in done.stderr
    assert "why: libcuda.so.1: cannot open shared object file" in done.stderr
    assert "--runtime nvidia" in done.stderr
    assert "TensorRT:" not in done.stderr


def test_failed_start_imports_neither_pycuda_nor_tensorrt(plan: Path, tmp_path: Path) -> None:
    """A driver that does not come up ends the start before PyCUDA and TensorRT are loaded."""
    folder = stand_in(tmp_path, init=100)
    code = (
        "import sys\nfrom edgeapp.cli import main\n"
        f"try:\n    main(['--engine', {str(plan)!r}, '--input', 'x.jpg'])\n"
        "except SystemExit as end:\n    assert end.code == 69, end.code\n"
        "print(sorted(n for n in sys.modules if n.startswith(('pycuda', 'tensorrt'))))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent.parent,
        env={"LD_LIBRARY_PATH": str(folder)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("init", "words"),
    [(100, "no GPU is visible"), (803, "driver library and kernel driver are of different versions"),
     (304, "the operating system refused the driver"), (999, "unknown reason"), (34, "a stub for linking"),
     (12345, "no usable answer")],
)  # fmt: skip
def test_driver_that_does_not_come_up_is_explained(
    program: Program, plan: Path, tmp_path: Path, init: int, words: str
) -> None:
    """Stands for: no device, an update without a reboot, missing groups, a dead GPU, a link stub."""
    folder = stand_in(tmp_path, init=init)
    done = program("--engine", plan, "--input", "x.jpg", env={"LD_LIBRARY_PATH": str(folder)})
    assert done.returncode == 69, done
    assert f"cuInit failed with CUDA error {init}" in done.stderr
    assert words in done.stderr


def test_driver_that_is_too_old_is_told_before_anything_that_would_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stands for: a program for CUDA 13 on a driver that serves 12.2; TensorRT would end the process there."""
    library = stand_in(tmp_path, devices=1) / "libcuda.so.1"
    monkeypatch.setattr("edgeapp.gpu.driver.LIBRARY", str(library))
    monkeypatch.setattr("edgeapp.gpu.runtimes.flavour", lambda: {"tensorrt": "lean", "cuda": "13"})
    bootstrap = Bootstrap(ModelFile("m.plan", "plan", (10, 16, 1, 11)), 0, lambda _: None, Trace())
    with pytest.raises(errors.NoGpuError) as caught:
        bootstrap.up(lambda: None)
    assert [name for name, _ in bootstrap._trace.steps] == ["find libcuda.so.1", "cuInit"]
    assert caught.value.why == "the driver serves CUDA 12.2, this program needs CUDA 13"
    assert "580 or newer" in caught.value.fix


@pytest.mark.parametrize(("devices", "device"), [(0, 0), (2, 2), (1, 7)])
def test_missing_device_is_named(program: Program, plan: Path, tmp_path: Path, devices: int, device: int) -> None:
    """Stands for: a driver that shows fewer GPUs than --device asks for."""
    folder = stand_in(tmp_path, devices=devices)
    done = program("--engine", plan, "--input", "x.jpg", "--device", str(device), env={"LD_LIBRARY_PATH": str(folder)})
    assert done.returncode == 69, done
    assert f"cannot use GPU {device}: {devices} GPU" in done.stderr


def test_signal_during_the_start_ends_between_two_steps(program: Program, plan: Path, tmp_path: Path) -> None:
    """Stands for: a driver that takes long to come up; SIGTERM is obeyed at the next step."""
    folder = stand_in(tmp_path, devices=1, sleep_s=3)
    program.env["LD_LIBRARY_PATH"] = str(folder)
    child = program.start("--engine", plan, "--input", "x.jpg", stderr=subprocess.PIPE)
    try:
        child.wait(timeout=2.0)
    except subprocess.TimeoutExpired:
        child.send_signal(signal.SIGTERM)
    _, talk = child.communicate(timeout=20)
    assert child.returncode == -signal.SIGTERM, talk
    assert b"Traceback" not in talk


@pytest.mark.parametrize(
    ("words", "early"),
    [
        (["--engine", "{plan}", "--unknown"], True),
        (["run", "--unknown", "--engine", "{plan}"], True),
        (["--engine", "{plan}", "--unknown", "--help"], False),
        (["--engine", "{plan}", "--unknown", "--device", "all"], False),
        (["--engine", "{plan}", "--unknown", "--config=x.toml"], False),
        (["--engine", "none.plan", "--unknown"], False),
        (["--engine", "{onnx}", "--unknown"], False),
        (["--unknown", "--engine"], False),
        (["inspect", "{plan}", "--unknown"], False),
        (["bench", "--engine", "{plan}", "--unknown"], False),
        ([], False),
    ],
)
def test_driver_begins_before_the_command_line_is_read(
    program: Program, plan: Path, tmp_path: Path, words: list[str], early: bool
) -> None:
    """In the plainest call alone; an unknown word ends the program before the driver is asked again."""
    folder, onnx = stand_in(tmp_path), tmp_path / "m.onnx"
    onnx.touch()
    given = [word.format(plan=plan, onnx=onnx) for word in words]
    done = program(*given, env={"LD_LIBRARY_PATH": str(folder)})
    assert done.returncode == (0 if "--help" in words else 64), done
    assert (tmp_path / "begun").exists() == early


@pytest.mark.parametrize("name", ["EDGEAPP_DEVICE", "EDGEAPP_CONFIG"])
def test_driver_does_not_begin_early_where_others_may_name_the_gpus(
    program: Program, plan: Path, tmp_path: Path, name: str
) -> None:
    """Workers of several GPUs are forks: a driver that had begun before would be of no use to them."""
    folder = stand_in(tmp_path)
    done = program("--engine", plan, "--unknown", env={"LD_LIBRARY_PATH": str(folder), name: "0"})
    assert done.returncode == 64, done
    assert not (tmp_path / "begun").exists()


def test_head_start_goes_without_threads() -> None:
    """Where the system refuses a thread, all is done in its turn."""
    code = (
        "import threading\n"
        "from edgeapp import headstart\n"
        "def refuse(self):\n    raise RuntimeError('can\\'t start new thread')\n"
        "threading.Thread.start = refuse\n"
        "headstart.go_on(print)\n"
        "headstart.wait()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent.parent, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


class Recorder(Bootstrap):
    """A Bootstrap whose steps only note that they were taken; a stand-in for all that needs a GPU."""

    def __init__(self, fail_at: str | None = None) -> None:
        self.said: list[str] = []
        super().__init__(ModelFile("m.plan", "plan", (8, 6, 0, 12)), 0, self.said.append, Trace())
        self.trace = self._trace
        self._fail_at = fail_at

    def __getattribute__(self, name: str):  # type: ignore[no-untyped-def]
        methods = dict((method, step) for step, method in Bootstrap.STEPS)
        if name in methods:
            return lambda: self.take(methods[name])
        return super().__getattribute__(name)

    def take(self, step: str) -> None:
        if step == self._fail_at:
            raise errors.DataError(f"{step} failed")
        self._on_exit(step, lambda: None)
        self.ready = object()  # type: ignore[assignment]


def test_tensorrt_comes_after_the_context() -> None:
    """Driver, device and context come before every step that touches TensorRT."""
    steps = [name for name, _ in Bootstrap.STEPS]
    assert steps.index("push a CUDA context") < steps.index("load the TensorRT library")
    assert steps.index("load the TensorRT library") < steps.index("import the bindings") < steps.index("runtime")
    assert steps[:3] == ["find libcuda.so.1", "cuInit", "count the devices"]


@pytest.mark.parametrize("fail_at", [None, *(name for name, _ in Bootstrap.STEPS)])
def test_every_way_out_undoes_in_reverse(fail_at: str | None) -> None:
    """Whatever step fails, exactly the steps taken are undone, the last first."""
    bootstrap = Recorder(fail_at)
    if fail_at is None:
        bootstrap.up(lambda: None)
    else:
        with pytest.raises(errors.DataError, match=fail_at):
            bootstrap.up(lambda: None)
    bootstrap.down()
    steps = [name for name, _ in Bootstrap.STEPS]
    taken = steps if fail_at is None else steps[: steps.index(fail_at)]
    assert bootstrap.trace.undone == taken[::-1]
    assert [name for name, _ in bootstrap.trace.steps] == taken + ([fail_at] if fail_at else [])


def test_stop_between_steps_undoes_in_reverse() -> None:
    """A signal that came during a step is seen before the next one."""
    bootstrap = Recorder()
    calls = iter([False, False, False, True])

    def check() -> None:
        if next(calls):
            raise errors.Stopped

    with pytest.raises(errors.Stopped):
        bootstrap.up(check)
    bootstrap.down()
    assert bootstrap.trace.undone == ["count the devices", "cuInit", "find libcuda.so.1"]


def test_failing_undo_does_not_stop_the_others() -> None:
    """After a broken CUDA context every release fails; the rest is still released."""
    bootstrap = Recorder()

    def broken() -> None:
        raise RuntimeError("cuMemFree failed")

    bootstrap._on_exit("first", lambda: None)
    bootstrap._on_exit("second", broken)
    bootstrap.down()
    assert bootstrap.trace.undone == ["second", "first"]
    assert any("cuMemFree failed" in line for line in bootstrap.said)
