"""Layers that cannot be packed are named with their reason: Conv1D of GPT-2, and tied weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import prune as torch_prune

from sparsebert import Ticket, compact_, plan, prune, sparsify_
from tests.sparsify.models import build

transformers = pytest.importorskip("transformers")

KEEP = torch.ones(72, 24, dtype=torch.bool)


def gpt2(name: str = "GPT2LMHeadModel") -> Any:
    ids = {"bos_token_id": 1, "eos_token_id": 2}
    config = transformers.GPT2Config(n_embd=24, n_head=3, n_layer=1, vocab_size=50, n_positions=16, **ids)
    return getattr(transformers, name)(config)


class TestConv1D:
    @pytest.mark.parametrize(
        "use",
        [
            sparsify_,
            plan,
            compact_,
            Ticket.from_model,
            lambda model: prune(model, sparsity=0.5),
            lambda model: prune(model, sparsity=0.5, granularity="head"),
            lambda model: prune(model, sparsity=0.5, filter=lambda name, linear: "attn" in name),
            lambda model: sparsify_(model, Ticket({"h.0.attn.c_attn": KEEP})),
            lambda model: sparsify_(model, Ticket({"transformer.h.0.attn.c_attn": KEEP.t()})),
        ],
    )
    @pytest.mark.parametrize("name", ["GPT2LMHeadModel", "GPT2ForSequenceClassification"])
    def test_one_message_says_so(self, use: Callable[[Any], Any], name: str) -> None:
        with pytest.raises(
            ValueError, match=r"transformer.h.0.attn.c_attn is a Conv1D of transformers"
        ) as caught:
            use(gpt2(name))
        assert "GPT-2 and other decoders made of it are not supported yet" in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_masks_of_torch(self) -> None:
        model = gpt2()
        torch_prune.l1_unstructured(model.transformer.h[0].attn.c_attn, "weight", 0.5)
        with pytest.raises(ValueError, match="c_attn is a Conv1D of transformers"):
            Ticket.from_torch_prune(model)


class TestTies:
    @pytest.mark.parametrize("use", [sparsify_, plan])
    def test_a_pair_with_zeros_and_without_a_ticket(self, use: Callable[[Any], Any]) -> None:
        model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
        model[2].weight = model[0].weight
        with torch.no_grad():
            model[0].weight[:4] = 0
        with pytest.raises(ValueError, match=r"0.weight is tied to 2.weight: packing would untie them"):
            use(model)

    def test_one_module_in_two_places(self) -> None:
        linear = nn.Linear(8, 8)
        with torch.no_grad():
            linear.weight[:4] = 0
        with pytest.raises(ValueError, match=r"0.weight is tied to 2.weight"):
            sparsify_(nn.Sequential(linear, nn.ReLU(), linear))

    def test_embeddings_and_their_decoder(self) -> None:
        model = build("BertForMaskedLM")
        with torch.no_grad():
            model.get_output_embeddings().weight[:4] = 0
        with pytest.raises(
            ValueError, match=r"decoder.weight is tied to bert.embeddings.word_embeddings.weight"
        ):
            sparsify_(model)

    def test_a_pair_to_prune(self) -> None:
        model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
        model[2].weight = model[0].weight
        with pytest.raises(ValueError, match=r"no linear layer to prune: 0.weight is tied to 2.weight"):
            prune(model, sparsity=0.5)
        with pytest.raises(ValueError, match=r"0.weight is tied to 2.weight: .*give both the same mask"):
            prune(model, sparsity=0.5, filter=lambda name, linear: name == "0")
        model.append(nn.Linear(8, 8))
        assert list(prune(model, sparsity=0.5).masks) == ["3"]
