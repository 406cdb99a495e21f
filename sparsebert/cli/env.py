"""The command `env`."""

from __future__ import annotations

from sparsebert.cli.console import print_tables
from sparsebert.cli.path_checks import require_records
from sparsebert.cli.shared_options import JsonFile


def env(json: JsonFile = None) -> None:
    """Show this machine's hardware, libraries and kernels, and the cost of missing parts."""
    require_records("--json", json)
    from sparsebert import results
    from sparsebert.bench import environment
    from sparsebert.report.environment import environment_tables

    machine = environment.detect()
    lacks = [vars(lack) for lack in environment.lacks(machine)]
    row = results.stamp("environment", {"environment": machine.record(), "lacks": lacks})
    if json is not None:
        results.append(json, [row])
    print_tables(environment_tables([row]))
