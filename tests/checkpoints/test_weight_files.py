"""Names and headers of a folder's weight files are those of the tensors that are read from them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sparsebert.checkpoints.weight_files import (
    SPARSE_INDEX,
    SPARSE_WEIGHTS,
    files_of,
    read_header,
    read_names,
    read_weights,
)

STATE = {"a.weight": torch.ones(2, 3), "a.bias": torch.zeros(2, dtype=torch.float16)}


def write_pickle(folder: Path) -> None:
    torch.save({"state_dict": STATE}, folder / "pytorch_model.bin")


def write_one(folder: Path) -> None:
    save_file(STATE, folder / "model.safetensors")


def write_several(folder: Path) -> None:
    files = {name: f"part-{number}.safetensors" for number, name in enumerate(STATE)}
    for name, file in files.items():
        save_file({name: STATE[name]}, folder / file)
    (folder / SPARSE_INDEX).write_text(json.dumps({"weight_map": files}))


@pytest.mark.parametrize("write", [write_pickle, write_one, write_several])
def test_names_are_those_of_the_tensors(write: Callable[[Path], None], tmp_path: Path) -> None:
    write(tmp_path)
    assert read_names(tmp_path) == read_weights(tmp_path).keys()


def test_names_need_no_values(tmp_path: Path) -> None:
    """A float of 4 bits is a dtype of safetensors that torch lacks."""
    header = json.dumps({"a": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0")
    assert read_names(tmp_path) == {"a"}


def test_a_header(tmp_path: Path) -> None:
    write_one(tmp_path)
    assert read_header(tmp_path / "model.safetensors") == {
        "a.weight": ("F32", [2, 3]),
        "a.bias": ("F16", [2]),
    }


def test_a_damaged_header(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 20)
    for read in (lambda: read_header(tmp_path / "model.safetensors"), lambda: read_names(tmp_path)):
        with pytest.raises(ValueError, match="is truncated or not a safetensors file"):
            read()


@pytest.mark.parametrize("weight_map", [{"a": "../a.safetensors"}, {"a": 1}, ["a"], None])
def test_an_index_lists_files_of_its_folder(weight_map: object, tmp_path: Path) -> None:
    assert files_of(tmp_path, SPARSE_WEIGHTS) == []
    (tmp_path / SPARSE_INDEX).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ValueError, match="must map tensors to files of its folder"):
        files_of(tmp_path, SPARSE_WEIGHTS)
