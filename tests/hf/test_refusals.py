"""Folders that cannot be loaded: one line that says why, before a layer is made."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sparsebert import compact_, sparsify_
from sparsebert.hf.config import SparseConfig
from tests.hf.folders import edit_config
from tests.hf.test_compacted import with_empty_lines
from tests.sparsify.models import build, pruned

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


def edit_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    file = folder / "sparsebert.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (
            "version",
            4,
            "a newer sparsebert wrote the folder (format 4; this version reads up to 3); update sparsebert",
        ),
        ("version", "1", "format version in quantization_config must be an integer from 1 to 3, got '1'"),
        ("surprise", 1, "'surprise' in quantization_config is unknown in format 3"),
        ("tokens", "many", "'tokens' in quantization_config is a str, the wrong type for format 3"),
        ("tokens", 0, "config.json: tokens must be a positive integer, got 0"),
        ("format", "zip", "config.json: unknown format 'zip'"),
        ("sparsity", float("nan"), "config.json: sparsity in quantization_config must be 0 to 1, got nan"),
        ("layers", [], "'layers' in quantization_config is a list, the wrong type for format 3"),
        ("compaction", {"version": 99}, "version of the compaction description must be 1, got 99"),
        ("compaction", {"version": 1}, "the compaction description is damaged"),
    ],
)
def test_config_of_another_version_or_shape(folder: Path, field: str, value: Any, message: str) -> None:
    edit_config(folder, lambda config: config["quantization_config"].update({field: value}))
    assert message in refusal(folder)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("shape", [24], "must be two positive integers, got ["),
        ("shape", [24, 48], "the folder does not fit BertForSequenceClassification"),
        ("kept", 10**9, "kept must be a number of weights up to 24 x 24, got 1000000000"),
        (
            "kept",
            3,
            "weight_values is F32 [171] in the file, but F32 or BF16 or F16 or F64 [3] in config.json",
        ),
        ("bias", False, "the folder does not fit BertForSequenceClassification"),
        ("format", "zip", "unknown format 'zip'"),
        ("block", [0, 4], "must be two positive integers, got ["),
        ("measured_us", "fast", "measured_us must be a number, got 'fast'"),
        ("measured_us", True, "measured_us must be a number, got True"),
        ("bias", 1, "bias must be true or false, got 1"),
        ("measured_us", float("nan"), "measured_us must be a positive, finite time, got nan"),
        ("dense_us", -1, "dense_us must be a positive, finite time, got -1"),
        ("shape", [10**12, 10**12], "the folder does not fit BertForSequenceClassification"),
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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": 1}, "config.json does not fit the folder's layers: BertForSequenceClassif"),
        ({"hidden_size": 48}, "the folder does not fit BertForSequenceClassification: its encoder.layer.0"),
        ({"intermediate_size": 10**9}, "that of the class with this configuration is [1000000000, 24] with"),
    ],
)
def test_another_architecture(folder: Path, change: dict[str, int], message: str) -> None:
    edit_config(folder, lambda config: config.update(change))
    assert message in refusal(folder)


def test_a_layer_more_than_the_files_hold(folder: Path) -> None:
    """Its weights would be made up."""
    edit_config(folder, lambda config: config.update(num_hidden_layers=3))
    assert "encoder.layer.2.attention.self.query.weight, but no file holds it" in refusal(folder)


@pytest.mark.parametrize("left", [0.9, 0.1, 0.001])
def test_file_that_is_cut_off(folder: Path, left: float) -> None:
    file = folder / "sparsebert.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * left)])
    assert "is truncated or not a safetensors file" in refusal(folder)


def test_tampered_header_of_the_file(folder: Path) -> None:
    file = folder / "sparsebert.safetensors"
    file.write_bytes(file.read_bytes().replace(b'"shape":[72]', b'"shape":[71]', 1))
    assert "is truncated or not a safetensors file" in refusal(folder)


@pytest.mark.parametrize("name", ["weight_bits", "weight_values", "bias"])
def test_file_that_lacks_a_tensor(folder: Path, name: str) -> None:
    edit_tensors(folder, lambda tensors: tensors.pop(f"bert.{KEY}.{name}"))
    assert f"the model needs {KEY}.{name}, but no file holds it" in refusal(folder)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("weight_bits", torch.Tensor.float),
        ("weight_values", torch.Tensor.char),
        ("weight_bits", lambda bits: torch.cat([bits, bits])),
        ("weight_values", lambda values: values[1:].clone()),
        ("bias", lambda bias: bias[:, None].clone()),
    ],
)
def test_tensors_of_another_dtype_or_shape(
    folder: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    key = f"bert.{KEY}.{name}"
    edit_tensors(folder, lambda tensors: tensors.update({key: change(tensors[key])}))
    line = refusal(folder)
    assert f"{KEY}.{name} is " in line
    assert "in config.json" in line


@pytest.mark.parametrize(
    "name",
    [
        "embeddings.word_embeddings.weight",
        "embeddings.LayerNorm.bias",
        "encoder.layer.1.output.LayerNorm.weight",
        "pooler.dense.weight",
    ],
)
@pytest.mark.parametrize("change", [torch.Tensor.char, torch.Tensor.long, torch.Tensor.bool])
def test_a_dtype_beside_the_sparse_layers(
    folder: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    edit_tensors(folder, lambda tensors: tensors.update({f"bert.{name}": change(tensors[f"bert.{name}"])}))
    line = refusal(folder)
    assert line.startswith(f"{name} is ")
    assert "but F32 or BF16 or F16 or F64" in line


def test_a_dtype_of_the_head(folder: Path) -> None:
    edit_tensors(
        folder, lambda tensors: tensors.update({"classifier.bias": tensors["classifier.bias"].char()})
    )
    assert "classifier.bias is I8 [2] in the file, but F32" in refusal(folder)


@pytest.mark.parametrize(
    "name", ["embeddings.word_embeddings.weight", "encoder.layer.0.output.LayerNorm.bias"]
)
def test_a_tensor_beside_the_sparse_layers_that_no_file_holds(folder: Path, name: str) -> None:
    edit_tensors(folder, lambda tensors: tensors.pop(f"bert.{name}"))
    assert f"the model needs {name}, but no file holds it" in refusal(folder)


@pytest.mark.parametrize(("field", "value"), [("tokens", True), ("sparsity", True), ("trainable", 0)])
def test_a_bool_is_not_a_number(folder: Path, field: str, value: Any) -> None:
    edit_config(folder, lambda config: config["quantization_config"].update({field: value}))
    assert "the wrong type for" in refusal(folder)


def test_a_mask_that_keeps_another_number_of_weights_than_there_are_values(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: tensors[f"bert.{KEY}.weight_bits"].fill_(255))
    assert "the masks do not match config.json; get a new copy of the folder" in refusal(folder)


class TestManyFiles:
    INDEX = "sparsebert.safetensors.index.json"

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        model, ticket = pruned()
        sparsify_(model, ticket, format="element").save_pretrained(tmp_path, max_shard_size="4KB")
        return tmp_path

    def test_one_is_missing(self, folder: Path) -> None:
        file = sorted(folder.glob("sparsebert-*"))[1]
        file.unlink()
        assert f"{file.name} is missing" in refusal(folder)

    def test_one_is_cut_off(self, folder: Path) -> None:
        file = sorted(folder.glob("sparsebert-*"))[1]
        file.write_bytes(file.read_bytes()[:-7])
        assert f"{file.name} is truncated or not a safetensors file" in refusal(folder)

    def test_an_index_that_is_damaged(self, folder: Path) -> None:
        (folder / self.INDEX).write_text('{"weight_map": ')
        assert "line 1 column" in refusal(folder)

    def test_an_index_that_names_too_few(self, folder: Path) -> None:
        file = folder / self.INDEX
        index = json.loads(file.read_text())
        first = min(index["weight_map"].values())
        file.write_text(json.dumps(index | {"weight_map": dict.fromkeys(index["weight_map"], first)}))
        assert "but no file holds it" in refusal(folder)


class TestCompacted:
    OUTPUT = "encoder.layer.0.attention.output.dense"

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        compact_(build(), with_empty_lines(build())).save_pretrained(tmp_path)
        return tmp_path

    @pytest.mark.parametrize("name", ["weight", "bias", "rows", "columns"])
    def test_file_that_lacks_a_tensor(self, folder: Path, name: str) -> None:
        edit_tensors(folder, lambda tensors: tensors.pop(f"bert.{self.OUTPUT}.{name}"))
        assert f"the model needs {self.OUTPUT}.{name}, but no file holds it" in refusal(folder)

    @pytest.mark.parametrize("change", [1000, -1000, None])
    def test_rows_that_are_none(self, folder: Path, change: int | None) -> None:
        key = f"bert.{self.OUTPUT}.rows"

        def edit(tensors: dict[str, torch.Tensor]) -> None:
            tensors[key] = tensors[key].flip(0) if change is None else tensors[key] + change

        edit_tensors(folder, edit)
        assert f"{self.OUTPUT} is damaged: its rows or columns must be increasing indices" in refusal(folder)

    def test_a_description_of_other_shapes(self, folder: Path) -> None:
        def widen(config: dict[str, Any]) -> None:
            linears = config["quantization_config"]["compaction"]["linears"]
            linears["encoder.layer.0.intermediate.dense"]["shape"][0] += 1
            linears["encoder.layer.0.output.dense"]["shape"][1] += 1

        edit_config(folder, widen)
        assert "in config.json" in refusal(folder)

    def test_without_its_description(self, folder: Path) -> None:
        edit_config(folder, lambda config: config["quantization_config"].update(compaction=None))
        assert "in config.json" in refusal(folder)

    def test_sizes_that_nothing_has(self, folder: Path) -> None:
        edit_config(folder, lambda config: config.update(intermediate_size=10**9))
        assert "the compaction description is of another model" in refusal(folder)


def test_masks_of_another_ticket(folder: Path) -> None:
    """As many kept weights, in other places."""
    edit_tensors(
        folder,
        lambda tensors: tensors[f"bert.{KEY}.weight_bits"].copy_(tensors[f"bert.{KEY}.weight_bits"].flip(0)),
    )
    assert "the masks do not match config.json; get a new copy of the folder" in refusal(folder)


def test_dense_folder_to_be_made_sparse_on_the_way(tmp_path: Path) -> None:
    build().save_pretrained(tmp_path)
    line = refusal(tmp_path, quantization_config=SparseConfig())
    assert "sparsebert.sparsify_(model, ticket)" in line


def test_offloading_to_disk(folder: Path) -> None:
    pytest.importorskip("accelerate")
    assert "cannot be offloaded to disk" in refusal(folder, device_map={"bert": "disk", "classifier": "cpu"})
