"""The `sparsebert` command: assembles its commands, prints errors on one line, and sets the exit code.

Exit codes: 0 success, 1 wrong outputs in a benchmark, 2 bad input (one line on stderr says what to do), 130
interrupted. The commands import heavy modules only when they run, so that ``--help`` is fast.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from typing import Annotated, Any

import typer

import sparsebert
from sparsebert.cli.bench import bench
from sparsebert.cli.convert import convert
from sparsebert.cli.env import env
from sparsebert.cli.evaluate import evaluate
from sparsebert.cli.exit_codes import BAD_INPUT, STOPPED, CommandFailed
from sparsebert.cli.help_format import CommandHelp, GroupHelp
from sparsebert.cli.prune import prune
from sparsebert.cli.renamed_options import with_current_names
from sparsebert.cli.report import report
from sparsebert.cli.start_page import TAGLINE, start_page
from sparsebert.cli.train import train
from sparsebert.cli.transfer import transfer
from sparsebert_kernels.errors import first_line

COMMANDS: dict[str, Callable[..., None]] = {
    "bench": bench,
    "env": env,
    "prune": prune,
    "train": train,
    "eval": evaluate,
    "transfer": transfer,
    "convert": convert,
    "report": report,
}
# Set by the shell while it completes a command line; typer derives this name from the name of the command.
COMPLETION_VARIABLE = "_SPARSEBERT_COMPLETE"

app = typer.Typer(name="sparsebert", cls=GroupHelp, rich_markup_mode=None, pretty_exceptions_enable=False)
for _name, _command in COMMANDS.items():
    app.command(_name, cls=CommandHelp)(_command)

# Some versions of typer depend on click, others include a copy of it: this finds the class in both.
UsageError: type[Exception] = typer.BadParameter.__bases__[0]


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(f"sparsebert {sparsebert.__version__}")
        raise typer.Exit


@app.callback(help=TAGLINE)
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    """Declare the options of the command itself."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code. Bad input prints one line on stderr, not a traceback."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments and COMPLETION_VARIABLE not in os.environ:
        typer.echo(start_page(COMMANDS))
        return 0
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _print_warning
            code = app(with_current_names(arguments), prog_name="sparsebert", standalone_mode=False)
    except CommandFailed as failure:
        return _print_error(str(failure), failure.code)
    except UsageError as error:
        return _print_error(" ".join(error.format_message().split()), BAD_INPUT)  # type: ignore[attr-defined]
    except (typer.Abort, KeyboardInterrupt):
        return _print_error("stopped", STOPPED)
    except OSError as error:
        named = error.filename is not None and error.strerror
        return _print_error(f"{error.filename}: {error.strerror}" if named else first_line(error), BAD_INPUT)
    except ValueError as error:
        return _print_error(first_line(error), BAD_INPUT)
    return code if isinstance(code, int) else 0


def _print_warning(message: Warning | str, *where: Any, **details: Any) -> None:
    """Print a warning without the source line that Python adds."""
    print(f"sparsebert: warning: {str(message).strip()}", file=sys.stderr)


def _print_error(message: str, code: int) -> int:
    print(f"sparsebert: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
