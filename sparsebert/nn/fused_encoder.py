"""``FusedEncoder``: an encoder of transformers whose layers run as one native call.

Fusing changes the class of the encoder to a subclass with another forward method. The encoder itself, its
layers, parameters, hooks and names stay, and so does what is saved. The native description of the layers is
made on the first call, and again after a change of any module or tensor that it was made from. Changes that
torch does not count, through ``.data``, are noticed by a sample of each weight.
"""

from __future__ import annotations

import itertools
import operator
import sys
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules import module as every_module

from sparsebert.bert import activation_name
from sparsebert.compaction.live_rectangle import RectangleLinear
from sparsebert.compaction.narrow_attention import NarrowAttention
from sparsebert.nn.encoder_layers import (
    EncoderLayer,
    Family,
    encoder_family,
    encoder_layers,
    encoder_result,
    is_of,
)
from sparsebert.nn.fused_activation import FusedActivation
from sparsebert.nn.fused_qkv import FusedQKV
from sparsebert.nn.sparse_linear import SparseLinear
from sparsebert_kernels.cpu import encoder as kernels
from sparsebert_kernels.cpu import native
from sparsebert_kernels.cpu.encoder import BadTokens, DensePanel, HeadGroup, NativeEncoder
from sparsebert_kernels.cpu.row_panels import pack_row_panels, pad_columns, pad_rows, padded_heads
from sparsebert_kernels.formats import ElementSparse, PackedWeight, VectorSparse
from sparsebert_kernels.ops import plain_inference

# Where transformers records hidden states and attentions: hooks of this module, active while a collector is
# set.
RECORDER = "transformers.utils.output_capturing"
# Arguments of the encoders that do not change the result.
WITHOUT_EFFECT = ("position_ids", "return_dict")
RECORDED_GRADIENTS = "gradients are recorded; call the model under torch.inference_mode()"
FOREIGN_CODE = "a module of the encoder has hooks or a patched forward method"
ACTIVATIONS = ("relu", "gelu", "gelu_tanh")
# Values of each weight that are compared in every call: about 2 % of the time of 16 tokens through MiniLM-L6.
SAMPLED = 61
# Attributes that the description copies from layers, attentions and LayerNorms.
SETTINGS = (
    *("scaling", "scale", "groups", "attention_head_size", "head_dim", "is_decoder", "is_causal", "eps"),
    *("attention_type", "chunk_size_feed_forward"),
)
# Attributes of the encoder's config that count.
CONFIGURED = ("_attn_implementation", "_attn_implementation_internal", "is_causal", "local_attention")
# Implementations of attention that compute what the native encoder computes. Others may be anything.
ATTENTIONS = ("eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3", None)
# Distances from which on all count as one in the embeddings of distances.
FARTHEST = 128
# Entries of the attributes of a module, and a tensor's count of in-place changes.
_TRAINING, _HOOKS, _PRE_HOOKS = map(operator.itemgetter, ("training", "_forward_hooks", "_forward_pre_hooks"))
_COUNT = operator.attrgetter("_version")


class PlainPath(Exception):
    """The layers must run one by one in this call; the message says why."""


