"""The driver, the GPUs, their device nodes, and the TensorRT libraries."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from edgeapp import gpus
from edgeapp.checks import FAILURE, NOTE, OK, SKIPPED, WARNING, Check, Machine, Say, failed, size
from edgeapp.errors import NoGpuError, NotPermittedError
from edgeapp.gpu import faults, nvml, runtimes
from edgeapp.gpu import machine as nodes_of
from edgeapp.gpu.driver import LIBRARY, Driver

WSL_NODE = "dxg"
JETSON_GROUPS = ("video", "render")

LEAN_FLOOR = (7, 5)
"""The oldest compute capability with kernels in the lean runtimes since 10.15 (seen in the libraries)."""

INTEGRATED, COMPUTE_MODE, PROHIBITED = 18, 20, 2
"""CU_DEVICE_ATTRIBUTE_INTEGRATED, CU_DEVICE_ATTRIBUTE_COMPUTE_MODE and its value CU_COMPUTEMODE_PROHIBITED."""

LITTLE_MEMORY = 512 << 20

INTO_CONTAINER = {
    "docker": "docker run --gpus all, on a Jetson docker run --runtime nvidia --gpus all",
    "podman": "podman run --device nvidia.com/gpu=all (nvidia-ctk cdi generate makes that name)",
    "kubernetes": "ask for nvidia.com/gpu: 1 in the limits of the pod; the cluster needs NVIDIA's device plugin",
    "lxc": "lxc config device add NAME gpu gpu; lxc config set NAME nvidia.runtime true",
}
LOADED = "sudo modprobe nvidia, or install the driver and reboot"


def container(machine: Machine) -> Check:
    """Whether this is one, and whether it was given a GPU."""
    kind = machine.container
    if not kind:
        return Check("container", OK, "none")
    nodes = _nodes(machine)
    if nodes:
        return Check("container", OK, f"{kind}, with {', '.join(_names(machine, nodes))}")
    return Check("container", WARNING, f"{kind}, without device nodes of a GPU", "a container with a GPU",
                 "it was started without one", _into(kind))  # fmt: skip


def _into(kind: str) -> str:
    return INTO_CONTAINER.get(kind, "give it the GPU of the host: NVIDIA Container Toolkit")


def kernel_driver(machine: Machine) -> Check:
    """The version of the kernel's part of the driver; /proc is not hidden in containers."""
    name, version = "kernel driver", nodes_of.kernel_version(machine.root)
    if version:
        return Check(name, OK, version)
    if machine.jetson:
        return Check(name, OK, f"that of Jetson Linux {machine.l4t[1] or '(version unknown)'}")
    if machine.path("/dev/dxg").exists():
        return Check(name, OK, "that of Windows, through WSL")
    return Check(name, WARNING, "none is loaded", "an NVIDIA driver",
                 "neither /proc/driver/nvidia/version nor /etc/nv_tegra_release is there",
                 f"on the host: {LOADED}" if machine.container else LOADED)  # fmt: skip


def driver(machine: Machine, device: int, say: Say) -> Iterator[Check]:
    """The driver library, its CUDA version, and every GPU with its state; asks the driver, which may crash.

    Args:
        device: the GPU that is meant to be used.
    """
    say("find libcuda.so.1")
    try:
        library = Driver()
    except NoGpuError as error:
        yield _no_library(machine, error)
        return
    yield judge_library(nodes_of.library_file() or LIBRARY, nodes_of.kernel_version(machine.root))
    say("cuDriverGetVersion")
    carried = ", ".join(runtime.name for runtime in runtimes.catalogue())
    yield judge_cuda(library.version(), int(runtimes.flavour().get("cuda") or 0), carried, machine)
    say("cuInit")
    try:
        library.initialise()
        count = library.device_count()
    except NoGpuError as error:
        yield failed("GPUs", error, wanted="one or more")
        return
    hidden = machine.environ.get("CUDA_VISIBLE_DEVICES")
    found = f"{count} visible" + (f", CUDA_VISIBLE_DEVICES={hidden}" if hidden is not None else "")
    if device >= count:
        yield Check("GPUs", FAILURE, found, f"GPU {device}", "they are numbered from 0",
                    "choose another with --device" if count else "check nvidia-smi", NoGpuError.exit_code)  # fmt: skip
    else:
        yield Check("GPUs", OK, found)
    say("nvmlInit")
    managed = nvml.Nvml.open()
    for number in range(count):
        say(f"ask GPU {number}")
        yield _gpu(library, number, chosen=number == device)
        if managed is not None:
            say(f"ask NVML about GPU {number}")
            state = managed.state(library.bus_id(number))
            yield judge_state(f"GPU {number} state", state, chosen=number == device)
    say("the end of the driver")


