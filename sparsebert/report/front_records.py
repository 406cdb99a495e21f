"""The forms of a model that were judged and timed, joined from records of several kinds."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from sparsebert.report.arena_tables import comparisons, quality_name
from sparsebert.report.format import (
    Record,
    baseline_name,
    machine_key,
    machine_text,
    span_text,
    tolerance_text,
    versions_text,
    workload_title,
)
from sparsebert.report.fronts import DENSE, Form, Front
from sparsebert.report.lottery_tables import NAMES as METHODS
from sparsebert.report.lottery_tables import points
from sparsebert.report.run_series import dense_rounds, metric_of, series
from sparsebert.tasks import metrics
from sparsebert.tasks.verdict import Summary, chance_of, summary

# The references of speed, best first: the dense model in the fastest library that every comparison times.
REFERENCES = ("onednn", "eager")
# Series, name, metric over seeds, and the "bench" record if there is one.
_Judged = tuple[str, str, Summary, Record | None]
# Names of forms without a figure that a caption lists; the rest are counted.
_MOST_NAMED = 6


def fronts(records: Iterable[Record]) -> list[Front]:
    """Return a front for each model, quality, workload and machine that has forms with quality and speed.

    They are the tickets of ``benchmarks.lottery``; the tickets of runs and of ``sparsebert eval`` that
    "bench" records have timed, which the digest of their masks tells; and the forms of ``sparsebert arena``.
    """
    records = list(records)
    found = (_of_benchmark, _of_runs, _of_evaluations, _of_arena)
    return [front for each in found for front in each(records)]


def _of_benchmark(records: Sequence[Record]) -> Iterator[Front]:
    tickets = points(records, "curve", "learned")
    dense = next((point for point in tickets if point.label == "dense"), None)
    others = [point for point in tickets if point is not dense]
    judged = [
        (METHODS[point.label], f"{METHODS[point.label]} {point.sparsity:.0%}", point.summary, point.speed)
        for point in others
    ]
    if not judged:
        return
    rounds = [row for row in records if row["kind"] == "round" and row.get("part") in ("curve", "learned")]
    metric = metrics.primary(others[0].task)
    title = f"Tickets of {rounds[0]['model']} on {others[0].task}"
    trained = _trained(rounds)
    dense_summary = None if dense is None else dense.summary
    benches = [row for row in records if row["kind"] == "bench" and "part" in row]
    yield from _joined(title, metric, judged, dense_summary, benches, trained, others[0].chance)


def _of_runs(records: Sequence[Record]) -> Iterator[Front]:
    """Yield the fronts of runs, whose tickets "bench" records have timed."""
    rounds = [row for row in records if row["kind"] == "round" and "part" not in row]
    if not rounds or not (benches := _identified(records)):
        return
    for (task, model), rows in _by_model(rounds).items():
        metric = metric_of(rows[0])
        judged = [
            each
            for name, by_round in series(rows).items()
            for seeds in by_round.values()
            if seeds[0]["sparsity"]
            for each in _judged(name, metric, seeds, benches)
        ]
        dense = [row["metrics"][metric] for row in dense_rounds(rows)]
        title, chance = f"Tickets of {model} on {task}", chance_of(rows[0], metric)
        yield from _joined(title, metric, judged, _summary(dense), benches, _trained(rows), chance)


def _of_evaluations(records: Sequence[Record]) -> Iterator[Front]:
    """Yield the fronts of models that ``sparsebert eval`` judged with tickets that were timed."""
    evaluations = [row for row in records if row["kind"] == "eval"]
    if not evaluations or not (benches := _identified(records)):
        return
    methods = {row["ticket"]["masks_sha256"]: row["ticket"].get("method") for row in benches}
    for (task, model), rows in _by_model(evaluations).items():
        metric = metric_of(rows[0])
        tickets: dict[str, list[Record]] = {}
        for row in rows:
            if digest := row.get("masks_sha256"):
                tickets.setdefault(digest, []).append(row)
        judged = [
            each
            for digest, seeds in tickets.items()
            for each in _judged(methods.get(digest) or "ticket", metric, seeds, benches)
        ]
        dense = [row["metrics"][metric] for row in rows if row["sparsity"] is None]
        title, chance = f"Evaluations of {model} on {task}", chance_of(rows[0], metric)
        yield from _joined(title, metric, judged, _summary(dense), benches, "", chance)


def _by_model(rows: Sequence[Record]) -> dict[tuple[str, str], list[Record]]:
    groups: dict[tuple[str, str], list[Record]] = {}
    for row in rows:
        groups.setdefault((row["task"], row["model"]), []).append(row)
    return groups


def _identified(records: Sequence[Record]) -> list[Record]:
    """Return the "bench" records that say which ticket they timed; those of older versions do not."""
    return [row for row in records if row["kind"] == "bench" and row["ticket"].get("masks_sha256")]


def _judged(name: str, metric: str, seeds: Sequence[Record], benches: Sequence[Record]) -> list[_Judged]:
    """Return a form for each workload, machine and tolerance with which a seed's ticket was timed."""
    share = f"{name} {statistics.fmean(row['sparsity'] for row in seeds):.0%}"
    values = summary([row["metrics"][metric] for row in seeds])
    digests = {row.get("masks_sha256") for row in seeds}
    # The latest of repeated measurements counts.
    latest = {
        (_place(row), tolerance_text(row)): row
        for row in benches
        if row["provider"] == "sparse" and row["ticket"]["masks_sha256"] in digests
    }
    timed: list[_Judged] = [(name, share + tolerance_text(row), values, row) for row in latest.values()]
    return timed or [(name, share, values, None)]


