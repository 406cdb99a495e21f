"""Write the model card of a sparse model's folder: origin, loading, quality, speed and sparsity."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsebert.json_object import load_json
from sparsebert.report.format import Record, baseline_name, machine_text, workload_title
from sparsebert.report.table import Table
from sparsebert.tickets.ticket import SAME_SPARSITY

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

_TAGS = ["sparsebert", "sparse", "pruning"]


def model_card(
    folder: str | os.PathLike[str], records: Iterable[Mapping[str, Any]] = (), *, name: str | None = None
) -> ModelCard:
    """Create the model card of a sparse model's folder.

    ``.save(folder / "README.md")`` writes the card to the folder, ``.push_to_hub(repository)`` uploads it;
    ``model.push_to_hub`` then keeps it.

    Args:
        folder: A folder that ``save_pretrained`` wrote for a sparse model.
        records: Records of this model that sparsebert commands wrote with ``--json``
            (``sparsebert.results``). The quality is that of the last "seeds" or "eval_seeds" record, which
            may compare with the dense model; without one, that of the last "eval" or "round" record. The
            speed is that of the last "bench" record. The card says "Not measured" where there is no record.
        name: Name of the model; the folder's name by default.

    Returns:
        The card, from ``huggingface_hub``.

    Raises:
        ValueError: The folder does not hold a sparse model, or a record is of a model of another sparsity.
    """
    from huggingface_hub import ModelCard, ModelCardData

    config, stored = _config(Path(folder))
    name = name or Path(folder).resolve().name
    rows = [dict(row) for row in records]
    sparsity = stored["sparsity"]
    original = stored["origin"].get("model", {})
    data = ModelCardData(
        base_model=_hub_id(original),
        library_name="transformers",
        tags=_TAGS,
    )
    sections = [
        f"---\n{data.to_yaml()}\n---\n\n# {name}",
        _summary(config, stored, original, sparsity),
        _loading(config, stored, name),
        f"## Quality\n\n{_quality(rows, sparsity)}",
        f"## Speed\n\n{_speed(rows, stored, sparsity)}",
        f"## Sparsity of each matrix\n\n{_layers(stored)}",
    ]
    return ModelCard("\n\n".join(sections) + "\n")


def _config(folder: Path) -> tuple[Record, Record]:
    """Return the contents of config.json, and its ``quantization_config``."""
    try:
        config = load_json((folder / "config.json").read_text(encoding="utf-8"))
        stored = config["quantization_config"]
        if stored["quant_method"] != "sparsebert" or not isinstance(stored["sparsity"], float | int):
            raise KeyError
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(
            f"{folder} does not hold a sparse model; save one there with save_pretrained first"
        ) from None
    return config, stored


def _hub_id(original: Record) -> str | None:
    """Return the Hub id of the original model; None for a local folder, even one named like a Hub model."""
    name, local = original.get("id", ""), original.get("local")
    # Older tickets do not record ``local``; they record a folder without its parents, so "/" marks a Hub id.
    on_hub = "/" in name if local is None else not local
    return name if on_hub and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) else None


def _summary(config: Record, stored: Record, original: Record, sparsity: float) -> str:
    """Return the first section: architecture, original model, sparsity, compaction and pruning method."""
    origin = stored["origin"]
    architecture = (config.get("architectures") or ["model"])[0]
    source = f" from {original['id']}" if original.get("id") else ""
    if original.get("local"):
        source = f" from the local model {original['id']}"
    lines = [
        f"{architecture}{source}, {sparsity:.2%} sparse (density "
        f"{1 - sparsity:.2%}){_compaction(stored.get('compaction'))}.",
        f"- method: {origin.get('method', 'unknown')}",
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
    text = (
        f"; compaction removed rows, columns, neurons and heads: {stored:,} of {configured:,} encoder "
        f"weights remain ({stored / configured:.1%})"
    )
    if least := compaction["min_row_weights"]:
        text += f". Compaction was lossy: it also removed rows of fewer than {least} weights"
        if change := compaction.get("output_change"):
            text += (
                f", which changed the outputs by {change['mean']:.2g} on average and {change['max']:.2g} at "
                f"most, and {change['changed']:.1%} of the predictions"
            )
    return text


def _loading(config: Record, stored: Record, name: str) -> str:
    head = re.search(r"For\w+$", (config.get("architectures") or [""])[0])
    auto = f"AutoModel{head[0] if head else ''}"
    densify = "sparsebert.densify_(model)"
    if stored.get("compaction"):
        densify = f"sparsebert.expand_({densify})"
    return (
        "## Load it\n\n```python\n"
        "import sparsebert  # required: registers the format with transformers\n"
        f"from transformers import {auto}\n\n"
        f'model = {auto}.from_pretrained("{name}")\n```\n\n'
        "The files hold the remaining weights, and a mask of each sparse matrix; loading packs them for the "
        f"device. `{densify}` returns a plain dense model."
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
        busy = " The machine was busy; do not quote these times." if row["busy"] else ""
        return (
            f"Whole model: {ratios}; {row['latency_ms']['median']:.1f} ms per batch.\n\n"
            f"{workload_title(row['workload'])}. {device or machine_text(row['environment'])}.{busy}"
        )
    timed = [layer for layer in stored["layers"].values() if layer["measured_us"] and layer["dense_us"]]
    if not timed:
        return "Not measured."
    sparse, dense = (sum(layer[name] for layer in timed) / 1e3 for name in ("measured_us", "dense_us"))
    return (
        f"{len(timed)} of {len(stored['layers'])} matrices, measured separately with {stored['tokens']} "
        f"tokens: {sparse:.2f} ms against {dense:.2f} ms dense ({dense / sparse:.1f}x) on "
        f"{stored['machine']}. The whole model was not measured."
    )


def _layers(stored: Record) -> str:
    layers, compacted = stored["layers"], (stored.get("compaction") or {}).get("linears", {})
    rows = []
    for key in (*layers, *(key for key in compacted if key not in layers)):
        entry = compacted.get(key, {})
        shape = layers[key]["shape"] if key in layers else entry.get("live", entry["shape"])
        configured = entry.get("configured", shape)
        weights = layers[key]["kept"] if key in layers else math.prod(shape)
        sparsity = f"{1 - weights / math.prod(configured):.1%}"
        rows.append((key, _shape(configured), _shape(shape), f"{weights:,}", sparsity))
    if not rows:
        return "The remaining matrices are dense."
    return Table("", ("matrix", "configured", "compacted", "weights", "sparsity"), tuple(rows)).markdown()


def _shape(sizes: Iterable[int]) -> str:
    return "x".join(map(str, sizes))


def _require_same(recorded: float | None, sparsity: float, kind: str) -> None:
    """Raise ValueError if a record is of a model of another sparsity."""
    if recorded is not None and abs(recorded - sparsity) > SAME_SPARSITY:
        raise ValueError(
            f"the {kind!r} record must be of this model, which is {sparsity:.2%} sparse; "
            f"it is of a model that is {recorded:.2%} sparse"
        )


def _spread(mean: float, std: float | None) -> str:
    return f"{mean:.4f}" if std is None else f"{mean:.4f} ± {std:.4f}"
