"""``NativeLayers``: the layers of an encoder as the native library takes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sparsebert.bert import activation_name
from sparsebert.compaction.narrow_attention import NarrowAttention
from sparsebert.nn.encoder_layers import EncoderLayer, Family, encoder_layers, is_of
from sparsebert.nn.fused_activation import FusedActivation
from sparsebert.nn.native_weights import (
    NativeForm,
    Padding,
    bias_of,
    copied_of_linear,
    is_copied,
    native_form,
    norm_tensors,
    packed_weight,
    paddings_of,
    require_linear,
    require_norm,
    require_stored,
    stored_dtype_of,
)
from sparsebert.nn.plain_path import PlainPath
from sparsebert.nn.watched import Watched
from sparsebert_kernels.cpu import encoder_parts as parts
from sparsebert_kernels.cpu.encoder import NativeEncoder
from sparsebert_kernels.cpu.encoder_parts import HeadGroup
from sparsebert_kernels.cpu.row_panels import pad_columns, pad_rows, padded_heads

ACTIVATIONS = ("relu", "gelu", "gelu_tanh")
# Attributes that the description copies from layers, attentions and LayerNorms.
SETTINGS = (
    *("scaling", "scale", "groups", "attention_head_size", "head_dim", "is_decoder", "is_causal", "eps"),
    *("attention_type", "chunk_size_feed_forward"),
)
# Attributes of the encoder's config that change the result.
CONFIGURED = ("_attn_implementation", "_attn_implementation_internal", "is_causal", "local_attention")
# Implementations of attention that compute what the native encoder computes. Others may be anything.
ATTENTIONS = ("eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3", None)
# Distances from which on all count as one in the embeddings of distances.
FARTHEST = 128


class NativeLayers(Watched):
    """The native description of an encoder's layers, and all that it was made from."""

    def __init__(self, encoder: Any, family: Family, form: NativeForm) -> None:
        self.form = form
        layers = encoder_layers(encoder, family)
        for layer in layers:
            require_known(layer)
        if not layers:
            raise PlainPath("the encoder has no layers")
        settings = settings_of(encoder, layers)
        copied = [tensor for layer in layers for tensor in _copied(layer, family, form)]
        if family.relative_bias:
            copied.append(getattr(encoder, family.relative_bias).weight)
        with torch.inference_mode(False), torch.no_grad():
            shared = _SharedTables(encoder, family, form)
            self.encoder = NativeEncoder([_described(layer, shared) for layer in layers], form.engine)
        super().__init__(list(encoder.modules()), copied, settings, self.encoder.addresses)


def current_layers(module: Any) -> NativeLayers:
    """Return the native description of a fused module's layers as they are now.

    Args:
        module: A ``FusedEncoder``, or a ``FusedModel`` that runs the layers itself.

    Raises:
        PlainPath: The layers have none, or must run one by one in this call.
    """
    described = module._native
    if described is None or not described.is_current():
        described = None
    form = native_form(module.tolerance, described.form.stored if described else stored_dtype_of(module))
    if described is None or described.form != form:
        described = vars(module)["_native"] = NativeLayers(module, module.family, form)
    described.require_undisturbed()
    return described


def settings_of(encoder: Any, layers: Sequence[EncoderLayer]) -> list[tuple[dict[str, Any], str]]:
    """Return the attributes that a description of the layers copies: dictionaries with names.

    Raises:
        PlainPath: The configured attention is none of transformers.
    """
    config = next((each.config for each in encoder.modules() if hasattr(each, "config")), None)
    implementation = getattr(config, "_attn_implementation", None)
    if implementation not in ATTENTIONS:
        raise PlainPath(f"the attention {implementation} is not one of transformers")
    owners = [vars(module) for layer in layers for module in (layer.layer, layer.attention, *layer.norms)]
    settings = [(owner, name) for owner in owners for name in SETTINGS if name in owner]
    if config is not None:
        settings += [(vars(config), name) for name in CONFIGURED if name in vars(config)]
    return settings


