"""The options of `eval` about changed texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from sparsebert.cli.shared_options import comma_separated, require_applicable

if TYPE_CHECKING:
    from sparsebert.tasks import Examples, TaskData


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
        """The names of the changes, each once."""
        return list(dict.fromkeys(comma_separated("--perturb", self.perturb))) if self.perturb else []

    def severity_of(self, name: str) -> float | None:
        """Return the severity of a change, that of the user or its own; None if it has no degrees."""
        from sparsebert.tasks.perturbations import PERTURBATIONS

        usual = PERTURBATIONS[name].severity
        return usual if usual is None or self.severity is None else self.severity

    def variants(self, examples: TaskData) -> dict[str, dict[str, Examples]]:
        """Return the changed validation examples by split, by the name of the change.

        Raises:
            ValueError: As :func:`sparsebert.tasks.perturbations.perturbed`.
        """
        from sparsebert.tasks.perturbations import perturbed

        return {
            name: {
                split: perturbed(
                    rows, examples.task, name, severity=self.severity_of(name), seed=self.perturb_seed
                )
                for split, rows in examples.validation.items()
            }
            for name in self.names
        }

    def record(
        self, name: str, before: Mapping[str, Examples], after: Mapping[str, Examples]
    ) -> dict[str, Any]:
        """Return the fields of a record that describe a change: what it is, and the share that it reaches."""
        from sparsebert.tasks.perturbations import share_changed

        sizes = [(share_changed(rows, after[split]), len(rows)) for split, rows in before.items()]
        changed = sum(share * size for share, size in sizes) / sum(size for _, size in sizes)
        described = {"perturbation": name, "severity": self.severity_of(name)}
        return {**described, "perturb_seed": self.perturb_seed, "changed": changed}
