"""Names of the prunable matrices in BERT-like families: the only file that knows them.

A *key* is the path of a module below the base model (``encoder.layer.0.attention.self.query``). It names the
same matrix in BertModel, in BertForSequenceClassification and in a compiled or data-parallel wrapper of
either.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsebert.conv1d import oriented


@dataclass(frozen=True)
class Layout:
    """Module paths of one family.

    Attributes:
        layers: The list of layers, below the base model.
        linears: Path of each encoder matrix, below a layer -> its kind (query, key, ...).
        activation: The feed-forward network's activation, below a layer.
        pooler: The pooler's matrix, below the base model; None in families without one.
    """

    layers: str
    linears: dict[str, str]
    activation: str
    pooler: str | None

    def linear(self, kind: str) -> str:
        """Return the path of the matrix of a kind, below a layer."""
        return next(path for path, of_kind in self.linears.items() if of_kind == kind)


BERT = Layout(
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
DISTILBERT = Layout(
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
# Keyed by the class attribute ``base_model_prefix``; XLM-RoBERTa and CamemBERT share RoBERTa's.
_FAMILIES = {"bert": BERT, "roberta": BERT, "electra": BERT, "distilbert": DISTILBERT}

# torch.compile, (Distributed)DataParallel, FSDP, activation checkpointing, DeepSpeed and peft's adapters
# insert these components into module paths.
_WRAPPERS = (
    "_orig_mod",
    "module",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "_forward_module",
    "base_layer",
)
# Names under which training code, peft and sentence-transformers hold a model.
_HOLDERS = ("model.", "net.", "base_model.", "auto_model.", "0.auto_model.")
# Name under which an adapter of peft, such as LoRA, holds the layer that it adapts.
_ADAPTED = "base_layer"


@dataclass(frozen=True)
class Structure:
    """The prunable structure of a model, by keys.

    Attributes:
        prefix: Path of the base model inside the model; "" if the model is the base model.
        linears: The prunable encoder matrices in model order (72 in BERT-base), cross-attention excluded.
        pooler: The pooler's matrix; None in models without one.
        shared_inputs: (query, key, value) of each layer, which share one input tensor.
        neurons: (up, down) of each feed-forward network; row i of up and column i of down form neuron i.
        heads: (query, key, value, output) of each attention; ``head_size`` rows of the first three and the
            same columns of the last form a head.
        activations: Up-projection -> path of its activation module, if :func:`activation_name` names it.
        types: Key -> query, key, value, attention_output, ffn_up, ffn_down or pooler.
        num_heads: Attention heads of a layer; 0 where layers differ, see ``head_counts``.
        head_size: Rows of a head in query, key and value; 0 where layers differ.
        head_counts: First key of an attention -> its number of heads, where layers differ.
        folds: Key -> number of equal slices of its rows, each with a part of every unit, as in a matrix that
            computes query, key and value together; 1 for keys that are missing.
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
    head_counts: Mapping[str, int] = field(default_factory=dict)
    folds: Mapping[str, int] = field(default_factory=dict)

    def heads_of(self, keys: Sequence[str]) -> int:
        """Return the number of heads of an attention, an entry of ``heads``."""
        return self.head_counts.get(keys[0], self.num_heads)


class _Base(NamedTuple):
    path: str
    module: nn.Module
    layout: Layout
    layers: int


def require_module(model: object) -> None:
    """Raise ValueError for anything but a model, such as its class, its name or a state dict."""
    if isinstance(model, type):
        raise ValueError(f"model must be an instance, got the class {model.__name__}")
    if not isinstance(model, nn.Module):
        raise ValueError(f"model must be an nn.Module, got a {type(model).__name__}")


