"""Packed ``.npy`` masks of Static Model Pruning: read as its scripts write them, written as those do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sparsebert.bert import resolve, structure
from sparsebert.interop.smp import from_smp, to_smp
from sparsebert.pruning import prune
from sparsebert.tickets.ticket import Ticket
from tests.interop.models import LAYERS, bert, without_an_mlp


def smp_packed(masks: dict[str, Tensor]) -> np.ndarray:
    """The last lines of SMP's to_mask.py, in plain numpy, for masks by full parameter name."""
    return np.packbits(np.concatenate([masks[name].numpy().ravel() for name in sorted(masks)]))


def odd_model() -> nn.Module:
    """One layer with 9 FFN neurons of 5 inputs: no whole number of bytes."""
    import transformers

    config = transformers.BertConfig(
        vocab_size=11, hidden_size=5, num_hidden_layers=1, num_attention_heads=1, intermediate_size=9
    )
    return transformers.BertModel(config)


class TestSmp:
    def test_a_file_of_theirs_is_read_in_the_order_of_the_names(self, tmp_path: Path) -> None:
        model = bert()
        random = prune(model, "random", sparsity=0.5)
        theirs = {f"bert.{key}.mask_scores": mask for key, mask in random.masks.items()}
        np.save(tmp_path / "mask.npy", smp_packed(theirs))
        ticket = from_smp(tmp_path / "mask.npy", model)
        assert ticket == random
        assert tuple(ticket.masks) == structure(model).linears
        assert ticket.metadata["source"] == "mask.npy"

    def test_layer_10_stands_between_layers_1_and_2(self, tmp_path: Path) -> None:
        model = bert()
        bits = np.zeros(LAYERS * 264, np.uint8)
        # The third layer of the file, its first matrix: attention.output.dense of layer 10.
        bits[2 * 264 : 2 * 264 + 36] = 1
        np.save(tmp_path / "mask.npy", np.packbits(bits))
        masks = from_smp(tmp_path / "mask.npy", model).masks
        kept = [key for key, mask in masks.items() if mask.any()]
        assert kept == ["encoder.layer.10.attention.output.dense"]
        assert masks[kept[0]].all()

    def test_what_is_written_is_what_theirs_writes(self, tmp_path: Path) -> None:
        model = bert("BertForSequenceClassification")
        ticket = prune(model, "magnitude", sparsity=0.7)
        to_smp(ticket, tmp_path / "mask.npy", model)
        theirs = {f"bert.{key}.mask_scores": mask for key, mask in ticket.masks.items()}
        written = np.load(tmp_path / "mask.npy")
        assert written.dtype == np.uint8
        assert np.array_equal(written, smp_packed(theirs))
        assert from_smp(tmp_path / "mask.npy", bert()) == ticket

    def test_no_other_matrices_biases_or_removed_modules_fit(self, tmp_path: Path) -> None:
        model = bert()
        whole = prune(model, "random", sparsity=0.5)
        first = next(iter(whole.masks))
        pooled = prune(model, "random", sparsity=0.5, include_pooler=True)
        part = Ticket({key: mask for key, mask in whole.masks.items() if key != first})
        bias = Ticket(whole.masks, bias_masks={first: torch.ones(6, dtype=torch.bool)})
        for ticket, complaint in (
            (pooled, r"the ticket also masks pooler\.dense"),
            (part, rf"the ticket leaves out {first}"),
            (bias, rf"cannot express bias masks; the ticket masks the bias of {first}"),
            (without_an_mlp(whole), "removed modules; the ticket removes encoder.layer.2.inter"),
            (prune(bert(layers=2), "random", sparsity=0.5), "ticket of another model"),
        ):
            with pytest.raises(ValueError, match=complaint):
                to_smp(ticket, tmp_path / "mask.npy", model)
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize(
        ("array", "complaint"),
        [
            (np.zeros(362, np.uint8), "holds 362 bytes; the 66 encoder matrices of BertModel need 363"),
            (np.zeros(364, np.uint8), "holds 364 bytes; "),
            (np.zeros(363, np.int8), r"must be a .npy file with one row of uint8, got int8 \[363\]"),
            (np.zeros((1, 363), np.uint8), r"got uint8 \[1, 363\]"),
            (np.array({"a": 1}), "not a usable .npy file: .*pickle|Array can't be memory-mapped"),
        ],
    )
    def test_another_array_is_refused(self, tmp_path: Path, array: np.ndarray, complaint: str) -> None:
        np.save(tmp_path / "mask.npy", array)
        with pytest.raises(ValueError, match=rf"mask\.npy.*{complaint}") as refusal:
            from_smp(tmp_path / "mask.npy", bert())
        assert "\n" not in str(refusal.value)

    def test_bits_beyond_the_last_weight_are_refused(self, tmp_path: Path) -> None:
        model = odd_model()
        bits = sum(resolve(model, key).weight.numel() for key in structure(model).linears)
        assert bits % 8
        np.save(tmp_path / "mask.npy", np.full(-(-bits // 8), 0xFF, np.uint8))
        with pytest.raises(ValueError, match="has bits set beyond its last weight"):
            from_smp(tmp_path / "mask.npy", model)

    def test_what_is_no_array_is_refused(self, tmp_path: Path) -> None:
        np.save(tmp_path / "whole.npy", np.zeros(363, np.uint8))
        whole = (tmp_path / "whole.npy").read_bytes()
        for content in (b"", b"text", whole[:5], whole[:9], whole[:100], whole[:-1]):
            (tmp_path / "mask.npy").write_bytes(content)
            with pytest.raises(ValueError, match=r"mask\.npy") as refusal:
                from_smp(tmp_path / "mask.npy", bert())
            assert "\n" not in str(refusal.value)

    def test_a_header_that_promises_terabytes_costs_a_message(self, tmp_path: Path) -> None:
        np.save(tmp_path / "mask.npy", np.zeros(363, np.uint8))
        data = (tmp_path / "mask.npy").read_bytes()
        (tmp_path / "mask.npy").write_bytes(data.replace(b"(363,), }          ", b"(363000000000000,),}"))
        with pytest.raises(ValueError, match="not a usable"):
            from_smp(tmp_path / "mask.npy", bert())
