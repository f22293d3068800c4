"""The service as `edgeapp service install` makes it, in a machine of its own (tests/systemd.py)."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from serving import WAIT_S
from systemd import Machine

UNIT = "edgeapp.service"
CURRENT = "/opt/edgeapp/current"
MODEL = "/opt/edgeapp/models/model/current"
SPOOL = "/var/lib/edgeapp"
CONFIG = "/etc/edgeapp/config.toml"

OURS = ["/opt/edgeapp", "/etc/edgeapp", SPOOL, "/var/cache/edgeapp", "/usr/local/bin/edgeapp"]
"""What it installs: not seen in the machine, should it be there around it."""


def drop_in(machine: Machine, text: str) -> None:
    """Settings in place of those of the unit file, in its section [Service] unless another is named."""
    machine.write("/etc/systemd/system/edgeapp.service.d/x.conf", f"[Service]\n{text}\n")
    machine.run("systemctl", "daemon-reload", check=True)


def put(machine: Machine, source: str | Path, name: str) -> None:
    """Give the service a file of the machine, whole from the beginning."""
    script = f'cp "$0" {SPOOL}/in/.coming && mv {SPOOL}/in/.coming "{SPOOL}/in/$1"'
    machine.run("sh", "-c", script, source, name, check=True)


def served(machine: Machine, name: str) -> dict[str, Any]:
    """Give the service a picture; its result."""
    put(machine, "/src/demo/bench-1.jpg", name)
    end = time.monotonic() + WAIT_S
    while not machine.path(f"{SPOOL}/done/{name}").exists():
        assert time.monotonic() < end, machine.journal(UNIT)
        time.sleep(0.05)
    (result,) = [line for line in results(machine) if line["name"] == name]
    return result


def results(machine: Machine) -> list[dict[str, Any]]:
    """All lines that it wrote."""
    text = machine.run("sh", "-c", f"cat {SPOOL}/results/*.jsonl").stdout
    return [json.loads(line) for line in text.splitlines()]
