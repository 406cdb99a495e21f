"""Fused models in the fp16 engine: every family, what leaves fp16's range, and what stays."""

from __future__ import annotations

import copy
import pickle
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparsebert import compact_, densify_, prune, sparsify_, unfuse_
from sparsebert.nn.fp16_range import left_range
from sparsebert.nn.fused_modules import encoders_of, fuse_modules_
from sparsebert.planning.encoder_plan import FP16, FP32, EncoderPlan
from sparsebert.planning.engine_choice import carried_encoder_plan, set_encoder_plan_
from sparsebert_kernels.cpu import fp16, native
from tests.nn.fused_models import FAMILIES, MASK, answers, build, ids

pytestmark = pytest.mark.skipif(not native.available(), reason="no native library")


@pytest.fixture(autouse=True)
def _emulated() -> Iterator[None]:
    with fp16.emulation():
        yield


def in_fp16(model: Any) -> Any:
    fuse_modules_(model, "fp16")
    return model


def engine(model: Any) -> torch.dtype:
    """The dtype of the activations in the last call."""
    (encoder,) = encoders_of(model)
    dtype: torch.dtype = encoder.module._native.form.engine
    return dtype


def distance(answer: list[Tensor], expected: list[Tensor]) -> float:
    pairs = zip(answer, expected, strict=True)
    return max(float((each - other).norm() / other.norm()) for each, other in pairs)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_answers_as_in_fp32(name: str) -> None:
    model = build(name)
    expected = answers(model)
    answer = answers(in_fp16(model))
    assert engine(model) == torch.float16
    # A bf16 engine is 8 times as far away.
    assert 0 < distance(answer, expected) < 4e-3


@pytest.mark.parametrize("format", ["element", "vector", "compact", "dense"])
def test_sparse_layers_of_any_format(format: str) -> None:
    model = build("bert")
    ticket = prune(model, sparsity=0.5)
    sparsify_(model, ticket, format=format, measure=False, fuse=False)
    expected = answers(model)
    answer = answers(in_fp16(model))
    assert engine(model) == torch.float16
    assert 0 < distance(answer, expected) < 4e-3


@pytest.mark.parametrize("granularity", ["head", "neuron", "row", "column"])
@pytest.mark.parametrize("sparse", [False, True])
def test_pruned_heads_neurons_and_rows(granularity: str, sparse: bool) -> None:
    model = build("bert")
    ticket = prune(model, sparsity=0.5, granularity=granularity)
    sparsify_(model, ticket, measure=False, fuse=False) if sparse else compact_(model, ticket)
    expected = answers(model)
    answer = answers(in_fp16(model))
    assert engine(model) == torch.float16
    assert distance(answer, expected) < 4e-3


def test_embeddings_of_the_caller() -> None:
    model = build("bert")
    with torch.inference_mode():
        embedded = model.embeddings.word_embeddings(ids())
    expected = answers(model, input_ids=None, inputs_embeds=embedded)
    answer = answers(in_fp16(model), input_ids=None, inputs_embeds=embedded)
    assert engine(model) == torch.float16
    assert distance(answer, expected) < 4e-3


def enlarge(model: Any) -> None:
    """Let values inside the encoder exceed 65504, and what it returns not."""
    layer = encoders_of(model)[0].module.layer[0]
    with torch.no_grad():
        layer.output.LayerNorm.weight *= 2e6


