"""Small models of every family, batches for them, and the outputs at real tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.fuse.models import FAMILIES, make

__all__ = ["FAMILIES", "batch", "call", "close", "let_it_wait", "make"]


def batch(rows: int, length: int, *, mask: bool = True, seed: int = 0) -> dict[str, Tensor]:
    """Random token ids, and the mask of random lengths: each sequence has at least one token."""
    generator = torch.Generator().manual_seed(seed)
    inputs = {"input_ids": torch.randint(3, 50, (rows, length), generator=generator)}
    if mask:
        lengths = torch.randint(1, length + 1, (rows, 1), generator=generator)
        inputs["attention_mask"] = (torch.arange(length) < lengths).long()
    return inputs


@torch.inference_mode()
def call(model: Any, inputs: dict[str, Any], **options: Any) -> list[Tensor]:
    """All outputs of a model or a runner, in a fixed order."""
    outputs = model(**inputs, **options)
    values = outputs if isinstance(outputs, tuple) else outputs.to_tuple()
    return [tensor for value in values for tensor in (value if isinstance(value, tuple) else [value])]


def close(answers: list[Tensor], expected: list[Tensor], tolerance: float = 3e-6) -> bool:
    assert [tuple(each.shape) for each in answers] == [tuple(each.shape) for each in expected]
    assert [each.dtype for each in answers] == [each.dtype for each in expected]
    return all(
        torch.allclose(answer, true, rtol=tolerance, atol=tolerance)
        for answer, true in zip(answers, expected, strict=True)
    )


def let_it_wait(layer: nn.Module) -> None:
    """Let a layer read a value in each call, which waits for the device, until its ``forward`` is deleted."""
    plain = layer.forward

    def waits(*args: Any, **kwargs: Any) -> Any:
        output = plain(*args, **kwargs)
        assert float(output.sum()) < 1e9
        return output

    layer.forward = waits
