"""What the tests of the service do to the GPU and to the process: memory is taken, kernels fail, rights go.

As a program it takes rights from another one: python provoking.py mdwe,nobody PROGRAM WORD...
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
NOBODY = 65534

# --- the GPU's memory -------------------------------------------------------------------------------------------------

TAKES_MEMORY = """
import ctypes, sys
cuda, leave = ctypes.CDLL("libcuda.so.1"), int(sys.argv[1])
def call(name, *words):
    code = getattr(cuda, name)(*words)
    assert code == 0, (name, code)
context, free, total, address = ctypes.c_void_p(), ctypes.c_size_t(), ctypes.c_size_t(), ctypes.c_uint64()
call("cuInit", 0)
call("cuDevicePrimaryCtxRetain", ctypes.byref(context), 0)
call("cuCtxSetCurrent", context)
call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
most = free.value
while most >= 2 << 20:
    call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
    size = min(most, free.value - leave) >> 21 << 21
    if size <= 0 or cuda.cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t(size)):
        most //= 2
print(free.value >> 20, flush=True)
sys.stdin.read()
"""
"""Takes all memory of GPU 0 but so many bytes, in blocks of 2 MB, the smallest there are; says how many MB are free."""


@contextmanager
def neighbour(leave_mb: int) -> Iterator[int]:
    """Another process that holds the GPU's memory; gives the MB that it left."""
    with subprocess.Popen(
        [sys.executable, "-c", TAKES_MEMORY, str(leave_mb << 20)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        try:
            said = process.stdout.readline()
            assert said, "the neighbour could not take the memory"
            yield int(said)
        finally:
            process.kill()


class ProcessInfo(ctypes.Structure):
    """nvmlProcessInfo_t of nvml.h."""

    _fields_ = (
        ("pid", ctypes.c_uint), ("used", ctypes.c_ulonglong), ("gpu_instance", ctypes.c_uint),
        ("compute_instance", ctypes.c_uint),
    )  # fmt: skip


class Memory:
    """What a process holds of GPU 0's memory, as NVML counts it; no CUDA context is made for it."""

    NOT_TOLD = (1 << 64) - 1
    MOST_PROCESSES = 100

    def __init__(self) -> None:
        from edgeapp.gpu.driver import Driver  # late: as a program this file needs nothing but Python
        from edgeapp.gpu.nvml import Nvml

        driver = Driver()
        driver.initialise()
        self._nvml, self._bus_id = Nvml.open(), driver.bus_id(0)

    def kb(self, pid: int) -> int | None:
        """None where NVML does not tell, as on a Jetson.

        Where it does not know the process (in a container) what all of them hold, with a turned sign of what is free.
        """
        if self._nvml is None:
            return None
        found = (ProcessInfo * self.MOST_PROCESSES)()
        count = ctypes.c_uint(self.MOST_PROCESSES)
        words = (self._nvml._device(self._bus_id), ctypes.byref(count), found)
        if self._nvml._library.nvmlDeviceGetComputeRunningProcesses_v3(*words) == 0:
            for one in found[: count.value]:
                if one.pid == pid and one.used != self.NOT_TOLD:
                    return int(one.used) >> 10
        free = self._nvml.state(self._bus_id).free_bytes
        return None if free is None else -(free >> 10)


# --- kernels that fail ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sting:
    """See sting.c.

    Args:
        library: to be preloaded.
        file: what it waits for.
    """

    library: Path
    file: Path

    @property
    def env(self) -> dict[str, str]:
        return {"LD_PRELOAD": str(self.library), "EDGEAPP_STING": str(self.file)}

    def thrust(self, kind: str) -> None:
        """Break the CUDA context."""
        part = self.file.with_suffix(".new")
        part.write_text(kind)
        part.rename(self.file)

    def answer(self) -> tuple[int, float] | None:
        """The CUDA error, and the second of the monotonic clock at which the driver told it; None so far."""
        try:
            code, nanoseconds = Path(f"{self.file}.done").read_text().split()
        except FileNotFoundError:
            return None
        return int(code), int(nanoseconds) / 1e9


def sting_library(folder: Path) -> Path:
    """The library of EDGEAPP_STING_LIBRARY, or made here with a C compiler; skips without either."""
    if given := os.environ.get("EDGEAPP_STING_LIBRARY"):
        return Path(given).resolve(strict=True)
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        import pytest

        pytest.skip("no C compiler: make sting.so elsewhere (tests/gpu/sting.c), and name it in EDGEAPP_STING_LIBRARY")
    made = folder / "sting.so"
    words = ["-O2", "-shared", "-fPIC", "-o", made, HERE / "sting.c", "-ldl", "-lpthread"]
    subprocess.run([compiler, *words], check=True, timeout=60)
    return made


# --- rights that a unit file takes away -------------------------------------------------------------------------------

libc = ctypes.CDLL(None, use_errno=True)

PR_SET_SECCOMP, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS, PR_SET_MDWE = 22, 4, 38, 65
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
AUDIT_ARCH_X86_64 = 0xC000003E
LOAD_WORD, EQUAL, AT_LEAST, AND, GIVE = 0x20, 0x15, 0x35, 0x54, 0x06  # linux/bpf_common.h
ALLOW, REFUSE = 0x7FFF0000, 0x00050000  # linux/seccomp.h
NUMBER, ARCHITECTURE, ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data

SYSTEM_SERVICE = (
    "0-26 28-91 95-100 102 104 106-112 114-115 118-121 123-125 127-133 135 137-138 140-152 157-158 160 162 186-211 "
    "213-226 228-235 237-245 247-259 261-297 299 302-303 306-312 314-316 318-319 322-328 332-334 424-427 434-437 "
    "439-441 449-450"
)
"""Calls of x86-64 that are left of @system-service without @privileged: `systemd-analyze syscall-filter`, 252."""

Operation = tuple[int, int, int, int]


def _loaded(offset: int) -> Operation:
    return LOAD_WORD, 0, 0, offset


def only(calls: str) -> list[Operation]:
    """Refuse all calls but these with EPERM."""
    program = [_loaded(NUMBER)]
    for piece in calls.split():
        low, _, high = piece.partition("-")
        program += [(AT_LEAST, 0, 2, int(low)), (AT_LEAST, 1, 0, int(high or low) + 1), (GIVE, 0, 0, ALLOW)]
    return [*program, (GIVE, 0, 0, REFUSE | errno.EPERM)]


def refused(call: int, argument: int, mask: int, *, error: int, unless: int | None = None) -> list[Operation]:
    """Refuse a call whose argument has all bits of the mask, or, with `unless`, is another number than that."""
    equal = mask if unless is None else unless
    ends = (0, 1) if unless is None else (1, 0)
    return [
        _loaded(NUMBER),
        (EQUAL, 0, 4, call),
        _loaded(ARGUMENTS + 8 * argument),
        (AND, 0, 0, mask),
        (EQUAL, *ends, equal),
        (GIVE, 0, 0, REFUSE | error),
    ]


PROT_WRITE_EXEC, PROT_EXEC, SHM_EXEC, WHOLE = 6, 4, 0o100000, 0xFFFFFFFF
NO_NEW_CODE = [
    *refused(9, 2, PROT_WRITE_EXEC, error=errno.EPERM),  # mmap
    *refused(10, 2, PROT_EXEC, error=errno.EPERM),  # mprotect
    *refused(329, 2, PROT_EXEC, error=errno.EPERM),  # pkey_mprotect
    *refused(30, 2, SHM_EXEC, error=errno.EPERM),  # shmat
    (GIVE, 0, 0, ALLOW),
]
"""What MemoryDenyWriteExecute= is before systemd 253, and on kernels before 6.3."""

AF_UNIX_ONLY = [*refused(41, 0, WHOLE, error=errno.EAFNOSUPPORT, unless=1), (GIVE, 0, 0, ALLOW)]


def _require(code: int, what: str) -> None:
    if code != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def no_new_privileges() -> None:
    _require(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "PR_SET_NO_NEW_PRIVS")


def put_in_force(rules: list[Operation]) -> None:
    """A filter of system calls, which stays for good."""
    if platform.machine() != "x86_64":
        raise OSError(errno.ENOSYS, "the numbers of the calls are those of x86-64")
    head = [_loaded(ARCHITECTURE), (EQUAL, 1, 0, AUDIT_ARCH_X86_64), (GIVE, 0, 0, ALLOW)]
    code = b"".join(struct.pack("=HBBI", *operation) for operation in [*head, *rules])
    kept = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("@HP", len(code) // 8, ctypes.addressof(kept))
    no_new_privileges()
    _require(libc.prctl(PR_SET_SECCOMP, 2, program, 0, 0), "PR_SET_SECCOMP")


def no_new_code() -> None:
    put_in_force(NO_NEW_CODE)


def unix_sockets_only() -> None:
    """RestrictAddressFamilies=AF_UNIX"""
    put_in_force(AF_UNIX_ONLY)


def service_calls_only() -> None:
    """SystemCallFilter=@system-service, ~@privileged, SystemCallErrorNumber=EPERM"""
    put_in_force(only(SYSTEM_SERVICE))


def mdwe() -> None:
    """MemoryDenyWriteExecute= since systemd 253."""
    _require(libc.prctl(PR_SET_MDWE, 1, 0, 0, 0), "PR_SET_MDWE")


def nobody() -> None:
    """A user without rights; what it starts has no capabilities."""
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)


def little_locked_memory() -> None:
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (64 << 10, 64 << 10))


def own_users() -> None:
    """PrivateUsers=: a name space in which there is but this user."""
    user, group = os.geteuid(), os.getegid()
    _require(libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0), "PR_SET_DUMPABLE")  # else /proc/self is root's
    _require(libc.unshare(CLONE_NEWUSER), "CLONE_NEWUSER")
    for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        Path(f"/proc/self/{name}").write_text(text)


