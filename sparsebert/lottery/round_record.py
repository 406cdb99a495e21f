"""What the record of a round says of its ticket, its settings and its training."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from sparsebert.accounting.usage import Usage
from sparsebert.bert import weight_of
from sparsebert.linear_layers import unfiltered
from sparsebert.lottery.experiment import RunConfig
from sparsebert.lottery.method import Rewind
from sparsebert.lottery.round_training import Trained
from sparsebert.lottery.run_folder import Record
from sparsebert.lottery.start_ticket import summary
from sparsebert.tickets.ticket import Ticket


def settings_fields(config: RunConfig, number: int, steps: int) -> Record:
    """Return the fields about the settings of a round.

    Args:
        config: Configuration of the run; its start ticket is the one that the run uses.
        number: Number of the round, from 0.
        steps: Optimizer steps of a round.
    """
    units, method, rounds = config.units, config.method, config.rounds
    return {
        "round": number,
        "rounds": len(rounds),
        "granularity": units.granularity,
        "block_size": units.block_size,
        "round_to": units.round_to,
        "scope": units.scope,
        "source": rounds[number].source.value,
        "rewind": method.rewind.value,
        "head": method.head.value,
        "first_step": _first_step(config, number, steps),
        "start_ticket": None if config.start_ticket is None else summary(config.start_ticket),
        "distillation": asdict(config.distillation) if config.distillation else None,
    }


def ticket_fields(ticket: Ticket, model: Any) -> Record:
    """Return the fields about the masks of a round's ticket, and where they come from."""
    encoder = unfiltered(model)
    pruned = {key: int((~mask).sum()) for key, mask in ticket.masks.items()}
    prunable = sum(mask.numel() for mask in ticket.masks.values())
    return {
        "sparsity": ticket.sparsity,
        "density": ticket.density,
        "kept": prunable - sum(pruned.values()),
        "prunable": prunable,
        "encoder_sparsity": sum(pruned.get(key, 0) for key in encoder)
        / sum(weight_of(model, key).numel() for key in encoder),
        "masks_sha256": ticket.digest,
        "search": ticket.metadata.get("search"),
        "versions": ticket.metadata["versions"],
    }


def training_fields(trained: Trained, usage: Usage, carbon_intensity: float | None) -> Record:
    """Return the fields about the training of a round, and what the round took.

    Args:
        trained: The training.
        usage: Time, memory and energy of the round.
        carbon_intensity: Grams of CO2 per kWh; None without carbon.
    """
    peaks = {"peak_rss_bytes": usage.peak_rss_bytes, "peak_gpu_bytes": usage.peak_gpu_bytes}
    return {
        "steps": trained.steps,
        "loss": trained.loss,
        "memory": {name: value for name, value in peaks.items() if value is not None},
        "resources": usage.record(carbon_intensity),
    }


def _first_step(config: RunConfig, number: int, steps: int) -> int:
    """Return the optimizer step from which a round trains."""
    if config.method.rewind is Rewind.NONE:
        return steps * number
    return config.method.rewind_step if number else 0
