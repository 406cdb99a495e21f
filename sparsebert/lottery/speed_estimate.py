"""What hardware will gain from a ticket, said before anybody waits for it."""

from __future__ import annotations

from typing import Any

from sparsebert.lottery.experiment import RunConfig
from sparsebert.planning.planner import plan
from sparsebert.pruning import prune
from sparsebert.tickets.ticket import Ticket

_CPU_TOKENS, _GPU_TOKENS, _GPU = 128, 4096, "h100"


def estimate_speedup(model: Any, request: RunConfig) -> list[str]:
    """Lines about the speed and size of the pruned matrices at the requested sparsity and units.

    By the cost models of this machine's CPU and of a data-centre GPU, for the given ticket or, since where
    the weights will lie is not known yet, for a random one of the same units. The model is only read.
    """
    ticket = request.ticket
    if ticket is None:
        units = {name: value for name, value in vars(request.units).items() if name != "pooling"}
        ticket = prune(model, "random", sparsity=request.target, **units)
    if not ticket.sparsity:
        return []
    granularity = ticket.metadata.get("granularity", "element")
    size = ticket.metadata.get("block_size")
    what = "blocks of {}x{}".format(*size) if size else f"granularity {granularity!r}"
    if (whole := ticket.metadata.get("encoder_sparsity")) is not None:
        what += f" ({whole:.0%} of all encoder matrices)"
    lines = [
        f"{ticket.sparsity:.0%} pruned, {what}: what these matrices should gain (modelled, not measured)",
        f"  this CPU, {_CPU_TOKENS} tokens: {_gain(model, ticket, _CPU_TOKENS, None)}",
        f"  NVIDIA {_GPU.upper()}, {_GPU_TOKENS} tokens: {_gain(model, ticket, _GPU_TOKENS, _GPU)}",
    ]
    if granularity == "element":
        lines.append(
            "  single weights leave no block empty: a GPU saves memory at the most; blocks "
            "(--granularity 64x64) give its kernels something to skip, at some cost in accuracy"
        )
    return lines


def _gain(model: Any, ticket: Ticket, tokens: int, device: str | None) -> str:
    layers = plan(model, ticket, tokens=tokens, measure=False, device=device).layers
    stored = sum(layer.nbytes for layer in layers) / sum(layer.dense_nbytes for layer in layers)
    times = [(layer.predicted_us, layer.dense_us) for layer in layers]
    if any(own is None or dense is None for own, dense in times):
        return f"{stored:.2f}x the memory"
    own, dense = (sum(column) for column in zip(*times, strict=True))
    return f"{dense / own:.1f}x the speed of dense, {stored:.2f}x the memory"
