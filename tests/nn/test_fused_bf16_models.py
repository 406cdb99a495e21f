"""Models in bfloat16, fused: the paired engine, answers as close to float64 as torch's in bfloat16."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsebert import compact_, fuse_, plan, prune, replan_, sparsify_, unfuse_
from sparsebert.nn.native_layers import current_layers
from sparsebert_kernels.cpu import native
from tests.nn.test_fused_in_bf16 import (
    BF16,
    FAMILIES,
    MARKS,
    MASK,
    SET,
    TOKENS,
    bert,
    layers_of,
    modern_bert,
)
from tests.ops.backends import using

transformers = pytest.importorskip("transformers")
pytestmark = MARKS
PLAIN = "the fused encoder runs its layers one by one"


@pytest.fixture(autouse=True)
def _with_the_engine() -> Any:
    assert SET is not None
    with using(SET):
        yield


@torch.inference_mode()
def answers(model: Any, **inputs: Any) -> Tensor:
    """The states at tokens and the pooler's outputs, in the dtype of the model."""
    outputs = model(**{"input_ids": TOKENS} | inputs, attention_mask=MASK.long())
    pooled = outputs.get("pooler_output")
    states = outputs[0][MASK].flatten()
    return states if pooled is None else torch.cat((states, pooled.flatten()))


def is_close(model: Any, answer: Tensor, plain: Tensor, **inputs: Any) -> bool:
    """Whether the error against float64 is at most 1.2 times that of the plain model in bfloat16."""
    assert answer.dtype == BF16
    exact = answers(copy.deepcopy(unfuse_(copy.deepcopy(model))).double(), **inputs)
    return bool((answer - exact).norm() <= 1.2 * (plain - exact).norm())


@pytest.mark.parametrize("name", FAMILIES)
def test_answers_of_every_family(name: str) -> None:
    model = FAMILIES[name]().to(BF16)
    plain = answers(model)
    fuse_(model)
    answer = answers(model)
    assert is_close(model, answer, plain)
    assert not torch.equal(answer, plain)
    assert torch.equal(answers(unfuse_(model)), plain)
    with torch.inference_mode():
        assert current_layers(layers_of(fuse_(model))).form.stored == BF16


@pytest.mark.parametrize("name", ["BERT", "ModernBERT"])
def test_embeddings_of_the_caller(name: str) -> None:
    model = FAMILIES[name]().to(BF16)
    embedded = {"input_ids": None, "inputs_embeds": torch.randn(*TOKENS.shape, 96).to(BF16)}
    plain = answers(model, **embedded)
    answer = answers(fuse_(model), **embedded)
    assert answer.dtype == BF16
    assert (answer - plain).norm() < 0.02 * plain.norm()


def test_a_task_head() -> None:
    torch.manual_seed(0)
    config = bert().config
    model = transformers.BertForSequenceClassification(config).eval().to(BF16)
    with torch.inference_mode():
        plain = model(TOKENS, MASK.long()).logits
        logits = fuse_(model)(TOKENS, MASK.long()).logits
    assert logits.dtype == BF16
    assert (logits - plain).norm() < 0.05 * plain.norm()


@pytest.mark.parametrize("format", ["element", "vector", "dense", "row_panel"])
def test_sparse_models(format: str) -> None:
    model = bert().to(BF16)
    tolerance = "bf16" if format == "row_panel" else "fp32"
    sparsify_(model, prune(model, sparsity=0.7), format=format, fuse=False, tolerance=tolerance)
    plain = answers(model)
    assert is_close(model, answers(fuse_(model)), plain)


@pytest.mark.parametrize("granularity", ["head", "neuron"])
def test_compacted_models(granularity: str) -> None:
    model = bert().to(BF16)
    compact_(model, prune(model, sparsity=0.5, granularity=granularity))
    plain = answers(model)
    assert is_close(model, answers(fuse_(model)), plain)


def test_tables_are_read_in_place() -> None:
    model = fuse_(bert().to(BF16))
    answers(model)
    held = {tensor.data_ptr() for tensor in model._ends.native._alive}
    for name in ("word_embeddings", "position_embeddings", "token_type_embeddings"):
        assert getattr(model.embeddings, name).weight.data_ptr() in held


