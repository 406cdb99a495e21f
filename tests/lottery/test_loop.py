"""The loop: exact levels as torch's own pruning finds them, exact rewinding, every method and unit."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import prune as torch_prune

from sparsebert.bert import resolve, structure
from sparsebert.pruning import prune
from sparsebert.tickets.ticket import Ticket
from sparsebert.training.snapshot import Snapshot, head_names

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from sparsebert.lottery import loop, round_training
from sparsebert.lottery.loop import run
from tests.lottery.tiny import PRUNABLE, experiment, model, request


@pytest.fixture
def beginnings(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """State and learning rate as each round's first step finds them: what training really begins with."""
    seen: list[dict[str, Any]] = []
    original = round_training.TicketTrainer

    class Watched(original):  # type: ignore[misc, valid-type]
        def training_step(self, module: nn.Module, *arguments: Any, **options: Any) -> Any:
            if not getattr(self, "_seen", False):
                self._seen = True
                states = self.optimizer.state
                seen.append(
                    {
                        "weights": Snapshot.of(self.model),
                        "step": self.state.global_step,
                        "rate": self.lr_scheduler.get_last_lr()[0],
                        "moments": any(
                            bool(value.any())
                            for state in states.values()
                            for name, value in state.items()
                            if name != "step"
                        ),
                    }
                )
            return super().training_step(module, *arguments, **options)

    monkeypatch.setattr(round_training, "TicketTrainer", Watched)
    return seen


def masked(weights: Snapshot, ticket: Ticket) -> Snapshot:
    """What a round that begins with these weights trains: the dead ones at zero."""
    other = model()
    weights.restore_(other)
    return Snapshot.of(ticket.apply_(other))


def tickets(out: Path) -> list[Ticket]:
    return [Ticket.load(path) for path in sorted(out.glob("round-*/ticket.safetensors"))]


