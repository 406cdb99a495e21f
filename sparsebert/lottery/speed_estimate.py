"""Estimate of a ticket's speedup before its training."""

from __future__ import annotations

from typing import Any

from sparsebert.lottery.experiment import RunConfig
from sparsebert.planning.planner import plan
from sparsebert.pruning import prune
from sparsebert.tickets.ticket import Ticket

_CPU_TOKENS, _GPU_TOKENS, _GPU = 128, 4096, "h100"


def estimate_speedup(model: Any, config: RunConfig) -> list[str]:
    """Describe the speed and size of the pruned matrices at the sparsity and units of a run.

    The estimates come from the cost models of this machine's CPU and of a data-centre GPU. They apply to the
    user's ticket, or else to a random ticket of the same sparsity and units, because the positions of the
    kept weights are still unknown. The model is not changed.

    Returns:
        Lines to print; none for a dense run.
    """
    ticket = config.ticket
    if ticket is None:
        arguments = {name: value for name, value in vars(config.units).items() if name != "pooling"}
        shares = config.method.shares(model, config.target)
        ticket = prune(model, "random", sparsity=shares, **arguments)
    if not ticket.sparsity:
        return []
    granularity = ticket.metadata.get("granularity", "element")
    size = ticket.metadata.get("block_size")
    units = "{}s of {}x{}".format(granularity, *size) if size else f"granularity {granularity!r}"
    if (encoder_sparsity := ticket.metadata.get("encoder_sparsity")) is not None:
        units += f" ({encoder_sparsity:.0%} of all encoder matrices)"
    lines = [
        f"{ticket.sparsity:.0%} pruned, {units}: estimated gain of these matrices (modelled, not measured)",
        f"  this CPU, {_CPU_TOKENS} tokens: {_gain(model, ticket, _CPU_TOKENS, None)}",
        f"  NVIDIA {_GPU.upper()}, {_GPU_TOKENS} tokens: {_gain(model, ticket, _GPU_TOKENS, _GPU)}",
    ]
    if granularity == "element":
        lines.append(
            "  pruning single weights leaves no block empty, so a GPU can only save memory; blocks "
            "(--granularity 64x64) let its kernels skip work, at some cost in accuracy"
        )
    return lines


def _gain(model: Any, ticket: Ticket, tokens: int, device: str | None) -> str:
    layers = plan(model, ticket, tokens=tokens, measure=False, device=device).layers
    stored = sum(layer.nbytes for layer in layers) / sum(layer.dense_nbytes for layer in layers)
    times = [(layer.predicted_us, layer.dense_us) for layer in layers]
    if any(sparse is None or dense is None for sparse, dense in times):
        return f"{stored:.2f}x the memory"
    sparse, dense = (sum(column) for column in zip(*times, strict=True))
    return f"{dense / sparse:.1f}x the speed of dense, {stored:.2f}x the memory"
