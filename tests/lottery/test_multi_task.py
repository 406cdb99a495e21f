"""Tickets of several tasks: one encoder, one mask, a head each; batches in turn; exact when resumed."""

from __future__ import annotations

import random
import signal
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from transformers import BertForMaskedLM, BertForSequenceClassification, DistilBertConfig, DistilBertModel

from sparsebert import results
from sparsebert.bert import resolve, structure
from sparsebert.lottery.loop import run
from sparsebert.lottery.method import lottery_method
from sparsebert.tickets.ticket import Ticket
from sparsebert.training.multi_task_model import MultiTaskModel
from sparsebert.training.snapshot import Snapshot, fresh_head, head_names
from sparsebert.training.task_sampling import TaskMixture, TaskSampler, proportions_of
from tests.lottery import tiny
from tests.lottery.killing import Killed, dying
from tests.lottery.multi_task_tiny import collate_texts, experiment, experiments, texts
from tests.lottery.test_distributed import start as start_processes
from tests.lottery.test_resume import BATCHES, start


def model() -> MultiTaskModel:
    return MultiTaskModel.of({name: each.model for name, each in experiments().items()})


class TestModel:
    def test_the_heads_share_one_encoder(self) -> None:
        joined = model()
        keys = structure(joined).linears
        assert keys == structure(tiny.model()).linears
        assert structure(joined).prefix == "base"
        assert len({name for name, _ in joined.named_parameters() if "layer.0" in name}) == 16
        for name in ("words", "language"):
            for key in keys:
                assert resolve(joined.task_model(name), key).weight is resolve(joined, key).weight
        assert resolve(joined, "pooler.dense").weight.shape == (20, 20)

    @pytest.mark.parametrize("task", [0, 1])
    def test_each_answers_as_its_own_model_with_that_encoder(self, task: int) -> None:
        before = list(experiments().values())[task].model.eval()
        joined = model().eval()
        with torch.no_grad():
            for key, value in joined.base.state_dict().items():
                before.bert.state_dict().get(key, torch.empty_like(value)).copy_(value)
            ids = torch.randint(0, tiny.WORDS, (3, 5))
            assert torch.equal(joined(task=task, input_ids=ids).logits, before(input_ids=ids).logits)

    def test_the_decoder_stays_tied_to_the_embeddings(self) -> None:
        joined = model()
        language = joined.task_model("language")
        assert language.cls.predictions.decoder.weight is joined.base.embeddings.word_embeddings.weight
        assert not any("decoder.weight" in name for name in joined.state_dict())
        assert len(set(map(id, joined.parameters()))) == len(list(joined.parameters()))

    def test_gradients_of_every_task_reach_the_encoder_and_one_head(self) -> None:
        joined = model()
        batches = (tiny.collate(tiny.examples()[:4]), collate_texts(texts()[:4]))
        for task, batch in enumerate(batches):
            joined.zero_grad()
            joined(task=task, **batch).loss.backward()
            assert all(resolve(joined, key).weight.grad.any() for key in structure(joined).linears)
            for other, head in enumerate(joined.heads):
                own = [p for n, p in head.named_parameters() if "decoder.weight" not in n]
                assert all((p.grad is not None) == (other == task) for p in own)

    def test_heads_are_all_that_is_not_the_encoder(self) -> None:
        joined = model()
        names = head_names(joined)
        assert {name.split(".")[1] for name in names} == {"0", "1"}
        one, same, other = (fresh_head(joined, seed).tensors for seed in (1, 1, 2))
        assert torch.equal(one["heads.0.classifier.weight"], same["heads.0.classifier.weight"])
        assert not torch.equal(one["heads.0.classifier.weight"], other["heads.0.classifier.weight"])
        assert set(one) == set(names)

    def test_saved_as_transformers_load_each_task(self, tmp_path: Path) -> None:
        joined = model().eval()
        joined.save_pretrained(tmp_path)
        ids = torch.randint(0, tiny.WORDS, (3, 5))
        for task, cls in enumerate((BertForSequenceClassification, BertForMaskedLM)):
            loaded = cls.from_pretrained(tmp_path / ("words", "language")[task]).eval()
            with torch.no_grad():
                assert torch.equal(loaded(input_ids=ids).logits, joined(task=task, input_ids=ids).logits)

    def test_other_families_do_not_mix(self) -> None:
        other = DistilBertModel(DistilBertConfig(vocab_size=30, dim=20, n_heads=2, hidden_dim=30, n_layers=1))
        with pytest.raises(ValueError, match=r"need models of one family, got \['bert', 'distilbert'\]"):
            MultiTaskModel.of({"a": tiny.model(), "b": other})


