"""Tables of measurements on a GPU, each with the name of the device."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence

from sparsebert.report.format import MISSING, Record, megabytes
from sparsebert.report.gpu_goals import goal_rows, removed_share
from sparsebert.report.table import Table
from sparsebert_kernels.errors import first_line

MODELS = {768: "BERT-base", 1024: "BERT-large"}
RATIOS = "Ratio: cuBLAS's time over ours, both in CUDA graphs, paired medians, geometric mean over the layers"


def gpu_tables(records: Iterable[Record], *, dry_run: bool = False) -> list[Table]:
    """Return all tables of each device.

    Args:
        records: Records of any kind.
        dry_run: Whether to show dry runs, which measure nothing, instead of measurements.
    """
    devices: dict[str, list[Record]] = {}
    for row in records:
        if row["kind"] == "gpu" and row["device"]["dry_run"] == dry_run:
            devices.setdefault(row["device"]["name"], []).append(row)
    tables = []
    for name, rows in devices.items():
        latest = list({row["point"]["key"]: row for row in rows}.values())
        for make in MAKERS:
            tables += [_marked(table, name, latest) for table in make(latest)]
    return tables


def failure_tables(records: Iterable[Record], *, dry_run: bool = False) -> list[Table]:
    """Return a table of the failed points and the reasons."""
    rows = tuple(
        (row["point"]["key"], first_line(row["reason"]))
        for row in records
        if row["kind"] == "gpu_failed" and row["device"]["dry_run"] == dry_run
    )
    return [Table("Failed on a GPU", ("point", "reason"), rows, prose=True)] if rows else []


def of_kind(rows: Sequence[Record], kind: str, **wanted: object) -> list[Record]:
    """Return the records of points of this kind with these arguments."""
    points = [row for row in rows if row["point"]["kind"] == kind]
    return [row for row in points if all(row["point"].get(name) == value for name, value in wanted.items())]


def mean_ratio(rows: Sequence[Record], side: str) -> float | None:
    """Return the geometric mean of a side's ratios; None without any."""
    ratios = [row["ratio"][side]["median"] for row in rows if side in row["ratio"]]
    return statistics.geometric_mean(ratios) if ratios else None


def _goal_table(rows: Sequence[Record]) -> list[Table]:
    shown = tuple(goal_rows(rows))
    columns = ("case", "reached", "must", "aim", "worst layer", "verdict")
    return [Table("Speed to reach", columns, shown, (f"{RATIOS} of BERT-base measured.",))] if shown else []


def _layer_tables(rows: Sequence[Record]) -> list[Table]:
    groups: dict[tuple[str, str], list[Record]] = {}
    for row in of_kind(rows, "layer"):
        if not row["point"]["cold"]:
            groups.setdefault((_model(row), row["point"]["mode"]), []).append(row)
    tables = [
        _layer_table(f"Packed panels, {model}, {mode}", group)
        for (model, mode), group in sorted(groups.items())
    ]
    cold = [row for row in of_kind(rows, "layer") if row["point"]["cold"]]
    return [*tables, *([_layer_table("Packed panels, nothing in the L2 cache", cold)] if cold else [])]


def _layer_table(title: str, rows: Sequence[Record]) -> Table:
    sparsities = sorted({row["point"]["sparsity"] for row in rows})
    cells: dict[tuple[int, str], dict[float, list[Record]]] = {}
    for row in rows:
        key = row["point"]["tokens"], "x".join(map(str, row["point"]["block"]))
        cells.setdefault(key, {}).setdefault(row["point"]["sparsity"], []).append(row)
    shown = tuple(
        (str(tokens), block, *(_mean(by.get(sparsity, []), "panel") for sparsity in sparsities))
        for (tokens, block), by in sorted(cells.items(), key=lambda item: (item[0][0], _rows_of(item[0][1])))
    )
    columns = ("tokens", "block", *(f"{sparsity:.0%}" for sparsity in sparsities))
    return Table(title, columns, shown, (f"{RATIOS}.",))


