"""The environment record as a terminal table: what was found, then what is lacking and what that costs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Group


def environment_table(record: dict[str, Any]) -> Group:
    """For a rich console."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    environment = record["environment"]
    found = Table(title="Found", title_justify="left", title_style="bold", show_header=False)
    found.add_column()
    found.add_column(overflow="fold")
    for name, value in environment_rows(environment):
        found.add_row(name, value)
    if not record["lacks"]:
        return Group(found, Text("Nothing is lacking."))
    lacks = Table("lacking", "cost", "remedy", title="Lacking", title_justify="left", title_style="bold")
    for lack in record["lacks"]:
        lacks.add_row(lack["what"], lack["cost"], lack["remedy"])
    return Group(found, lacks)


def environment_rows(environment: dict[str, Any]) -> list[tuple[str, str]]:
    """Name and value, most telling first."""
    kernels = environment["kernels"]
    built = ", ".join(environment["instruction_sets"])
    memory = environment["memory_bytes"]
    limit = environment["onednn_max_isa"]
    onednn = environment["onednn"] or "missing"
    rows = [
        ("CPU", f"{environment['cpu']}, usable cores: {environment['cores']}"),
        ("memory", f"{memory / 2**30:.1f} GiB" if memory else "unknown"),
        ("instruction sets", " ".join(environment["isa_flags"]) or "unknown"),
        ("compiled kernels", f"{kernels} in use (runnable here: {built})" if kernels else "missing"),
        ("GPU", environment["gpu"] or "none"),
        ("BLAS of torch", environment["blas"]),
        ("oneDNN", f"{onednn}, capped at {limit}" if limit else onednn),
        ("threads", f"{environment['threads']} (load average {environment['load']})"),
        ("system", f"{environment['system']}, Python {environment['python']}"),
        (
            "sparsebert",
            environment["sparsebert"] + (f" ({environment['revision']})" if environment["revision"] else ""),
        ),
    ]
    rows += [(package, version or "missing") for package, version in environment["versions"].items()]
    return rows
