"""Tables of LayerNorms folded into the products behind them: errors in bfloat16, and the time to save."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import fsum, sqrt

from sparsebert.report.format import Record, machine_text
from sparsebert.report.table import Cell, Table

ORDINARY = {"ordinary": "ordinary", "ordinary_fp32_sums": "ordinary of fp32 sums"}
FORMS = {**ORDINARY, "folded": "folded", "folded_early_statistics": "folded with early statistics"}
ORDER = " / ".join(FORMS.values())
PARAMETERS = {"fp32": "rounded", "bf16": "in bf16"}
MEASURES = {"largest": "largest error", "rms": "RMS error"}
PRODUCTS = {"query": "query", "key": "key", "value": "value", "ffn_up": "FFN up"}


def layernorm_tables(records: Iterable[Record]) -> list[Table]:
    """Return the errors of each model, by kind of product, and the modelled times."""
    models: dict[str, list[Record]] = {}
    times = []
    for row in records:
        if row["part"] == "time":
            times.append(row)
        else:
            models.setdefault(row["model"], []).append(row)
    tables = [_by_kind(rows) for rows in models.values()]
    return [*tables, _times(times)] if times else tables


def _by_kind(rows: Sequence[Record]) -> Table:
    kinds = {text: (kind,) for kind, text in PRODUCTS.items()} | {"all": tuple(PRODUCTS)}
    cells = []
    for parameters, given in PARAMETERS.items():
        for text, kind in kinds.items():
            group = [row for row in rows if row["parameters"] == parameters and row["product"] in kind]
            larger = (_larger(group, ordinary) for ordinary in ORDINARY)
            cells.append((text, given, _forms(group, "largest", max), _forms(group, "rms", _rms), *larger))
    first = rows[0]
    offset = max(row["mean_over_deviation"] for row in rows)
    notes = (
        f"{machine_text(first['environment'])}; bf16 is emulated. Inputs: the sums that the LayerNorms read, "
        f"{first['tokens']:,} tokens. Errors are those against float64: the largest over the largest output, "
        "in the worst layer; RMS over that of the outputs, over all layers.",
        "Ordinary: LayerNorm of sums that are stored in bf16 (or in fp32), rounded to bf16, then the "
        "product. Folded: the product of the sums in bf16; their mean and deviation are computed in fp32 "
        "from the stored sums, or early, before the sums are rounded. The mean of a token's sums is at most "
        f"{offset:.2f} of their deviation.",
        "Parameters, rounded: the weights are fp32, and every form rounds them, the folded one W times gamma "
        "at once; errors are those against the fp32 weights. In bf16: the weights are bf16 from the start "
        "and exact in the ordinary form; the folded one still rounds W times gamma. It keeps W times beta, "
        "plus the bias, in fp32.",
        "Folded above: the number of products in which the error of the folded form is larger, by largest / "
        "RMS error.",
    )
    columns = (
        "product",
        "parameters",
        *MEASURES.values(),
        *(f"folded above {text}" for text in ORDINARY.values()),
    )
    title = f"Errors of products behind a LayerNorm, 10^-3, {first['model']}: {ORDER}"
    return Table(title, columns, tuple(cells), notes)


def _forms(rows: Sequence[Record], measure: str, combine: Callable[[list[float]], float]) -> str:
    combined = (combine([row["errors"][form][measure] for row in rows]) for form in FORMS)
    return " / ".join(f"{value * 1e3:.2f}" for value in combined)


def _rms(values: Sequence[float]) -> float:
    return sqrt(fsum(value * value for value in values) / len(values))


def _larger(rows: Sequence[Record], ordinary: str) -> str:
    counts = (
        sum(row["errors"]["folded"][measure] > row["errors"][ordinary][measure] for row in rows)
        for measure in MEASURES
    )
    return f"{' / '.join(map(str, counts))} of {len(rows)}"


def _times(rows: Sequence[Record]) -> Table:
    first = rows[0]
    sparse = f"{first['sparsity']:.0%} sparse"
    columns: dict[str, Cell] = {
        "tokens": lambda row: str(row["tokens"]),
        "one LayerNorm us": lambda row: f"{row['layernorm_us']:.1f}",
        "both of a layer us": lambda row: f"{2 * row['layernorm_us']:.1f}",
        "dense products us": lambda row: f"{row['dense_us']:.1f}",
        f"{sparse} products us": lambda row: f"{row['sparse_us']:.1f}",
        "share, dense": lambda row: _share(row, "dense_us"),
        f"share, {sparse}": lambda row: _share(row, "sparse_us"),
    }
    notes = (
        f"Modelled for bf16 on {first['device']} ({first['source']}); nothing was measured. A LayerNorm is a "
        f"kernel that reads and writes [tokens, {first['hidden']}]. The products are the four of a layer of "
        f"BERT-base, GELU included, sparse in {first['block'][0]}x{first['block'][1]} blocks. Share: of both "
        "LayerNorms in their time and the products' together. What folding adds to the products is not part "
        "of the model, so that these times bound what it can save.",
    )
    return Table.of("Time of the LayerNorms of a layer of BERT-base, modelled", columns, rows, notes)


def _share(row: Record, products: str) -> str:
    both = 2 * row["layernorm_us"]
    return f"{both / (both + row[products]):.0%}"
