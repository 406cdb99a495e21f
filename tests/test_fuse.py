"""``fuse_`` and ``unfuse_``: equal answers in every family, and everything else as it was."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparsebert import compact_, densify_, fuse_, prune, sparsify_, unfuse_
from sparsebert_kernels import cpu
from tests.ops.special_tensors import imaginary, misaligned, negated
from tests.sparsify.models import MODELS, WIDTH, build

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.skipif(not cpu.available(), reason="no native library")

TOKENS = torch.arange(2, 29).view(3, 9)
MASK = torch.arange(9) < torch.tensor([[9], [4], [1]])
FAMILIES = {
    **MODELS,
    "XLMRobertaModel": lambda: transformers.XLMRobertaModel(transformers.XLMRobertaConfig(**WIDTH)),
    "CamembertModel": lambda: transformers.CamembertModel(transformers.CamembertConfig(**WIDTH)),
    "ElectraModel": lambda: transformers.ElectraModel(transformers.ElectraConfig(**WIDTH, embedding_size=24)),
    "MPNetModel": lambda: transformers.MPNetModel(transformers.MPNetConfig(**WIDTH)),
    "MPNetForMaskedLM": lambda: transformers.MPNetForMaskedLM(transformers.MPNetConfig(**WIDTH)),
    "ModernBertModel": lambda: transformers.ModernBertModel(modern_config()),
    "ModernBertForMaskedLM": lambda: transformers.ModernBertForMaskedLM(modern_config()),
    "ModernBertForSequenceClassification": lambda: transformers.ModernBertForSequenceClassification(
        modern_config(norm_bias=True, attention_bias=True, mlp_bias=True)
    ),
}
# Families whose embeddings, layers and pooler differ.
KINDS = ("BertModel", "ElectraForPreTraining", "MPNetModel", "ModernBertModel")


def modern_config(**changes: Any) -> Any:
    """Four layers, of which the second and third attend to four tokens on either side."""
    special = dict.fromkeys(("bos_token_id", "cls_token_id"), 1)
    special |= dict.fromkeys(("eos_token_id", "sep_token_id"), 2) | {"pad_token_id": 0}
    width = WIDTH | {"num_hidden_layers": 4}
    return transformers.ModernBertConfig(**width | special, local_attention=8, **changes)


def make(name: str) -> Any:
    torch.manual_seed(0)
    return FAMILIES[name]().eval()


@pytest.fixture(autouse=True)
def _no_warning() -> Iterator[None]:
    """A warning says that the plain path ran: only tests of that path expect one."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="the fused encoder")
        yield


@torch.inference_mode()
def answers(model: Any, mask: Tensor | None = MASK) -> Tensor:
    """The answers at tokens, without padding."""
    kept = torch.ones_like(MASK) if mask is None else mask.bool()
    inputs = {"input_ids": TOKENS} | ({} if mask is None else {"attention_mask": mask.long()})
    outputs = model(**inputs)
    real = [out[kept] if out.shape[:2] == TOKENS.shape else out for out in outputs.values()]
    return torch.cat([out.flatten() for out in real])


def close(answer: Tensor, expected: Tensor) -> bool:
    return torch.allclose(answer, expected, rtol=1e-5, atol=3e-6)


class Adapted(nn.Module):
    """A linear layer below an adapter, as peft's LoRA wraps it."""

    def __init__(self, base_layer: Any) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.lora_A = nn.Linear(base_layer.in_features, 2, bias=False)
        self.lora_B = nn.Linear(2, base_layer.out_features, bias=False)
        self.train(base_layer.training)

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.lora_B(self.lora_A(x))


def native_of(model: nn.Module) -> Any:
    """The native description of the layers."""
    return next(native for module in model.modules() if (native := vars(module).get("_native")))


