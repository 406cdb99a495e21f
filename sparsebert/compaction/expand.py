"""Restore the configured shapes of a compacted model, with zeros for the removed parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from sparsebert.bert import full_name, resolve, structure
from sparsebert.compaction.heads import HeadGroup, slots
from sparsebert.compaction.live_rectangle import RectangleLinear
from sparsebert.compaction.manifest import detach_record_, record_of
from sparsebert.compaction.masked_matrix import EMPTY, Matrix
from sparsebert.compaction.narrow_attention import attention_path, restore_attention_
from sparsebert.nn.module_swap import move_hooks, replace_module


def expand(model: nn.Module) -> None:
    """Expand as ``sparsebert.compact.expand_`` describes."""
    record = record_of(model)
    if not record:
        return
    encoder = structure(model)
    matrices = {key: _matrix(model, key) for key in record["linears"]}
    for keys in encoder.heads:
        groups = tuple(
            HeadGroup(tuple(each["heads"]), each["score"], each["value"])
            for each in record["attention"].get(attention_path(keys), ())
        )
        if groups:
            scores, values = (
                _compacted_rows(groups, kind, encoder.num_heads, encoder.head_size)
                for kind in ("score", "value")
            )
            for key, rows in zip(keys[:3], (scores, scores, values), strict=True):
                matrices[key] = matrices[key].rows(rows)
            matrices[keys[3]] = matrices[keys[3]].columns(values)
    for up, down in encoder.neurons:
        neurons, configured = len(matrices[up].bias), record["linears"][up][0]
        index = [*range(neurons), *[EMPTY] * (configured - neurons)]
        matrices[up], matrices[down] = matrices[up].rows(index), matrices[down].columns(index)
    for key, matrix in matrices.items():
        old = resolve(model, key)
        new = _linear(old, matrix)
        move_hooks(old, new)
        replace_module(model, full_name(model, key), new)
    for keys in encoder.heads:
        restore_attention_(model, keys)
    detach_record_(model)


def _compacted_rows(groups: Sequence[HeadGroup], kind: str, count: int, size: int) -> list[int]:
    """Return the compacted row of each configured row; ``EMPTY`` for rows that compaction removed."""
    widths = slots(groups, kind)
    rows: list[int] = []
    for head in range(count):
        start, width = widths.get(head, (0, 0))
        rows += [*range(start, start + width), *[EMPTY] * (size - width)]
    return rows


def _matrix(model: nn.Module, key: str) -> Matrix:
    """Return the present matrix of a layer, including its dead rows and columns."""
    module = resolve(model, key)
    layer = module.to_linear() if isinstance(module, RectangleLinear) else module
    if not isinstance(layer, nn.Linear):
        raise ValueError(
            f"{key} must be an nn.Linear, got a {type(module).__name__}; densify_ the model first"
        )
    weight = layer.weight.detach()
    return Matrix(weight, torch.ones_like(weight, dtype=torch.bool), layer.bias.detach())


def _linear(old: Any, matrix: Matrix) -> nn.Linear:
    """Return a dense layer of the matrix, with the flags of ``old``."""
    rows, columns = matrix.weight.shape
    linear = nn.Linear(columns, rows, device="meta", dtype=matrix.weight.dtype)
    linear.weight = nn.Parameter(matrix.weight, requires_grad=old.weight.requires_grad)
    linear.bias = nn.Parameter(matrix.bias, requires_grad=old.bias.requires_grad)
    return linear.train(old.training)
