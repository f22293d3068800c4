"""A machine of its own for tests of the service: a real systemd as process 1 of namespaces, thrown away afterwards.

It sees the files of this machine through an overlay, so what a test writes lands in memory; processes, mounts, network,
host name and control groups are its own. Of the control groups it gets one new, empty group and sees no other: without
that, its systemd would rearrange those of the machine around it. It starts nothing but a journal.

    with Machine() as machine:
        machine.write("/etc/systemd/system/x.service", "...")
        machine.run("systemctl", "start", "x.service", check=True)
        assert "hello" in machine.journal("x.service")

Needs root, and skips where namespaces, overlays or control groups of version 2 are not to be had. There is no memory
controller in it on a machine with control groups of version 1, so MemoryMax= has no effect there.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

SYSTEMD = Path("/lib/systemd/systemd")
BOOT_S, GONE_S = 120.0, 60.0
PR_SET_PDEATHSIG = 1

# Those of the units of systemd that a service depends on, and the journal.
UNITS = """\
    basic.target exit.target final.target local-fs.target local-fs-pre.target multi-user.target network.target
    network-online.target paths.target shutdown.target slices.target sockets.target swap.target sysinit.target
    timers.target umount.target systemd-journald.service systemd-journald.socket systemd-journald-dev-log.socket"""

OWN = [f"/etc/{name}" for name in ("passwd", "group", "shadow", "gshadow", "subuid", "subgid")]
"""Copied when the machine starts: somebody may get an account on the machine around in the meantime."""

BOOT = r"""
mount --make-rprivate /
mount -t tmpfs -o mode=755 machine "$BASE"
cd "$BASE"
mkdir upper work root
mount -t overlay -o "lowerdir=/,upperdir=$BASE/upper,workdir=$BASE/work" overlay root
cd root

# The services of the machine around are not started here, and what is hidden is not seen.
rm -rf etc/systemd/system
for path in $HIDDEN; do rm -rf ".$path"; done
for path in $OWN; do [ ! -e ".$path" ] || { cp -p ".$path" ".$path.own"; mv ".$path.own" ".$path"; }; done
mkdir -p etc/systemd/system .machine/upper .machine/units .machine/none
for unit in $UNITS; do cp -L "lib/systemd/system/$unit" .machine/units; done
sed -i '/^Requires=\|^Wants=/d; /^After=/s/=.*/=systemd-journald.service/' .machine/units/sysinit.target
echo 'Wants=systemd-journald.service' >>.machine/units/sysinit.target
mount --bind "$BASE/upper" .machine/upper

for folder in run tmp var/tmp var/log var/lib/systemd; do mount -t tmpfs -o mode=755 tmpfs "$folder"; done
chmod 1777 tmp var/tmp
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup

mount -t tmpfs -o mode=755 tmpfs dev
mkdir dev/pts dev/shm
for node in null zero full random urandom tty; do touch "dev/$node"; mount --bind "/dev/$node" "dev/$node"; done
mount -t devpts -o newinstance,ptmxmode=666,mode=620 devpts dev/pts
mount -t tmpfs -o mode=1777 tmpfs dev/shm
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
for n in 0:stdin 1:stdout 2:stderr; do ln -s "/proc/self/fd/${n%:*}" "dev/${n#*:}"; done
: >dev/console