class TestValuesBeyondTheRange:
    def test_are_computed_in_fp32_from_then_on_and_it_is_said_once(self) -> None:
        model = build("bert")
        usual = answers(model)
        in_fp16(model)
        assert distance(answers(model), usual) < 4e-3
        enlarge(model)
        with pytest.warns(RuntimeWarning, match=r"beyond fp16's range \(65504\).* in fp32 from now on"):
            answer = answers(model)
        assert engine(model) == torch.float32
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert all(map(torch.equal, answers(model), answer))
        assert distance(answer, answers(unfuse_(model))) < 1e-5

    def test_are_in_the_plan(self) -> None:
        model = build("bert")
        set_encoder_plan_(model, EncoderPlan(FP16, "measured 2.00x as fast", decided_by="timing"))
        answers(model)
        plan = carried_encoder_plan(model)
        assert plan is not None
        assert str(plan).startswith("one native call (fp16 engine); measured 2.00x as fast")
        enlarge(model)
        with pytest.warns(RuntimeWarning, match="beyond fp16's range"):
            answers(model)
        plan = carried_encoder_plan(model)
        assert plan is not None
        assert plan.way == FP32
        assert "beyond fp16's range (65504); before: measured 2.00x" in str(plan)

    @pytest.mark.parametrize("where", ["weight", "pooler", "embedding"])
    def test_may_be_weights(self, where: str) -> None:
        model = build("bert")
        with torch.no_grad():
            if where == "weight":
                model.encoder.layer[1].output.dense.weight[3, 5] = 1e5
            elif where == "pooler":
                model.pooler.dense.weight[3, 5] = 1e5
            else:
                model.embeddings.word_embeddings.weight[7] = 1e5
        expected = answers(model)
        in_fp16(model)
        if where == "embedding":
            answers(model, input_ids=ids().clamp_min(8))
            assert engine(model) == torch.float16
        with pytest.warns(RuntimeWarning, match="beyond fp16's range"):
            answer = (
                answers(model, input_ids=ids().index_fill(1, torch.tensor([3]), 7))
                if (where == "embedding")
                else answers(model)
            )
        assert engine(model) == torch.float32
        if where != "embedding":
            assert distance(answer, expected) < 1e-4

    def test_in_a_base_model_that_runs_its_layers_itself(self) -> None:
        model = build("modernbert")
        in_fp16(model)
        answers(model)
        assert engine(model) == torch.float16
        with torch.no_grad():
            model.layers[1].mlp.Wo.weight *= 1e5
        with pytest.warns(RuntimeWarning, match="beyond fp16's range"):
            answer = answers(model)
        assert left_range(model, "fp16")
        assert distance(answer, answers(unfuse_(model))) < 1e-4

    @pytest.mark.parametrize("value", [torch.nan, torch.inf])
    def test_nan_and_inf_of_the_caller_are_another_matter(self, value: float) -> None:
        """They stay in their sequence, and later calls compute in fp16."""
        model = build("bert")
        with torch.inference_mode():
            embedded = model.embeddings.word_embeddings(ids())
            clean = in_fp16(model)(inputs_embeds=embedded, attention_mask=MASK.long())[0].clone()
            embedded[2, 3, 5] = value
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                answer = model(inputs_embeds=embedded, attention_mask=MASK.long())[0]
            assert answer[2][MASK[2]].isnan().any()
            others = [0, 1, 3]
            assert answer[others].isfinite().all()
            assert distance([answer[others]], [clean[others]]) < 4e-3
            embedded[2, 3, 5] = 0
            model(inputs_embeds=embedded, attention_mask=MASK.long())
        assert engine(model) == torch.float16


def test_copies_and_pickles_compute_in_fp16_too_and_densify_is_exact() -> None:
    model = build("bert")
    ticket = prune(model, sparsity=0.5)
    sparsify_(model, ticket, format="element", measure=False, fuse=False)
    weights = {name: tensor.clone() for name, tensor in densify_(copy.deepcopy(model)).state_dict().items()}
    answer = answers(in_fp16(model))
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert all(map(torch.equal, answers(twin), answer))
        assert engine(twin) == torch.float16
    dense = densify_(model).state_dict()
    assert all(torch.equal(dense[name], tensor) for name, tensor in weights.items())


def test_changes_of_weights_are_followed() -> None:
    model = in_fp16(build("bert"))
    answers(model)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.weight *= 0.5
    answer = answers(model)
    assert engine(model) == torch.float16
    assert distance(answer, answers(unfuse_(model))) < 4e-3


def in_threads(model: Any) -> list[list[Tensor]]:
    together: list[list[Tensor]] = []
    workers = [threading.Thread(target=lambda: together.append(answers(model))) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(together) == 8
    return together


def test_threads_on_one_model() -> None:
    model = in_fp16(build("bert"))
    expected = answers(model)
    assert all(torch.equal(*pair) for each in in_threads(model) for pair in zip(each, expected, strict=True))


def test_threads_that_leave_the_range_together() -> None:
    model = build("bert")
    enlarge(model)
    expected = answers(model)
    in_fp16(model)
    with pytest.warns(RuntimeWarning, match="beyond fp16's range"):
        together = in_threads(model)
    assert all(distance(each, expected) < 1e-5 for each in together)


def test_a_model_that_comes_to_a_cpu_without_the_unit_computes_in_fp32_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = build("bert")
    expected = answers(model)
    set_encoder_plan_(model, EncoderPlan(FP16, "measured 2.00x as fast", decided_by="timing"))
    stored = pickle.dumps(model)
    monkeypatch.setattr(fp16, "why_unavailable", lambda: native.CPU_LACKS_IT)
    moved = pickle.loads(stored)
    assert distance(answers(moved), expected) < 1e-5
    assert engine(moved) == torch.float32
    plan = carried_encoder_plan(moved)
    assert plan is not None
    assert plan.way == FP32
    assert plan.reason.startswith("no fp16 engine here; before: ")
