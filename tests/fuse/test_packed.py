"""Fused layers on a GPU: the answers of the plain model, without padding, in few products."""

from __future__ import annotations

import copy
import warnings
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparsebert import compact_, densify_, fuse_, plan, prune, sparsify_, unfuse_
from sparsebert.nn import packed_layers, packed_model
from sparsebert.nn.packed_model import without_waiting
from sparsebert.nn.sparse_linear import JOINED
from sparsebert_kernels import ops
from tests.copies import copies_of
from tests.fuse.models import make
from tests.fuse.packed_models import (
    MARKS,
    MASKS,
    NAMES,
    PADDED,
    answers,
    as_on_a_gpu,
    blocks,
    elsewhere,
    exact,
    fused,
    inputs,
    made,
    ragged,
    same,
    wide,
)
from tests.nn.replicas import replica

__all__ = ["as_on_a_gpu"]
pytestmark = MARKS


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("name", NAMES)
def test_answers_are_those_of_the_model(name: str, kind: str) -> None:
    model = made(name)
    expected = answers(model, MASKS[kind])
    assert same(answers(fuse_(model), MASKS[kind]), expected)


@pytest.mark.parametrize("kind", ["ragged", "none", "one token"])
@pytest.mark.parametrize("sparse", [False, True])
def test_answers_in_bf16_are_as_exact_as_the_models(kind: str, sparse: bool) -> None:
    model = wide().bfloat16()
    if sparse:
        sparsify_(model, blocks(model), format="panel", fuse=False)
    target = exact(densify_(copy.deepcopy(model)), MASKS[kind])
    plain = (answers(model, MASKS[kind]) - target).abs()
    packed = (answers(fuse_(model), MASKS[kind]) - target).abs()
    assert packed.max() <= 1.3 * plain.max()
    assert packed.mean() <= 1.1 * plain.mean()


@pytest.mark.parametrize("format", ["panel", "bitmap", "dense", "element"])
def test_answers_are_those_of_the_sparse_model(format: str) -> None:
    model = wide()
    sparsify_(model, blocks(model), format=format, fuse=False, fuse_activation=format != "dense")
    for mask in (MASKS["ragged"], None):
        assert same(answers(fuse_(copy.deepcopy(model)), mask), answers(model, mask))


@pytest.mark.parametrize("granularity", ["head", "neuron", "row", "column"])
@pytest.mark.parametrize("sparse", [False, True])
def test_answers_are_those_of_the_compacted_model(granularity: str, sparse: bool) -> None:
    model = made("BertModel")
    ticket = prune(model, sparsity=0.5, granularity=granularity)
    if sparse:
        sparsify_(model, ticket, fuse=False)
    else:
        compact_(model, ticket)
    expected = answers(model, PADDED)
    assert same(answers(fuse_(model), PADDED), expected)


def test_padding_is_zero() -> None:
    model = fused("BertModel")
    with torch.inference_mode():
        states = model(**inputs(PADDED)).last_hidden_state
        assert not states[~PADDED].any()
        with without_waiting():
            static = model(**inputs(PADDED)).last_hidden_state
    assert not static[~PADDED].any()
    assert torch.allclose(static, states, atol=1e-5)


@pytest.mark.parametrize("name", ["BertForSequenceClassification", "XLMRobertaModel", "ElectraModel"])
@pytest.mark.parametrize("spare", [0, 5])
@torch.inference_mode()
def test_sequences_in_one_row_answer_as_in_a_batch(name: str, spare: int) -> None:
    model = fused(name)
    expected, answer = model(**inputs(PADDED)), model(**ragged(spare=spare))
    if "logits" in expected:
        assert torch.allclose(answer.logits[:4], expected.logits, atol=1e-5)
    else:
        tokens = int(PADDED.sum())
        assert same(answer.last_hidden_state[0, :tokens], expected.last_hidden_state[PADDED])


def test_sequences_in_one_row_are_never_taken_for_one() -> None:
    model = fused("BertModel")
    given = ragged()
    with torch.inference_mode():
        with pytest.raises(ValueError, match=r"need a fused encoder: ragged sequences need one row"):
            model(**given | {"max_length_q": None})
        with pytest.raises(ValueError, match=r"need a fused encoder: the call has an attention mask beside"):
            model(**given, attention_mask=torch.ones_like(given["input_ids"]))
    with pytest.raises(ValueError, match=r"need a fused encoder: the encoder is in training mode"):
        model.train()(**given)


def test_a_layer_takes_four_products_of_which_two_add_the_residual(monkeypatch: pytest.MonkeyPatch) -> None:
    model = wide()
    sparsify_(model, blocks(model), format="panel", compact=False)
    calls: list[tuple[int, bool]] = []
    linear = ops.linear

    def counted(x: Tensor, packed: Any, *rest: Any) -> Tensor:
        calls.append((packed.shape[0], len(rest) == 4 and rest[3] is not None))
        return linear(x, packed, *rest)

    monkeypatch.setattr(ops, "linear", counted)
    answers(model, PADDED)
    assert calls == 2 * [(192, False), (64, True), (128, False), (64, True)]