def _summary(values: Sequence[float]) -> Summary | None:
    return summary(values) if values else None


def _joined(
    title: str,
    metric: str,
    judged: Sequence[_Judged],
    dense: Summary | None,
    benches: Sequence[Record],
    trained: str,
    chance: float | None,
) -> Iterator[Front]:
    """Yield a front for each machine and workload of the speeds.

    Args:
        title: Title.
        metric: Name of the metric.
        judged: The forms.
        dense: The metric of the dense model.
        benches: The "bench" records of all sides.
        trained: How the forms were trained.
        chance: Metric of guessing.
    """
    scale = 100 if all(0 <= values.mean <= 1 for _, _, values, _ in judged) else 1
    untimed = [name for _, name, _, row in judged if row is None]
    places: dict[tuple[str, ...], list[tuple[str, str, Summary, Record]]] = {}
    for series_name, name, values, row in judged:
        if row is not None:
            places.setdefault(_place(row), []).append((series_name, name, values, row))
    for place, rows in places.items():
        timed = [row for *_, row in rows]
        reference = _reference(timed)
        if reference is None:
            continue
        named = [each for each in rows if reference in each[3]["ratio"]]
        holes = [
            *_hole(untimed, "no speed was measured (`sparsebert bench --ticket`)"),
            *_hole(
                [name for _, name, _, row in rows if reference not in row["ratio"]],
                f"not timed beside {reference}",
            ),
        ]
        if len(places) > 1:
            elsewhere = [each[1] for other, members in places.items() if other != place for each in members]
            holes += _hole(
                [name for name in elsewhere if name not in {each[1] for each in rows}],
                "timed with another workload or on another machine, drawn apart",
            )
        forms = [
            Form(
                series_name,
                name,
                scale * values.mean,
                None if values.std is None else scale * values.std,
                len(values.values),
                *_speed(row, reference),
                row.get("model_bytes"),
                row["busy"],
            )
            for series_name, name, values, row in named
        ]
        environment = timed[0]["environment"]
        if dense is None:
            holes.append("Without the dense model: no dense run is among the records.")
        else:
            sizes = {
                row.get("model_bytes")
                for row in benches
                if row["provider"] == reference and _place(row) == place
            }
            size = next(iter(sizes)) if len(sizes) == 1 else None
            std = None if dense.std is None else scale * dense.std
            forms.insert(
                0, Form(DENSE, DENSE, scale * dense.mean, std, len(dense.values), 1.0, (1.0, 1.0), size)
            )
        yield Front(
            title,
            metric + (" (%)" if scale == 100 else ""),
            f"{baseline_name(reference, environment)}, {timed[0]['workload']['dtype']}",
            tuple(forms),
            _machine(environment),
            f"Speed of one seed's ticket: {workload_title(timed[0]['workload'])}. {trained}".strip(),
            tuple(holes),
            None if chance is None else scale * chance,
        )


