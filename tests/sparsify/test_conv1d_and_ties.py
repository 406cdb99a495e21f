"""``Conv1D`` of GPT-2, pruned and packed as the linear layer it is; tied weights, named with their reason."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from sparsebert import Ticket, compact_, densify_, plan, prune, prune_, sparsify_
from tests import decoders
from tests.sparsify.models import build, sparse_layers

transformers = pytest.importorskip("transformers")

KEYS = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(decoders.batches(1)[0]["input_ids"]).logits


class TestConv1D:
    def test_masks_have_the_layout_of_a_linear_layer(self) -> None:
        """[out, in], although the parameter is [in, out]; the kept weights are the largest."""
        model = decoders.gpt2()
        ticket = prune(model, sparsity=0.75, scope="matrix")
        assert list(ticket.masks) == [f"h.{layer}.{key}" for layer in range(2) for key in KEYS]
        mask, weight = ticket.masks["h.0.mlp.c_fc"], model.transformer.h[0].mlp.c_fc.weight
        assert mask.shape == (96, 24)
        assert weight.shape == (24, 96)
        kept, pruned = weight.t()[mask].abs(), weight.t()[~mask].abs()
        assert kept.min() >= pruned.max()

    def test_a_square_matrix_is_not_turned(self) -> None:
        model = decoders.gpt2()
        mask = torch.ones(24, 24, dtype=torch.bool)
        mask[3] = False
        Ticket({"h.0.attn.c_proj": mask}).apply_(model)
        weight = model.transformer.h[0].attn.c_proj.weight
        assert not weight[:, 3].any()
        assert int((weight == 0).sum()) == 24

    @pytest.mark.parametrize("granularity", ["element", "4x1", "2:4", "row", "column", "head", "neuron"])
    @pytest.mark.parametrize("method", ["magnitude", "snip"])
    def test_every_granularity(self, granularity: str, method: str) -> None:
        """The sparse model answers as the masked dense one."""
        model = decoders.gpt2()
        ticket = prune(
            model, method, sparsity=0.5, granularity=granularity, data=decoders.batches(), scope="matrix"
        )
        masked = ticket.apply_(copy.deepcopy(model))
        sparse = sparsify_(model, ticket, format="element")
        assert sparse_layers(sparse)
        torch.testing.assert_close(logits(sparse), logits(masked))

    def test_gradients_are_those_of_the_parameter(self) -> None:
        """Pruning by |w dL/dw|, compared with the gradients that autograd leaves in the parameters."""
        model = decoders.gpt2()
        ticket = prune(model, "snip", sparsity=0.5, scope="matrix", data=decoders.batches(1))
        model(**decoders.batches(1)[0]).loss.backward()
        weight = model.transformer.h[1].mlp.c_proj.weight
        scores = (weight * weight.grad).abs().t()
        mask = ticket.masks["h.1.mlp.c_proj"]
        assert scores[mask].min() >= scores[~mask].max()

    def test_zeros_without_a_ticket(self) -> None:
        model = decoders.gpt2()
        ticket = prune(model, sparsity=0.5)
        masked = ticket.apply_(copy.deepcopy(model))
        assert Ticket.from_model(masked).digest == ticket.digest
        assert {layer.key for layer in plan(masked, measure=False).layers} == {
            f"transformer.{key}" for key in ticket.masks
        }
        torch.testing.assert_close(logits(sparsify_(copy.deepcopy(masked))), logits(masked))

    def test_state_dict_and_densify_keep_the_layout(self) -> None:
        model = decoders.gpt2()
        ticket = prune(model, sparsity=0.5)
        masked = ticket.apply_(copy.deepcopy(model))
        sparse = sparsify_(copy.deepcopy(model), ticket, format="element")
        for states in (sparse.state_dict(), densify_(copy.deepcopy(sparse)).state_dict()):
            assert states.keys() == masked.state_dict().keys()
            for name, tensor in masked.state_dict().items():
                assert torch.equal(states[name], tensor), name
        for parameter in sparse.parameters():
            parameter.data.zero_()
        sparse.load_state_dict(masked.state_dict())
        torch.testing.assert_close(logits(sparse), logits(masked))
        dense = densify_(sparse).transformer.h[0].mlp.c_fc
        assert type(dense) is type(model.transformer.h[0].mlp.c_fc)
        assert (dense.nf, dense.nx) == (96, 24)

    @pytest.mark.parametrize("method", ["wanda", "sparsegpt", "alps", "obert"])
    def test_calibrated_pruning(self, method: str) -> None:
        """The weights that stay are written into the ``Conv1D``, and it is a ``Conv1D`` again."""
        model = decoders.gpt2()
        before = copy.deepcopy(model)
        ticket = prune_(model, method, data=decoders.batches(16), sparsity=0.5)
        for key, mask in ticket.masks.items():
            layer = model.get_submodule(f"transformer.{key}")
            assert type(layer).__name__ == "Conv1D"
            assert not layer.weight.t()[~mask].any()
        assert 0.4 < ticket.sparsity < 0.6
        kept = before.transformer.h[1].mlp.c_fc.weight.t()[ticket.masks["h.1.mlp.c_fc"]]
        changed = model.transformer.h[1].mlp.c_fc.weight.t()[ticket.masks["h.1.mlp.c_fc"]]
        assert torch.equal(kept, changed) == (method == "wanda")

    def test_masks_of_torch(self) -> None:
        model = decoders.gpt2()
        layer = model.transformer.h[0].attn.c_attn
        torch_prune.l1_unstructured(layer, "weight", 0.5)
        ticket = Ticket.from_torch_prune(model)
        ((key, mask),) = ticket.masks.items()
        assert key == "transformer.h.0.attn.c_attn"
        assert torch.equal(mask, layer.weight_mask.t().bool())
        with pytest.raises(ValueError, match=r"c_attn.weight is not a plain parameter"):
            sparsify_(model, ticket)

    def test_one_conv1d_in_two_places(self) -> None:
        model = decoders.gpt2()
        ticket = prune(model, sparsity=0.5, filter=lambda name, linear: name.endswith("0.mlp.c_fc"))
        model.transformer.h[1].mlp.c_fc = model.transformer.h[0].mlp.c_fc
        with torch.no_grad():
            model.transformer.h[0].mlp.c_fc.weight[:, 0] = 0
        with pytest.raises(ValueError, match=r"h.0.mlp.c_fc.weight is tied to transformer.h.1.mlp.c_fc"):
            sparsify_(model, filter=lambda name, linear: name.endswith("mlp.c_fc"))
        with pytest.raises(ValueError, match=r"h.0.mlp.c_fc.weight is tied to transformer.h.1.mlp.c_fc"):
            sparsify_(model, ticket)

    def test_compaction_says_which_models_it_takes(self) -> None:
        with pytest.raises(
            ValueError, match="expected a BERT, RoBERTa, DistilBERT or ELECTRA model"
        ) as caught:
            compact_(decoders.gpt2())
        assert "\n" not in str(caught.value)

    def test_a_ticket_in_the_layout_of_the_parameter_is_refused(self) -> None:
        mask = torch.ones(24, 72, dtype=torch.bool)
        with pytest.raises(ValueError, match=r"h.0.attn.c_attn.weight is 24x72 in the ticket and 72x24"):
            sparsify_(decoders.gpt2(), Ticket({"h.0.attn.c_attn": mask}))


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
