"""What a piece of work took in energy, where the machine tells: RAPL for CPUs, NVML for NVIDIA cards.

Both count whole packages and cards, other processes included; nothing is estimated.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

POWERCAP = Path("/sys/class/powercap")
NVML = "libnvidia-ml.so.1"


@dataclass(frozen=True, slots=True)
class Counter:
    """One counter of joules that only rises, until it wraps."""

    name: str
    read: Callable[[], float]  # joules
    wraps_at: float | None = None  # joules


@dataclass(slots=True)
class Meter:
    """The counters of a machine; `start`, work, `joules`."""

    counters: list[Counter]
    why_not: str | None = None  # why there are none
    _began: tuple[float, ...] = ()

    @classmethod
    def of_machine(cls, powercap: Path = POWERCAP, nvml: str = NVML) -> Meter:
        """Every counter that can be read here."""
        cpu, why_cpu = _rapl(powercap)
        cards, why_cards = _nvml(nvml)
        return cls([*cpu, *cards], None if cpu or cards else f"not readable: {why_cpu}; {why_cards}")

    @property
    def source(self) -> str | None:
        """What is counted; None when nothing is."""
        return ", ".join(counter.name for counter in self.counters) or None

    def start(self) -> None:
        """Begins to count."""
        self._began = tuple(counter.read() for counter in self.counters)

    def joules(self) -> float | None:
        """Since `start`; None where nothing can be read."""
        if not self.counters or not self._began:
            return None
        total = 0.0
        for counter, before in zip(self.counters, self._began, strict=True):
            used = counter.read() - before
            total += used if used >= 0 or counter.wraps_at is None else used + counter.wraps_at
        return total


def _rapl(powercap: Path) -> tuple[list[Counter], str]:
    """A counter a CPU package; its parts (cores, memory) are among it already."""
    zones = sorted(path for path in powercap.glob("intel-rapl:*") if path.name.count(":") == 1)
    if not zones:
        return [], "the system shows no RAPL counters"
    counters: list[Counter] = []
    for zone in zones:
        try:
            name = (zone / "name").read_text(encoding="ascii").strip()
            wraps_at = int((zone / "max_energy_range_uj").read_text(encoding="ascii")) / 1e6
            counter = Counter(f"RAPL {name}", _microjoules(zone / "energy_uj"), wraps_at)
            counter.read()
        except (OSError, ValueError) as error:
            return [], f"RAPL counters are there, {getattr(error, 'strerror', None) or error}"
        counters.append(counter)
    return counters, ""


def _microjoules(file: Path) -> Callable[[], float]:
    return lambda: int(file.read_text(encoding="ascii")) / 1e6


def _nvml(library: str) -> tuple[list[Counter], str]:
    """A counter a card (Volta and later)."""
    try:
        nvml: Any = ctypes.CDLL(library)
    except OSError:
        return [], "there is no NVIDIA driver"
    count = ctypes.c_uint()
    if nvml.nvmlInit_v2() or nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)):
        return [], "the NVIDIA driver does not answer"
    counters: list[Counter] = []
    for index in range(count.value):
        handle, value = ctypes.c_void_p(), ctypes.c_ulonglong()
        if nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle)):
            continue
        if nvml.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(value)):
            continue
        counters.append(Counter(f"NVML card {index}", _millijoules(nvml, handle)))
    return counters, "" if counters else "no NVIDIA card tells its energy"


def _millijoules(nvml: Any, handle: ctypes.c_void_p) -> Callable[[], float]:
    def read() -> float:
        value = ctypes.c_ulonglong()
        nvml.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(value))
        return value.value / 1e3

    return read
