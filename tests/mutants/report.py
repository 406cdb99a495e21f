"""The section of a Markdown document with the results of a run, between two markers."""

from __future__ import annotations

import datetime
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from sparsebert.atomic import write_text
from sparsebert.bench.environment import revision
from sparsebert.report.table import Table
from tests.mutants.mutant import Mutant
from tests.mutants.runner import Result, Verdict

SECTION = re.compile(r"(<!-- mutants -->\n).*?(<!-- /mutants -->)", re.DOTALL)


def update_report(
    document: Path,
    groups: Mapping[str, Sequence[Mutant]],
    results: Sequence[Result],
    unproven: Sequence[Result],
    equivalent: Mapping[str, str],
    survivors: Mapping[str, str],
) -> None:
    """Write the results into a document.

    Args:
        document: The document, with the two markers.
        groups: The mutants, by the name of their row.
        results: Results of the mutants; those without one count as not run.
        unproven: Kills by tests that fail without the mutant too.
        equivalent: Reasons of equivalent mutants, by id.
        survivors: Reasons of mutants that no test here can find, by id.

    Raises:
        ValueError: The document lacks the markers.
    """
    text = document.read_text(encoding="utf-8")
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    heading = f"On {today}, at commit {revision() or 'unknown'}:"
    tables = (
        _counts(groups, results, unproven, equivalent),
        *_reasons(groups, results, equivalent, survivors),
    )
    body = "\n\n".join([heading, *(table.markdown() for table in tables)])
    filled, count = SECTION.subn(lambda match: f"{match[1]}{body}\n{match[2]}", text)
    if count != 1:
        raise ValueError(f"{document} must have one section between the markers of mutants, has {count}")
    write_text(document, filled)


def _counts(
    groups: Mapping[str, Sequence[Mutant]],
    results: Sequence[Result],
    unproven: Sequence[Result],
    equivalent: Mapping[str, str],
) -> Table:
    states: dict[str, str] = {result.id: result.verdict for result in results}
    states |= {result.id: "unproven" for result in unproven} | dict.fromkeys(equivalent, "equivalent")
    names = (*Verdict, "unproven", "equivalent", "not run")
    rows = []
    for group, mutants in {**groups, "all": [mutant for each in groups.values() for mutant in each]}.items():
        counts = Counter(states.get(mutant.id, "not run") for mutant in mutants)
        planted = len(mutants) - counts["equivalent"] - counts["not run"]
        rows.append((group, str(planted), *(str(counts[name]) for name in names)))
    return Table("", ("mutants", "planted", *names), tuple(rows))


def _reasons(
    groups: Mapping[str, Sequence[Mutant]],
    results: Sequence[Result],
    equivalent: Mapping[str, str],
    survivors: Mapping[str, str],
) -> list[Table]:
    ids = {mutant.id for mutants in groups.values() for mutant in mutants}
    surviving = tuple(
        (
            result.id,
            result.location,
            result.fault,
            survivors.get(result.id, "a test is missing"),
        )
        for result in results
        if result.verdict is Verdict.SURVIVED
    )
    same = tuple((id, reason) for id, reason in equivalent.items() if id in ids)
    tables = (
        Table("Survivors", ("mutant", "place", "fault", "why no test finds it"), surviving, prose=True),
        Table("Equivalent", ("mutant", "why nobody can observe it"), same, prose=True),
    )
    return [table for table in tables if table.rows]
