"""Options on what a command uses, and the line in which it says so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

if TYPE_CHECKING:
    from sparsebert.accounting.run_account import RunAccount

_OPTION = "--carbon-intensity"


@dataclass(frozen=True, kw_only=True)
class ResourceOptions:
    """How the records give the resources that a command uses."""

    panel: ClassVar = "Resources"

    carbon_intensity: Annotated[
        float | None,
        typer.Option(
            _OPTION,
            metavar="<g/kwh>",
            help="grams of CO2 per kWh of your electricity: records give the carbon of the energy that was "
            "measured; refused where none can be measured",
        ),
    ] = None

    def given(self) -> dict[str, object]:
        """Return the options and their values, None for those that the user omitted."""
        return {_OPTION: self.carbon_intensity}

    def account(self, *, gpu: bool = False) -> RunAccount:
        """Return the account of the command.

        Args:
            gpu: Whether the command computes on a GPU.

        Raises:
            ValueError: The intensity is negative or not finite, or no energy can be measured.
        """
        from sparsebert.accounting.run_account import RunAccount

        account = RunAccount(self.carbon_intensity, gpu)
        account.require_energy(_OPTION)
        return account