def no_network() -> None:
    """PrivateNetwork="""
    _require(libc.unshare(CLONE_NEWNET), "CLONE_NEWNET")


STEPS = {
    step.__name__: step
    for step in (nobody, own_users, no_network, little_locked_memory, no_new_privileges, mdwe, no_new_code,
                 unix_sockets_only, service_calls_only)
}  # fmt: skip
"""In an order in which they can be taken one after the other."""


def confined_by(*steps: str) -> list[str]:
    """What a command is started by, to have these steps behind it."""
    return [sys.executable, __file__, ",".join(sorted(steps, key=list(STEPS).index))]


READ_ONLY = """
set -e
kept=$1; shift
mount --bind "$kept" "$kept"
mount -o remount,bind,ro /
for place in /sys /proc/sys; do mount --bind -o ro "$place" "$place" && mount -o remount,bind,ro "$place"; done
exec "$@"
"""
"""ProtectSystem=strict with one folder that can be written, ProtectKernelTunables=; needs root."""


def read_only_words(kept: Path) -> list[str]:
    """What a command is started by to see a file system that it cannot write, but for this folder."""
    return ["unshare", "--mount", "--propagation", "private", "sh", "-c", READ_ONLY, "sh", str(kept)]


def impossible(words: list[str]) -> str:
    """Why nothing can be started by these words here; "" when it can."""
    done = subprocess.run([*words, "/bin/true"], capture_output=True, timeout=20, check=False)
    said = done.stderr.decode().strip().splitlines() or [f"exit code {done.returncode}"]
    return said[-1] if done.returncode else ""


HIDDEN = """
for node in /dev/nvidia*; do if [ -c "$node" ]; then mount --bind /dev/null "$node" || exit 1; fi; done
exec "$@"
"""
SHOWN = 'for node in /dev/nvidia*; do if [ -c "$node" ]; then umount "$node"; fi; done'


def hidden_words() -> list[str]:
    """What a command is started by to find no GPU, until `show`; skips where that cannot be."""
    words = ["unshare", "--mount", "--propagation", "private", "sh", "-c", HIDDEN, "sh"]
    if wrong := impossible(words):
        import pytest

        pytest.skip(f"no mount name spaces here: {wrong}")
    return words


def show(pid: int) -> None:
    """Give a process its GPU back."""
    subprocess.run(["nsenter", "-t", str(pid), "-m", "sh", "-c", SHOWN], check=True, timeout=20)


if __name__ == "__main__":
    try:
        for name in sys.argv[1].split(","):
            STEPS[name]()
    except OSError as error:
        sys.exit(str(error))
    os.execv(sys.argv[2], sys.argv[2:])
