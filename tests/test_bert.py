"""Module names of BERT-like families: keys, structure and activations, for every task head."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

from sparsebert import bert

transformers = pytest.importorskip("transformers")

LAYERS = 2
WIDTH = {
    "hidden_size": 24,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "num_hidden_layers": LAYERS,
    "vocab_size": 50,
}
CONFIGS = {
    "Bert": lambda: transformers.BertConfig(**WIDTH),
    "Roberta": lambda: transformers.RobertaConfig(**WIDTH),
    "Electra": lambda: transformers.ElectraConfig(**WIDTH, embedding_size=16, summary_use_proj=True),
    "DistilBert": lambda: transformers.DistilBertConfig(
        dim=24, n_heads=3, hidden_dim=40, n_layers=LAYERS, vocab_size=50
    ),
}
HEADS = {
    "Bert": [
        *(
            "Model",
            "ForMaskedLM",
            "ForPreTraining",
            "ForNextSentencePrediction",
            "LMHeadModel",
            "ForMultipleChoice",
        ),
        *("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering"),
    ],
    "Roberta": [
        *("Model", "ForMaskedLM", "ForCausalLM", "ForMultipleChoice"),
        *("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering"),
    ],
    "DistilBert": [
        *("Model", "ForMaskedLM", "ForMultipleChoice"),
        *("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering"),
    ],
    "Electra": [
        *("Model", "ForMaskedLM", "ForPreTraining", "ForCausalLM", "ForMultipleChoice"),
        *("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering"),
    ],
}
EVERY_MODEL = {family + head: family for family, heads in HEADS.items() for head in heads}


def build(family: str, name: str) -> Any:
    torch.manual_seed(0)
    return getattr(transformers, name)(CONFIGS[family]()).eval()


@cache
def built(name: str) -> Any:
    """The model of that class, made once: for tests that leave it as it is."""
    return build(EVERY_MODEL[name], name)


@pytest.mark.parametrize("name", EVERY_MODEL)
class TestEveryHead:
    def test_six_matrices_a_layer_with_the_same_keys_as_the_bare_model(self, name: str) -> None:
        structure = bert.structure(built(name))
        assert structure.linears == bert.structure(built(f"{EVERY_MODEL[name]}Model")).linears
        assert len(structure.linears) == 6 * LAYERS
        assert (structure.num_heads, structure.head_size) == (3, 8)

    def test_keys_resolve_to_the_linears_that_the_state_dict_names(self, name: str) -> None:
        model = built(name)
        structure = bert.structure(model)
        modules = dict(model.named_modules())
        assert structure.prefix == (
            "" if name.endswith("Model") and "LMHead" not in name else EVERY_MODEL[name].lower()
        )
        for key in structure.linears:
            linear = bert.resolve(model, key)
            assert isinstance(linear, nn.Linear)
            assert linear is modules[bert.full_name(model, key)]
            assert bert.full_name(model, key) == (f"{structure.prefix}.{key}" if structure.prefix else key)
            assert f"{bert.full_name(model, key)}.weight" in model.state_dict()
            assert bert.canonical_key(bert.full_name(model, key)) == key

    def test_embeddings_heads_and_tied_decoders_are_not_prunable(self, name: str) -> None:
        model = built(name)
        keys = bert.structure(model).linears
        prunable = {bert.resolve(model, key).get_parameter("weight").data_ptr() for key in keys}
        for embedding in (model.get_input_embeddings(), model.get_output_embeddings()):
            assert embedding is None or embedding.weight.data_ptr() not in prunable
        assert all(".layer." in key for key in keys)


@pytest.mark.parametrize("wrapper", ["_orig_mod", "module", "module._orig_mod"])
def test_keys_do_not_show_torch_compile_and_data_parallel(wrapper: str) -> None:
    key = "encoder.layer.0.output.dense"
    assert bert.canonical_key(f"{wrapper}.bert.{key}") == bert.canonical_key(f"{wrapper}.{key}") == key


@pytest.mark.parametrize(
    "prefix",
    ["model.", "net.", "base_model.model.", "0.auto_model.", "module.model.", "model._orig_mod.net."],
)
@pytest.mark.parametrize(
    "key", ["encoder.layer.0.output.dense", "transformer.layer.1.ffn.lin1", "pooler.dense"]
)
def test_keys_do_not_show_training_code(prefix: str, key: str) -> None:
    assert bert.canonical_key(f"{prefix}{key}") == bert.canonical_key(f"{prefix}bert.{key}") == key


@pytest.mark.parametrize(
    "path", ["model.layers.0.q_proj", "net.0", "base_model.model.lm_head", "model.encoder"]
)
def test_paths_of_other_models_stay_whole(path: str) -> None:
    assert bert.canonical_key(path) == path


@pytest.mark.parametrize("family", CONFIGS)
class TestEveryFamily:
    def test_types_tell_the_shapes(self, family: str) -> None:
        model = build(family, f"{family}Model")
        types = bert.structure(model).types
        shapes = {"ffn_up": (40, 24), "ffn_down": (24, 40)}
        for key, kind in types.items():
            assert tuple(bert.resolve(model, key).get_parameter("weight").shape) == shapes.get(kind, (24, 24))
        assert sorted(types.values()).count("query") == LAYERS

    def test_shared_inputs_really_get_one_tensor(self, family: str) -> None:
        model = build(family, f"{family}Model")
        inputs: dict[str, int] = {}
        for group in bert.structure(model).shared_inputs:
            for key in group:
                bert.resolve(model, key).register_forward_pre_hook(
                    lambda _, args, key=key: inputs.update({key: id(args[0])})
                )
        with torch.no_grad():
            model(input_ids=torch.arange(6).reshape(1, 6))
        for group in bert.structure(model).shared_inputs:
            assert len({inputs[key] for key in group}) == 1

    def test_the_activation_is_what_follows_the_up_projection(self, family: str) -> None:
        model = build(family, f"{family}Model")
        structure = bert.structure(model)
        assert list(structure.activations) == [
            key for key in structure.linears if structure.types[key] == "ffn_up"
        ]
        seen: dict[str, torch.Tensor] = {}
        for key, path in structure.activations.items():
            bert.resolve(model, key).register_forward_hook(lambda _, args, y, key=key: seen.update({key: y}))
            bert.resolve(model, path).register_forward_pre_hook(
                lambda _, args, path=path: seen.update({path: args[0]})
            )
        with torch.no_grad():
            model(input_ids=torch.arange(6).reshape(1, 6))
        for key, path in structure.activations.items():
            assert torch.equal(seen[key], seen[path])


def test_bert_base_has_72_linears_of_85_million_weights_and_a_pooler() -> None:
    with torch.device("meta"):
        model = transformers.BertModel(transformers.BertConfig())
    structure = bert.structure(model)
    assert len(structure.linears) == 72
    assert (
        sum(bert.resolve(model, key).get_parameter("weight").numel() for key in structure.linears)
        == 84_934_656
    )
    assert structure.pooler == "pooler.dense"
    assert structure.types["pooler.dense"] == "pooler"


@pytest.mark.parametrize(
    ("family", "name", "pooler"),
    [
        ("Bert", "BertForSequenceClassification", "pooler.dense"),
        ("Roberta", "RobertaForMultipleChoice", "pooler.dense"),
        ("Bert", "BertForMaskedLM", None),
        ("Roberta", "RobertaForSequenceClassification", None),
        ("DistilBert", "DistilBertForSequenceClassification", None),
        ("Electra", "ElectraForSequenceClassification", None),
    ],
)
def test_the_pooler_is_named_only_where_there_is_one(family: str, name: str, pooler: str | None) -> None:
    assert bert.structure(build(family, name)).pooler == pooler


def test_wrappers_change_the_full_name_and_not_the_key() -> None:
    model = build("Bert", "BertForSequenceClassification")
    key = "encoder.layer.1.output.dense"
    wrapped: Any
    for wrapped, prefix in (
        (torch.compile(model), "_orig_mod.bert"),
        (nn.DataParallel(model), "module.bert"),
    ):
        assert bert.structure(wrapped).prefix == prefix
        assert bert.full_name(wrapped, key) == f"{prefix}.{key}"
        assert f"{prefix}.{key}.weight" in wrapped.state_dict()
        assert bert.resolve(wrapped, key) is bert.resolve(model, key)


def test_a_wrapped_single_layer_keeps_its_keys() -> None:
    model = build("Bert", "BertModel")
    keys = bert.structure(model).linears
    model.encoder.layer[0] = torch.compile(model.encoder.layer[0])
    assert bert.structure(model).linears == keys
    assert bert.full_name(model, keys[0]) == "encoder.layer.0._orig_mod.attention.self.query"


def test_a_home_made_head_around_an_encoder_is_understood() -> None:
    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.text: Any = build("DistilBert", "DistilBertModel")
            self.out = nn.Linear(24, 2)

    model = Classifier()
    assert bert.structure(model).prefix == "text"
    assert bert.full_name(model, "transformer.layer.0.ffn.lin1") == "text.transformer.layer.0.ffn.lin1"
    assert bert.resolve(model, "out") is model.out


def test_a_key_of_a_head_resolves_beside_the_base_model() -> None:
    model = build("Bert", "BertForMaskedLM")
    assert bert.resolve(model, "cls.predictions.decoder") is model.cls.predictions.decoder


def test_a_plain_model_resolves_full_paths() -> None:
    inner = nn.Linear(4, 5)
    model = nn.Sequential(nn.Linear(3, 4), nn.Sequential(inner))
    assert bert.resolve(model, "1.0") is inner
    assert not bert.is_bert_like(model)


def test_other_models_are_refused_by_their_class() -> None:
    with pytest.raises(ValueError, match="Sequential is none of these"):
        bert.structure(nn.Sequential(nn.Linear(3, 4)))
    with torch.device("meta"):
        gpt = transformers.GPT2Model(transformers.GPT2Config(n_layer=1))
    with pytest.raises(ValueError, match="GPT2Model"):
        bert.structure(gpt)


def test_full_paths_tell_two_encoders_apart() -> None:
    pair = nn.ModuleDict({"bert": build("Bert", "BertModel"), "roberta": build("Roberta", "RobertaModel")})
    for name, encoder in pair.items():
        key = "encoder.layer.1.output.dense"
        assert bert.resolve(pair, f"{name}.{key}") is encoder.get_submodule(key)


def test_a_key_without_the_path_of_its_holder() -> None:
    """Of an encoder whose family is unknown, so that nothing else says where it begins."""
    model = nn.ModuleDict({"model": nn.ModuleDict({"encoder": build("Bert", "BertModel").encoder})})
    key = "encoder.layer.1.output.dense"
    assert bert.full_name(model, f"model.{key}") == bert.full_name(model, key) == f"model.{key}"


def test_two_encoders_in_one_model_are_refused() -> None:
    pair = nn.ModuleList([build("Bert", "BertModel"), build("Roberta", "RobertaModel")])
    with pytest.raises(ValueError, match="contains 2 such encoders"):
        bert.structure(pair)


def test_an_unknown_key_is_refused() -> None:
    with pytest.raises(ValueError, match=r"BertModel has no module 'encoder.layer.9.output.dense'"):
        bert.resolve(build("Bert", "BertModel"), "encoder.layer.9.output.dense")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gelu", "gelu"),
        ("gelu_python", "gelu"),
        ("gelu_new", "gelu_tanh"),
        ("gelu_fast", "gelu_tanh"),
        ("gelu_pytorch_tanh", "gelu_tanh"),
        ("relu", "relu"),
        ("gelu_10", None),
        ("quick_gelu", None),
        ("silu", None),
        ("relu2", None),
        ("linear", None),
    ],
)
def test_activations_are_named_by_what_they_compute(name: str, expected: str | None) -> None:
    assert bert.activation_name(transformers.activations.ACT2FN[name]) == expected


def test_an_activation_with_parameters_is_never_named() -> None:
    assert bert.activation_name(nn.PReLU(init=0.0)) is None


def test_an_activation_that_is_not_a_module_is_left_out() -> None:
    model = build("Bert", "BertModel")
    for layer in model.encoder.layer:
        del layer.intermediate.intermediate_act_fn
        layer.intermediate.intermediate_act_fn = torch.nn.functional.gelu
    assert bert.structure(model).activations == {}
    up = bert.structure(model).neurons[0][0]
    assert bert.activation_of(model, up) is torch.nn.functional.gelu


@pytest.mark.parametrize("family", CONFIGS)
def test_what_follows_an_up_projection_is_called_past_its_hooks(family: str) -> None:
    model = build(family, f"{family}Model")
    fired: list[bool] = []
    for up, _ in bert.structure(model).neurons:
        bert.resolve(model, bert.structure(model).activations[up]).register_forward_hook(
            lambda *_: fired.append(True)
        )
        x = torch.randn(3, dtype=torch.float64)
        torch.testing.assert_close(bert.activation_of(model, up)(x), nn.functional.gelu(x))
    assert not fired
    with pytest.raises(ValueError, match="is not an up-projection"):
        bert.activation_of(model, bert.structure(model).neurons[0][1])
