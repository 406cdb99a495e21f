"""Where the prunable matrices of a BERT-like model are: the only file that knows module names.

A *key* is the path of a module below the base model (``encoder.layer.0.attention.self.query``), so that it
means the same matrix in BertModel, in BertForSequenceClassification and in a compiled or data-parallel
wrapper of either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class _Layout:
    """Module paths of one family: ``layers`` and ``pooler`` below the base model, the rest below a layer."""

    layers: str
    linears: dict[str, str]
    activation: str
    pooler: str | None

    def linear(self, kind: str) -> str:
        return next(path for path, of_kind in self.linears.items() if of_kind == kind)


_BERT = _Layout(
    layers="encoder.layer",
    linears={
        "attention.self.query": "query",
        "attention.self.key": "key",
        "attention.self.value": "value",
        "attention.output.dense": "attention_output",
        "intermediate.dense": "ffn_up",
        "output.dense": "ffn_down",
    },
    activation="intermediate.intermediate_act_fn",
    pooler="pooler.dense",
)
_DISTILBERT = _Layout(
    layers="transformer.layer",
    linears={
        "attention.q_lin": "query",
        "attention.k_lin": "key",
        "attention.v_lin": "value",
        "attention.out_lin": "attention_output",
        "ffn.lin1": "ffn_up",
        "ffn.lin2": "ffn_down",
    },
    activation="ffn.activation",
    pooler=None,
)
# By the class attribute ``base_model_prefix``; XLM-RoBERTa and CamemBERT carry RoBERTa's.
_FAMILIES = {"bert": _BERT, "roberta": _BERT, "electra": _BERT, "distilbert": _DISTILBERT}

# torch.compile and (Distributed)DataParallel put these components into the path of what they wrap.
_WRAPPERS = ("_orig_mod", "module")


@dataclass(frozen=True)
class Structure:
    """What a pruning method or a converter must know of a model; all keys are without the base-model prefix.

    ``prefix``: path of the base model inside the model, "" if it is the model itself.
    ``linears``: the prunable encoder matrices in model order (72 in BERT-base; without cross-attention).
    ``pooler``: the key of the pooler's matrix, where the model has one.
    ``shared_inputs``: groups of keys fed by one tensor, (query, key, value) of each layer.
    ``neurons``: (up, down) of each feed-forward network: row i of the one and column i of the other are one
    neuron.
    ``heads``: (query, key, value, output) of each attention: ``head_size`` rows of the first three and the
    same columns of the last are one head.
    ``activations``: key of an up-projection -> path of the activation module applied to its output, where
    :func:`activation_name` can name it.
    ``types``: key -> query, key, value, attention_output, ffn_up, ffn_down or pooler.
    """

    prefix: str
    linears: tuple[str, ...]
    pooler: str | None
    shared_inputs: tuple[tuple[str, ...], ...]
    neurons: tuple[tuple[str, ...], ...]
    heads: tuple[tuple[str, ...], ...]
    activations: dict[str, str]
    types: dict[str, str]
    num_heads: int
    head_size: int


class _Base(NamedTuple):
    path: str
    module: nn.Module
    layout: _Layout
    layers: int


def require_module(model: object) -> None:
    """Raise ValueError for what is no model: a class of models, a name, a state dict."""
    if isinstance(model, type):
        raise ValueError(f"a model is needed, not the class {model.__name__}: make an instance of it")
    if not isinstance(model, nn.Module):
        raise ValueError(f"a model is needed, an nn.Module, not a {type(model).__name__}")


def structure(model: nn.Module) -> Structure:
    """Describe a BERT, RoBERTa, DistilBERT or ELECTRA with any task head, wrapped or not.

    Raises ValueError naming the class of any other model, and for a model that holds several such encoders.
    """
    bases = list(_bases(model))
    if len(bases) != 1:
        found = f"holds {len(bases)} such encoders: pass one of them" if bases else "is none of these"
        raise ValueError(
            f"expected a BERT, RoBERTa, DistilBERT or ELECTRA model; {type(model).__name__} {found}"
        )
    prefix, base, layout, count = bases[0]
    layers = [f"{layout.layers}.{i}" for i in range(count)]
    types = {f"{layer}.{path}": kind for layer in layers for path, kind in layout.linears.items()}
    activations = {
        f"{layer}.{layout.linear('ffn_up')}": f"{layer}.{layout.activation}"
        for layer in layers
        if (found_at := _walk(base, f"{layer}.{layout.activation}")) and activation_name(found_at[1])
    }
    linears = tuple(types)
    pooler = layout.pooler if layout.pooler and _walk(base, layout.pooler) else None
    if pooler:
        types[pooler] = "pooler"
    config: Any = base.config

    def of_each_layer(*kinds: str) -> tuple[tuple[str, ...], ...]:
        return tuple(tuple(f"{layer}.{layout.linear(kind)}" for kind in kinds) for layer in layers)

    return Structure(
        prefix=prefix,
        linears=linears,
        pooler=pooler,
        shared_inputs=of_each_layer("query", "key", "value"),
        neurons=of_each_layer("ffn_up", "ffn_down"),
        heads=of_each_layer("query", "key", "value", "attention_output"),
        activations=activations,
        types=types,
        num_heads=config.num_attention_heads,
        head_size=config.hidden_size // config.num_attention_heads,
    )


def is_bert_like(model: nn.Module) -> bool:
    """Whether :func:`structure` can describe the model."""
    return len(list(_bases(model))) == 1


def resolve(model: nn.Module, key: str) -> nn.Module:
    """The module of that key, for any task head and wrapper; in other models a key is a full path.

    Raises ValueError if the model has no such module.
    """
    return _locate(model, key)[1]


def full_name(model: nn.Module, key: str) -> str:
    """The path of the key's module as ``model.named_modules()`` and ``model.state_dict()`` spell it.

    Raises ValueError if the model has no such module.
    """
    return _locate(model, key)[0]


def encoder_matrix(key: str) -> tuple[str, str] | None:
    """Path of the layer and kind (query, key, ...) of an encoder matrix by its key alone, for weights without
    a model; None for any other module."""
    for layout in _FAMILIES.values():
        for path, kind in layout.linears.items():
            layer, _, number = key.removesuffix(f".{path}").rpartition(".")
            if key.endswith(f".{path}") and layer == layout.layers and number.isdecimal():
                return f"{layer}.{number}", kind
    return None


def base_model(model: nn.Module) -> nn.Module:
    """The encoder without a task's head. Raises ValueError as :func:`structure` does."""
    return model.get_submodule(structure(model).prefix)


