"""Models that only look like BERT: what compaction does not know stays as it is, or is refused untouched."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparsebert import compact_, compaction_description, plan, prune, sparsify_
from sparsebert.bert import is_bert_like
from sparsebert.nn.fused_activation import FusedActivation
from tests.sparsify.models import WIDTH, answers, build, masked_answers, sparse_layers

transformers = pytest.importorskip("transformers")

BIG_BIRD = {"block_size": 2, "num_random_blocks": 1}


class WithBias(nn.Module):
    """An attention with position biases, as ALiBi has: the scores of far tokens are lower."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.query, self.key, self.value = attention.query, attention.key, attention.value
        self.dropout, self.config = attention.dropout, attention.config

    def forward(
        self, hidden_states: Tensor, attention_mask: Any = None, **kwargs: Any
    ) -> tuple[Tensor, None]:
        q, k, v = (
            layer(hidden_states).unflatten(-1, (3, 8)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        places = torch.arange(q.shape[2])
        bias = -(places - places[:, None]).abs().to(q.dtype)
        context = nn.functional.scaled_dot_product_attention(q, k, v, bias)
        return context.transpose(1, 2).flatten(2), None


class WithBiasArgument(WithBias):
    """The same, with the biases as an argument that the layer may omit."""

    def forward(  # type: ignore[override]
        self, hidden_states: Tensor, attention_mask: Any = None, bias: Any = None, **kwargs: Any
    ) -> tuple[Tensor, None]:
        q, k, v = (
            layer(hidden_states).unflatten(-1, (3, 8)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        context = nn.functional.scaled_dot_product_attention(q, k, v, bias)
        return context.transpose(1, 2).flatten(2), None


class NormAfterActivation(nn.Module):
    """A feed-forward network with a norm between its matrices: its neurons depend on each other."""

    def __init__(self, intermediate: Any) -> None:
        super().__init__()
        self.dense, self.intermediate_act_fn = intermediate.dense, intermediate.intermediate_act_fn
        self.norm = nn.LayerNorm(40)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.intermediate_act_fn(self.dense(x)))


class NormBeforeActivation(NormAfterActivation):
    """The activation does not follow the up-projection."""

    def forward(self, x: Tensor) -> Tensor:
        return self.intermediate_act_fn(self.norm(self.dense(x)))


class Swish(NormAfterActivation):
    """The up-projection's output has a second use."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.dense(x)
        return y * self.intermediate_act_fn(y)


class NormOfContext(nn.Module):
    """An output projection that normalises the context first: the heads depend on each other."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.dense, self.LayerNorm, self.norm = output.dense, output.LayerNorm, nn.LayerNorm(24)

    def forward(self, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        return self.LayerNorm(self.dense(self.norm(hidden_states)) + input_tensor)


def with_part(path: str, part: Callable[[Any], nn.Module]) -> Callable[[], Any]:
    def model() -> Any:
        bert = build("BertModel")
        for layer in bert.encoder.layer:
            parent, _, name = path.rpartition(".")
            owner = layer.get_submodule(parent)
            setattr(owner, name, part(getattr(owner, name)))
        return bert.eval()

    return model


def of_class(name: str, **options: Any) -> Callable[[], Any]:
    def model() -> Any:
        torch.manual_seed(0)
        cls = getattr(transformers, name)
        return cls(cls.config_class(**WIDTH | options)).eval()

    return model


LOOKALIKES: dict[str, Callable[[], Any]] = {
    "MegatronBERT": of_class("MegatronBertModel"),
    "BigBird, sparse": of_class("BigBirdModel", **BIG_BIRD),
    "BigBird, full": of_class("BigBirdModel", attention_type="original_full"),
    "X-MOD": of_class("XmodModel", default_language="en_XX"),
    "position biases": with_part("attention.self", WithBias),
    "position biases as an argument": with_part("attention.self", WithBiasArgument),
    "norm after the activation": with_part("intermediate", NormAfterActivation),
    "norm before the activation": with_part("intermediate", NormBeforeActivation),
    "swish": with_part("intermediate", Swish),
    "norm of the context": with_part("attention.output", NormOfContext),
}


def shuffled(model: Any) -> Any:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return model


@pytest.mark.parametrize("name", LOOKALIKES)
class TestLookalikes:
    @pytest.mark.parametrize("granularity", ["element", "head", "neuron", "head+neuron"])
    def test_they_are_sparse_without_compaction(self, name: str, granularity: str) -> None:
        model = shuffled(LOOKALIKES[name]())
        assert is_bert_like(model)
        ticket = prune(model, sparsity=0.5, granularity=granularity)
        expected = masked_answers(model, ticket)
        assert plan(model, ticket, measure=False).removal_note.startswith(
            "not compacted: encoder.layer.0 is a"
        )
        sparsify_(model, ticket, format="element")
        assert len(sparse_layers(model)) == len(ticket.masks)
        assert compaction_description(model) == {}
        for got, right in zip(answers(model), expected, strict=True):
            torch.testing.assert_close(got, right, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("granularity", ["head", "neuron"])
    def test_demanded_compaction_is_refused_and_the_model_stays(self, name: str, granularity: str) -> None:
        model = shuffled(LOOKALIKES[name]())
        ticket = prune(model, sparsity=0.5, granularity=granularity)
        modules, before = list(model.modules()), {k: v.clone() for k, v in model.state_dict().items()}
        expected = answers(copy.deepcopy(model))
        for demand in (
            lambda: compact_(model, ticket),
            lambda: sparsify_(model, ticket, compact=True),
            lambda: plan(model, ticket, compact=True),
        ):
            with pytest.raises(
                ValueError, match=r"encoder.layer.0 is a .* not a layer that can be compacted"
            ) as caught:
                demand()
            assert "\n" not in str(caught.value)
        assert all(old is new for old, new in zip(modules, model.modules(), strict=True))
        assert all(tensor.equal(before[key]) for key, tensor in model.state_dict().items())
        assert all(map(torch.equal, answers(model), expected))


class TestFusedActivations:
    @pytest.mark.parametrize("name", ["norm before the activation", "swish"])
    def test_an_activation_elsewhere_is_not_fused(self, name: str) -> None:
        model = LOOKALIKES[name]()
        ticket = prune(model, sparsity=0.5)
        sparsify_(model, ticket, format="element", compact=False)
        assert not any(isinstance(module, FusedActivation) for module in model.modules())

    @pytest.mark.parametrize("name", ["MegatronBERT", "BigBird, sparse"])
    def test_those_behind_an_up_projection_are(self, name: str) -> None:
        model = LOOKALIKES[name]()
        sparsify_(model, prune(model, sparsity=0.5), format="element")
        assert sum(isinstance(module, FusedActivation) for module in model.modules()) == 2


class TestKin:
    """Classes of other names whose layers are BERT's in all that matters are compacted as before."""

    @pytest.mark.parametrize(
        "name",
        ["CamembertModel", "XLMRobertaModel", "XLMRobertaXLModel", "BertGenerationEncoder", "ElectraModel"],
    )
    def test_they_are_compacted(self, name: str) -> None:
        model = shuffled(of_class(name)())
        ticket = prune(model, sparsity=0.5, granularity="head+neuron")
        expected = masked_answers(model, ticket)
        compact_(model, ticket)
        assert compaction_description(model)["weights"]["stored"] < 12 * 24 * 24
        torch.testing.assert_close(answers(model)[0], expected[0], rtol=1e-4, atol=1e-4)

    def test_chunked_feed_forward_networks_one_head_and_low_precision(self) -> None:
        for options in ({"chunk_size_feed_forward": 3}, {"num_attention_heads": 1}):
            model = of_class("BertModel", **options)()
            compact_(model, prune(model, sparsity=0.5, granularity="neuron"))
        for dtype in (torch.bfloat16, torch.float16, torch.float64):
            model = shuffled(build("BertModel")).to(dtype)
            compact_(model, prune(model, sparsity=0.5, granularity="head"))


def test_layers_without_the_matrices_of_the_family_are_not_bert() -> None:
    """Other makers' models borrow the prefix "bert" for layers with joined or gated matrices."""
    model = build("BertModel")
    for layer in model.encoder.layer:
        del layer.intermediate.dense
    assert not is_bert_like(model)
    ticket = prune(model, sparsity=0.5)
    assert len(ticket.masks) == 10
    with pytest.raises(ValueError, match="BertModel is none of these"):
        compact_(model, ticket)
    assert len(sparse_layers(sparsify_(model, ticket, format="element"))) == 10
