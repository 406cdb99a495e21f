"""Sparse GPT-2 and Llama: they generate the tokens of the dense masked model, also saved and loaded."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsebert import densify_, prune, sparsify_
from sparsebert.nn.sparse_linear import SparseLinear
from tests import decoders
from tests.sparsify.models import sparse_layers

transformers = pytest.importorskip("transformers")

MODELS = pytest.mark.parametrize("build", [decoders.gpt2, decoders.llama])
# Dense rows are sampled with one seed for both, so that sampling must agree as well.
WAYS = ({"do_sample": False}, {"do_sample": True, "top_k": 5}, {"do_sample": False, "num_beams": 3})


def generated(model: Any, **options: Any) -> list[list[int]]:
    """Continue two prompts, the first of them padded on the left."""
    prompts = torch.tensor([[1, 1, 5, 4], [3, 7, 2, 9]])
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    torch.manual_seed(0)
    tokens = model.generate(
        prompts, attention_mask=mask, max_new_tokens=16, min_new_tokens=16, pad_token_id=1, **options
    )
    return tokens.tolist()  # type: ignore[no-any-return]


@MODELS
@pytest.mark.parametrize("options", WAYS, ids=["greedy", "sampling", "beams"])
def test_generation(build: Callable[..., Any], options: dict[str, Any]) -> None:
    model = build()
    ticket = prune(model, sparsity=0.6, scope="matrix")
    masked = ticket.apply_(copy.deepcopy(model))
    expected = generated(masked, **options)
    assert expected != generated(model, **options)
    sparse = sparsify_(model, ticket, format="element")
    assert generated(sparse, **options) == expected


@MODELS
def test_round_trip(build: Callable[..., Any], tmp_path: Path) -> None:
    """Saved sparse, loaded sparse; saved dense, loaded by transformers alone."""
    model = build()
    ticket = prune(model, sparsity=0.6, scope="matrix")
    masked = ticket.apply_(copy.deepcopy(model))
    sparsify_(model, ticket, format="element").save_pretrained(tmp_path / "sparse")
    loaded = type(model).from_pretrained(tmp_path / "sparse")
    assert len(sparse_layers(loaded)) == len(ticket.masks)
    assert generated(loaded) == generated(masked)
    auto = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "sparse")
    assert generated(auto) == generated(masked)
    densify_(loaded).save_pretrained(tmp_path / "dense")
    dense = type(model).from_pretrained(tmp_path / "dense")
    assert not any(isinstance(module, SparseLinear) for module in dense.modules())
    for name, tensor in masked.state_dict().items():
        assert torch.equal(dense.state_dict()[name], tensor), name


def test_a_folder_of_another_width_is_refused(tmp_path: Path) -> None:
    model = decoders.gpt2()
    sparsify_(model, prune(model, sparsity=0.5), format="element").save_pretrained(tmp_path)
    config = transformers.GPT2Config.from_pretrained(tmp_path)
    config.n_inner = 48
    with pytest.raises(ValueError, match=r"c_fc is \[96, 24\] with a bias, .* is \[48, 24\] with a bias"):
        transformers.GPT2LMHeadModel.from_pretrained(tmp_path, config=config)
