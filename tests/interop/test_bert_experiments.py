"""Heads and MLPs as bert-experiments and Super Tickets write them, and what is no such file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sparsebert.bert import structure
from sparsebert.cli import app
from sparsebert.interop.bert_experiments import from_super_tickets, to_head_mask, to_super_tickets
from sparsebert.interop.bert_tickets import read_ticket
from sparsebert.pruning import prune
from sparsebert.pruning.head_mlp_masks import UnitMasks
from sparsebert.tickets.ticket import Ticket

transformers = pytest.importorskip("transformers")

HEADS = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]], dtype=np.float32)
MLPS = np.array([1.0, 0.0, 1.0], dtype=np.float32)


def bert(**changes: int) -> transformers.BertModel:
    shape = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24, "num_hidden_layers": 3}
    return transformers.BertModel(transformers.BertConfig(vocab_size=20, **shape | changes))


def test_heads_alone_and_with_the_mlps_beside_them(tmp_path: Path) -> None:
    model = bert()
    np.save(tmp_path / "head_mask.npy", HEADS)
    for mlps in (np.ones(3), MLPS):
        masks = UnitMasks.of(read_ticket(tmp_path / "head_mask.npy", model), model)
        assert np.array_equal(masks.heads.numpy(), HEADS == 1)
        assert np.array_equal(masks.mlps.numpy(), mlps == 1)
        np.save(tmp_path / "mlp_mask.npy", MLPS)
    ticket = read_ticket(tmp_path / "head_mask.npy", model)
    assert ticket.removed == structure(model).neurons[1]
    assert ticket.metadata["granularity"] == "head+mlp"


def test_convert_reads_them(tmp_path: Path) -> None:
    bert().save_pretrained(tmp_path / "model")
    np.save(tmp_path / "head_mask.npy", HEADS)
    output = tmp_path / "ticket.safetensors"
    arguments = [str(tmp_path / "head_mask.npy"), str(output), "--model", str(tmp_path / "model")]
    assert app.main(["convert", *arguments]) == 0
    assert Ticket.load(output) == read_ticket(tmp_path / "head_mask.npy", bert())


@pytest.mark.parametrize(
    ("heads", "mlps", "message"),
    [
        (HEADS[:2], None, r"head_mask\.npy: a mask of \[2, 2\], where the model has \[3, 2\]"),
        (HEADS * 0.5, None, r"head_mask\.npy holds values other than 0 and 1"),
        (HEADS, MLPS[:2], r"mlp_mask\.npy: a mask of \[2\], where the model has \[3\]"),
        (HEADS, MLPS - 1, r"mlp_mask\.npy holds values other than 0 and 1"),
        (HEADS * 0, MLPS * 0, "keep no head and no MLP"),
        (np.nan < HEADS, MLPS * np.nan, r"mlp_mask\.npy holds values other than 0 and 1"),
    ],
)
def test_refusals(tmp_path: Path, heads: np.ndarray, mlps: np.ndarray | None, message: str) -> None:
    np.save(tmp_path / "head_mask.npy", heads)
    if mlps is not None:
        np.save(tmp_path / "mlp_mask.npy", mlps)
    with pytest.raises(ValueError, match=message):
        read_ticket(tmp_path / "head_mask.npy", bert())


def test_a_file_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "head_mask.npy", HEADS)
    whole = (tmp_path / "head_mask.npy").read_bytes()
    (tmp_path / "head_mask.npy").write_bytes(whole[:-5])
    with pytest.raises(ValueError, match="no usable"):
        read_ticket(tmp_path / "head_mask.npy", bert())
    np.save(tmp_path / "head_mask.npy", np.array([[{}]], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="no usable"):
        read_ticket(tmp_path / "head_mask.npy", bert())


def good() -> Ticket:
    return UnitMasks(torch.from_numpy(HEADS == 1), torch.from_numpy(MLPS == 1)).ticket(bert(), {})


class TestHeadMasksWritten:
    def test_are_what_their_code_loads(self, tmp_path: Path) -> None:
        to_head_mask(good(), tmp_path / "head_mask.npy", bert())
        for name, values in (("head_mask.npy", HEADS), ("mlp_mask.npy", MLPS)):
            found = np.load(tmp_path / name)
            assert found.dtype == np.float64  # what their masks are, as numpy makes them
            assert np.array_equal(found, values)
        assert read_ticket(tmp_path / "head_mask.npy", bert()) == good()

    def test_of_a_ticket_that_only_knows_of_heads(self, tmp_path: Path) -> None:
        model = bert()
        ticket = prune(model, sparsity=0.5, granularity="head")
        to_head_mask(ticket, tmp_path / "head_mask.npy", model)
        assert np.load(tmp_path / "head_mask.npy").sum() == 3
        assert np.load(tmp_path / "mlp_mask.npy").sum() == 3

    def test_a_ticket_that_says_more_is_refused_and_nothing_written(self, tmp_path: Path) -> None:
        model = bert()
        whole = good()
        (first, *_), down = structure(model).heads[0], structure(model).neurons[1][1]
        biased = Ticket(
            whole.masks, bias_masks={first: torch.ones(16, dtype=torch.bool)}, removed=whole.removed
        )
        pooled = Ticket(
            whole.masks | {"pooler.dense": torch.ones(16, 16, dtype=torch.bool)}, removed=whole.removed
        )
        for ticket, message in (
            (prune(model, sparsity=0.5), "prunes parts of units"),
            (biased, f"masks biases of {first}"),
            (pooled, "masks pooler.dense"),
            (
                Ticket(whole.masks),
                f"keeps the bias of {structure(model).neurons[1][0]}, but none of its weights",
            ),
            (Ticket(whole.masks, removed=[structure(model).neurons[1][0]]), f"keeps the bias of {down}"),
        ):
            for write, name in ((to_head_mask, "head_mask.npy"), (to_super_tickets, "heads_to_mask.json")):
                with pytest.raises(ValueError, match=message):
                    write(ticket, tmp_path / name, model)
        with pytest.raises(ValueError, match=r"ends in \.npy"):
            to_head_mask(whole, tmp_path / "mlp_mask.npy", model)
        assert not list(tmp_path.iterdir())


class TestSuperTickets:
    def write(self, folder: Path, heads: object = None, mlps: object = None) -> Path:
        if heads is not None:
            (folder / "heads_to_mask.json").write_text(json.dumps(heads))
        if mlps is not None:
            (folder / "ffn_to_mask.json").write_text(json.dumps(mlps))
        return folder / ("ffn_to_mask.json" if heads is None else "heads_to_mask.json")

    def test_lists_name_what_goes(self, tmp_path: Path) -> None:
        heads = {"0": {"0": [1], "2": [0]}}
        assert UnitMasks.of(read_ticket(self.write(tmp_path, heads), bert()), bert()).heads.equal(
            torch.from_numpy(HEADS == 1)
        )
        path = self.write(tmp_path, heads, {"0": [1]})
        assert read_ticket(path, bert()) == good()
        assert read_ticket(tmp_path / "ffn_to_mask.json", bert()) == good()
        assert read_ticket(path, bert()).removed == structure(bert()).neurons[1]

    def test_mlps_without_heads(self, tmp_path: Path) -> None:
        masks = UnitMasks.of(read_ticket(self.write(tmp_path, mlps={"0": [1]}), bert()), bert())
        assert masks.heads.all()
        assert masks.mlps.tolist() == [True, False, True]

    def test_what_is_written_is_read_again(self, tmp_path: Path) -> None:
        to_super_tickets(good(), tmp_path / "heads_to_mask.json", bert())
        assert json.loads((tmp_path / "heads_to_mask.json").read_text()) == {"0": {"0": [1], "2": [0]}}
        assert json.loads((tmp_path / "ffn_to_mask.json").read_text()) == {"0": [1]}
        assert read_ticket(tmp_path / "heads_to_mask.json", bert()) == good()

    def test_one_task_of_several_is_chosen(self, tmp_path: Path) -> None:
        path = self.write(tmp_path, {"0": {}, "3": {"0": [1], "2": [0]}}, {"0": [], "3": [1]})
        assert from_super_tickets(path, bert(), "3") == good()
        with pytest.raises(ValueError, match="lists of tasks 0, 3: `sparsebert convert --task`"):
            read_ticket(path, bert())
        with pytest.raises(ValueError, match="no lists of task 1; its tasks: 0, 3"):
            from_super_tickets(path, bert(), "1")
        named = read_ticket(path, bert(), task="3")
        assert (named, named.metadata["task"]) == (good(), "3")

    def test_a_file_of_one_ticket_takes_no_task(self, tmp_path: Path) -> None:
        good().save(tmp_path / "ticket.safetensors")
        with pytest.raises(ValueError, match="holds one ticket: a task is for"):
            read_ticket(tmp_path / "ticket.safetensors", bert(), task="3")

    @pytest.mark.parametrize(
        ("heads", "mlps", "message"),
        [
            ({"0": {"0": [2]}}, None, "head 2, where the model has heads 0 to 1"),
            ({"0": {"3": [0]}}, None, "layer '3', where the model has layers 0 to 2"),
            ({"0": {"0": [-1]}}, None, "head -1, where"),
            ({"0": {"0": [0.5]}}, None, "head 0.5, where"),
            ({"0": {"0": 1}}, None, "a list of heads is expected, not 1"),
            ({"0": {"a": [1]}}, None, "'a' is no number of a layer"),
            ({"0": [1]}, None, "lists of heads by layer are expected"),
            ({}, None, "a table of tasks is expected"),
            ({"0": {}}, {"0": [3]}, "layer 3, where the model has layers 0 to 2"),
            ({"0": {"0": [0, 1], "1": [0, 1], "2": [0, 1]}}, {"0": [0, 1, 2]}, "keep no head and no MLP"),
        ],
    )
    def test_refusals(self, tmp_path: Path, heads: object, mlps: object, message: str) -> None:
        path = self.write(tmp_path, heads, mlps)
        with pytest.raises(ValueError, match=message):
            read_ticket(path, bert())

    def test_what_is_no_json_or_comes_without_its_model(self, tmp_path: Path) -> None:
        path = tmp_path / "heads_to_mask.json"
        path.write_text('{"0": {"0": [1]')
        with pytest.raises(ValueError, match="no usable JSON file"):
            read_ticket(path, bert())
        with pytest.raises(ValueError, match="needs the model it belongs to"):
            read_ticket(path)
        path.write_text("{" + " " * (1 << 20) + "}")
        with pytest.raises(ValueError, match="is no list of heads or MLPs"):
            read_ticket(path, bert())


def test_convert_writes_and_reads_both(tmp_path: Path) -> None:
    bert().save_pretrained(tmp_path / "model")
    good().save(tmp_path / "ticket.safetensors")
    model = ["--model", str(tmp_path / "model")]
    for kind, name in (("head-masks", "head_mask.npy"), ("super-tickets", "heads_to_mask.json")):
        written, back = str(tmp_path / name), tmp_path / f"{kind}.safetensors"
        assert app.main(["convert", str(tmp_path / "ticket.safetensors"), written, "--to", kind, *model]) == 0
        assert app.main(["convert", written, str(back), *model]) == 0
        assert Ticket.load(back) == good()
