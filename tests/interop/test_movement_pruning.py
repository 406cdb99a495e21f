"""Checkpoints of HF's movement pruning and of nn_pruning, read as their own code computes their masks."""

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
from torch import Tensor

from sparsebert.bert import structure
from sparsebert.cli import app
from sparsebert.interop.movement_pruning import (
    from_checkpoint,
    from_movement,
    from_nn_pruning,
    is_foreign_checkpoint,
)
from sparsebert.tickets.ticket import Ticket

transformers = pytest.importorskip("transformers")

SHAPE = {"hidden_size": 16, "num_attention_heads": 4, "intermediate_size": 24, "num_hidden_layers": 2}
PRUNED_HEADS = {"0": [1, 3], "1": [0]}
METHODS = {"topK": 0.29, "magnitude": 0.29, "sigmoied_threshold": 0.6, "threshold": 0.4, "l0": None}


def bert(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=20, **SHAPE))


def movement_state(model: Any, spread: float = 1.0) -> dict[str, Tensor]:
    """A masked model's: scores beside every encoder weight."""
    state = {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.Generator().manual_seed(1)
    for key in structure(model).linears:
        shape = state[f"bert.{key}.weight"].shape
        state[f"bert.{key}.mask_scores"] = spread * torch.randn(shape, generator=generator)
    return state


def saved(folder: Path, state: dict[str, Tensor], **config: Any) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "masked_bert", **SHAPE, **config}))
    torch.save(state, folder / "pytorch_model.bin")
    return folder


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


class TestMovement:
    @pytest.mark.parametrize(("method", "threshold"), METHODS.items())
    def test_masks_are_those_of_their_binarizers(
        self, tmp_path: Path, method: str, threshold: float | None
    ) -> None:
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
    def test_a_threshold_above_all_scores_leaves_half_a_percent_and_one(
        self, tmp_path: Path, method: str
    ) -> None:
        folder = saved(tmp_path / "m", movement_state(bert(), spread=1e-3), pruning_method=method)
        ticket = from_movement(folder, threshold=0.9)
        assert {int(mask.sum()) for mask in ticket.masks.values()} == {
            int(0.005 * 256) + 1,
            int(0.005 * 384) + 1,
        }

    def test_a_gate_is_open_above_a_score_of_minus_ln_11(self, tmp_path: Path) -> None:
        state = movement_state(bert())
        name = "bert.encoder.layer.0.output.dense.mask_scores"
        edge = -math.log(11)
        state[name][0, :2] = torch.tensor([edge - 1e-3, edge + 1e-3])
        ticket = from_movement(saved(tmp_path / "m", state, pruning_method="l0"))
        assert ticket.masks["encoder.layer.0.output.dense"][0, :2].tolist() == [False, True]

    def test_of_equal_scores_the_first_stay_and_their_int_counts_them(self, tmp_path: Path) -> None:
        folder = saved(tmp_path / "m", movement_state(bert(), spread=0.0), pruning_method="topK")
        mask = from_movement(folder, threshold=0.29).masks["encoder.layer.0.attention.self.query"]
        assert mask.flatten().nonzero().flatten().tolist() == list(range(int(0.29 * 256)))

    def test_magnitudes_need_no_scores_and_pooler_and_head_are_left_out(self, tmp_path: Path) -> None:
        folder = saved(tmp_path / "m", bert().state_dict(), pruning_method="magnitude")
        assert "pooler.dense" not in from_movement(folder, threshold=0.5).masks

    def test_a_method_by_name_goes_before_that_of_the_config(self, tmp_path: Path) -> None:
        folder = saved(tmp_path / "m", movement_state(bert()), pruning_method="topK")
        asked = from_movement(folder, method="magnitude", threshold=0.5)
        assert asked.metadata["history"][0]["method"] == "magnitude"

    def test_safetensors_and_distilbert(self, tmp_path: Path) -> None:
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
            ({}, {}, "follow from the final threshold of its run"),
            ({}, {"threshold": 1.5}, r"must be in \[0, 1\], not 1.5"),
            ({}, {"threshold": 0.5, "method": "topk"}, "did you mean 'topK'"),
            (
                {"query.mask_scores": None},
                {"threshold": 0.5},
                "holds no mask_scores of .*query: topK needs them",
            ),
            ({"query.mask_scores": torch.zeros(2, 2)}, {"threshold": 0.5}, "query are 2x2, those of blocks"),
            (
                {"key.mask_scores": torch.full((16, 16), torch.nan)},
                {"threshold": 0.5},
                "score of .*key is NaN",
            ),
        ],
    )
    def test_refusals(
        self, tmp_path: Path, changes: dict[str, Any], arguments: dict[str, Any], message: str
    ) -> None:
        state = movement_state(bert())
        for ending, value in changes.items():
            name = f"bert.encoder.layer.0.attention.self.{ending}"
            state.pop(name)
            if value is not None:
                state[name] = value
        with pytest.raises(ValueError, match=message):
            from_movement(saved(tmp_path / "m", state, pruning_method="topK"), **arguments)

    def test_folders_that_are_none(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="names no pruning_method"):
            from_movement(saved(tmp_path / "plain", {}))
        with pytest.raises(ValueError, match="holds no encoder matrices"):
            from_movement(saved(tmp_path / "empty", {}, pruning_method="l0"))
        (tmp_path / "empty" / "pytorch_model.bin").unlink()
        with pytest.raises(FileNotFoundError, match="holds no weights"):
            from_movement(tmp_path / "empty")
        (tmp_path / "empty" / "config.json").write_text("{")
        with pytest.raises(ValueError, match="no usable JSON"):
            from_movement(tmp_path / "empty")

    def test_code_in_a_checkpoint_is_not_run(self, tmp_path: Path) -> None:
        folder = saved(tmp_path / "m", {}, pruning_method="l0")
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": Path}, protocol=2))
        with pytest.raises(ValueError, match="is refused"):
            from_movement(folder)


