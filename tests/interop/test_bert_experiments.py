"""Head and MLP masks of bert-experiments: read, written, and refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sparsebert.bert import structure
from sparsebert.cli import app
from sparsebert.interop import read_ticket
from sparsebert.interop.bert_experiments import to_head_mask
from sparsebert.interop.super_tickets import to_super_tickets
from sparsebert.pruning import prune
from sparsebert.pruning.head_mlp_masks import UnitMasks
from sparsebert.tickets.ticket import Ticket
from tests.interop.heads_and_mlps import HEADS, MLPS, bert, good


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
        (HEADS[:2], None, r"head_mask\.npy must have the model's shape \[3, 2\], got \[2, 2\]"),
        (HEADS * 0.5, None, r"head_mask\.npy holds values other than 0 and 1"),
        (HEADS, MLPS[:2], r"mlp_mask\.npy must have the model's shape \[3\], got \[2\]"),
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
    with pytest.raises(ValueError, match="not a usable"):
        read_ticket(tmp_path / "head_mask.npy", bert())
    np.save(tmp_path / "head_mask.npy", np.array([[{}]], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="not a usable"):
        read_ticket(tmp_path / "head_mask.npy", bert())


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
        with pytest.raises(ValueError, match=r"must be a \.npy file with another name than mlp_mask\.npy"):
            to_head_mask(whole, tmp_path / "mlp_mask.npy", model)
        assert not list(tmp_path.iterdir())


def test_convert_writes_and_reads_both(tmp_path: Path) -> None:
    bert().save_pretrained(tmp_path / "model")
    good().save(tmp_path / "ticket.safetensors")
    model = ["--model", str(tmp_path / "model")]
    for kind, name in (("head-masks", "head_mask.npy"), ("super-tickets", "heads_to_mask.json")):
        written, back = str(tmp_path / name), tmp_path / f"{kind}.safetensors"
        assert app.main(["convert", str(tmp_path / "ticket.safetensors"), written, "--to", kind, *model]) == 0
        assert app.main(["convert", written, str(back), *model]) == 0
        assert Ticket.load(back) == good()
