"""One side of ``benchmarks.revisions``: builds a case with the sparsebert on its path and times it.

Requests and replies are JSON lines on stdin and stdout. The worker uses public names only, so that it runs
with any revision.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import sparsebert

SHARE_OF_KEPT_WEIGHTS = 0.1


def layer_case(shape: list[int], tokens: int, format: str, dtype: str) -> Callable[[], torch.Tensor]:
    """Return a call with ``tokens`` tokens of a ``SparseLinear`` of this [out, in] shape at 90 % sparsity."""
    generator = torch.Generator().manual_seed(0)
    rows = 4 if format == "vector" else 1
    units = torch.rand(shape[0] // rows, shape[1], generator=generator) < SHARE_OF_KEPT_WEIGHTS
    mask = units.repeat_interleave(rows, dim=0)
    linear = nn.Linear(shape[1], shape[0])
    with torch.no_grad():
        linear.weight.copy_(torch.randn(*shape, generator=generator) * 0.02)
        linear.bias.copy_(torch.randn(shape[0], generator=generator) * 0.02)
    linear = linear.to(getattr(torch, dtype)).requires_grad_(False)
    layer = sparsebert.SparseLinear.from_linear(linear, mask, format=format)
    x = torch.randn(tokens, shape[1], generator=generator).to(getattr(torch, dtype))
    return lambda: layer(x)


def model_case(
    config: dict[str, int], batch: int, tokens: int, granularity: str
) -> Callable[[], torch.Tensor]:
    """Return a call of a BERT with random weights, 90 % of them pruned, or half of its heads and neurons."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    model = BertModel(BertConfig(**config)).eval()
    sparsity = 0.5 if granularity == "head+neuron" else 1 - SHARE_OF_KEPT_WEIGHTS
    ticket = sparsebert.prune(model, "magnitude", sparsity=sparsity, granularity=granularity)
    # With one format for every layer, the revisions differ in their code alone and not in their plans.
    sparsebert.sparsify_(model, ticket, tokens=batch * tokens, format="element")
    ids = torch.randint(5, 1000, (batch, tokens), generator=torch.Generator().manual_seed(1))
    return lambda: model(ids).last_hidden_state


def seconds(work: Callable[[], object], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        work()
    return (time.perf_counter() - start) / calls


def main() -> None:
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # output of libraries goes to stderr
    torch.set_num_threads(1)
    work: Callable[[], torch.Tensor] = lambda: torch.empty(0)  # noqa: E731
    for line in sys.stdin:
        request: dict[str, Any] = json.loads(line)
        if "case" in request:
            make = {"layer": layer_case, "model": model_case}[request["case"]]
            work = make(**request["arguments"])
        with torch.inference_mode():
            if "case" in request:
                answer: Any = [float(part) for part in work().double().flatten()[:4096]]
            else:
                answer = seconds(work, request["calls"])
        print(json.dumps(answer), file=replies, flush=True)


if __name__ == "__main__":
    main()
