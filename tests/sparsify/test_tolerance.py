"""``tolerance`` and ``fuse``: what they allow, what stays exact, and what the plan says."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparsebert import SparseLinear, Ticket, densify_, fuse_, plan, prune, replan_, sparsify_, unfuse_
from sparsebert.nn.fused_encoder import FusedEncoder
from sparsebert_kernels import cpu
from sparsebert_kernels.cpu.encoder import has_engine
from tests.sparsify.models import TOKENS, WIDTH, build, pruned, sparse_layers

transformers = pytest.importorskip("transformers")
native = pytest.mark.skipif(not cpu.available(), reason="no native library")
paired = pytest.mark.skipif(not has_engine(torch.bfloat16), reason="no paired engine here")
# Precision -> the largest error of a layer, relative to its largest output.
ERRORS = {"bf16": 0.03, "int8": 0.1}
LOWERED = [
    ("element", "bf16", {}),
    ("vector", "bf16", {"vector_rows": 4}),
    ("dense", "bf16", {}),
    ("compact", "bf16", {}),
    ("row_panel", "bf16", {"block": (32, 2)}),
    ("row_panel", "int8", {"block": (16, 4)}),
    ("vector_int8", "int8", {"vector_rows": 4}),
]


def is_fused(model: nn.Module) -> bool:
    return any(isinstance(module, FusedEncoder) for module in model.modules())


def states(model: Any) -> Tensor:
    with torch.inference_mode():
        found: Tensor = model(TOKENS)[0]
    return found


def model_of_panels() -> tuple[Any, Ticket]:
    """A model whose matrices are large enough for row panels to pay, and a ticket of them."""
    torch.manual_seed(0)
    width = {"hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 4}
    model = transformers.BertModel(transformers.BertConfig(**WIDTH | width)).eval()
    return model, prune(model, sparsity=0.9, granularity="panel(32,2)")


@pytest.mark.parametrize(("format", "precision", "options"), LOWERED)
class TestALayerInALowerPrecision:
    def made(self, format: str, precision: str, options: dict[str, Any]) -> tuple[SparseLinear, nn.Linear]:
        linear = nn.Linear(80, 96)
        mask = torch.rand(96, 80) < 0.3
        mask[:8] = False
        layer = SparseLinear.from_linear(linear, mask, format, precision=precision, **options)
        with torch.no_grad():
            linear.weight[~mask] = 0
        return layer, linear

    def test_answers_near_and_holds_its_weights_exactly(
        self, format: str, precision: str, options: dict[str, Any]
    ) -> None:
        layer, linear = self.made(format, precision, options)
        x = torch.randn(5, 80)
        for each in (layer, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), layer.double().float()):
            with torch.inference_mode():
                y = each(x)
            expected = linear(x)
            assert y.dtype == torch.float32
            assert 0 < (y - expected).abs().max() <= ERRORS[precision] * expected.abs().max()
            assert torch.equal(each.weight, linear.weight)
            assert torch.equal(each.mask, linear.weight != 0)
            assert each.precision == precision
            assert torch.equal(each.state_dict()["weight"], linear.weight)

    def test_changes_its_format_and_back(self, format: str, precision: str, options: dict[str, Any]) -> None:
        layer, linear = self.made(format, precision, options)
        layer.prepare_format("element")()
        assert (layer.precision, layer.values.dtype) == ("", torch.float32)
        torch.testing.assert_close(layer(torch.ones(1, 80)), linear(torch.ones(1, 80)))
        layer.prepare_format(format, precision=precision, **options)()
        assert torch.equal(layer.weight, linear.weight)

    def test_takes_a_checkpoint(self, format: str, precision: str, options: dict[str, Any]) -> None:
        layer, linear = self.made(format, precision, options)
        layer.load_state_dict({"weight": 2 * linear.weight.detach(), "bias": linear.bias.detach()})
        assert torch.equal(layer.weight, 2 * linear.weight)
        assert layer.precision == precision

    def test_lets_gradients_through(self, format: str, precision: str, options: dict[str, Any]) -> None:
        layer, linear = self.made(format, precision, options)
        x = torch.randn(3, 80, requires_grad=True)
        layer(x).sum().backward()
        expected = linear.weight.sum(0)
        assert x.grad is not None
        assert (x.grad - expected).abs().max() <= ERRORS[precision] * expected.abs().max()


class TestTolerance:
    @pytest.mark.parametrize("tolerance", ["bf16", "int8"])
    def test_changes_neither_parameters_nor_dtypes(self, tolerance: str) -> None:
        model, ticket = model_of_panels()
        masked = ticket.apply_(copy.deepcopy(model))
        sparsify_(model, ticket, tolerance=tolerance, measure=False, compact=False)
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
        found, expected = states(model), states(masked)
        assert found.dtype == torch.float32
        assert (found - expected).abs().mean() < 0.02 * expected.abs().mean()
        for name, layer in sparse_layers(model).items():
            assert torch.equal(layer.weight, masked.get_submodule(name).weight)
        densify_(model)
        assert torch.equal(states(model), states(masked))

    def test_of_fp32_never_rounds(self) -> None:
        model, ticket = model_of_panels()
        sparsify_(model, ticket, measure=False)
        assert {layer.precision for layer in sparse_layers(model).values()} == {""}

    def test_is_in_the_plan(self) -> None:
        model, ticket = model_of_panels()
        made = plan(model, ticket, tolerance="bf16", fuse=False, measure=False)
        for layer in made.layers:
            assert layer.tolerance == "bf16"
            assert layer.dense_form in ("oneDNN bf16", "oneDNN fp32", "torch fp32", "torch bf16")
            if layer.precision:
                assert "; bf16 predicted" in layer.reason
        header, first = str(made).splitlines()[:2]
        assert "precision" in header.split()
        assert made.layers[0].precision or made.layers[0].dtype in first.split()
        assert made.to_dict()["layers"][0]["tolerance"] == "bf16"

    def test_of_a_bf16_model_is_fp32s(self) -> None:
        model, ticket = model_of_panels()
        model.bfloat16()
        lower, plain = (plan(model, ticket, tolerance=each, measure=False) for each in ("bf16", "fp32"))
        assert {layer.precision for layer in (*lower.layers, *plain.layers)} == {""}

    def test_stays_in_a_plan_made_again(self) -> None:
        model, ticket = model_of_panels()
        sparsify_(model, ticket, tolerance="bf16", measure=False)
        before = plan(model)
        replan_(model, measure=False)
        assert [layer.label for layer in plan(model).layers] == [layer.label for layer in before.layers]
        replan_(model, measure=False, tolerance="fp32")
        assert {layer.precision for layer in sparse_layers(model).values()} == {""}

    @pytest.mark.parametrize("tolerance", ["bf15", None, 8, ["bf16"]])
    def test_refuses_unknown_values(self, tolerance: Any) -> None:
        model, ticket = pruned("BertModel")
        for call in (sparsify_, plan):
            with pytest.raises(ValueError, match=r"^unknown tolerance .*; known: bf16, fp32, int8"):
                call(model, ticket, tolerance=tolerance)
        with pytest.raises(ValueError, match=r"^unknown tolerance"):
            fuse_(model, tolerance=tolerance)
        assert not sparse_layers(model)

    def test_without_the_native_library_says_what_is_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("sparsebert_kernels.cpu.native.why_unavailable", lambda: "not built")
        monkeypatch.setattr("sparsebert_kernels.cpu.warn_if_unavailable", lambda: None)
        model, ticket = pruned("BertModel")
        made = plan(model, ticket, tolerance="int8", measure=False)
        assert made.encoder is not None
        assert made.encoder.reason == "not fused: the native library is missing (not built)"
        assert made.machine.endswith("; no kernels for int8 here")
        sparsify_(model, ticket, tolerance="int8", measure=False)
        assert not is_fused(model)


@native
class TestFuse:
    def test_is_the_default_where_it_is_predicted_to_be_faster(self) -> None:
        model, ticket = pruned()
        expected = states(ticket.apply_(copy.deepcopy(model)))
        assert sparsify_(model, ticket, measure=False) is model
        assert is_fused(model)
        assert str(plan(model).encoder).startswith("one native call (fp32 engine); predicted ")
        assert "encoder: one native call (fp32 engine)" in str(plan(model))
        torch.testing.assert_close(states(model), expected)

    def test_is_timed(self) -> None:
        model, ticket = pruned()
        before = [module.training for module in model.modules()]
        sparsify_(model, ticket)
        found = plan(model).encoder
        assert found is not None
        assert found.decided_by == "timing" or found.busy
        assert found.busy or found.measured_us.keys() == {"layers", "fp32"}
        assert [module.training for module in model.modules()][: len(before)] == before

    @pytest.mark.parametrize("fuse", [True, False])
    def test_may_be_demanded_or_forbidden(self, fuse: bool) -> None:
        model, ticket = pruned("DistilBertForQuestionAnswering")
        sparsify_(model, ticket, fuse=fuse)
        assert is_fused(model) == fuse
        assert "requested" in str(plan(model).encoder)

    def test_leaves_out_models_that_compare_positions(self) -> None:
        model, ticket = pruned("DistilBertForQuestionAnswering")
        sparsify_(model, ticket, measure=False)
        assert not is_fused(model)
        assert "answers to questions compare all positions" in str(plan(model).encoder)

    def test_leaves_out_encoders_with_hooks(self) -> None:
        model, ticket = pruned("BertModel")
        model.encoder.layer[0].output.register_forward_hook(lambda *_: None)
        sparsify_(model, ticket, measure=False)
        assert not is_fused(model)
        assert "not fused: a module of the encoder has hooks" in str(plan(model).encoder)

    def test_leaves_out_layers_that_train(self) -> None:
        model, ticket = pruned("BertModel")
        sparsify_(model, ticket, format="element", trainable=True)
        assert not is_fused(model)
        with pytest.raises(
            ValueError, match=r"^the encoder cannot be fused: trainable layers record gradients$"
        ):
            sparsify_(build("BertModel"), ticket, trainable=True, fuse=True)

    def test_says_why_it_cannot(self) -> None:
        model, ticket = pruned("BertModel")
        with pytest.raises(
            ValueError, match=r"^the encoder cannot be fused: no engine takes models in torch.float16"
        ):
            sparsify_(copy.deepcopy(model).half(), ticket, fuse=True)
        with pytest.raises(
            ValueError, match=r"^the encoder cannot be fused: a parameter is torch.float32 on meta"
        ):
            sparsify_(copy.deepcopy(model).to("meta"), ticket, fuse=True)
        with pytest.raises(ValueError, match=r"^fuse must be True, False or None, got 'yes'"):
            sparsify_(model, ticket, fuse="yes")  # type: ignore[arg-type]
        linear = nn.Sequential(nn.Linear(8, 8))
        with pytest.raises(
            ValueError, match=r"^the encoder cannot be fused: Sequential has no encoder of the families BERT"
        ):
            sparsify_(linear, prune(linear, sparsity=0.5), fuse=True)
        assert not sparse_layers(model)

    def test_survives_copies_and_ends_with_densify(self) -> None:
        model, ticket = pruned("BertModel")
        sparsify_(model, ticket, fuse=True)
        expected = states(model)
        for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert is_fused(copied)
            assert torch.equal(states(copied), expected)
            assert str(plan(copied).encoder) == str(plan(model).encoder)
        assert not is_fused(densify_(model))
        assert unfuse_(model) is model

    @pytest.mark.parametrize("fuse", [True, False, None])
    def test_is_saved_as_an_option(self, fuse: bool | None, tmp_path: Path) -> None:
        model, ticket = pruned("BertModel")
        sparsify_(model, ticket, fuse=fuse, measure=False)
        expected = states(model)
        model.save_pretrained(tmp_path)
        loaded = type(model).from_pretrained(tmp_path)
        assert loaded.config.quantization_config.fuse is fuse
        assert is_fused(loaded) == is_fused(model)
        assert torch.equal(states(loaded), expected)

    def test_follows_a_plan(self) -> None:
        model, ticket = pruned("BertModel")
        for fuse in (True, False):
            made = plan(model, ticket, measure=False, fuse=fuse)
            assert is_fused(sparsify_(copy.deepcopy(model), ticket, format=made)) == fuse


@paired
class TestThePairedEngine:
    def test_runs_panels_in_bf16(self, tmp_path: Path) -> None:
        model, ticket = model_of_panels()
        expected = states(ticket.apply_(copy.deepcopy(model)))
        sparsify_(model, ticket, tolerance="bf16", measure=False, compact=False)
        made = plan(model)
        assert made.encoder is not None
        assert made.encoder.way == "paired"
        assert {(layer.format, layer.precision) for layer in made.layers} == {("row_panel", "bf16")}
        found = states(model)
        assert (found - expected).abs().mean() < 0.01 * expected.abs().mean()
        model.save_pretrained(tmp_path)
        loaded = type(model).from_pretrained(tmp_path)
        assert plan(loaded).encoder.way == "paired"
        assert torch.equal(states(loaded), found)
        assert torch.equal(states(unfuse_(loaded)), states(unfuse_(model)))

    @pytest.mark.parametrize(
        ("tolerance", "ways"),
        [("bf16", {"fp32", "paired"}), ("int8", {"fp32", "paired", "paired int8"})],
        ids=["bf16", "int8"],
    )
    def test_is_chosen_by_time_for_a_dense_model(self, tolerance: str, ways: set[str]) -> None:
        model = build("BertModel")
        expected = states(model)
        found = plan(fuse_(model, tolerance=tolerance)).encoder
        assert found is not None
        assert {*found.predicted_us} == ways
        timed = {*sorted(ways, key=lambda way: found.predicted_us[way])[:2]}
        timed |= {"fp16"} if has_engine(torch.float16) else set()
        assert found.way in timed
        assert found.busy or {*found.measured_us} == timed
        assert (states(model) - expected).abs().mean() < 0.02 * expected.abs().mean()


@native
def test_an_instruction_set_without_bf16_computes_in_fp32_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sparsebert.planning.engine_choice.has_engine", lambda dtype: False)
    model = fuse_(build("BertModel"), tolerance="bf16")
    found = plan(model).encoder
    assert found is not None
    assert found.way == "fp32"
    assert found.reason.endswith("has no paired engine for bf16")