def structure(model: nn.Module) -> Structure:
    """Describe a BERT, RoBERTa, DistilBERT or ELECTRA model with any task head, wrapped or not.

    Raises:
        ValueError: The model belongs to another family, or contains several such encoders.
    """
    bases = list(_bases(model))
    if len(bases) != 1:
        mismatch = f"contains {len(bases)} such encoders: pass one of them" if bases else "is none of these"
        raise ValueError(
            f"expected a BERT, RoBERTa, DistilBERT or ELECTRA model; {type(model).__name__} {mismatch}"
        )
    prefix, base, layout, count = bases[0]
    layers = [f"{layout.layers}.{i}" for i in range(count)]
    types = {f"{layer}.{path}": kind for layer in layers for path, kind in layout.linears.items()}
    activations = {
        f"{layer}.{layout.linear('ffn_up')}": f"{layer}.{layout.activation}"
        for layer in layers
        if (module := _walk(base, f"{layer}.{layout.activation}")) and activation_name(module[1])
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
    return encoder_count(model) == 1


def encoder_count(model: nn.Module) -> int:
    """Return how many encoders of known families a model contains."""
    return len(list(_bases(model)))


def resolve(model: nn.Module, key: str) -> nn.Module:
    """Return the module of a key, for any task head and wrapper; in other models keys are full paths.

    Raises:
        ValueError: The model has no such module.
    """
    return _locate(model, key)[1]


def full_name(model: nn.Module, key: str) -> str:
    """Return the path of the key's module as ``model.named_modules()`` spells it.

    Raises:
        ValueError: The model has no such module.
    """
    return _locate(model, key)[0]


def is_adapted(path: str) -> bool:
    """Whether the module of this full path is the layer below an adapter of peft, such as LoRA."""
    return path.rpartition(".")[2] == _ADAPTED


def is_of_adapter(model: nn.Module, path: str) -> bool:
    """Whether the module of this full path is a part of an adapter, but not the layer that it adapts."""
    parents = path.split(".")[:-1]
    module = model
    for index, part in enumerate(path.split(".")):
        if part != _ADAPTED and _ADAPTED in module._modules:
            return True
        if index < len(parents):
            module = module.get_submodule(part)
    return False


def encoder_matrix(key: str) -> tuple[str, str] | None:
    """Return the path of the layer and the kind (query, key, ...) of an encoder matrix; None for others.

    The key suffices, so that weights without a model can be identified.
    """
    for layout in _FAMILIES.values():
        for path, kind in layout.linears.items():
            layer, _, number = key.removesuffix(f".{path}").rpartition(".")
            if key.endswith(f".{path}") and layer == layout.layers and number.isdecimal():
                return f"{layer}.{number}", kind
    return None


def prunable(model: nn.Module, include_pooler: bool = False) -> tuple[str, ...]:
    """Return the keys of the encoder matrices of a BERT-like model, and of its pooler on request.

    Raises:
        ValueError: The model belongs to another family, or has no pooler to include.
    """
    layout = structure(model)
    if not include_pooler:
        return layout.linears
    if layout.pooler is None:
        raise ValueError(f"{type(model).__name__} has no pooler to include")
    return (*layout.linears, layout.pooler)


def weight_of(model: nn.Module, key: str) -> Tensor:
    """Return the weight of the key's module, [out, in], plain, parametrized or packed.

    Raises:
        ValueError: The model has no such module, or the module has no weight.
    """
    # Not get_parameter: in a pruned, parametrized or packed layer the weight is a plain attribute.
    module = resolve(model, key)
    weight = module.weight
    if not isinstance(weight, Tensor):
        raise ValueError(f"{key} of {type(model).__name__} has no weight")
    return oriented(module, weight)


def base_model(model: nn.Module) -> nn.Module:
    """Return the encoder without the task head.

    Raises:
        ValueError: See :func:`structure`.
    """
    return model.get_submodule(structure(model).prefix)


def embeddings(model: nn.Module) -> nn.Module:
    """Return the embeddings of the base model.

    Raises:
        ValueError: See :func:`structure`.
    """
    return base_model(model).get_submodule("embeddings")


def positions(model: nn.Module) -> int | None:
    """Return the length of the longest sequence that a model takes; None if no table limits it."""
    tables = [module for name, module in model.named_modules() if name.endswith("position_embeddings")]
    table = next((each for each in tables if isinstance(each, nn.Embedding)), None)
    if table is None:
        return None
    # RoBERTa reserves the first positions for padding.
    return table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1)


def activation_of(model: nn.Module, up: str) -> Callable[[Tensor], Tensor]:
    """Return the activation applied to the output of an up-projection, without its hooks.

    Raises:
        ValueError: The model has no such up-projection.
    """
    base = next(_bases(model), None)
    path = base.layout.linear("ffn_up") if base else ""
    if base is None or not up.endswith(f".{path}"):
        raise ValueError(f"{up!r} is not an up-projection of {type(model).__name__}")
    parent, _, name = base.layout.activation.rpartition(".")
    activation = getattr(resolve(model, f"{up.removesuffix(path)}{parent}"), name)
    return activation.forward if isinstance(activation, nn.Module) else activation


def base_prefix(model: nn.Module) -> str:
    """Return the name of the base model in models of transformers with a head, such as "mpnet", or ""."""
    while any(model._modules.get(name) is not None for name in _WRAPPERS):
        model = next(model._modules[name] for name in _WRAPPERS if model._modules.get(name) is not None)  # type: ignore[assignment]
    return getattr(type(model), "base_model_prefix", None) or ""


