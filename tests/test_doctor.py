"""`edgeapp doctor`: every check on the machine as it is, and on trees of files that stand for other machines.

A stand-in libcuda.so.1, compiled here, answers, crashes or hangs as a real driver may; what it stands for is named in
each case. Real drivers are tested in tests/gpu.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import fastjsonschema
import pytest
from support import ROOT, Outcome, Program
from test_bootstrap import has_driver
from test_plan import plan_bytes

from edgeapp import errors, paths
from edgeapp.checks import FAILURE, NOTE, OK, SKIPPED, WARNING, Check, Machine, files, gpu, jetson, system
from edgeapp.commands.doctor import exit_code
from edgeapp.gpu import nvml

VALID = fastjsonschema.compile(json.loads(paths.resource("doctor.schema.json").read_bytes()))
ALWAYS = ["system", "processors", "memory", "clock", "limits", "library path", "container", "Jetson", "kernel driver",
          "driver library", "device nodes", "TensorRT inside", "TensorRT of the system", "cache folder",
          "temporary folder", "current folder", "sync to disk"]  # fmt: skip

# ---- the command


def checks_of(done: Outcome) -> dict[str, dict[str, Any]]:
    """The lines of --json by name; each passes the schema, names differ, nothing is on standard error."""
    assert "Traceback" not in done.stderr, done
    for line in done.lines:
        VALID(line)
    found = {line["name"]: line for line in done.lines}
    assert len(found) == len(done.lines), done
    codes = [line["exit_code"] for line in done.lines if line["state"] == "failure"]
    warned = any(line["state"] == "warning" for line in done.lines)
    assert done.returncode == (codes[0] if codes else int(warned)), done
    return found


def test_every_check_is_a_line_that_passes_the_schema(program: Program) -> None:
    """On whatever machine this is; the exit code is that of the first failure."""
    done = program("doctor", "--json")
    assert done.stderr == ""
    found = checks_of(done)
    assert [name for name in found if name in ALWAYS] == ALWAYS
    assert found["system"]["state"] == "ok"
    assert re.search(r"glibc \d+\.\d+$", found["system"]["found"])
    assert found["sync to disk"]["state"] in ("ok", "warning")
    frozen = len(program.command) == 1
    assert (
        found["cache folder"]["state"] == ("ok" if frozen else "skipped") or "/tmp/" in found["cache folder"]["found"]
    )
    assert (found["system"]["wanted"] != "") == frozen
    assert not list(program.cwd.glob("tmp*"))


@pytest.mark.skipif(has_driver(), reason="this machine has a driver")
def test_machine_without_a_gpu_ends_with_69(program: Program) -> None:
    """The missing library is the first failure and says what to do."""
    found = checks_of(done := program("doctor", "--json"))
    assert done.returncode == 69
    assert found["driver library"]["exit_code"] == 69
    assert "GPU 0" not in found
    assert ".onnx" in found["driver library"]["fix"]


@pytest.mark.skipif(has_driver(), reason="this machine has a driver")
def test_onnx_model_needs_no_gpu(program: Program, models: Path) -> None:
    """What is wrong with the GPU is a note then, and the model is loaded."""
    found = checks_of(done := program("doctor", "--json", "--engine", models / "ultralytics.onnx"))
    assert done.returncode in (0, 1), done
    assert found["driver library"]["state"] == "note"
    assert found["engine"]["state"] == "ok"
    assert found["engine"]["found"].startswith("ONNX Runtime ")
    assert found["card and engine"]["found"].startswith("task detect")


def test_people_get_aligned_lines_and_a_sum(program: Program) -> None:
    """A line for each check, what to do below it, and a last line that counts them."""
    done = program("doctor")
    *lines, last = done.stdout.splitlines()
    heads = [line for line in lines if not line.startswith(" ")]
    assert [re.split(r"  +| (?=TensorRT)", line)[1] for line in heads[:3]] == ["system", "processors", "memory"]
    assert all(line[8:31].rstrip() for line in heads)
    assert {line[:8].rstrip() for line in heads} <= {"ok", "note", "WARNING", "FAILURE", "-"}
    for head, below in pairwise(lines):
        if head.startswith("FAILURE"):
            assert below.startswith("          ")
    total = int(re.match(r"(\d+) checks: ", last)[1])  # type: ignore[index]
    assert total == len(heads) == sum(map(int, re.findall(r"(\d+) (?:ok|note|warning|failure|skipped)", last)))
    assert "\x1b" not in done.stdout


def test_unknown_words_are_refused(source_program: Program) -> None:
    """As everywhere."""
    done = source_program("doctor", "--jsn")
    assert done.returncode == 64
    assert "did you mean --json?" in done.stderr


def test_parent_imports_nothing_heavy(tmp_path: Path) -> None:
    """What crashes when it is loaded is loaded in children only; the process that prints stays small."""
    code = (
        "import sys\nfrom edgeapp.cli import main\n"
        f"try:\n    main(['doctor', '--json', '--engine', {str(paths.resource('demo/model.onnx'))!r}])\n"
        "except SystemExit:\n    pass\n"
        "print([n for n in ('numpy', 'PIL', 'onnxruntime', 'pycuda', 'rich') if n in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert '"name": "engine", "state": "ok"' in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


# ---- the model


@pytest.mark.parametrize(
    ("content", "code", "words"),
    [(plan_bytes()[:100], 65, "cut short"), (b"", 65, "empty"), (None, 66, "no such file"),
     (b"\x08\x07" + bytes(50), 65, "")],
    ids=["truncated", "empty", "missing", "noise"],
)  # fmt: skip
def test_bad_model_file_is_told(
    program: Program, driver: Path, tmp_path: Path, content: bytes | None, code: int, words: str
) -> None:
    """With a driver that works (a stand-in), the file is the first failure; the engine is not tried."""
    if content is not None:
        (tmp_path / "m.plan").write_bytes(content)
    done = program("doctor", "--json", "--engine", "m.plan", env={"LD_LIBRARY_PATH": str(driver)})
    found = checks_of(done)
    assert done.returncode == code
    assert words in found["model file"]["found"] + found["model file"]["why"]
    assert found["engine"]["state"] == "skipped"
    assert found["engine"]["found"] == "the model file cannot be used"


@pytest.mark.parametrize(
    ("card", "code", "words"),
    [(b"{", 78, "line 1, column 2"), (b'{"task": "detetc"}', 78, "must be one of"), (b"\xc3\x28", 78, "no JSON text"),
     (None, 66, "no such file")],
    ids=["broken", "wrong value", "no text", "missing"],
)  # fmt: skip
def test_bad_card_is_told(
    program: Program, models: Path, tmp_path: Path, card: bytes | None, code: int, words: str
) -> None:
    """With the code that a run would end with; the engine is not tried, for the card may name keys and digests."""
    if card is not None:
        (tmp_path / "c.json").write_bytes(card)
    model = models / "ultralytics.onnx"
    found = checks_of(done := program("doctor", "--json", "--engine", model, "--model-card", "c.json"))
    assert done.returncode == code
    assert words in found["model card"]["why"]
    assert found["engine"]["state"] == "skipped"
    assert found["engine"]["found"] == "the model card cannot be used"


def test_card_that_contradicts_the_engine_is_told(program: Program, models: Path, tmp_path: Path) -> None:
    """Only the loaded engine shows that the size is wrong."""
    (tmp_path / "c.json").write_text('{"task": "detect", "size_wh": [320, 320]}')
    model = models / "ultralytics.onnx"
    found = checks_of(done := program("doctor", "--json", "--engine", model, "--model-card", "c.json"))
    assert done.returncode == 78
    assert found["model card"]["state"] == found["engine"]["state"] == "ok"
    assert "does not fit the input tensor" in found["card and engine"]["found"]


def test_unsigned_model_is_refused_where_signatures_are_wanted(program: Program, models: Path) -> None:
    """The check of a run is made here, too, before anything loads the model."""
    model = models / "ultralytics.onnx"
    found = checks_of(done := program("doctor", "--json", "--engine", model, "--require-signature"))
    assert done.returncode == 78
    assert found["engine"]["found"].endswith("(in step verify the engine file)")


# ---- drivers that work, crash or hang: stand-ins

WORKS = """
    #include <string.h>
    #include <stdio.h>
    int cuInit(unsigned f) { return 0; }
    int cuDriverGetVersion(int *v) { *v = 13000; return 0; }
    int cuDeviceGetCount(int *n) { *n = 2; return 0; }
    int cuDeviceGet(int *d, int n) { *d = n; return 0; }
    int cuDeviceGetName(char *t, int n, int d) { snprintf(t, n, "NVIDIA H200"); return 0; }
    int cuDeviceTotalMem_v2(size_t *b, int d) { *b = 150000000000; return 0; }
    int cuDeviceGetPCIBusId(char *t, int n, int d) { snprintf(t, n, "0000:0%d:00.0", d); return 0; }
    int cuDeviceGetAttribute(int *v, int a, int d) { *v = a == 75 ? 9 : 0; return 0; }
    int nvmlInit_v2(void) { return 0; }
    int nvmlDeviceGetHandleByPciBusId_v2(const char *id, void **h) { *h = (void *)(long)(id[6] - '0' + 1); return 0; }
    int nvmlDeviceGetMemoryInfo(void *h, unsigned long long *m) { m[0] = 3l << 30; m[1] = 2l << 30; return 0; }
    int nvmlDeviceGetTemperature(void *h, int s, unsigned *t) { *t = 34 + 60 * ((long)h == 2); return 0; }
    int nvmlDeviceGetClockInfo(void *h, int s, unsigned *t) { *t = 1980; return 0; }
    int nvmlDeviceGetPersistenceMode(void *h, unsigned *t) { *t = 1; return 0; }
    int nvmlDeviceGetCurrentClocksThrottleReasons(void *h, unsigned long long *r) {
        *r = (long)h == 2 ? 0x40 : 1; return 0; }
