"""The encoders of transformers that have a native form: each family in one place."""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch import Tensor, nn

from sparsebert.bert import BERT, DISTILBERT, Layout


@dataclass(frozen=True)
class Embeddings:
    """The embeddings before the first layer.

    Attributes:
        cls: The class of the module, {} for the family.
        words: The embeddings of token ids, an attribute of the module, as all below.
        positions: Those of positions; None for none.
        types: Those of token types; None for none.
        norm: The LayerNorm of their sum.
        dropout: The dropout after it.
        counted: Whether positions count the tokens that are not padding, from ``padding_idx + 1`` on.
    """

    cls: str = "{}Embeddings"
    words: str = "word_embeddings"
    positions: str | None = "position_embeddings"
    types: str | None = "token_type_embeddings"
    norm: str = "LayerNorm"
    dropout: str = "dropout"
    counted: bool = False


@dataclass(frozen=True)
class Family:
    """One family of encoders: the names of its modules and classes in transformers.

    Attributes:
        package: The package that defines it, below ``transformers.models``.
        name: What its classes begin with, which {} stands for.
        layout: The paths of the matrices.
        norms: The LayerNorms at the attention and at the feed-forward network, below a layer.
        classes: Path of every other module with submodules, below a layer -> its class.
        dropouts: The dropouts, below a layer.
        encoder: Path and class of the module that runs the layers, below the base model; "" for itself.
        layers: The list of layers, an attribute of that module.
        result: The class of that module's result.
        model: The class of the base model.
        model_result: The class of its result.
        arguments: The positional arguments of its forward method.
        embeddings: The embeddings before the layers.
        projection: The linear layer from the embeddings to the layers, of the base model; None for none.
        pooler: The class of the base model's ``pooler``; None for none.
        pre_norm: Whether the LayerNorms stand before attention and feed-forward network; a ``final_norm``
            follows the last layer. The activation of such a network is gated, its positions are rotary, and
            one matrix computes query, key and value.
        relative_bias: The embeddings of distances, which the encoder adds to the scores; None for none.
    """

    package: str
    name: str
    layout: Layout
    norms: tuple[str, str]
    classes: dict[str, str]
    dropouts: tuple[str, ...]
    encoder: tuple[str, str]
    result: str
    model_result: str
    arguments: tuple[str, ...]
    embeddings: Embeddings
    layers: str = "layer"
    model: str = "{}Model"
    projection: str | None = None
    pooler: str | None = "{}Pooler"
    pre_norm: bool = False
    relative_bias: str | None = None


_BERT = Family(
    package="bert",
    name="Bert",
    layout=BERT,
    norms=("attention.output.LayerNorm", "output.LayerNorm"),
    classes={
        "": "{}Layer",
        "attention": "{}Attention",
        "attention.self": "{}SelfAttention",
        "attention.output": "{}SelfOutput",
        "intermediate": "{}Intermediate",
        "output": "{}Output",
    },
    dropouts=("attention.self.dropout", "attention.output.dropout", "output.dropout"),
    encoder=("encoder", "{}Encoder"),
    result="BaseModelOutputWithPastAndCrossAttentions",
    model_result="BaseModelOutputWithPoolingAndCrossAttentions",
    arguments=("input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds"),
    embeddings=Embeddings(),
)
_ROBERTA = replace(_BERT, package="roberta", name="Roberta", embeddings=Embeddings(counted=True))
_FAMILIES = (
    _BERT,
    _ROBERTA,
    replace(_ROBERTA, package="xlm_roberta", name="XLMRoberta"),
    replace(_ROBERTA, package="camembert", name="Camembert"),
    replace(
        _BERT,
        package="electra",
        name="Electra",
        projection="embeddings_project",
        pooler=None,
        model_result="BaseModelOutputWithPastAndCrossAttentions",
    ),
    Family(
        package="distilbert",
        name="DistilBert",
        layout=DISTILBERT,
        norms=("sa_layer_norm", "output_layer_norm"),
        classes={"": "TransformerBlock", "attention": "{}SelfAttention", "ffn": "FFN"},
        dropouts=("attention.dropout", "ffn.dropout"),
        encoder=("transformer", "Transformer"),
        result="BaseModelOutput",
        model_result="BaseModelOutput",
        arguments=("input_ids", "attention_mask", "inputs_embeds", "position_ids"),
        embeddings=Embeddings(cls="Embeddings", types=None),
        pooler=None,
    ),
    Family(
        package="mpnet",
        name="MPNet",
        layout=Layout(
            layers="encoder.layer",
            linears={
                "attention.attn.q": "query",
                "attention.attn.k": "key",
                "attention.attn.v": "value",
                "attention.attn.o": "attention_output",
                "intermediate.dense": "ffn_up",
                "output.dense": "ffn_down",
            },
            activation="intermediate.intermediate_act_fn",
            pooler="pooler.dense",
        ),
        norms=("attention.LayerNorm", "output.LayerNorm"),
        classes={
            "": "{}Layer",
            "attention": "{}Attention",
            "attention.attn": "{}SelfAttention",
            "intermediate": "{}Intermediate",
            "output": "{}Output",
        },
        dropouts=("attention.attn.dropout", "attention.dropout", "output.dropout"),
        encoder=("encoder", "{}Encoder"),
        result="BaseModelOutput",
        model_result="BaseModelOutputWithPooling",
        arguments=("input_ids", "attention_mask", "position_ids", "inputs_embeds"),
        embeddings=Embeddings(types=None, counted=True),
        relative_bias="relative_attention_bias",
    ),
    Family(
        package="modernbert",
        name="ModernBert",
        layout=Layout(
            layers="layers",
            linears={
                "attn.Wqkv": "query",
                "attn.Wo": "attention_output",
                "mlp.Wi": "ffn_up",
                "mlp.Wo": "ffn_down",
            },
            activation="mlp.act",
            pooler=None,
        ),
        norms=("attn_norm", "mlp_norm"),
        classes={"": "{}EncoderLayer", "attn": "{}Attention", "mlp": "{}MLP"},
        dropouts=("attn.out_drop", "mlp.drop"),
        encoder=("", "{}Model"),
        layers="layers",
        result="BaseModelOutput",
        model_result="BaseModelOutput",
        arguments=("input_ids", "attention_mask", "position_ids", "inputs_embeds"),
        embeddings=Embeddings(
            words="tok_embeddings", positions=None, types=None, norm="norm", dropout="drop"
        ),
        pooler=None,
        pre_norm=True,
    ),
)
NAMES = "BERT, RoBERTa, XLM-RoBERTa, CamemBERT, ELECTRA, DistilBERT, MPNet or ModernBERT"
_KINDS = ("query", "key", "value", "attention_output", "ffn_up", "ffn_down")


