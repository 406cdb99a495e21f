"""The class of the commands: checks of values that hold for all options and arguments."""

from __future__ import annotations

import re
from typing import Any

import typer

from sparsebert.cli.help_format import CommandHelp

# Some versions of typer depend on click, others include a copy of it: this finds the class in both.
USAGE_ERROR: type[Exception] = typer.BadParameter.__bases__[0]

# Types in the messages of typer and click, and as messages of this package name them.
_TYPE = re.compile(r"valid (integer|number|float)")
_KINDS = {"integer": "a whole number", "number": "a number", "float": "a number"}


class Command(CommandHelp):
    """A command that refuses empty values, and names a value of the wrong type."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the command line.

        Raises:
            ValueError: A value is empty, or is not the number that the option takes.
            UsageError: As the base class, for unknown and missing options.
        """
        if ctx.resilient_parsing:  # the shell completes an unfinished command line
            return super().parse_args(ctx, args)
        values, _, _ = self.make_parser(ctx).parse_args(list(args))
        parameters = {each.name: each for each in self.get_params(ctx)}
        for name, value in values.items():
            if "" in (value if isinstance(value, list | tuple) else [value]):
                raise ValueError(f"{_shown(parameters[name])} is empty; pass a value or omit it")
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as error:
            kind = _TYPE.search(error.message)
            if kind is None or error.param is None:
                raise
            value = values[error.param.name]
            raise ValueError(f"{_shown(error.param)} must be {_KINDS[kind[1]]}, got {value!r}") from None


def _shown(parameter: Any) -> str:
    """Return the name of an option or argument as the help shows it."""
    if parameter.param_type_name == "argument":
        return str(parameter.metavar or parameter.name).upper()
    return str(parameter.opts[0])
