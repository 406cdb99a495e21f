"""What parts of a run used adds up, and a record gives it back."""

from __future__ import annotations

import json

import pytest

from sparsebert.accounting.usage import Usage, total

MORNING = Usage(10.0, 20.0, None, 300, None, joules={"package-0": 100.0})
EVENING = Usage(5.0, 6.0, 4.0, 200, 70, joules={"package-0": 11.0, "gpu-0": 9.0}, resumed=1)


def test_times_and_energy_are_added_and_peaks_are_compared() -> None:
    both = MORNING + EVENING
    assert (both.wall_seconds, both.cpu_seconds, both.cuda_seconds) == (15.0, 26.0, 4.0)
    assert (both.peak_rss_bytes, both.peak_gpu_bytes, both.resumed) == (300, 70, 1)
    assert both.joules == {"package-0": 111.0, "gpu-0": 9.0}
    assert both.energy == 120.0


def test_a_part_without_energy_leaves_its_reason_in_the_sum() -> None:
    lacking = Usage(1.0, 1.0, not_measured={"cpu": "no RAPL counters"})
    both = MORNING + lacking
    assert both.energy == 100.0
    assert both.not_measured == {"cpu": "no RAPL counters"}
    assert lacking.energy is None


@pytest.mark.parametrize("usage", [MORNING, EVENING, MORNING + EVENING, Usage(process_peak=True)])
def test_a_record_gives_the_usage_back(usage: Usage) -> None:
    assert Usage.of_record(json.loads(json.dumps(usage.record(400.0)))) == usage


def test_carbon_comes_from_the_user_s_intensity_alone() -> None:
    kwh = Usage(joules={"package-0": 3.6e6})
    assert kwh.record()["carbon"] is None
    assert kwh.record(380.0)["carbon"] == {"grams_per_kwh": 380.0, "grams": 380.0}
    assert Usage(not_measured={"cpu": "none"}).record(380.0)["carbon"] is None


def test_a_total_is_of_records_that_all_exist() -> None:
    summed = total([MORNING.record(100.0), EVENING.record(100.0)])
    assert summed == (MORNING + EVENING).record(100.0)
    assert total([MORNING.record(), None]) is None
    assert total([]) is None


def test_a_total_of_other_intensities_has_no_carbon() -> None:
    summed = total([MORNING.record(100.0), EVENING.record(200.0)])
    assert summed is not None
    assert summed["carbon"] is None
    assert summed["energy"]["joules"] == 120.0
