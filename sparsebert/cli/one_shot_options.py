"""Groups of options of one-shot pruning: what calibrates it, and a speed in place of a sparsity."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from sparsebert.cli.shared_options import require_applicable, require_numbers

if TYPE_CHECKING:
    from sparsebert.workflows.speed_target import SpeedGoal


@dataclass(frozen=True, kw_only=True)
class CalibrationOptions:
    """What calibrates methods that prune by a matrix's inputs; without texts, a task does."""

    panel: ClassVar = "Calibration (wanda, sparsegpt and other one-shot methods)"

    texts: Annotated[
        Path | None,
        typer.Option(help="texts to calibrate on: .txt (one a line), .csv, .tsv, .jsonl, .json or .parquet"),
    ] = None
    texts_column: Annotated[
        str | None, typer.Option(help="column of --texts [default: text, sentence or content]")
    ] = None
    count: Annotated[
        int | None,
        typer.Option(help="number of texts, or examples of --task, to draw [default: 512, or all]"),
    ] = None
    reproduce: Annotated[
        str | None,
        typer.Option(
            help="outputs that each matrix is to reproduce: dense (the dense model's; default) or layer (its "
            "own on the pruned model's inputs, as published)"
        ),
    ] = None
    allocate: Annotated[
        str | None,
        typer.Option(
            help="spread of the sparsity over the matrices: error (by what it costs the last hidden states; "
            "default where it fits) or uniform (the same share in each, as published)"
        ),
    ] = None
    damping: Annotated[
        float | None,
        typer.Option(
            help="share of the Hessian's mean diagonal added to its diagonal [default: 0.01]; obert: number "
            "added to the diagonal of the Fisher matrix [default: 1e-7]"
        ),
    ] = None
    recomputations: Annotated[
        int | None,
        typer.Option(
            help="obert: number of times that the Fisher matrix is computed, while the sparsity grows in as "
            "many steps [default: 1]"
        ),
    ] = None
    magnitude_where_singular: Annotated[
        bool,
        typer.Option(
            "--magnitude-where-singular",
            help="prune a matrix by magnitude if its Hessian is singular, with a warning, instead of failing",
        ),
    ] = False

    def given(self) -> dict[str, object]:
        """Return the options by name, for :func:`require_applicable`."""
        return {
            "--texts": self.texts,
            "--texts-column": self.texts_column,
            "--count": self.count,
            "--reproduce": self.reproduce,
            "--allocate": self.allocate,
            "--damping": self.damping,
            "--recomputations": self.recomputations,
            "--magnitude-where-singular": self.magnitude_where_singular,
        }


@dataclass(frozen=True, kw_only=True)
class SpeedOptions:
    """A speed to reach, from which the sparsity follows."""

    panel: ClassVar = "Speed to reach, in place of --sparsity (one-shot methods)"

    speedup: Annotated[
        float | None,
        typer.Option(help="time of the fastest dense form / time of the pruned model, on this machine"),
    ] = None
    milliseconds: Annotated[float | None, typer.Option(help="time of a batch, on this machine")] = None
    tolerance: Annotated[
        str | None,
        typer.Option(metavar="<precision>", help="lowest precision to compute in: fp32, bf16 or int8"),
    ] = None
    batch: Annotated[int | None, typer.Option(help="texts per batch, of --texts [default: 8]")] = None
    threads: Annotated[int | None, typer.Option(help="CPU threads [default: 1]")] = None
    device: Annotated[
        str | None,
        typer.Option(
            help="a GPU to prune for in place of this machine: h200, h100 or a100; the times of its linear "
            "layers are modelled, not measured; in bf16 with --tolerance bf16"
        ),
    ] = None

    def __post_init__(self) -> None:
        """Raise ValueError for options without a speed, two speeds, and an unknown precision."""
        if self.speedup is not None and self.milliseconds is not None:
            raise ValueError("--speedup conflicts with --milliseconds: omit one")
        require_numbers({"--batch": self.batch, "--threads": self.threads})
        if not self.given:
            rest = {"--tolerance": self.tolerance, "--batch": self.batch, "--threads": self.threads}
            require_applicable(rest | {"--device": self.device}, "--speedup or --milliseconds")
        if self.device is not None:
            require_applicable({"--threads": self.threads}, "the CPU of this machine, without --device")
        if self.tolerance is not None:
            from sparsebert.cost.precision import require_tolerance

            require_tolerance(self.tolerance)

    @property
    def given(self) -> str | None:
        """The option that sets the speed, None without one."""
        if self.speedup is not None:
            return "--speedup"
        return None if self.milliseconds is None else "--milliseconds"

    def goal(self) -> SpeedGoal | None:
        """Return the speed to reach, None without one. Raises ValueError unless it is positive."""
        from sparsebert.workflows.speed_target import SpeedGoal

        if self.given is None:
            return None
        return SpeedGoal(
            self.speedup,
            self.milliseconds,
            self.tolerance or "fp32",
            self.batch or 8,
            self.threads or 1,
            self.device,
        )
