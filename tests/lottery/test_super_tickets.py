"""Super tickets as a run: scored once, trained along a grid, the best one kept; and resumed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from sparsebert import results
from sparsebert.bert import structure
from sparsebert.lottery.experiment import Experiment
from sparsebert.lottery.loop import run
from sparsebert.lottery.method import lottery_method
from sparsebert.lottery.methods.super_tickets import released_counts
from sparsebert.lottery.run_context import RunContext
from sparsebert.pruning.gates import gate_sites
from sparsebert.pruning.head_mlp_masks import UnitMasks
from sparsebert.pruning.methods.head_importance import gate_importance
from sparsebert.tickets.ticket import Ticket
from tests.lottery.killing import Killed
from tests.lottery.tiny import experiment, request

CHOICES: dict[str, Any] = {"granularity": "head+mlp", "scope": "type", "batches": 2, "step": 0.25}
# Of the dense model and of the tickets of 25, 50 and 75 %: the second ticket is the best.
METRICS = (0.95, 0.6, 0.9, 0.7)


def scripted(metrics: tuple[float, ...] = METRICS, done: int = 0) -> Experiment:
    values = iter(metrics[done:])

    def evaluate(trained: nn.Module) -> dict[str, float]:
        return {"loss": 0.0, "accuracy": next(values)}

    return replace(experiment(), evaluate=evaluate, metric="accuracy")


def test_the_best_of_the_grid_is_the_run_s(tmp_path: Path) -> None:
    rows = run(scripted(), request("super-tickets", 0.75, **CHOICES), tmp_path)
    assert [row["source"] for row in rows] == ["all", "found", "found", "found"]
    (whole,) = results.read(tmp_path / "log.jsonl", "run")
    assert (whole["round"], whole["sparsity"], whole["metrics"]["accuracy"]) == (2, rows[2]["sparsity"], 0.9)
    chosen = Ticket.load(tmp_path / "ticket.safetensors")
    assert chosen == Ticket.load(tmp_path / "round-02" / "ticket.safetensors")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    for key, mask in chosen.masks.items():
        assert not weights[f"bert.{key}.weight"][~mask].any()
    sparser = Ticket.load(tmp_path / "round-03" / "ticket.safetensors")
    assert any(weights[f"bert.{key}.weight"][~mask].any() for key, mask in sparser.masks.items())
    assert not list(tmp_path.glob("round-*/trained.safetensors"))


def test_all_tickets_come_from_the_dense_model_s_scores(tmp_path: Path) -> None:
    run(scripted(), request("super-tickets", 0.75, **CHOICES), tmp_path)
    tickets = [Ticket.load(tmp_path / f"round-0{number}" / "ticket.safetensors") for number in (1, 2, 3)]
    for denser, sparser in pairwise(tickets):
        assert sparser & denser == sparser
    assert {ticket.metadata["method"] for ticket in tickets} == {"head-importance"}
    for ticket in tickets[:2]:  # the third has room for one head
        assert all(ticket.masks[f"encoder.layer.{i}.attention.self.query"].any() for i in range(2))
    assert len({ticket.metadata["model"]["weights"] for ticket in tickets}) == 1


def test_of_equal_ones_the_sparsest_and_never_the_dense_model(tmp_path: Path) -> None:
    run(scripted((1.0, 0.5, 0.5, 0.5)), request("super-tickets", 0.75, **CHOICES), tmp_path)
    (whole,) = results.read(tmp_path / "log.jsonl", "run")
    assert whole["round"] == 3


@pytest.mark.parametrize(
    ("where", "options"),
    [(1, {}), (2, {}), (3, {}), (2, {"grid": "released", "accumulate": True, "equal_batches": True})],
)
def test_killed_before_a_round_s_record_it_chooses_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: int, options: dict[str, Any]
) -> None:
    config = request("super-tickets", 0.75, **CHOICES, **options)
    run(scripted(), config, tmp_path / "whole")
    from sparsebert.lottery import loop

    calls, original = iter(range(where, -1, -1)), loop.ticket_fields

    def killed(*arguments: Any) -> Any:
        if next(calls) == 0:
            raise Killed
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "ticket_fields", killed)
        with pytest.raises(Killed):
            run(scripted(), config, tmp_path / "parts")
    run(scripted(done=where), config, tmp_path / "parts")
    whole, parts = (
        [out / "ticket.safetensors", out / "model" / "model.safetensors"]
        for out in (tmp_path / "whole", tmp_path / "parts")
    )
    assert whole[0].read_bytes() == parts[0].read_bytes()
    one, other = load_file(whole[1]), load_file(parts[1])
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"super-tickets must be head\+mlp"):
        request("super-tickets", 0.5)
    with pytest.raises(ValueError, match="between 0 and 1"):
        request("super-tickets", 0.5, **{**CHOICES, "step": 1.5})
    with pytest.raises(ValueError, match="batches must be at least 1"):
        request("super-tickets", 0.5, **{**CHOICES, "batches": 0})
    with pytest.raises(ValueError, match="did you mean 'released'"):
        request("super-tickets", 0.5, **CHOICES, grid="release")
    with pytest.raises(ValueError, match="scope must be type, got 'global'"):
        request("super-tickets", 0.5, **{**CHOICES, "scope": "global"}, grid="released")


def test_a_grid_whose_first_ticket_prunes_nothing_is_refused(tmp_path: Path) -> None:
    config = request("super-tickets", 0.5, **{**CHOICES, "step": None}, grid="released")
    message = "prunes no unit: 0.1 is less than one of 4 heads; choose a larger step or sparsity"
    with pytest.raises(ValueError, match=message):
        run(scripted(), config, tmp_path)


def test_a_share_of_the_heads_and_the_same_of_the_mlps_by_each_token_s_importance(tmp_path: Path) -> None:
    """In their grid 10 % of the heads go with 10 % of the MLPs, and each token counts by itself."""
    method = lottery_method("super-tickets", step=0.5, batches=2)
    assert method.scope == "type"
    config = request("super-tickets", 0.5, **{**CHOICES, "scope": method.scope, "step": 0.5})
    trained = experiment()
    (tmp_path / "round-00").mkdir()
    ticket = method.find_ticket(
        trained, config, tmp_path / "round-00", config.method.rounds(config.target)[1]
    )
    found = structure(trained.model)
    heads = sum(int(ticket.masks[keys[0]].view(2, -1).all(1).sum()) for keys in found.heads)
    mlps = sum(int(ticket.masks[keys[0]].all()) for keys in found.neurons)
    assert (heads, mlps) == (2, 1)
    batches = trained.first_batches(2, 8, 0)
    sites = gate_sites(found, "head") | gate_sites(found, "mlp")
    expected = gate_importance(trained.model, sites, batches, per_token=True)
    stored = load_file(tmp_path / "round-00" / "importance.safetensors")
    assert all(torch.equal(stored[name], each) for name, each in expected.items())


# The pairs of heads and FFNs of the published scripts: rewind_mnli.sh (BERT-base) and construct_mtl_mask.py
# (BERT-large), by the share of the heads.
BASE = {0.1: (14, 1), 0.2: (28, 2), 0.3: (43, 3), 0.4: (57, 4)}
BASE |= {0.5: (72, 5), 0.6: (86, 6), 0.7: (100, 7), 0.8: (115, 8)}
LARGE = {0.05: (19, 1), 0.1: (38, 2), 0.2: (76, 4), 0.3: (115, 6), 0.35: (134, 7), 0.4: (153, 8)}


def published_heads(percents: list[float], layers: int, heads: int, least: int = 1) -> list[int]:
    """Transcribe ``determine_masking_sequence`` of masking.py, summed up."""
    numbers = []
    for percent in percents:
        number = int(heads * layers * percent / 100)
        if number > heads * layers - least * layers:
            numbers.append(heads * layers - least * layers)
            break
        numbers.append(number)
    return sorted(numbers)


def published_masks(
    scores: Tensor, ffn_scores: Tensor, heads: int, ffns: int
) -> tuple[set[tuple[int, int]], set[int]]:
    """Transcribe ``what_to_mask`` of masking.py and the list of FFNs of train_rewind.py."""
    pairs = [(layer, head) for layer in range(len(scores)) for head in range(scores.shape[1])]
    pairs.sort(key=lambda pair: scores[pair])
    protected, free = set(), []
    for layer, head in reversed(pairs):
        if layer not in protected:
            protected.add(layer)
        else:
            free.insert(0, (layer, head))
    return set(free[:heads]), set(torch.argsort(ffn_scores.abs())[:ffns].tolist())


class TestReleasedGrid:
    @pytest.mark.parametrize(("layers", "heads", "pairs"), [(12, 12, BASE), (24, 16, LARGE)])
    def test_the_pairs_of_the_published_scripts(
        self, layers: int, heads: int, pairs: Mapping[float, tuple[int, int]]
    ) -> None:
        for share, expected in pairs.items():
            assert released_counts(Fraction(str(share)), layers, heads) == expected

    @pytest.mark.parametrize(("layers", "heads"), [(12, 12), (24, 16), (6, 12), (4, 3), (2, 2)])
    def test_any_number_of_heads_as_the_published_function(self, layers: int, heads: int) -> None:
        for percent in (2.5 * number for number in range(1, 40)):
            found, mlps = released_counts(Fraction(percent) / 100, layers, heads)
            assert [found] == published_heads([percent], layers, heads)
            assert mlps == int(percent * layers) // 120

    def test_its_tickets_keep_the_units_that_the_published_code_keeps(self, tmp_path: Path) -> None:
        """A BERT of 12 layers and 12 heads with random scores, ticket by ticket."""
        from transformers import BertConfig, BertModel

        shape = {
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "hidden_size": 12,
            "intermediate_size": 4,
        }
        model = BertModel(BertConfig(vocab_size=8, **shape))
        generator = torch.Generator().manual_seed(0)
        scores = torch.rand(12, 12, generator=generator).double().square()
        ffn_scores = torch.rand(12, 1, generator=generator).double()
        encoder = structure(model)
        stored = {keys[0]: scores[layer].clone() for layer, keys in enumerate(encoder.heads)}
        stored |= {keys[0]: ffn_scores[layer].clone() for layer, keys in enumerate(encoder.neurons)}
        (tmp_path / "round-00").mkdir()
        save_file(stored, tmp_path / "round-00" / "importance.safetensors")
        config = request("super-tickets", 0.8, granularity="head+mlp", scope="type", grid="released")
        method = config.method
        rounds = method.rounds(config.target)[1:]
        assert [each.title for each in rounds] == [f"without {share:.1%} of the heads" for share in BASE]
        normed = scores / (scores.norm(dim=1, keepdim=True) + 1e-20)
        for each, (heads, ffns) in zip(rounds, BASE.values(), strict=True):
            ticket = method.find_ticket(
                replace(experiment(), model=model), config, tmp_path / "round-00", each
            )
            kept = UnitMasks.of(ticket, model)
            pruned = {(layer, head) for layer, head in (~kept.heads).nonzero().tolist()}
            masked, masked_ffns = published_masks(normed, ffn_scores.flatten(), heads, ffns)
            assert (pruned, set((~kept.mlps).nonzero().flatten().tolist())) == (masked, masked_ffns)

    def test_a_whole_run_says_its_shares_and_records_the_sparsities(self, tmp_path: Path) -> None:
        said: list[str] = []
        options = {**CHOICES, "grid": "released", "equal_batches": True, "batches": 100}
        rows = run(scripted(), request("super-tickets", 0.75, **options), tmp_path, RunContext(said.append))
        assert any(line.startswith("round 2 of 4, without 25.0% of the heads") for line in said)
        kept = [UnitMasks.of(Ticket.load(tmp_path / row["ticket"]), experiment().model) for row in rows[1:]]
        assert rows[3]["search"] == {"pruned_heads": 2, "heads": 4, "pruned_mlps": 1, "mlps": 2}
        # A head is left in each layer.
        assert [(int((~each.heads).sum()), int((~each.mlps).sum())) for each in kept] == [
            (1, 0),
            (2, 0),
            (2, 1),
        ]


def test_the_step_of_each_grid() -> None:
    assert lottery_method("super-tickets").step == 0.05
    assert lottery_method("super-tickets", grid="released").step == 0.1
    assert lottery_method("super-tickets", grid="released", step=0.05).step == 0.05
