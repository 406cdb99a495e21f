"""The summary of a run, for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tests.mutants.mutant import Mutant
from tests.mutants.runner import Result, Verdict


def print_list(console: Console, mutants: Sequence[Mutant], equivalent: Mapping[str, str]) -> None:
    for mutant in mutants:
        line = f":{mutant.line}" if mutant.line else ""
        note = " (equivalent)" if mutant.id in equivalent else ""
        text = f"[bold]{escape(mutant.id)}[/]{note}  {mutant.path}{line}: {escape(mutant.fault)}"
        console.print(text, soft_wrap=True)
        _print_change(console, mutant)


def print_result(console: Console, result: Result) -> None:
    colour = {Verdict.SURVIVED: "red", Verdict.STALE: "yellow", Verdict.TIMEOUT: "cyan"}.get(
        result.verdict, "green"
    )
    by = f" by {result.by}" if result.by else ""
    console.print(
        f"[{colour}]{result.verdict:8}[/] {result.seconds:6.1f} s  {escape(result.id)}  "
        f"{result.location}{escape(by)}",
        soft_wrap=True,
    )


def print_summary(
    console: Console,
    mutants: Sequence[Mutant],
    results: Sequence[Result],
    unproven: Sequence[Result],
    equivalent: Mapping[str, str],
) -> None:
    """Print counts by package, then everything that needs a decision."""
    by_id = {mutant.id: mutant for mutant in mutants}
    _print_counts(console, by_id, results)
    for verdict, title in (
        (Verdict.TIMEOUT, "Killed by a timeout"),
        (Verdict.STALE, "Stale: the source has changed, anchor them anew"),
    ):
        listed = [result for result in results if result.verdict is verdict]
        lines = [f"{each.id} {each.location}: {each.by} {each.reason}" for each in listed]
        _print_section(console, title, lines)
    failing = [f"{each.id}: {each.by}" for each in unproven]
    _print_section(console, "Unproven: the killing test fails without the mutant too", failing)
    present = [f"{id}: {reason}" for id, reason in equivalent.items() if id in by_id]
    _print_section(console, "Equivalent", present)
    survivors = [result for result in results if result.verdict is Verdict.SURVIVED]
    _print_section(console, "Survivors: add a test, or show that they are equivalent", [])
    for result in survivors:
        console.print(
            f"[red]{escape(result.id)}[/] {result.location}: {escape(result.fault)}", soft_wrap=True
        )
        _print_change(console, by_id[result.id])
    if not survivors:
        console.print("none")


def _print_counts(console: Console, by_id: Mapping[str, Mutant], results: Sequence[Result]) -> None:
    counts: dict[str, Counter[Verdict]] = {}
    for result in results:
        counts.setdefault(by_id[result.id].package, Counter())[result.verdict] += 1
    table = Table("package", *Verdict, title="Mutants")
    for package, count in sorted(counts.items()):
        table.add_row(package, *(str(count[verdict] or "") for verdict in Verdict))
    total = sum(counts.values(), Counter[Verdict]())
    table.add_row("all", *(str(total[verdict]) for verdict in Verdict), style="bold")
    console.print(table)


def _print_section(console: Console, title: str, lines: Sequence[str]) -> None:
    if lines or title.startswith("Survivors"):
        console.print(f"\n[bold]{title}[/]")
    for line in lines:
        console.print(escape(line), soft_wrap=True)


def _print_change(console: Console, mutant: Mutant) -> None:
    for sign, text in (("-", mutant.old), ("+", mutant.new)):
        for line in text.strip("\n").splitlines():
            console.print(f"    {sign} {escape(line.strip())}", soft_wrap=True)