class TestTurns:
    def test_equal_shares_alternate_whatever_the_sizes(self) -> None:
        assert list(TaskSampler([6, 30], proportions_of("equal", [6, 30]), 4, 0).batch_tasks()) == [
            0,
            1,
        ] * 4 + [0]

    @pytest.mark.parametrize(
        ("text", "shares"), [("2,1", [2, 1]), ("size", [30, 10]), ("1/3, 0.5", ["1/3", "1/2"])]
    )
    def test_other_shares_are_kept_at_every_moment(self, text: str, shares: list[Any]) -> None:
        expected = [Fraction(share) for share in shares]
        assert proportions_of(text, [30, 10]) == expected
        turns = list(TaskSampler([300, 100], expected, 4, 0).batch_tasks())
        for count in range(1, len(turns) + 1):
            for task, share in enumerate(expected):
                assert abs(turns[:count].count(task) - count * share / sum(expected)) < 1

    def test_batches_are_of_one_task_and_passes_come_one_after_the_other(self) -> None:
        sampler = TaskSampler([5, 30], proportions_of("equal", [5, 30]), 4, seed=3)
        order = list(sampler)
        assert len(order) == len(sampler) == 36
        batches = [order[i : i + 4] for i in range(0, 36, 4)]
        assert all(len({index < 5 for index in batch}) == 1 for batch in batches)
        small = [index for index in order if index < 5]
        for i in range(0, len(small) - 4, 5):
            assert sorted(small[i : i + 5]) == list(range(5))
        large = [index for index in order if index >= 5]
        assert len(set(large)) == len(large)

    def test_seed_and_epoch_decide(self) -> None:
        def order(seed: int, epoch: int) -> list[int]:
            sampler = TaskSampler([40, 24], proportions_of("size", [40, 24]), 8, seed)
            sampler.set_epoch(epoch)
            return list(sampler)

        assert order(1, 0) == order(1, 0)
        assert order(1, 0) != order(2, 0)
        assert order(1, 0) != order(1, 1)

    def test_items_say_their_task(self) -> None:
        mixture = TaskMixture({"a": "uvw", "b": "xy"}, "equal")
        assert [mixture[i] for i in range(len(mixture))] == [(0, "u"), (0, "v"), (0, "w"), (1, "x"), (1, "y")]

    @pytest.mark.parametrize("text", ["", "often", "1,-1", "1,0", "2", "1,2,3"])
    def test_proportions_that_make_no_sense_are_refused(self, text: str) -> None:
        with pytest.raises(ValueError, match="proportions"):
            proportions_of(text, [3, 3])
        if text not in ("2", "1,2,3"):
            with pytest.raises(ValueError, match="proportions must be"):
                lottery_method("multi-task", proportions=text)

    def test_a_task_without_examples_is_named(self) -> None:
        with pytest.raises(ValueError, match="task b needs at least one example"):
            TaskMixture({"a": [1], "b": []}, "equal")


def config_of(**changes: Any) -> Any:
    return tiny.request("multi-task", **changes)


