"""The classes of transformers that run the layers of an encoder, and the modules of these layers."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn

from sparsebert.bert import BERT, DISTILBERT, Layout


@dataclass(frozen=True)
class _Family:
    """The layers of one family: its ``Layout``, and the modules and classes beyond it.

    Attributes:
        layout: The paths.
        norms: The LayerNorms after the attention and after the feed-forward network, below a layer.
        classes: Path of every other module with submodules, below a layer -> its class in transformers, where
            {} stands for the family.
        dropouts: The dropouts, below a layer.
        result: The class of the encoder's result.
    """

    layout: Layout
    norms: tuple[str, str]
    classes: dict[str, str]
    dropouts: tuple[str, ...]
    result: str


_BERT = _Family(
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
    result="BaseModelOutputWithPastAndCrossAttentions",
)
_DISTILBERT = _Family(
    layout=DISTILBERT,
    norms=("sa_layer_norm", "output_layer_norm"),
    classes={"": "TransformerBlock", "attention": "{}SelfAttention", "ffn": "FFN"},
    dropouts=("attention.dropout", "ffn.dropout"),
    result="BaseModelOutput",
)

# Package and name of the classes in transformers that hold the layers -> their family and its name.
_ENCODERS = {
    ("bert", "BertEncoder"): (_BERT, "Bert"),
    ("roberta", "RobertaEncoder"): (_BERT, "Roberta"),
    ("xlm_roberta", "XLMRobertaEncoder"): (_BERT, "XLMRoberta"),
    ("camembert", "CamembertEncoder"): (_BERT, "Camembert"),
    ("electra", "ElectraEncoder"): (_BERT, "Electra"),
    ("distilbert", "Transformer"): (_DISTILBERT, "DistilBert"),
}


class EncoderLayer(NamedTuple):
    """The modules of one layer of an encoder.

    Attributes:
        attention: The self-attention with the projections.
        linears: Query, key, value, attention output, up and down.
        norms: The LayerNorms after the attention and after the feed-forward network.
        activation: The feed-forward network's activation.
        unknown: Modules that the family's own layers lack or have in another class.
    """

    attention: nn.Module
    linears: tuple[nn.Module, ...]
    norms: tuple[nn.Module, ...]
    activation: nn.Module
    unknown: tuple[nn.Module, ...]


def is_encoder(module: nn.Module) -> bool:
    """Whether the module's class is a known encoder of transformers: it runs its layers in turn."""
    return _family_of(type(module)) is not None


def encoder_layers(encoder: Any, cls: type) -> list[EncoderLayer]:
    """Describe the layers of an encoder of the known class ``cls``.

    Raises:
        ValueError: One of its layers lacks a module.
    """
    family, name = _family_of(cls)  # type: ignore[misc]
    layout = family.layout
    leaves = {*layout.linears, *family.norms, *family.dropouts, layout.activation}

    def described(layer: nn.Module) -> EncoderLayer:
        modules = dict(layer.named_modules())
        if missing := sorted((leaves | {*family.classes}) - {*modules}):
            raise ValueError(f"a layer of {cls.__name__} lacks {missing[0]}")
        unknown = [
            path
            for path, module in modules.items()
            if path not in leaves
            and not path.startswith(f"{layout.activation}.")
            and (
                path not in family.classes
                or type(module).__module__ != cls.__module__
                or type(module).__name__ != family.classes[path].format(name)
            )
        ]
        return EncoderLayer(
            modules[layout.linear("query").rpartition(".")[0]],
            tuple(modules[path] for path in layout.linears),
            tuple(modules[path] for path in family.norms),
            modules[layout.activation],
            tuple(modules[path] for path in unknown),
        )

    return [described(layer) for layer in encoder.layer]


def encoder_result(cls: type, hidden_states: Tensor) -> Any:
    """Return the result of an encoder of the known class ``cls`` that holds the last hidden states alone."""
    family, _ = _family_of(cls)  # type: ignore[misc]
    return vars(sys.modules[cls.__module__])[family.result](last_hidden_state=hidden_states)


def _family_of(cls: type) -> tuple[_Family, str] | None:
    package, _, module = cls.__module__.removeprefix("transformers.models.").partition(".")
    return _ENCODERS.get((package, cls.__name__)) if module == f"modeling_{package}" else None