class FusedEncoder(nn.Module):
    """The forward method of a fused encoder, mixed into the class of the encoder by ``fused_class``."""

    plain_class: Any  # the class of the encoder in transformers
    family: Family
    tolerance: str = "fp32"  # the lowest precision in which the layers may compute: "fp32", "bf16" or "int8"
    _native: Native | None = None

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Run the layers natively, or one by one wherever the result could differ; a warning says why, once.

        The native result is zero at padding.

        Args:
            hidden_states: [B, T, hidden].
            attention_mask: Bool (True = attend) or added to the scores, [B, 1, T, T]; None attends to all.
            *args: Further arguments of the plain encoder.
            **kwargs: Further arguments of the plain encoder.
        """
        if not torch.compiler.is_compiling():
            try:
                return self._run(hidden_states, attention_mask, args, kwargs)
            except PlainPath as reason:
                self._say_once(str(reason))
        return super().forward(hidden_states, attention_mask, *args, **kwargs)

    def _run(self, x: Tensor, mask: Tensor | None, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        if reason := native.why_unavailable():
            raise PlainPath(f"the native library is missing ({reason})")
        if is_recording():
            raise PlainPath("the call asks for hidden states or attentions")
        if any(value is not None for value in args):
            raise PlainPath("the call has further positional arguments")
        for name, value in kwargs.items():
            if value is not None and value is not False and name not in WITHOUT_EFFECT:
                raise PlainPath(f"the call has the argument {name}")
        if not x.is_cpu or x.dtype != torch.float32 or x.dim() != 3:
            raise PlainPath(f"the input is {x.dtype} on {x.device}, not torch.float32 on cpu")
        if torch.is_grad_enabled() and x.requires_grad:
            raise PlainPath(RECORDED_GRADIENTS)
        if not plain_inference(x):
            raise PlainPath("the call is traced, transformed or under autocast")
        require_inference(self)
        try:
            states = self.current_native().encoder(x, kept_tokens(mask, x))
        except BadTokens as error:
            raise PlainPath(str(error)) from None
        return encoder_result(self.family, states, kwargs.get("return_dict"))

    def current_native(self) -> Native:
        """Return the native description of the layers as they are now.

        Raises:
            PlainPath: The layers have none, or must run one by one in this call.
        """
        described = self._native
        dtype = engine_dtype(self.tolerance, self.family)
        if described is None or described.dtype != dtype or not described.is_current():
            described = self.__dict__["_native"] = Native(self, self.family, dtype)
        described.require_undisturbed()
        return described

    def _say_once(self, reason: str) -> None:
        say_once(self, reason)

    def __reduce_ex__(self, protocol: Any) -> Any:
        state = {name: value for name, value in self.__dict__.items() if name not in ("_native", "_said")}
        return _new_encoder, (self.plain_class,), state


def engine_dtype(tolerance: str, family: Family) -> torch.dtype:
    """Return the dtype of the activations between the layers of a family, for the engine that computes them.

    It is bfloat16 if the tolerance allows it and the library has that engine for this machine and family.
    """
    if tolerance == "fp32" or family.pre_norm or family.relative_bias:
        return torch.float32
    return torch.bfloat16 if kernels.has_engine(torch.bfloat16) else torch.float32


def require_inference(module: nn.Module) -> None:
    """Raise ``PlainPath`` where a module trains: a description of its layers would be made in vain."""
    if module.training:
        raise PlainPath("the encoder is in training mode")
    if torch.is_grad_enabled() and any(parameter.requires_grad for parameter in module.parameters()):
        raise PlainPath(RECORDED_GRADIENTS)


def say_once(module: nn.Module, reason: str) -> None:
    """Warn that the layers of a fused module run one by one, once for each reason."""
    said = module.__dict__.setdefault("_said", set())
    if reason not in said:
        said.add(reason)
        warnings.warn(f"the fused encoder runs its layers one by one: {reason}", UserWarning, stacklevel=5)


_FUSED_CLASSES: dict[type, type[FusedEncoder]] = {}


def fused_class(plain_class: type) -> type[FusedEncoder]:
    """Return the fused class of an encoder's class, always the same."""
    if plain_class not in _FUSED_CLASSES:
        attributes = {"plain_class": plain_class, "family": encoder_family(plain_class)}
        bases = (FusedEncoder, plain_class)
        _FUSED_CLASSES[plain_class] = type(f"Fused{plain_class.__name__}", bases, attributes)
    return _FUSED_CLASSES[plain_class]


def _new_encoder(plain_class: type[nn.Module]) -> FusedEncoder:
    """Make an encoder for ``__setstate__``, of a class that pickle cannot find by name."""
    cls = fused_class(plain_class)
    return cls.__new__(cls)


def require_fusible(encoder: Any, family: Family) -> None:
    """Raise ValueError unless every layer of an encoder of a known family has a native form."""
    for number, layer in enumerate(encoder_layers(encoder, family)):
        try:
            _require_known(layer)
        except PlainPath as reason:
            name = getattr(encoder, "plain_class", type(encoder)).__name__
            raise ValueError(f"layer {number} of {name} cannot be fused: {reason}") from None


