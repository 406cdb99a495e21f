"""The label of a ticket among others: method, granularity, task, seed and sparsity, and groups by them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sparsebert.report.format import granularity_text
from sparsebert.tickets.ticket import SAME_SPARSITY, Ticket

# In the order in which a table names them.
FIELDS = ("method", "granularity", "task", "seed", "sparsity")


@dataclass(frozen=True)
class TicketLabel:
    """What tells a ticket from others of the same model.

    Attributes:
        name: Unique name.
        method: The method that found it; "unknown method" without metadata.
        granularity: "element", "4x1", ...
        task: The task of its run; None if unknown.
        seed: None if unknown.
        sparsity: Share of pruned weights.
        requested: The sparsity asked for, as JSON; "null" for a method that decides the sparsity itself.
    """

    name: str
    method: str
    granularity: str
    task: str | None
    seed: int | None
    sparsity: float
    requested: str

    @classmethod
    def of(cls, name: str, ticket: Ticket, run: Mapping[str, Any] | None = None) -> TicketLabel:
        """Return the label of a ticket.

        Args:
            name: Name of the ticket.
            ticket: The ticket.
            run: ``method``, ``task`` and ``seed`` of the run that found the ticket, which replace those in
                its metadata.
        """
        of_run = {field: value for field, value in (run or {}).items() if value is not None}
        metadata = ticket.metadata | of_run
        return cls(
            name=name,
            method=metadata.get("method") or "unknown method",
            granularity=granularity_text(ticket.metadata),
            task=task if isinstance(task := metadata.get("task"), str) else None,
            seed=metadata.get("seed"),
            sparsity=ticket.sparsity,
            requested=json.dumps(ticket.metadata.get("sparsity")),
        )

    @property
    def without_seed(self) -> str:
        """Method, granularity, task and requested sparsity as text."""
        share = f"{self.sparsity:.0%} sparse" if self.requested == "null" else _percent(self.requested)
        return ", ".join(filter(None, (self.method, self.granularity, self.task, share)))


def differences(one: TicketLabel, other: TicketLabel) -> tuple[str, ...]:
    """Return the fields in which two labels differ.

    Sparsity is one of them where another one was asked for, or nothing else differs: methods that decide the
    sparsity themselves reach another one with every seed.
    """
    apart = [name for name in FIELDS[:-1] if getattr(one, name) != getattr(other, name)]
    same = abs(one.sparsity - other.sparsity) <= SAME_SPARSITY
    if not same and (one.requested != other.requested or not apart):
        apart.append("sparsity")
    return tuple(apart)


def seed_groups(labels: Iterable[TicketLabel]) -> list[list[TicketLabel]]:
    """Return the groups of at least two labels that differ in the seed alone, in the order of the labels.

    Labels that repeat a seed, such as rounds of a method that decides the sparsity itself, are told apart by
    their sparsity in percent.
    """
    groups: dict[tuple[Any, ...], list[TicketLabel]] = {}
    for label in labels:
        key = label.method, label.granularity, label.task, label.requested
        groups.setdefault(key, []).append(label)
    result = []
    for group in groups.values():
        parts = [group] if _distinct(group) else _by_percent(group)
        result += [part for part in parts if len(part) > 1 and _distinct(part)]
    return result


def _distinct(labels: Sequence[TicketLabel]) -> bool:
    return len({label.seed for label in labels}) == len(labels)


def _by_percent(labels: Iterable[TicketLabel]) -> list[list[TicketLabel]]:
    parts: dict[str, list[TicketLabel]] = {}
    for label in labels:
        parts.setdefault(f"{label.sparsity:.0%}", []).append(label)
    return list(parts.values())


def _percent(requested: str) -> str:
    value = json.loads(requested)
    return f"{value:.0%} sparse" if isinstance(value, int | float) else requested