@pytest.mark.parametrize("path", ["embeddings.LayerNorm", "encoder.layer.1.output.LayerNorm", "pooler.dense"])
def test_changes_are_followed(path: str) -> None:
    """LayerNorms and biases are copied in float32: a change is noticed, counted by torch or not."""
    model = fuse_(bert().to(BF16))
    before = answers(model)
    bias = model.get_submodule(path).bias
    with torch.no_grad():
        bias += 0.5
    counted = answers(model)
    assert not torch.equal(counted, before)
    bias.data.add_(0.5)
    assert not torch.equal(answers(model), counted)
    assert torch.equal(answers(model), answers(fuse_(copy.deepcopy(unfuse_(model)))))


def test_the_engine_follows_a_change_of_dtype() -> None:
    model = fuse_(modern_bert())
    assert answers(model).dtype == torch.float32
    assert torch.equal(answers(model.to(BF16)), answers(fuse_(modern_bert().to(BF16))))
    assert answers(model.float()).dtype == torch.float32


def test_float16_takes_the_plain_path_and_says_why() -> None:
    model = fuse_(bert().half())
    plain = answers(bert().half())
    with pytest.warns(
        UserWarning, match=f"{PLAIN}: no engine takes models in torch.float16: convert the model"
    ):
        answer = answers(model)
    assert torch.equal(answer, plain)
    answers(model)  # MARKS make a second warning an error
    sparse = bert().half()
    sparsify_(sparse, prune(sparse, sparsity=0.7), measure=False)
    assert "not fused: no engine takes models in torch.float16" in str(plan(sparse))
    with pytest.raises(ValueError, match=r"cannot be fused: no engine takes models"):
        sparsify_(bert().half(), prune(bert(), sparsity=0.7), fuse=True)


def test_mixed_dtypes_take_the_plain_path() -> None:
    model = bert().to(BF16)
    model.encoder.layer[1].output.LayerNorm.float()
    ticket = prune(bert(), sparsity=0.7)
    sparsify_(model, ticket, measure=False)
    assert "not fused: a parameter is torch.float32 on cpu, not torch.bfloat16 on cpu" in str(plan(model))


def test_without_the_engine_they_take_the_plain_path() -> None:
    model = bert().to(BF16)
    plain = answers(model)
    name = next(each for each in native.instruction_sets()[::-1] if each != SET)
    with using(name):
        with pytest.warns(UserWarning, match=f"{PLAIN}: {name} has no engine for models in torch.bfloat16"):
            assert (answers(fuse_(model)) - plain).norm() < 0.02 * plain.norm()
        other = bert().to(BF16)
        sparsify_(other, prune(other, sparsity=0.7), measure=False)
        assert f"not fused: {name} has no engine for models in torch.bfloat16" in str(plan(other))


def test_sparsify_chooses_and_replan_chooses_again() -> None:
    model = bert().to(BF16)
    ticket = prune(model, sparsity=0.9, granularity="block", block_size=(32, 2))
    sparsify_(model, ticket, measure=False)
    found = plan(model).encoder
    assert {*found.predicted_us} == {"layers", "paired"}
    plain = answers(unfuse_(copy.deepcopy(model)))
    assert is_close(model, answers(model), plain)
    sparsify_(other := bert().to(BF16), ticket, measure=False, fuse=True)
    assert plan(other).encoder.way == "paired"
    assert {layer.format for layer in plan(other).layers} == {"row_panel"}
    assert {layer.precision for layer in plan(other).layers} == {""}
    replan_(other, measure=False, tolerance="int8")
    assert plan(other).encoder.fused
    assert (answers(other) - plain).norm() < 0.05 * plain.norm()


def test_saved_and_loaded_in_bfloat16(tmp_path: Any) -> None:
    model = bert().to(BF16)
    sparsify_(
        model, prune(model, sparsity=0.9, granularity="block", block_size=(32, 2)), fuse=True, measure=False
    )
    expected = answers(model)
    model.save_pretrained(tmp_path)
    loaded = transformers.AutoModel.from_pretrained(tmp_path, dtype=BF16)
    assert plan(loaded).encoder.way == "paired"
    assert (answers(loaded) - expected).norm() < 0.02 * expected.norm()