def recorded(name: str, reads: list[str]) -> Any:
    """A method of tensors that waits for a device, with a note of its calls."""
    method = getattr(Tensor, name)

    def read(self: Tensor, *args: Any) -> Any:
        reads.append(name)
        return method(self, *args)

    return read


@pytest.mark.parametrize("mask", [PADDED, None])
@pytest.mark.parametrize("sparse", [False, True])
def test_a_call_reads_from_the_device_once_at_most(
    monkeypatch: pytest.MonkeyPatch, mask: Tensor | None, sparse: bool
) -> None:
    model = wide()
    if sparse:
        sparsify_(model, blocks(model), format="panel")
    else:
        fuse_(model)
    given, row = inputs(mask), ragged()
    answers(model, mask)
    reads: list[str] = []
    for name in ("tolist", "item", "__bool__", "__int__", "cpu", "nonzero", "numpy"):
        monkeypatch.setattr(Tensor, name, recorded(name, reads))
    # The packed CPU reference of a panel reads its index: a GPU's kernel does not.
    monkeypatch.setattr(ops, "linear", lambda x, packed, *rest: x.new_ones(*x.shape[:-1], packed.shape[0]))
    with torch.inference_mode():
        model(**given)
        assert reads == ([] if mask is None else ["tolist"])
        reads.clear()
        model(**row)
        with without_waiting():
            model(**given)
    assert not reads


def test_a_capture_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    capturing = [False]
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing[0])
    on_gpu: Any = SimpleNamespace(is_cuda=True)
    assert packed_model._may_wait(on_gpu)
    capturing[0] = True
    assert not packed_model._may_wait(on_gpu)


class TestPublicCalls:
    def test_sparsify_fuses_by_itself_and_says_so(self) -> None:
        model = wide()
        sparsify_(model, blocks(model), format="panel")
        assert model.encoder._packed is not None
        encoder = plan(model).encoder
        assert encoder is not None
        assert encoder.way == "packed"
        assert str(encoder) == (
            "tokens without padding, query, key and value in one product; the model is on a GPU; "
            "hidden states at padding are zero"
        )

    def test_sparsify_leaves_out_what_it_is_told_to(self) -> None:
        model = wide()
        sparsify_(model, blocks(model), format="panel", fuse=False)
        assert str(plan(model).encoder) == "the layers one by one; requested"

    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            ("MPNetModel", "attention that adds biases of distances has no packed form"),
            ("ModernBertModel", "rotary positions and gated networks have no packed form"),
        ],
    )
    def test_other_families_say_why_they_are_not_fused(self, name: str, reason: str) -> None:
        model = make(name)
        with pytest.raises(ValueError, match=f"{name} cannot be fused on a GPU: {reason}"):
            fuse_(model)
        with pytest.raises(ValueError, match=reason):
            sparsify_(model, prune(model, sparsity=0.5), fuse=True)
        sparsify_(model, prune(model, sparsity=0.5), measure=False)
        assert str(plan(model).encoder) == f"the layers one by one; not fused: {reason}"

    def test_a_model_that_moves_runs_fused_there(self) -> None:
        model = fused("BertModel")
        expected = answers(model, PADDED)
        with elsewhere():
            assert str(plan(model).encoder).startswith("one native call (fp32 engine); the model was moved")
            assert same(answers(model, PADDED), expected)
            fuse_(unfuse_(model))
        assert str(plan(model).encoder).startswith("tokens without padding")
        assert same(answers(model, PADDED), expected)
        assert model.encoder._packed is not None

    def test_a_model_that_leaves_holds_none_of_its_memory(self) -> None:
        model = wide()
        sparsify_(model, blocks(model), format="panel")
        answers(model, PADDED)
        query = model.encoder.layer[0].attention.self.query
        held = [weakref.ref(tensor) for tensor in (query.values, query.packed.columns)]
        with elsewhere():
            model.to(torch.float64)
        assert [tensor() for tensor in held] == [None, None]

    def test_a_move_to_where_the_model_is_changes_nothing(self) -> None:
        model = fused("BertModel")
        described = model.encoder._packed
        model.to(torch.device("cpu"))
        assert model.encoder._packed is described

    def test_a_plan_says_it_before_the_model_is_sparse(self) -> None:
        model = wide()
        assert plan(model, blocks(model), format="panel").way == "packed"
        assert plan(model, blocks(model), format="panel", fuse=False).way == "layers"

    def test_unfuse_leaves_nothing_behind(self) -> None:
        model = made("BertModel")
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        unfuse_(fuse_(model))
        assert type(model.encoder).__module__.startswith("transformers.")
        assert all(not vars(module).keys() & {"_packed", JOINED} for module in model.modules())
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


