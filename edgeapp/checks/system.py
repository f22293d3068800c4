"""The operating system: C library, processors, memory, clock, limits."""

from __future__ import annotations

import ctypes
import os
import re
import resource
import struct

from edgeapp.checks import FAILURE, NOTE, OK, SKIPPED, WARNING, Check, Machine, size
from edgeapp.errors import SystemRefusedError
from edgeapp.gpu import runtimes

LEAST_MEMORY = 512 << 20
"""Bytes: the program, TensorRT and a small model take about 300 MiB."""

LEAST_FILES = 256

STA_UNSYNC = 0x0040
"""linux/timex.h: the clock is not disciplined by anything."""


def system(machine: Machine) -> Check:
    """Distribution, kernel, machine and C library, which must not be older than what the program was built for."""
    release = dict(re.findall(r'^(\w+)="?([^"\n]*)', machine.text("/etc/os-release"), re.MULTILINE))
    about = os.uname()
    libc = (os.confstr("CS_GNU_LIBC_VERSION") or "no glibc").removeprefix("glibc ")
    found = f"{release.get('PRETTY_NAME', 'unknown system')}, Linux {about.release}, {about.machine}, glibc {libc}"
    return judge_libc(found, libc, runtimes.flavour().get("glibc_floor", ""))


def judge_libc(found: str, libc: str, floor: str) -> Check:
    """`floor`: the oldest glibc that everything inside runs with, "" where that is not known."""
    wanted = f"glibc {floor} or newer" if floor else ""
    if floor and _numbers(libc) < _numbers(floor):
        return Check(
            "system", FAILURE, found, wanted, "the program was built on a newer system",
            "use the file that ./build.sh portable makes, or a newer system", SystemRefusedError.exit_code,
        )  # fmt: skip
    return Check("system", OK, found, wanted)


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)]


def processors(machine: Machine) -> Check:
    """How many this process may use, and what its control group grants it."""
    count = len(os.sched_getaffinity(0))
    found = f"{count} of {os.cpu_count()}"
    quota, _, period = _least(machine, "cpu.max", "/cpu/cpu.cfs_quota_us").partition(" ")
    period = period or machine.text("/sys/fs/cgroup/cpu/cpu.cfs_period_us")
    if quota.isdigit() and period.isdigit() and int(period):
        granted = int(quota) / int(period)
        found += f", {granted:.2g} granted by the control group"
        if granted < 1:
            return Check(
                "processors", WARNING, found, "1 or more", "the GPU will wait for pictures",
                "raise CPUQuota= of the unit, --cpus of the container or the CPU limit of the pod",
            )  # fmt: skip
    return Check("processors", OK, found)


def memory(machine: Machine) -> Check:
    """What is available, swap, and the limit of the control group."""
    table = {
        name: int(value) << 10
        for name, value in re.findall(r"^(\w+):\s+(\d+) kB", machine.text("/proc/meminfo"), re.MULTILINE)
    }
    available, total = table.get("MemAvailable", 0), table.get("MemTotal", 0)
    if not total:
        return Check("memory", SKIPPED, "/proc/meminfo cannot be read")
    found = f"{size(available)} of {size(total)} available, {size(table.get('SwapTotal', 0))} swap"
    limit = _least(machine, "memory.max", "/memory/memory.limit_in_bytes")
    if limit.isdigit() and int(limit) < total:
        found += f", limited to {size(int(limit))} by the control group"
        available = min(available, int(limit))
    if available < LEAST_MEMORY:
        return Check(
            "memory", WARNING, found, f"{size(LEAST_MEMORY)} or more available",
            "the kernel kills what takes too much memory",
            "end other programs, add swap, or raise MemoryMax= of the unit or the limit of the container",
        )  # fmt: skip
    return Check("memory", OK, found)


def _least(machine: Machine, name: str, old: str) -> str:
    """The tightest value of a control group's file, from this process's group upwards; "" where there is none.

    Args:
        name: the file in version 2 of control groups; old: in version 1, whose path is that of the container's own.
    """
    match = re.search(r"^0::(/.*)$", machine.text("/proc/self/cgroup"), re.MULTILINE)
    parts = [part for part in (match[1] if match else "/").split("/") if part not in ("", "..")]
    values = []
    for depth in range(len(parts), -1, -1):
        value = machine.text("/".join(["/sys/fs/cgroup", *parts[:depth], name]))
        if value[:1].isdigit():
            values.append(value)
    if values:
        return min(values, key=_share)
    return machine.text(f"/sys/fs/cgroup{old}")


def _share(value: str) -> float:
    """The order of "1048576" and of "50000 100000" (quota and period)."""
    first, _, second = value.partition(" ")
    return int(first) / max(1, int(second or 1))


def clock() -> Check:
    """Whether anything keeps the clock right, asked of the kernel (adjtimex(2))."""
    buffer = ctypes.create_string_buffer(512)  # struct timex: 208 bytes on 64-bit Linux
    if ctypes.CDLL(None).adjtimex(buffer) < 0:
        return Check("clock", SKIPPED, "the kernel does not tell; containers may not ask")
    return judge_clock(int(struct.unpack_from("@iqqqqi", buffer)[5]))


def judge_clock(status: int) -> Check:
    """`status`: timex.status."""
    if status & STA_UNSYNC:
        return Check(
            "clock", WARNING, "not synchronised", "synchronised with a time server",
            "times of results and logs may be wrong", "sudo timedatectl set-ntp true, or start chrony",
        )  # fmt: skip
    return Check("clock", OK, "synchronised")


def limits() -> Check:
    """ulimits: open files, locked memory, address space."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    locked, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    space, _ = resource.getrlimit(resource.RLIMIT_AS)
    found = f"{_limit(files, count=True)} open files, {_limit(locked)} locked memory, {_limit(space)} address space"
    if space != resource.RLIM_INFINITY:
        return Check(
            "limits", WARNING, found, "unlimited address space",
            "CUDA reserves more addresses than there is memory, and cannot start", "ulimit -v unlimited",
        )  # fmt: skip
    if files != resource.RLIM_INFINITY and files < LEAST_FILES:
        return Check(
            "limits", WARNING, found, f"{LEAST_FILES} open files or more", "the driver alone opens dozens",
            "ulimit -n 1024, or LimitNOFILE=1024 in the unit",
        )  # fmt: skip
    return Check("limits", OK, found)


def _limit(value: int, *, count: bool = False) -> str:
    if value == resource.RLIM_INFINITY:
        return "unlimited"
    return str(value) if count else size(value)


def library_path(machine: Machine) -> Check:
    """LD_LIBRARY_PATH: whether another libcuda.so.1 than the driver's is put before it."""
    name = "library path"
    folders = [folder for folder in machine.environ.get("LD_LIBRARY_PATH", "").split(":") if folder]
    found = f"LD_LIBRARY_PATH={':'.join(folders)}" if folders else "LD_LIBRARY_PATH is not set"
    stubs = [folder for folder in folders if "stubs" in folder.split("/")]
    if stubs:
        return Check(
            name, WARNING, found, "no folder of stubs",
            "the libcuda in it is for linking only: every call of it fails with error 34",
            f"take {', '.join(stubs)} out of LD_LIBRARY_PATH",
        )  # fmt: skip
    for folder in folders:
        if machine.path(f"{folder}/libcuda.so.1").exists():
            why = f"the libcuda.so.1 in {folder} is taken instead of the one that belongs to the kernel driver"
            fix = "take it out of LD_LIBRARY_PATH if the driver fails with error 803 or 804"
            return Check(name, NOTE, found, "", why, fix)
    return Check(name, OK, found)
