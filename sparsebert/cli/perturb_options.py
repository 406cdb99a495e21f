"""The options of `eval` about changed texts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from sparsebert.cli.shared_options import comma_separated, require_applicable

if TYPE_CHECKING:
    from sparsebert.workflows.evaluation_records import TextChange


@dataclass(frozen=True, kw_only=True)
class PerturbOptions:
    """Changes of the texts that are evaluated."""

    panel: ClassVar = "Robustness"

    perturb: Annotated[
        str | None,
        typer.Option(
            metavar="<names>",
            help="also evaluate on changed texts, each change by itself: typos,casing,negation,shuffle",
        ),
    ] = None
    severity: Annotated[
        float | None,
        typer.Option(
            help="with --perturb typos, casing or shuffle: share of the words (casing: letters) that change, "
            "above 0, at most 1 [default: 0.1, shuffle 1]"
        ),
    ] = None
    perturb_seed: Annotated[int, typer.Option(help="with --perturb: seed of the changes")] = 0

    def __post_init__(self) -> None:
        """Raise ValueError for options without --perturb, unknown names and bad severities."""
        if self.perturb is None:
            given = {"--severity": self.severity, "--perturb-seed": self.perturb_seed or None}
            require_applicable(given, "--perturb")
            return
        from sparsebert.tasks.perturbations import PERTURBATIONS, require_perturbation

        for name in self.names:
            # Of several names, those without degrees leave the severity to the others.
            has_degrees = name not in PERTURBATIONS or PERTURBATIONS[name].severity is not None
            require_perturbation(name, self.severity if has_degrees or len(self.names) == 1 else None)

    @property
    def names(self) -> list[str]:
        """The names of the changes."""
        return [] if self.perturb is None else comma_separated("--perturb", self.perturb)

    def changes(self) -> list[TextChange]:
        """Return the changes, those with degrees in the user's severity or else in their own."""
        from sparsebert.tasks.perturbations import PERTURBATIONS
        from sparsebert.workflows.evaluation_records import TextChange

        def severity(usual: float | None) -> float | None:
            return usual if usual is None or self.severity is None else self.severity

        return [
            TextChange(name, severity(PERTURBATIONS[name].severity), self.perturb_seed) for name in self.names
        ]
