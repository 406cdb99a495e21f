"""Tables of machines, from "environment" records: components, and missing ones with their cost."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sparsebert.report.format import Record
from sparsebert.report.table import Table


def environment_tables(records: Iterable[Record]) -> list[Table]:
    """Return the tables of the latest record of each machine."""
    latest = {
        (row["environment"]["cpu"], row["environment"]["cores"], row["environment"]["gpu"]): row
        for row in records
    }
    tables = []
    for row in latest.values():
        components = list(environment_rows(row["environment"]))
        if built := row.get("built"):
            place = next(i for i, (name, _) in enumerate(components) if name == "compiled kernels")
            components.insert(place + 1, ("kernels built for", " ".join(built)))
        lacks = tuple((lack["what"], lack["cost"], lack["remedy"]) for lack in row["lacks"])
        notes = () if lacks else ("Nothing is missing.",)
        tables.append(
            Table("Machine: components", ("component", "found"), tuple(components), notes, prose=True)
        )
        if extensions := row.get("extensions"):
            tables.append(
                Table(
                    "Machine: CPU extensions",
                    ("extension", "state", "kernels", "used for"),
                    tuple(_extension_row(extension) for extension in extensions),
                    prose=True,
                )
            )
        if lacks:
            tables.append(
                Table("Machine: missing components", ("missing", "cost", "remedy"), lacks, prose=True)
            )
    return tables


def _extension_row(extension: Record) -> tuple[str, str, str, str]:
    kernels = "built in" if extension["built"] else "not in this build"
    return extension["name"], extension["missing"] or "usable", kernels, extension["brings"]


def environment_rows(environment: dict[str, Any]) -> list[tuple[str, str]]:
    """Return name and value of each component, most important first."""
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
