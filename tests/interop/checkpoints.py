"""Checkpoints as movement pruning and nn_pruning write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsebert.bert import structure

transformers = pytest.importorskip("transformers")

SHAPE = {"hidden_size": 16, "num_attention_heads": 4, "intermediate_size": 24, "num_hidden_layers": 2}
PRUNED_HEADS = {"0": [1, 3], "1": [0]}


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


def compiled(model: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
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
