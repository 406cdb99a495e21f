"""A fused base model: one native call from token ids to the pooler, and the plain way where that differs."""

from __future__ import annotations

import copy
import inspect
import os
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparsebert import fuse_, prune, sparsify_, unfuse_
from sparsebert_kernels import cpu
from sparsebert_kernels.cpu import native
from tests.sparsify.models import WIDTH

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.skipif(not cpu.available(), reason="no native library")

SPECIAL = {"pad_token_id": 1, "bos_token_id": 0, "cls_token_id": 0, "eos_token_id": 2, "sep_token_id": 2}
DISTIL = {"dim": 24, "n_heads": 3, "hidden_dim": 40, "n_layers": 2, "vocab_size": 50}
FAMILIES: dict[str, Callable[[], Any]] = {
    "bert": lambda: transformers.BertModel(transformers.BertConfig(**WIDTH)),
    "roberta": lambda: transformers.RobertaModel(transformers.RobertaConfig(**WIDTH)),
    "electra": lambda: transformers.ElectraModel(transformers.ElectraConfig(**WIDTH, embedding_size=16)),
    "distilbert": lambda: transformers.DistilBertModel(
        transformers.DistilBertConfig(**DISTIL, max_position_embeddings=32)
    ),
    "mpnet": lambda: transformers.MPNetModel(transformers.MPNetConfig(**WIDTH)),
    "modernbert": lambda: transformers.ModernBertModel(
        transformers.ModernBertConfig(**WIDTH | {"num_hidden_layers": 4}, **SPECIAL, local_attention=8)
    ),
}
MASK = torch.arange(23) < torch.tensor([[23], [1], [9], [17]])


@pytest.fixture(autouse=True)
def _no_warning() -> Iterator[None]:
    """A warning says that the layers ran one by one: only tests of that expect one."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="the fused encoder")
        yield


def build(name: str) -> Any:
    """A model whose parameters all matter."""
    torch.manual_seed(0)
    model = FAMILIES[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn_like(parameter) * 0.2
    return model


def ids() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(3, 50, MASK.shape, generator=generator)


@torch.inference_mode()
def answers(model: Any, mask: Tensor | None = MASK, **inputs: Any) -> list[Tensor]:
    """All outputs: the states at tokens and the pooler's."""
    output = model(**{"input_ids": ids(), "attention_mask": mask} | inputs)
    kept = torch.ones_like(MASK) if mask is None else mask.bool()
    values = output.values() if hasattr(output, "values") else output
    return [each[kept] if each.shape[:2] == kept.shape else each for each in values]


