"""JSON files with numbers that JSON lacks, or that no field can hold, are refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparsebert import results
from sparsebert.interop import read_ticket
from sparsebert.json_object import load_json, read_json_object
from sparsebert.tasks.squad import read_squad
from sparsebert.tickets.ticket import Ticket
from tests.interop.models import bert

NUMBERS = ["NaN", "Infinity", "-Infinity", "1e999", "-1e400", "9" * 400, "9" * 6000]


@pytest.mark.parametrize("number", NUMBERS)
def test_numbers_that_are_none(number: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(f'{{"a": [{{"b": {number}}}]}}')
    with pytest.raises(ValueError, match=r"config\.json is not a usable JSON file: it contains") as refusal:
        read_json_object(path)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 300


@pytest.mark.parametrize("number", NUMBERS)
def test_every_reader_names_its_file(number: str, tmp_path: Path) -> None:
    path = tmp_path / "heads_to_mask.json"
    path.write_text(f'{{"0": {{"0": [{number}]}}}}')
    with pytest.raises(ValueError, match=r"heads_to_mask\.json is not a usable JSON file"):
        read_ticket(path, bert(layers=1))
    path.write_text(f'{{"schema": 1, "kind": "bench", "time": {number}}}')
    with pytest.raises(ValueError, match=r"heads_to_mask\.json:1 is not JSON: it contains"):
        results.read(path)
    path.write_text(f'{{"data": {number}}}')
    with pytest.raises(ValueError, match=r"heads_to_mask\.json: not JSON: it contains"):
        read_squad(path)


def test_numbers_at_the_edge_are_read() -> None:
    assert load_json("[1e308, -0.0, 18446744073709551615, 1]") == [1e308, -0.0, 2**64 - 1, 1]


def test_depth(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"config\.json is not a usable JSON file: it is nested too deeply"):
        read_json_object(path)


def test_a_ticket_with_infinity_in_its_metadata_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="metadata must be JSON"):
        Ticket({}, metadata={"method": "x", "seed": float("inf")})
