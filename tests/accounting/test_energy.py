"""Energy counters: made-up RAPL folders and a made-up NVML."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sparsebert.accounting import energy
from sparsebert.accounting.energy import NotMeasuredError, Nvml, Rapl, open_counters
from tests.rapl import write_domain as write_domain_up_to

RANGE = 1_000_000

write_domain = functools.partial(write_domain_up_to, most=RANGE)


class TestRapl:
    def test_packages_and_their_memory_are_counted_and_what_they_hold_is_not_twice(
        self, tmp_path: Path
    ) -> None:
        files = {
            name: write_domain(tmp_path, number, name)
            for number, name in (("0", "package-0"), ("0:0", "core"), ("0:1", "dram"), ("1", "psys"))
        }
        (tmp_path / "intel-rapl").mkdir()
        (tmp_path / "intel-rapl-mmio:0").mkdir()
        rapl = Rapl(tmp_path)
        for file in files.values():
            file.write_text("500000\n")
        assert rapl.read() == {"package-0": 0.5, "dram of package-0": 0.5}

    def test_a_counter_that_starts_again_goes_on_counting(self, tmp_path: Path) -> None:
        file = write_domain(tmp_path, "0", "package-0", 900_000)
        rapl = Rapl(tmp_path)
        file.write_text("100000")
        assert rapl.read() == {"package-0": pytest.approx(0.200001)}
        file.write_text("99999")
        assert rapl.read() == {"package-0": pytest.approx(0.200001 + 1.0)}

    def test_a_reason_takes_the_place_of_missing_counters(self, tmp_path: Path) -> None:
        with pytest.raises(NotMeasuredError, match=r"no RAPL counters in .*virtual machines"):
            Rapl(tmp_path / "powercap")

    def test_a_counter_for_root_alone_says_how_to_open_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_domain(tmp_path, "0", "package-0")
        read_text = Path.read_text

        def forbidden(self: Path, *arguments: Any, **options: Any) -> str:
            if self.name == "energy_uj":
                raise PermissionError(13, "Permission denied", str(self))
            return read_text(self, *arguments, **options)

        monkeypatch.setattr(Path, "read_text", forbidden)
        with pytest.raises(NotMeasuredError, match=r"only root .*: sudo chmod a\+r .*intel-rapl:\*/\*_uj"):
            Rapl(tmp_path)

    def test_without_its_range_a_counter_is_not_used(self, tmp_path: Path) -> None:
        write_domain(tmp_path, "0", "package-0").with_name("max_energy_range_uj").unlink()
        with pytest.raises(NotMeasuredError, match="cannot be read"):
            Rapl(tmp_path)


class NVMLError(Exception):
    pass


class NVMLError_NotSupported(NVMLError):
    pass


class FakeNvml:
    """The module ``pynvml`` of a machine with GPUs, whose counters and powers tests set."""

    NVMLError, NVMLError_NotSupported = NVMLError, NVMLError_NotSupported

    def __init__(self, counts: list[int] | None, powers: list[int] | None = None) -> None:
        self.counts, self.powers = counts, powers

    def nvmlInit(self) -> None:
        pass

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:
        assert uuid.startswith("GPU-")
        return int(uuid.removeprefix("GPU-"))

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:
        if self.counts is None:
            raise NVMLError_NotSupported("Not Supported")
        return self.counts[handle]

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:
        if self.powers is None:
            raise NVMLError_NotSupported("Not Supported")
        return self.powers[handle]


class TestNvml:
    def test_counters_are_differences_in_millijoules(self) -> None:
        library = FakeNvml([5_000, 7_000])
        nvml = Nvml(["0", "1"], library)
        library.counts = [6_500, 7_000]
        assert nvml.read() == {"gpu-0": 1.5, "gpu-1": 0.0}
        assert nvml.interval == float("inf")

    def test_power_is_integrated_where_there_is_no_counter(self, monkeypatch: pytest.MonkeyPatch) -> None:
        now = [100.0]
        monkeypatch.setattr(energy, "time", SimpleNamespace(monotonic=lambda: now[0]))
        library = FakeNvml(None, [100_000])
        nvml = Nvml(["0"], library)
        library.powers, now[0] = [300_000], 102.0
        assert nvml.read() == {"gpu-0": 400.0}
        library.powers, now[0] = [300_000], 103.0
        assert nvml.read() == {"gpu-0": 700.0}
        assert nvml.interval == 1.0

    def test_a_gpu_with_neither_has_a_reason(self) -> None:
        with pytest.raises(NotMeasuredError, match="NVML reports no energy of this GPU: Not Supported"):
            Nvml(["0"], FakeNvml(None))

    def test_a_counter_that_falls_is_not_used_further(self) -> None:
        library = FakeNvml([5_000])
        nvml = Nvml(["0"], library)
        library.counts = [10]
        with pytest.raises(NotMeasuredError, match="driver of the GPU was reloaded"):
            nvml.read()


class TestMachine:
    def test_each_device_has_counters_or_a_reason(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "pynvml", None)
        counters, reasons = open_counters(gpu=True, folder=tmp_path)
        assert not counters
        assert set(reasons) == {"cpu", "gpu"}
        assert "pip install 'sparsebert[energy]'" in reasons["gpu"]

    def test_the_gpu_is_asked_only_where_one_computes(self, tmp_path: Path) -> None:
        write_domain(tmp_path, "0", "package-0")
        counters, reasons = open_counters(gpu=False, folder=tmp_path)
        assert [each.device for each in counters] == ["cpu"]
        assert reasons == {}

    def test_the_gpus_are_those_that_cuda_sees(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import torch

        monkeypatch.setitem(sys.modules, "pynvml", FakeNvml([1_000, 2_000, 3_000]))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="2"))
        counters, _ = open_counters(gpu=True, folder=tmp_path)
        (nvml,) = counters
        sys.modules["pynvml"].counts[2] = 4_000  # type: ignore[attr-defined]
        assert nvml.read() == {"gpu-0": 1.0}
