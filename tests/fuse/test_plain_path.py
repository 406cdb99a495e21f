"""The layers run one by one where that could make a difference, and one warning says why."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparsebert import fuse_, unfuse_
from tests.fuse.models import KINDS, MARKS, MASK, TOKENS, Adapted, answers, close, make
from tests.sparsify.models import build

pytestmark = MARKS


def warned(model: Any, reason: str, call: Any) -> Any:
    with pytest.warns(UserWarning, match=f"the fused encoder runs its layers one by one: .*{reason}"):
        first = call(model)
    call(model)  # MARKS make a second warning an error
    return first


def test_gradients() -> None:
    model = fuse_(build())
    output = warned(
        model, "gradients are recorded", lambda model: model(TOKENS, labels=torch.zeros(3).long())
    )
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in model.bert.encoder.parameters())


def test_training() -> None:
    model = fuse_(build()).train()
    with torch.no_grad():
        warned(model, "training mode", lambda model: model(TOKENS))


@pytest.mark.parametrize("name", ["hidden_states", "attentions"])
def test_recorded_outputs(name: str) -> None:
    model = build()
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        expected = model(TOKENS, **{f"output_{name}": True})
        fuse_(model)
        output = warned(model, "hidden states or attentions", lambda m: m(TOKENS, **{f"output_{name}": True}))
    for state, plain in zip(output[name], expected[name], strict=True):
        assert torch.equal(state, plain)
    answers(model)  # without recording natively again


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_hooks_inside(register: str) -> None:
    model = fuse_(build())
    seen: list[Any] = []
    layer = model.bert.encoder.layer[1].output.dense
    handle = getattr(layer, register)(lambda module, *rest: seen.append(module))
    warned(model, "hooks", answers)
    assert seen == [layer, layer]
    handle.remove()
    answers(model)


def test_hooks_of_the_encoder_itself_run() -> None:
    model = fuse_(build("BertModel"))
    seen: list[Any] = []
    model.encoder.register_forward_hook(lambda module, args, output: seen.append(output.last_hidden_state))
    answers(model)
    assert len(seen) == 1


def test_hooks_on_all_modules() -> None:
    model = fuse_(build())
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        warned(model, "hooks on all modules", answers)
    finally:
        handle.remove()


def test_other_dtypes() -> None:
    model = fuse_(build("BertModel")).double()
    plain = build("BertModel").double()
    assert torch.equal(warned(model, "torch.float64", answers), answers(plain))
    assert close(answers(model.float()), answers(plain.float()))


def test_autocast() -> None:
    model = fuse_(build())
    with torch.autocast("cpu", torch.bfloat16):
        warned(model, "autocast", answers)


def test_masks_that_differ_between_queries() -> None:
    model = build("BertModel")
    causal = torch.ones(9, 9, dtype=torch.bool).tril().expand(3, 1, 9, 9)
    with torch.inference_mode():
        expected = model(TOKENS, attention_mask=causal).last_hidden_state
        output = warned(fuse_(model), "differs between queries", lambda m: m(TOKENS, attention_mask=causal))
    assert torch.equal(output.last_hidden_state, expected)


@pytest.mark.parametrize("tokens", [5, 0])
def test_rows_that_begin_with_padding(tokens: int) -> None:
    model = build()
    mask = MASK.clone()
    mask[1] = torch.arange(9) >= 9 - tokens
    with torch.inference_mode():
        expected = model(TOKENS, attention_mask=mask.long()).logits
        output = warned(fuse_(model), "begins with padding", lambda m: m(TOKENS, attention_mask=mask.long()))
    assert torch.equal(output.logits, expected)
    answers(model)  # natively again


def test_weights_made_under_inference_mode() -> None:
    with torch.inference_mode():
        model = fuse_(build("BertModel"))
        before = warned(model, "does not count changes", answers)
        model.encoder.layer[0].output.dense.weight[0, 0] += 1
        assert not close(answers(model), before)


def test_added_masks_with_other_values() -> None:
    model = build("BertModel")
    model.set_attn_implementation("eager")
    added = torch.randn(3, 1, 1, 9)
    with torch.inference_mode():
        expected = model(TOKENS, attention_mask=added).last_hidden_state
        output = warned(fuse_(model), "other values", lambda m: m(TOKENS, attention_mask=added))
    assert torch.equal(output.last_hidden_state, expected)


@pytest.mark.parametrize("name", KINDS)
def test_compiled_models(name: str) -> None:
    model = fuse_(make(name))
    expected = answers(model, None)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert close(answers(compiled, None), expected)


def test_a_layer_replaced_by_a_foreign_one() -> None:
    model = fuse_(build("BertModel"))

    class Shifted(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 1

    model.encoder.layer[0].output.dense.__class__ = Shifted
    expected = warned(model, "Shifted is not a plain or sparse linear layer", answers)
    assert torch.equal(answers(unfuse_(model)), expected)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("BertModel", "encoder.layer.1.output.dense"),
        ("MPNetModel", "encoder.layer.1.attention.attn.v"),
        ("ModernBertModel", "layers.1.mlp.Wo"),
    ],
)
def test_an_adapter_that_comes_later(name: str, path: str) -> None:
    model = fuse_(make(name))
    before = answers(model)
    original = model.get_submodule(path)
    model.set_submodule(path, Adapted(original))
    answer = warned(model, "is not part of its family's layers|is not a plain or sparse", answers)
    assert close(answer, answers(unfuse_(copy.deepcopy(model))))
    assert not close(answer, before)
    model.set_submodule(path, original)
    assert torch.equal(answers(model), before)


def test_without_the_native_library(monkeypatch: pytest.MonkeyPatch) -> None:
    model = fuse_(build())
    monkeypatch.setattr("sparsebert_kernels.cpu.native.why_unavailable", lambda: "not built")
    warned(model, "the native library is missing", answers)