class TestAnswers:
    @pytest.mark.parametrize("implementation", ["sdpa", "eager"])
    @pytest.mark.parametrize("name", FAMILIES)
    def test_are_those_of_the_model(self, name: str, implementation: str) -> None:
        model = make(name)
        if not name.startswith("MPNet"):  # which has one implementation
            model.set_attn_implementation(implementation)
        expected = [answers(model), answers(model, None)]
        assert fuse_(model) is model
        for answer, plain in zip((answers(model), answers(model, None)), expected, strict=True):
            assert close(answer, plain)

    @pytest.mark.parametrize("format", ["auto", "element", "vector", "compact", "dense", "csr", "panel"])
    @pytest.mark.parametrize("fuse_first", [False, True])
    def test_are_those_of_the_sparse_model(self, format: str, fuse_first: bool) -> None:
        model = build("BertModel")
        ticket = prune(model, sparsity=0.7)
        if fuse_first:
            fuse_(model)
        sparsify_(model, ticket, format=format)
        plain = answers(unfuse_(copy.deepcopy(model)))
        assert close(answers(fuse_(model)), plain)

    @pytest.mark.parametrize("granularity", ["head", "neuron", "row", "column"])
    @pytest.mark.parametrize("sparse", [False, True])
    def test_are_those_of_the_compacted_model(self, granularity: str, sparse: bool) -> None:
        model = build("BertModel")
        ticket = prune(model, sparsity=0.5, granularity=granularity)
        (sparsify_ if sparse else compact_)(model, ticket)
        plain = answers(model)
        assert close(answers(fuse_(model)), plain)

    def test_of_the_same_class_with_the_same_keys(self) -> None:
        model = build("BertModel")
        with torch.inference_mode():
            plain, fused = model(TOKENS), fuse_(model)(TOKENS)
            as_tuple = model(TOKENS, return_dict=False)
        assert type(plain) is type(fused)
        assert plain.keys() == fused.keys()
        assert isinstance(as_tuple, tuple)

    def test_padding_is_zero(self) -> None:
        states = answers_of_states(fuse_(build("BertModel")), MASK)
        assert not states[~MASK].any()
        assert states[MASK].all(-1).all()

    def test_follow_every_change_of_the_weights(self) -> None:
        model = fuse_(build("BertModel"))
        other = build("BertModel")
        with torch.no_grad():
            for parameter in other.parameters():
                parameter += 0.01 * torch.randn_like(parameter)
        answers(model)
        model.load_state_dict(other.state_dict())
        assert close(answers(model), answers(other))
        with torch.no_grad():
            for each in (model, other):
                each.encoder.layer[1].output.dense.bias += 1
        assert close(answers(model), answers(other))
        for each in (model, other):
            each.encoder.layer[0].output.dense = copy.deepcopy(each.encoder.layer[1].output.dense)
        assert close(answers(model), answers(other))
        for each in (model, other):
            each.encoder.layer[0].attention.self.query.weight = nn.Parameter(torch.zeros(24, 24))
        assert close(answers(model), answers(other))

    @pytest.mark.parametrize("form", ["dense", "panel", "compacted"])
    def test_follow_changes_through_data(self, form: str) -> None:
        """An averaged copy of the weights, as training loops write it: torch does not count the change."""
        model = build("BertModel")
        if form == "compacted":
            compact_(model, prune(model, sparsity=0.5, granularity="neuron"))
        elif form != "dense":
            sparsify_(model, prune(model, sparsity=0.7), format=form)
        before = answers(fuse_(model))
        for tensor in (*model.encoder.parameters(), *model.encoder.buffers()):
            if tensor.is_floating_point():
                tensor.data.mul_(1.1)
        assert close(answers(model), answers(unfuse_(copy.deepcopy(model))))
        assert not close(answers(model), before)

    @pytest.mark.parametrize("width", [24, 30])
    def test_follow_biases_changed_through_data(self, width: int) -> None:
        """A bias that does not fill whole groups of rows is copied."""
        config = transformers.BertConfig(**WIDTH | {"hidden_size": width})
        model = transformers.BertModel(config).eval()
        before = answers(fuse_(model))
        model.encoder.layer[1].output.dense.bias.data[-1] += 1
        assert close(answers(model), answers(unfuse_(copy.deepcopy(model))))
        assert not close(answers(model), before)

    @pytest.mark.parametrize("special", [negated, imaginary, misaligned])
    @pytest.mark.parametrize(
        ("path", "name"), [("LayerNorm", "weight"), ("dense", "bias"), ("dense", "values")]
    )
    def test_parameters_without_plain_memory(
        self, path: str, name: str, special: Callable[[Tensor], Tensor]
    ) -> None:
        model = build("BertModel")
        sparsify_(model, prune(model, sparsity=0.7), format="element")
        module = model.encoder.layer[1].output.get_submodule(path)
        values = getattr(module, name).detach()
        values = special(values + torch.rand_like(values))
        setattr(module, name, values if name == "values" else nn.Parameter(values))
        before = answers(model)
        assert close(answers(fuse_(model)), before)
        getattr(module, name).data.mul_(1.5)
        assert close(answers(model), answers(unfuse_(copy.deepcopy(model))))
        assert not close(answers(model), before)

    def test_follow_a_change_of_some_rows_through_data(self) -> None:
        model = transformers.BertModel(transformers.BertConfig(**WIDTH | {"hidden_size": 384})).eval()
        before = answers(fuse_(model))
        model.encoder.layer[1].attention.self.value.weight.data[37:45].zero_()
        assert close(answers(model), answers(unfuse_(copy.deepcopy(model))))
        assert not close(answers(model), before)

    @pytest.mark.parametrize(("path", "name"), [("attention.self", "scaling"), ("output.LayerNorm", "eps")])
    def test_follow_settings(self, path: str, name: str) -> None:
        model = build("BertModel")
        layer = model.encoder.layer[1]
        with torch.no_grad():
            layer.attention.self.query.weight *= 10  # else queries attend evenly at any scale
        before = answers(fuse_(model))
        setattr(layer.get_submodule(path), name, 3.0)
        assert close(answers(model), answers(unfuse_(copy.deepcopy(model))))
        assert not close(answers(model), before)

    @pytest.mark.parametrize("format", ["element", "dense", "compact"])
    def test_follow_a_checkpoint_loaded_into_sparse_layers(self, format: str) -> None:
        model = build("BertModel")
        sparsify_(model, prune(model, sparsity=0.7), format=format)
        other = copy.deepcopy(model)
        before = answers(fuse_(model))
        state = {name: tensor * 1.1 for name, tensor in other.state_dict().items()}
        model.load_state_dict(state)
        other.load_state_dict(state)
        assert close(answers(model), answers(other))
        assert not close(answers(model), before)