class TestChanges:
    def test_in_place_and_by_replacement_are_seen(self) -> None:
        model = fused("BertModel")
        twin = copy.deepcopy(unfuse_(copy.deepcopy(model)))
        attention = "encoder.layer.1.attention.self.key"
        for change in (
            lambda layer: layer.weight.mul_(2),
            lambda layer: layer.bias.add_(1),
            lambda layer: setattr(layer.weight, "data", layer.weight.flip(0)),
            lambda layer: setattr(layer, "weight", nn.Parameter(layer.weight * 0.5)),
            lambda layer: layer.load_state_dict({name: 2 * x for name, x in layer.state_dict().items()}),
        ):
            with torch.no_grad():
                change(model.get_submodule(attention))
                change(twin.get_submodule(attention))
            assert same(answers(model, PADDED), answers(twin, PADDED))

    def test_copies_and_converted_models_are_joined_before_their_first_call(self) -> None:
        model = wide()
        sparsify_(model, blocks(model), format="panel")
        expected = answers(model, PADDED)
        for other in copies_of(model):
            assert all(layer.joined.joined for layer in other.encoder._packed.layers)
            assert same(answers(other, PADDED), expected)
        model.bfloat16()
        assert all(layer.joined.joined for layer in model.encoder._packed.layers)
        assert torch.allclose(answers(model, PADDED).float(), expected, rtol=0.1, atol=0.1)

    def test_saved_files_do_not_change(self, tmp_path: Path) -> None:
        model = made("BertModel")
        model.save_pretrained(tmp_path / "plain")
        fuse_(model).save_pretrained(tmp_path / "fused")
        name = "model.safetensors"
        assert (tmp_path / "fused" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()

    def test_projections_share_the_memory_of_one_matrix(self) -> None:
        model = fused("BertModel")
        for layer in model.encoder.layer:
            attention = layer.attention.self
            storages = {
                each.weight.untyped_storage().data_ptr()
                for each in attention.children()
                if hasattr(each, "weight")
            }
            assert len(storages) == 1


@pytest.mark.filterwarnings("default:the fused encoder")
class TestPlainPath:
    """Where another answer could be expected, the layers run one by one, and a warning says why."""

    def reason(self, call: Any) -> str:
        with pytest.warns(UserWarning, match="runs its layers one by one") as warned:
            call()
        return str(warned[0].message).partition(": ")[2]

    def test_for_hidden_states(self) -> None:
        model = fused("BertModel")
        given = inputs(PADDED)
        with torch.inference_mode():
            reason = self.reason(lambda: model(**given, output_hidden_states=True))
        assert "hidden" in reason

    def test_under_autocast(self) -> None:
        model = fused("BertModel")
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
            assert "autocast" in self.reason(lambda: model(**inputs(PADDED)))

    def test_for_gradients_and_training(self) -> None:
        model = fused("BertModel")
        assert "gradients are recorded" in self.reason(lambda: model(**inputs(PADDED)))
        with torch.no_grad():
            assert "training mode" in self.reason(lambda: model.train()(**inputs(PADDED)))

    def test_for_hooks_inside(self) -> None:
        model = fused("BertModel")
        seen: list[Tensor] = []
        hook = model.encoder.layer[0].register_forward_hook(lambda module, args, output: seen.append(output))
        with torch.inference_mode():
            assert "hooks" in self.reason(lambda: model(**inputs(PADDED)))
        assert len(seen) == 1
        hook.remove()
        assert model.encoder._packed is not None

    def test_for_replicas_of_data_parallel(self) -> None:
        model = wide()
        sparsify_(model, blocks(model), format="panel")
        expected = answers(model, PADDED)
        twin = replica(model)
        with torch.inference_mode():
            assert "DataParallel" in self.reason(lambda: twin(**inputs(PADDED)))
        with warnings.catch_warnings(action="ignore"):
            assert same(answers(twin, PADDED), expected)

    def test_for_padding_on_the_left(self) -> None:
        model = fused("BertModel")
        left = PADDED.flip(1)
        with torch.inference_mode():
            assert "begins with padding" in self.reason(lambda: model(**inputs(left)))

    @pytest.mark.filterwarnings("error:the fused encoder")
    def test_embeddings_of_the_caller_run_the_layers_packed(self) -> None:
        model = made("BertModel")
        given = inputs(PADDED)
        embedded = model.embeddings.word_embeddings(given.pop("input_ids")).detach()
        with torch.inference_mode():
            expected = model(inputs_embeds=embedded, **given).last_hidden_state
            states = fuse_(model)(inputs_embeds=embedded, **given).last_hidden_state
        assert torch.allclose(states[PADDED], expected[PADDED], atol=1e-5)
        assert not states[~PADDED].any()


def test_hooks_on_leaves_see_their_inputs() -> None:
    model = fused("BertModel")
    layer = model.encoder.layer[0]
    called = packed_layers.PackedLayers(model.encoder, model.encoder.family).layers[0].called
    assert {layer.intermediate.dense, layer.output.LayerNorm, layer.attention.self.query} <= {*called}