def _no_library(machine: Machine, error: NoGpuError) -> Check:
    fix = error.fix
    if machine.container:
        fix = f"{_into(machine.container)}; or give an .onnx model to run on the CPU"
    elif nodes_of.kernel_version(machine.root):
        fix = "install the driver's libraries of the same version (libcuda1, libnvidia-compute-...)"
    return Check("driver library", FAILURE, "libcuda.so.1 is not found", "libcuda.so.1 of the NVIDIA driver",
                 error.why, fix, error.exit_code)  # fmt: skip


def judge_library(file: str, kernel: str) -> Check:
    """`file`: the path of libcuda; `kernel`: the version of the kernel driver, "" where it does not tell."""
    match = re.search(r"\.so\.(\d+\.\d+(?:\.\d+)?)$", file)
    if match and kernel and match[1] != kernel and "compat" not in file:
        return Check("driver library", WARNING, file, f"version {kernel}, as the kernel driver",
                     "library and kernel driver are of different versions; CUDA fails with error 803",
                     "reboot after the driver update, or bind the host's libcuda into the container")  # fmt: skip
    return Check("driver library", OK, file)


def judge_cuda(version: tuple[int, int], major: int, carried: str, machine: Machine) -> Check:
    """`version`: the newest CUDA that the driver serves; `major`: what this program needs, 0 where it is not known."""
    name, found = "CUDA of the driver", f"{version[0]}.{version[1]}"
    wanted = f"{major}.0 or newer, for {carried or 'this program'}" if major else ""
    if too_old := faults.old_driver(version, major):
        check = failed(name, too_old, found=found, wanted=wanted)
        if machine.jetson:
            fix = "use JetPack 7, or freeze the program on this Jetson: ./build.sh freeze --tensorrt system"
            return replace(check, fix=fix)
        return check
    return Check(name, OK, found, wanted)


def _gpu(library: Driver, number: int, *, chosen: bool) -> Check:
    capability = library.compute_capability(number)
    total = library.total_memory(number)
    shared = ", shared with the CPU" if library.attribute(number, INTEGRATED) else ""
    found = f"{library.device_name(number)}, compute capability {gpus.described(*capability)}, {size(total)}{shared}"
    prohibited = library.attribute(number, COMPUTE_MODE) == PROHIBITED
    return judge_gpu(f"GPU {number}", found, capability, prohibited=prohibited, chosen=chosen)


def judge_gpu(name: str, found: str, capability: tuple[int, int], *, prohibited: bool, chosen: bool) -> Check:
    """Whether the bundled runtimes have kernels for it and its compute mode lets anybody in."""
    if prohibited:
        state, code = (FAILURE, NoGpuError.exit_code) if chosen else (NOTE, None)
        return Check(name, state, found, "a compute mode that lets programs in", "its compute mode is prohibited",
                     "sudo nvidia-smi --compute-mode=DEFAULT", code)  # fmt: skip
    if runtimes.flavour()["tensorrt"] == "lean" and capability < LEAN_FLOOR:
        return Check(name, WARNING if chosen else NOTE, found, "compute capability 7.5 or newer",
                     "the lean runtimes of 10 and newer have no kernels for it",
                     "use a newer GPU, or ./build.sh freeze --tensorrt full for plans of TensorRT 8.6")  # fmt: skip
    return Check(name, OK, found)


def judge_state(name: str, state: nvml.State, *, chosen: bool) -> Check:
    """What NVML says of a GPU: free memory, heat, throttling, persistence mode."""
    facts = []
    if state.free_bytes is not None:
        facts.append(f"{size(state.free_bytes)} free")
    if state.temperature_c is not None:
        facts.append(f"{state.temperature_c} °C")
    if state.clock_mhz is not None:
        facts.append(f"{state.clock_mhz} MHz")
    if state.persistence is not None:
        facts.append(f"persistence mode {'on' if state.persistence else 'off'}")
    slowed = state.slowed_by
    found = ", ".join([*facts, *slowed]) or "NVML tells nothing of it"
    if [word for word in slowed if word != nvml.POWER_CAP]:
        return Check(name, WARNING, found, "full speed", f"it is slowed down: {', '.join(slowed)}",
                     "check fans, air flow and power supply: nvidia-smi -q -d PERFORMANCE,TEMPERATURE")  # fmt: skip
    if chosen and state.free_bytes is not None and state.free_bytes < LITTLE_MEMORY:
        return Check(name, WARNING, found, f"{size(LITTLE_MEMORY)} or more free", "other programs hold its memory",
                     "see which with nvidia-smi, or choose another GPU with --device")  # fmt: skip
    if state.persistence is False:
        return Check(name, NOTE, found, "", "the driver starts anew whenever nobody uses the GPU, which takes seconds",
                     "sudo nvidia-smi -pm 1, or start nvidia-persistenced")  # fmt: skip
    return Check(name, OK if facts else SKIPPED, found)