class Watched:
    """Modules and tensors that a native description was made from."""

    def __init__(
        self, modules: Sequence[nn.Module], copied: Sequence[Tensor], settings: Sequence[Any]
    ) -> None:
        """Remember the present state.

        Args:
            modules: The modules; hooks of the first are nobody's business.
            copied: Tensors that the description holds copies of.
            settings: Dictionaries of attributes, each with the name of one that was read.
        """
        self._modules = [vars(module) for module in modules]
        self._harmless: list[dict[Any, Any]] = []  # hooks that are known not to matter
        self._children = [module._modules for module in modules]
        self._children_before = [dict(children) for children in self._children]
        sparse = [vars(module) for module in modules if isinstance(module, SparseLinear)]
        settings = [*settings, *((owner, "activation") for owner in sparse)]
        self._settings = _Entries(settings)
        self._set = self._settings.now()
        # The values of a prepacked dense layer are neither a parameter nor a buffer.
        prepacked = [(owner, "values") for owner in sparse if "values" in owner]
        held = [
            (tensors, name)
            for module in modules
            for tensors in (module._parameters, module._buffers)
            for name, tensor in tensors.items()
            if tensor is not None
        ]
        self._held = _Entries([*prepacked, *held])
        self._holding = self._held.now()
        self._tensors = self._holding[len(prepacked) :]
        # Inference tensors count no changes.
        self._counted = [tensor for tensor in self._tensors if not tensor.is_inference()]
        self._counts = [*map(_COUNT, self._counted)]
        self._addresses = [*map(Tensor.data_ptr, self._tensors)]
        with torch.inference_mode(False), torch.no_grad():
            self._samples = [_sample(tensor.detach()) for tensor in copied]
            self._sampled = torch.cat(self._samples) if copied else torch.empty(0)

    def is_current(self) -> bool:
        """Whether modules and tensors are those that the description was made from, unchanged.

        Hundreds of tensors are looked at in each call: no line of Python runs for each of them.
        """
        return (
            self._children == self._children_before
            and all(map(operator.is_, self._held.now(), self._holding))
            and [*map(_COUNT, self._counted)] == self._counts
            and [*map(Tensor.data_ptr, self._tensors)] == self._addresses
            and self._settings.now() == self._set
            and (not self._samples or torch.equal(torch.cat(self._samples), self._sampled))
        )

    def require_undisturbed(self) -> None:
        """Raise ``PlainPath`` if the layers train, record gradients or run foreign code."""
        if every_module._has_any_global_hook():
            raise PlainPath("there are hooks on all modules")
        if any(map(_TRAINING, self._modules)):
            raise PlainPath("the encoder is in training mode")
        inner = self._modules[1:]
        hooks = [*filter(None, map(_HOOKS, inner)), *filter(None, map(_PRE_HOOKS, inner))]
        if hooks != self._harmless:
            if any(map(is_foreign, itertools.chain.from_iterable(map(dict.values, hooks)))):
                raise PlainPath(FOREIGN_CODE)
            self._harmless = [dict(each) for each in hooks]
        if any(map(operator.contains, inner, itertools.repeat("forward"))):
            raise PlainPath(FOREIGN_CODE)
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in self._tensors):
            raise PlainPath(RECORDED_GRADIENTS)


class _Entries:
    """Entries of dictionaries, read together."""

    def __init__(self, entries: Sequence[tuple[dict[str, Any], str]]) -> None:
        self._owners = [owner for owner, _ in entries]
        self._names = [name for _, name in entries]

    def now(self) -> list[Any]:
        """Return their present values; None for missing ones."""
        return [*map(dict.get, self._owners, self._names)]


class Native(Watched):
    """The native description of an encoder's layers, and all that it was made from."""

    def __init__(self, encoder: Any, family: Family, dtype: torch.dtype = torch.float32) -> None:
        self.dtype = dtype
        layers = encoder_layers(encoder, family)
        for layer in layers:
            _require_known(layer)
        if not layers:
            raise PlainPath("the encoder has no layers")
        config = next((each.config for each in encoder.modules() if hasattr(each, "config")), None)
        implementation = getattr(config, "_attn_implementation", None)
        if implementation not in ATTENTIONS:
            raise PlainPath(f"the attention {implementation} is not one of transformers")
        owners = [vars(module) for layer in layers for module in (layer.layer, layer.attention, *layer.norms)]
        settings = [(owner, name) for owner in owners for name in SETTINGS if name in owner]
        if config is not None:
            settings += [(vars(config), name) for name in CONFIGURED if name in vars(config)]
        copied = [tensor for layer in layers for tensor in _copied(layer, family, dtype)]
        if family.relative_bias:
            copied.append(getattr(encoder, family.relative_bias).weight)
        with torch.inference_mode(False), torch.no_grad():
            shared = _SharedTables(encoder, family)
            self.encoder = NativeEncoder([_described(layer, shared, dtype) for layer in layers], dtype)
        super().__init__(list(encoder.modules()), copied, settings)