class TestRuns:
    def test_one_mask_for_all_tasks_exact_and_with_the_usual_keys(self, tmp_path: Path) -> None:
        rows = run(experiment(), config_of(), tmp_path)
        assert [row["kept"] for row in rows] == [tiny.PRUNABLE * (10 - r) // 10 for r in range(4)]
        assert set(rows[0]["metrics"]) == {"accuracy", "language_accuracy"}
        ticket = Ticket.load(tmp_path / "ticket.safetensors")
        assert list(ticket.masks) == list(structure(tiny.model()).linears)
        ticket.check(tiny.model())
        for name, cls in (("words", BertForSequenceClassification), ("language", BertForMaskedLM)):
            left = cls.from_pretrained(tmp_path / "model" / name)
            assert Ticket.from_model(left) == ticket

    def test_the_encoder_is_rewound_and_the_heads_go_on(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from sparsebert.lottery import round_training

        seen: list[Snapshot] = []
        batches: list[int] = []

        class Watched(round_training.TicketTrainer):
            def training_step(self, module: Any, inputs: Any, *arguments: Any, **options: Any) -> Any:
                if self.state.global_step == 0:
                    seen.append(Snapshot.of(self.model))
                batches.append(inputs["task"])
                return super().training_step(module, inputs, *arguments, **options)

        monkeypatch.setattr(round_training, "TicketTrainer", Watched)
        whole = experiment(proportions="2,1")
        start = Snapshot.of(whole.model)
        run(whole, config_of(sparsity=0.2, proportions="2,1"), tmp_path)
        assert batches == [0, 1, 0, 0, 1, 0, 0] * 3
        ticket = Ticket.load(tmp_path / "round-01" / "ticket.safetensors")
        expected = model()
        start.restore_(expected)
        ticket.apply_(expected)
        heads = head_names(expected)
        base = [name for name in seen[1].tensors if name not in heads]
        seen[1].require_equal(expected, base)
        for name in ("heads.0.classifier.weight", "heads.1.cls.predictions.transform.dense.weight"):
            assert not torch.equal(seen[1].tensors[name], start.tensors[name])

    @pytest.mark.parametrize(
        "changes",
        [{}, {"rewind": "step", "rewind_step": 2}, {"rewind": "learning-rate"}, {"rewind": "none"}],
        ids=lambda changes: changes.get("rewind", "pretrained"),
    )
    def test_interrupted_at_any_batch(self, tmp_path: Path, changes: dict[str, Any]) -> None:
        request = config_of(sparsity=0.2, **changes)
        run(experiment(), request, tmp_path / "whole")
        sessions = 0
        for batch in (5, 1, 4, 8, 3, 9, 2, None):
            sessions += 1
            try:
                run(experiment(wrap=partial(dying, batch=batch)), request, tmp_path / "parts")
            except Killed:
                continue
            break
        assert sessions > 3
        assert_same_masks_and_metrics(tmp_path / "parts", tmp_path / "whole")

    def test_the_other_task_matters(self, tmp_path: Path) -> None:
        run(experiment(), config_of(), tmp_path / "both")
        run(tiny.experiment(), tiny.request(), tmp_path / "one")
        both, one = (Ticket.load(tmp_path / name / "ticket.safetensors") for name in ("both", "one"))
        assert both != one

    def test_gradient_checkpointing(self, tmp_path: Path) -> None:
        rows = run(experiment(), config_of(sparsity=0.1, gradient_checkpointing=True), tmp_path)
        assert rows[-1]["sparsity"] == 0.1

    def test_batches_of_two_tasks_are_an_error(self) -> None:
        with pytest.raises(ValueError, match="a batch must hold examples of a single task"):
            experiment().collate([(0, tiny.examples()[0]), (1, texts()[0])])


@pytest.mark.slow
def test_killed_with_kill_9_at_random_points(tmp_path: Path) -> None:
    run(experiment(), tiny.request("multi-task", head="keep"), tmp_path / "whole")
    points = random.Random(1)
    for _ in range(3):
        batch = str(points.randint(2, BATCHES // 3))
        assert start(tmp_path / "parts", "pretrained", "--joint", "--die-at-batch", batch) == -signal.SIGKILL
    assert start(tmp_path / "parts", "pretrained", "--joint") == 0
    assert_same_masks_and_metrics(tmp_path / "parts", tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch without gloo")
def test_two_processes_share_the_turns(tmp_path: Path) -> None:
    """Each step trains two batches, one a process, of whatever tasks have their turn."""
    start_processes(tmp_path, 2, "--joint")
    rows = results.read(tmp_path / "log.jsonl", "round")
    assert [row["kept"] for row in rows] == [tiny.PRUNABLE * (10 - r) // 10 for r in range(4)]
    assert [row["processes"] for row in rows] == [2] * 4


def assert_same_masks_and_metrics(one: Path, other: Path) -> None:
    masks = [
        [path.read_bytes() for path in sorted(out.glob("round-*/ticket.safetensors"))] for out in (one, other)
    ]
    assert masks[0] == masks[1]
    metrics = [[row["metrics"] for row in results.read(out / "log.jsonl", "round")] for out in (one, other)]
    assert metrics[0] == metrics[1]
    for path in sorted((one / "model").rglob("*.safetensors")):
        assert path.read_bytes() == (other / path.relative_to(one)).read_bytes()
