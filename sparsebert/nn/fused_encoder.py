"""``FusedEncoder``: an encoder of transformers whose layers run as one native call.

Fusing changes the class of the encoder to a subclass with another forward method. The encoder itself, its
layers, parameters, hooks and names stay, and so does what is saved. The native description of the layers is
made on the first call, and again after a change of any module or tensor that it was made from. Changes that
torch does not count, through ``.data``, are noticed by a sample of each weight.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as every_module

from sparsebert.bert import activation_name
from sparsebert.compaction.live_rectangle import RectangleLinear
from sparsebert.compaction.narrow_attention import NarrowAttention
from sparsebert.nn.encoder_layers import EncoderLayer, encoder_layers, encoder_result
from sparsebert.nn.fused_activation import FusedActivation
from sparsebert.nn.fused_qkv import FusedQKV
from sparsebert.nn.sparse_linear import SparseLinear
from sparsebert_kernels.cpu import encoder as kernels
from sparsebert_kernels.cpu import native
from sparsebert_kernels.cpu.encoder import DensePanel, HeadGroup, NativeEncoder
from sparsebert_kernels.formats import ElementSparse, PackedWeight, VectorSparse
from sparsebert_kernels.ops import plain_inference

# Where transformers records hidden states and attentions: hooks of this module, active while a collector is
# set.
RECORDER = "transformers.utils.output_capturing"
# Arguments of the encoders that do not change the result.
WITHOUT_EFFECT = ("position_ids", "return_dict")
RECORDED_GRADIENTS = "gradients are recorded; call the model under torch.inference_mode()"
ACTIVATIONS = ("relu", "gelu", "gelu_tanh")
# Values of each weight that are compared in every call: about 2 % of the time of 16 tokens through MiniLM-L6.
SAMPLED = 61
# Attributes that the description copies from attentions and LayerNorms.
SETTINGS = ("scaling", "scale", "groups", "attention_head_size", "is_decoder", "is_causal", "eps")


class _PlainPath(Exception):
    """The layers must run one by one in this call; the message says why."""


class FusedEncoder(nn.Module):
    """The forward method of a fused encoder, mixed into the class of the encoder by ``fused_class``."""

    plain_class: Any  # the class of the encoder in transformers
    _native: _Native | None = None

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
            except _PlainPath as reason:
                self._say_once(str(reason))
        return super().forward(hidden_states, attention_mask, *args, **kwargs)

    def _run(self, x: Tensor, mask: Tensor | None, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        if reason := native.why_unavailable():
            raise _PlainPath(f"the native library is missing ({reason})")
        if _is_recording():
            raise _PlainPath("the call asks for hidden states or attentions")
        if any(value is not None for value in args):
            raise _PlainPath("the call has further positional arguments")
        for name, value in kwargs.items():
            if value is not None and value is not False and name not in WITHOUT_EFFECT:
                raise _PlainPath(f"the call has the argument {name}")
        if not x.is_cpu or x.dtype != torch.float32 or x.dim() != 3:
            raise _PlainPath(f"the input is {x.dtype} on {x.device}, not torch.float32 on cpu")
        if torch.is_grad_enabled() and x.requires_grad:
            raise _PlainPath(RECORDED_GRADIENTS)
        if not plain_inference(x):
            raise _PlainPath("the call is traced, transformed or under autocast")
        if self.training:
            raise _PlainPath("the encoder is in training mode")
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in self.parameters()):
            raise _PlainPath(RECORDED_GRADIENTS)
        described = self._native
        if described is None or not described.is_current():
            described = self.__dict__["_native"] = _Native(self)
        described.require_undisturbed()
        return encoder_result(self.plain_class, described.encoder(x, _kept_tokens(mask, x)))

    def _say_once(self, reason: str) -> None:
        said = self.__dict__.setdefault("_said", set())
        if reason not in said:
            said.add(reason)
            warnings.warn(
                f"the fused encoder runs its layers one by one: {reason}", UserWarning, stacklevel=4
            )

    def __reduce_ex__(self, protocol: Any) -> Any:
        state = {name: value for name, value in self.__dict__.items() if name not in ("_native", "_said")}
        return _new_encoder, (self.plain_class,), state


_FUSED_CLASSES: dict[type, type[FusedEncoder]] = {}


def fused_class(plain_class: type) -> type[FusedEncoder]:
    """Return the fused class of an encoder's class, always the same."""
    if plain_class not in _FUSED_CLASSES:
        bases = (FusedEncoder, plain_class)
        _FUSED_CLASSES[plain_class] = type(
            f"Fused{plain_class.__name__}", bases, {"plain_class": plain_class}
        )
    return _FUSED_CLASSES[plain_class]


