"""The file of predictions: labels by name, and answers that a diverged model gives."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from sparsebert.tasks import Example, find_task
from sparsebert.workflows.predictions import prediction_rows, share_of_other_answers, write_predictions

SST2 = find_task("sst2")
EXAMPLES = {"validation": [Example(('a "good", film\nindeed',), 1), Example(("bad",), 0)]}


def test_scores_that_are_not_finite(tmp_path: Path) -> None:
    answers = {"validation": np.array([[0.0, np.log(3)], [np.nan, 1]])}
    first, second = rows = list(prediction_rows(SST2, EXAMPLES, answers, {"model": "m"}))
    assert first["prediction"] == "positive"
    assert first["scores"] == pytest.approx({"negative": 0.25, "positive": 0.75})
    assert second["prediction"] is None
    assert second["scores"] == {"negative": None, "positive": None}
    write_predictions(tmp_path / "p.jsonl", rows)
    lines = (tmp_path / "p.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == rows
    write_predictions(tmp_path / "p.csv", rows)
    with (tmp_path / "p.csv").open(newline="", encoding="utf-8") as file:
        cells = list(csv.DictReader(file))
    assert cells[0]["texts.sentence"] == 'a "good", film\nindeed'
    assert (cells[1]["prediction"], cells[1]["scores.negative"]) == ("", "")
    assert [*cells[0]][:2] == ["model", "split"]


def test_other_answers() -> None:
    one = {"validation": np.array([[0.0, 1], [1, 0]])}
    two = {"validation": np.array([[0.0, 2], [1, 2]])}
    assert share_of_other_answers(SST2, one, two) == 0.5
    assert share_of_other_answers(find_task("stsb"), one, two) is None


def test_nothing_is_left_of_a_file_that_fails(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text("earlier")
    with pytest.raises(ValueError, match="Out of range"):
        write_predictions(file, [{"score": float("nan")}])
    assert [each.name for each in tmp_path.iterdir()] == ["p.jsonl"]
    assert file.read_text() == "earlier"
