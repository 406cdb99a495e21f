"""A fused base model: one native call from token ids to the pooler."""

from __future__ import annotations

import copy
import inspect
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import nn

from sparsebert import fuse_, unfuse_
from tests.fuse.models import MARKS
from tests.nn.fused_models import FAMILIES, MASK, SPECIAL, answers, build, close, ids
from tests.sparsify.models import WIDTH

transformers = pytest.importorskip("transformers")
pytestmark = MARKS


@pytest.mark.parametrize("name", FAMILIES)
def test_a_batch_is_one_native_call(name: str, native_calls: list[str]) -> None:
    model = build(name)
    expected = answers(model)
    fuse_(model)
    assert close(answers(model), expected)
    assert native_calls == ["sb_encoder"]


@pytest.mark.parametrize("name", FAMILIES)
def test_no_module_runs_by_itself(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = fuse_(build(name))
    answers(model)

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a module ran")

    for cls in (nn.Embedding, nn.LayerNorm, nn.Linear, nn.Tanh):
        monkeypatch.setattr(cls, "forward", never)
    answers(model)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float32, torch.int32])
def test_masks_of_any_dtype(name: str, dtype: torch.dtype, native_calls: list[str]) -> None:
    model = build(name)
    expected = answers(model)
    assert close(answers(fuse_(model), MASK.to(dtype)), expected)
    assert native_calls == ["sb_encoder"]


@pytest.mark.parametrize("name", ["bert", "roberta", "electra"])
def test_token_types(name: str, native_calls: list[str]) -> None:
    model = build(name)
    if model.config.type_vocab_size == 1:
        model.embeddings.token_type_embeddings = nn.Embedding(2, 24)
    types = torch.arange(23).expand(4, -1) // 12
    expected = answers(model, token_type_ids=types)
    assert close(answers(fuse_(model), token_type_ids=types), expected)
    assert native_calls == ["sb_encoder"]


@pytest.mark.parametrize("name", ["roberta", "mpnet"])
def test_positions_count_the_tokens_that_are_not_padding(name: str) -> None:
    model = build(name)
    tokens = ids()
    tokens[~MASK] = 1
    tokens[0, 4] = tokens[3, 2] = 1  # padding tokens that the mask keeps
    expected = answers(model, input_ids=tokens), answers(model, None, input_ids=tokens)
    fuse_(model)
    assert close(answers(model, input_ids=tokens), expected[0])
    assert close(answers(model, None, input_ids=tokens), expected[1])


def test_positional_arguments() -> None:
    model = build("bert")
    with torch.inference_mode():
        expected = model(ids(), MASK.long()).last_hidden_state[MASK]
        assert torch.allclose(fuse_(model)(ids(), MASK.long()).last_hidden_state[MASK], expected, atol=1e-5)
        with pytest.raises(TypeError, match="multiple values"):
            model(ids(), input_ids=ids())


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("return_dict", [None, True, False])
def test_results_have_the_same_type(name: str, return_dict: bool | None) -> None:
    model = build(name)
    expected = model(ids(), return_dict=return_dict)
    with torch.inference_mode():
        answer = fuse_(model)(ids(), return_dict=return_dict)
    assert type(answer) is type(expected)
    assert len(answer) == len(expected)
    assert not hasattr(expected, "keys") or answer.keys() == expected.keys()


@pytest.mark.parametrize("name", ["bert", "mpnet"])
@pytest.mark.parametrize("return_dict", [True, False])
def test_without_a_pooler(name: str, return_dict: bool) -> None:
    model = build(name)
    model.pooler = None
    expected = model(ids(), return_dict=return_dict)
    with torch.inference_mode():
        answer = fuse_(model)(ids(), return_dict=return_dict)
    assert len(answer) == len(expected)
    assert torch.allclose(answer[0], expected[0], atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_signature_name_and_documentation_stay(name: str) -> None:
    plain = build(name)
    fused = fuse_(copy.deepcopy(plain))
    assert inspect.signature(fused.forward) == inspect.signature(plain.forward)
    assert type(fused).__name__ == type(plain).__name__
    assert isinstance(fused, type(plain))
    assert type(unfuse_(fused)) is type(plain)


def test_longer_texts_of_a_model_with_local_attention() -> None:
    config = transformers.ModernBertConfig(
        **WIDTH | {"max_position_embeddings": 600, "num_hidden_layers": 4}, **SPECIAL, local_attention=64
    )
    torch.manual_seed(0)
    model = transformers.ModernBertModel(config).eval()
    tokens = torch.randint(3, 50, (3, 517))
    mask = torch.arange(517) < torch.tensor([[517], [301], [33]])
    with torch.inference_mode():
        expected = model(tokens, attention_mask=mask.long()).last_hidden_state[mask]
        answer = fuse_(model)(tokens, attention_mask=mask.long()).last_hidden_state[mask]
    assert torch.allclose(answer, expected, atol=1e-4)


def test_distances_beyond_the_last_bucket() -> None:
    config = transformers.MPNetConfig(**WIDTH | {"max_position_embeddings": 400})
    torch.manual_seed(0)
    model = transformers.MPNetModel(config).eval()
    with torch.no_grad():
        model.encoder.relative_attention_bias.weight.normal_(std=2)
    tokens = torch.randint(3, 50, (2, 390))
    with torch.inference_mode():
        expected = model(tokens).last_hidden_state
        assert torch.allclose(fuse_(model)(tokens).last_hidden_state, expected, atol=1e-4)


class TestProcesses:
    @pytest.mark.parametrize("name", ["bert", "modernbert"])
    def test_eight_threads_on_one_model(self, name: str) -> None:
        model = fuse_(build(name))  # described by whoever comes first
        masks = [torch.arange(23) < torch.tensor([[23], [1 + n], [9], [17]]) for n in range(8)]
        with ThreadPoolExecutor(8) as pool:
            results = list(pool.map(lambda mask: answers(model, mask), masks * 4))
        for mask, result in zip(masks * 4, results, strict=True):
            assert all(torch.equal(*pair) for pair in zip(result, answers(model, mask), strict=True))

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
    def test_fork_after_use(self) -> None:
        model = fuse_(build("bert"))
        torch.set_num_threads(1)
        expected = answers(model)
        child = os.fork()
        if child == 0:
            same = False
            try:
                same = all(torch.equal(*pair) for pair in zip(answers(model), expected, strict=True))
            finally:
                os._exit(0 if same else 1)
        assert os.waitpid(child, 0)[1] == 0