class _SharedTables:
    """What the layers of an encoder share."""

    def __init__(self, encoder: Any, family: Family) -> None:
        self._encoder = encoder
        self.family = family
        self.relative_bias = self._relative_bias() if family.relative_bias else None
        self._rotary: dict[str, Tensor] = {}

    def rotary(self, layer_type: str) -> Tensor:
        """Return cosines and sines of all positions, [positions, head size].

        Raises:
            PlainPath: The angles depend on the length of a batch.
        """
        if layer_type not in self._rotary:
            embedding = self._encoder.rotary_emb
            if not is_of(embedding, self.family, "{}RotaryEmbedding"):
                raise PlainPath(f"{type(embedding).__name__} is not the family's rotary embedding")
            if embedding.rope_type.get(layer_type) not in ("default", "linear", "yarn", "llama3"):
                raise PlainPath(f"rotary positions are scaled by {embedding.rope_type.get(layer_type)}")
            positions = torch.arange(self._encoder.config.max_position_embeddings)[None]
            cosines, sines = embedding(torch.empty(0), positions, layer_type)
            half = cosines.shape[2] // 2
            self._rotary[layer_type] = torch.cat((cosines[0, :, :half], sines[0, :, :half]), 1).contiguous()
        return self._rotary[layer_type]

    def window(self, layer: Any) -> int | None:
        return self._encoder.config.sliding_window if layer.attention_type == "sliding_attention" else None

    def _relative_bias(self) -> Tensor:
        """Return what each head adds to scores, [heads, 2 * FARTHEST + 1]."""
        table = getattr(self._encoder, str(self.family.relative_bias))
        if type(table) is not nn.Embedding or table.max_norm is not None:
            raise PlainPath(f"{type(table).__name__} is not a plain embedding")
        require_float32(table.weight)
        distances = torch.arange(-FARTHEST, FARTHEST + 1)  # of a query after its key
        buckets = self._encoder.relative_position_bucket(-distances)
        return table.weight.detach()[buckets].T.contiguous()


def require_float32(tensor: Tensor) -> None:
    """Raise ``PlainPath`` unless a parameter is float32 on the CPU."""
    if tensor.dtype != torch.float32 or not tensor.is_cpu:
        raise PlainPath(f"a parameter is {tensor.dtype} on {tensor.device}, not torch.float32 on cpu")


def _require_known(layer: EncoderLayer) -> None:
    """Raise ``PlainPath`` unless the native encoder computes what the layer's modules compute."""
    for module in layer.unknown:
        if module is not layer.attention or type(module) is not NarrowAttention:
            raise PlainPath(f"{type(module).__name__} is not part of its family's layers")
    if getattr(layer.attention, "is_decoder", False) or getattr(layer.attention, "is_causal", False):
        raise PlainPath("the model is a decoder")
    if getattr(layer.layer, "chunk_size_feed_forward", 0):
        raise PlainPath("the feed-forward network is computed in chunks (chunk_size_feed_forward)")
    for linear in layer.linears:
        if linear is not None:
            require_linear(linear)
    for norm in layer.norms:
        if type(norm) is not nn.Identity or norm is not layer.norms[0]:
            require_norm(norm)
    _activation(layer)


def require_linear(module: Any) -> None:
    """Raise ``PlainPath`` unless a linear layer has a native form."""
    if type(module) not in (nn.Linear, SparseLinear, RectangleLinear):
        raise PlainPath(f"{type(module).__name__} is not a plain or sparse linear layer")
    if 0 in (module.in_features, module.out_features):
        raise PlainPath("a linear layer is empty")


def require_norm(module: nn.Module) -> None:
    """Raise ``PlainPath`` unless a module is a LayerNorm with a weight."""
    if type(module) is not nn.LayerNorm or module.weight is None:
        raise PlainPath(f"{type(module).__name__} is not a LayerNorm with a weight")


def _activation(layer: EncoderLayer) -> str:
    """Return the kernels' name of the layer's activation, applied by its module or by its up-projection."""
    fused = isinstance(layer.activation, FusedActivation)
    applied = [getattr(module, "activation", "none") for module in layer.linears]
    up = applied.pop(4)
    if applied != ["none"] * 5 or (up != "none") != fused:
        raise PlainPath("a sparse layer applies an activation of its own")
    name = up if fused else activation_name(layer.activation)
    if name not in ACTIVATIONS:
        raise PlainPath(f"{type(layer.activation).__name__} is none of {', '.join(ACTIVATIONS)}")
    return name