def _of_arena(records: Sequence[Record]) -> Iterator[Front]:
    for rows in comparisons(records):
        reference = _reference(rows)
        if reference is None:
            continue
        first, timed = rows[0], [row for row in rows if reference in row["ratio"]]
        scale = 100 if first["labels"] else 1
        holes = [f"Without {name}: {reason}." for name, reason in first["left_out"].items()]
        holes += _hole([row["form"] for row in rows if row not in timed], f"not timed beside {reference}")
        forms = [
            Form(
                DENSE if row["form"] == reference else _form_name(row),
                _form_name(row),
                scale * row["quality"]["value"],
                None,
                1,
                *_speed(row, reference),
                row.get("model_bytes"),
                row["busy"],
            )
            for row in timed
        ]
        what = "rows with labels" if first["labels"] else "texts"
        yield Front(
            f"Forms of {first['workload']['model']}",
            f"{first['measure']} (%)" if first["labels"] else quality_name(first),
            f"{baseline_name(reference, first['environment'])}, {first['workload']['dtype']}",
            tuple(forms),
            _machine(first["environment"]),
            f"{workload_title(first['workload'])}; judged on {first['judged']} held-out {what}.",
            tuple(holes),
        )


def _reference(rows: Sequence[Record]) -> str | None:
    """Return the dense form that most rows are timed beside, by ``REFERENCES`` if it is several."""
    counts = Counter(name for row in rows for name in row["ratio"])
    if not counts:
        return None
    names = [name for name in counts if counts[name] == max(counts.values())]
    return next((name for name in REFERENCES if name in names), names[0])


def _speed(row: Record, reference: str) -> tuple[float, tuple[float, float]]:
    ratio = row["ratio"][reference]
    return ratio["median"], (ratio.get("p20", ratio["median"]), ratio.get("p80", ratio["median"]))


def _place(row: Record) -> tuple[str, ...]:
    """Return what speeds must have in common to be compared: machine and workload."""
    return (*machine_key(row), repr(sorted(row["workload"].items(), key=str)))


def _machine(environment: Record) -> str:
    versions = {"Python": environment["python"], "sparsebert": environment["sparsebert"]}
    return f"{machine_text(environment)}, {versions_text(versions)}"


def _trained(rounds: Sequence[Record]) -> str:
    seeds = sorted({row["seed"] for row in rounds})
    steps = span_text((row["steps"] for row in rounds), "d")
    return (
        f"Mean and standard deviation (n - 1) over the seeds {', '.join(map(str, seeds))}, {steps} steps a "
        f"round, {versions_text(rounds[-1]['versions'])}."
    )


def _form_name(row: Record) -> str:
    """Return the name of a form of an arena; those of this library are marked."""
    ours = "sparsebert " if row["ours"] else ""
    return f"{ours}{baseline_name(row['form'], row['environment'])}"


def _hole(names: Sequence[str], reason: str) -> list[str]:
    """Return the sentence on forms that are not drawn."""
    if not names:
        return []
    unique = list(dict.fromkeys(names))
    more = f" and {len(unique) - _MOST_NAMED} more" if len(unique) > _MOST_NAMED else ""
    return [f"Not drawn: {', '.join(unique[:_MOST_NAMED])}{more}: {reason}."]
