"""Install a ``CompactionPlan``: mask the model, replace its layers and attach the record."""

from __future__ import annotations

from typing import Any

from torch import nn

from sparsebert.bert import structure
from sparsebert.compaction.analyze import CompactionPlan, MatrixCompaction
from sparsebert.compaction.live_rectangle import live_rectangle, rectangle_linear
from sparsebert.compaction.manifest import VERSION, attach_record_
from sparsebert.compaction.narrow_attention import attention_path, shrink_attention_
from sparsebert.nn.module_swap import move_hooks, replace_module


def install_compaction_(plan: CompactionPlan) -> None:
    """Mask the plan's model and replace every layer and attention that compaction changes."""
    # Every layer is built before the model changes.
    modules = [_module(matrix, plan.round_to) for matrix in plan.matrices]
    plan.ticket.apply_(plan.model)
    for matrix, module in zip(plan.matrices, modules, strict=True):
        if module is not matrix.linear:
            move_hooks(matrix.linear, module)
            replace_module(plan.model, matrix.name, module)
    shrink_attentions_(plan)


def shrink_attentions_(plan: CompactionPlan) -> None:
    """Replace the attentions with narrow heads and attach the record, once the layers are in place."""
    encoder = structure(plan.model)
    for keys in encoder.heads:
        if attention := plan.attentions.get(attention_path(keys)):
            shrink_attention_(plan.model, keys, attention.groups, encoder.head_size)
    attach_record_(plan.model, compaction_record(plan))


def compaction_record(plan: CompactionPlan) -> dict[str, Any]:
    """Return the record to attach: a ``compaction_description`` without the present shapes."""
    return {
        "version": VERSION,
        "ticket": plan.source,
        "round_to": plan.round_to,
        "min_row_weights": plan.min_row_weights,
        "weights": {
            "configured": sum(matrix.linear.weight.numel() for matrix in plan.matrices),
            "exact": plan.exact,
        },
        "attention": {
            path: [vars(group) | {"heads": list(group.heads)} for group in attention.groups]
            for path, attention in plan.attentions.items()
        },
        "linears": {matrix.key: list(matrix.linear.weight.shape) for matrix in plan.matrices},
    }


def compacted_linear(matrix: MatrixCompaction) -> nn.Linear:
    """Return a dense layer of the compacted matrix, with the flags of the old one and without its hooks."""
    weight, bias = matrix.matrix.kept(), matrix.matrix.bias
    rows, columns = weight.shape
    linear = nn.Linear(columns, rows, device="meta", dtype=weight.dtype)
    linear.weight, linear.bias = nn.Parameter(weight), nn.Parameter(bias)
    _copy_flags(matrix.linear, linear)
    return linear


def _module(matrix: MatrixCompaction, round_to: int) -> nn.Module:
    """Return the layer to run; it computes the live rectangle alone if that is faster."""
    live = live_rectangle(matrix.matrix, round_to)
    if live is None:
        return compacted_linear(matrix) if matrix.compacted else matrix.linear
    rectangle = rectangle_linear(matrix.matrix, live)
    _copy_flags(matrix.linear, rectangle)
    return rectangle


def _copy_flags(source: nn.Linear, target: Any) -> None:
    weight, bias = source.weight, source.bias
    target.weight.requires_grad_(weight.requires_grad)
    target.bias.requires_grad_(weight.requires_grad if bias is None else bias.requires_grad)
    target.train(source.training)
