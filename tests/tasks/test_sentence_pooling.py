"""Embeddings are those of sentence-transformers, read from the folder of the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsebert.tasks.sentence_pooling import longest_text, sentence_head

STATES = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(0))
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")


def folder(path: Path, pooling: dict[str, Any], *modules: str) -> str:
    kinds = ("Transformer", "Pooling", *modules)
    entries = [
        {"path": kind if index else "", "type": f"sentence_transformers.models.{kind}"}
        for index, kind in enumerate(kinds)
    ]
    (path / "modules.json").write_text(json.dumps(entries))
    (path / "Pooling").mkdir()
    (path / "Pooling" / "config.json").write_text(json.dumps(pooling))
    return str(path)


@pytest.mark.parametrize("mode", [*MODES, ("mean", "max")])
def test_every_pooling_is_the_librarys(mode: Any, tmp_path: Path) -> None:
    library = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    expected = library.Pooling(6, mode)({"token_embeddings": STATES.clone(), "attention_mask": MASK})
    head = sentence_head(folder(tmp_path, {"pooling_mode": mode}))
    assert head is not None
    torch.testing.assert_close(head(STATES, MASK), expected["sentence_embedding"])


def test_settings_of_earlier_versions_are_read(tmp_path: Path) -> None:
    settings = {"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}
    head = sentence_head(folder(tmp_path, settings, "Normalize"))
    assert head is not None
    torch.testing.assert_close(head(STATES, MASK), STATES[:, 0])


def test_padding_may_hold_anything(tmp_path: Path) -> None:
    head = sentence_head(folder(tmp_path, {"pooling_mode_mean_tokens": True}))
    states = STATES.masked_fill(MASK[..., None] == 0, float("nan"))
    assert head is not None
    assert head(states, MASK).isfinite().all()


def test_dense_modules_are_computed(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    name = folder(tmp_path, {"pooling_mode_mean_tokens": True}, "Dense")
    (tmp_path / "Dense").mkdir()
    (tmp_path / "Dense" / "config.json").write_text(json.dumps({"in_features": 6, "out_features": 2}))
    weight, bias = torch.randn(2, 6), torch.randn(2)
    save_file({"linear.weight": weight, "linear.bias": bias}, tmp_path / "Dense" / "model.safetensors")
    head = sentence_head(name)
    assert head is not None
    real = MASK[..., None].float()
    mean = (STATES * real).sum(1) / real.sum(1)
    torch.testing.assert_close(head(STATES, MASK), torch.tanh(mean @ weight.T + bias))


def test_models_of_other_libraries_have_no_sentence_head(tmp_path: Path) -> None:
    assert sentence_head(str(tmp_path)) is None
    assert longest_text(str(tmp_path)) is None


def test_the_longest_text_is_read(tmp_path: Path) -> None:
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 256}')
    assert longest_text(str(tmp_path)) == 256


def test_other_modules_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="names the module WordWeights; embeddings are compared after"):
        sentence_head(folder(tmp_path, {}, "WordWeights"))


def test_unknown_poolings_and_broken_files_are_refused(tmp_path: Path) -> None:
    name = folder(tmp_path, {"pooling_mode": "median"})
    with pytest.raises(ValueError, match=r"pooling_mode must be one of cls, .*, got median"):
        sentence_head(name)
    (tmp_path / "Pooling" / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"Pooling/config.json is not readable: "):
        sentence_head(name)
    (tmp_path / "Pooling" / "config.json").unlink()
    with pytest.raises(ValueError, match=r"holds no Pooling/config.json, which its modules.json needs"):
        sentence_head(name)
