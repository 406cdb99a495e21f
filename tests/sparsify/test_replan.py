"""``replan_``: the formats of a sparse model are chosen again, in place."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import sparsebert
from sparsebert import SparseLinear, Ticket, plan, prune, replan_, sparsify_
from sparsebert.nn.fused_qkv import is_fused
from sparsebert.planning import layer_timing
from sparsebert.planning.plan import Plan
from sparsebert_kernels.timing import Paired
from tests.sparsify.models import MODELS, WIDTH, answers, build, pruned, sparse_layers

transformers = pytest.importorskip("transformers")
QUERY = "bert.encoder.layer.0.attention.self.query"


def sparse(name: str = "BertForSequenceClassification", **options: Any) -> Any:
    model, ticket = pruned(name)
    return sparsify_(model, ticket, **{"format": "element"} | options)


def formats_of(model: nn.Module) -> set[str]:
    return {layer.format for layer in sparse_layers(model).values()}


@pytest.fixture
def no_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a timing")

    monkeypatch.setattr(layer_timing, "paired", refuse)


def test_is_public() -> None:
    assert "replan_" in sparsebert.__all__
    assert sparsebert.replan_ is replan_


class TestTheModel:
    @pytest.mark.parametrize("name", MODELS)
    def test_answers_as_before_in_every_format(self, name: str) -> None:
        model = sparse(name)
        expected = answers(model)
        for format in ("dense", "vector", "csr", "compact", "bitmap", "panel", "element", "auto"):
            assert replan_(model, format=format) is model
            assert format == "auto" or formats_of(model) == {format}
            torch.testing.assert_close(answers(model), expected, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
    def test_keeps_values_and_masks_bit_for_bit(self, dtype: torch.dtype) -> None:
        model, ticket = pruned()
        sparsify_(model.to(dtype), ticket, format="element")
        before = {name: layer.weight for name, layer in sparse_layers(model).items()}
        for format in ("csr", "dense", "auto"):
            replan_(model, format=format)
        for name, layer in sparse_layers(model).items():
            assert torch.equal(layer.weight, before[name])
            assert torch.equal(layer.mask, before[name] != 0)

    def test_keeps_modules_hooks_parameters_and_flags(self) -> None:
        model = sparse()
        layers, parameters = sparse_layers(model), dict(model.named_parameters())
        calls: list[str] = []
        handle = layers[QUERY].register_forward_hook(lambda *_: calls.append("called"))
        replan_(model, format="csr")
        assert all(sparse_layers(model)[name] is layer for name, layer in layers.items())
        assert all(dict(model.named_parameters())[name] is each for name, each in parameters.items())
        answers(model)
        assert calls
        handle.remove()
        assert not layers[QUERY].training

    def test_keeps_fused_activations_and_the_shapes_of_a_compacted_model(self) -> None:
        model = build("BertModel")
        ticket = prune(model, sparsity=0.5, granularity="neuron")
        sparsify_(model, ticket, compact=True, measure=False)
        before, shapes = plan(model), [layer.weight.shape for layer in sparse_layers(model).values()]
        expected = answers(model)
        replan_(model, format="element")
        after = plan(model)
        assert [layer.weight.shape for layer in sparse_layers(model).values()] == shapes
        assert [layer.removal_note for layer in after.layers] == [
            layer.removal_note for layer in before.layers
        ]
        assert [layer.dense_nbytes for layer in after.layers] == [
            layer.dense_nbytes for layer in before.layers
        ]
        assert after.removal_note == before.removal_note
        assert any("gelu fused" in layer.reason for layer in after.layers)
        torch.testing.assert_close(answers(model), expected, rtol=1e-4, atol=1e-5)

    def test_joins_query_key_and_value_where_their_formats_allow_it(self) -> None:
        model = sparse()
        assert any(map(is_fused, model.modules()))
        replan_(model, format="csr")
        assert not any(map(is_fused, model.modules()))
        assert "share" not in str(plan(model))
        for _ in range(2):
            replan_(model, format="element")
            assert sum(map(is_fused, model.modules())) == 2
            assert plan(model).layers[0].reason == "requested; 3 layers share one input"

    def test_joins_nothing_where_sparsify_was_told_not_to(self) -> None:
        model = sparse(fuse_qkv=False)
        replan_(model, format="element")
        assert not any(map(is_fused, model.modules()))

    def test_trains_on(self) -> None:
        model = sparse("BertModel", trainable=True)
        parameters = dict(model.named_parameters())
        model(torch.arange(2, 14).view(2, 6)).last_hidden_state.square().sum().backward()
        layer = model.encoder.layer[0].intermediate.dense
        gradient = layer.packed.replace(values=layer.values.grad).to_dense()
        replan_(model, tokens=7)
        assert dict(model.named_parameters()).keys() == parameters.keys()
        assert all(each.requires_grad for each in model.parameters())
        assert torch.equal(layer.packed.replace(values=layer.values.grad).to_dense(), gradient)
        with pytest.raises(ValueError, match="format 'csr' cannot train"):
            replan_(model, format="csr")

    def test_trainable_gradients_take_the_new_layout(self) -> None:
        mask = (torch.rand(24, 40) < 0.3).repeat_interleave(4, 0)
        layer = SparseLinear(torch.randn(96, 40), mask, format="element", trainable=True)
        layer(torch.randn(3, 40)).sum().backward()
        before = layer.packed.replace(values=layer.values.grad).to_dense()
        parameter = layer.values
        replan_(layer, format="vector")
        assert layer.format == "vector"
        assert layer.values is parameter
        assert torch.equal(layer.packed.replace(values=layer.values.grad).to_dense(), before)

    def test_of_any_kind(self) -> None:
        model = nn.Sequential(nn.Linear(80, 96), nn.Sequential(nn.Linear(96, 96)))
        masks = {"0": torch.rand(96, 80) < 0.1, "1.0": torch.rand(96, 96) < 0.1}
        sparsify_(model, Ticket(masks), format="csr")
        replan_(model, format="element")
        assert formats_of(model) == {"element"}
        replan_(model[1], format="csr")
        assert [layer.format for layer in sparse_layers(model).values()] == ["element", "csr"]
        by_hand = SparseLinear(torch.randn(8, 8), torch.rand(8, 8) < 0.5, format="csr")
        replan_(by_hand, format="element")
        assert (by_hand.format, by_hand.plan.key) == ("element", "")

    def test_is_saved_with_its_new_plan(self, tmp_path: Path) -> None:
        model = sparse("BertModel", format="csr", tokens=64)
        replan_(model, format="element", tokens=7)
        model.save_pretrained(tmp_path)
        loaded = transformers.AutoModel.from_pretrained(tmp_path)
        assert formats_of(loaded) == {"element"}
        assert {layer.tokens for layer in plan(loaded).layers} == {7}
        assert loaded.config.quantization_config.format == "element"
        again = copy.deepcopy(loaded)
        assert torch.equal(answers(replan_(again, format="element"))[0], answers(loaded)[0])


class TestOptions:
    @pytest.mark.usefixtures("no_timing")
    def test_measure_false_times_nothing(self) -> None:
        model = sparse(measure=False)
        replan_(model, measure=False)
        assert {layer.decided_by for layer in plan(model).layers} <= {"cost model", ""}
        dense, ticket = pruned()
        sparsify_(dense, ticket, measure=False)
        expected = plan(*pruned(), measure=False)
        assert [layer.format for layer in plan(dense).layers] == [layer.format for layer in expected.layers]

    def test_tokens_are_those_of_the_plan_unless_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model = sparse(tokens=9)
        replan_(model, measure=False)
        assert {layer.tokens for layer in plan(model).layers} == {9}
        replan_(model, tokens=33, measure=False)
        assert {layer.tokens for layer in plan(model).layers} == {33}

    @pytest.mark.parametrize(("device", "tokens"), [("cpu", 128), ("cuda", 4096)])
    def test_tokens_without_a_plan_are_the_default_of_the_device(
        self, device: str, tokens: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        by_hand = SparseLinear(torch.randn(8, 8), torch.rand(8, 8) < 0.5, format="csr")
        monkeypatch.setattr(SparseLinear, "device", property(lambda layer: torch.device(device)))

        def show(format: str, tokens: int) -> None:
            raise LookupError(tokens)

        monkeypatch.setattr("sparsebert.replan.check_options", show)
        with pytest.raises(LookupError, match=f"^{tokens}$"):
            replan_(by_hand)

    def test_times_the_formats_here(self, monkeypatch: pytest.MonkeyPatch) -> None:
        mask = torch.rand(768, 768) < 0.1
        model = sparsify_(nn.Sequential(nn.Linear(768, 768)), Ticket({"0": mask}), format="dense")

        def paired(mine: Callable[[], object], other: Callable[[], object]) -> Paired:
            return Paired(mine=1e-3, other=3e-3, speedup=3.0, rounds=7)

        monkeypatch.setattr(layer_timing, "paired", paired)
        (layer,) = plan(replan_(model)).layers
        assert (layer.decided_by, layer.measured_us, layer.dense_us) == ("timing", 1e3, 3e3)
        assert layer.reason == "measured 3.0x dense"
        assert layer.format == model[0].format != "dense"

    def test_filter_selects_layers(self) -> None:
        model = sparse()
        replan_(model, format="csr", filter=lambda name, layer: name == QUERY)
        assert {name for name, layer in sparse_layers(model).items() if layer.format == "csr"} == {QUERY}
        assert sum(map(is_fused, model.modules())) == 1

    def test_a_plan_is_followed_to_the_letter(self) -> None:
        model = sparse("BertModel")
        made = plan(model)
        wanted = Plan(
            (replace(made.layers[0], format="vector", block=(2, 1)), *made.layers[1:]), made.machine
        )
        replan_(model, format=wanted)
        query = model.encoder.layer[0].attention.self.query
        assert (query.format, query.packed.vector_rows) == ("vector", 2)
        with pytest.raises(ValueError, match="the plan was made for another model or ticket"):
            replan_(model, format=Plan(made.layers[1:], made.machine))

    def test_a_plan_made_with_a_ticket_is_followed_without_it(self) -> None:
        """Keys of a ticket lack the name of the base model, which full paths have."""
        torch.manual_seed(0)
        model = transformers.MPNetForMaskedLM(transformers.MPNetConfig(**WIDTH)).eval()
        ticket = prune(model, "magnitude", sparsity=0.7)
        zeros = ticket.apply_(copy.deepcopy(model))
        made = plan(sparsify_(model, ticket, format="element"))
        replan_(model, format="csr")
        replan_(model, format=made)
        assert formats_of(model) == {"element"}
        by_path = plan(sparsify_(zeros, format=made))
        assert formats_of(zeros) == {"element"}
        other = transformers.MPNetForMaskedLM(transformers.MPNetConfig(**WIDTH)).eval()
        sparsify_(other, ticket, format=by_path)
        assert formats_of(other) == {"element"}


class TestRefusals:
    def refused(self, model: Any, **options: Any) -> str:
        before = {name: layer.recipe for name, layer in sparse_layers(model).items()}
        plans = [layer.plan for layer in sparse_layers(model).values()]
        expected = answers(model)
        with pytest.raises(ValueError, match=r"\w") as caught:
            replan_(model, **options)
        assert {name: layer.recipe for name, layer in sparse_layers(model).items()} == before
        assert [layer.plan for layer in sparse_layers(model).values()] == plans
        assert all(map(torch.equal, answers(model), expected))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def test_leave_the_model_as_it_was(self) -> None:
        model = sparse()
        for options, line in (
            ({"format": "vektor"}, "did you mean 'vector'"),
            ({"tokens": 0}, "tokens must be a positive integer, got 0"),
            ({"measure": "no"}, "measure must be True or False, got 'no'"),
            ({"filter": "query"}, "filter must be a function of a layer's name"),
            ({"filter": lambda name, layer: False}, "no sparse layer picked by the filter"),
        ):
            assert line in self.refused(model, **options)
        assert "no sparse layer to choose a format for: call sparsify_ first" in self.refused(build())

    def test_a_failure_in_the_last_layer_leaves_the_first_ones(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model = sparse()
        *_, last = sparse_layers(model).values()
        pack = SparseLinear._pack

        def fail(layer: SparseLinear, *rest: Any) -> Any:
            if layer is last:
                raise ValueError("no room")
            return pack(layer, *rest)

        monkeypatch.setattr(SparseLinear, "_pack", fail)
        assert self.refused(model, format="csr") == "no room"

    def test_what_is_no_model(self) -> None:
        for wrong, line in (("bert", "an nn.Module, got a str"), (transformers.BertModel, "an instance")):
            with pytest.raises(ValueError, match=line):
                replan_(wrong)  # type: ignore[arg-type]

    def test_a_model_on_the_meta_device(self) -> None:
        with pytest.raises(ValueError, match="meta device"):
            replan_(sparse().to("meta"), format="csr")
