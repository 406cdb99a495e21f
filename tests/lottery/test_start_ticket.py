"""Runs that start from a ticket: where each method starts, what the records say, kills, and refusals."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sparsebert import results
from sparsebert.bert import prunable, resolve, structure
from sparsebert.lottery.experiment import RunConfig
from sparsebert.lottery.loop import run
from sparsebert.lottery.run_context import RunContext
from sparsebert.pruning import prune
from sparsebert.pruning.head_mlp_masks import UnitMasks
from sparsebert.tickets.provenance import weight_hash
from sparsebert.tickets.ticket import Ticket

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from sparsebert.lottery.method import lottery_method, lottery_methods, starting_methods
from tests.lottery import multi_task_tiny, tiny
from tests.lottery.killing import Killed, dying

UNITS: dict[str, Any] = {"granularity": "head+neuron", "scope": "type", "batches": 2}


@pytest.fixture(scope="module")
def start() -> Ticket:
    return prune(tiny.model(), sparsity=0.4)


def config_of(method: str, sparsity: float | None, start: Ticket | None, **changes: Any) -> RunConfig:
    defaults = {"scope": lottery_method(method).scope} if "scope" not in changes else {}
    return replace(tiny.request(method, sparsity, **defaults, **changes), start_ticket=start)


def tickets(out: Path) -> list[Ticket]:
    return [Ticket.load(path) for path in sorted(out.glob("round-*/ticket.safetensors"))]


class TestIterativePruning:
    @pytest.mark.parametrize("method", ["imp", "standard"])
    def test_the_first_round_trains_the_ticket_and_what_is_pruned_stays_pruned(
        self, tmp_path: Path, start: Ticket, method: str
    ) -> None:
        rows = run(tiny.experiment(), config_of(method, 0.7, start), tmp_path)
        assert [row["sparsity"] for row in rows] == [0.4, 0.5, 0.6, 0.7]
        assert [row["source"] for row in rows] == ["given", "trained", "trained", "trained"]
        first, *later = tickets(tmp_path)
        assert first == start
        for ticket in later:
            assert ticket & start == ticket

    @pytest.mark.parametrize(
        ("share", "target", "expected"),
        [
            ({}, 0.65, [0.4, 0.5, 0.6, 0.65]),
            ({"step": 0.3}, 0.9, [0.4, 0.6, 0.9]),
            ({"step": 0.2, "share": "remaining"}, 0.5, [0.4, 0.488, 0.5]),
            ({}, 0.4, [0.4]),
            ({}, 0.4003, [0.4]),
        ],
        ids=["tenths", "thirds", "of the rest", "reached", "reached as printed"],
    )
    def test_rounds_at_or_below_the_tickets_sparsity_are_left_out(
        self, start: Ticket, share: dict[str, Any], target: float, expected: list[float]
    ) -> None:
        rounds = config_of("imp", target, start, **share).rounds
        assert [float(each.sparsity) for each in rounds] == pytest.approx(expected)

    def test_every_round_rewinds_to_the_weights_of_the_model(self, tmp_path: Path, start: Ticket) -> None:
        """With a learning rate of almost 0, training ends where it began."""
        run(tiny.experiment(), config_of("imp", 0.6, start, learning_rate=1e-30), tmp_path)
        trained, before = type(tiny.model()).from_pretrained(tmp_path / "model"), tiny.model()
        for key, mask in Ticket.load(tmp_path / "ticket.safetensors").masks.items():
            expected = resolve(before, key).weight.masked_fill(~mask, 0)
            torch.testing.assert_close(resolve(trained, key).weight, expected)

    def test_a_step_to_rewind_to_is_one_of_the_first_round(self, tmp_path: Path, start: Ticket) -> None:
        rows = run(tiny.experiment(), config_of("imp", 0.6, start, rewind="step", rewind_step=2), tmp_path)
        assert [row["first_step"] for row in rows] == [0, 2, 2]

    def test_several_tasks_start_from_one_ticket(self, tmp_path: Path) -> None:
        start = prune(multi_task_tiny.experiment().model, sparsity=0.4)
        config = config_of("multi-task", 0.6, start, step=0.2)
        rows = run(multi_task_tiny.experiment(), config, tmp_path)
        assert [row["sparsity"] for row in rows] == [0.4, 0.6]
        assert tickets(tmp_path)[0] == start

    def test_a_ticket_of_some_matrices_keeps_the_others_whole(self, tmp_path: Path) -> None:
        neurons = prune(tiny.model(), sparsity=0.5, granularity="neuron")
        rows = run(tiny.experiment(), config_of("imp", 0.5, neurons, step=0.25), tmp_path)
        share = neurons.sparsity * 2400 / tiny.PRUNABLE
        assert [row["sparsity"] for row in rows] == pytest.approx([share, 0.25, 0.5])
        assert tickets(tmp_path)[0].masks.keys() == set(prunable(tiny.model()))


class TestImportance:
    def test_units_of_the_ticket_stay_pruned(self, tmp_path: Path) -> None:
        start = prune(tiny.model(), "random", sparsity=0.25, granularity="head+neuron", scope="type")
        rows = run(tiny.experiment(), config_of("importance", 0.5, start, **UNITS), tmp_path)
        assert [row["source"] for row in rows] == ["given", "trained"]
        assert rows[1]["sparsity"] == 0.5
        last = tickets(tmp_path)[-1]
        assert last & start == last

    def test_a_ticket_of_the_sparsity_asked_for_is_only_trained(self, tmp_path: Path) -> None:
        start = prune(tiny.model(), "random", sparsity=0.5, granularity="head+neuron", scope="type")
        (row,) = run(tiny.experiment(), config_of("importance", 0.5, start, **UNITS), tmp_path)
        assert (row["source"], row["sparsity"]) == ("given", 0.5)

    def test_a_removed_mlp_stays_removed(self, tmp_path: Path) -> None:
        start = prune(tiny.model(), sparsity=0.5, granularity="mlp")
        chosen = {"granularity": "head+mlp", "scope": "type", "batches": 2}
        run(tiny.experiment(), config_of("importance", 0.5, start, **chosen), tmp_path)
        assert set(tickets(tmp_path)[-1].removed) == set(start.removed)

    def test_the_search_goes_on_from_the_units_of_the_ticket(self, tmp_path: Path) -> None:
        start = prune(tiny.model(), "random", sparsity=0.25, granularity="head+mlp", scope="type", seed=1)
        chosen = {"granularity": "head+mlp", "batches": 2, "threshold": 0.7}
        run(tiny.judged(), config_of("importance-search", None, start, **chosen), tmp_path)
        ticket = Ticket.load(tmp_path / "ticket.safetensors")
        first, found = UnitMasks.of(start, tiny.model()), UnitMasks.of(ticket, tiny.model())
        trace = ticket.metadata["search"]
        assert (trace[0]["heads"], trace[0]["mlps"]) == (int(first.heads.sum()), int(first.mlps.sum()))
        assert not (found.heads & ~first.heads).any()
        assert not (found.mlps & ~first.mlps).any()
        operations = [step["operation"] for step in ticket.metadata["history"]]
        assert operations == ["prune", "start", "search"]


class TestRecords:
    def test_rounds_and_tickets_say_where_the_run_started(self, tmp_path: Path, start: Ticket) -> None:
        rows = run(tiny.experiment(), config_of("imp", 0.5, start), tmp_path)
        described = {
            "method": "magnitude",
            "sparsity": 0.4,
            "masks_sha256": start.digest,
            "own_weights": None,
        }
        assert [row["start_ticket"] for row in rows] == [described, described]
        history = Ticket.load(tmp_path / "ticket.safetensors").metadata["history"]
        assert [step["operation"] for step in history] == ["prune", "start", "prune"]
        assert history[1] == {"operation": "start", **described}

    def test_a_run_that_starts_dense_says_so(self, tmp_path: Path) -> None:
        (row,) = run(tiny.experiment(), config_of("movement", 0.5, None), tmp_path)
        assert row["start_ticket"] is None

    def test_a_learned_ticket_has_the_history_of_its_start(self, tmp_path: Path, start: Ticket) -> None:
        (row,) = run(tiny.experiment(), config_of("movement", 0.7, start), tmp_path)
        assert row["start_ticket"]["masks_sha256"] == start.digest
        (ticket,) = tickets(tmp_path)
        assert [step["operation"] for step in ticket.metadata["history"]] == ["prune", "start", "learn"]
        assert ticket.metadata["model"]["weights"] == weight_hash(tiny.model())


class TestChangedWeights:
    """A ticket whose method has changed the weights that stay, as ALPS does."""

    def compensated(self, model: nn.Module, changed: nn.Module) -> Ticket:
        ticket = prune(model, sparsity=0.4)
        origin = ticket.metadata["model"]
        ticket.metadata["model"] = origin | {
            "weights": weight_hash(changed),
            "dense_weights": origin["weights"],
        }
        return Ticket(ticket.masks, metadata={**ticket.metadata, "method": "alps"})

    @pytest.mark.parametrize("own", [True, False])
    @pytest.mark.filterwarnings("error:alps changed")
    def test_the_run_says_which_weights_it_starts_from(self, tmp_path: Path, own: bool) -> None:
        changed = tiny.model(seed=5)
        start = self.compensated(tiny.model(), changed)
        experiment = replace(tiny.experiment(), model=changed if own else tiny.model())
        lines: list[str] = []
        rows = run(experiment, config_of("imp", 0.5, start), tmp_path, RunContext(lines.append))
        assert {row["start_ticket"]["own_weights"] for row in rows} == {own}
        expected = "starts from the weights that alps has changed" if own else "takes the mask alone"
        assert expected in lines[0]
        assert sum("alps" in line for line in lines) == 1


class TestKills:
    @pytest.mark.parametrize(
        ("method", "sparsity", "options"),
        [
            ("imp", 0.6, {}),
            ("standard", 0.6, {}),
            ("movement", 0.7, {}),
            ("gradual", 0.7, {}),
            ("smp", 0.7, {}),
            ("soft-movement", None, tiny.PENALISED["soft-movement"]),
        ],
    )
    def test_a_run_that_was_killed_ends_with_the_same_masks(
        self, tmp_path: Path, start: Ticket, method: str, sparsity: float | None, options: dict[str, Any]
    ) -> None:
        config = config_of(method, sparsity, start, **options)
        run(tiny.experiment(), config, tmp_path / "whole")
        for batch in (2, 5, 3, 6, None):
            with contextlib.suppress(Killed):
                experiment = replace(tiny.experiment(), collate=dying(tiny.collate, batch))
                run(experiment, config, tmp_path / "parts")
        whole, parts = tickets(tmp_path / "whole"), tickets(tmp_path / "parts")
        assert whole == parts
        assert [each.metadata["history"] for each in whole] == [each.metadata["history"] for each in parts]
        logs = [results.read(tmp_path / name / "log.jsonl", "round") for name in ("whole", "parts")]
        for name in ("metrics", "start_ticket"):
            assert [row[name] for row in logs[0]] == [row[name] for row in logs[1]]
        assert sum(row["sessions"] for row in logs[1]) > len(logs[1])

    def test_another_start_ticket_is_another_run(self, tmp_path: Path, start: Ticket) -> None:
        run(tiny.experiment(), config_of("movement", 0.7, start), tmp_path)
        other = prune(tiny.model(), "random", sparsity=0.4)
        for ticket in (other, None):
            with pytest.raises(ValueError, match="holds a run with start_ticket 'sha256:"):
                run(tiny.experiment(), config_of("movement", 0.7, ticket), tmp_path)


class TestRefusals:
    def test_methods_without_a_start(self, start: Ticket) -> None:
        for method in set(lottery_methods()) - set(starting_methods()):
            with pytest.raises(ValueError, match=f"method {method} does not start from a ticket: omit the"):
                replace(_any_config(method, start), start_ticket=start)

    def test_the_methods_that_start_from_a_ticket(self) -> None:
        assert set(starting_methods()) == {
            "imp",
            "standard",
            "multi-task",
            "importance",
            "importance-search",
            "gradual",
            "movement",
            "soft-movement",
            "smp",
            "cap",
            "cap-soft",
        }

    @pytest.mark.parametrize("method", ["imp", "movement"])
    def test_a_ticket_sparser_than_the_run(self, tmp_path: Path, start: Ticket, method: str) -> None:
        with pytest.raises(ValueError, match=r"prunes 40\.0% of the weights, more than .* 30\.0%"):
            run(tiny.experiment(), config_of(method, 0.3, start), tmp_path)
        assert not list(tmp_path.iterdir())

    def test_a_ticket_that_prunes_nothing(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="prunes nothing: omit it"):
            run(tiny.experiment(), config_of("imp", 0.3, prune(tiny.model(), sparsity=0)), tmp_path)

    @pytest.mark.parametrize(
        ("method", "units"),
        [
            ("imp", {"granularity": "block", "block_size": (5, 5)}),
            ("movement", {"granularity": "neuron", "scope": "matrix"}),
            ("importance", UNITS),
        ],
    )
    def test_a_ticket_that_cuts_through_units(
        self, tmp_path: Path, start: Ticket, method: str, units: dict[str, Any]
    ) -> None:
        with pytest.raises(
            ValueError, match=r"not among the matrices that the run|parts of units of encoder"
        ):
            run(tiny.experiment(), config_of(method, 0.5, start, **units), tmp_path)
        assert not list(tmp_path.iterdir())

    def test_panels_that_are_not_filled(self, tmp_path: Path) -> None:
        blocks = prune(tiny.model(), sparsity=0.4, granularity="block", block_size=(5, 5))
        panels = {"granularity": "panel", "block_size": (5, 5), "round_to": 10}
        with pytest.raises(ValueError, match=r"start ticket's panels of .* do not keep multiples of 2 units"):
            run(tiny.experiment(), config_of("imp", 0.6, blocks, **panels), tmp_path)

    def test_a_pattern_needs_a_ticket_of_the_pattern(self, tmp_path: Path, start: Ticket) -> None:
        pattern = {"granularity": "1:2", "step": 0.5}
        fitting = prune(tiny.model(), granularity="1:2")
        (row,) = run(tiny.experiment(), config_of("imp", 0.5, fitting, **pattern), tmp_path / "fitting")
        assert row["sparsity"] == 0.5
        half = prune(tiny.model(), sparsity=0.5)
        with pytest.raises(ValueError, match="keeps fewer than 1 of 2 neighbours"):
            run(tiny.experiment(), config_of("imp", 0.5, half, **pattern), tmp_path / "half")
        with pytest.raises(ValueError, match="has a fixed sparsity and cannot have a round of 40% before it"):
            config_of("imp", 0.5, start, **pattern)

    def test_a_ticket_of_matrices_that_the_run_keeps(self, tmp_path: Path) -> None:
        pooler = prune(tiny.model(), sparsity=0.4, include_pooler=True)
        with pytest.raises(ValueError, match=r"start ticket prunes pooler\.dense, which is not among"):
            run(tiny.experiment(), config_of("imp", 0.6, pooler), tmp_path)

    def test_a_ticket_of_another_model(self, tmp_path: Path) -> None:
        key = structure(tiny.model()).linears[0]
        other = Ticket({key: torch.arange(16).view(4, 4) > 3})
        with pytest.raises(ValueError, match=r"ticket of another model: .* is 4x4 in the ticket"):
            run(tiny.experiment(), config_of("imp", 0.6, other), tmp_path)

    def test_a_scope_in_which_the_ticket_keeps_too_little(self, tmp_path: Path) -> None:
        masks = {
            key: torch.ones_like(resolve(tiny.model(), key).weight, dtype=torch.bool)
            for key in prunable(tiny.model())
        }
        key = next(iter(masks))
        masks[key][2:] = False
        with pytest.raises(ValueError, match=rf"keeps 10\.0% of {key}, but a round of 10\.0% .*allocate"):
            run(tiny.experiment(), config_of("imp", 0.6, Ticket(masks), scope="matrix"), tmp_path)

    def test_biases_that_training_would_bring_back(self, tmp_path: Path) -> None:
        biases = prune(tiny.model(), sparsity=0.4, include_biases=True)
        with pytest.raises(ValueError, match="prunes biases too, which method movement keeps"):
            run(tiny.experiment(), config_of("movement", 0.6, biases), tmp_path)

    def test_something_else_than_a_ticket(self) -> None:
        with pytest.raises(ValueError, match=r"must be a sparsebert\.Ticket, got a str"):
            replace(tiny.request(), start_ticket="ticket.safetensors")  # type: ignore[arg-type]


def _any_config(method: str, ticket: Ticket) -> RunConfig:
    lottery = lottery_method(method)
    decided = lottery.needs_ticket or lottery.decides_sparsity
    units: dict[str, Any] = {"granularity": lottery.granularity, "scope": lottery.scope}
    if method in ("bad-units", "random-units"):
        units = {}
    sparsity = None if decided else 0.0 if method == "dense" else 0.6
    return tiny.request(method, sparsity, ticket=ticket if lottery.needs_ticket else None, **units)