"""
CRASHES = (
    "int cuDriverGetVersion(int *v) { *v = 13000; return 0; } int cuInit(unsigned f) { return *(volatile int *)0; }"
)
HANGS = """
    #include <unistd.h>
    int cuDriverGetVersion(int *v) { *v = 13000; return 0; }
    int cuInit(unsigned f) { for (;;) sleep(1000); }
"""


def compiled(folder: Path, source: str) -> Path:
    """A folder with the stand-in as libcuda.so.1 and libnvidia-ml.so.1."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler for the stand-in driver")
    where = folder / "driver"
    where.mkdir()
    (folder / "driver.c").write_text(source)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", where / "libcuda.so.1", folder / "driver.c"], check=True)
    (where / "libnvidia-ml.so.1").symlink_to("libcuda.so.1")
    return where


@pytest.fixture
def driver(tmp_path: Path) -> Path:
    """Stands for: the driver of a server with two H200, the second too hot."""
    return compiled(tmp_path, WORKS)


def test_every_gpu_of_a_server_is_a_line(program: Program, driver: Path) -> None:
    """Name, compute capability, memory by CUDA; free memory, heat and throttling by NVML, matched by PCI address."""
    found = checks_of(program("doctor", "--json", env={"LD_LIBRARY_PATH": str(driver)}))
    assert found["driver library"]["found"] == str(driver / "libcuda.so.1")
    assert found["CUDA of the driver"]["state"] == "ok"
    assert found["GPUs"]["found"] == "2 visible"
    assert found["GPU 0"]["found"] == "NVIDIA H200, compute capability 9.0 (H100, H200, GH200), 139.7 GiB"
    assert found["GPU 0 state"]["found"] == "2.0 GiB free, 34 °C, 1980 MHz, persistence mode on"
    assert found["GPU 0 state"]["state"] == "ok"
    assert found["GPU 1 state"]["state"] == "warning"
    assert "too hot, slowed by the hardware" in found["GPU 1 state"]["why"]
    assert found["library path"]["state"] == "note"  # another libcuda.so.1 than the driver's stands there