class TestNnPruning:
    def compiled(self, model: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Masks of whole matrices; and the state of a model with these zeros, without its pruned heads."""
        state = {name: value.clone() for name, value in model.state_dict().items()}
        masks = {}
        for number, (query, key, value, output) in enumerate(structure(model).heads):
            kept = torch.ones(4, dtype=torch.bool)
            kept[PRUNED_HEADS[str(number)]] = False
            features = kept.repeat_interleave(4)
            for each in (query, key, value, output):
                weight = state[f"bert.{each}.weight"]
                weight[:2] = 0  # rows that are empty though their head is not
                masks[each] = (weight != 0) & (features if each == output else features[:, None])
                state[f"bert.{each}.weight"] = weight[:, features] if each == output else weight[features]
                if each != output:
                    state[f"bert.{each}.bias"] = state[f"bert.{each}.bias"][features]
        for up, down in structure(model).neurons:
            state[f"bert.{up}.weight"][5:] = 0
            state[f"bert.{down}.weight"][:, 5:] = 0
            masks |= {each: state[f"bert.{each}.weight"] != 0 for each in (up, down)}
        return masks, state

    def test_heads_that_are_missing_are_pruned(self, tmp_path: Path) -> None:
        model = bert()
        masks, state = self.compiled(model)
        folder = saved(
            tmp_path / "m", state, model_type="bert", pruned_heads=PRUNED_HEADS, layer_norm_type="no_norm"
        )
        assert is_foreign_checkpoint(folder)
        ticket = from_checkpoint(folder)
        assert ticket == Ticket(masks)
        ticket.check(model)
        assert ticket.metadata["method"] == "nn_pruning"

    def test_heads_that_are_zeros_are_read_as_they_are(self, tmp_path: Path) -> None:
        model = bert()
        masks, _ = self.compiled(model)
        ticket = Ticket(masks)
        ticket.apply_(model)
        assert from_nn_pruning(saved(tmp_path / "m", model.state_dict(), pruned_heads=PRUNED_HEADS)) == ticket

    @pytest.mark.parametrize(
        ("config", "extra", "message"),
        [
            ({"pruned_heads": {"0": [1], "1": [0]}}, {}, "query has 8 features of heads, not the 12 left"),
            ({"pruned_heads": {"0": [1, 9]}}, {}, r"pruned heads \[1, 9\] of encoder.layer.0, which has 4"),
            ({"pruned_heads": [1]}, {}, "does not say which heads"),
            ({"pruned_heads": PRUNED_HEADS}, {"bert.a.mask_module.context": torch.zeros(1)}, "compile it"),
        ],
    )
    def test_refusals(
        self, tmp_path: Path, config: dict[str, Any], extra: dict[str, Tensor], message: str
    ) -> None:
        _, state = self.compiled(bert())
        with pytest.raises(ValueError, match=message):
            from_nn_pruning(saved(tmp_path / "m", state | extra, **config))


def test_a_plain_model_is_none_of_them(tmp_path: Path) -> None:
    bert().save_pretrained(tmp_path)
    assert not is_foreign_checkpoint(tmp_path)
    assert not is_foreign_checkpoint(tmp_path / "nowhere")


def test_convert_reads_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = saved(tmp_path / "m", movement_state(bert()), pruning_method="topK")
    output = tmp_path / "ticket.safetensors"
    assert app.main(["convert", str(folder), str(output)]) == 2
    assert "name it" in capsys.readouterr().err
    assert not output.exists()
    assert app.main(["convert", str(folder), str(output), "--threshold", "0.25"]) == 0
    assert Ticket.load(output) == from_movement(folder, threshold=0.25)
    _, state = TestNnPruning().compiled(bert())
    compiled = saved(tmp_path / "n", state, pruned_heads=PRUNED_HEADS)
    assert app.main(["convert", str(compiled), str(output)]) == 0
    assert Ticket.load(output) == from_nn_pruning(compiled)
