"""The start page, which `sparsebert` without arguments prints: three commands to try, then all commands."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import sparsebert
from sparsebert.cli.help_format import definitions, summary

TAGLINE = "Find a lottery ticket in a BERT, and run it for real."
FIRST_COMMANDS = {
    "sparsebert env": "Show what this machine offers, and what it lacks.",
    "sparsebert bench --model bert-base --sparsity 0.9": "Time a sparse BERT against dense ones.",
    "sparsebert train --task sst2 --model bert-base-uncased --sparsity 0.7": "Find a ticket.",
}


def start_page(commands: Mapping[str, Callable[..., object]]) -> str:
    """Return the page; ``commands`` are the functions behind the commands, by name."""
    first = "\n".join(f"  {command}\n      {purpose}" for command, purpose in FIRST_COMMANDS.items())
    summaries = definitions((name, summary(function.__doc__)) for name, function in commands.items())
    return "\n\n".join(
        (
            f"sparsebert {sparsebert.__version__}: {TAGLINE}",
            f"Start with:\n{first}",
            f"Commands:\n{summaries}",
            "`sparsebert COMMAND --help` lists the options of a command.",
        )
    )
