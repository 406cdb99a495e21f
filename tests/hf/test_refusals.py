"""Folders that cannot be loaded: one line that says why, before a layer is made."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sparsebert import sparsify_
from sparsebert.hf.config import SparseConfig
from tests.convert.models import build, pruned

transformers = pytest.importorskip("transformers")
KEY = "encoder.layer.0.attention.self.query"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model, ticket = pruned()
    sparsify_(model, ticket, format="element").save_pretrained(tmp_path)
    return tmp_path


def refusal(folder: Path, **options: Any) -> str:
    """The one line with which loading ends."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        transformers.AutoModelForSequenceClassification.from_pretrained(folder, **options)
    (line,) = str(caught.value).splitlines()
    return line


def edit_config(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    file = folder / "config.json"
    config = json.loads(file.read_text())
    change(config)
    file.write_text(json.dumps(config))


def edit_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("version", 2, "written by a newer sparsebert (format 2, this one reads up to 1): update sparsebert"),
        ("version", "1", "format version '1'"),
        ("surprise", 1, "'surprise' in quantization_config is unknown to format 1"),
        ("tokens", "many", "'tokens' in quantization_config is of another type"),
        ("layers", [], "'layers' in quantization_config is of another type"),
        ("compaction", {"version": 99}, "a compacted model of version 99"),
        ("compaction", {"version": 1}, "the description of a compacted model is damaged"),
    ],
)
def test_config_of_another_version_or_shape(folder: Path, field: str, value: Any, message: str) -> None:
    edit_config(folder, lambda config: config["quantization_config"].update({field: value}))
    assert message in refusal(folder)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("shape", [24], "two positive sizes"),
        ("shape", [24, 48], "of another architecture"),
        ("kept", 10**9, "kept is 1000000000 of 24 x 24 weights"),
        ("kept", 3, "weight_values are"),
        ("bias", False, "of another architecture"),
        ("format", "zip", "unknown format 'zip'"),
        ("block", [0, 4], "two positive sizes"),
        ("measured_us", "fast", "a number is expected"),
        ("surprise", 1, "surprise"),
    ],
)
def test_tampered_layer(folder: Path, field: str, value: Any, message: str) -> None:
    edit_config(folder, lambda config: config["quantization_config"]["layers"][KEY].update({field: value}))
    line = refusal(folder)
    assert message in line
    assert field == "format" or KEY in line


def test_layer_that_no_model_has(folder: Path) -> None:
    def rename(config: dict[str, Any]) -> None:
        layers = config["quantization_config"]["layers"]
        layers["encoder.layer.9.output.dense"] = layers.pop(KEY)

    edit_config(folder, rename)
    assert "has no module 'encoder.layer.9.output.dense'" in refusal(folder)


@pytest.mark.parametrize("change", [{"num_hidden_layers": 1}, {"hidden_size": 48}])
def test_another_architecture(folder: Path, change: dict[str, int]) -> None:
    edit_config(folder, lambda config: config.update(change))
    assert "the folder is of another architecture" in refusal(folder)


@pytest.mark.parametrize("left", [0.9, 0.1, 0.001])
def test_file_that_is_cut_off(folder: Path, left: float) -> None:
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * left)])
    assert "is cut off or no safetensors file" in refusal(folder)


def test_tampered_header_of_the_file(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes().replace(b'"shape":[72]', b'"shape":[71]', 1))
    assert "is cut off or no safetensors file" in refusal(folder)


def test_file_that_lacks_a_layer(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: tensors.pop(f"bert.{KEY}.weight_bits"))
    assert f"names a sparse layer {KEY}, whose weight_bits are in no file" in refusal(folder)


def test_masks_of_another_ticket(folder: Path) -> None:
    """As many kept weights, in other places."""
    edit_tensors(
        folder,
        lambda tensors: tensors[f"bert.{KEY}.weight_bits"].copy_(tensors[f"bert.{KEY}.weight_bits"].flip(0)),
    )
    assert "the masks of the folder are not those that its config.json was written for" in refusal(folder)


def test_dense_folder_to_be_made_sparse_on_the_way(tmp_path: Path) -> None:
    build().save_pretrained(tmp_path)
    line = refusal(tmp_path, quantization_config=SparseConfig())
    assert "sparsebert.sparsify_(model, ticket)" in line


def test_offloading_to_disk(folder: Path) -> None:
    pytest.importorskip("accelerate")
    assert "cannot be offloaded to disk" in refusal(folder, device_map={"bert": "disk", "classifier": "cpu"})
