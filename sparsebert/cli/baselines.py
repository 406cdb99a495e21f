"""The values of --vs: names of dense baselines, those that work here, and their list."""

from __future__ import annotations

import typer

from sparsebert.cli.help_format import definitions
from sparsebert_kernels.errors import unknown

ALL = "all"


def list_baselines() -> None:
    """Print every baseline with its description, and why it cannot run here if it cannot."""
    from sparsebert.bench.providers import BACKENDS, BASELINES

    entries = []
    for name in BASELINES:
        backend = BACKENDS[name]()
        lack = backend.available()
        entries.append((name, backend.summary + (f" (unavailable here: {lack})" if lack else "")))
    typer.echo(definitions(entries))


def usable_baselines(names: str, *, required: bool) -> tuple[list[str], dict[str, str]]:
    """Return the baselines to run, and the reasons of those that cannot run here.

    Args:
        names: Value of --vs: names separated by commas, or ``ALL``.
        required: Whether a baseline that cannot run here raises; otherwise a line on stderr names it.

    Raises:
        ValueError: A name is unknown, or a required baseline cannot run here.
    """
    from sparsebert.bench.providers import BACKENDS, BASELINES

    requested = [name.strip() for name in names.split(",") if name.strip()]
    if not requested:
        raise ValueError(
            f"--vs must name a baseline or {ALL}, got {names!r}; known: {', '.join((*BASELINES, ALL))}"
        )
    if requested == [ALL]:
        requested = list(BASELINES)
    available, missing = [], {}
    for name in dict.fromkeys(requested):
        if name not in BASELINES:
            raise unknown("baseline in --vs", name, (*BASELINES, ALL))
        lack = BACKENDS[name]().available()
        if lack is None:
            available.append(name)
        elif required:
            raise ValueError(f"--vs: {name} cannot run here: {lack}")
        else:
            missing[name] = lack
            typer.echo(f"without {name}: {lack}", err=True)
    return available, missing
