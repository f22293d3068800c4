"""What this machine gives the driver: device nodes, the rights to them, versions. Looks at files only.

Sources: the device nodes of a Jetson are those that NVIDIA passes into containers (l4t devices.csv of R35, R36, R39);
that a missing /dev/nvidia-uvm fails cuInit, and that nvidia-modprobe makes it: CUDA installation guide for Linux,
"Device Node Verification".
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
from collections.abc import Callable
from grp import getgrgid
from pathlib import Path

ROOT = Path("/")
PLUGGED = (("nvidiactl",), ("nvidia[0-9]*",), ("nvidia-uvm",))
JETSON = (("nvmap",), ("nvgpu/igpu0/ctrl", "nvhost-ctrl-gpu", "nvidia[0-9]*"))
"""What a CUDA program opens, relative to /dev; one of each group is enough, all that are there must be open to it."""


def is_jetson(root: Path = ROOT) -> bool:
    """Whether this is a Tegra system; inside a container as well."""
    for name in ("sys/firmware/devicetree/base/compatible", "proc/device-tree/compatible"):
        with contextlib.suppress(OSError):
            return b"nvidia,tegra" in (root / name).read_bytes()
    return (root / "etc/nv_tegra_release").exists()


def in_container(root: Path = ROOT) -> bool:
    """Whether this is a container of Docker, Podman or containerd, as far as files tell it."""
    if any((root / name).exists() for name in (".dockerenv", "run/.containerenv")):
        return True
    with contextlib.suppress(OSError):
        return b"kubepods" in (root / "proc/1/cgroup").read_bytes()
    return False


def _open_to_us(node: Path) -> bool:
    return os.access(node, os.R_OK | os.W_OK)


def node_trouble(root: Path = ROOT, may_open: Callable[[Path], bool] = _open_to_us) -> tuple[str, str] | None:
    """(why, fix) when device nodes are missing or closed to this process; None when they are fine.

    Args:
        root: where the file system starts.
        may_open: whether this process may read and write a node.
    """
    dev = root / "dev"
    jetson, container = is_jetson(root), in_container(root)
    nodes: list[Path] = []
    for group in JETSON if jetson else PLUGGED:
        found = [path for pattern in group for path in sorted(dev.glob(pattern))]
        if not found:
            missing = "/dev/" + " nor /dev/".join(group).replace("[0-9]*", "0")
            return f"there is no {missing}", _fix_of_missing(group[0], jetson=jetson, container=container)
        nodes += found
    closed = [node for node in dict.fromkeys(nodes) if not may_open(node)]
    return _closed(closed, root, container=container) if closed else None


def _fix_of_missing(node: str, *, jetson: bool, container: bool) -> str:
    if container:
        return "start the container with --runtime nvidia" + ("" if jetson else " --gpus all")
    if jetson:
        return "the system of this Jetson lacks NVIDIA's GPU driver: flash JetPack, or see dmesg"
    if node == "nvidia-uvm":
        return "make it: sudo nvidia-modprobe -u -c=0 (and at every boot: nvidia-persistenced)"
    return "load the kernel driver: sudo modprobe nvidia; when that fails, install the NVIDIA driver"


def _closed(nodes: list[Path], root: Path, *, container: bool) -> tuple[str, str]:
    """(why, fix) for nodes that this process may not open."""
    names = ", ".join(f"/{node.relative_to(root)}" for node in nodes[:3]) + (" ..." if len(nodes) > 3 else "")
    groups: dict[str, int] = {}
    for node in nodes:
        with contextlib.suppress(OSError):
            number = node.stat().st_gid
            groups[_group_name(number)] = number
    wanted = {name: number for name, number in groups.items() if number not in (0, *os.getgroups(), os.getegid())}
    user = _user()
    if not wanted:
        return (
            f"{names}: this process (user {user}) may not open it",
            "a udev rule has to give it to the group video; a unit must not set PrivateDevices= or DeviceAllow=",
        )
    why = f"{names}: the user {user} is not in the group {' and '.join(sorted(wanted))}"
    if container:
        added = " ".join(f"--group-add {number}" for number in sorted(wanted.values()))
        return why, f"start the container with {added}"
    names = ",".join(sorted(wanted))
    units = " ".join(sorted(wanted))
    return why, f"sudo usermod -aG {names} {user}, then log in again; in a unit: SupplementaryGroups={units}"


def _group_name(number: int) -> str:
    try:
        return getgrgid(number).gr_name
    except KeyError:  # a container has its own /etc/group
        return str(number)


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def library_file(root: Path = ROOT) -> str:
    """Where libcuda lies, links resolved; "" before it was loaded."""
    with contextlib.suppress(OSError):
        maps = (root / "proc/self/maps").read_text("utf-8", "replace")
        if match := re.search(r"(/\S*/libcuda\.so\S*)", maps):
            return match[1]
    return ""


def kernel_version(root: Path = ROOT) -> str:
    """That of the kernel's half of the driver, 580.159.03; "" where it does not tell, as on Jetsons."""
    with contextlib.suppress(OSError):
        text = (root / "proc/driver/nvidia/version").read_text("utf-8", "replace")
        if match := re.search(r"^NVRM version:.*?\b(\d+\.\d+(?:\.\d+)?)\b", text, re.MULTILINE):
            return match[1]
    return ""


def driver_files(root: Path = ROOT) -> str:
    """What versions the two halves of the driver have, and where the library lies; "" when that cannot be told.

    "the library is /usr/lib/libcuda.so.580.95.05, the kernel driver 580.159.03"; only after libcuda was loaded.
    """
    library, kernel = library_file(root), kernel_version(root)
    if library and kernel:
        return f"the library is {library}, the kernel driver {kernel}"
    return f"the library is {library}" if library else f"the kernel driver is {kernel}" if kernel else ""