def embeddings(model: nn.Module) -> nn.Module:
    """The embeddings of the base model. Raises ValueError as :func:`structure` does."""
    return base_model(model).get_submodule("embeddings")


def activation_of(model: nn.Module, up: str) -> Callable[[Tensor], Tensor]:
    """What is applied to the output of that up-projection; of a module its forward method, past any hooks.

    Raises ValueError if the model has no such matrix.
    """
    base = next(_bases(model), None)
    path = base.layout.linear("ffn_up") if base else ""
    if base is None or not up.endswith(f".{path}"):
        raise ValueError(f"{up!r} is no up-projection of {type(model).__name__}")
    parent, _, name = base.layout.activation.rpartition(".")
    found = getattr(resolve(model, f"{up.removesuffix(path)}{parent}"), name)
    return found.forward if isinstance(found, nn.Module) else found


def canonical_key(name: str) -> str:
    """A module path without wrapper components and without the base-model prefix of a known family."""
    parts = [part for part in name.split(".") if part not in _WRAPPERS]
    return ".".join(parts[1:] if len(parts) > 1 and parts[0] in _FAMILIES else parts)


def activation_name(module: nn.Module) -> str | None:
    """The kernels' name of an activation module, "relu", "gelu" or "gelu_tanh"; None if it is none of them.

    Decided by what the module computes in float64 over [-12, 12]: a dozen classes share these three formulas.
    """
    if next(module.parameters(), None) is not None:
        return None
    x = torch.linspace(-12, 12, 241, dtype=torch.float64, device="cpu")
    with torch.no_grad():
        y = module.forward(x)
        for name, reference in (
            ("relu", F.relu(x)),
            ("gelu", F.gelu(x)),
            ("gelu_tanh", F.gelu(x, approximate="tanh")),
        ):
            if torch.allclose(y, reference, rtol=0, atol=1e-8):
                return name
    return None


def _bases(model: nn.Module) -> Iterator[_Base]:
    """Every base model of a known family inside ``model``."""
    require_module(model)
    for name, module in model.named_modules():
        # On the class, not the instance: torch.compile's wrapper forwards attributes of what it wraps.
        layout = _FAMILIES.get(getattr(type(module), "base_model_prefix", None) or "")
        if layout and (layers := _walk(module, layout.layers)):
            yield _Base(name, module, layout, len(layers[1]._modules))


def _locate(model: nn.Module, key: str) -> tuple[str, nn.Module]:
    key = canonical_key(key)
    base = next(_bases(model), None)
    if base and (found := _walk(base.module, key)):
        return (f"{base.path}.{found[0]}" if base.path else found[0]), found[1]
    if found := _walk(model, key):
        return found
    raise ValueError(f"{type(model).__name__} has no module {key!r}")


def _walk(module: nn.Module, path: str) -> tuple[str, nn.Module] | None:
    """Follow a path, through wrappers where they stand in the way; the path taken and the module, or None."""
    taken = []
    for part in path.split("."):
        while (child := module._modules.get(part)) is None:
            wrapper = next((name for name in _WRAPPERS if module._modules.get(name) is not None), None)
            if wrapper is None:
                return None
            taken.append(wrapper)
            module = module.get_submodule(wrapper)
        taken.append(part)
        module = child
    return ".".join(taken), module
