"""The `sparsebert` command: assembles its commands, prints errors on one line, and sets the exit code.

Exit codes: 0 success, 1 wrong outputs in a benchmark or missing runs of a sweep, 2 bad input (one line on
stderr says what to do), 130 interrupted. The commands import heavy modules only when they run, so that
``--help`` is fast.
"""

from __future__ import annotations

import functools
import os
import re
import sys
import warnings
from collections.abc import Callable
from typing import Annotated, Any

import typer

import sparsebert
from sparsebert.atomic import DiskFullError
from sparsebert.cli.arena import arena
from sparsebert.cli.bench import bench
from sparsebert.cli.command import USAGE_ERROR, Command
from sparsebert.cli.convert import convert
from sparsebert.cli.env import env
from sparsebert.cli.evaluate import evaluate
from sparsebert.cli.exit_codes import BAD_INPUT, BROKEN_PIPE, STOPPED, CommandFailed
from sparsebert.cli.heal import heal
from sparsebert.cli.help_format import GroupHelp
from sparsebert.cli.inspect import inspect
from sparsebert.cli.optimize import optimize
from sparsebert.cli.option_groups import require_one_length
from sparsebert.cli.prune import prune
from sparsebert.cli.renamed_options import with_current_names
from sparsebert.cli.report import report
from sparsebert.cli.start_page import TAGLINE, start_page
from sparsebert.cli.sweep import sweep
from sparsebert.cli.train import train
from sparsebert.cli.transfer import transfer
from sparsebert_kernels.errors import first_line

COMMANDS: dict[str, Callable[..., None]] = {
    "bench": bench,
    "arena": arena,
    "env": env,
    "optimize": optimize,
    "prune": prune,
    "heal": heal,
    "train": train,
    "eval": evaluate,
    "transfer": transfer,
    "sweep": sweep,
    "convert": convert,
    "inspect": inspect,
    "report": report,
}
# Set by the shell while it completes a command line; typer derives this name from the name of the command.
COMPLETION_VARIABLE = "_SPARSEBERT_COMPLETE"

# Options for running a model, and commands that find tickets and write dense weights.
EXECUTION_OPTIONS = ("--tolerance", "--fuse", "--no-fuse")
TICKET_COMMANDS = ("prune", "train", "transfer")

_MAX_MESSAGE = 1000
# Errors of Python, numpy and torch about sizes that cannot be allocated.
_TOO_LARGE = re.compile(r"MemoryError|[Oo]verflow|can't allocate memory|out of memory")

app = typer.Typer(name="sparsebert", cls=GroupHelp, rich_markup_mode=None, pretty_exceptions_enable=False)
for _name, _command in COMMANDS.items():
    app.command(_name, cls=Command)(_command)


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
    try:
        code = _run(arguments)
        sys.stdout.flush()
    except CommandFailed as failure:
        return _print_error(str(failure), failure.code)
    except USAGE_ERROR as error:
        return _print_error(" ".join(error.format_message().split()), BAD_INPUT)  # type: ignore[attr-defined]
    except (typer.Abort, KeyboardInterrupt):
        return _print_error("stopped", STOPPED)
    except BrokenPipeError:
        return _close_stdout()
    except OSError as error:
        return _print_error(_text_of(error), BAD_INPUT)
    except ValueError as error:
        return _print_error(first_line(error), BAD_INPUT)
    except (MemoryError, OverflowError, RuntimeError) as error:
        if not _TOO_LARGE.search(f"{type(error).__name__} {error}"):
            raise
        return _print_error(f"sizes beyond the memory of this machine: {first_line(error)}", BAD_INPUT)
    return code if isinstance(code, int) else 0


def _run(arguments: list[str]) -> Any:
    if not arguments and COMPLETION_VARIABLE not in os.environ:
        return typer.echo(start_page(COMMANDS))
    require_one_length(arguments)
    _require_a_running_model(arguments)
    with warnings.catch_warnings():
        warnings.showwarning = _print_warning
        return command_line()(with_current_names(arguments), prog_name="sparsebert", standalone_mode=False)


@functools.cache
def command_line() -> Any:
    """Return the commands with their options. To build them takes longer than most of what is refused."""
    return typer.main.get_command(app)


def _require_a_running_model(arguments: list[str]) -> None:
    """Raise ValueError for options of execution in a command that only finds tickets."""
    command, *rest = arguments or [""]
    given = [name for argument in rest if (name := argument.partition("=")[0]) in EXECUTION_OPTIONS]
    # There is a precision of the speed that `prune` is to reach.
    if command == "prune":
        given = [name for name in given if name != "--tolerance"]
    if given and command in TICKET_COMMANDS:
        raise ValueError(
            f"{given[0]} does not apply to {command}: a ticket has no precision; choose it where the model "
            "runs, in bench, eval or convert --to sparse"
        )


def _text_of(error: OSError) -> str:
    """Return one line about an error of the system. Files of this package have names: else it is stdout."""
    if isinstance(error, DiskFullError) or error.strerror is None:
        return first_line(error)
    return f"{'cannot write to stdout' if error.filename is None else error.filename}: {error.strerror}"


def _close_stdout() -> int:
    """Keep the interpreter from another write into the closed pipe; return the exit code of the signal."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return BROKEN_PIPE


def _print_warning(message: Warning | str, *where: Any, **details: Any) -> None:
    """Print a warning without the source line that Python adds."""
    print(f"sparsebert: warning: {str(message).strip()}", file=sys.stderr)


def _print_error(message: str, code: int) -> int:
    # An absurd value, such as a name of many pages, is part of the message.
    shown = message if len(message) <= _MAX_MESSAGE else f"{message[:_MAX_MESSAGE]}..."
    print(f"sparsebert: {shown}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
