"""Plots of quality against measured speed and against bytes, for every method in one picture."""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from sparsebert.report.format import Record, counted, megabytes
from sparsebert.report.front_records import fronts
from sparsebert.report.fronts import DENSE, Form, Front
from sparsebert.report.picture import Picture
from sparsebert.report.plain_text import figure_text
from sparsebert.report.plots import line_style, new_rows
from sparsebert.report.point_labels import label_points
from sparsebert.report.table import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DENSE: dict[str, Any] = {"color": "black", "marker": "*", "linestyle": "none", "markersize": 11}
_FRONT: dict[str, Any] = {"color": "0.2", "linewidth": 1.1, "zorder": 1}
# Fronts are drawn as a line through rings, which does not depend on colour.
_RING: dict[str, Any] = {"marker": "o", "markersize": 10, "markerfacecolor": "none", "markeredgecolor": "0.2"}


def front_tables(records: Iterable[Record]) -> list[Table]:
    """Return for each front the table of the forms that no other form beats."""
    tables = []
    for front in fronts(records):
        fastest, smallest = front.fastest, front.smallest
        shown = [form for form in front.forms if form in fastest or form in smallest]
        shown.sort(key=lambda form: (form.speed, -form.quality))
        rows = tuple(
            (
                form.name,
                _quality_text(form),
                f"{form.speed:.2f}x{'?' if form.busy else ''}",
                megabytes(form.model_bytes),
                "*" if form in fastest else "",
                "*" if form in smallest else "",
            )
            for form in shown
        )
        columns = ("form", front.quality, f"vs {front.reference}", "model MB", "fastest", "smallest")
        notes = (
            f"{len(shown)} of {counted(len(front.forms), 'form')}: no other is better in one and as good "
            "in the other of quality and speed (fastest *), or of quality and bytes (smallest *). Compared "
            "are qualities as shown, and speeds and bytes with two significant digits, since speeds scatter "
            f"by a few per cent. {front.about}",
            f"{front.machine}.",
            *front.holes,
            *_unsized(front),
        )
        tables.append(Table(f"Pareto front: {front.title}", columns, rows, notes))
    return tables


def front_pictures(records: Iterable[Record]) -> list[Picture]:
    """Return one picture of all fronts, a row of two panels for each."""
    drawn = fronts(records)
    if not drawn:
        return []
    caption = " ".join(
        f"{front.title}: {front.about} {front.machine}. {' '.join((*front.holes, *_unsized(front)))}".strip()
        for front in drawn
    )
    machines = len({front.machine for front in drawn})
    apart = " Each row has a model, a machine and a workload of its own." if len(drawn) > 1 else ""
    if machines > 1:
        apart += f" The rows are from {machines} machines or settings: compare within a row."
    return [
        Picture(
            "Quality against measured speed and against bytes",
            " ".join(map(_sentence, drawn)),
            functools.partial(front_figure, drawn),
            "Rings and line: Pareto front, the forms that no other form beats; bars: standard deviation "
            f"over seeds.{apart} {caption}",
            _numbers(drawn),
        )
    ]


def front_figure(drawn: Sequence[Front]) -> Figure:
    """Return the plot of fronts: quality against speed (left) and against bytes (right), a row for each.

    Raises:
        ValueError: There are no fronts, or matplotlib is not installed.
    """
    if not drawn:
        raise ValueError("nothing to plot: no form has both a quality and a measured speed")
    figure, rows = new_rows(len(drawn), 3, (10, 3.9), widths=(5, 5, 2.3))
    for front, (left, right, key) in zip(drawn, rows, strict=True):
        _panel(left, front, front.forms, front.fastest, _speed_of)
        left.set_xlabel(f"speed-up over {front.reference}; faster is better →", fontsize=8)
        left.xaxis.set_major_formatter("{x:g}x")
        left.set_ylabel(textwrap.fill(front.quality, 36), fontsize=8)
        left.set_title(f"{front.title}\n{front.machine}", loc="left", fontsize=8)
        _panel(right, front, [form for form in front.forms if form.model_bytes], front.smallest, _size_of)
        right.set_xlabel("← smaller is better; MB of the model in memory", fontsize=8)
        right.sharey(left)
        right.tick_params(labelleft=False)
        key.axis("off")
        key.legend(
            *left.get_legend_handles_labels(), frameon=False, loc="upper left", fontsize=7, borderaxespad=0
        )
    return figure