def _baseline_table(rows: Sequence[Record]) -> list[Table]:
    layers = [row for row in of_kind(rows, "layer", mode="forward") if not row["point"]["cold"]]
    baselines = list(dict.fromkeys(name for row in layers for name in row["ratio"] if name != "panel"))
    groups: dict[tuple[int, str, float], list[Record]] = {}
    for row in layers:
        if row["ratio"].keys() & set(baselines):
            point = row["point"]
            key = point["tokens"], "x".join(map(str, point["block"])), point["sparsity"]
            groups.setdefault(key, []).append(row)
    shown = tuple(
        (str(tokens), block, f"{sparsity:.0%}", *(_mean(group, name) for name in ("panel", *baselines)))
        for (tokens, block, sparsity), group in sorted(groups.items())
    )
    columns = ("tokens", "block", "sparsity", "panel", *baselines)
    return [Table("Block-sparse kernels against cuBLAS", columns, shown, (f"{RATIOS}.",))] if shown else []


def _other_tables(rows: Sequence[Record]) -> list[Table]:
    """Return the tables of masked and bitmap weights and of dense baselines, with a row for each layer."""
    tables = []
    titles = {
        "masked": "Masked matmul, 50 % of the weights masked one by one",
        "bitmap": "Bitmap weights",
        "dense": "Baselines whose time does not depend on the sparsity",
    }
    for kind, title in titles.items():
        layers = of_kind(rows, kind)
        names = list(dict.fromkeys(name for row in layers for name in row["ratio"]))
        shown = tuple(
            (_layer_name(row), _rate(row), *(_mean([row], name) for name in names)) for row in layers
        )
        if shown:
            tables.append(Table(title, ("layer", "cuBLAS TFLOP/s", *names), shown))
    return tables


def _time_tables(rows: Sequence[Record]) -> list[Table]:
    """Return the tables of what the epilogue and the occupancy cost, with a row for each layer."""
    tables = []
    titles = {
        "activation": "Packed panels by the activation in their epilogue, us",
        "occupancy": "Packed panels by tokens of a program, warps (w) and stages (s), us",
    }
    for kind, title in titles.items():
        layers = of_kind(rows, kind)
        names = list(dict.fromkeys(name for row in layers for name in row["us"]))
        shown = tuple((_layer_name(row), *(_microseconds(row, name) for name in names)) for row in layers)
        if shown:
            tables.append(Table(title, ("layer", *names), shown))
    return tables


def _model_table(rows: Sequence[Record]) -> list[Table]:
    models = of_kind(rows, "model")
    names = list(dict.fromkeys(name for row in models for name in row["us"]))
    shown = tuple(
        (
            f"{row['point']['model']}, batch {row['point']['batch']} x {_lengths(row)}",
            _sparsity(row["point"]),
            MISSING if row["speedup"] is None else f"{row['speedup']:.2f}x",
            *(f"{row['us'][name]['median'] / 1e3:.3f}" if name in row["us"] else MISSING for name in names),
            megabytes(row["weight_bytes"]),
            megabytes(row["dense_weight_bytes"]),
        )
        for row in models
    )
    columns = ("model", "sparsity", "vs fastest dense", *(f"{name} ms" for name in names))
    columns = (*columns, "sparse weights MB", "dense weights MB")
    return [Table("Whole models", columns, shown)] if shown else []


def _sparsity(point: Record) -> str:
    blocks = "x".join(map(str, point["block"]))
    return f"{point['sparsity']:.0%} in {blocks}{removed_share(point)}"


def _lengths(row: Record) -> str:
    return f"up to {row['length']}" if row["point"].get("ragged") else str(row["length"])


def _memory_table(rows: Sequence[Record]) -> list[Table]:
    fields = ("parameters", "forward_peak", "activations", "held_before_step", "step_peak")
    shown = tuple(
        (
            f"{row['point']['model']}, batch {row['point']['batch']}, {side}",
            megabytes(row["weight_bytes"] if side == "sparse" else row["dense_weight_bytes"]),
            *(megabytes(held[field]) for field in fields),
        )
        for row in of_kind(rows, "memory")
        for side, held in row["sides"].items()
    )
    names = ("parameters", "forward peak", "activations", "before a training step", "training step peak")
    columns = ("model", "encoder weights MB", *(f"{name} MB" for name in names))
    return [Table("Memory", columns, shown)] if shown else []


