"""Tables keep to the terminal's width and to COLUMNS."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import rich.console
from rich.cells import cell_len

from sparsebert import plan
from sparsebert.cli import app
from tests.planning.masks import model_with, random_mask

RECORDS = sorted(Path("benchmarks/results").glob("*.jsonl"))


def widest(text: str) -> int:
    return max(map(cell_len, text.splitlines()))


@pytest.mark.parametrize("columns", [80, 60, 132])
def test_env_and_baselines_keep_to_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    for command in (["env"], ["bench", "--vs", "help"]):
        assert app.main(command) == 0
        assert 40 < widest(capsys.readouterr().out) <= columns


@pytest.mark.parametrize("records", RECORDS, ids=lambda path: path.stem)
def test_reports_keep_to_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, records: Path
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert app.main(["report", str(records)]) == 0
    assert widest(capsys.readouterr().out) <= 80


@pytest.mark.parametrize("columns", ["", "0", "1", "-5", "many"])
def test_an_unusable_width_is_ignored(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert app.main(["env"]) == 0
    assert 40 <= widest(capsys.readouterr().out) <= 120


@pytest.mark.parametrize("columns", [80, 60])
def test_a_plan_keeps_to_columns_and_drops_nothing(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    made = plan(*model_with(random_mask(0.1), random_mask(0.97)), measure=False)
    monkeypatch.setenv("COLUMNS", "300")
    words = str(made).split()
    monkeypatch.setenv("COLUMNS", str(columns))
    assert widest(str(made)) <= columns
    assert sorted(str(made).split()) == sorted(words)
    console = rich.console.Console(file=io.StringIO(), width=columns)
    console.print(made)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert widest(shown) <= columns
    assert sorted(shown.split()) == sorted(words)
