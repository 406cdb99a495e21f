"""Tables of the times that the cost model predicts for layers on a GPU."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sparsebert.report.format import Record
from sparsebert.report.table import Table

# The case whose bounds are shown.
SHOWN = (0.9, [64, 64])
BOUNDS = {
    "tensor_cores": "tensor cores",
    "l2": "L2 cache",
    "issue": "instructions",
    "programs": "waves of programs",
    "traffic": "activations, weights",
}
NOTE = (
    "Modelled for bf16 on {device} ({source}); nothing was measured. Blocks are spread evenly, all kernels "
    "run in a CUDA graph, and GELU follows the dense layer in a kernel of its own."
)


def roofline_tables(records: Iterable[Record]) -> list[Table]:
    """Return, for each device, the speedups over the dense layer, and what bounds 64x64 blocks at 90 %."""
    devices: dict[tuple[str, str], list[Record]] = {}
    for row in records:
        devices.setdefault((row["device"], row["source"]), []).append(row)
    tables = []
    for (device, source), rows in devices.items():
        note = NOTE.format(device=device, source=source)
        tables += [_speedups(rows, note), _bounds(rows, note)]
    return tables


def _speedups(rows: Sequence[Record], note: str) -> Table:
    sparsities = sorted({row["sparsity"] for row in rows})
    layers: dict[tuple[int, str], list[Record]] = {}
    for row in rows:
        layers.setdefault((row["tokens"], row["layer"]), []).append(row)
    shown = tuple(
        (
            layer,
            str(tokens),
            f"{group[0]['dense_us']:.1f}",
            *(_by_height([row for row in group if row["sparsity"] == sparsity]) for sparsity in sparsities),
        )
        for (tokens, layer), group in layers.items()
    )
    heights = " / ".join(str(height) for height in sorted({row["block"][0] for row in rows}))
    title = f"Dense time over sparse, modelled, blocks of {heights} rows x {rows[0]['block'][1]} columns"
    columns = ("layer", "tokens", "dense us", *(f"{sparsity:.0%}" for sparsity in sparsities))
    return Table(title, columns, shown, (note,))


def _by_height(rows: Sequence[Record]) -> str:
    ordered = sorted(rows, key=lambda row: row["block"][0])
    return " / ".join(f"{row['dense_us'] / row['us']:.1f}" for row in ordered)


def _bounds(rows: Sequence[Record], note: str) -> Table:
    sparsity, block = SHOWN
    shown = tuple(
        (
            row["layer"],
            str(row["tokens"]),
            *(_bound(row, name) for name in BOUNDS),
            f"{row['us']:.1f}",
            f"{row['configuration']['block_m']} x {row['programs_at_once']}",
        )
        for row in rows
        if row["sparsity"] == sparsity and list(row["block"]) == block
    )
    title = f"What bounds {block[0]}x{block[1]} blocks at {sparsity:.0%}, modelled, us"
    columns = ("layer", "tokens", *BOUNDS.values(), "with launch", "tokens of a program x programs at once")
    return Table(title, columns, shown, (note,))


def _bound(row: Record, name: str) -> str:
    shown = f"{row['bounds_us'][name]:.1f}"
    return f"**{shown}**" if row["bound"] == name else shown
