"""Head and MLP lists of Super Tickets: read, written, and refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sparsebert.bert import structure
from sparsebert.interop import read_ticket
from sparsebert.interop.super_tickets import from_super_tickets, to_super_tickets
from sparsebert.pruning.head_mlp_masks import UnitMasks
from tests.interop.heads_and_mlps import HEADS, bert, good


def write(folder: Path, heads: object = None, mlps: object = None) -> Path:
    if heads is not None:
        (folder / "heads_to_mask.json").write_text(json.dumps(heads))
    if mlps is not None:
        (folder / "ffn_to_mask.json").write_text(json.dumps(mlps))
    return folder / ("ffn_to_mask.json" if heads is None else "heads_to_mask.json")


def test_lists_name_what_goes(tmp_path: Path) -> None:
    heads = {"0": {"0": [1], "2": [0]}}
    assert UnitMasks.of(read_ticket(write(tmp_path, heads), bert()), bert()).heads.equal(
        torch.from_numpy(HEADS == 1)
    )
    path = write(tmp_path, heads, {"0": [1]})
    assert read_ticket(path, bert()) == good()
    assert read_ticket(tmp_path / "ffn_to_mask.json", bert()) == good()
    assert read_ticket(path, bert()).removed == structure(bert()).neurons[1]


def test_mlps_without_heads(tmp_path: Path) -> None:
    masks = UnitMasks.of(read_ticket(write(tmp_path, mlps={"0": [1]}), bert()), bert())
    assert masks.heads.all()
    assert masks.mlps.tolist() == [True, False, True]


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    to_super_tickets(good(), tmp_path / "heads_to_mask.json", bert())
    assert json.loads((tmp_path / "heads_to_mask.json").read_text()) == {"0": {"0": [1], "2": [0]}}
    assert json.loads((tmp_path / "ffn_to_mask.json").read_text()) == {"0": [1]}
    assert read_ticket(tmp_path / "heads_to_mask.json", bert()) == good()


def test_one_task_of_several_is_chosen(tmp_path: Path) -> None:
    path = write(tmp_path, {"0": {}, "3": {"0": [1], "2": [0]}}, {"0": [], "3": [1]})
    assert from_super_tickets(path, bert(), "3") == good()
    with pytest.raises(ValueError, match="lists of tasks 0, 3; choose one with `sparsebert convert --task`"):
        read_ticket(path, bert())
    with pytest.raises(ValueError, match="no lists of task 1; its tasks: 0, 3"):
        from_super_tickets(path, bert(), "1")
    named = read_ticket(path, bert(), task="3")
    assert (named, named.metadata["task"]) == (good(), "3")


def test_a_file_of_one_ticket_takes_no_task(tmp_path: Path) -> None:
    good().save(tmp_path / "ticket.safetensors")
    with pytest.raises(ValueError, match="holds one ticket; a task applies only to"):
        read_ticket(tmp_path / "ticket.safetensors", bert(), task="3")


@pytest.mark.parametrize(
    ("heads", "mlps", "message"),
    [
        ({"0": {"0": [2]}}, None, "the model has heads 0 to 1, got head 2"),
        ({"0": {"3": [0]}}, None, "the model has layers 0 to 2, got layer '3'"),
        ({"0": {"0": [-1]}}, None, "heads 0 to 1, got head -1"),
        ({"0": {"0": [0.5]}}, None, "heads 0 to 1, got head 0.5"),
        ({"0": {"0": 1}}, None, "must hold a list of heads, got 1"),
        ({"0": {"a": [1]}}, None, "a layer must be a whole number, got 'a'"),
        ({"0": [1]}, None, "must hold lists of heads by layer, got \\[1\\]"),
        ({}, None, "must hold a table of tasks, got an empty one"),
        ({"0": {}}, {"0": [3]}, "the model has layers 0 to 2, got layer 3"),
        ({"0": {"0": [0, 1], "1": [0, 1], "2": [0, 1]}}, {"0": [0, 1, 2]}, "keep no head and no MLP"),
    ],
)
def test_refusals(tmp_path: Path, heads: object, mlps: object, message: str) -> None:
    path = write(tmp_path, heads, mlps)
    with pytest.raises(ValueError, match=message):
        read_ticket(path, bert())


def test_what_is_no_json_or_comes_without_its_model(tmp_path: Path) -> None:
    path = tmp_path / "heads_to_mask.json"
    path.write_text('{"0": {"0": [1]')
    with pytest.raises(ValueError, match="not a usable JSON file"):
        read_ticket(path, bert())
    with pytest.raises(ValueError, match="pass the model that the ticket belongs to"):
        read_ticket(path)
    path.write_text("{" + " " * (1 << 20) + "}")
    with pytest.raises(ValueError, match="is too large for lists of heads or MLPs"):
        read_ticket(path, bert())
