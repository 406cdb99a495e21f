"""``benchmarks.arena``: optimized folders against the dense forms, on a tiny model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

from benchmarks import arena
from sparsebert import results
from sparsebert.workflows import pruned_forms
from tests.cli.conftest import tokenizer  # noqa: F401  (a fixture)
from tests.quality.tiny import model, texts


@pytest.fixture
def tiny(tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:  # noqa: F811
    name = model(tmp_path / "tiny", tokenizer)
    monkeypatch.setattr(pruned_forms, "usable_cores", lambda: 1)
    monkeypatch.setattr(arena, "weights_folder", lambda: name)
    monkeypatch.setattr(arena, "_sentences", texts)
    return ["minilm", "--quick", "--work", str(tmp_path / "work"), "--out", str(tmp_path / "out.jsonl")]


def test_the_optimized_folder_stands_beside_the_dense_forms(tiny: list[str], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    arena.main([*tiny, "--plot", str(tmp_path / "arena.png")])
    assert (tmp_path / "arena-minilm.png").exists()
    rows = results.read(tmp_path / "out.jsonl")
    forms = [row["form"] for row in rows if row["kind"] == "arena"]
    assert forms == ["onednn", "dense fp32", "dense bf16", "dense int8", "keep-0.9"]
    assert any(row["chosen"] for row in rows if row["kind"] == "optimize")
    assert all(row["workload"]["model"] == "all-MiniLM-L6-v2" for row in rows)


def test_a_folder_that_is_there_is_not_searched_for_again(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arena.main(tiny)
    monkeypatch.setattr(arena, "optimize", None)
    arena.main(tiny)
    assert len(results.read(tmp_path / "out.jsonl", "arena")) == 10


def test_a_part_without_its_model_is_skipped(tiny: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    arena.main(["classifier", *tiny[1:]])
    assert "skipped classifier: --classifier names no folder" in capsys.readouterr().err


def test_an_unknown_part_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        arena.main(["roberta"])
    assert stopped.value.code == 2
    assert "unknown part roberta" in capsys.readouterr().err