def key_in(model: nn.Module, name: str) -> str:
    """Return the key of the module of this full name: without wrappers and the name of the base model."""
    key = canonical_key(name)
    prefix = base_prefix(model)
    return key.removeprefix(f"{prefix}.") if prefix else key


def canonical_key(name: str) -> str:
    """Strip wrapper components and the base-model prefix of a known family from a module path.

    From paths into the layers or the pooler of such a family, ``model.``, ``net.``, ``base_model.model.``,
    ``0.auto_model.`` and the like are stripped as well.
    """
    return _without_family(without_holders(without_wrappers(name)))


def without_wrappers(name: str) -> str:
    """Strip the components of torch.compile, data-parallel and similar wrappers from a path."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def without_holders(path: str) -> str:
    """Strip ``model.``, ``0.auto_model.`` and the like from a path into a base model of a known family."""
    inner = path
    while holder := next((each for each in _HOLDERS if inner.startswith(each)), None):
        inner = inner.removeprefix(holder)
    inner = _without_family(inner) if inner != path else path
    return inner if _is_in_base(inner) else path


def is_bert_name(name: str) -> bool:
    """Whether a name begins with a module of a known family's base model: embeddings, layers or pooler."""
    return name.partition(".")[0] in ("embeddings", "embeddings_project", "encoder", "transformer", "pooler")


def is_layer_name(name: str) -> bool:
    """Whether a name without prefix lies in a layer of a known family, such as ``encoder.layer.0.output``."""
    return any(re.match(rf"{re.escape(layout.layers)}\.\d+\.", name) for layout in _FAMILIES.values())


def activation_name(module: nn.Module) -> str | None:
    """Return the kernels' name of an activation module: "relu", "gelu", "gelu_tanh", or None for others.

    The module's values in float64 over [-12, 12] decide, not its class: a dozen classes implement these three
    formulas.
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


def _without_family(path: str) -> str:
    first, _, rest = path.partition(".")
    return rest if rest and first in _FAMILIES else path


def _is_in_base(path: str) -> bool:
    return is_layer_name(path) or any(path == layout.pooler for layout in _FAMILIES.values())


def _bases(model: nn.Module) -> Iterator[_Base]:
    """Yield every base model of a known family inside ``model``."""
    require_module(model)
    for name, module in model.named_modules():
        # Read from the class: torch.compile's wrapper forwards instance attributes of the wrapped model.
        layout = _FAMILIES.get(getattr(type(module), "base_model_prefix", None) or "")
        if not layout or not (layers := _walk(module, layout.layers)):
            continue
        # Models of other makers borrow the prefix: what counts is that every layer has these matrices.
        blocks = [layer for layer in layers[1]._modules.values() if layer is not None]
        if all(_walk(layer, path) for layer in blocks for path in layout.linears):
            yield _Base(name, module, layout, len(layers[1]._modules))


def _locate(model: nn.Module, key: str) -> tuple[str, nn.Module]:
    path, key = key, canonical_key(key)
    # A full path is taken literally: a model may hold several encoders.
    if path != key and (location := _walk(model, path)):
        return location
    base = next(_bases(model), None)
    if base and (location := _walk(base.module, key)):
        path, module = location
        return (f"{base.path}.{path}" if base.path else path), module
    prefix = base_prefix(model)
    for path in (key, f"{prefix}.{key}", key.removeprefix(f"{prefix}.")):
        if location := _walk(model, path):
            return location
    if location := _walk_below(model, key):
        return location
    raise ValueError(f"{type(model).__name__} has no module {key!r}")


def _walk_below(model: nn.Module, key: str) -> tuple[str, nn.Module] | None:
    """Find an encoder matrix whose key lacks the path of its encoder, if only one fits."""
    if not _is_in_base(key):
        return None
    matches = [
        (name, module) for name, module in model.named_modules() if without_wrappers(name).endswith(f".{key}")
    ]
    return matches[0] if len(matches) == 1 else None


def _walk(module: nn.Module, path: str) -> tuple[str, nn.Module] | None:
    """Follow a path, through wrappers if necessary; return the full path and the module, or None."""
    full_path = []
    for part in path.split("."):
        while (child := module._modules.get(part)) is None:
            wrapper = next((name for name in _WRAPPERS if module._modules.get(name) is not None), None)
            if wrapper is None:
                return None
            full_path.append(wrapper)
            module = module.get_submodule(wrapper)
        full_path.append(part)
        module = child
    while (adapted := module._modules.get(_ADAPTED)) is not None:
        full_path.append(_ADAPTED)
        module = adapted
    return ".".join(full_path), module
