"""The unit file and where everything of an installed service lies."""

from __future__ import annotations

import grp
import ipaddress
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from edgeapp import paths
from edgeapp.errors import UsageError

NAME = "edgeapp.service"
USER = "edgeapp"
COMMENT = "edgeapp service"
"""Marks the user that was made for the service; another one of that name is never removed."""

HOME = Path("/opt/edgeapp")
"""Root's alone: the versions of the program, and what they unpack (the launcher looks for /opt/edgeapp/cache)."""
CACHE = HOME / "cache"
MODELS = HOME / "models"
DEFAULT_MODEL = "model"
PROGRAM = HOME / "current" / "edgeapp"
COMMAND = Path("/usr/local/bin/edgeapp")
UNIT = Path("/etc/systemd/system") / NAME
ENABLED = UNIT.parent / "multi-user.target.wants" / NAME
DROP_INS = UNIT.with_name(f"{NAME}.d")
CONFIG_FOLDER = Path("/etc/edgeapp")
CONFIG = CONFIG_FOLDER / "config.toml"
KEYS = CONFIG_FOLDER / "keys.d"
STATE = Path("/var/lib/edgeapp")
OWN_CACHE = Path("/var/cache/edgeapp")
MODPROBE = Path("/usr/bin/nvidia-modprobe")

PROFILES = ("x86", "jetson")
GROUPS = ("video", "render")
"""Own the device nodes of the GPU on a Jetson; a group that does not exist would keep the service from starting."""


@dataclass(frozen=True)
class Unit:
    """What makes one unit file differ from another.

    Attributes:
        profile: x86 or jetson.
        http: HOST:PORT on this machine, "" without a listener.
        groups: those of GROUPS that exist.
        modprobe: nvidia-modprobe is there.
    """

    profile: str
    http: str = ""
    groups: tuple[str, ...] = ()
    modprobe: bool = False

    def text(self) -> str:
        """The unit file."""
        facts = {
            self.profile: True,
            "loopback" if self.http else "silent": True,
            "groups": bool(self.groups),
            "modprobe": self.modprobe and self.profile == "x86",
        }
        text = "\n".join(_chosen(paths.resource("service/edgeapp.service").read_text("utf-8"), facts)) + "\n"
        http = f" --http {self.http}" if self.http else ""
        return _filled(text, PROGRAM=str(PROGRAM), HTTP=http, GROUPS=" ".join(self.groups))


def _chosen(text: str, facts: dict[str, bool]) -> Iterator[str]:
    """The lines without a condition, and those whose condition holds; a condition is a word like `x86: `."""
    for line in text.splitlines():
        word = re.match(r"([a-z0-9]+): (.*)", line)
        if word is None:
            yield line
        elif facts.get(word[1], False):
            yield word[2]


def _filled(text: str, **values: str) -> str:
    return re.sub(r"@([A-Z]+)@", lambda found: values[found[1]], text)


def config(engine: Path) -> str:
    """The configuration file to begin with."""
    return _filled(paths.resource("service/config.toml").read_text("utf-8"), ENGINE=str(engine))


def here(profile: str, http: str) -> Unit:
    """The unit for this machine."""
    return Unit(profile, http, tuple(existing(GROUPS)), MODPROBE.exists())


def existing(groups: tuple[str, ...]) -> Iterator[str]:
    for group in groups:
        with suppress(KeyError):
            yield grp.getgrnam(group).gr_name


def loopback(text: str) -> str:
    """A parser for HOST:PORT, HOST being an address of this machine alone."""
    host, _, port = text.rpartition(":")
    address = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not re.fullmatch(r"[0-9]{1,5}", port) or not 0 < int(port) < 1 << 16:
        raise UsageError(f"--http {paths.printable(text)}: HOST:PORT is wanted", "", "--http 127.0.0.1:9095")
    try:
        local = address == "localhost" or ipaddress.ip_address(address).is_loopback
    except ValueError:
        local = False
    if not local:
        raise UsageError(
            f"--http {paths.printable(text)} is no address of this machine alone",
            "the service answers whoever asks, without a password",
            "--http 127.0.0.1:9095, and what asks for passwords (nginx, caddy) in front of it",
        )
    return text
