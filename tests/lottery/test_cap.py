"""CAP as a run: three methods, their banks and snapshots, and runs that are killed."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from sparsebert import results
from sparsebert.lottery import loop
from sparsebert.lottery.experiment import Experiment, RunConfig
from sparsebert.lottery.loop import run
from sparsebert.lottery.method import lottery_method
from sparsebert.mask_learning import contrastive_loss as terms
from sparsebert.tickets.ticket import Ticket
from sparsebert.training import contrastive as part
from sparsebert.training.distillation import Distillation, Teacher
from sparsebert.training.representation_bank import RepresentationBank
from tests.lottery import tiny
from tests.lottery.killing import Killed, dying
from tests.lottery.test_mask_learning import assert_same

METHODS: dict[str, dict[str, Any]] = {
    "cap": {"sparsity": 0.7, "snapshot_every": 2},
    "cap-soft": {"sparsity": None, "threshold": 0.5, "regularisation": 1.0, "snapshot_every": 2},
    "cap-structured": {"sparsity": 0.5, "granularity": "head+neuron", "step": 0.25, "batches": 2},
}


def config_of(method: str, **changes: Any) -> RunConfig:
    taught = {"distillation": Distillation(0.9), "negatives": 12, "label_weight": 1.0}
    chosen = {"scope": lottery_method(method).scope, **taught, **METHODS[method], **changes}
    return tiny.request(method, **chosen)


def experiment(**changes: Any) -> Experiment:
    return replace(tiny.experiment(), **{"teacher": tiny.teacher(), **changes})


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int]]:
    """Examples, encoders and negatives of each term."""
    found: list[tuple[int, int, int]] = []

    def spy(own: Tensor, batch: Any, others: Any, temperature: float) -> Any:
        found.append((len(own), batch.representations.shape[1], len(others.ids)))
        return terms.contrastive_terms(own, batch, others, temperature)

    monkeypatch.setattr(part, "contrastive_terms", spy)
    return found


@pytest.mark.parametrize("method", METHODS)
def test_a_run(tmp_path: Path, method: str) -> None:
    rows = run(experiment(), config_of(method), tmp_path)
    ticket = Ticket.load(tmp_path / "ticket.safetensors")
    assert rows[-1]["sparsity"] == ticket.sparsity
    if (sparsity := METHODS[method]["sparsity"]) is not None:
        assert ticket.sparsity == pytest.approx(sparsity, abs=1e-9)
    assert 0 < ticket.sparsity < 1
    assert not (tmp_path / "round-00" / "banks").exists()


def test_there_are_terms_of_three_banks_and_snapshots_share_their_negatives(
    tmp_path: Path, used: list[tuple[int, int, int]]
) -> None:
    """Seven steps, snapshots after the second, the fourth and the sixth."""
    run(experiment(), config_of("cap"), tmp_path)
    first, own = (8, 1, 12), [(8, 1, 12), (8, 2, 6), (8, 3, 4)]
    assert used == [first, first] * 2 + [first, first, own[0]] * 2 + [first, first, own[1]] * 2 + [
        first,
        first,
        own[2],
    ]


def test_by_default_there_is_a_snapshot_an_epoch(tmp_path: Path, used: list[tuple[int, int, int]]) -> None:
    run(experiment(), config_of("cap", snapshot_every=None, steps=12, banks="snapshots"), tmp_path)
    assert [encoders for _, encoders, _ in used] == [1] * 5 + [2] * 2  # 40 examples are 5 batches


def test_structured_stages_begin_with_a_snapshot_of_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, used: list[tuple[int, int, int]]
) -> None:
    written: list[str] = []
    write = RepresentationBank.write
    monkeypatch.setattr(
        RepresentationBank,
        "write",
        lambda self, name, *rest: written.append(name) or write(self, name, *rest),
    )
    rows = run(experiment(), config_of("cap-structured"), tmp_path)
    assert [row["sparsity"] for row in rows] == [0.25, 0.5]
    assert [row["source"] for row in rows] == ["start", "trained"]
    assert written == ["pretrained", "fine-tuned", "snapshot-000001"]
    assert used == [(8, 1, 12)] * (7 * 2 + 7 * 3)


def test_every_layer_keeps_a_head_and_both_kinds_lose_the_same_share(tmp_path: Path) -> None:
    run(experiment(), config_of("cap-structured"), tmp_path)
    ticket = Ticket.load(tmp_path / "ticket.safetensors")
    neurons = 0
    for layer in range(2):
        heads = ticket.masks[f"encoder.layer.{layer}.attention.self.query"].view(2, -1)
        assert heads.all(1).sum() == 1
        neurons += int(ticket.masks[f"encoder.layer.{layer}.intermediate.dense"].all(1).sum())
    assert neurons == 30


def test_examples_keep_near_to_what_the_model_made_of_them_at_first(tmp_path: Path) -> None:
    """With the instance term of the pre-trained bank alone, and without it."""

    def kept(weight: float) -> float:
        ours = tiny.experiment(dropout=0.0)
        ids = tiny.collate(tiny.examples())["input_ids"]
        before = ours.model.eval().bert(input_ids=ids).pooler_output
        request = config_of(
            "cap",
            instance_weight=weight,
            label_weight=0.0,
            banks="pretrained",
            distillation=None,
            steps=30,
            sparsity=0.3,
            negatives=40,
        )
        run(ours, request, tmp_path / str(weight))
        after = ours.model.eval().bert(input_ids=ids).pooler_output
        near = torch.nn.functional.normalize(after, dim=-1) @ torch.nn.functional.normalize(before, dim=-1).T
        return float((near.argmax(1) == torch.arange(40)).float().mean())

    assert kept(10.0) > kept(0.0) + 0.2


@pytest.mark.parametrize("method", METHODS)
def test_interrupted_at_any_batch(tmp_path: Path, method: str) -> None:
    """Five batches encode the data with each encoder; checkpoints are after the third and the sixth."""
    run(experiment(), config_of(method), tmp_path / "whole")
    for session, batch in enumerate((3, 8, 13, 14, 17, 6, 9, 7, 12, None)):
        torch.manual_seed(session)
        with contextlib.suppress(Killed):
            run(experiment(collate=dying(tiny.collate, batch)), config_of(method), tmp_path / "parts")
            break
    rows = results.read(tmp_path / "parts" / "log.jsonl", "round")
    assert sum(row["sessions"] for row in rows) > 4
    assert_same(tmp_path / "parts", tmp_path / "whole")


@pytest.mark.parametrize("method", METHODS)
def test_interrupted_after_the_last_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    run(experiment(), config_of(method), tmp_path / "whole")

    def killed(*arguments: Any, **options: Any) -> Any:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(loop._Run, "_close_round", killed)
        with pytest.raises(Killed):
            run(experiment(), config_of(method), tmp_path / "parts")
    run(experiment(), config_of(method), tmp_path / "parts")
    assert_same(tmp_path / "parts", tmp_path / "whole")


def test_a_span_has_the_term_of_instances_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import BertForQuestionAnswering

    found: list[Tensor | None] = []

    def spy(*arguments: Any) -> Any:
        both = terms.contrastive_terms(*arguments)
        found.append(both[1])
        return both

    monkeypatch.setattr(part, "contrastive_terms", spy)

    def spans(chosen: list[dict[str, Any]]) -> dict[str, Tensor]:
        batch = tiny.collate(chosen)
        where = batch.pop("labels")
        return {**batch, "start_positions": where, "end_positions": where + 1}

    def model(seed: int) -> Any:
        torch.manual_seed(seed)
        return BertForQuestionAnswering(tiny.model().config)

    ours = Experiment(model(0), tiny.examples(), spans, lambda model: {"f1": 0.0}, teacher=Teacher(model(1)))
    (row,) = run(ours, config_of("cap"), tmp_path)
    assert row["sparsity"] == pytest.approx(0.7)
    assert found
    assert set(found) == {None}


def test_accumulated_batches_and_mixed_precision(tmp_path: Path) -> None:
    split = {"batch_size": 4, "gradient_accumulation": 2, "group_by_length": True, "precision": "bf16"}
    (row,) = run(experiment(), config_of("cap", **split), tmp_path)
    assert row["sparsity"] == pytest.approx(0.7)


class TestRefusals:
    @pytest.mark.parametrize(
        ("method", "changes", "message"),
        [
            ("cap", {"banks": "pretrained,snapshot"}, "unknown bank 'snapshot'.*did you mean 'snapshots'"),
            ("cap", {"contrast_temperature": 0.0}, "contrast_temperature must be positive, got 0.0"),
            ("cap", {"label_weight": -1.0}, "label_weight must be at least 0"),
            ("cap", {"snapshot_every": 0}, "snapshot_every must be at least 1, got 0"),
            ("cap-soft", {"sparsity": 0.5}, "decides the sparsity"),
            ("cap-structured", {"granularity": "head"}, "must be head.neuron, got 'head'"),
            ("cap-structured", {"rewind": "pretrained"}, "omit rewind and head"),
            ("cap-structured", {"sparsity": 0.0}, "sparsity must be above 0, got 0"),
            ("cap-structured", {"batches": 0}, "batches must be at least 1"),
        ],
    )
    def test_options(self, method: str, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            config_of(method, **changes)

    @pytest.mark.parametrize("method", METHODS)
    def test_data_and_teachers_before_anything_is_written(self, tmp_path: Path, method: str) -> None:
        def scores(chosen: list[Any]) -> dict[str, Tensor]:
            batch = tiny.collate(chosen)
            return {**batch, "labels": batch["labels"].float()}

        def words(chosen: list[Any]) -> dict[str, Tensor]:
            batch = tiny.collate(chosen)
            return {**batch, "labels": batch["input_ids"]}

        def wider() -> Teacher:
            config = tiny.model().config
            return Teacher(type(tiny.model())(type(config)(**{**config.to_dict(), "hidden_size": 24})))

        for changes, message in (
            ({"collate": scores}, "contrasts examples by class labels, got scores"),
            ({"collate": words}, "by class labels, got words"),
            ({"teacher": wider()}, "the teacher's have 24 features, the model's 20"),
        ):
            with pytest.raises(ValueError, match=message):
                run(experiment(**changes), config_of(method), tmp_path / "run")
        with pytest.raises(ValueError, match="name one as the teacher, or leave 'fine-tuned' out"):
            run(tiny.experiment(), config_of(method, distillation=None), tmp_path / "run")
        assert not (tmp_path / "run").exists()