def _panel(axes: Axes, front: Front, forms: Sequence[Form], best: Sequence[Form], cost: Any) -> None:
    """Draw the forms of one panel, their front, and the names of the forms on it."""
    everything = list(dict.fromkeys(form.series for form in front.forms))
    names = [name for name in everything if name != DENSE]
    if front.chance is not None:
        axes.axhline(front.chance, color="0.5", linewidth=0.8, linestyle=(0, (1, 2)), label="chance")
    for series in sorted(everything, key=lambda name: name != DENSE):
        members = [form for form in forms if form.series == series]
        style = _DENSE if series == DENSE else line_style(names.index(series)) | {"linewidth": 0.7}
        if len(members) < 2:
            style = style | {"linestyle": "none"}
        xs, ys = [cost(form) for form in members], [form.quality for form in members]
        axes.plot(
            xs, ys, **style, label=f"dense, {front.reference}" if series == DENSE else figure_text(series)
        )
        if any(form.deviation for form in members):
            axes.errorbar(
                xs,
                ys,
                [form.deviation or 0 for form in members],
                fmt="none",
                ecolor=style["color"],
                alpha=0.4,
            )
    places = [(cost(form), form.quality) for form in best]
    axes.plot(*zip(*places, strict=True), **_FRONT, **_RING, label="Pareto front")
    axes.margins(x=0.12, y=0.18)
    axes.tick_params(labelsize=8)
    rest = [form for form in forms if form not in best]
    label_points(
        axes,
        [*places, *((cost(form), form.quality) for form in rest)],
        [form.name for form in best] + [""] * len(rest),
        fontsize=6.5,
    )


def _speed_of(form: Form) -> float:
    return form.speed


def _size_of(form: Form) -> float:
    return (form.model_bytes or 0) / 1e6


def _sentence(front: Front) -> str:
    dense = next((form for form in front.forms if form.series == DENSE), None)
    start = "" if dense is None else f" The dense model has {_quality_text(dense)}."
    fast = ", ".join(f"{form.name} ({_quality_text(form)}, {form.speed:.2f}x)" for form in front.fastest)
    small = ", ".join(
        f"{form.name} ({_quality_text(form)}, {megabytes(form.model_bytes)} MB)" for form in front.smallest
    )
    return (
        f"{front.title}: {front.quality} of {counted(len(front.forms), 'form')} against speed-up over "
        f"{front.reference} and against MB of the model.{start} On the front of speed, from the slowest to "
        f"the fastest: {fast}. On the front of bytes, from the smallest to the largest: {small}."
    )


def _quality_text(form: Form) -> str:
    spread = "" if form.deviation is None else f" ± {form.deviation:.{form.digits}f}"
    return f"{form.quality:.{form.digits}f}{spread}"


def _unsized(front: Front) -> list[str]:
    names = ", ".join(form.name for form in front.unsized)
    return [f"Without bytes, which the library does not report: {names}."] if names else []


def _numbers(drawn: Sequence[Front]) -> Table:
    columns = (
        "front",
        "series",
        "form",
        "quality",
        "value",
        "standard_deviation",
        "seeds",
        "reference",
        "speedup",
        "speedup_p20",
        "speedup_p80",
        "model_bytes",
        "on_front_of_speed",
        "on_front_of_bytes",
        "busy",
        "machine",
    )
    rows = tuple(
        (
            front.title,
            form.series,
            form.name,
            front.quality,
            f"{form.quality:.6g}",
            "" if form.deviation is None else f"{form.deviation:.6g}",
            str(form.seeds),
            front.reference,
            f"{form.speed:.6g}",
            *(f"{value:.6g}" for value in form.speed_range),
            "" if form.model_bytes is None else str(form.model_bytes),
            str(form in fastest).lower(),
            str(form in smallest).lower(),
            str(form.busy).lower(),
            front.machine,
        )
        for front in drawn
        for fastest, smallest in [(front.fastest, front.smallest)]
        for form in front.forms
    )
    return Table("", columns, rows)