def test_missing_device_number_is_a_failure(program: Program, driver: Path) -> None:
    """--device beyond the last GPU ends with 69; the GPUs that are there are still shown."""
    done = program("doctor", "--json", "--device", "5", env={"LD_LIBRARY_PATH": str(driver)})
    found = checks_of(done)
    assert done.returncode == 69
    assert found["GPUs"]["wanted"] == "GPU 5"
    assert "GPU 1" in found


def test_driver_without_nvml_and_names_is_no_crash(source_program: Program, tmp_path: Path) -> None:
    """Stands for: a libcuda that lacks a function; the rest of the checks go on, and the line names the function."""
    folder = compiled(tmp_path, WORKS.replace("cuDeviceGetName", "renamed").replace("nvmlInit_v2", "renamed_too"))
    found = checks_of(source_program("doctor", "--json", env={"LD_LIBRARY_PATH": str(folder)}))
    assert found["current folder"]["state"] != "skipped"
    assert found["GPUs"]["state"] == "ok"
    assert found["driver"]["state"] == "warning"
    assert "cuDeviceGetName" in found["driver"]["found"]


def test_driver_that_refuses_is_explained(program: Program, tmp_path: Path) -> None:
    """Stands for: a driver library of another version than the kernel's."""
    folder = compiled(tmp_path, WORKS.replace("cuInit(unsigned f) { return 0; }", "cuInit(unsigned f) { return 803; }"))
    found = checks_of(done := program("doctor", "--json", env={"LD_LIBRARY_PATH": str(folder)}))
    assert done.returncode == 69
    assert "cuInit failed with CUDA error 803" in found["GPUs"]["found"]
    assert "different versions" in found["GPUs"]["why"]


def test_driver_that_crashes_is_a_line(program: Program, tmp_path: Path) -> None:
    """Stands for: a driver that dies in cuInit; all other checks are made, and the engine names the step, too."""
    (tmp_path / "m.plan").write_bytes(plan_bytes())
    folder = compiled(tmp_path, CRASHES)
    done = program("doctor", "--json", "--engine", "m.plan", env={"LD_LIBRARY_PATH": str(folder)})
    found = checks_of(done)
    assert done.returncode == 69
    assert found["driver"]["found"] == "killed by SIGSEGV in step cuInit"
    assert found["engine"]["found"] == "killed by SIGSEGV in step cuInit"
    assert found["engine"]["fix"]
    assert set(ALWAYS) <= set(found)
    assert not list(tmp_path.glob("core*"))


def test_driver_that_hangs_is_a_line(tmp_path: Path) -> None:
    """Stands for: a driver that never answers; it is killed after the limit (here two seconds), the engine left out."""
    (tmp_path / "m.plan").write_bytes(plan_bytes())
    code = (
        "from edgeapp.commands import doctor\nfrom edgeapp.cli import main\ndoctor.DRIVER_S = 2.0\n"
        f"main(['doctor', '--json', '--engine', {str(tmp_path / 'm.plan')!r}])\n"
    )
    env = {"PYTHONPATH": str(ROOT), "LD_LIBRARY_PATH": str(compiled(tmp_path, HANGS))}
    ran = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=99, check=False)
    found = checks_of(Outcome(ran.returncode, ran.stdout, ran.stderr))
    assert ran.returncode == 69
    assert found["driver"]["found"] == "no answer within 2 s in step cuInit"
    assert found["engine"]["found"] == "the driver gives no answer"
    assert "sync to disk" in found


def children(pid: int) -> list[int]:
    try:
        return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        pytest.skip("this kernel does not list children")