@torch.inference_mode()
def answers_of_states(model: Any, mask: Tensor) -> Tensor:
    return model(TOKENS, attention_mask=mask.long()).last_hidden_state


class TestWhatStays:
    def test_names_parameters_and_classes(self) -> None:
        model = build()
        before = {name: id(each) for name, each in model.named_modules()}, list(model.state_dict())
        plain_class = type(model.bert.encoder)
        fuse_(model)
        assert ({name: id(each) for name, each in model.named_modules()}, list(model.state_dict())) == before
        assert isinstance(model.bert.encoder, plain_class)
        assert type(unfuse_(model).bert.encoder) is plain_class
        assert not {"_native", "_said"} & {*vars(model.bert.encoder)}

    @pytest.mark.parametrize("sparse", [False, True])
    @pytest.mark.parametrize("name", KINDS)
    def test_copies_and_pickles_are_fused_too(self, name: str, sparse: bool) -> None:
        model = make(name)
        if sparse:
            sparsify_(model, prune(model, sparsity=0.7))
        expected = answers(fuse_(model))
        buffer = io.BytesIO()
        torch.save(model, buffer)
        buffer.seek(0)
        for copied in (
            copy.deepcopy(model),
            pickle.loads(pickle.dumps(model)),
            torch.load(buffer, weights_only=False),
        ):
            assert type(copied) is type(model)
            assert torch.equal(answers(copied), expected)
            assert torch.equal(answers(model), expected)
            assert native_of(copied) is not native_of(model)

    @pytest.mark.parametrize("sparse", [False, True])
    @pytest.mark.parametrize("name", KINDS)
    def test_what_is_saved(self, name: str, sparse: bool, tmp_path: Path) -> None:
        model = make(name)
        if sparse:
            sparsify_(model, prune(model, sparsity=0.7))
        model.save_pretrained(tmp_path / "plain")
        fuse_(model).save_pretrained(tmp_path / "fused")
        plain, fused = (
            {file.name: file.read_bytes() for file in (tmp_path / name).iterdir()}
            for name in ("plain", "fused")
        )
        assert plain == fused
        loaded = type(unfuse_(model)).from_pretrained(tmp_path / "fused").eval()
        assert close(answers(fuse_(loaded)), answers(model))

    @pytest.mark.parametrize("name", KINDS)
    def test_densify_and_a_second_fuse(self, name: str) -> None:
        model = make(name)
        sparsify_(model, prune(model, sparsity=0.7))
        expected = answers(fuse_(model))
        assert close(answers(densify_(model)), expected)
        assert close(answers(fuse_(model)), expected)
        assert close(answers(unfuse_(model)), expected)

    def test_unfuse_of_a_plain_model_changes_nothing(self) -> None:
        model = build()
        assert type(unfuse_(model).bert.encoder).__name__ == "BertEncoder"


