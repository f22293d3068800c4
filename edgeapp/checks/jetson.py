"""A Jetson: module, JetPack, power mode, clocks, heat; from files that everybody may read.

Where they lie: jetson_stats (jtop/core/gpu.py, power.py), NVIDIA's Jetson Linux Developer Guide.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from edgeapp.checks import NOTE, OK, SKIPPED, WARNING, Check, Machine

JETPACKS = {32: "4", 35: "5", 36: "6", 38: "7", 39: "7"}
"""Major version of Jetson Linux -> that of JetPack."""


def jetson(machine: Machine) -> Iterator[Check]:
    """The line "Jetson", and on one the lines of its power, clocks and heat."""
    if not machine.jetson:
        yield Check("Jetson", SKIPPED, "this is none")
        return
    model = machine.text("/proc/device-tree/model") or "a Jetson"
    major, version = machine.l4t
    pack = JETPACKS.get(major)
    found = f"{model}, Jetson Linux {version}" if version else model
    yield Check("Jetson", OK, f"{found} (JetPack {pack})" if pack else found)
    yield power_mode(machine)
    yield gpu_clock(machine)
    yield heat(machine)
    yield over_current(machine)


def power_mode(machine: Machine) -> Check:
    """What nvpmodel says, "NV Power Mode: 15W"; modes without a limit are called MAXN or MAXN_SUPER."""
    said = re.search(r"NV Power Mode:\s*(\S+)", machine.output("nvpmodel", "-q"))
    if said is None:
        return Check("power mode", SKIPPED, "nvpmodel does not tell")
    if said[1].startswith("MAXN"):
        return Check("power mode", OK, said[1])
    modes = re.findall(r"POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)", machine.text("/etc/nvpmodel.conf"))
    fastest = next((number for number, name in reversed(modes) if name.startswith("MAXN")), None)
    fix = (
        f"sudo nvpmodel -m {fastest}, if cooling and power supply allow it" if fastest else "sudo nvpmodel -q --verbose"
    )
    return Check("power mode", NOTE, said[1], "", "this mode limits the clocks", fix)


def gpu_clock(machine: Machine) -> Check:
    """The GPU's clock and its range, MHz; Orin has 17000000.gpu, Thor gpu-gpc-0."""
    for folder in machine.glob("/sys/class/devfreq/*gpu*"):
        now, low, high = (_number(folder / f"{key}_freq") for key in ("cur", "min", "max"))
        if now is None or low is None or high is None:
            continue
        found = f"{now / 1e6:.0f} MHz, {low / 1e6:.0f} to {high / 1e6:.0f} allowed"
        if low < high:
            return Check("GPU clock", NOTE, found, "", "it follows the load, so single inferences vary in time",
                         "sudo jetson_clocks holds it at the highest of the power mode")  # fmt: skip
        return Check("GPU clock", OK, found)
    return Check("GPU clock", SKIPPED, "the kernel does not tell")


def heat(machine: Machine) -> Check:
    """The hottest zone, and whether one is past the point from which the kernel slows the clocks."""
    zones: list[tuple[float, str]] = []
    slowed: list[str] = []
    for folder in machine.glob("/sys/class/thermal/thermal_zone*"):
        value, name = _number(folder / "temp"), _word(folder / "type")
        if value is None or not name:  # zones of parts that are switched off cannot be read
            continue
        zones.append((value / 1000, name))
        passive = [
            _number(kind.with_name(kind.name.replace("_type", "_temp")))
            for kind in folder.glob("trip_point_*_type")
            if _word(kind) == "passive"
        ]
        points = [point for point in passive if point]
        if points and value >= min(points):
            slowed.append(f"{name} at {value / 1000:.0f} °C of {min(points) / 1000:.0f} °C")
    if not zones:
        return Check("temperature", SKIPPED, "the kernel does not tell")
    hottest = max(zones)
    found = f"{hottest[0]:.0f} °C ({hottest[1]})"
    if slowed:
        return Check("temperature", WARNING, found, "below the first throttling point",
                     f"the clocks are lowered: {', '.join(slowed)}",
                     "clean or add a fan, or choose a lower power mode")  # fmt: skip
    return Check("temperature", OK, found)


def over_current(machine: Machine) -> Check:
    """How often the power supply was overloaded since the boot; the clocks drop each time."""
    counters = [_number(path) for path in machine.glob("/sys/class/hwmon/hwmon*/oc*_event_cnt")]
    events = [count for count in counters if count is not None]
    if not events:
        return Check("over-current", SKIPPED, "the kernel does not tell")
    if sum(events):
        return Check("over-current", WARNING, f"{sum(events):.0f} times since the boot", "never",
                     "the clocks dropped each time", "use a stronger power supply, or a lower power mode")  # fmt: skip
    return Check("over-current", OK, "never since the boot")


def _word(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace").strip()
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    try:
        return int(_word(path))
    except ValueError:
        return None
