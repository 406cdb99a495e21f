"""A fused base model runs modules one by one where that could make a difference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparsebert import fuse_
from tests.fuse.models import MARKS
from tests.nn.fused_models import FAMILIES, MASK, answers, build, close, ids
from tests.sparsify.models import WIDTH

transformers = pytest.importorskip("transformers")
pytestmark = MARKS


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("output", ["hidden_states", "attentions"])
@pytest.mark.parametrize("by_config", [False, True])
def test_requested_outputs(name: str, output: str, by_config: bool) -> None:
    model = build(name)
    if name != "mpnet":
        model.set_attn_implementation("eager")
    request: dict[str, Any] = {} if by_config else {f"output_{output}": True}
    if by_config:
        setattr(model.config, f"output_{output}", True)
    with torch.inference_mode():
        expected = model(ids(), **request)
        with pytest.warns(UserWarning, match="hidden states or attentions|has the argument output_"):
            answer = fuse_(model)(ids(), **request)
    assert len(answer[output]) == len(expected[output])
    for state, plain in zip(answer[output], expected[output], strict=True):
        assert torch.equal(state, plain)


@pytest.mark.parametrize("name", ["bert", "mpnet"])
@pytest.mark.parametrize("path", ["embeddings", "embeddings.LayerNorm", "pooler", "pooler.dense"])
def test_hooks_around_the_encoder_run(name: str, path: str, native_calls: list[str]) -> None:
    model = fuse_(build(name))
    seen: list[Any] = []
    handle = model.get_submodule(path).register_forward_hook(lambda *_: seen.append(path))
    expected = answers(model)
    assert seen == [path]
    assert native_calls == ["sb_encoder"]  # of the layers
    handle.remove()
    assert close(answers(model), expected)


def test_hooks_inside_modernbert() -> None:
    model = fuse_(build("modernbert"))
    seen: list[Any] = []
    model.layers[1].mlp.register_forward_hook(lambda *_: seen.append(1))
    with pytest.warns(UserWarning, match="has hooks"):
        answers(model)
    assert seen == [1]


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients(name: str) -> None:
    model = fuse_(build(name))
    with pytest.warns(UserWarning, match="gradients are recorded"):
        output = model(ids(), attention_mask=MASK.long())
    output.last_hidden_state[:, 0].sum().backward()
    assert model.get_input_embeddings().weight.grad is not None


@pytest.mark.parametrize("name", FAMILIES)
def test_replaced_embeddings(name: str) -> None:
    class Scaled(nn.Embedding):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    model = build(name)
    model.get_input_embeddings().__class__ = Scaled
    expected = answers(model)
    fuse_(model)
    if name == "modernbert":
        with pytest.warns(UserWarning, match="Scaled is not a plain embedding"):
            assert close(answers(model), expected)
    else:
        assert close(answers(model), expected)


def test_an_attention_of_the_user() -> None:
    def mean(module: Any, q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
        return v.mean(2, keepdim=True).expand_as(v).transpose(1, 2), None

    transformers.AttentionInterface.register("sparsebert_mean", mean)
    model = build("bert")
    model.set_attn_implementation("sparsebert_mean")
    expected = answers(model, None)
    with pytest.warns(UserWarning, match="the attention sparsebert_mean is not one of transformers"):
        assert close(answers(fuse_(model), None), expected)


def test_rotary_positions_that_depend_on_the_length() -> None:
    model = build("modernbert")
    model.rotary_emb.rope_type["full_attention"] = "dynamic"
    with pytest.warns(UserWarning, match="rotary positions are scaled by dynamic"):
        answers(fuse_(model))


def test_chunks_of_the_feed_forward_network() -> None:
    config = transformers.BertConfig(**WIDTH, chunk_size_feed_forward=2)
    with pytest.raises(ValueError, match=r"layer 0 of BertEncoder cannot be fused: .*in chunks"):
        fuse_(transformers.BertModel(config))


def test_a_new_model_of_the_fused_class() -> None:
    """Code that makes another model like this one finds a plain one."""
    fused = fuse_(build("bert"))
    torch.manual_seed(0)
    other = type(fused)(fused.config).eval()
    torch.manual_seed(0)
    plain = transformers.BertModel(fused.config).eval()
    assert close(answers(other), answers(plain))