def close(answer: list[Tensor], expected: list[Tensor]) -> bool:
    assert len(answer) == len(expected)
    return all(torch.allclose(*pair, rtol=1e-4, atol=3e-5) for pair in zip(answer, expected, strict=True))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The native calls of the test."""
    library, made = native.library(), []

    class Counted:
        def __getattr__(self, name: str) -> Any:
            made.append(name)
            return getattr(library, name)

    counted = Counted()
    monkeypatch.setattr(native, "library", lambda: counted)
    return made


class TestOneCall:
    @pytest.mark.parametrize("name", FAMILIES)
    def test_a_batch_is_one_native_call(self, name: str, calls: list[str]) -> None:
        model = build(name)
        expected = answers(model)
        fuse_(model)
        assert close(answers(model), expected)
        assert calls == ["sb_encoder"]

    @pytest.mark.parametrize("name", FAMILIES)
    def test_no_module_runs_by_itself(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        model = fuse_(build(name))
        answers(model)

        def never(*_: Any, **__: Any) -> None:
            raise AssertionError("a module ran")

        for cls in (nn.Embedding, nn.LayerNorm, nn.Linear, nn.Tanh):
            monkeypatch.setattr(cls, "forward", never)
        answers(model)

    @pytest.mark.parametrize("name", FAMILIES)
    @pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float32, torch.int32])
    def test_masks_of_any_dtype(self, name: str, dtype: torch.dtype, calls: list[str]) -> None:
        model = build(name)
        expected = answers(model)
        assert close(answers(fuse_(model), MASK.to(dtype)), expected)
        assert calls == ["sb_encoder"]

    @pytest.mark.parametrize("name", ["bert", "roberta", "electra"])
    def test_token_types(self, name: str, calls: list[str]) -> None:
        model = build(name)
        if model.config.type_vocab_size == 1:
            model.embeddings.token_type_embeddings = nn.Embedding(2, 24)
        types = torch.arange(23).expand(4, -1) // 12
        expected = answers(model, token_type_ids=types)
        assert close(answers(fuse_(model), token_type_ids=types), expected)
        assert calls == ["sb_encoder"]

    @pytest.mark.parametrize("name", ["roberta", "mpnet"])
    def test_positions_count_the_tokens_that_are_not_padding(self, name: str) -> None:
        model = build(name)
        tokens = ids()
        tokens[~MASK] = 1
        tokens[0, 4] = tokens[3, 2] = 1  # padding tokens that the mask keeps
        expected = answers(model, input_ids=tokens), answers(model, None, input_ids=tokens)
        fuse_(model)
        assert close(answers(model, input_ids=tokens), expected[0])
        assert close(answers(model, None, input_ids=tokens), expected[1])

    def test_positional_arguments(self) -> None:
        model = build("bert")
        with torch.inference_mode():
            expected = model(ids(), MASK.long()).last_hidden_state[MASK]
            assert torch.allclose(
                fuse_(model)(ids(), MASK.long()).last_hidden_state[MASK], expected, atol=1e-5
            )
            with pytest.raises(TypeError, match="multiple values"):
                model(ids(), input_ids=ids())

    @pytest.mark.parametrize("name", FAMILIES)
    @pytest.mark.parametrize("return_dict", [None, True, False])
    def test_results_have_the_same_type(self, name: str, return_dict: bool | None) -> None:
        model = build(name)
        expected = model(ids(), return_dict=return_dict)
        with torch.inference_mode():
            answer = fuse_(model)(ids(), return_dict=return_dict)
        assert type(answer) is type(expected)
        assert len(answer) == len(expected)
        assert not hasattr(expected, "keys") or answer.keys() == expected.keys()

    @pytest.mark.parametrize("name", ["bert", "mpnet"])
    @pytest.mark.parametrize("return_dict", [True, False])
    def test_without_a_pooler(self, name: str, return_dict: bool) -> None:
        model = build(name)
        model.pooler = None
        expected = model(ids(), return_dict=return_dict)
        with torch.inference_mode():
            answer = fuse_(model)(ids(), return_dict=return_dict)
        assert len(answer) == len(expected)
        assert torch.allclose(answer[0], expected[0], atol=1e-5)

    @pytest.mark.parametrize("name", FAMILIES)
    def test_signature_name_and_documentation_stay(self, name: str) -> None:
        plain = build(name)
        fused = fuse_(copy.deepcopy(plain))
        assert inspect.signature(fused.forward) == inspect.signature(plain.forward)
        assert type(fused).__name__ == type(plain).__name__
        assert isinstance(fused, type(plain))
        assert type(unfuse_(fused)) is type(plain)

    def test_longer_texts_of_a_model_with_local_attention(self) -> None:
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

    def test_distances_beyond_the_last_bucket(self) -> None:
        config = transformers.MPNetConfig(**WIDTH | {"max_position_embeddings": 400})
        torch.manual_seed(0)
        model = transformers.MPNetModel(config).eval()
        with torch.no_grad():
            model.encoder.relative_attention_bias.weight.normal_(std=2)
        tokens = torch.randint(3, 50, (2, 390))
        with torch.inference_mode():
            expected = model(tokens).last_hidden_state
            assert torch.allclose(fuse_(model)(tokens).last_hidden_state, expected, atol=1e-4)


class TestInputs:
    """Inputs beyond token ids, and bad ones."""

    @pytest.mark.parametrize("name", FAMILIES)
    def test_embeddings_of_the_caller(self, name: str, calls: list[str]) -> None:
        model = build(name)
        given = model.get_input_embeddings()(ids()).detach()
        inputs = {"input_ids": None, "inputs_embeds": given}
        expected = answers(model, **inputs)
        assert close(answers(fuse_(model), **inputs), expected)
        assert calls == ["sb_encoder"]

    @pytest.mark.parametrize("name", ["bert", "roberta", "electra", "mpnet"])
    def test_positions_of_the_caller(self, name: str) -> None:
        model = build(name)
        positions = torch.arange(23).flip(0)[None].contiguous() + 2
        expected = answers(model, position_ids=positions)
        assert close(answers(fuse_(model), position_ids=positions), expected)

    def test_rotary_positions_of_the_caller(self) -> None:
        model = build("modernbert")
        positions = 2 * torch.arange(23)[None]
        expected = answers(model, position_ids=positions)
        with pytest.warns(UserWarning, match="one by one: the call has the argument position_ids"):
            assert close(answers(fuse_(model), position_ids=positions), expected)

    @pytest.mark.parametrize("name", FAMILIES)
    @pytest.mark.parametrize("wrong", [50, -1])
    def test_ids_outside_the_vocabulary(self, name: str, wrong: int) -> None:
        model = build(name)
        tokens = ids()
        tokens[1, 20] = wrong  # in the padding
        with pytest.raises(IndexError) as plain:
            answers(model, input_ids=tokens)
        with pytest.raises(IndexError) as fused:
            answers(fuse_(model), input_ids=tokens)
        assert str(fused.value) == str(plain.value)
        answers(model)

    @pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "mpnet"])
    def test_more_tokens_than_positions(self, name: str) -> None:
        model = build(name)
        tokens = torch.full((2, 40), 5)
        with pytest.raises((IndexError, RuntimeError)) as plain:
            model(tokens)
        with torch.inference_mode(), pytest.raises((IndexError, RuntimeError)) as fused:
            fuse_(model)(tokens)
        assert (fused.type, str(fused.value)) == (plain.type, str(plain.value))

    def test_more_tokens_than_rotary_positions(self) -> None:
        model = build("modernbert")
        tokens = torch.full((2, 40), 5)
        with torch.inference_mode():
            expected = model(tokens).last_hidden_state
            assert torch.equal(fuse_(model)(tokens).last_hidden_state, expected)

    def test_token_types_outside_their_table(self) -> None:
        model = fuse_(build("bert"))
        with pytest.raises(IndexError, match="out of range"):
            answers(model, token_type_ids=torch.full_like(ids(), 7))

    @pytest.mark.parametrize("name", FAMILIES)
    def test_ids_of_32_bits(self, name: str) -> None:
        model = build(name)
        expected = answers(model)
        if name == "modernbert":
            with pytest.warns(UserWarning, match="the token ids are not int64"):
                assert close(answers(fuse_(model), input_ids=ids().int()), expected)
        else:
            assert close(answers(fuse_(model), input_ids=ids().int()), expected)

    @pytest.mark.parametrize("name", FAMILIES)
    def test_an_empty_batch(self, name: str) -> None:
        """The layers of transformers raise an error of reshaping."""
        model = fuse_(build(name))
        with torch.inference_mode():
            states, *pooled = model(torch.zeros(0, 5, dtype=torch.int64)).to_tuple()
        assert states.shape == (0, 5, 24)
        assert all(each.shape == (0, 24) for each in pooled)

    def test_texts_without_tokens(self) -> None:
        tokens = torch.zeros(3, 0, dtype=torch.int64)
        without_pooler, with_pooler = fuse_(build("distilbert")), fuse_(build("bert"))
        with torch.inference_mode():
            assert without_pooler(tokens).last_hidden_state.shape == (3, 0, 24)
            with pytest.raises(IndexError):
                with_pooler(tokens)  # there is no first token

    @pytest.mark.parametrize("name", FAMILIES)
    @pytest.mark.parametrize("kept", ["none", "last"])
    def test_rows_that_begin_with_padding(self, name: str, kept: str) -> None:
        model = build(name)
        mask = MASK.clone()
        mask[1] = False
        mask[1, -3:] = kept == "last"
        expected = answers(model, mask)
        with pytest.warns(UserWarning, match="a row of the batch begins with padding"):
            assert close(answers(fuse_(model), mask), expected)

    @pytest.mark.parametrize("name", FAMILIES)
    def test_padding_between_tokens(self, name: str) -> None:
        model = build(name)
        mask = MASK.clone()
        mask[0, 5:8] = False
        expected = answers(model, mask)
        fuse_(model)
        if name in ("mpnet", "modernbert"):  # distances count
            with pytest.warns(UserWarning, match="padding lies between the tokens"):
                assert close(answers(model, mask), expected)
        else:
            assert close(answers(model, mask), expected)

    @pytest.mark.parametrize("value", [torch.nan, torch.inf], ids=str)
    @pytest.mark.parametrize("name", FAMILIES)
    def test_nan_and_inf_stay_in_their_sequence(self, name: str, value: float) -> None:
        model = fuse_(build(name))
        tokens = ids()
        tokens[2, 3] = 49
        tokens[tokens == 49] = 48
        clean = answers(model, input_ids=tokens)
        with torch.no_grad():
            model.get_input_embeddings().weight[49, 2] = value
        tokens[2, 3] = 49
        states, *_ = answers(model, input_ids=tokens)
        row = MASK.nonzero()[:, 0]
        assert torch.equal(states[row != 2], clean[0][row != 2])
        assert states[row == 2].isnan().any()


class TestChanges:
    """What the description was made from may change between two calls."""

    @pytest.mark.parametrize("name", FAMILIES)
    def test_of_any_parameter(self, name: str) -> None:
        model = fuse_(build(name))
        before = answers(model)
        for path, parameter in model.named_parameters():
            original = parameter.detach().clone()
            with torch.no_grad():
                # Not by a factor, which a LayerNorm after it may cancel.
                parameter += torch.linspace(0.5, 1.5, parameter.numel()).view(parameter.shape)
            answer = answers(model)
            assert close(answer, answers(unfuse_(copy.deepcopy(model)))), path
            assert path.endswith(("key.bias", "k.bias", "k_lin.bias")) or not close(answer, before), path
            with torch.no_grad():
                parameter.copy_(original)
        assert close(answers(model), before)

    def test_of_the_vocabulary(self) -> None:
        model = fuse_(build("bert"))
        answers(model)
        model.resize_token_embeddings(60)
        tokens = ids()
        tokens[0, 0] = 59
        answer = answers(model, input_ids=tokens)
        assert close(answer, answers(unfuse_(model), input_ids=tokens))

    def test_of_the_pooler(self) -> None:
        model = fuse_(build("bert"))
        answers(model)
        model.pooler = None
        assert len(answers(model)) == 1

    @pytest.mark.parametrize("name", FAMILIES)
    def test_of_the_dtype(self, name: str) -> None:
        model = fuse_(build(name)).double()
        with pytest.warns(UserWarning, match=r"torch\.float64"):
            answer = answers(model)
        assert answer[0].dtype == torch.float64
        assert close([each.float() for each in answer], answers(model.float()))

    def test_of_the_local_window(self) -> None:
        model = fuse_(build("modernbert"))
        before = answers(model)
        model.config.local_attention = 2
        answer = answers(model)
        assert close(answer, answers(unfuse_(copy.deepcopy(model))))
        assert not close(answer, before)

    @pytest.mark.parametrize("name", FAMILIES)
    def test_by_sparsify(self, name: str) -> None:
        model = fuse_(build(name))
        sparsify_(model, prune(model, sparsity=0.5), format="element")
        answer = answers(model)
        assert close(answer, answers(unfuse_(copy.deepcopy(model))))


class TestPlainPath:
    @pytest.mark.parametrize("name", FAMILIES)
    @pytest.mark.parametrize("output", ["hidden_states", "attentions"])
    @pytest.mark.parametrize("by_config", [False, True])
    def test_requested_outputs(self, name: str, output: str, by_config: bool) -> None:
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
    def test_hooks_around_the_encoder_run(self, name: str, path: str, calls: list[str]) -> None:
        model = fuse_(build(name))
        seen: list[Any] = []
        handle = model.get_submodule(path).register_forward_hook(lambda *_: seen.append(path))
        expected = answers(model)
        assert seen == [path]
        assert calls == ["sb_encoder"]  # of the layers
        handle.remove()
        assert close(answers(model), expected)

    def test_hooks_inside_modernbert(self) -> None:
        model = fuse_(build("modernbert"))
        seen: list[Any] = []
        model.layers[1].mlp.register_forward_hook(lambda *_: seen.append(1))
        with pytest.warns(UserWarning, match="has hooks"):
            answers(model)
        assert seen == [1]

    @pytest.mark.parametrize("name", FAMILIES)
    def test_gradients(self, name: str) -> None:
        model = fuse_(build(name))
        with pytest.warns(UserWarning, match="gradients are recorded"):
            output = model(ids(), attention_mask=MASK.long())
        output.last_hidden_state[:, 0].sum().backward()
        assert model.get_input_embeddings().weight.grad is not None

    @pytest.mark.parametrize("name", FAMILIES)
    def test_replaced_embeddings(self, name: str) -> None:
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

    def test_an_attention_of_the_user(self) -> None:
        def mean(module: Any, q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
            return v.mean(2, keepdim=True).expand_as(v).transpose(1, 2), None

        transformers.AttentionInterface.register("sparsebert_mean", mean)
        model = build("bert")
        model.set_attn_implementation("sparsebert_mean")
        expected = answers(model, None)
        with pytest.warns(UserWarning, match="the attention sparsebert_mean is not one of transformers"):
            assert close(answers(fuse_(model), None), expected)

    def test_rotary_positions_that_depend_on_the_length(self) -> None:
        model = build("modernbert")
        model.rotary_emb.rope_type["full_attention"] = "dynamic"
        with pytest.warns(UserWarning, match="rotary positions are scaled by dynamic"):
            answers(fuse_(model))

    def test_chunks_of_the_feed_forward_network(self) -> None:
        config = transformers.BertConfig(**WIDTH, chunk_size_feed_forward=2)
        with pytest.raises(ValueError, match=r"layer 0 of BertEncoder cannot be fused: .*in chunks"):
            fuse_(transformers.BertModel(config))

    def test_a_new_model_of_the_fused_class(self) -> None:
        """Code that makes another model like this one finds a plain one."""
        fused = fuse_(build("bert"))
        torch.manual_seed(0)
        other = type(fused)(fused.config).eval()
        torch.manual_seed(0)
        plain = transformers.BertModel(fused.config).eval()
        assert close(answers(other), answers(plain))


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