class _SharedTables:
    """Tables that the layers of an encoder share: rotary angles, and the biases of distances."""

    def __init__(self, encoder: Any, family: Family, form: NativeForm) -> None:
        self._encoder = encoder
        self.family, self.form = family, form
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
            angles = torch.cat((cosines[0, :, :half], sines[0, :, :half]), 1)
            if self.form.engine == torch.bfloat16:
                angles = pad_columns(angles, [(2, half)])
            self._rotary[layer_type] = angles.contiguous()
        return self._rotary[layer_type]

    def window(self, layer: Any) -> int | None:
        return self._encoder.config.sliding_window if layer.attention_type == "sliding_attention" else None

    def _relative_bias(self) -> Tensor:
        """Return the biases that each head adds to its scores, [heads, 2 * FARTHEST + 1]."""
        table = getattr(self._encoder, str(self.family.relative_bias))
        if type(table) is not nn.Embedding or table.max_norm is not None:
            raise PlainPath(f"{type(table).__name__} is not a plain embedding")
        require_stored(table.weight, self.form.stored)
        distances = torch.arange(-FARTHEST, FARTHEST + 1)  # of a query after its key
        buckets = self._encoder.relative_position_bucket(-distances)
        return table.weight.detach()[buckets].T.contiguous()


def require_fusible(encoder: Any, family: Family) -> None:
    """Raise ValueError unless every layer of an encoder of a known family has a native form."""
    for number, layer in enumerate(encoder_layers(encoder, family)):
        try:
            require_known(layer)
        except PlainPath as reason:
            name = getattr(encoder, "plain_class", type(encoder)).__name__
            raise ValueError(f"layer {number} of {name} cannot be fused: {reason}") from None


def require_known(layer: EncoderLayer) -> None:
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
    activation_of(layer)


def activation_of(layer: EncoderLayer) -> str:
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


def heads_of(layer: EncoderLayer, family: Family) -> tuple[list[HeadGroup], float]:
    """Return the heads of a layer, and the factor of its scores."""
    attention: Any = layer.attention
    if isinstance(attention, NarrowAttention):
        heads = [HeadGroup(len(group.heads), group.score, group.value) for group in attention.groups]
        return heads, attention.scale
    output: Any = layer.linears[3]
    width = attention.head_dim if family.pre_norm else attention.attention_head_size
    scale = getattr(attention, "scaling", width**-0.5)
    return [HeadGroup(output.in_features // width, width, width)], scale


def _paddings(layer: EncoderLayer, family: Family, form: NativeForm) -> list[Padding]:
    heads, down = heads_of(layer, family)[0], layer.linears[5]
    neurons: Any = getattr(down, "in_features", 0)
    modern = family.pre_norm
    return paddings_of(heads, form, joint=modern, gated=neurons if modern else 0, rotary=modern)


def _described(layer: EncoderLayer, shared: _SharedTables) -> parts.EncoderLayer:
    linears: Any = layer.linears
    family, form = shared.family, shared.form
    heads, scale = heads_of(layer, family)
    norms = [norm_tensors(norm, form.stored) for norm in layer.norms]
    pre_norm = family.pre_norm
    rotary = shared.rotary(layer.layer.attention_type) if pre_norm else None  # type: ignore[arg-type]
    paddings = list(zip(linears, _paddings(layer, family, form), strict=True))
    biases = [None if module is None else bias_of(module, form.stored) for module in linears]
    return parts.EncoderLayer(
        weights=[
            None if module is None else packed_weight(module, form, padding) for module, padding in paddings
        ],
        biases=[
            bias if bias is None else pad_rows(bias.detach(), padding.rows)
            for bias, (_, padding) in zip(biases, paddings, strict=True)
        ],
        attention_norm=norms[0],
        output_norm=norms[1],  # type: ignore[arg-type]
        epsilons=tuple(getattr(norm, "eps", 0.0) for norm in layer.norms),  # type: ignore[arg-type]
        heads=padded_heads(heads, rotary=pre_norm) if form.engine == torch.bfloat16 else heads,
        scale=scale,
        activation=activation_of(layer),
        pre_norm=pre_norm,
        gated=pre_norm,
        window=shared.window(layer.layer) if pre_norm else None,
        relative_bias=shared.relative_bias,
        rotary=rotary,
    )


def _copied(layer: EncoderLayer, family: Family, form: NativeForm) -> list[Tensor]:
    """Return the parameters of a layer that its description holds copies of.

    Raises:
        PlainPath: In-place changes of a weight are not counted.
    """
    norms = [tensor for norm in layer.norms for tensor in norm.parameters()]
    return [
        *(
            tensor
            for each, padding in zip(layer.linears, _paddings(layer, family, form), strict=True)
            if each is not None
            for tensor in copied_of_linear(each, form, padding)
        ),
        *(tensor for tensor in norms if is_copied(tensor)),
    ]