set -- $BINDS
while [ $# -gt 1 ]; do
  mkdir -p "$(dirname ".$2")"
  if [ -d "$1" ]; then mkdir -p ".$2"; else touch ".$2"; fi
  mount --bind "$1" ".$2"
  shift 2
done

hostname machine
pivot_root . .
umount -l .
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin container=other \
  SYSTEMD_UNIT_PATH=/etc/systemd/system:/run/systemd/system:/.machine/units \
  SYSTEMD_GENERATOR_PATH=/.machine/none SYSTEMD_LOG_TARGET=journal \
  /lib/systemd/systemd --system --unit=multi-user.target
"""


def _own_death_signal() -> None:
    """Killed tests leave no machine behind."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def cgroup2() -> Path | None:
    """Where control groups of version 2 are mounted, None if nowhere."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        if rest.split()[0] == "cgroup2":
            return Path(fields.split()[4])
    return None


def _remove_group(group: Path) -> bool:
    """Remove a control group and those in it; whether nobody is in them any more."""
    with contextlib.suppress(OSError):
        for path, _, _ in os.walk(group, topdown=False):
            os.rmdir(path)
    return not group.exists()


class Machine:
    """A booted systemd; a context manager.

    Args:
        binds: files and folders of the machine around, and where they are seen inside, changeable from both.
        hidden: files and folders of the machine around that are not there inside.

    Attributes:
        pid: of process 1, as the machine around numbers it.
        environment: of the commands that run inside.
    """

    def __init__(self, binds: Mapping[str | Path, str] | None = None, hidden: Sequence[str] = ()) -> None:
        self._binds = dict(binds or {})
        self._hidden = hidden
        self._group: Path | None = None
        self._base = Path()
        self._process: subprocess.Popen[bytes] | None = None
        self.pid = 0
        self.environment = {
            "PATH": "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LC_ALL": "C.UTF-8"
        }  # fmt: skip

    def __enter__(self) -> Machine:
        if os.geteuid() != 0:
            pytest.skip("needs root, to make namespaces")
        groups = cgroup2()
        tools = [tool for tool in ("unshare", "nsenter", "systemctl", "journalctl") if not shutil.which(tool)]
        if not SYSTEMD.is_file() or tools or groups is None:
            self._skip(f"no systemd here ({', '.join(tools) or 'no control groups of version 2'})")
        assert groups is not None
        self._base = Path(tempfile.mkdtemp(prefix="edgeapp-machine-"))
        try:
            for left in groups.glob("edgeapp-machine-*"):  # by tests that were killed
                if not Path("/proc", left.name.split("-")[2]).exists():
                    _remove_group(left)
            self._group = groups / f"edgeapp-machine-{os.getpid()}-{self._base.name[-8:]}"
            try:
                self._group.mkdir()
            except OSError as error:
                self._group = None
                self._skip(f"no control group of its own: {error}")
            self._boot()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._end()

    def _skip(self, why: str) -> None:
        """Skip, unless it is known that the machine must work here."""
        if os.environ.get("EDGEAPP_REQUIRE_SYSTEMD") == "1":
            pytest.fail(why)
        pytest.skip(why)

    def _boot(self) -> None:
        assert self._group is not None
        console = self._base.with_suffix(".console")
        binds = " ".join(f"{outside} {inside}" for outside, inside in self._binds.items())
        env = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "BASE": str(self._base), "UNITS": UNITS,
            "BINDS": binds, "HIDDEN": " ".join(self._hidden), "OWN": " ".join(OWN), "GROUP": str(self._group),
        }  # fmt: skip
        namespaces = "--mount --pid --fork --cgroup --uts --ipc --net --kill-child=KILL --propagation private"
        with console.open("wb") as out:
            self._process = subprocess.Popen(
                ["/bin/sh", "-ec", f'echo $$ >"$GROUP/cgroup.procs"; exec unshare {namespaces} /bin/sh -ec "$0"', BOOT],
                env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out, preexec_fn=_own_death_signal,
            )  # fmt: skip
        until = time.monotonic() + BOOT_S
        words = ""
        try:
            while time.monotonic() < until and self._process.poll() is None:
                self.pid = self.pid or self._first_process()
                if self.pid and self.run("systemctl", "is-system-running").stdout in ("running\n", "degraded\n"):
                    return
                time.sleep(0.02)
            words = console.read_text(errors="replace")
        finally:
            console.unlink()
        if self._process.poll() is not None:
            self._skip(f"namespaces are not allowed here: {words.strip()}")
        raise TimeoutError(f"systemd did not start: {words}")

    def _first_process(self) -> int:
        """Process 1 of the machine, as this one numbers it; 0 while it is not there, or not yet systemd."""
        assert self._process is not None
        number = self._process.pid
        with contextlib.suppress(OSError):
            for child in Path(f"/proc/{number}/task/{number}/children").read_text().split():
                if os.readlink(f"/proc/{child}/exe").endswith("/systemd"):
                    return int(child)
        return 0

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()  # and by --kill-child process 1, and by that everything inside
            self._process.wait()
        if self._group is not None:
            until = time.monotonic() + GONE_S
            while not _remove_group(self._group):
                assert time.monotonic() < until, f"processes are left in {self._group}"
                time.sleep(0.02)
        if self._base.is_dir():
            self._base.rmdir()  # it was mounted over inside only

    # ---- what a test does with it

    def command(self, *words: str | Path) -> list[str]:
        """The words that run a command inside, as root."""
        return [
            "nsenter", f"--target={self.pid}", "--mount", "--pid", "--cgroup", "--uts", "--ipc", "--net", "--root",
            "--wd", *map(str, words),
        ]  # fmt: skip

    def run(
        self, *words: str | Path, check: bool = False, timeout: float = 120, env: Mapping[str, str] | None = None,
        input: str = "",
    ) -> subprocess.CompletedProcess[str]:  # fmt: skip
        """Run a command inside to its end, as root, with an environment of its own."""
        done = subprocess.run(
            self.command(*words), env={**self.environment, **(env or {})}, capture_output=True, text=True,
            check=False, timeout=timeout, input=input,
        )  # fmt: skip
        if check and done.returncode:
            raise AssertionError(f"{words} ended with {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def start(self, *words: str | Path, **options: Any) -> subprocess.Popen[bytes]:
        """Start a command inside and leave it running."""
        return subprocess.Popen(self.command(*words), **options)

    def path(self, inside: str) -> Path:
        """The path by which this process reaches a file inside; links that begin with / lead astray."""
        return Path(f"/proc/{self.pid}/root") / inside.lstrip("/")

    def write(self, inside: str, text: str, mode: int = 0o644) -> None:
        """Make a file inside, and the folders above it."""
        path = self.path(inside)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)

    def journal(self, unit: str) -> str:
        """All that a unit has logged, and systemd about it, a line for each message."""
        self.run("journalctl", "--sync")
        return self.run("journalctl", "--quiet", "--no-pager", "-o", "cat", "-u", unit).stdout

    def entries(self, unit: str) -> list[dict[str, Any]]:
        """The same with all fields."""
        self.run("journalctl", "--sync")
        text = self.run("journalctl", "--quiet", "--no-pager", "-o", "json", "-u", unit).stdout
        return [json.loads(line) for line in text.splitlines()]

    def show(self, unit: str, *names: str) -> dict[str, str]:
        """Properties of a unit."""
        text = self.run("systemctl", "show", unit, f"--property={','.join(names)}", check=True).stdout
        return dict(line.split("=", 1) for line in text.splitlines())

    def wait(self, unit: str, timeout: float = 120, **wanted: str) -> dict[str, str]:
        """Wait until properties of a unit have the wanted values, of which any of several is named by a|b."""
        until = time.monotonic() + timeout
        while True:
            found = self.show(unit, *wanted)
            if all(found[name] in value.split("|") for name, value in wanted.items()):
                return found
            assert time.monotonic() < until, f"{unit}: {found}, wanted {wanted}\n{self.journal(unit)}"
            time.sleep(0.05)

    def changes(self, *, without: Sequence[str] = ()) -> dict[str, tuple[Any, ...]]:
        """How the files inside differ from those around: path -> kind, mode, owner, and content; removed ones too.

        What is in memory only (/run, /tmp, /var/tmp, /var/log, /var/lib/systemd) and in `binds` does not count, nor
        does `without`.
        """
        upper, found = self.path("/.machine/upper"), {}
        for path in sorted(upper.rglob("*")):
            inside = "/" + str(path.relative_to(upper))
            if inside.startswith("/.machine") or inside in without:
                continue
            facts = _facts(path)
            below = _facts(Path(inside)) if os.path.lexists(inside) else None
            if facts != below or inside in OWN:
                found[inside] = facts
        return found


def _facts(path: Path) -> tuple[Any, ...]:
    """What must be the same for a file to be the same; the time of its last change is not part of it."""
    status = path.lstat()
    kind = stat.S_IFMT(status.st_mode)
    content = ""
    if kind == stat.S_IFLNK:
        content = os.readlink(path)
    elif kind == stat.S_IFREG:
        content = hashlib.sha256(path.read_bytes()).hexdigest()
    elif kind == stat.S_IFCHR:
        content = str(status.st_rdev)  # 0: the overlay's word for removed
    return (status.st_mode, status.st_uid, status.st_gid, content)
