"""NVML by ctypes: free memory, heat, throttling and persistence mode of a GPU.

Names and numbers: NVIDIA's nvml.h, API version 2. It comes with the driver of servers and desktops; on Jetsons it is
missing or answers little.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

LIBRARY = "libnvidia-ml.so.1"
POWER_CAP = "at its power limit"

SLOWDOWNS = {
    0x04: POWER_CAP,
    0x08: "hardware slowdown",
    0x20: "too hot, slowed by the driver",
    0x40: "too hot, slowed by the hardware",
    0x80: "slowed by the power supply's brake",
}
"""nvmlClocksEventReason*; the rest (idle, clocks set by hand, sync boost) is no fault."""


@dataclass(frozen=True)
class State:
    """What NVML tells of a GPU; None is what it does not tell.

    Attributes:
        free_bytes: memory that nobody holds.
        temperature_c: of the chip, degrees Celsius.
        clock_mhz: of the multiprocessors, now.
        persistence: whether the driver stays loaded while nobody uses the GPU.
        slowed_by: why its clocks are lower than they could be.
    """

    free_bytes: int | None = None
    temperature_c: int | None = None
    clock_mhz: int | None = None
    persistence: bool | None = None
    slowed_by: tuple[str, ...] = ()


class Nvml:
    """The management library, started; it ends with the process."""

    def __init__(self, library: Any) -> None:
        self._library = library

    @classmethod
    def open(cls) -> Nvml | None:
        """None where there is no such library or it does not start."""
        try:
            library = ctypes.CDLL(LIBRARY)
            return cls(library) if library.nvmlInit_v2() == 0 else None
        except (OSError, AttributeError):
            return None

    def state(self, bus_id: str) -> State:
        """That of the GPU with this PCI address, "00000000:01:00.0"; CUDA and NVML number GPUs differently."""
        device = self._device(bus_id)
        if device is None:
            return State()
        memory = (ctypes.c_ulonglong * 3)()  # nvmlMemory_t: total, free, used
        known = self._ask("nvmlDeviceGetMemoryInfo", device, memory=memory)
        temperature = self._number("nvmlDeviceGetTemperature", device, 0)  # NVML_TEMPERATURE_GPU
        clock = self._number("nvmlDeviceGetClockInfo", device, 1)  # NVML_CLOCK_SM
        persistence = self._number("nvmlDeviceGetPersistenceMode", device)
        reasons = (ctypes.c_ulonglong * 1)()
        self._ask("nvmlDeviceGetCurrentClocksThrottleReasons", device, memory=reasons)
        return State(
            int(memory[1]) if known else None,
            temperature,
            clock,
            None if persistence is None else persistence == 1,
            tuple(word for bit, word in SLOWDOWNS.items() if reasons[0] & bit),
        )

    def joules(self, bus_id: str) -> float | None:
        """The energy that the GPU took since the driver was loaded; None where it is not counted (before Volta)."""
        millijoules = ctypes.c_ulonglong()
        device = self._device(bus_id)
        if device is None or not self._ask("nvmlDeviceGetTotalEnergyConsumption", device, memory=millijoules):
            return None
        return millijoules.value / 1e3

    def _device(self, bus_id: str) -> ctypes.c_void_p | None:
        device = ctypes.c_void_p()
        try:
            code = self._library.nvmlDeviceGetHandleByPciBusId_v2(bus_id.encode(), ctypes.byref(device))
        except AttributeError:
            return None
        return device if code == 0 else None

    def _ask(self, function: str, device: ctypes.c_void_p, *arguments: int, memory: Any) -> bool:
        """Whether the function exists and filled `memory`; NVML answers 3 for what a GPU does not support."""
        try:
            return int(getattr(self._library, function)(device, *arguments, ctypes.byref(memory))) == 0
        except AttributeError:
            return False

    def _number(self, function: str, device: ctypes.c_void_p, *arguments: int) -> int | None:
        value = ctypes.c_uint()
        return value.value if self._ask(function, device, *arguments, memory=value) else None
