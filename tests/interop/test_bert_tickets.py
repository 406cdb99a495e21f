"""Tickets of BERT-Tickets and SMP: read as their own scripts wrote them, written as those read them."""

from __future__ import annotations

import contextlib
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from sparsebert.bert import prunable, resolve, structure
from sparsebert.interop.bert_tickets import (
    from_bert_tickets,
    from_smp,
    read_ticket,
    to_bert_tickets,
    to_smp,
    to_torch_prune_,
)
from sparsebert.pruning import prune
from sparsebert.tickets.ticket import Ticket

LAYERS = 11


def bert(kind: str = "BertModel", layers: int = LAYERS) -> Any:
    """Eleven layers, so that the order of the names is not that of the numbers; 6x6 matrices and 10x6."""
    import transformers

    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=11,
        hidden_size=6,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=10,
        max_position_embeddings=8,
    )
    return getattr(transformers, kind)(config)


def chen_pruned(model: Any, amount: float) -> dict[str, Tensor]:
    """What LT_glue.py does with a model, and the table it saves as mask.pt: global L1, the pooler too."""
    matrices = [(resolve(model, key), "weight") for key in prunable(model, include_pooler=True)]
    torch_prune.global_unstructured(matrices, pruning_method=torch_prune.L1Unstructured, amount=amount)
    return {name: value for name, value in model.state_dict().items() if "mask" in name}


def smp_packed(masks: dict[str, Tensor]) -> np.ndarray:
    """The last lines of SMP's to_mask.py, in plain numpy, for masks by full parameter name."""
    return np.packbits(np.concatenate([masks[name].numpy().ravel() for name in sorted(masks)]))


def without_an_mlp(ticket: Ticket) -> Ticket:
    """The ticket with the up-projection of layer 2 taken out whole."""
    gone = "encoder.layer.2.intermediate"
    masks = {
        key: torch.zeros_like(mask) if key.startswith(gone) else mask for key, mask in ticket.masks.items()
    }
    return Ticket(masks, removed=[gone])


