"""The model card of a sparse model's folder: what it is, what it costs, what it gains, and how to load it."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsebert.report.format import Record, baseline_name, machine_text, workload_title
from sparsebert.report.table import Table
from sparsebert.tickets.ticket import SAME_SPARSITY

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

_TAGS = ["sparsebert", "sparse", "pruning"]


def model_card(
    folder: str | os.PathLike[str], records: Iterable[Mapping[str, Any]] = (), *, name: str | None = None
) -> ModelCard:
    """The card of a folder that `save_pretrained` wrote of a sparse model; ``.save(folder / "README.md")``
    puts it there and ``.push_to_hub(repository)`` on the hub, where `model.push_to_hub` keeps it.

    ``records``: rows of this model that our commands wrote with ``--json`` (`sparsebert.results`). Of
    "seeds" and "eval_seeds", or else of "eval" and "round", the last one says what the model achieves, beside
    the dense one where it was judged by one; of "bench" the last round of measurements says how fast it is.
    What no record tells is called not measured. ``name``: what the model is called; else as its folder.

    Raises ValueError for a folder that holds no sparse model, and a record of a model of another sparsity.
    """
    from huggingface_hub import ModelCard, ModelCardData

    config, stored = _config(Path(folder))
    name = name or Path(folder).resolve().name
    rows = [dict(row) for row in records]
    sparsity = stored["sparsity"]
    made_of = stored["origin"].get("model", {})
    data = ModelCardData(
        base_model=_hub_id(made_of),
        library_name="transformers",
        tags=_TAGS,
    )
    sections = [
        f"---\n{data.to_yaml()}\n---\n\n# {name}",
        _what(config, stored, made_of, sparsity),
        _loading(config, stored, name),
        f"## Quality\n\n{_quality(rows, sparsity)}",
        f"## Speed\n\n{_speed(rows, stored, sparsity)}",
        f"## Sparsity of each matrix\n\n{_layers(stored)}",
    ]
    return ModelCard("\n\n".join(sections) + "\n")


def _config(folder: Path) -> tuple[Record, Record]:
    """config.json, and what it says of sparse layers."""
    try:
        config = json.loads((folder / "config.json").read_text())
        stored = config["quantization_config"]
        if stored["quant_method"] != "sparsebert" or not isinstance(stored["sparsity"], float | int):
            raise KeyError
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(f"{folder} holds no sparse model: its config.json describes none") from None
    return config, stored


def _hub_id(made_of: Record) -> str | None:
    """What the hub knows the original model by, if it does: local folders may be called alike."""
    name, local = made_of.get("id", ""), made_of.get("local")
    # Tickets that do not say whether it was a folder have the folder's own name, without those above it.
    sure = "/" in name if local is None else not local
    return name if sure and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) else None


def _what(config: Record, stored: Record, made_of: Record, sparsity: float) -> str:
    origin = stored["origin"]
    architecture = (config.get("architectures") or ["model"])[0]
    source = f" from {made_of['id']}" if made_of.get("id") else ""
    if made_of.get("local"):
        source = f" from the model of a local folder, {made_of['id']}"
    lines = [
        f"{architecture}{source}, {sparsity:.2%} sparse (density "
        f"{1 - sparsity:.2%}){_compaction(stored.get('compaction'))}.",
        f"- method: {origin.get('method', 'not known')}",
    ]
    lines += [
        f"- {name.replace('_', ' ')}: {value}"
        for name in ("granularity", "block_size", "scope", "seed")
        if (value := origin.get(name)) is not None
    ]
    return "\n".join([lines[0], "", *lines[1:]])


def _compaction(compaction: Record | None) -> str:
    if not compaction:
        return ""
    configured, stored = (compaction["weights"][name] for name in ("configured", "stored"))
    taken = (
        f"; compaction removed rows, columns, neurons and heads: {stored:,} of {configured:,} encoder "
        f"weights remain ({stored / configured:.1%})"
    )
    if least := compaction["min_row_weights"]:
        taken += f". That was lossy: rows of fewer than {least} weights are among them"
        if change := compaction.get("output_change"):
            taken += (
                f", which moved its outputs by {change['mean']:.2g} in the mean, by {change['max']:.2g} at "
                f"most, and changed {change['changed']:.1%} of its answers"
            )
    return taken


def _loading(config: Record, stored: Record, name: str) -> str:
    head = re.search(r"For\w+$", (config.get("architectures") or [""])[0])
    auto = f"AutoModel{head[0] if head else ''}"
    back = "sparsebert.densify_(model)"
    if stored.get("compaction"):
        back = f"sparsebert.expand_({back})"
    return (
        "## Load it\n\n```python\n"
        "import sparsebert  # first: without it transformers does not know the format\n"
        f"from transformers import {auto}\n\n"
        f'model = {auto}.from_pretrained("{name}")\n```\n\n'
        "The files hold the remaining weights, and masks where there are zeros; loading packs them for the "
        f"device. `{back}` gives a plain dense model."
    )


def _quality(rows: list[Record], sparsity: float) -> str:
    judged = [row for row in rows if row["kind"] in ("seeds", "eval_seeds")]
    plain = [row for row in rows if row["kind"] in ("eval", "round")]
    if not judged and not plain:
        return "Not measured."
    row = (judged or plain)[-1]
    _require_same(row.get("sparsity"), sparsity, row["kind"])
    if not judged:
        values = ", ".join(f"{name} {value:.4f}" for name, value in row["metrics"].items())
        return f"{row['task']}: {values}. Not compared with the dense model."
    text = f"{row['task']}, {row['metric']}: {_spread(row['mean'], row['std'])}"
    if "dense_mean" in row:
        text += f"; dense: {_spread(row['dense_mean'], row['dense_std'])} (verdict: {row['verdict']})"
    return f"{text}. Seeds: {', '.join(map(str, row['seeds']))}."


def _speed(rows: list[Record], stored: Record, sparsity: float) -> str:
    measured = [row for row in rows if row["kind"] == "bench" and row["provider"] == "sparse"]
    if measured:
        row = measured[-1]
        _require_same(row["ticket"]["sparsity"], sparsity, "bench")
        ratios = ", ".join(
            f"{ratio['median']:.2f}x against {baseline_name(name, row['environment'])}"
            for name, ratio in row["ratio"].items()
        )
        device = row["environment"]["gpu"] if row["workload"]["device"] == "cuda" else None
        busy = " The machine was busy: not to be quoted." if row["busy"] else ""
        return (
            f"The whole model, measured: {ratios}; {row['latency_ms']['median']:.1f} ms a batch.\n\n"
            f"{workload_title(row['workload'])}. {device or machine_text(row['environment'])}.{busy}"
        )
    timed = [layer for layer in stored["layers"].values() if layer["measured_us"] and layer["dense_us"]]
    if not timed:
        return "Not measured."
    mine, dense = (sum(layer[name] for layer in timed) / 1e3 for name in ("measured_us", "dense_us"))
    return (
        f"{len(timed)} of {len(stored['layers'])} matrices, measured one by one, {stored['tokens']} tokens: "
        f"{mine:.2f} ms against {dense:.2f} ms dense ({dense / mine:.1f}x) on {stored['machine']}. "
        "The whole model was not measured."
    )


def _layers(stored: Record) -> str:
    layers, taken = stored["layers"], (stored.get("compaction") or {}).get("linears", {})
    rows = []
    for key in (*layers, *(key for key in taken if key not in layers)):
        entry = taken.get(key, {})
        shape = layers[key]["shape"] if key in layers else entry.get("live", entry["shape"])
        configured = entry.get("configured", shape)
        weights = layers[key]["kept"] if key in layers else math.prod(shape)
        sparsity = f"{1 - weights / math.prod(configured):.1%}"
        rows.append((key, _shape(configured), _shape(shape), f"{weights:,}", sparsity))
    if not rows:
        return "The remaining matrices are dense."
    return Table("", ("matrix", "configured", "left", "weights", "sparsity"), tuple(rows)).markdown()


def _shape(sizes: Iterable[int]) -> str:
    return "x".join(map(str, sizes))


def _require_same(found: float | None, sparsity: float, kind: str) -> None:
    if found is not None and abs(found - sparsity) > SAME_SPARSITY:
        raise ValueError(
            f"a {kind!r} record is of a model that is {found:.2%} sparse; this one is {sparsity:.2%}"
        )


def _spread(mean: float, std: float | None) -> str:
    return f"{mean:.4f}" if std is None else f"{mean:.4f} ± {std:.4f}"
