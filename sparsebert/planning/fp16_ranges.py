"""The range of the numbers that each layer computes with, to decide whether it may compute in fp16."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sparsebert.bert import full_name, resolve
from sparsebert.tickets.ticket import Ticket
from sparsebert_kernels.cpu.fp16 import Fp16Range, fp16_range


def fp16_ranges(
    model: nn.Module, ticket: Ticket, batches: Iterable[Mapping[str, Any]]
) -> dict[str, Fp16Range]:
    """Run a dense model on calibration data, and measure the layers that a ticket masks.

    Args:
        model: The model, with ``nn.Linear`` layers; it is only read.
        ticket: The ticket; pruned weights do not count.
        batches: Keyword arguments of the model.

    Returns:
        Key of the layer -> its range over all batches; ``fits`` says whether fp16 holds it with a margin.

    Raises:
        ValueError: There is no batch, or a layer does not see its input.
    """
    ranges: dict[str, Fp16Range] = {}

    def observe(key: str, mask: Tensor, linear: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        weight = linear.get_parameter("weight").detach()
        measured = fp16_range(inputs[0], torch.where(mask.to(weight.device), weight, 0))
        ranges[key] = ranges[key] | measured if key in ranges else measured

    handles = [
        resolve(model, key).register_forward_pre_hook(partial(observe, key, mask))
        for key, mask in ticket.masks.items()
    ]
    try:
        with torch.inference_mode():
            for batch in batches:
                model(**batch)
    finally:
        for handle in handles:
            handle.remove()
    for key in ticket.masks:
        if key not in ranges:
            raise ValueError(
                f"no batch reaches {full_name(model, key)}: pass batches that run the whole model"
            )
    return ranges
