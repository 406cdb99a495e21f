"""Head and MLP masks of bert-experiments, and what is no such mask."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sparsebert import cli
from sparsebert.bert import structure
from sparsebert.foreign import read_ticket
from sparsebert.pruning.unit_masks import UnitMasks
from sparsebert.ticket import Ticket

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
    assert cli.main(["convert", *arguments]) == 0
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
