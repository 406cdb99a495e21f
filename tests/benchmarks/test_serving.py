"""``benchmarks.serving``: its parts on tiny models, and the straight line that it fits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import serving
from sparsebert.report.serving_tables import serving_tables
from sparsebert_kernels import timing
from sparsebert_kernels.cpu import native

TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}

needs_native = pytest.mark.skipif(not native.available(), reason="no native library")


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny models in place of BERT-base."""
    real = serving.random_bert
    monkeypatch.setattr(serving, "random_bert", lambda **config: real(**{**TINY, **config}))
    monkeypatch.setattr(serving, "SHAPE", {})


class TestStraightLine:
    def test_finds_the_line_through_its_points(self) -> None:
        constant, slope, deviation = serving.straight_line([(1, 5.0), (10, 23.0), (100, 203.0)])
        assert (constant, slope) == pytest.approx((3, 2))
        assert deviation == pytest.approx(0, abs=1e-9)

    def test_distances_are_relative(self) -> None:
        points = [(1, 1.0), (10, 10.0), (100, 150.0)]
        constant, slope, deviation = serving.straight_line(points)
        assert deviation == pytest.approx(max(abs((constant + slope * x) / y - 1) for x, y in points))
        assert 0.05 < deviation < 0.5


@needs_native
@pytest.mark.parametrize("vary", serving.LINES)
def test_line(vary: str, tiny: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "LINES", {"tokens": (32, 64), "density": (0.1, 1.0), "layers": (1, 2)})
    quiet = timing.Least(1.0, busy=False)
    monkeypatch.setattr(timing, "least", lambda work, **_: (work(), quiet)[1])
    row = serving.time_line(vary, {"cpu": "x"}, quick=False)
    assert [place for place, _ in row["points"]] == list(serving.LINES[vary])
    assert vary not in row["usual"]
    assert not row["busy"]


@needs_native
def test_threads(tiny: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    ratio, limit = serving.threads({}, quick=True)
    assert (ratio["batch"], ratio["threads"]) == (1, 2)
    assert limit["value"] == ratio["speedup"]
    assert torch.get_num_threads() == 1


class Tokenizer:
    """One token a word."""

    def __call__(self, texts: list[str], **_: Any) -> dict[str, torch.Tensor]:
        rows = [torch.arange(1, len(text.split()) + 1) for text in texts]
        ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        return {"input_ids": ids, "attention_mask": (ids > 0).long()}


@needs_native
def test_batches(tiny: None, monkeypatch: pytest.MonkeyPatch) -> None:
    sentences = ["a b c d e f g h", "a"] * serving.BATCH
    monkeypatch.setattr(serving, "sst2_sentences", lambda: sentences)
    monkeypatch.setattr(serving, "minilm", lambda: (None, Tokenizer()))
    *sides, limit = serving.batches({}, quick=True)
    assert [row["side"] for row in sides] == [
        "fused",
        "eager fp32",
        "eager bf16",
        "eager fp32, sorted by length",
    ]
    tokens, padded = 9 * serving.BATCH, 16 * serving.BATCH
    assert all(row["tokens"] == tokens for row in sides)
    # Sorted by length, a batch holds sentences of one length: nothing is padded.
    assert [row["padded_tokens"] for row in sides] == [padded, padded, padded, tokens]
    assert limit["value"] == sides[1]["speedup"]


@needs_native
def test_wrong_outputs_are_never_timed() -> None:
    model: Any
    other: Any
    model, other = (serving.random_bert(**TINY) for _ in range(2))
    with torch.no_grad():
        other.encoder.layer[1].output.LayerNorm.bias += 1
    ids = torch.ones(1, 4, dtype=torch.int64)
    with pytest.raises(RuntimeError, match=r"fused: error .* > tolerance"):
        serving.checked("fused", other, model, [{"input_ids": ids}])


class TestSkips:
    def test_without_a_folder_of_data(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.delenv("SPARSEBERT_DATA", raising=False)
        assert serving.main(["batches"]) == 0
        assert "without batches: SPARSEBERT_DATA names no folder" in capsys.readouterr().err

    def test_without_the_task(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("SPARSEBERT_DATA", str(tmp_path))
        assert serving.main(["batches"]) == 0
        assert str(tmp_path) in capsys.readouterr().err


def test_an_unknown_part(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        serving.main(["speed"])
    assert stopped.value.code == 2
    assert "there is no part 'speed'; choose from line, latency" in capsys.readouterr().err


def test_no_records_no_tables() -> None:
    assert serving_tables([]) == []
