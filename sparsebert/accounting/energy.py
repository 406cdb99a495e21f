"""Energy counters of the machine: RAPL for CPUs and their memory, NVML for NVIDIA's GPUs.

Only counters are read: where there are none, energy is not available, and no estimate takes their place.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from sparsebert_kernels.errors import one_line

# Linux lists the RAPL domains of Intel's and AMD's CPUs here: intel-rapl:0 is a package, intel-rapl:0:1 a
# part of it.
POWERCAP = Path("/sys/class/powercap")
# Domains that add up: "core" and "uncore" lie in a package, "psys" holds all packages.
_PACKAGE, _MEMORY = "package", "dram"


class EnergyCounters(Protocol):
    """Counters of a device that have been running since they were opened.

    Attributes:
        device: "cpu" or "gpu".
        interval: Longest time in seconds between two reads; infinite if counters need no reads between.
    """

    device: str
    interval: float

    def read(self) -> Mapping[str, float]:
        """Return the joules of each domain since the counters were opened.

        Raises:
            NotMeasuredError: A counter can no longer be read.
        """


class NotMeasuredError(Exception):
    """Energy is not available; the message says why."""


class Rapl:
    """RAPL counters of the CPU packages, and of their memory where it has a counter.

    They count what all programs on the machine use. A counter starts again at 0 after
    ``max_energy_range_uj``, which takes minutes under load: it must be read more often.

    Args:
        folder: Folder of the domains.

    Raises:
        NotMeasuredError: There are none, or they cannot be read.
    """

    device = "cpu"
    interval = 10.0

    def __init__(self, folder: Path = POWERCAP) -> None:
        self._files: dict[str, Path] = {}
        for domain in sorted(folder.glob("intel-rapl:*")):
            name = _text(domain / "name")
            package = _text(folder / domain.name.rpartition(":")[0] / "name")
            if name.startswith(_PACKAGE):
                self._files[name] = domain
            elif name == _MEMORY:
                self._files[f"{_MEMORY} of {package}"] = domain
        if not self._files:
            raise NotMeasuredError(
                f"no RAPL counters in {folder} (virtual machines and containers often hide them)"
            )
        self._ranges = {
            name: _microjoules(domain / "max_energy_range_uj") for name, domain in self._files.items()
        }
        self._last = self._counts()
        self._joules = dict.fromkeys(self._files, 0.0)

    def read(self) -> Mapping[str, float]:
        """Return the joules of each domain since the start. Raises NotMeasuredError as the constructor."""
        counts = self._counts()
        for name, count in counts.items():
            spent = count - self._last[name]
            if spent < 0:
                spent += self._ranges[name] + 1
            self._joules[name] += spent / 1e6
        self._last = counts
        return dict(self._joules)

    def _counts(self) -> dict[str, int]:
        return {name: _microjoules(domain / "energy_uj") for name, domain in self._files.items()}


class Nvml:
    """Energy of the GPUs that CUDA sees in this process, by NVIDIA's management library.

    GPUs count millijoules since Volta. The power of older ones is read every second and integrated.

    Args:
        uuids: CUDA's identifiers of the GPUs.
        library: The module ``pynvml``.

    Raises:
        NotMeasuredError: The library or a GPU reports neither energy nor power.
    """

    device = "gpu"

    def __init__(self, uuids: Sequence[str], library: Any) -> None:
        self._nvml = library
        try:
            library.nvmlInit()
            self._handles = [library.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}") for uuid in uuids]
            self._counts = self._has_counters()
            self._last, self._read_at = self._values(), time.monotonic()
        except library.NVMLError as error:
            raise NotMeasuredError(f"NVML reports no energy of this GPU: {one_line(error)}") from None
        self.interval = float("inf") if self._counts else 1.0
        self._joules = [0.0] * len(uuids)

    def read(self) -> Mapping[str, float]:
        """Return the joules of each GPU since the start. Raises NotMeasuredError as the constructor."""
        try:
            values, now = self._values(), time.monotonic()
        except self._nvml.NVMLError as error:
            raise NotMeasuredError(f"NVML reports no energy of this GPU: {one_line(error)}") from None
        for number, (value, last) in enumerate(zip(values, self._last, strict=True)):
            if self._counts and value < last:
                raise NotMeasuredError("the driver of the GPU was reloaded, and its energy counter reset")
            # Counts are millijoules, powers milliwatts: between two reads, their mean.
            spent = value - last if self._counts else (value + last) / 2 * (now - self._read_at)
            self._joules[number] += spent / 1e3
        self._last, self._read_at = values, now
        return {f"gpu-{number}": joules for number, joules in enumerate(self._joules)}

    def _has_counters(self) -> bool:
        try:
            for handle in self._handles:
                self._nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
        except self._nvml.NVMLError_NotSupported:
            return False
        return True

    def _values(self) -> list[int]:
        value = (
            self._nvml.nvmlDeviceGetTotalEnergyConsumption
            if self._counts
            else self._nvml.nvmlDeviceGetPowerUsage
        )
        return [int(value(handle)) for handle in self._handles]


def open_counters(*, gpu: bool, folder: Path = POWERCAP) -> tuple[list[EnergyCounters], dict[str, str]]:
    """Return the energy counters of the machine, and the reasons why others are missing.

    Args:
        gpu: Whether a GPU computes.
        folder: Folder of the RAPL domains.

    Returns:
        The counters, and device -> reason.
    """
    counters: list[EnergyCounters] = []
    reasons: dict[str, str] = {}
    try:
        counters.append(Rapl(folder))
    except NotMeasuredError as error:
        reasons[Rapl.device] = str(error)
    if gpu:
        try:
            counters.append(_nvml())
        except NotMeasuredError as error:
            reasons[Nvml.device] = str(error)
    return counters, reasons


def _nvml() -> Nvml:
    try:
        import pynvml
    except ImportError:
        raise NotMeasuredError("the energy of a GPU needs pynvml: pip install 'sparsebert[energy]'") from None
    import torch

    devices = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    return Nvml([str(device.uuid) for device in devices], pynvml)


def _text(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""


def _microjoules(file: Path) -> int:
    try:
        return int(file.read_text())
    except PermissionError:
        raise NotMeasuredError(
            f"only root may read the RAPL counters: sudo chmod a+r {file.parent.parent}/intel-rapl:*/*_uj"
        ) from None
    except (OSError, ValueError) as error:
        raise NotMeasuredError(f"a RAPL counter cannot be read: {file}: {one_line(error)}") from None