class EncoderLayer(NamedTuple):
    """The modules of one layer of an encoder.

    Attributes:
        layer: The layer.
        attention: The self-attention with the projections.
        linears: Query, key, value, attention output, up and down; None for key and value where the query
            computes all three.
        norms: The LayerNorms at the attention and at the feed-forward network.
        activation: The feed-forward network's activation.
        unknown: Modules that the family's own layers lack or have in another class.
    """

    layer: nn.Module
    attention: nn.Module
    linears: tuple[nn.Module | None, ...]
    norms: tuple[nn.Module, ...]
    activation: nn.Module
    unknown: tuple[nn.Module, ...]


def encoder_family(cls: type) -> Family | None:
    """Return the family whose encoder is of this class: the module that runs the layers in turn."""
    return _BY_ENCODER.get(_defined_in(cls))


def model_family(cls: type) -> Family | None:
    """Return the family whose base model is of this class."""
    return _BY_MODEL.get(_defined_in(cls))


def encoder_layers(encoder: Any, family: Family) -> list[EncoderLayer]:
    """Describe the layers of an encoder.

    Raises:
        ValueError: One of its layers lacks a module.
    """
    layout = family.layout
    leaves = {*layout.linears, *family.norms, *family.dropouts, layout.activation}
    matrices = {kind: path for path, kind in layout.linears.items()}
    attention = layout.linear("query").rpartition(".")[0]

    def described(layer: nn.Module) -> EncoderLayer:
        modules = dict(layer.named_modules())
        if missing := sorted((leaves | {*family.classes}) - {*modules}):
            raise ValueError(f"a layer of {type(encoder).__name__} lacks {missing[0]}")

        def is_known(path: str, module: nn.Module) -> bool:
            if path in family.dropouts:
                return type(module) in (nn.Dropout, nn.Identity)
            if path in leaves or path.startswith(f"{layout.activation}."):
                return True
            return path in family.classes and is_of(module, family, family.classes[path])

        return EncoderLayer(
            layer,
            modules[attention],
            tuple(modules[matrices[kind]] if kind in matrices else None for kind in _KINDS),
            tuple(modules[path] for path in family.norms),
            modules[layout.activation],
            tuple(module for path, module in modules.items() if not is_known(path, module)),
        )

    return [described(layer) for layer in getattr(encoder, family.layers)]


def is_of(module: nn.Module, family: Family, name: str) -> bool:
    """Whether a module is of the family's class of this name, {} for the family."""
    return _defined_in(type(module)) == (family.package, name.format(family.name))


def encoder_result(family: Family, hidden_states: Tensor, return_dict: bool | None) -> Any:
    """Return the result of an encoder that holds the last hidden states alone."""
    if family.relative_bias and not return_dict:
        return (hidden_states,)  # MPNet's encoder returns tuples by itself, those of other families never
    return _output(result_class(family, family.result), last_hidden_state=hidden_states)


def model_result(family: Family, hidden_states: Tensor, pooled: Tensor | None) -> Any:
    """Return the result of a base model."""
    pooler_output = {"pooler_output": pooled} if family.pooler else {}
    cls = result_class(family, family.model_result)
    return _output(cls, last_hidden_state=hidden_states, **pooler_output)


def _output(cls: Any, **values: Tensor | None) -> Any:
    """Return ``cls(**values)`` without running its constructor, whose checks are slow."""
    output = cls.__new__(cls)
    vars(output).update(_empty(cls))
    for name, value in values.items():
        if value is not None:
            output[name] = value
    return output


@functools.cache
def _empty(cls: Any) -> dict[str, None]:
    """Return the attributes of an output without values."""
    return dict(vars(cls()))


def result_class(family: Family, name: str) -> Any:
    """Return the class of a result, by its name in transformers."""
    return vars(sys.modules[_module(family.package)])[name]


def _module(package: str) -> str:
    return f"transformers.models.{package}.modeling_{package}"


def _defined_in(cls: type) -> tuple[str, str]:
    """Return the package of transformers that defines a class, and the name; another class may bear both."""
    package, _, module = cls.__module__.removeprefix("transformers.models.").partition(".")
    if module != f"modeling_{package}" or vars(sys.modules[cls.__module__]).get(cls.__name__) is not cls:
        return "", ""
    return package, cls.__name__


_BY_ENCODER = {(each.package, each.encoder[1].format(each.name)): each for each in _FAMILIES}
_BY_MODEL = {(each.package, each.model.format(each.name)): each for each in _FAMILIES}
