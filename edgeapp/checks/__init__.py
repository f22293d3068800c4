"""What `doctor` looks at: each check is a function that reads a little of the machine and gives a Check."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edgeapp import errors
from edgeapp.gpu.machine import is_jetson

OK, NOTE, WARNING, FAILURE, SKIPPED = "ok", "note", "warning", "failure", "skipped"

MOST_BYTES = 1 << 16
"""No file of /proc, /sys or /etc that is read here comes near this."""

PROGRAM_LIMIT_S = 5.0

Say = Callable[[str], None]
"""Takes the name of the step that begins, so that a crash can be told by it."""


@dataclass(frozen=True)
class Check:
    """One line of `doctor`.

    Attributes:
        name: what was looked at; stable, programs may rely on it.
        state: ok, note (worth knowing), warning (works, not as it should), failure (does not work) or skipped.
        found: what is there, with values.
        wanted: what should be there, "" where nothing in particular is.
        why: the consequence or the cause of a note, a warning or a failure.
        fix: what to do, a command where there is one.
        exit_code: of a failure, as in `errors`; None otherwise.
    """

    name: str
    state: str
    found: str
    wanted: str = ""
    why: str = ""
    fix: str = ""
    exit_code: int | None = None


def failed(name: str, error: errors.EdgeappError, *, found: str = "", wanted: str = "") -> Check:
    """The failure that an error stands for."""
    return Check(name, FAILURE, found or error.what, wanted, error.why, error.fix, error.exit_code)


@dataclass(frozen=True)
class Machine:
    """Where to look: this machine, or a tree of files that stands for another one.

    Attributes:
        root: the folder that holds proc, sys, dev and etc.
        environ: environment variables.
    """

    root: Path = Path("/")
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)

    def path(self, name: str) -> Path:
        """Where the absolute path `name` lies."""
        return self.root / name.lstrip("/")

    def text(self, name: str) -> str:
        """What a small file holds, without blanks and zero bytes at its ends; "" where it cannot be read."""
        try:
            with self.path(name).open("rb") as file:
                return file.read(MOST_BYTES).decode("utf-8", "replace").strip(" \t\n\0")
        except OSError:
            return ""

    def glob(self, pattern: str) -> list[Path]:
        """Paths that match the absolute `pattern`, sorted; those that cannot be read are left out."""
        return sorted(self.root.glob(pattern.lstrip("/")))

    def output(self, program: str, *arguments: str) -> str:
        """What a program of the system prints; "" where it is missing, fails or takes longer than 5 s."""
        for folder in ("/usr/sbin", "/usr/bin", "/sbin", "/bin"):
            file = self.path(f"{folder}/{program}")
            if not os.access(file, os.X_OK):
                continue
            try:
                done = subprocess.run(
                    [str(file), *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
                    timeout=PROGRAM_LIMIT_S, check=False, env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"},
                )  # fmt: skip
            except (OSError, subprocess.TimeoutExpired):
                return ""
            return done.stdout.strip() if done.returncode == 0 else ""
        return ""

    @property
    def jetson(self) -> bool:
        """Whether this is a Jetson."""
        return is_jetson(self.root)

    @property
    def l4t(self) -> tuple[int, str]:
        """(major, "36.4.3") of Jetson Linux; (0, "") elsewhere."""
        match = re.search(r"# R(\d+) \(release\), REVISION: ([\d.]+)", self.text("/etc/nv_tegra_release"))
        return (int(match[1]), f"{match[1]}.{match[2]}") if match else (0, "")

    @property
    def container(self) -> str:
        """docker, podman, kubernetes, lxc ... around this process; "" for none."""
        groups = self.text("/proc/self/cgroup") + self.text("/proc/1/cgroup")
        if "KUBERNETES_SERVICE_HOST" in self.environ or "kubepods" in groups:
            return "kubernetes"
        if self.path("/run/.containerenv").exists() or "libpod" in groups:
            return "podman"
        if self.path("/.dockerenv").exists() or "/docker" in groups:
            return "docker"
        if "/lxc" in groups or self.environ.get("container") == "lxc":
            return "lxc"
        return self.text("/run/systemd/container") or self.environ.get("container", "")


def size(count: float) -> str:
    """Bytes for people: 512 MiB, 1.5 GiB."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