def _new_encoder(plain_class: type[nn.Module]) -> FusedEncoder:
    """Make an encoder for ``__setstate__``, of a class that pickle cannot find by name."""
    cls = fused_class(plain_class)
    return cls.__new__(cls)


def require_fusible(encoder: nn.Module) -> None:
    """Raise ValueError unless every layer of an encoder of a known class has a native form."""
    cls = encoder.plain_class if isinstance(encoder, FusedEncoder) else type(encoder)
    for number, layer in enumerate(encoder_layers(encoder, cls)):
        try:
            _require_known(layer)
        except _PlainPath as reason:
            raise ValueError(f"layer {number} of {cls.__name__} cannot be fused: {reason}") from None


def why_one_by_one(encoder: FusedEncoder, x: Tensor) -> str | None:
    """Return why a call with x [B, T, hidden] runs the layers one by one; None if it runs them natively."""
    try:
        encoder._run(x, None, (), {})
    except _PlainPath as reason:
        return str(reason)
    return None


def has_foreign_code(encoder: nn.Module) -> bool:
    """Whether modules inside an encoder have patched forward methods, or hooks of other packages."""
    return any(_has_foreign_code(vars(module)) for module in encoder.modules() if module is not encoder)


class _Native:
    """The native description of an encoder's layers, and all that it was made from."""

    def __init__(self, encoder: FusedEncoder) -> None:
        modules = list(encoder.modules())
        self._modules = [vars(module) for module in modules]
        self._children = [(module._modules, dict(module._modules)) for module in modules]
        sparse = [module for module in modules if isinstance(module, SparseLinear)]
        # The values of a prepacked dense layer are neither a parameter nor a buffer.
        self._sparse = [(module, module.activation, module.values) for module in sparse]
        layers = encoder_layers(encoder, encoder.plain_class)
        for layer in layers:
            _require_known(layer)
        if not layers:
            raise _PlainPath("the encoder has no layers")
        self._settings = [
            (vars(module), name, vars(module)[name])
            for layer in layers
            for module in (layer.attention, *layer.norms)
            for name in SETTINGS
            if name in vars(module)
        ]
        copied = [tensor for layer in layers for tensor in _copied(layer)]
        with torch.inference_mode(False), torch.no_grad():
            self._samples = [_sample(tensor.detach()) for tensor in copied]
            self._sampled = torch.cat(self._samples) if copied else torch.empty(0)
            self.encoder = NativeEncoder([_described(layer) for layer in layers])
        self._tensors = [
            (tensors, name, tensor, _version(tensor), tensor.data_ptr())
            for module in modules
            for tensors in (module._parameters, module._buffers)
            for name, tensor in tensors.items()
            if tensor is not None
        ]

    def is_current(self) -> bool:
        """Whether modules and tensors are those that the description was made from, unchanged."""
        return (
            all(now == before for now, before in self._children)
            and all(
                tensors.get(name) is tensor and _version(tensor) == version and tensor.data_ptr() == address
                for tensors, name, tensor, version, address in self._tensors
            )
            and all(
                module.activation == activation and module.values is values
                for module, activation, values in self._sparse
            )
            and all(module.get(name) == value for module, name, value in self._settings)
            and (not self._samples or torch.equal(torch.cat(self._samples), self._sampled))
        )

    def require_undisturbed(self) -> None:
        """Raise ``_PlainPath`` if the layers train, record gradients or run foreign code."""
        if every_module._has_any_global_hook():
            raise _PlainPath("there are hooks on all modules")
        for number, module in enumerate(self._modules):
            if module["training"]:
                raise _PlainPath("the encoder is in training mode")
            hooks = module["_forward_hooks"] or module["_forward_pre_hooks"]
            if number and (hooks or "forward" in module) and _has_foreign_code(module):
                raise _PlainPath("a module of the encoder has hooks or a patched forward method")
        if torch.is_grad_enabled() and any(tensor.requires_grad for _, _, tensor, _, _ in self._tensors):
            raise _PlainPath(RECORDED_GRADIENTS)


