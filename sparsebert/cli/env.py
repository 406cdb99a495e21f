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
    from sparsebert.bench.cpu_extensions import detect_extensions
    from sparsebert.report.environment import environment_tables
    from sparsebert_kernels.cpu import native

    machine = environment.detect()
    extensions = detect_extensions()
    row = results.stamp(
        "environment",
        {
            "environment": machine.record(),
            "lacks": [vars(lack) for lack in environment.lacks(machine, extensions)],
            "extensions": [extension.record() for extension in extensions],
            "built": list(native.built_objects()),
        },
    )
    if json is not None:
        results.append(json, [row])
    print_tables(environment_tables([row]))
