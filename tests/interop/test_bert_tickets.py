"""``mask.pt`` of BERT-Tickets: read as their scripts wrote it, written as those read it."""

from __future__ import annotations

import contextlib
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.utils import prune as torch_prune

from sparsebert.bert import prunable, resolve
from sparsebert.interop import read_ticket
from sparsebert.interop.bert_tickets import from_bert_tickets, to_bert_tickets
from sparsebert.pruning import prune
from sparsebert.tickets.ticket import Ticket
from tests.interop.models import bert, without_an_mlp


def chen_pruned(model: Any, amount: float) -> dict[str, Tensor]:
    """What LT_glue.py does with a model, and the table it saves as mask.pt: global L1, the pooler too."""
    matrices = [(resolve(model, key), "weight") for key in prunable(model, include_pooler=True)]
    torch_prune.global_unstructured(matrices, pruning_method=torch_prune.L1Unstructured, amount=amount)
    return {name: value for name, value in model.state_dict().items() if "mask" in name}


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

    @pytest.mark.parametrize(
        "prefix",
        [
            "module.",
            "_orig_mod.",
            "model.",
            "net.",
            "base_model.model.",
            "student.",
            "_orig_mod.module.model.",
        ],
    )
    @pytest.mark.parametrize("nested", [False, True])
    def test_names_of_wrappers_and_training_code(self, tmp_path: Path, prefix: str, nested: bool) -> None:
        model = bert("BertForSequenceClassification", layers=2)
        state: dict[str, Any] = {f"{prefix}{name}": mask for name, mask in chen_pruned(model, 0.3).items()}
        torch.save({"state_dict": state, "epoch": 1} if nested else state, tmp_path / "mask.pt")
        assert from_bert_tickets(tmp_path / "mask.pt") == Ticket.from_torch_prune(model)
        assert read_ticket(tmp_path / "mask.pt", model) == Ticket.from_torch_prune(model)

    def test_masks_below_a_sentence_transformer(self, tmp_path: Path) -> None:
        model = bert(layers=2)
        state = {f"0.auto_model.{name}": mask for name, mask in chen_pruned(model, 0.3).items()}
        torch.save(state, tmp_path / "mask.pt")
        assert from_bert_tickets(tmp_path / "mask.pt") == Ticket.from_torch_prune(model)

    def test_masks_in_a_safetensors_file(self, tmp_path: Path) -> None:
        model = bert(layers=2)
        chen_pruned(model, 0.3)
        save_file(
            {f"module.{name}": value for name, value in model.state_dict().items()},
            tmp_path / "m.safetensors",
        )
        assert read_ticket(tmp_path / "m.safetensors", model) == Ticket.from_torch_prune(model)

    def test_masks_of_two_encoders_keep_their_paths(self, tmp_path: Path) -> None:
        state = {
            f"{tower}.bert.{name}": mask
            for tower in ("query", "passage")
            for name, mask in chen_pruned(bert(layers=1), 0.3).items()
        }
        torch.save(state, tmp_path / "mask.pt")
        masks = from_bert_tickets(tmp_path / "mask.pt").masks
        assert "passage.bert.encoder.layer.0.output.dense" in masks
        assert len(masks) == 14

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
            ({}, r"holds no masks: no entry ends in \.weight_mask"),
            ({"bert.pooler.dense.weight": torch.ones(2, 2)}, "holds no masks"),
            ([torch.ones(2, 2)], "must hold a dict of masks, got a list"),
            ({"a.weight_mask": torch.full((2, 2), 0.5)}, r"'a\.weight_mask' holds values other than 0 and 1"),
            ({"a.weight_mask": torch.full((2, 2), torch.nan)}, "holds values other than 0 and 1"),
            ({"a.weight_mask": [1, 0]}, r"'a\.weight_mask' must be a dense tensor, got \[1, 0\]"),
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
        with pytest.raises(
            ValueError, match=r"model\.pt is refused: .* holds other objects than tensors"
        ) as refusal:
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
            with pytest.raises(ValueError, match=r"cut\.pt is (truncated|refused)") as refusal:
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
        with pytest.raises(ValueError, match=r"a mask\.pt cannot express .* encoder\.layer\.2\.intermediate"):
            to_bert_tickets(ticket, tmp_path / "mask.pt")
        assert not list(tmp_path.iterdir())