def _require_known(layer: EncoderLayer) -> None:
    """Raise ``_PlainPath`` unless the native encoder computes what the layer's modules compute."""
    for module in layer.unknown:
        if module is not layer.attention or type(module) is not NarrowAttention:
            raise _PlainPath(f"{type(module).__name__} is not part of its family's layers")
    if getattr(layer.attention, "is_decoder", False) or getattr(layer.attention, "is_causal", False):
        raise _PlainPath("the model is a decoder")
    for module in layer.linears:
        if type(module) not in (nn.Linear, SparseLinear, RectangleLinear):
            raise _PlainPath(f"{type(module).__name__} is not a plain or sparse linear layer")
        if 0 in (module.in_features, module.out_features):
            raise _PlainPath("a linear layer is empty")
    for module in layer.norms:
        if type(module) is not nn.LayerNorm or module.weight is None or module.bias is None:
            raise _PlainPath(f"{type(module).__name__} is not a LayerNorm with weight and bias")
    _activation(layer)


def _activation(layer: EncoderLayer) -> str:
    """Return the kernels' name of the layer's activation, applied by its module or by its up-projection."""
    fused = isinstance(layer.activation, FusedActivation)
    applied = [getattr(module, "activation", "none") for module in layer.linears]
    up = applied.pop(4)
    if applied != ["none"] * 5 or (up != "none") != fused:
        raise _PlainPath("a sparse layer applies an activation of its own")
    name = up if fused else activation_name(layer.activation)
    if name not in ACTIVATIONS:
        raise _PlainPath(f"{type(layer.activation).__name__} is none of {', '.join(ACTIVATIONS)}")
    return name