def gone(pid: int) -> bool:
    """Whether a process has ended within half a minute; what nobody has waited for yet has ended, too."""
    for _ in range(3000):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.01)
    return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_child_ends_with_its_parent(program: Program, tmp_path: Path, number: signal.Signals) -> None:
    """Stands for: a driver that never answers, and a person who does not wait; nothing is left behind."""
    program.env["LD_LIBRARY_PATH"] = str(compiled(tmp_path, HANGS))
    with program.start("doctor", "--json", stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        while b"CUDA of the driver" not in process.stdout.readline():
            assert process.poll() is None
        time.sleep(0.2)
        (child,) = children(process.pid)
        process.send_signal(number)
        _, talk = process.communicate(timeout=60)
    assert process.returncode == -number
    assert talk == b""
    assert gone(child)


# ---- the child


def in_child(tmp_path: Path, body: str, limit_s: float = 10.0) -> Outcome:
    """The checks of a Child whose work is `body`, as the lines of --json; in a process of its own."""
    script = f"""
import json, os, sys, time, ctypes, signal
from dataclasses import asdict
from edgeapp import errors
from edgeapp.checks import Check
from edgeapp.checks.child import Child
from edgeapp.stopping import Stop
def work(say):
{body}
stop = Stop()
stop.install()
child = Child("part", work, {limit_s}, 74, "try again", lambda text: print("heard", text, file=sys.stderr))
for check in child.checks(stop):
    print(json.dumps({{"schema": 1, **asdict(check)}}), flush=True)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=90,
                          env={"PYTHONPATH": str(ROOT)}, check=False)  # fmt: skip
    return Outcome(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize(
    ("body", "state", "words", "code"),
    [
        ("    say('read 0')\n    ctypes.string_at(0)", "failure", "killed by SIGSEGV in step read 0", 74),
        ("    os.abort()", "failure", "killed by SIGABRT", 74),
        ("    os.kill(os.getpid(), signal.SIGKILL)", "failure", "killed by SIGKILL", 74),
        ("    say('leave')\n    os._exit(3)", "failure", "ended with 3 in step leave", 74),
        ("    return 1 / 0", "warning", "cannot be told: ZeroDivisionError: division by zero", None),
        ("    sys.exit(0)", "warning", "cannot be told: SystemExit: 0", None),
        ("    raise errors.NotFoundError('no x', 'gone', 'make x')", "failure", "no x", 66),
        ("    raise FileNotFoundError(2, 'none', 'x')", "warning", "cannot be told: FileNotFoundError", None),
        ("    say('wait')\n    time.sleep(99)", "failure", "no answer within 2 s in step wait", 74),
        ("    signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 32))\n    time.sleep(99)", "failure", "no answer", 74),
        ("    while True: print('x' * 1000)", "failure", "no answer within 2 s", 74),
        ("    return 5", "warning", "cannot be told: TypeError", None),
    ],
    ids=["segfault", "abort", "kill", "exit", "exception", "sys.exit", "our error", "OSError", "hang", "deaf", "flood",
         "no check"],
)  # fmt: skip
def test_whatever_happens_in_a_child_is_a_line(
    tmp_path: Path, body: str, state: str, words: str, code: int | None
) -> None:
    """It never takes the parent with it, and never keeps it."""
    done = in_child(tmp_path, body, limit_s=2 if "no answer" in words else 60)
    assert done.returncode == 0, done
    VALID(done.line)
    assert (done.line["state"], done.line["exit_code"]) == (state, code)
    assert words in done.line["found"]


def test_checks_before_a_crash_are_kept(tmp_path: Path) -> None:
    """And what was printed before it is its reason."""
    body = "    yield Check('a', 'ok', 'fine')\n    os.write(2, b'*** stack smashed ***\\n')\n    os.abort()"
    done = in_child(tmp_path, body)
    assert [line["name"] for line in done.lines] == ["a", "part"]
    assert done.lines[1]["why"] == "*** stack smashed ***"
    assert "heard *** stack smashed ***" in done.stderr


def test_late_failure_has_a_name_of_its_own(tmp_path: Path) -> None:
    """The line that was fine stays fine."""
    done = in_child(tmp_path, "    yield Check('part', 'ok', 'fine')\n    raise errors.NotFoundError('gone')")
    assert [(line["name"], line["state"]) for line in done.lines] == [("part", "ok"), ("part (rest)", "failure")]


def test_child_has_no_terminal_no_input_and_default_signals(tmp_path: Path) -> None:
    """What a driver prints is no line of the table, and what it reads is empty."""
    body = (
        "    print('{\"noise\": 1}', flush=True)\n"
        "    same = signal.getsignal(signal.SIGTERM) == signal.SIG_DFL\n"
        "    yield Check('a', 'ok', f'{os.read(0, 5)} {same} {os.getpgid(0) == os.getpid()}')"
    )
    assert in_child(tmp_path, body).line["found"] == "b'' True True"


def test_long_records_arrive_whole(tmp_path: Path) -> None:
    """Longer than a pipe holds, with every kind of character."""
    done = in_child(tmp_path, "    yield Check('a', 'ok', '\\u00e9\\n\\x1e' * 20_000)")
    assert done.line["found"] == "é\n\x1e" * 20_000


# ---- other machines: trees of files that stand for them

MEMINFO = "MemTotal:       31000000 kB\nMemFree: 1 kB\nMemAvailable:   {} kB\nSwapTotal:       2097148 kB\n"
SERVER = {
    "proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build\n",
    "dev/nvidiactl": "", "dev/nvidia0": "", "dev/nvidia1": "", "dev/nvidia-uvm": "",
    "etc/group": "root:x:0:\nvideo:x:44:\nrender:x:105:\n",
    "etc/os-release": 'PRETTY_NAME="Ubuntu 24.04.1 LTS"\n',
    "proc/meminfo": MEMINFO.format(25000000),
}  # fmt: skip
NVPMODEL = "#!/bin/sh\n[ $1 = -q ] && echo 'NV Power Mode: 15W' && echo 0\n"
ORIN = {
    "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n",
    "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
    "proc/device-tree/compatible": "nvidia,p3768-0000+p3767-0005\0nvidia,tegra234\0",
    "dev/nvmap": "", "dev/nvgpu/igpu0/ctrl": "", "dev/dri/renderD128": "",
    "etc/group": SERVER["etc/group"],
    "proc/meminfo": MEMINFO.format(4000000),
    "usr/sbin/nvpmodel": NVPMODEL,
    "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=15W >\nCPU_ONLINE CORE_0 1\n< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n",
    "sys/class/devfreq/17000000.gpu/cur_freq": "306000000\n",
    "sys/class/devfreq/17000000.gpu/min_freq": "306000000\n",
    "sys/class/devfreq/17000000.gpu/max_freq": "624750000\n",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n", "sys/class/thermal/thermal_zone0/temp": "48250\n",
    "sys/class/thermal/thermal_zone1/type": "gpu-thermal\n", "sys/class/thermal/thermal_zone1/temp": "52000\n",
    "sys/class/thermal/thermal_zone1/trip_point_0_type": "passive\n",
    "sys/class/thermal/thermal_zone1/trip_point_0_temp": "99000\n",
    "sys/class/thermal/thermal_zone2/type": "cv0-thermal\n",
    "sys/class/hwmon/hwmon1/oc1_event_cnt": "0\n",
    "usr/lib/aarch64-linux-gnu/libnvinfer.so.10.3.0": "", "usr/lib/aarch64-linux-gnu/libnvinfer_lean.so.10.3.0": "",
}  # fmt: skip


def tree(root: Path, *content: dict[str, str], **environ: str) -> Machine:
    """A machine made of files; programs are executable."""
    for name, text in (pair for part in content for pair in part.items()):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755 if "bin/" in name else 0o644)
    return Machine(root, environ)


def test_healthy_server_is_ok(tmp_path: Path) -> None:
    """Stands for: a server with two GPUs and driver 580."""
    machine = tree(tmp_path, SERVER)
    assert gpu.kernel_driver(machine) == Check("kernel driver", OK, "580.95.05")
    assert gpu.container(machine).found == "none"
    (nodes,) = gpu.device_nodes(machine)
    assert (nodes.state, nodes.found) == (OK, "nvidiactl, nvidia0, nvidia1, nvidia-uvm")
    assert system.memory(machine).found == "23.8 GiB of 29.6 GiB available, 2.0 GiB swap"
    assert system.system(machine).found.startswith("Ubuntu 24.04.1 LTS, Linux ")
    assert [check.state for check in jetson.jetson(machine)] == [SKIPPED]


@pytest.mark.parametrize(
    ("mark", "environ", "kind", "fix"),
    [
        ({".dockerenv": ""}, {}, "docker", "docker run --gpus all"),
        ({"run/.containerenv": ""}, {}, "podman", "--device nvidia.com/gpu=all"),
        ({".dockerenv": ""}, {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, "kubernetes", "nvidia.com/gpu: 1"),
        ({"proc/self/cgroup": "0::/kubepods.slice/x\n"}, {}, "kubernetes", "nvidia.com/gpu: 1"),
        ({"proc/1/cgroup": "0::/lxc/web\n"}, {}, "lxc", "lxc config"),
        ({"run/systemd/container": "systemd-nspawn\n"}, {}, "systemd-nspawn", "NVIDIA Container Toolkit"),
    ],
    ids=["docker", "podman", "pod", "pod by group", "lxc", "nspawn"],
)
def test_container_without_a_gpu_is_told_with_its_fix(
    tmp_path: Path, mark: dict[str, str], environ: dict[str, str], kind: str, fix: str
) -> None:
    """Stands for: a container on a server whose kernel driver shows through /proc, started without the GPU."""
    machine = tree(tmp_path, {name: text for name, text in SERVER.items() if "dev/" not in name}, mark, **environ)
    found = gpu.container(machine)
    assert (found.state, found.found.split(",")[0]) == (WARNING, kind)
    assert fix in found.fix
    nodes = next(iter(gpu.device_nodes(machine)))
    assert (nodes.state, nodes.exit_code) == (FAILURE, 69)
    missing = gpu._no_library(machine, errors.NoGpuError("what", "why", "install the driver"))
    assert fix in missing.fix
    (tmp_path / "dev").mkdir()
    assert gpu.container(tree(tmp_path, SERVER, mark, **environ)).state == OK


def test_server_without_uvm_names_the_command(tmp_path: Path) -> None:
    """Stands for: a server after the boot, where nobody has used CUDA as root yet."""
    (check,) = gpu.device_nodes(tree(tmp_path, {k: v for k, v in SERVER.items() if "uvm" not in k}))
    assert (check.state, check.exit_code) == (FAILURE, 69)
    assert "/dev/nvidia-uvm" in check.why
    assert "sudo nvidia-modprobe" in check.fix


def test_windows_subsystem_has_its_own_node(tmp_path: Path) -> None:
    """Stands for: WSL 2."""
    machine = tree(tmp_path, {"dev/dxg": ""})
    assert gpu.kernel_driver(machine).state == OK
    assert next(iter(gpu.device_nodes(machine))) == Check("device nodes", OK, "dxg")


def test_orin_with_jetpack_6(tmp_path: Path) -> None:
    """Stands for: a Jetson Orin Nano with JetPack 6.2 at 15 W."""
    machine = tree(tmp_path, ORIN)
    found = {check.name: check for check in jetson.jetson(machine)}
    assert found["Jetson"].found == "NVIDIA Jetson Orin Nano Developer Kit, Jetson Linux 36.4.3 (JetPack 6)"
    assert (found["power mode"].state, found["power mode"].found) == (NOTE, "15W")
    assert found["power mode"].fix.startswith("sudo nvpmodel -m 2")
    assert (found["GPU clock"].state, found["GPU clock"].found) == (NOTE, "306 MHz, 306 to 625 allowed")
    assert "jetson_clocks" in found["GPU clock"].fix
    assert (found["temperature"].state, found["temperature"].found) == (OK, "52 °C (gpu-thermal)")
    assert found["over-current"].state == OK
    assert gpu.kernel_driver(machine).found == "that of Jetson Linux 36.4.3"
    assert gpu.tensorrt_of_the_system(machine).found.startswith("libnvinfer 10.3.0, libnvinfer_lean 10.3.0 in /")
    too_old = gpu.judge_cuda((12, 6), 13, "lean 10.16.1", machine)
    assert (too_old.state, too_old.found, too_old.wanted) == (FAILURE, "12.6", "13.0 or newer, for lean 10.16.1")
    assert "--tensorrt system" in too_old.fix


def test_hot_and_overloaded_jetson_is_warned_of(tmp_path: Path) -> None:
    """Stands for: the same Jetson without a fan, on a weak power supply, with its clocks held."""
    machine = tree(tmp_path, ORIN, {
        "sys/class/thermal/thermal_zone1/temp": "99500", "sys/class/hwmon/hwmon1/oc1_event_cnt": "7",
        "sys/class/devfreq/17000000.gpu/min_freq": "624750000", "usr/sbin/nvpmodel": "#!/bin/sh\nexit 1\n",
    })  # fmt: skip
    found = {check.name: check for check in jetson.jetson(machine)}
    assert found["temperature"].state == WARNING
    assert "gpu-thermal at 100 °C of 99 °C" in found["temperature"].why
    assert (found["over-current"].state, found["over-current"].found) == (WARNING, "7 times since the boot")
    assert found["GPU clock"].state == OK
    assert found["power mode"].state == SKIPPED


def test_program_of_the_system_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands for: nvpmodel waiting for a daemon."""
    monkeypatch.setattr("edgeapp.checks.PROGRAM_LIMIT_S", 0.2)
    machine = tree(tmp_path, {"usr/sbin/nvpmodel": "#!/bin/sh\nexec sleep 60\n"})
    began = time.monotonic()
    assert jetson.power_mode(machine).state == SKIPPED
    assert time.monotonic() - began < 10


@pytest.fixture
def nobodys_tree() -> Iterator[Path]:
    """A folder that other users may enter; the test runs as user nobody in no group."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    groups = os.getgroups()
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


def become_nobody(root: Path, *groups: int) -> None:
    for path in root.rglob("*"):
        if path.is_dir():
            path.chmod(0o755)
        elif "dev" in path.relative_to(root).parts:
            os.chown(path, 0, 105 if "dri" in path.parts else 44)
            path.chmod(0o440 if path.name == "nvmap" else 0o660)
    os.setgroups(groups)
    os.setegid(65534)
    os.seteuid(65534)


def test_user_without_groups_is_told_the_command(nobodys_tree: Path) -> None:
    """Stands for: a service user on a Jetson that nobody put into video and render."""
    machine = tree(nobodys_tree, ORIN)
    become_nobody(nobodys_tree)
    nodes, groups = gpu.device_nodes(machine)
    assert (nodes.state, nodes.exit_code) == (FAILURE, 77)
    assert "nvmap" in nodes.found
    assert re.search(r"usermod -aG \S*video\S* nobody", nodes.fix)
    assert (groups.state, groups.found, groups.wanted) == (WARNING, "none of them", "video, render")
    assert "sudo usermod -aG video,render" in groups.fix


def test_user_with_groups_may_open_all(nobodys_tree: Path) -> None:
    """Stands for: the same user in both groups; /dev/nvmap is readable only, and that is enough."""
    machine = tree(nobodys_tree, ORIN)
    become_nobody(nobodys_tree, 44, 105)
    nodes, groups = gpu.device_nodes(machine)
    assert (nodes.state, groups.state) == (OK, OK)
    assert groups.found == "video, render"


def test_gpu_of_another_user_is_no_failure(nobodys_tree: Path) -> None:
    """Stands for: a computing centre that gives each user one GPU of several."""
    machine = tree(nobodys_tree, SERVER)
    become_nobody(nobodys_tree, 44)
    os.seteuid(0)
    (nobodys_tree / "dev/nvidia1").chmod(0o600)
    os.seteuid(65534)
    (nodes,) = gpu.device_nodes(machine)
    assert nodes.state == NOTE
    assert nodes.why.startswith("nvidia1 may not be opened")


# ---- judgements


@pytest.mark.parametrize(
    ("libc", "floor", "state"),
    [("2.31", "2.31", OK), ("2.36", "2.31", OK), ("2.4", "2.31", FAILURE), ("2.27", "2.31", FAILURE), ("2.27", "", OK)],
)
def test_older_libc_is_a_failure(libc: str, floor: str, state: str) -> None:
    """Compared as numbers, and only where the file says what it needs."""
    assert system.judge_libc("x", libc, floor).state == state


def test_clock_that_nothing_disciplines_is_warned_of() -> None:
    """STA_UNSYNC of the kernel; the real question is answered, or refused as in containers."""
    assert system.judge_clock(0x40).state == WARNING
    assert "timedatectl" in system.judge_clock(0x2041).fix
    assert system.judge_clock(0x2001).state == OK
    assert system.clock().state in (OK, WARNING, SKIPPED)


@pytest.mark.parametrize(
    ("path", "state", "words"),
    [("", OK, "not set"), ("/usr/local/cuda/lib64/stubs:/opt/x", WARNING, "take /usr/local/cuda/lib64/stubs out"),
     ("/usr/local/cuda/compat", NOTE, "instead of the one"), ("/opt/lib", OK, "LD_LIBRARY_PATH=/opt/lib")],
    ids=["unset", "stubs", "compat", "harmless"],
)  # fmt: skip
def test_library_path_with_another_libcuda_is_told(tmp_path: Path, path: str, state: str, words: str) -> None:
    """Stubs end with error 34, a compatibility library may end with 803 and 804."""
    machine = tree(tmp_path, {"usr/local/cuda/compat/libcuda.so.1": ""}, LD_LIBRARY_PATH=path)
    check = system.library_path(machine)
    assert check.state == state
    assert words in f"{check.found} {check.why} {check.fix}"


@pytest.mark.parametrize(
    ("name", "text", "state", "words"),
    [
        ("memory.max", "max\n", OK, "available"),
        ("memory.max", "268435456\n", WARNING, "limited to 256 MiB"),
        ("memory.max", "8589934592\n", OK, "limited to 8.0 GiB"),
        ("cpu.max", "max 100000\n", OK, ""),
        ("cpu.max", "50000 100000\n", WARNING, "0.5 granted"),
        ("cpu.max", "150000 100000\n", OK, "1.5 granted"),
    ],
    ids=["no limit", "256M", "8G", "all", "half", "one and a half"],
)
@pytest.mark.parametrize("folder", ["sys/fs/cgroup/system.slice/e.service", "sys/fs/cgroup/system.slice"])
def test_limits_of_the_control_group_count(
    tmp_path: Path, folder: str, name: str, text: str, state: str, words: str
) -> None:
    """Its own and those of the groups above it."""
    group = {"proc/self/cgroup": "0::/system.slice/e.service\n", f"{folder}/{name}": text}
    machine = tree(tmp_path, SERVER, group)
    check = system.memory(machine) if name == "memory.max" else system.processors(machine)
    assert check.state == state
    assert words in check.found


def test_old_control_groups_count_too(tmp_path: Path) -> None:
    """Version 1, as JetPack 5 and older container hosts have."""
    machine = tree(tmp_path, SERVER, {
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "268435456\n", "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000\n",
        "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
    })  # fmt: skip
    assert "limited to 256 MiB" in system.memory(machine).found
    assert "0.5 granted" in system.processors(machine).found


def test_little_memory_is_warned_of(tmp_path: Path) -> None:
    """Stands for: a Jetson on which other programs hold the memory."""
    check = system.memory(tree(tmp_path, {"proc/meminfo": MEMINFO.format(300000)}))
    assert check.state == WARNING
    assert check.wanted == "512 MiB or more available"


@pytest.mark.parametrize(
    ("file", "kernel", "state"),
    [("/usr/lib/libcuda.so.580.95.05", "580.95.05", OK), ("/usr/lib/libcuda.so.580.95.05", "580.159.03", WARNING),
     ("/usr/local/cuda/compat/libcuda.so.575.1", "535.1", OK), ("/usr/lib/libcuda.so.1.1", "", OK)],
)  # fmt: skip
def test_halves_of_the_driver_must_match(file: str, kernel: str, state: str) -> None:
    """Library and kernel driver; the compatibility library is meant to differ."""
    assert gpu.judge_library(file, kernel).state == state


@pytest.mark.parametrize(
    ("capability", "prohibited", "chosen", "state", "code"),
    [((8, 7), False, True, OK, None), ((7, 0), False, True, WARNING, None), ((7, 0), False, False, NOTE, None),
     ((9, 0), True, True, FAILURE, 69), ((9, 0), True, False, NOTE, None)],
)  # fmt: skip
def test_gpu_that_cannot_be_used_is_told(
    capability: tuple[int, int], prohibited: bool, chosen: bool, state: str, code: int | None
) -> None:
    """Too old for the lean runtimes, or closed by its compute mode; it matters for the chosen one."""
    check = gpu.judge_gpu("GPU 0", "x", capability, prohibited=prohibited, chosen=chosen)
    assert (check.state, check.exit_code) == (state, code)


@pytest.mark.parametrize(
    ("state", "wanted"),
    [
        (nvml.State(8 << 30, 40, 1500, True), OK),
        (nvml.State(8 << 30, 40, 1500, False), NOTE),
        (nvml.State(100 << 20, 40, 1500, True), WARNING),
        (nvml.State(8 << 30, 90, 500, True, ("hardware slowdown",)), WARNING),
        (nvml.State(8 << 30, 90, 500, True, (nvml.POWER_CAP,)), OK),
        (nvml.State(), SKIPPED),
    ],
    ids=["fine", "no persistence", "full", "slowed", "power cap", "silent"],
)
def test_state_of_a_gpu_is_judged(state: nvml.State, wanted: str) -> None:
    """A GPU under load is at its power limit; that is no fault."""
    assert gpu.judge_state("GPU 0 state", state, chosen=True).state == wanted


def test_slow_disk_is_warned_of() -> None:
    """A tenth of a second for 4096 bytes is an SD card at its end."""
    assert files.judge_sync(0.4).state == OK
    assert files.judge_sync(250).state == WARNING


@pytest.mark.parametrize(
    ("states", "code"),
    [([], 0), ([(OK, None), (NOTE, None), (SKIPPED, None)], 0), ([(WARNING, None), (OK, None)], 1),
     ([(WARNING, None), (FAILURE, 77), (FAILURE, 69)], 77)],
)  # fmt: skip
def test_exit_code_is_that_of_the_first_failure(states: list[tuple[str, int | None]], code: int) -> None:
    """Else 1 for warnings, else 0."""
    assert exit_code([Check("x", state, "y", exit_code=number) for state, number in states]) == code


# ---- real file systems and limits


def mounted(program: Program, options: str, *words: str, folder: str = ".") -> Outcome:
    """The program in its folder, or with another `folder`, mounted as an empty tmpfs with these options."""
    inside = ["unshare", "--user", "--map-root-user", "--mount"] if os.geteuid() else ["unshare", "--mount"]
    place = program.cwd / folder
    place.mkdir(exist_ok=True)
    script = 'mount -t tmpfs -o "$1" tmpfs "$2" || exit 99; cd "$2" && [ ! -w . ] || head -c 200000 /dev/zero > fill; '
    script += 'cd "$3"; shift 3; exec "$@"'
    done = subprocess.run(
        [*inside, "sh", "-c", script, "sh", options, str(place), str(program.cwd), *program.command, *words],
        cwd="/", env=program.env, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    if done.returncode == 99 or "unshare:" in done.stderr:
        pytest.skip("this machine lets nobody mount")
    return Outcome(done.returncode, done.stdout, "")


def test_full_disk_is_a_failure(program: Program) -> None:
    """A real file system of 64 KiB that is full: results could not be written."""
    found = checks_of(mounted(program, "size=64k,mode=777", "doctor", "--json"))
    assert found["current folder"]["state"] == "failure"
    assert found["current folder"]["exit_code"] == 73
    assert found["sync to disk"]["state"] == "skipped"


def test_nearly_full_disk_is_warned_of(program: Program) -> None:
    """10 MiB are enough for a little, not for months."""
    found = checks_of(mounted(program, "size=10m,mode=777", "doctor", "--json"))
    assert found["current folder"]["state"] == "warning"
    assert found["sync to disk"]["state"] == "ok"


def test_read_only_folder_is_a_note(program: Program) -> None:
    """Results go elsewhere then, and nothing is measured."""
    found = checks_of(mounted(program, "ro", "doctor", "--json"))
    assert found["current folder"]["state"] == "note"
    assert found["current folder"]["why"] == "read-only"
    assert found["sync to disk"]["state"] == "skipped"


def test_temporary_folder_without_programs_is_a_note(program: Program) -> None:
    """A real noexec file system, as hardened servers have."""
    program.env["TMPDIR"] = str(program.cwd / "t")
    found = checks_of(mounted(program, "noexec,size=100m", "doctor", "--json", folder="t"))
    assert found["temporary folder"]["state"] == "note"
    assert found["temporary folder"]["found"].endswith(", noexec")


@pytest.mark.parametrize(("options", "words"), [("ro", "read-only"), ("size=64k", "no space left")])
def test_temporary_folder_that_takes_nothing_is_warned_of(program: Program, options: str, words: str) -> None:
    """Read-only, or full."""
    program.env["TMPDIR"] = str(program.cwd / "t")
    found = checks_of(mounted(program, options, "doctor", "--json", folder="t"))
    assert found["temporary folder"]["state"] == "warning"
    assert words in found["temporary folder"]["found"]


@pytest.mark.parametrize(
    ("limit", "words"), [("-v 8000000", "unlimited address space"), ("-n 100", "256 open files or more")]
)
def test_tight_limits_are_warned_of(program: Program, limit: str, words: str) -> None:
    """Real ulimits."""
    done = subprocess.run(
        ["sh", "-c", f'ulimit {limit}; exec "$@"', "sh", *program.command, "doctor", "--json"],
        cwd=program.cwd, env=program.env, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    found = checks_of(Outcome(done.returncode, done.stdout, done.stderr))
    assert found["limits"]["state"] == "warning"
    assert found["limits"]["wanted"] == words


def test_folder_that_is_gone_is_a_line(source_program: Program, tmp_path: Path) -> None:
    """Somebody removed the current folder; the check says so, the others go on."""
    done = subprocess.run(
        ["sh", "-c", 'mkdir g; cd g; rmdir ../g; exec "$@"', "sh", *source_program.command, "doctor", "--json"],
        cwd=tmp_path, env=source_program.env, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    found = checks_of(Outcome(done.returncode, done.stdout, done.stderr))
    assert found["current folder"]["state"] == "warning"
    assert "FileNotFoundError" in found["current folder"]["found"]
