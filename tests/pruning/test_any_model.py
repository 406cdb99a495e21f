"""``prune`` on models that are not BERT-like: by default, by filter, and by units that a run locates."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparsebert import Ticket, prune, sparsify_
from sparsebert.bert import resolve
from sparsebert.pruning import random_like
from tests.sparsify.models import WIDTH, build, sparse_layers

transformers = pytest.importorskip("transformers")

T5 = {"d_model": 24, "d_kv": 8, "d_ff": 40, "num_layers": 2, "num_heads": 3, "vocab_size": 50}
MODERN = {"pad_token_id": 0, "bos_token_id": 1, "cls_token_id": 1, "eos_token_id": 2, "sep_token_id": 2}
RELATIVE = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
GROUPED = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
IMAGES = {key: WIDTH[key] for key in WIDTH if key not in ("vocab_size", "max_position_embeddings")}
IMAGES |= {"image_size": 16, "patch_size": 4}
OPT = {"hidden_size": 24, "num_attention_heads": 3, "ffn_dim": 40, "num_hidden_layers": 2, "vocab_size": 50}

# Class -> configuration; matrices in the stacks of layers, with heads, heads of each, and with neurons.
MODELS: dict[str, tuple[dict[str, Any], int, int, int, int]] = {
    "MPNetModel": (WIDTH, 12, 8, 3, 4),
    "ModernBertModel": (WIDTH | MODERN, 8, 4, 3, 4),
    "DebertaModel": (WIDTH | RELATIVE, 12, 8, 3, 4),
    "DebertaV2Model": (WIDTH | RELATIVE, 16, 12, 3, 4),
    "AlbertModel": (WIDTH | {"embedding_size": 16}, 6, 4, 3, 2),
    "Data2VecTextModel": (WIDTH, 12, 8, 3, 4),
    "ErnieModel": (WIDTH, 12, 8, 3, 4),
    "RoFormerModel": (WIDTH, 12, 8, 3, 4),
    "T5EncoderModel": (T5, 12, 8, 3, 4),
    "CLIPTextModel": (WIDTH | {"bos_token_id": 1, "eos_token_id": 2}, 12, 8, 3, 4),
    "OPTModel": (OPT | {"max_position_embeddings": 32, "word_embed_proj_dim": 24}, 12, 8, 3, 4),
    "LlamaModel": (WIDTH | GROUPED, 14, 8, 2, 6),
    "GPTNeoXModel": (WIDTH, 8, 4, 3, 4),
    "ViTModel": (IMAGES, 12, 8, 3, 4),
}
TOKENS = torch.arange(3, 15).view(2, 6)


def model_of(name: str) -> Any:
    torch.manual_seed(0)
    cls = getattr(transformers, name)
    model = cls(cls.config_class(**MODELS[name][0])).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2 + (0.5 if parameter.dim() == 1 else 0))
    return model


def answer(model: Any) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, 3, 16, 16, generator=generator)
    with torch.no_grad():
        return model(images if model.main_input_name == "pixel_values" else TOKENS)[0]


def masked(model: Any, ticket: Ticket) -> Tensor:
    return answer(ticket.apply_(copy.deepcopy(model)))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("granularity", ["element", "head", "neuron"])
def test_pruned_and_sparse_outputs_are_those_of_the_masked_model(name: str, granularity: str) -> None:
    model = model_of(name)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    ticket = prune(model, "magnitude", sparsity=0.5, granularity=granularity)
    assert all(tensor.equal(before[key]) for key, tensor in model.state_dict().items())
    _, matrices, of_heads, _, of_neurons = MODELS[name]
    assert len(ticket.masks) == {"element": matrices, "head": of_heads, "neuron": of_neurons}[granularity]
    assert 0.3 < ticket.sparsity < 0.7
    assert not torch.allclose(answer(model), masked(model, ticket), atol=1e-3)
    sparse = sparsify_(copy.deepcopy(model), ticket, format="element")
    assert len(sparse_layers(sparse)) == len(ticket.masks)
    torch.testing.assert_close(answer(sparse), masked(model, ticket), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_a_pruned_head_leaves_no_trace_and_the_others_stay(name: str) -> None:
    """Zeros in the columns of the output projection alone have the effect of the whole ticket."""
    model = model_of(name)
    ticket = prune(model, "magnitude", sparsity=0.5, granularity="head", scope="matrix")
    heads = MODELS[name][3]
    readers = {}
    for key, mask in ticket.masks.items():
        columns = mask.all(0)
        if mask.any(0).equal(columns):  # whole columns: the output projection
            readers[key] = mask
            assert int(columns.sum()) * heads == round(heads / 2) * len(columns)
        else:
            assert mask.any(1).equal(mask.all(1))
    assert readers
    torch.testing.assert_close(masked(model, Ticket(readers)), masked(model, ticket), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_a_pruned_neuron_leaves_no_trace(name: str) -> None:
    model = model_of(name)
    ticket = prune(model, "magnitude", sparsity=0.5, granularity="neuron", scope="matrix")
    readers = {key: mask for key, mask in ticket.masks.items() if mask.any(0).equal(mask.all(0))}
    assert 2 * len(readers) <= len(ticket.masks)
    torch.testing.assert_close(masked(model, Ticket(readers)), masked(model, ticket), rtol=1e-4, atol=1e-4)


class TestFilter:
    def test_it_picks_among_all_linear_layers_of_any_model(self) -> None:
        model = model_of("MPNetModel")
        ticket = prune(model, sparsity=0.5, filter=lambda name, linear: ".attn." in name)
        assert list(ticket.masks) == [
            f"encoder.layer.{i}.attention.attn.{part}" for i in (0, 1) for part in "qkvo"
        ]
        assert list(prune(model, sparsity=0.5, filter=lambda name, linear: "pooler" in name).masks) == [
            "pooler.dense"
        ]
        narrow = prune(model, sparsity=0.5, filter=lambda name, linear: linear.in_features == 40)
        assert len(narrow.masks) == 2

    def test_it_restricts_a_bert(self) -> None:
        model = build("BertForSequenceClassification")
        ticket = prune(model, sparsity=0.5, filter=lambda name, linear: "layer.1" in name)
        assert (len(ticket.masks), ticket.sparsity) == (6, 0.5)
        heads = prune(
            model, sparsity=0.3, granularity="head", filter=lambda name, linear: "attention" in name
        )
        assert heads == prune(model, sparsity=0.3, granularity="head")
        assert list(prune(model, sparsity=0.5, filter=lambda name, linear: "classifier" in name).masks) == [
            "classifier"
        ]

    def test_a_part_of_a_unit_is_refused(self) -> None:
        model = build("BertForSequenceClassification")
        with pytest.raises(ValueError, match=r"self.query without .*self.key, but each head"):
            prune(model, sparsity=0.5, granularity="head", filter=lambda name, linear: "query" in name)
        with pytest.raises(ValueError, match="no neurons among the layers to prune"):
            prune(model, sparsity=0.5, granularity="neuron", filter=lambda name, linear: "query" in name)

    @pytest.mark.parametrize(
        ("options", "line"),
        [
            (
                {"filter": lambda name, linear: False},
                "the filter picks none of the linear layers of MPNetModel",
            ),
            ({"filter": "attn"}, "filter must be a function of a layer's name and the layer, got 'attn'"),
            (
                {"filter": lambda name, linear: True, "include_pooler": True},
                "a filter decides about the pooler",
            ),
            ({"include_pooler": True}, "has no pooler to include: it is not a BERT"),
        ],
    )
    def test_what_makes_no_sense_is_refused(self, options: dict[str, Any], line: str) -> None:
        with pytest.raises(ValueError, match=line):
            prune(model_of("MPNetModel"), sparsity=0.5, **options)


class TestWhichLayers:
    def test_a_head_and_its_base_model_have_one_ticket(self) -> None:
        config = transformers.MPNetConfig(**WIDTH)
        model = transformers.MPNetForSequenceClassification(config)
        ticket = prune(model, sparsity=0.5)
        assert len(ticket.masks) == 12
        assert ticket == prune(model.mpnet, sparsity=0.5)
        assert (
            ticket.metadata["model"]["weights"]
            == prune(model.mpnet, sparsity=0.5).metadata["model"]["weights"]
        )
        assert ticket == prune(nn.DataParallel(model), sparsity=0.5)
        ticket.apply_(model)
        assert Ticket.from_model(model.mpnet) == ticket == Ticket.from_model(model)
        assert len(sparse_layers(sparsify_(model.mpnet, ticket, format="element"))) == 12

    def test_a_model_without_stacks_is_pruned_whole(self) -> None:
        model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        assert list(prune(model, sparsity=0.5).masks) == ["0", "2"]
        batch = {"input": torch.randn(3, 8)}
        ticket = prune(model, sparsity=0.5, granularity="neuron", data=[batch])
        assert ticket.masks["0"].any(1).equal(ticket.masks["2"].any(0))
        with pytest.raises(ValueError, match=r"made-up inputs .*pass data=\[batch\]"):
            prune(model, sparsity=0.5, granularity="neuron")

    def test_torch_s_own_encoder_layers(self) -> None:
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        ticket = prune(model, sparsity=0.5)
        assert list(ticket.masks) == [f"layers.{i}.linear{j}" for i in (0, 1) for j in (1, 2)]

    def test_empty_layers_and_other_subclasses_of_linear(self) -> None:
        class Router(nn.Linear):
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(x).softmax(-1)

        model = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 0), "c": Router(4, 2)})
        assert list(prune(model, sparsity=0.5).masks) == ["a"]

    def test_a_model_without_linear_layers(self) -> None:
        with pytest.raises(ValueError, match="Conv2d has no linear layer to prune"):
            prune(nn.Conv2d(3, 3, 3), sparsity=0.5)


class TestUnits:
    def test_scopes_and_kinds_together(self) -> None:
        model = model_of("T5EncoderModel")
        for scope in ("global", "matrix", "type", "heads-by-layer"):
            ticket = prune(model, sparsity=0.4, granularity="head+neuron", scope=scope)
            assert len(ticket.masks) == 12
        shares = {"head": 0.34, "neuron": 0.75}
        ticket = prune(model, sparsity=shares, granularity="head+neuron", scope="type")
        up = ticket.masks["encoder.block.0.layer.1.DenseReluDense.wi"]
        assert float(up.any(1).float().mean()) == pytest.approx(0.25, abs=0.3)

    def test_whole_mlps_are_removed_with_their_biases(self) -> None:
        model = model_of("MPNetModel")
        ticket = prune(model, sparsity=0.5, granularity="mlp")
        assert len(ticket.removed) == 2
        removed = ticket.removed[1]
        assert not resolve(ticket.apply_(model), removed).bias.any()

    def test_importance_of_heads_and_neurons(self) -> None:
        torch.manual_seed(0)
        model = transformers.MPNetForSequenceClassification(transformers.MPNetConfig(**WIDTH))
        batch = {"input_ids": TOKENS, "labels": torch.tensor([0, 1])}
        ticket = prune(model, "head-importance", sparsity=0.5, granularity="head+neuron", data=[batch])
        assert len(ticket.masks) == 12
        assert prune(model, "snip", sparsity=0.5, data=[batch]).sparsity == 0.5

    def test_random_units_of_the_same_number(self) -> None:
        model = model_of("ModernBertModel")
        ticket = prune(model, sparsity=0.5, granularity="head")
        random = random_like(ticket, seed=3, model=model)
        assert random.sparsity == ticket.sparsity
        assert random != ticket

    def test_an_earlier_ticket_is_pruned_further(self) -> None:
        model = model_of("ModernBertModel")
        first = prune(model, sparsity=0.3, granularity="neuron")
        second = prune(model, sparsity=0.6, granularity="neuron", ticket=first)
        assert second & first == second
        assert second.sparsity > first.sparsity

    def test_a_model_without_values(self) -> None:
        with torch.device("meta"):
            model = transformers.MPNetModel(transformers.MPNetConfig(**WIDTH))
        for granularity in ("element", "head"):
            with pytest.raises(ValueError, match="has no values: load its weights first"):
                prune(model, sparsity=0.5, granularity=granularity)

    def test_the_model_keeps_hooks_modes_and_random_numbers(self) -> None:
        model = model_of("RoFormerModel")
        model.train()
        calls: list[nn.Module] = []
        model.encoder.layer[0].register_forward_hook(lambda module, *_: calls.append(module))
        state = torch.get_rng_state()
        prune(model, sparsity=0.5, granularity="head")
        assert not calls
        assert model.training
        assert torch.get_rng_state().equal(state)
