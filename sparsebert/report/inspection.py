"""Where the weights of tickets stay: counts of one or more tickets, as records, tables, pictures and CSV."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sparsebert import results
from sparsebert.atomic import write_text
from sparsebert.results import Record
from sparsebert.tickets.ticket import Ticket, require_ticket

if TYPE_CHECKING:
    from sparsebert.report.picture import Picture
    from sparsebert.report.table import Table
    from sparsebert.report.ticket_labels import TicketLabel
    from sparsebert.tickets.kept_weights import KeptWeights
    from sparsebert.tickets.overlap import PackedMasks

# Functions import what they need: `sparsebert.inspect` is a public name, and `import sparsebert` stays quick.


@dataclass(frozen=True)
class Inspection:
    """The result of :func:`inspect`. A notebook shows its tables.

    Attributes:
        records: A record "inspect" for each ticket, "inspect_survivors" for each group of tickets that differ
            in the seed, and "inspect_overlap" where there are several tickets. ``benchmarks/README.md``
            describes their fields.
    """

    records: list[Record]

    @property
    def tables(self) -> list[Table]:
        """Densities by layer, matrix and head, survivors and overlaps."""
        from sparsebert.report.inspect_tables import inspect_tables

        return inspect_tables(self.records)

    @property
    def pictures(self) -> list[Picture]:
        """The same as pictures, and the masks themselves."""
        from sparsebert.report.inspect_plots import inspect_pictures

        return inspect_pictures(self.records)

    def save(self, folder: Path | str, show: Collection[str] | None = None) -> list[Path]:
        """Write pictures as SVG and PNG, and the figures behind them as CSV.

        Args:
            folder: A folder, which may exist.
            show: What to write, of "density", "heads", "survivors", "overlap" and "masks"; None for all.

        Returns:
            The files.

        Raises:
            ValueError: matplotlib is not installed.
            OSError: As :func:`sparsebert.atomic.replacing`.
        """
        from sparsebert.report.inspect_csv import csv_files
        from sparsebert.report.inspect_plots import inspect_pictures
        from sparsebert.report.inspect_tables import PARTS
        from sparsebert.report.page import save_pictures
        from sparsebert.report.plots import require_matplotlib

        require_matplotlib()
        parts = PARTS if show is None else show
        Path(folder).mkdir(parents=True, exist_ok=True)
        files = []
        for name, text in csv_files(self.records, parts).items():
            files.append(Path(folder) / name)
            write_text(files[-1], text)
        saved = save_pictures(inspect_pictures(self.records, parts), Path(folder))
        return files + [file for pair in saved.values() for file in pair]

    def _repr_html_(self) -> str:
        return "".join(table._repr_html_() for table in self.tables)


def inspect(
    tickets: Ticket | Iterable[Ticket] | Mapping[str, Ticket], *, heads: int | None = None
) -> Inspection:
    """Count where the weights of tickets stay, and compare the tickets.

    Args:
        tickets: One ticket, several, or several by name.
        heads: Attention heads of a layer; None for the number that each ticket records.

    Raises:
        ValueError: There is no ticket, they are of different models, or ``heads`` does not divide the rows of
            an attention matrix.
    """
    from sparsebert.report.ticket_labels import TicketLabel

    if isinstance(tickets, Ticket):
        tickets = [tickets]
    if not isinstance(tickets, Mapping):
        if isinstance(tickets, str) or not isinstance(tickets, Iterable):
            require_ticket(tickets)
        tickets = {f"ticket {number}": ticket for number, ticket in enumerate(tickets, 1)}
    for ticket in tickets.values():
        require_ticket(ticket)
    if not tickets:
        raise ValueError("no ticket to inspect: pass at least one")
    return inspect_labelled(
        ((TicketLabel.of(str(name), ticket), ticket) for name, ticket in tickets.items()), heads
    )


def inspect_labelled(
    tickets: Iterable[tuple[TicketLabel, Ticket]], heads: int | None = None, *, one_model: bool = True
) -> Inspection:
    """Do the work of :func:`inspect` with a ticket at a time in memory.

    Args:
        tickets: Label and ticket, which may be loaded one after another.
        heads: As of :func:`inspect`.
        one_model: Refuse tickets of different models; else compare those of each model.

    Raises:
        ValueError: As :func:`inspect`.
    """
    from sparsebert.tickets.kept_weights import KeptWeights
    from sparsebert.tickets.overlap import PackedMasks

    models: list[_Model] = []
    for label, ticket in tickets:
        masks = PackedMasks.of(ticket)
        model = _model_of(models, label, masks, one_model)
        model.masks[label.name] = masks
        model.labels.append(label)
        model.counts[label.name] = KeptWeights.of(ticket, heads)
        model.records.append(_ticket_record(label, ticket, model.counts[label.name]))
    return Inspection([record for model in models for record in model.all_records()])


@dataclass
class _Model:
    """The tickets of one model."""

    masks: dict[str, PackedMasks] = field(default_factory=dict)
    labels: list[TicketLabel] = field(default_factory=list)
    counts: dict[str, KeptWeights] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)

    def all_records(self) -> Iterator[Record]:
        """Yield the records of the tickets, then those that compare them."""
        from sparsebert.report.ticket_labels import seed_groups
        from sparsebert.tickets.overlap import overlap
        from sparsebert.tickets.survivors import Survivors

        yield from self.records
        if len(self.labels) < 2:
            return
        for group in seed_groups(self.labels) or [self.labels]:
            survivors = Survivors.of([self.counts[label.name] for label in group])
            if survivors is not None:
                named = {"names": [label.name for label in group], "group": _group_text(group)}
                yield results.stamp("inspect_survivors", named | survivors.record())
        common = overlap(self.masks)
        yield results.stamp(
            "inspect_overlap",
            {
                "tickets": [asdict(label) for label in self.labels],
                "matrices": common.matrices,
                "jaccard": common.jaccard.tolist(),
                "chance": common.chance.tolist(),
                "note": common.note,
            },
        )


def _group_text(labels: Sequence[TicketLabel]) -> str:
    groups = {label.without_seed for label in labels}
    return groups.pop() if len(groups) == 1 else "all tickets"


def _model_of(models: list[_Model], label: TicketLabel, masks: PackedMasks, one_model: bool) -> _Model:
    """Return the model with which a ticket can be compared, a new one if there is none."""
    from sparsebert.tickets.overlap import common_matrices

    for model in models:
        try:
            common_matrices(model.masks | {label.name: masks})
        except ValueError:
            if one_model:
                raise
        else:
            return model
    models.append(_Model())
    return models[-1]


def _ticket_record(label: TicketLabel, ticket: Ticket, counts: KeptWeights) -> Record:
    described = {
        "density": ticket.density,
        "model": (ticket.metadata.get("model") or {}).get("id"),
        "masks_sha256": ticket.digest,
        "removed": list(ticket.removed),
    }
    return results.stamp("inspect", {**asdict(label), **described, **counts.record()})
