"""Write the model card of a sparse model's folder: origin, loading, quality, speed and sparsity."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsebert.bert import encoder_matrix
from sparsebert.checkpoints.weight_files import SPARSE_WEIGHTS, files_of, read_config, read_header
from sparsebert.hf import sentence_modules
from sparsebert.hf.attach_quantizer import METHOD
from sparsebert.report.format import Record, baseline_name, machine_text, workload_title
from sparsebert.report.table import Table
from sparsebert.tasks.verdict import judged_again
from sparsebert.tickets.ticket import SAME_SPARSITY

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

_TAGS = ["sparsebert", "sparse", "pruning"]
# The section of a sparse model in somebody else's card stands between these lines.
_BEGIN, _END = "<!-- sparsebert: begin -->", "<!-- sparsebert: end -->"


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
    original = stored["origin"].get("model", {})
    data = ModelCardData(
        base_model=_hub_id(original),
        library_name="transformers",
        tags=_TAGS,
    )
    begin = f"---\n{data.to_yaml()}\n---\n\n# {name}"
    return ModelCard(f"{begin}\n\n{_sections(Path(folder), config, stored, rows, name)}\n")


def extend_card(
    card: str | None,
    folder: str | os.PathLike[str],
    records: Iterable[Mapping[str, Any]] = (),
    *,
    name: str | None = None,
) -> str:
    """Add a section on sparsity to the card of the original model, or renew the one it has.

    Args:
        card: Text of the card, which stays as it is otherwise; None, or a card of :func:`model_card`, for a
            new card.
        folder: As for :func:`model_card`.
        records: As for :func:`model_card`.
        name: As for :func:`model_card`.

    Raises:
        ValueError: As :func:`model_card`.
    """
    if card is None or _is_ours(card):
        return str(model_card(folder, records, name=name).content)
    config, stored = _config(Path(folder))
    rows = [dict(row) for row in records]
    sections = _sections(Path(folder), config, stored, rows, name or Path(folder).resolve().name)
    return _with_section(card, sections.replace("\n## ", "\n### "))


def extend_card_of_dense(card: str | None, sparsity: float, origin: Mapping[str, Any], *, name: str) -> str:
    """Add a section to the card of the original model, for a folder with dense values and zeros.

    Args:
        card: As for :func:`extend_card`.
        sparsity: Sparsity of the ticket.
        origin: Metadata of the ticket.
        name: Name of the model, for a new card.
    """
    text = (
        f"{sparsity:.2%} of the prunable weights, those of the encoder's linear layers, are zero (density "
        f"{1 - sparsity:.2%}). The files hold dense values and load without sparsebert.\n\n{_method(origin)}"
    )
    if card is None or _is_ours(card):
        tags = "\n".join(f"- {tag}" for tag in _TAGS)
        return f"---\nlibrary_name: transformers\ntags:\n{tags}\n---\n\n# {name}\n\n{text}\n"
    return _with_section(card, text)


def _is_ours(card: str) -> bool:
    """Whether :func:`model_card` has written the whole card."""
    front_matter = card.split("\n---", 1)[0] if card.startswith("---") else ""
    return _BEGIN not in card and re.search(r"^\s*- sparsebert$", front_matter, re.MULTILINE) is not None


def _with_section(card: str, text: str) -> str:
    before, _, rest = card.partition(_BEGIN)
    after = rest.partition(_END)[2].strip()
    section = f"{_BEGIN}\n## Pruned with sparsebert\n\n{text}\n{_END}\n"
    return f"{before.rstrip()}\n\n{section}" + (f"\n{after}\n" if after else "")


def _sections(folder: Path, config: Record, stored: Record, rows: list[Record], name: str) -> str:
    sparsity = stored["sparsity"]
    return "\n\n".join(
        [
            _summary(folder, config, stored, sparsity),
            _loading(folder, config, stored, name),
            f"## Quality\n\n{_quality(rows, sparsity)}",
            f"## Speed\n\n{_speed(rows, stored, sparsity)}",
            f"## Sparsity of each matrix\n\n{_layers(stored)}",
        ]
    )


def _config(folder: Path) -> tuple[Record, Record]:
    """Return the contents of config.json, and its ``quantization_config``."""
    try:
        config = read_config(folder)
        stored = config["quantization_config"]
        if stored["quant_method"] != METHOD or not isinstance(stored["sparsity"], float | int):
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


def _summary(folder: Path, config: Record, stored: Record, sparsity: float) -> str:
    """Return the first section: architecture, original model, sparsity, compaction and pruning method."""
    original = stored["origin"].get("model", {})
    architecture = (config.get("architectures") or ["model"])[0]
    source = f" from {original['id']}" if original.get("id") else ""
    if original.get("local"):
        source = f" from the local model {original['id']}"
    summary = (
        f"{architecture}{source}, {sparsity:.2%} sparse (density {1 - sparsity:.2%})"
        f"{_compaction(config, stored.get('compaction'))}.\n{_remainder(folder, stored)}"
    )
    return f"{summary}\n\n{_method(stored['origin'])}"


def _method(origin: Mapping[str, Any]) -> str:
    lines = [f"- method: {origin.get('method', 'unknown')}"]
    lines += [
        f"- {name.replace('_', ' ')}: {value}"
        for name in ("granularity", "block_size", "round_to", "scope", "seed")
        if (value := origin.get(name)) is not None
    ]
    return "\n".join(lines)


def _remainder(folder: Path, stored: Record) -> str:
    """Say what the sparsity refers to and, if the files are there, how much of the whole model remains."""
    scope = "Sparsity refers to the prunable weights, those of the encoder's linear layers"
    sizes = [size for file in files_of(folder, SPARSE_WEIGHTS) for size in _sizes(file)]
    if not sizes:
        return f"{scope}."
    weights = sum(sizes)
    total = weights + sum(math.prod(configured) - kept for _, configured, _, kept in _matrices(stored))
    return (
        f"{scope}; of all {total:,} weights, embeddings included, {weights:,} remain ({weights / total:.1%})."
    )


def _sizes(file: Path) -> list[int]:
    """Return the number of values in each tensor of a file, mask bits and indices left out."""
    return [math.prod(shape) for dtype, shape in read_header(file).values() if "F" in dtype]


def _compaction(config: Record, compaction: Record | None) -> str:
    if not compaction:
        return ""
    configured, stored = (compaction["weights"][name] for name in ("configured", "stored"))
    text = (
        f"; compaction removed {_removed_kinds(compaction)}: {stored:,} of {configured:,} encoder weights "
        f"remain ({stored / configured:.1%})"
    )
    if least := compaction["min_row_weights"]:
        text += f". Compaction was lossy: it also removed rows of fewer than {least} weights"
        if change := compaction.get("output_change"):
            text += (
                f", which changed the outputs by {change['mean']:.2g} on average and {change['max']:.2g} at "
                f"most, and {change['changed']:.1%} of the predictions"
            )
    return text


def _removed_kinds(compaction: Record) -> str:
    """Return what compaction removed: some of heads, head dimensions, neurons, rows and columns."""
    linears = compaction.get("linears", {})
    groups = [group for groups in compaction.get("attention", {}).values() for group in groups]
    kinds = []
    if groups:
        kinds.append("heads or their dimensions")
    if any(
        kind[1] == "ffn_up" and entry["shape"][0] < entry["configured"][0]
        for key, entry in linears.items()
        if (kind := encoder_matrix(key))
    ):
        kinds.append("neurons")
    if any("live" in entry for entry in linears.values()):
        kinds.append("rows and columns")
    return " and ".join(filter(None, [", ".join(kinds[:-1]), *kinds[-1:]])) or "nothing"


def _loading(folder: Path, config: Record, stored: Record, name: str) -> str:
    head = re.search(r"For\w+$", (config.get("architectures") or [""])[0])
    auto = f"AutoModel{head[0] if head else ''}"
    densify = "sparsebert.densify_(model)"
    if stored.get("compaction"):
        densify = f"sparsebert.expand_({densify})"
    library, call = f"from transformers import {auto}", f'{auto}.from_pretrained("{name}")'
    if (folder / sentence_modules.FILE).exists():
        library, call = (
            "from sentence_transformers import SentenceTransformer",
            f'SentenceTransformer("{name}")',
        )
        densify = densify.replace("model", "model[0].auto_model")
    return (
        "## Load it\n\n```python\n"
        "import sparsebert  # required: registers the format with transformers\n"
        f"{library}\n\n"
        f"model = {call}\n```\n\n"
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
        row = judged_again(row)
        reason = f", because {row['reason']}" if row.get("reason") else ""
        text += f"; dense: {_spread(row['dense_mean'], row['dense_std'])} (verdict: {row['verdict']}{reason})"
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
    rows = [
        (key, _shape(configured), _shape(shape), f"{weights:,}", f"{1 - weights / math.prod(configured):.1%}")
        for key, configured, shape, weights in _matrices(stored)
    ]
    if not rows:
        return "The remaining matrices are dense."
    return Table("", ("matrix", "configured", "compacted", "weights", "sparsity"), tuple(rows)).markdown()


def _matrices(stored: Record) -> Iterator[tuple[str, list[int], list[int], int]]:
    """Yield key, configured shape, stored shape and number of weights of each sparse or compacted matrix."""
    layers, compacted = stored["layers"], (stored.get("compaction") or {}).get("linears", {})
    for key in (*layers, *(key for key in compacted if key not in layers)):
        entry = compacted.get(key, {})
        shape = layers[key]["shape"] if key in layers else entry.get("live", entry["shape"])
        weights = layers[key]["kept"] if key in layers else math.prod(shape)
        yield key, entry.get("configured", shape), shape, weights


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