class TestImp:
    def test_nine_rounds_prune_exact_tenths_of_the_original(self, tmp_path: Path) -> None:
        rows = run(experiment(), request(sparsity=0.9, steps=2), tmp_path)
        assert [row["kept"] for row in rows] == [PRUNABLE * (10 - r) // 10 for r in range(10)]
        assert [row["sparsity"] for row in rows] == [r / 10 for r in range(10)]
        for earlier, later in pairwise(tickets(tmp_path)):
            assert later & earlier == later  # what is pruned stays pruned

    def test_masks_are_those_of_torch_prune_as_chen_et_al_call_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls: list[tuple[dict[str, torch.Tensor], Ticket | None, Ticket]] = []

        def watched(
            model: nn.Module, *arguments: Any, ticket: Ticket | None = None, **options: Any
        ) -> Ticket:
            weights = {key: resolve(model, key).weight.detach().clone() for key in structure(model).linears}
            result = prune(model, *arguments, ticket=ticket, **options)
            if arguments and arguments[0] != "random":
                calls.append((weights, ticket, result))
            return result

        monkeypatch.setattr(loop, "prune", watched)
        run(experiment(), request(sparsity=0.9, steps=3), tmp_path)
        assert len(calls) == 9
        for number, (weights, ticket, result) in enumerate(calls):
            linears = {key: nn.Linear(weight.shape[1], weight.shape[0]) for key, weight in weights.items()}
            for key, linear in linears.items():
                linear.weight = nn.Parameter(weights[key])
                if ticket is not None:
                    torch_prune.custom_from_mask(linear, "weight", ticket.masks[key])
            torch_prune.global_unstructured(
                [(linear, "weight") for linear in linears.values()],
                pruning_method=torch_prune.L1Unstructured,
                amount=1 / (10 - number),
            )
            for key, linear in linears.items():
                assert torch.equal(linear.weight_mask.bool(), result.masks[key])

    def test_every_round_begins_with_the_pretrained_weights(
        self, tmp_path: Path, beginnings: list[dict[str, Any]]
    ) -> None:
        start = Snapshot.of(experiment().model)
        run(experiment(), request(head="rewind"), tmp_path)
        assert len(beginnings) == 4
        for each, ticket in zip(beginnings, tickets(tmp_path), strict=True):
            assert each["step"] == 0
            assert not each["moments"]
            assert each["rate"] == 1e-3
            other = model()
            each["weights"].restore_(other)
            masked(start, ticket).require_equal(other)

    def test_the_head_goes_on_if_it_is_kept(self, tmp_path: Path, beginnings: list[dict[str, Any]]) -> None:
        run(experiment(), request(head="keep"), tmp_path)
        head = head_names(model())
        first, second, third, _ = (each["weights"].tensors for each in beginnings)
        for name in head:
            assert not torch.equal(first[name], second[name])
            assert not torch.equal(second[name], third[name])
        base = [name for name in first if name not in head and "weight" not in name]
        assert all(torch.equal(first[name], third[name]) for name in base)

    def test_a_fresh_head_is_another_one_each_round(
        self, tmp_path: Path, beginnings: list[dict[str, Any]]
    ) -> None:
        run(experiment(), request(head="fresh"), tmp_path)
        heads = [each["weights"].tensors["classifier.weight"] for each in beginnings]
        assert len({tuple(head.flatten().tolist()) for head in heads}) == 4

    def test_the_schedule_spans_one_round_or_as_many_as_asked(
        self, tmp_path: Path, beginnings: list[dict[str, Any]]
    ) -> None:
        run(experiment(), request(sparsity=0.1, schedule_rounds=10), tmp_path / "ten")
        assert [each["rate"] for each in beginnings] == [1e-3, 1e-3]


class TestRewinding:
    def test_to_a_step_brings_back_weights_moments_and_schedule(
        self, tmp_path: Path, beginnings: list[dict[str, Any]]
    ) -> None:
        run(experiment(), request(rewind="step", rewind_step=2, head="rewind"), tmp_path)
        first, *rest = beginnings
        assert first["step"] == 0
        later = [masked(each["weights"], tickets(tmp_path)[-1]) for each in rest]
        for each, weights in zip(rest, later, strict=True):
            assert each["step"] == 2
            assert each["moments"]
            assert each["rate"] == pytest.approx(1e-3 * 5 / 7)
            other = model()
            weights.restore_(other)
            later[0].require_equal(other)
        assert not torch.equal(
            rest[0]["weights"].tensors["classifier.weight"], first["weights"].tensors["classifier.weight"]
        )

    def test_of_the_learning_rate_keeps_the_weights_and_forgets_the_moments(
        self, tmp_path: Path, beginnings: list[dict[str, Any]]
    ) -> None:
        run(experiment(), request(rewind="learning-rate", head="keep"), tmp_path)
        for earlier, later in pairwise(beginnings):
            assert later["rate"] == 1e-3
            assert not later["moments"]
            assert not torch.equal(
                earlier["weights"].tensors["bert.pooler.dense.bias"],
                later["weights"].tensors["bert.pooler.dense.bias"],
            )

    def test_none_is_one_run_under_one_schedule(
        self, tmp_path: Path, beginnings: list[dict[str, Any]]
    ) -> None:
        rows = run(experiment(), request("standard"), tmp_path)
        assert [row["sparsity"] for row in rows] == [0, 0.1, 0.2, 0.3]
        assert [each["step"] for each in beginnings] == [0, 7, 14, 21]
        assert [each["rate"] for each in beginnings] == pytest.approx([1e-3, 0.75e-3, 0.5e-3, 0.25e-3])
        assert [each["moments"] for each in beginnings] == [False, True, True, True]


class TestBaselines:
    @pytest.fixture
    def ticket(self) -> Ticket:
        return prune(model(), sparsity=0.6)

    def test_random_and_one_shot_and_snip_prune_before_they_train(
        self, tmp_path: Path, beginnings: list[dict[str, Any]]
    ) -> None:
        for name in ("random", "one-shot", "snip"):
            (row,) = run(experiment(), request(name, 0.6), tmp_path / name)
            assert row["kept"] == PRUNABLE * 4 // 10
            assert row["source"] == "start"
        found = [
            Ticket.load(tmp_path / name / "ticket.safetensors") for name in ("random", "one-shot", "snip")
        ]
        assert found[1] == prune(model(), sparsity=0.6)
        assert found[0] != found[1] != found[2]
        assert len(beginnings) == 3

    def test_snip_then_magnitude(self, tmp_path: Path) -> None:
        rows = run(experiment(), request("snip-imp", 0.7), tmp_path)
        assert [(row["source"], row["sparsity"]) for row in rows] == [
            ("start", 0.5),
            ("trained", 0.6),
            ("trained", 0.7),
        ]
        methods = [step["method"] for step in tickets(tmp_path)[-1].metadata["history"]]
        assert methods == ["snip", "magnitude", "magnitude"]

    def test_a_given_ticket_is_trained_as_it_is(
        self, tmp_path: Path, ticket: Ticket, beginnings: list[dict[str, Any]]
    ) -> None:
        run(experiment(), request("ticket", None, ticket=ticket), tmp_path)
        assert tickets(tmp_path) == [ticket]
        other = model()
        beginnings[0]["weights"].restore_(other)
        masked(Snapshot.of(model()), ticket).require_equal(other)

    def test_its_places_with_other_weights(
        self, tmp_path: Path, ticket: Ticket, beginnings: list[dict[str, Any]]
    ) -> None:
        for name in ("random-reinit", "shuffled"):
            run(experiment(), request(name, None, ticket=ticket, seed=3), tmp_path / name)
            assert tickets(tmp_path / name) == [ticket]
        fresh, shuffled = (each["weights"].tensors for each in beginnings)
        before = Snapshot.of(model()).tensors
        embeddings = "bert.embeddings.word_embeddings.weight"
        assert not torch.equal(fresh[embeddings], before[embeddings])
        assert torch.equal(shuffled[embeddings], before[embeddings])
        query = "bert.encoder.layer.0.attention.self.query.weight"
        assert not torch.equal(shuffled[query], before[query])

    def test_its_counts_at_other_places(self, tmp_path: Path, ticket: Ticket) -> None:
        run(experiment(), request("random-layerwise", None, ticket=ticket), tmp_path)
        (random,) = tickets(tmp_path)
        assert random.layer_sparsity == ticket.layer_sparsity
        assert random != ticket

    def test_dense(self, tmp_path: Path) -> None:
        (row,) = run(experiment(), request("dense", 0), tmp_path)
        assert row["kept"] == PRUNABLE


class TestUnits:
    @pytest.mark.parametrize(
        "units",
        [
            {"granularity": "block", "block_size": (5, 5)},
            {"granularity": "row"},
            {"granularity": "neuron"},
            {"granularity": "element", "scope": "matrix"},
            {"granularity": "element", "scope": "type"},
        ],
        ids=lambda units: "-".join(map(str, units.values())),
    )
    def test_any_units_and_scope(self, tmp_path: Path, units: dict[str, Any]) -> None:
        rows = run(experiment(), request(sparsity=0.4, step=0.2, steps=2, **units), tmp_path)
        assert [row["sparsity"] for row in rows] == pytest.approx([0, 0.2, 0.4], abs=0.01)
        assert rows[-1]["granularity"] == units["granularity"]

    def test_patterns_are_reached_in_one_step(self, tmp_path: Path) -> None:
        units = {"granularity": "2:4", "step": 0.5, "steps": 2}
        with pytest.raises(ValueError, match="fit"):
            run(experiment(), request(sparsity=0.5, **units), tmp_path / "a")  # 30 columns are no fours
        with pytest.raises(ValueError, match=r"means sparsity 0\.5, got"):
            run(experiment(), request(sparsity=0.6, **units | {"step": 0.6}), tmp_path / "b")
        with pytest.raises(ValueError, match="has a fixed sparsity and cannot have a round of 10% before it"):
            request(sparsity=0.5, granularity="2:4")
        assert not list(tmp_path.iterdir())

    def test_the_pooler_on_request(self, tmp_path: Path) -> None:
        rows = run(experiment(), request("one-shot", 0.5, include_pooler=True, steps=2), tmp_path)
        assert rows[0]["prunable"] == PRUNABLE + 400


@pytest.mark.gpu
@pytest.mark.parametrize("rewind", [{"rewind": "pretrained"}, {"rewind": "step", "rewind_step": 2}])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_on_a_gpu_rewinding_is_exact_and_counts_are_too(
    tmp_path: Path, rewind: dict[str, Any], precision: str
) -> None:
    rows = run(experiment(), request(device="auto", precision=precision, **rewind), tmp_path)
    assert [row["kept"] for row in rows] == [PRUNABLE * (10 - r) // 10 for r in range(4)]
    assert rows[-1]["memory"]["peak_gpu_bytes"] > 0
