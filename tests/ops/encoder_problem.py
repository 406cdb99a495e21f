"""Encoders of two layers with random weights, a batch for them, and the same layers in torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sparsebert_kernels.cpu.encoder_parts import DensePanel, EncoderLayer, HeadGroup
from sparsebert_kernels.formats import ElementSparse, PackedWeight, VectorSparse

ACTIVATIONS = {"relu": F.relu, "gelu": F.gelu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh")}
# Lengths at the edges of panels of 16, 32 and 64 tokens, and batches of many or empty sequences.
LENGTHS = ((1,), (16, 16), (17, 31, 32), (64, 65), (3,) * 30, (0, 5, 0))


@dataclass(frozen=True)
class Problem:
    """Two layers and a batch."""

    hidden: int = 40
    inner: int = 72
    heads: tuple[HeadGroup, ...] = (HeadGroup(2, 16, 16),)
    formats: tuple[str, ...] = ("element",) * 6
    lengths: tuple[int, ...] = (9, 33, 1)
    density: float = 0.4
    activation: str = "gelu"
    bias: bool = True
    joint: bool = False
    pre_norm: bool = False
    gated: bool = False
    window: int | None = None
    reach: int | None = None  # of a relative bias
    rotary: bool = False

    def layers(self) -> tuple[list[EncoderLayer], list[list[Tensor]]]:
        """The layers, and their dense weights."""
        score = sum(group.heads * group.score for group in self.heads)
        value = sum(group.heads * group.value for group in self.heads)
        shapes = [(score, self.hidden)] * 2 + [(value, self.hidden), (self.hidden, value)]
        shapes += [(self.inner * (1 + self.gated), self.hidden), (self.hidden, self.inner)]
        layers, dense = [], []
        heads = sum(group.heads for group in self.heads)
        angles = torch.rand(max(self.lengths), self.heads[0].score // 2) * 6
        for number in range(2):
            weights = [self.matrix(place, shape) for place, shape in enumerate(shapes)]
            packed: list[PackedWeight | None] = [self.pack(*each) for each in enumerate(weights)]
            biases = [torch.randn(rows) if self.bias else None for rows, _ in shapes]
            first_norm = (torch.rand(self.hidden) + 0.5, torch.randn(self.hidden))
            relative = None if self.reach is None else torch.randn(heads, 2 * self.reach + 1)
            if self.joint:
                joined = [bias for bias in biases[:3] if bias is not None]
                packed[:3] = [self.pack(0, torch.cat(weights[:3])), None, None]
                biases[:3] = [torch.cat(joined) if joined else None, None, None]
            layers.append(
                EncoderLayer(
                    weights=packed,
                    biases=biases,
                    attention_norm=None if self.pre_norm and number == 0 else first_norm,
                    output_norm=(torch.rand(self.hidden) + 0.5, torch.randn(self.hidden)),
                    epsilons=(1e-5, 1e-3),
                    heads=self.heads,
                    scale=0.3,
                    activation=self.activation,
                    pre_norm=self.pre_norm,
                    gated=self.gated,
                    window=self.window,
                    relative_bias=relative,
                    rotary=torch.cat((angles.cos(), angles.sin()), 1) if self.rotary else None,
                )
            )
            dense.append(weights)
        return layers, dense

    def matrix(self, place: int, shape: tuple[int, int]) -> Tensor:
        """A random dense matrix for one of the six places of a layer."""
        return masked(shape, self.formats[place], self.density)

    def pack(self, place: int, weight: Tensor) -> PackedWeight:
        """The matrix of a place in its format."""
        return pack(weight, self.formats[place])

    def batch(self) -> tuple[Tensor, Tensor]:
        tokens = max(self.lengths)
        mask = torch.arange(tokens) < torch.tensor(self.lengths)[:, None]
        return torch.randn(len(self.lengths), tokens, self.hidden), mask


def masked(shape: tuple[int, int], format: str, density: float) -> Tensor:
    rows, columns = shape
    height = int(format[6:]) if format.startswith("vector") else 1
    mask = torch.rand(-(-rows // height), columns) < (1.0 if format == "dense" else density)
    return torch.randn(shape) / columns**0.5 * mask.repeat_interleave(height, 0)[:rows]


def pack(weight: Tensor, format: str) -> PackedWeight:
    if format == "dense":
        return DensePanel.from_dense(weight)
    if format == "element":
        return ElementSparse.from_dense(weight)
    return VectorSparse.from_dense(weight, vector_rows=int(format[6:]))


def reference(
    layers: Sequence[EncoderLayer], dense: Sequence[Sequence[Tensor]], x: Tensor, mask: Tensor, dtype: Any
) -> Tensor:
    """The same layers in torch; zero at padding."""
    x = x.to(dtype)

    def of(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.to(dtype)

    def norm(x: Tensor, parameters: tuple[Tensor, Tensor] | None, epsilon: float) -> Tensor:
        return x if parameters is None else F.layer_norm(x, x.shape[-1:], *map(of, parameters), epsilon)

    def rotated(x: Tensor, table: Tensor | None) -> Tensor:
        if table is None:
            return x
        cosine, sine = table[: x.shape[1]].to(dtype).chunk(2, -1)
        low, high = x.chunk(2, -1)
        return torch.cat((low * cosine - high * sine, high * cosine + low * sine), -1)

    for layer, weights in zip(layers, dense, strict=True):
        rows = [len(weight) for weight in weights[:3]]
        if layer.weights[1] is None:
            biases = [None] * 3 if layer.biases[0] is None else layer.biases[0].split(rows)
        else:
            biases = layer.biases[:3]
        inner = norm(x, layer.attention_norm, layer.epsilons[0]) if layer.pre_norm else x
        q, k, v = (F.linear(inner, weights[i].to(dtype), of(biases[i])) for i in range(3))
        context, score, value = [], 0, 0
        distance = torch.arange(x.shape[1])[:, None] - torch.arange(x.shape[1])
        for group in layer.heads:
            for _ in range(group.heads):
                head = slice(score, score + group.score)
                query, key = (rotated(each[..., head], layer.rotary) for each in (q, k))
                scores = query @ key.transpose(1, 2) * layer.scale
                if layer.relative_bias is not None:
                    reach = layer.relative_bias.shape[1] // 2
                    table = layer.relative_bias[len(context)].to(dtype)
                    scores = scores + table[distance.clamp(-reach, reach) + reach]
                seen = mask[:, None]
                if layer.window is not None:
                    seen = seen & (distance.abs() <= layer.window)
                attended = scores.masked_fill(~seen, -torch.inf).softmax(-1).nan_to_num()
                context.append(attended @ v[..., value : value + group.value])
                score, value = score + group.score, value + group.value
        attended = F.linear(torch.cat(context, -1), weights[3].to(dtype), of(layer.biases[3])) + x
        if not layer.pre_norm:
            attended = norm(attended, layer.attention_norm, layer.epsilons[0])
        inner = norm(attended, layer.output_norm, layer.epsilons[1]) if layer.pre_norm else attended
        neurons = F.linear(inner, weights[4].to(dtype), of(layer.biases[4]))
        if layer.gated:
            neurons, gate = neurons.chunk(2, -1)
            neurons = ACTIVATIONS[layer.activation](neurons) * gate
        else:
            neurons = ACTIVATIONS[layer.activation](neurons)
        x = F.linear(neurons, weights[5].to(dtype), of(layer.biases[5])) + attended
        if not layer.pre_norm:
            x = norm(x, layer.output_norm, layer.epsilons[1])
    return x * mask[..., None]