def _heads(layer: EncoderLayer, family: Family) -> tuple[list[HeadGroup], float]:
    """Return the heads of a layer, and the factor of its scores."""
    attention: Any = layer.attention
    if isinstance(attention, NarrowAttention):
        heads = [HeadGroup(len(group.heads), group.score, group.value) for group in attention.groups]
        return heads, attention.scale
    output: Any = layer.linears[3]
    width = attention.head_dim if family.pre_norm else attention.attention_head_size
    scale = getattr(attention, "scaling", width**-0.5)
    return [HeadGroup(output.in_features // width, width, width)], scale


class _Padding(NamedTuple):
    """The heads, (heads, width), whose rows or columns of a matrix are spread over whole row panels."""

    rows: Sequence[tuple[int, int]] = ()
    columns: Sequence[tuple[int, int]] = ()


_UNPADDED = _Padding()


def _paddings(heads: Sequence[HeadGroup], dtype: torch.dtype) -> list[_Padding]:
    """Return what the engine for a dtype wants of a layer's six matrices."""
    if dtype == torch.float32 or heads == padded_heads(heads):
        return [_UNPADDED] * 6
    scores = [(group.heads, group.score) for group in heads]
    values = [(group.heads, group.value) for group in heads]
    query = _Padding(rows=scores)
    return [query, query, _Padding(rows=values), _Padding(columns=values), _UNPADDED, _UNPADDED]


def _described(layer: EncoderLayer, shared: _SharedTables, dtype: torch.dtype) -> kernels.EncoderLayer:
    linears: Any = layer.linears
    heads, scale = _heads(layer, shared.family)
    norms = [norm_tensors(norm) for norm in layer.norms]
    pre_norm = shared.family.pre_norm
    rotary = shared.rotary(layer.layer.attention_type) if pre_norm else None  # type: ignore[arg-type]
    paddings = list(zip(linears, _paddings(heads, dtype), strict=True))
    biases = [None if module is None else bias_of(module) for module in linears]
    return kernels.EncoderLayer(
        weights=[
            None if module is None else packed_weight(module, dtype, padding) for module, padding in paddings
        ],
        biases=[
            bias if bias is None else pad_rows(bias.detach(), padding.rows)
            for bias, (_, padding) in zip(biases, paddings, strict=True)
        ],
        attention_norm=norms[0],
        output_norm=norms[1],  # type: ignore[arg-type]
        epsilons=tuple(getattr(norm, "eps", 0.0) for norm in layer.norms),  # type: ignore[arg-type]
        heads=heads if dtype == torch.float32 else padded_heads(heads),
        scale=scale,
        activation=_activation(layer),
        pre_norm=pre_norm,
        gated=pre_norm,
        window=shared.window(layer.layer) if pre_norm else None,
        relative_bias=shared.relative_bias,
        rotary=rotary,
    )


def norm_tensors(module: Any) -> tuple[Tensor, Tensor] | None:
    """Return weight and bias of a LayerNorm, zeros for none; None for an identity."""
    if isinstance(module, nn.Identity):
        return None
    bias = torch.zeros_like(module.weight) if module.bias is None else module.bias
    require_float32(module.weight)
    require_float32(bias)
    return module.weight, bias


def bias_of(module: Any) -> Tensor | None:
    """Return the bias of a linear layer.

    Raises:
        PlainPath: It is not float32 on the CPU.
    """
    if module.bias is not None:
        require_float32(module.bias)
    return module.bias


def packed_weight(
    module: Any, dtype: torch.dtype = torch.float32, padding: _Padding = _UNPADDED
) -> PackedWeight:
    """Return the layer's own packed weight if the engine for a dtype computes it, else one that it does."""
    if _own_weight(module, dtype, padding):
        packed: PackedWeight = module.packed
        return packed
    weight = module.weight
    if weight.dtype != torch.float32 or not weight.is_cpu or weight.is_meta:
        raise PlainPath(f"a weight is {weight.dtype} on {weight.device}, not torch.float32 on cpu")
    if dtype == torch.bfloat16:
        return _row_panels(module, padding)
    if isinstance(module, RectangleLinear):
        live = module.whole(torch.ones_like(weight, dtype=torch.bool))
        return VectorSparse.from_dense(module.whole(weight.detach()), live)
    if isinstance(module, SparseLinear) and module.format == "compact":
        return VectorSparse.from_dense(weight)
    if isinstance(module, SparseLinear) and module.format != "dense":
        return ElementSparse.from_dense(weight, module.mask)
    return DensePanel.from_dense(weight)


def _own_weight(module: Any, dtype: torch.dtype, padding: _Padding) -> bool:
    """Whether the engine for a dtype reads the layer's own packed weight."""
    return (
        isinstance(module, SparseLinear) and padding == _UNPADDED and kernels.supports(module.packed, dtype)
    )


def _row_panels(module: Any, padding: _Padding) -> PackedWeight:
    weight = module.weight.detach()
    # Zeros of a dense layer count as weights, as in fp32: sparsity is what `sparsify_` makes.
    mask = module.mask if isinstance(module, SparseLinear) else torch.ones_like(weight, dtype=torch.bool)
    if isinstance(module, RectangleLinear):
        weight, mask = module.whole(weight), module.whole(mask)
    weight, mask = (pad_columns(pad_rows(each, padding.rows), padding.columns) for each in (weight, mask))
    stored = torch.int8 if getattr(module, "precision", "") == "int8" else torch.bfloat16
    return pack_row_panels(weight, mask, stored)


def _copied(layer: EncoderLayer, family: Family, dtype: torch.dtype) -> list[Tensor]:
    """Return the parameters of a layer that its description holds copies of.

    Raises:
        PlainPath: In-place changes of a weight are not counted.
    """
    norms = [tensor for norm in layer.norms for tensor in norm.parameters()]
    paddings = _paddings(_heads(layer, family)[0], dtype)
    return [
        *(
            tensor
            for each, padding in zip(layer.linears, paddings, strict=True)
            if each is not None
            for tensor in copied_of_linear(each, dtype, padding)
        ),
        *(tensor for tensor in norms if not kernels.read_in_place(tensor)),
    ]


def copied_of_linear(
    module: Any, dtype: torch.dtype = torch.float32, padding: _Padding = _UNPADDED
) -> list[Tensor]:
    """Return the weight and bias that a linear layer's description holds copies of.

    Raises:
        PlainPath: In-place changes of the weight are not counted.
    """
    copied = []
    in_place = _own_weight(module, dtype, padding)
    weight = module.values if isinstance(module, SparseLinear) else module.weight
    # The values of a prepacked layer are opaque: they are replaced, not changed.
    if not in_place and weight.layout == torch.strided and weight.numel():
        if weight.is_inference():
            raise PlainPath(
                "a weight was made under torch.inference_mode(), which does not count changes; "
                "load the model outside it"
            )
        copied.append(weight)
    bias, rows = module.bias, kernels.ROWS if dtype == torch.float32 else kernels.PAIRED_ROWS
    if bias is not None and (bias.numel() % rows or padding.rows or not kernels.read_in_place(bias)):
        copied.append(bias)
    return copied


def _sample(tensor: Tensor) -> Tensor:
    """Return a view of values spread over a weight, or of all values of a bias."""
    if tensor.dim() == 1:
        return tensor
    span = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    step = span // SAMPLED | 1  # odd: meets more columns than a power of two
    return tensor.as_strided((-(-span // step),), (step,))


def kept_tokens(mask: Tensor | None, x: Tensor) -> Tensor | None:
    """Return the tokens that an attention mask keeps for all heads and queries, bool [B, T]; None for all."""
    if mask is None:
        return None
    batch, tokens, _ = x.shape
    if mask.dim() != 4 or mask.shape[1] != 1 or mask.shape[2] not in (1, tokens) or mask.shape[3] != tokens:
        raise PlainPath("the attention mask is not [batch, 1, tokens, tokens]")
    if mask.dtype != torch.bool:
        kept = mask == 0
        if not bool((kept | (mask <= torch.finfo(torch.float32).min)).all()):
            raise PlainPath("the attention mask has other values than 0 and the least")
        mask = kept
    rows = mask[:, 0, 0]
    if mask.stride(2) and not torch.equal(mask, rows[:, None, None].expand_as(mask)):
        raise PlainPath("the attention mask differs between queries")
    # Zero at padding, the first state would mislead the task heads that read it.
    if not bool(rows[:, :1].all()):
        raise PlainPath("a row of the batch begins with padding, or holds nothing else; pad on the right")
    return rows.expand(batch, tokens)


def is_recording() -> bool:
    """Whether transformers records hidden states or attentions in this call."""
    recorder = sys.modules.get(RECORDER)
    return recorder is not None and bool(recorder._active_collector.get())


def is_foreign(hook: Any) -> bool:
    """Whether a hook is of another package."""
    ours = isinstance(getattr(hook, "__self__", None), FusedQKV)
    return not ours and getattr(hook, "__module__", None) != RECORDER