def device_nodes(machine: Machine) -> Iterator[Check]:
    """Whether they are there and this user may open them; on a Jetson, whether the user is in the groups."""
    yield _nodes_check(machine)
    if machine.jetson:
        yield _groups(machine)


def _nodes(machine: Machine) -> list[Path]:
    groups = nodes_of.JETSON if machine.jetson else nodes_of.PLUGGED
    patterns = dict.fromkeys([*(pattern for group in groups for pattern in group), WSL_NODE])
    return [path for pattern in patterns for path in machine.glob(f"/dev/{pattern}")]


def _names(machine: Machine, nodes: list[Path]) -> list[str]:
    return [str(path.relative_to(machine.path("/dev"))) for path in nodes]


def _nodes_check(machine: Machine) -> Check:
    name, nodes = "device nodes", _nodes(machine)
    names = ", ".join(_names(machine, nodes))
    if not nodes and not machine.jetson and not nodes_of.kernel_version(machine.root):
        return Check(name, SKIPPED, "none, as there is no kernel driver")
    if machine.path(f"/dev/{WSL_NODE}").exists() or not (trouble := nodes_of.node_trouble(machine.root, _may_open)):
        return Check(name, OK, names)
    why, fix = trouble
    shut = [path for path in nodes if not _may_open(path)]
    if not shut:
        return Check(name, FAILURE, names or "none", "all that CUDA opens", why, fix, NoGpuError.exit_code)
    # Where a computing centre gives each user one GPU of many, the others are shut and nothing is wrong.
    gpu_nodes = {path for path in nodes if re.fullmatch(r"nvidia\d+", path.name)}
    if gpu_nodes.issuperset(shut) and gpu_nodes.difference(shut):
        open_names = ", ".join(_names(machine, [path for path in nodes if path not in shut]))
        return Check(name, NOTE, open_names, "", f"{', '.join(_names(machine, shut))} may not be opened by this user",
                     "this is right if the GPU is meant for others")  # fmt: skip
    return Check(name, FAILURE, f"{', '.join(_names(machine, shut))} may not be opened by this user",
                 "to be opened by this user", why, fix, NotPermittedError.exit_code)  # fmt: skip


def _may_open(path: Path) -> bool:
    """Reading is enough to ask for: members of video may only read /dev/nvmap. A control group may say no, too."""
    if not os.access(path, os.R_OK, effective_ids=True):
        return False
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError as error:
        return error.errno != errno.EPERM
    return True


def _group_table(machine: Machine) -> dict[str, int]:
    rows = (line.split(":") for line in machine.text("/etc/group").splitlines())
    return {row[0]: int(row[2]) for row in rows if len(row) > 2 and row[2].isdigit()}


def _groups(machine: Machine) -> Check:
    """On a Jetson the nodes belong to video and render."""
    if os.geteuid() == 0:
        return Check("groups", OK, "root needs none")
    own = {os.getegid(), *os.getgroups()}
    table = _group_table(machine)
    wanted = [name for name in JETSON_GROUPS if name in table]
    missing = [name for name in wanted if table[name] not in own]
    found = ", ".join(name for name in wanted if name not in missing) or "none of them"
    if missing:
        return Check("groups", WARNING, found, ", ".join(wanted), "CUDA on a Jetson opens nodes of these groups",
                     f"sudo usermod -aG {','.join(missing)} $USER, then log in again; "
                     f"in a unit: SupplementaryGroups={' '.join(missing)}")  # fmt: skip
    return Check("groups", OK, found, ", ".join(wanted))


def tensorrt_inside() -> Check:
    """The TensorRT libraries that travel in this program."""
    found = ", ".join(runtime.name for runtime in runtimes.catalogue())
    if not found:
        return Check("TensorRT inside", NOTE, "none", "", "plans cannot be run", "use the frozen file")
    return Check("TensorRT inside", OK, found)


def tensorrt_of_the_system(machine: Machine) -> Check:
    """libnvinfer on this machine; good to know, and not needed."""
    listed = re.findall(r"=> (\S*/libnvinfer\S*)$", machine.output("ldconfig", "-p"), re.MULTILINE)
    files = {os.path.realpath(machine.path(file)) for file in listed}
    for folder in runtimes.SYSTEM_FOLDERS:
        files |= {os.path.realpath(file) for file in machine.glob(f"{folder}/libnvinfer*.so.[0-9]*")}
    versions: dict[str, str] = {}
    for file in sorted(files):
        if match := re.search(r"/(libnvinfer(?:_lean|_dispatch)?)\.so\.(\d+[\d.]*)$", file):
            versions[f"{match[1]} {match[2]}"] = os.path.dirname(file)
    if not versions:
        return Check("TensorRT of the system", OK, "none, and none is needed")
    folders = ", ".join(sorted(set(versions.values())))
    return Check("TensorRT of the system", OK, f"{', '.join(versions)} in {folders}")
