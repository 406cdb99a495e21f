"""Checkpoints of movement pruning: the masks are those that its own binarizers compute."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sparsebert.bert import structure
from sparsebert.interop.movement_pruning import _top, from_movement
from tests.interop.checkpoints import bert, movement_state, saved

transformers = pytest.importorskip("transformers")

METHODS = {"topK": 0.29, "magnitude": 0.29, "sigmoied_threshold": 0.6, "threshold": 0.4, "l0": None}


def binarized(method: str, threshold: float | None, weight: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Their binarizers in plain numpy."""
    entries = weight.size
    if method in ("topK", "magnitude"):
        ranked = np.abs(weight) if method == "magnitude" else scores
        mask = np.zeros(entries, bool)
        mask[np.argsort(-ranked.ravel(), kind="stable")[: int(threshold * entries)]] = True
        return mask.reshape(weight.shape)
    open_ = 1 / (1 + np.exp(-scores.astype(np.float64)))
    if method == "l0":
        return np.clip(open_ * 1.2 - 0.1, 0, 1) > 0
    mask = (open_ if method == "sigmoied_threshold" else scores) > threshold
    least = int(0.005 * entries) + 1
    return mask if mask.sum() >= least else scores > np.sort(scores.ravel())[max(entries - least, 1) - 1]


@pytest.mark.parametrize(("entries", "kept"), [(10, 2), (100, 28)])
def test_a_share_of_the_weights_is_cut_down_as_in_their_code(entries: int, kept: int) -> None:
    """0.29 * 10 is 2.9; in floats, 0.29 * 100 is less than 29."""
    mask = _top(torch.arange(entries).float(), 0.29)
    assert mask.nonzero().flatten().tolist() == list(range(entries - kept, entries))


@pytest.mark.parametrize(("method", "threshold"), METHODS.items())
def test_masks_are_those_of_their_binarizers(tmp_path: Path, method: str, threshold: float | None) -> None:
    model = bert()
    state = movement_state(model, spread=3.0)
    ticket = from_movement(saved(tmp_path / "m", state, pruning_method=method), threshold=threshold)
    ticket.check(model)
    assert tuple(ticket.masks) == structure(model).linears
    for key, mask in ticket.masks.items():
        arrays = (state[f"bert.{key}.{name}"].numpy() for name in ("weight", "mask_scores"))
        assert np.array_equal(mask.numpy(), binarized(method, threshold, *arrays)), key
    assert 0 < ticket.sparsity < 1
    assert ticket.metadata["method"] == f"movement-pruning {method}"


@pytest.mark.parametrize("method", ["sigmoied_threshold", "threshold"])
def test_a_threshold_above_all_scores_leaves_half_a_percent_and_one(tmp_path: Path, method: str) -> None:
    folder = saved(tmp_path / "m", movement_state(bert(), spread=1e-3), pruning_method=method)
    ticket = from_movement(folder, threshold=0.9)
    assert {int(mask.sum()) for mask in ticket.masks.values()} == {
        int(0.005 * 256) + 1,
        int(0.005 * 384) + 1,
    }


def test_a_gate_is_open_above_a_score_of_minus_ln_11(tmp_path: Path) -> None:
    state = movement_state(bert())
    name = "bert.encoder.layer.0.output.dense.mask_scores"
    edge = -math.log(11)
    state[name][0, :2] = torch.tensor([edge - 1e-3, edge + 1e-3])
    ticket = from_movement(saved(tmp_path / "m", state, pruning_method="l0"))
    assert ticket.masks["encoder.layer.0.output.dense"][0, :2].tolist() == [False, True]


def test_of_equal_scores_the_first_stay_and_their_int_counts_them(tmp_path: Path) -> None:
    folder = saved(tmp_path / "m", movement_state(bert(), spread=0.0), pruning_method="topK")
    mask = from_movement(folder, threshold=0.29).masks["encoder.layer.0.attention.self.query"]
    assert mask.flatten().nonzero().flatten().tolist() == list(range(int(0.29 * 256)))


def test_magnitudes_need_no_scores_and_pooler_and_head_are_left_out(tmp_path: Path) -> None:
    folder = saved(tmp_path / "m", bert().state_dict(), pruning_method="magnitude")
    assert "pooler.dense" not in from_movement(folder, threshold=0.5).masks


def test_a_method_by_name_goes_before_that_of_the_config(tmp_path: Path) -> None:
    folder = saved(tmp_path / "m", movement_state(bert()), pruning_method="topK")
    asked = from_movement(folder, method="magnitude", threshold=0.5)
    assert asked.metadata["history"][0]["method"] == "magnitude"


def test_safetensors_and_distilbert(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.DistilBertConfig(vocab_size=20, dim=16, n_heads=4, hidden_dim=24, n_layers=2)
    model = transformers.DistilBertModel(config)
    (tmp_path / "config.json").write_text(json.dumps({"pruning_method": "magnitude"}))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    ticket = from_movement(tmp_path, threshold=0.5)
    ticket.check(model)
    assert ticket.sparsity == 0.5


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        ({}, {}, "depend on the final_threshold of the run"),
        ({}, {"threshold": 1.5}, r"must be in \[0, 1\], got 1.5"),
        ({}, {"threshold": 0.5, "method": "topk"}, "did you mean 'topK'"),
        (
            {"query.mask_scores": None},
            {"threshold": 0.5},
            "holds no mask_scores for .*query; topK needs them",
        ),
        ({"query.mask_scores": torch.zeros(2, 2)}, {"threshold": 0.5}, "query are 2x2, one per block"),
        (
            {"key.mask_scores": torch.full((16, 16), torch.nan)},
            {"threshold": 0.5},
            "score of .*key is NaN",
        ),
    ],
)
def test_refusals(tmp_path: Path, changes: dict[str, Any], arguments: dict[str, Any], message: str) -> None:
    state = movement_state(bert())
    for ending, value in changes.items():
        name = f"bert.encoder.layer.0.attention.self.{ending}"
        state.pop(name)
        if value is not None:
            state[name] = value
    with pytest.raises(ValueError, match=message):
        from_movement(saved(tmp_path / "m", state, pruning_method="topK"), **arguments)


def test_folders_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="names no pruning_method"):
        from_movement(saved(tmp_path / "plain", {}))
    with pytest.raises(ValueError, match="holds no encoder matrices"):
        from_movement(saved(tmp_path / "empty", {}, pruning_method="l0"))
    (tmp_path / "empty" / "pytorch_model.bin").unlink()
    with pytest.raises(FileNotFoundError, match="holds no weights"):
        from_movement(tmp_path / "empty")
    (tmp_path / "empty" / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not a usable JSON"):
        from_movement(tmp_path / "empty")


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    folder = saved(tmp_path / "m", {}, pruning_method="l0")
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": Path}, protocol=2))
    with pytest.raises(ValueError, match="is refused"):
        from_movement(folder)