def _described(layer: EncoderLayer) -> kernels.EncoderLayer:
    attention: Any = layer.attention
    linears: Any = layer.linears
    norms: Any = layer.norms
    if isinstance(attention, NarrowAttention):
        heads = [HeadGroup(len(group.heads), group.score, group.value) for group in attention.groups]
        scale = attention.scale
    else:
        width = attention.attention_head_size
        heads = [HeadGroup(linears[0].out_features // width, width, width)]
        scale = attention.scaling
    biases = [module.bias for module in linears]
    for tensor in (*biases, *norms[0].parameters(), *norms[1].parameters()):
        if tensor is None:
            continue
        if tensor.dtype != torch.float32 or not tensor.is_cpu:
            raise _PlainPath(f"a parameter is {tensor.dtype} on {tensor.device}, not torch.float32 on cpu")
    return kernels.EncoderLayer(
        weights=[_packed(module) for module in linears],
        biases=biases,
        attention_norm=(norms[0].weight, norms[0].bias),
        output_norm=(norms[1].weight, norms[1].bias),
        epsilons=(norms[0].eps, norms[1].eps),
        heads=heads,
        scale=scale,
        activation=_activation(layer),
    )


def _packed(module: Any) -> PackedWeight:
    """Return the layer's own packed weight if the native encoder computes it, else one that it does."""
    if isinstance(module, SparseLinear) and kernels.supports(module.packed):
        return module.packed
    weight = module.weight
    if weight.dtype != torch.float32 or not weight.is_cpu or weight.is_meta:
        raise _PlainPath(f"a weight is {weight.dtype} on {weight.device}, not torch.float32 on cpu")
    if isinstance(module, RectangleLinear):
        live = module.whole(torch.ones_like(weight, dtype=torch.bool))
        return VectorSparse.from_dense(module.whole(weight.detach()), live)
    if isinstance(module, SparseLinear) and module.format == "compact":
        return VectorSparse.from_dense(weight)
    if isinstance(module, SparseLinear) and module.format != "dense":
        return ElementSparse.from_dense(weight, module.mask)
    return DensePanel.from_dense(weight)


def _copied(layer: EncoderLayer) -> list[Tensor]:
    """Return the parameters of a layer that its description holds copies of.

    Raises:
        _PlainPath: In-place changes of a weight are not counted.
    """
    norms = [tensor for norm in layer.norms for tensor in norm.parameters()]
    return [
        *(tensor for module in layer.linears for tensor in _copied_of_linear(module)),
        *(tensor for tensor in norms if not kernels.read_in_place(tensor)),
    ]


def _copied_of_linear(module: Any) -> list[Tensor]:
    """Return the weight and bias that a linear layer's description holds copies of.

    Raises:
        _PlainPath: In-place changes of the weight are not counted.
    """
    copied = []
    in_place = isinstance(module, SparseLinear) and kernels.supports(module.packed)
    weight = module.values if isinstance(module, SparseLinear) else module.weight
    # The values of a prepacked layer are opaque: they are replaced, not changed.
    if not in_place and weight.layout == torch.strided and weight.numel():
        if weight.is_inference():
            raise _PlainPath(
                "a weight was made under torch.inference_mode(), which does not count changes; "
                "load the model outside it"
            )
        copied.append(weight)
    bias = module.bias
    if bias is not None and (bias.numel() % kernels.ROWS or not kernels.read_in_place(bias)):
        copied.append(bias)
    return copied


def _sample(tensor: Tensor) -> Tensor:
    """Return a view of values spread over a weight, or of all values of a bias."""
    if tensor.dim() == 1:
        return tensor
    span = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    step = span // SAMPLED | 1  # odd: meets more columns than a power of two
    return tensor.as_strided((-(-span // step),), (step,))


def _kept_tokens(mask: Tensor | None, x: Tensor) -> Tensor | None:
    """Return the tokens that an attention mask keeps for all heads and queries, bool [B, T]; None for all."""
    if mask is None:
        return None
    batch, tokens, _ = x.shape
    if mask.dim() != 4 or mask.shape[1] != 1 or mask.shape[2] not in (1, tokens) or mask.shape[3] != tokens:
        raise _PlainPath("the attention mask is not [batch, 1, tokens, tokens]")
    if mask.dtype != torch.bool:
        kept = mask == 0
        if not bool((kept | (mask <= torch.finfo(torch.float32).min)).all()):
            raise _PlainPath("the attention mask has other values than 0 and the least")
        mask = kept
    rows = mask[:, 0, 0]
    if mask.stride(2) and not torch.equal(mask, rows[:, None, None].expand_as(mask)):
        raise _PlainPath("the attention mask differs between queries")
    # Zero at padding, the first state would mislead the task heads that read it.
    if not bool(rows[:, :1].all()):
        raise _PlainPath("a row of the batch begins with padding, or holds nothing else; pad on the right")
    return rows.expand(batch, tokens)


def _is_recording() -> bool:
    """Whether transformers records hidden states or attentions in this call."""
    recorder = sys.modules.get(RECORDER)
    return recorder is not None and bool(recorder._active_collector.get())


def _has_foreign_code(module: dict[str, Any]) -> bool:
    """Whether a module has a patched forward method, or hooks of other packages."""
    hooks = (*module["_forward_hooks"].values(), *module["_forward_pre_hooks"].values())
    return "forward" in module or not all(
        isinstance(getattr(hook, "__self__", None), FusedQKV) or getattr(hook, "__module__", None) == RECORDER
        for hook in hooks
    )


def _version(tensor: Tensor) -> int:
    """Return the count of in-place changes; 0 for inference tensors, which keep none."""
    return 0 if tensor.is_inference() else tensor._version