class TestBertTickets:
    def test_a_mask_file_of_theirs_is_read(self, tmp_path: Path) -> None:
        model = bert("BertForSequenceClassification")
        state = chen_pruned(model, 0.3)
        torch.save(state, tmp_path / "mask.pt")
        ticket = from_bert_tickets(tmp_path / "mask.pt")
        assert ticket == Ticket.from_torch_prune(model)
        assert ticket.masks.keys() == set(prunable(model, include_pooler=True))
        total = sum(mask.numel() for mask in ticket.masks.values())
        assert ticket.sparsity == round(0.3 * total) / total
        assert ticket.metadata["source"] == "mask.pt"
        ticket.check(bert())

    def test_so_is_the_state_of_a_model_that_torch_pruned(self, tmp_path: Path) -> None:
        model = bert()
        chen_pruned(model, 0.5)
        torch_prune.random_unstructured(model.encoder.layer[3].output.dense, "bias", amount=2)
        torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
        ticket = from_bert_tickets(tmp_path / "pytorch_model.bin")
        assert ticket == Ticket.from_torch_prune(model)
        assert (~ticket.bias_masks["encoder.layer.3.output.dense"]).sum() == 2

    def test_and_one_saved_before_torch_1_6(self, tmp_path: Path) -> None:
        state = chen_pruned(bert(), 0.3)
        torch.save(state, tmp_path / "mask.pt", _use_new_zipfile_serialization=False)
        torch.save(state, tmp_path / "new.pt")
        assert from_bert_tickets(tmp_path / "mask.pt") == from_bert_tickets(tmp_path / "new.pt")

    def test_what_is_written_is_read_again(self, tmp_path: Path) -> None:
        ticket = prune(bert(), "random", sparsity=0.6, include_pooler=True)
        ticket = Ticket(ticket.masks, bias_masks={"pooler.dense": torch.tensor([1, 0, 1, 1, 0, 1]).bool()})
        to_bert_tickets(ticket, tmp_path / "mask.pt")
        assert from_bert_tickets(tmp_path / "mask.pt") == ticket

    def test_their_script_can_apply_what_is_written(self, tmp_path: Path) -> None:
        model = bert("BertForSequenceClassification")
        ticket = prune(model, "magnitude", sparsity=0.6, include_pooler=True)
        to_bert_tickets(ticket, tmp_path / "mask.pt")
        # glue_trans.py: mask_dict['bert....weight_mask'] into torch's CustomFromMask, all matrices.
        loaded = torch.load(tmp_path / "mask.pt", weights_only=True)
        for key in prunable(model, include_pooler=True):
            mask = loaded[f"bert.{key}.weight_mask"]
            torch_prune.CustomFromMask.apply(resolve(model, key), "weight", mask=mask)
            assert mask.dtype == torch.float32
        assert Ticket.from_torch_prune(model) == ticket

    @pytest.mark.parametrize(
        ("state", "complaint"),
        [
            ({}, r"holds no masks: its entries should end in \.weight_mask"),
            ({"bert.pooler.dense.weight": torch.ones(2, 2)}, "holds no masks"),
            ([torch.ones(2, 2)], "holds a list, not a table of masks"),
            ({"a.weight_mask": torch.full((2, 2), 0.5)}, r"'a\.weight_mask' holds values other than 0 and 1"),
            ({"a.weight_mask": torch.full((2, 2), torch.nan)}, "holds values other than 0 and 1"),
            ({"a.weight_mask": [1, 0]}, r"'a\.weight_mask' is no dense tensor"),
            ({"a.weight_mask": torch.ones(2)}, r"the mask of a must be \[out, in\]"),
            ({"bert.a.weight_mask": torch.ones(2, 2), "a.weight_mask": torch.ones(2, 2)}, "two masks for a"),
            ({"a/b.weight_mask": torch.ones(2, 2)}, "is not a module path"),
        ],
    )
    def test_a_table_without_proper_masks_is_refused(
        self, tmp_path: Path, state: Any, complaint: str
    ) -> None:
        torch.save(state, tmp_path / "mask.pt")
        with pytest.raises(ValueError, match=rf"mask\.pt.*{complaint}"):
            from_bert_tickets(tmp_path / "mask.pt")

    def test_a_pickled_model_is_refused(self, tmp_path: Path) -> None:
        torch.save(bert(), tmp_path / "model.pt")
        with pytest.raises(ValueError, match=r"model\.pt is refused: .* holds more than tensors") as refusal:
            from_bert_tickets(tmp_path / "model.pt")
        assert "\n" not in str(refusal.value)

    @pytest.mark.parametrize("saved_by", ["torch", "pickle"])
    def test_code_in_a_file_is_not_run(self, tmp_path: Path, saved_by: str) -> None:
        class Hostile:
            def __reduce__(self) -> Any:
                return os.mkdir, (str(tmp_path / "ran"),)

        path = tmp_path / "mask.pt"
        if saved_by == "torch":
            torch.save({"a.weight_mask": Hostile()}, path)
        else:
            path.write_bytes(pickle.dumps({"a.weight_mask": Hostile()}, protocol=2))
        with pytest.raises(ValueError, match=r"mask\.pt is refused"):
            from_bert_tickets(path)
        assert not (tmp_path / "ran").exists()

    def test_a_file_that_is_cut_off_is_refused_wherever_it_ends(self, tmp_path: Path) -> None:
        torch.save(chen_pruned(bert(layers=1), 0.3), tmp_path / "whole.pt")
        whole = (tmp_path / "whole.pt").read_bytes()
        for length in [0, 1, 5, 100, len(whole) // 2, len(whole) - 1]:
            (tmp_path / "cut.pt").write_bytes(whole[:length])
            with pytest.raises(ValueError, match=r"cut\.pt is (cut off|refused)") as refusal:
                from_bert_tickets(tmp_path / "cut.pt")
            assert "\n" not in str(refusal.value)

    @pytest.mark.filterwarnings("ignore:Detected pickle protocol")
    def test_damage_anywhere_costs_one_line_or_nothing(self, tmp_path: Path) -> None:
        torch.save(chen_pruned(bert(layers=1), 0.3), tmp_path / "whole.pt")
        whole = (tmp_path / "whole.pt").read_bytes()
        random = np.random.default_rng(0)
        for position in random.integers(len(whole), size=300):
            damaged = bytearray(whole)
            damaged[position] ^= int(random.integers(1, 256))
            (tmp_path / "mask.pt").write_bytes(damaged)
            with contextlib.suppress(ValueError):
                from_bert_tickets(tmp_path / "mask.pt")
                continue
            with pytest.raises(ValueError, match=r"mask\.pt[ :]") as refusal:
                from_bert_tickets(tmp_path / "mask.pt")
            assert "\n" not in str(refusal.value)

    def test_removed_modules_cannot_be_said(self, tmp_path: Path) -> None:
        ticket = without_an_mlp(prune(bert(), "random", sparsity=0.5))
        with pytest.raises(ValueError, match=r"a mask\.pt cannot say .* encoder\.layer\.2\.intermediate"):
            to_bert_tickets(ticket, tmp_path / "mask.pt")
        assert not list(tmp_path.iterdir())


class TestTorchPrune:
    def test_a_model_pruned_with_a_ticket_gives_the_ticket(self) -> None:
        model = bert("BertForSequenceClassification")
        ticket = prune(model, "random", sparsity=0.5)
        first = next(iter(ticket.masks))
        ticket = Ticket(ticket.masks, bias_masks={first: torch.tensor([1, 0, 1, 1, 0, 1]).bool()})
        assert to_torch_prune_(ticket, model) is model
        assert Ticket.from_torch_prune(model) == ticket
        zeroed = ticket.apply_(bert("BertForSequenceClassification"))
        for key in ticket.masks:
            assert torch.equal(resolve(model, key).weight, resolve(zeroed, key).weight)
            assert torch.equal(resolve(model, key).bias, resolve(zeroed, key).bias)

    def test_a_second_ticket_leaves_what_both_keep(self) -> None:
        model = bert()
        first, second = (prune(model, "random", sparsity=0.5, seed=seed) for seed in (1, 2))
        to_torch_prune_(second, to_torch_prune_(first, model))
        assert Ticket.from_torch_prune(model) == first & second

    def test_what_does_not_fit_leaves_the_model_alone(self) -> None:
        model = bert()
        ticket = prune(bert(layers=2), "random", sparsity=0.5)
        with pytest.raises(ValueError, match="ticket of another model"):
            to_torch_prune_(ticket, model)
        with pytest.raises(ValueError, match=r"torch\.nn\.utils\.prune cannot say"):
            to_torch_prune_(without_an_mlp(prune(model, "random", sparsity=0.5)), model)
        assert not torch_prune.is_pruned(model)


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
            (bias, rf"no masks of biases; the ticket masks {first}'s"),
            (without_an_mlp(whole), "cannot say that whole modules are removed: encoder.layer.2.inter"),
            (prune(bert(layers=2), "random", sparsity=0.5), "ticket of another model"),
        ):
            with pytest.raises(ValueError, match=complaint):
                to_smp(ticket, tmp_path / "mask.npy", model)
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize(
        ("array", "complaint"),
        [
            (np.zeros(362, np.uint8), "362 bytes where the 66 encoder matrices of BertModel need 363"),
            (np.zeros(364, np.uint8), "364 bytes where"),
            (np.zeros(363, np.int8), r"one row of uint8 is expected, not int8 \[363\]"),
            (np.zeros((1, 363), np.uint8), r"not uint8 \[1, 363\]"),
            (np.array({"a": 1}), "no usable .npy file: .*pickle|Array can't be memory-mapped"),
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
        with pytest.raises(ValueError, match="no usable"):
            from_smp(tmp_path / "mask.npy", bert())


class TestAnyTicketFile:
    @pytest.fixture
    def ticket(self) -> Ticket:
        return prune(bert(), "random", sparsity=0.5)

    def test_each_kind_is_known_by_its_content(self, tmp_path: Path, ticket: Ticket) -> None:
        model = bert()
        ticket.save(tmp_path / "a")
        to_bert_tickets(ticket, tmp_path / "b")
        to_smp(ticket, tmp_path / "c", model)
        for name in "abc":
            assert read_ticket(tmp_path / name, model) == ticket
        assert read_ticket(tmp_path / "b") == ticket

    def test_ours_is_known_whatever_the_length_of_its_header(self, tmp_path: Path, ticket: Ticket) -> None:
        starts = set()
        for length in range(0, 256, 8):
            longer = Ticket(ticket.masks, metadata={"note": "x" * length})
            longer.save(tmp_path / "ticket")
            starts.add((tmp_path / "ticket").read_bytes()[0])
            assert read_ticket(tmp_path / "ticket") == ticket
        assert 0x80 in starts, "the first byte of a pickle"

    def test_an_array_of_bits_needs_its_model(self, tmp_path: Path, ticket: Ticket) -> None:
        to_smp(ticket, tmp_path / "mask.npy", bert())
        with pytest.raises(ValueError, match="without shapes: it needs the model it belongs to"):
            read_ticket(tmp_path / "mask.npy")

    @pytest.mark.parametrize("kind", ["ours", "mask.pt", "mask.npy"])
    def test_a_ticket_of_another_model_is_refused(self, tmp_path: Path, ticket: Ticket, kind: str) -> None:
        save = {
            "ours": lambda path: ticket.save(path),
            "mask.pt": lambda path: to_bert_tickets(ticket, path),
            "mask.npy": lambda path: to_smp(ticket, path, bert()),
        }
        save[kind](tmp_path / kind)
        with pytest.raises(ValueError, match=r"ticket of another model|bytes where"):
            read_ticket(tmp_path / kind, bert(layers=2))

    def test_what_is_no_ticket_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "text").write_text("mask")
        with pytest.raises(ValueError, match="not a usable ticket file"):
            read_ticket(tmp_path / "text")
        with pytest.raises(ValueError, match="is a folder"):
            read_ticket(tmp_path)
        with pytest.raises(FileNotFoundError):
            read_ticket(tmp_path / "none")


@pytest.mark.parametrize("writer", [to_bert_tickets, lambda t, path: to_smp(t, path, bert())])
def test_what_was_there_stays_until_the_new_file_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: Any
) -> None:
    path = tmp_path / "mask"
    path.write_text("before")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        writer(prune(bert(), "random", sparsity=0.5), path)
    assert path.read_text() == "before"
    assert [each.name for each in tmp_path.iterdir()] == ["mask"]


def odd_model() -> nn.Module:
    """One layer with 9 FFN neurons of 5 inputs: no whole number of bytes."""
    import transformers

    config = transformers.BertConfig(
        vocab_size=11, hidden_size=5, num_hidden_layers=1, num_attention_heads=1, intermediate_size=9
    )
    return transformers.BertModel(config)
