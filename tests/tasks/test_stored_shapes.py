"""A config.json that claims more than the weights beside it hold, and the reverse, cost one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsebert.sparsify import sparsify_
from sparsebert.tasks.models import load_as_saved, skeleton
from tests.checkpoints.stored import write
from tests.interop.test_hostile_files import TENSORS, bounded, refused  # noqa: F401
from tests.sparsify.models import build, pruned

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module", params=["dense", "sparse"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / request.param
    model, ticket = pruned()
    if request.param == "sparse":
        sparsify_(model, ticket, format="element")
    model.save_pretrained(path)
    return path


def edited(folder: Path, target: Path, **changes: Any) -> Path:
    target.mkdir()
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    config = json.loads((target / "config.json").read_text()) | changes
    if "num_labels" in changes:
        config.pop("id2label", None)
        config.pop("label2id", None)
    (target / "config.json").write_text(json.dumps(config))
    return target


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_size", 10**12),
        ("hidden_size", -24),
        ("vocab_size", 10**12),
        ("max_position_embeddings", 10**12),
        ("num_hidden_layers", 10**9),
        ("num_hidden_layers", 10**5),
        ("num_hidden_layers", -1),
        ("num_attention_heads", 0),
        ("num_labels", 10**9),
        ("layer_norm_eps", float("inf")),
        ("hidden_dropout_prob", float("nan")),
    ],
)
@pytest.mark.parametrize("load", [load_as_saved, skeleton])
def test_sizes_that_no_model_has(
    bounded: None,  # noqa: F811
    folder: Path,
    tmp_path: Path,
    field: str,
    value: Any,
    load: Callable[[str], Any],
) -> None:
    target = edited(folder, tmp_path / "m", **{field: value})
    refused(
        lambda: load(str(target)),
        str(target),
        field if value == value and abs(value) < 1e308 else "it contains",
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"vocab_size": 10**8},
        {"max_position_embeddings": 10**7},
        {"type_vocab_size": 10**9},
        {"intermediate_size": 10**8},
        {"hidden_size": 10**8},
        {"num_attention_heads": 7},
        {"hidden_act": "nope"},
        {"pad_token_id": 10**9},
        {"vocab_size": 49},
    ],
    ids=str,
)
def test_sizes_that_the_files_do_not_hold(
    bounded: None,  # noqa: F811
    folder: Path,
    tmp_path: Path,
    changes: dict[str, Any],
) -> None:
    refused(lambda: load_as_saved(str(edited(folder, tmp_path / "m", **changes))))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TENSORS)
def test_weights_without_values(bounded: None, tmp_path: Path, name: str) -> None:  # noqa: F811
    model = build()
    model.save_pretrained(tmp_path / "plain")
    entry = "bert.encoder.layer.0.attention.self.query.weight"
    stored = write(
        tmp_path / "m", tmp_path / "plain", {**model.state_dict(), entry: TENSORS[name]()}, pickled=True
    )
    refused(lambda: load_as_saved(str(stored)), str(tmp_path))


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int64, torch.bool, torch.float8_e4m3fn])
@pytest.mark.parametrize(
    "entry", ["bert.embeddings.word_embeddings.weight", "bert.encoder.layer.0.output.dense.weight"]
)
def test_dtypes_that_hold_no_weights(tmp_path: Path, dtype: torch.dtype, entry: str) -> None:
    model = build()
    model.save_pretrained(tmp_path / "plain")
    state = model.state_dict()
    stored = write(tmp_path / "m", tmp_path / "plain", {**state, entry: state[entry].to(dtype)})
    refused(lambda: load_as_saved(str(stored)), entry, "expected F32, BF16, F16, F64")