def _request_table(rows: Sequence[Record]) -> list[Table]:
    requests = of_kind(rows, "requests")
    names = list(dict.fromkeys(name for row in requests for name in row["us"]))
    shown = tuple(
        (
            f"{row['point']['model']}, {row['batches']} batches of {row['point']['batch']}",
            _sparsity(row["point"]),
            f"{row['tokens'] / row['padded_tokens']:.0%}",
            f"{row['ratio'][row['side']]['median']:.2f}x",
            *(f"{row['us'][name]['median'] / 1e3:.3f}" for name in names),
        )
        for row in requests
    )
    columns = (
        "requests",
        "sparsity",
        "tokens of padded",
        "vs dense in graphs",
        *(f"{name} ms" for name in names),
    )
    note = "Calls from Python, time of a batch; graphs: sparsebert.graphs"
    return [Table("Ragged batches", columns, shown, (note,))] if shown else []


def _limit_table(rows: Sequence[Record]) -> list[Table]:
    limits = of_kind(rows, "limits")
    if not limits:
        return []
    row = limits[-1]
    shown = [(f"matmul {dtype}", f"{rate / 1e12:.0f} TFLOP/s") for dtype, rate in row["matmul"].items()]
    shown += [("copy", f"{row['memory'] / 1e12:.2f} TB/s"), ("read from L2", f"{row['l2'] / 1e12:.2f} TB/s")]
    kernels = (("in a CUDA graph", "kernel"), ("from Python", "launch"), ("a replay", "replay"))
    shown += [(f"smallest kernel, {name}", f"{row[field] * 1e6:.2f} us") for name, field in kernels]
    return [Table("Limits of the device", ("figure", "value"), tuple(shown))]


def _test_table(rows: Sequence[Record]) -> list[Table]:
    shown = tuple(
        (
            row["point"]["key"],
            MISSING if row["passed"] is None else "yes" if row["passed"] else "NO",
            ", ".join(f"{number} {name}" for name, number in row.get("counts", {}).items())
            or row.get("note", MISSING),
        )
        for kind in ("tests", "sanitizer")
        for row in of_kind(rows, kind)
    )
    return [Table("Tests on the device", ("tests", "passed", "counts"), shown)] if shown else []


def _tuning_table(rows: Sequence[Record]) -> list[Table]:
    shown = tuple(
        (
            row["point"]["key"].removeprefix("tuning "),
            row["rule"],
            row["best"],
            MISSING if row["gain"] is None else f"{row['gain']:.2f}x",
        )
        for row in of_kind(rows, "tuning")
    )
    return [Table("Tuning", ("kernel", "by rule", "best", "gain"), shown)] if shown else []


MAKERS: tuple[Callable[[Sequence[Record]], list[Table]], ...] = (
    _goal_table,
    _model_table,
    _layer_tables,
    _baseline_table,
    _other_tables,
    _request_table,
    _memory_table,
    _limit_table,
    _time_tables,
    _tuning_table,
    _test_table,
)


def _marked(table: Table, device: str, rows: Sequence[Record]) -> Table:
    versions = rows[-1]["environment"]["versions"]
    where = f"{device}, torch {versions['torch']}, triton {versions['triton']}."
    doubt = " Figures marked ? spread too far to be quoted." if any(row.get("busy") for row in rows) else ""
    return Table(f"{table.title} ({device})", table.columns, table.rows, (*table.notes, where + doubt))


def _mean(rows: Sequence[Record], side: str) -> str:
    mean = mean_ratio(rows, side)
    return MISSING if mean is None else f"{mean:.2f}x{'?' if any(row['busy'] for row in rows) else ''}"


def _microseconds(row: Record, side: str) -> str:
    if side not in row["us"]:
        return MISSING
    return f"{row['us'][side]['median']:.2f}{'?' if row['busy'] else ''}"


def _layer_name(row: Record) -> str:
    point = row["point"]
    extra = [point[name] for name in ("mode",) if name in point]
    extra += [f"{point['sparsity']:.0%}"] if "sparsity" in point else []
    return ", ".join([f"{point['shape'][0]}x{point['shape'][1]}", f"M = {point['tokens']}", *extra])


def _model(row: Record) -> str:
    """Return the model of a layer, by the narrower side of its weight."""
    width = min(row["point"]["shape"])
    return MODELS.get(width, f"{width} wide")


def _rate(row: Record) -> str:
    return f"{row['cublas_tflops']:.0f}"


def _rows_of(block: str) -> tuple[int, ...]:
    return tuple(int(part) for part in block.split("x"))