class TestPlainPath:
    """The layers run one by one where that could make a difference, and one warning says why."""

    @staticmethod
    def warned(model: Any, reason: str, call: Any) -> Any:
        with pytest.warns(UserWarning, match=f"the fused encoder runs its layers one by one: .*{reason}"):
            first = call(model)
        call(model)  # the fixture makes a second warning an error
        return first

    def test_gradients(self) -> None:
        model = fuse_(build())
        output = self.warned(
            model, "gradients are recorded", lambda model: model(TOKENS, labels=torch.zeros(3).long())
        )
        output.loss.backward()
        assert all(parameter.grad is not None for parameter in model.bert.encoder.parameters())

    def test_training(self) -> None:
        model = fuse_(build()).train()
        with torch.no_grad():
            self.warned(model, "training mode", lambda model: model(TOKENS))

    @pytest.mark.parametrize("name", ["hidden_states", "attentions"])
    def test_recorded_outputs(self, name: str) -> None:
        model = build()
        model.set_attn_implementation("eager")
        with torch.inference_mode():
            expected = model(TOKENS, **{f"output_{name}": True})
            fuse_(model)
            output = self.warned(
                model, "hidden states or attentions", lambda m: m(TOKENS, **{f"output_{name}": True})
            )
        for state, plain in zip(output[name], expected[name], strict=True):
            assert torch.equal(state, plain)
        answers(model)  # without recording natively again

    @pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
    def test_hooks_inside(self, register: str) -> None:
        model = fuse_(build())
        seen: list[Any] = []
        layer = model.bert.encoder.layer[1].output.dense
        handle = getattr(layer, register)(lambda module, *rest: seen.append(module))
        self.warned(model, "hooks", answers)
        assert seen == [layer, layer]
        handle.remove()
        answers(model)

    def test_hooks_of_the_encoder_itself_run(self) -> None:
        model = fuse_(build("BertModel"))
        seen: list[Any] = []
        model.encoder.register_forward_hook(
            lambda module, args, output: seen.append(output.last_hidden_state)
        )
        answers(model)
        assert len(seen) == 1

    def test_hooks_on_all_modules(self) -> None:
        model = fuse_(build())
        handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
        try:
            self.warned(model, "hooks on all modules", answers)
        finally:
            handle.remove()

    def test_other_dtypes(self) -> None:
        model = fuse_(build("BertModel")).double()
        plain = build("BertModel").double()
        assert torch.equal(self.warned(model, "torch.float64", answers), answers(plain))
        assert close(answers(model.float()), answers(plain.float()))

    def test_autocast(self) -> None:
        model = fuse_(build())
        with torch.autocast("cpu", torch.bfloat16):
            self.warned(model, "autocast", answers)

    def test_masks_that_differ_between_queries(self) -> None:
        model = build("BertModel")
        causal = torch.ones(9, 9, dtype=torch.bool).tril().expand(3, 1, 9, 9)
        with torch.inference_mode():
            expected = model(TOKENS, attention_mask=causal).last_hidden_state
            output = self.warned(
                fuse_(model), "differs between queries", lambda m: m(TOKENS, attention_mask=causal)
            )
        assert torch.equal(output.last_hidden_state, expected)

    @pytest.mark.parametrize("tokens", [5, 0])
    def test_rows_that_begin_with_padding(self, tokens: int) -> None:
        model = build()
        mask = MASK.clone()
        mask[1] = torch.arange(9) >= 9 - tokens
        with torch.inference_mode():
            expected = model(TOKENS, attention_mask=mask.long()).logits
            output = self.warned(
                fuse_(model), "begins with padding", lambda m: m(TOKENS, attention_mask=mask.long())
            )
        assert torch.equal(output.logits, expected)
        answers(model)  # natively again

    def test_weights_made_under_inference_mode(self) -> None:
        with torch.inference_mode():
            model = fuse_(build("BertModel"))
            before = self.warned(model, "does not count changes", answers)
            model.encoder.layer[0].output.dense.weight[0, 0] += 1
            assert not close(answers(model), before)

    def test_added_masks_with_other_values(self) -> None:
        model = build("BertModel")
        model.set_attn_implementation("eager")
        added = torch.randn(3, 1, 1, 9)
        with torch.inference_mode():
            expected = model(TOKENS, attention_mask=added).last_hidden_state
            output = self.warned(fuse_(model), "other values", lambda m: m(TOKENS, attention_mask=added))
        assert torch.equal(output.last_hidden_state, expected)

    @pytest.mark.parametrize("name", KINDS)
    def test_compiled_models(self, name: str) -> None:
        model = fuse_(make(name))
        expected = answers(model, None)
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        assert close(answers(compiled, None), expected)

    def test_a_layer_replaced_by_a_foreign_one(self) -> None:
        model = fuse_(build("BertModel"))

        class Shifted(nn.Linear):
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(x) + 1

        model.encoder.layer[0].output.dense.__class__ = Shifted
        expected = self.warned(model, "Shifted is not a plain or sparse linear layer", answers)
        assert torch.equal(answers(unfuse_(model)), expected)

    @pytest.mark.parametrize(
        ("name", "path"),
        [
            ("BertModel", "encoder.layer.1.output.dense"),
            ("MPNetModel", "encoder.layer.1.attention.attn.v"),
            ("ModernBertModel", "layers.1.mlp.Wo"),
        ],
    )
    def test_an_adapter_that_comes_later(self, name: str, path: str) -> None:
        model = fuse_(make(name))
        before = answers(model)
        original = model.get_submodule(path)
        model.set_submodule(path, Adapted(original))
        answer = self.warned(model, "is not part of its family's layers|is not a plain or sparse", answers)
        assert close(answer, answers(unfuse_(copy.deepcopy(model))))
        assert not close(answer, before)
        model.set_submodule(path, original)
        assert torch.equal(answers(model), before)

    def test_without_the_native_library(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model = fuse_(build())
        monkeypatch.setattr("sparsebert_kernels.cpu.native.why_unavailable", lambda: "not built")
        self.warned(model, "the native library is missing", answers)


class TestRefusals:
    def refused(self, model: nn.Module, message: str) -> None:
        classes = [type(module) for module in model.modules()]
        with pytest.raises(ValueError, match=message):
            fuse_(model)
        assert [type(module) for module in model.modules()] == classes

    def test_a_model_of_another_family(self) -> None:
        config = transformers.GPT2Config(n_layer=1, n_embd=24, n_head=3, vocab_size=50)
        self.refused(transformers.GPT2Model(config), "GPT2Model has no encoder of these families")

    def test_a_model_that_only_looks_like_bert(self) -> None:
        model = transformers.MegatronBertModel(transformers.MegatronBertConfig(**WIDTH))
        self.refused(model, "MegatronBertModel has no encoder")

    def test_sparse_attention(self) -> None:
        config = transformers.BigBirdConfig(**WIDTH, attention_type="original_full")
        self.refused(transformers.BigBirdModel(config), "BigBirdModel has no encoder")

    def test_cross_attention(self) -> None:
        config = transformers.BertConfig(**WIDTH, is_decoder=True, add_cross_attention=True)
        self.refused(transformers.BertModel(config), "layer 0 of BertEncoder cannot be fused")

    def test_embeddings_of_relative_positions(self) -> None:
        """As ``relative_key`` had them; a module that the family lacks."""
        model = build("BertModel")
        model.encoder.layer[1].attention.self.distance_embedding = nn.Embedding(63, 8)
        self.refused(model, "layer 1 of BertEncoder cannot be fused: Embedding is not part of its family")

    def test_a_subclass(self) -> None:
        class Scaled(transformers.ModernBertModel):
            pass

        self.refused(Scaled(modern_config()), "Scaled has no encoder of these families")

    def test_a_decoder(self) -> None:
        model = transformers.BertModel(transformers.BertConfig(**WIDTH, is_decoder=True))
        self.refused(model, "layer 0 of BertEncoder cannot be fused: the model is a decoder")

    def test_an_unknown_activation(self) -> None:
        model = transformers.BertModel(transformers.BertConfig(**WIDTH, hidden_act="silu"))
        self.refused(model, "SiLUActivation is none of relu, gelu, gelu_tanh")

    @pytest.mark.parametrize(
        ("name", "path"),
        [
            ("BertModel", "encoder.layer.1.output.dense"),
            ("MPNetModel", "encoder.layer.1.attention.attn.q"),
            ("ModernBertModel", "layers.1.attn.Wqkv"),
        ],
    )
    def test_an_adapter(self, name: str, path: str) -> None:
        model = make(name)
        model.set_submodule(path, Adapted(model.get_submodule(path)))
        self.refused(model, "layer 1 of .* cannot be fused")
