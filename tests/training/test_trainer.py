"""The Trainer with a ticket against a plain training loop, and what it keeps of the Trainer's own."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparsebert.bert import resolve
from sparsebert.pruning import prune
from sparsebert.tickets.ticket import Ticket
from sparsebert.training.checkpoint import Checkpoint
from sparsebert.training.settings import TrainingSettings
from sparsebert.training.snapshot import Snapshot

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from sparsebert.training.callbacks import CheckpointCallback, StartCallback  # noqa: E402
from sparsebert.training.gradient_checkpointing import enable_gradient_checkpointing  # noqa: E402
from sparsebert.training.trainer import TicketTrainer, optimizer_of, training_arguments  # noqa: E402

EXAMPLES = 16


def classifier() -> Any:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=30,
        hidden_size=16,
        num_attention_heads=2,
        intermediate_size=24,
        num_hidden_layers=2,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return transformers.BertForSequenceClassification(config)


def examples() -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 30, (EXAMPLES, 6), generator=generator)
    return [{"input_ids": row, "labels": int(row[0] >= 15)} for row in ids]


def collate(chosen: list[dict[str, Any]]) -> dict[str, Tensor]:
    return {
        "input_ids": torch.stack([each["input_ids"] for each in chosen]),
        "labels": torch.tensor([each["labels"] for each in chosen]),
    }


def train(model: Any, ticket: Ticket, folder: Path, steps: int, callbacks: Any = (), **changes: Any) -> Any:
    options = {"batch_size": EXAMPLES, "learning_rate": 1e-2, "weight_decay": 0.01, "device": "cpu"} | changes
    schedule = options.pop("schedule_steps", None)
    settings = TrainingSettings(**options)
    trainer = TicketTrainer(
        model=model,
        args=training_arguments(settings, folder, steps, schedule),
        optimizer_cls_and_kwargs=optimizer_of(settings),
        train_dataset=examples(),
        data_collator=collate,
        callbacks=list(callbacks),
        ticket=ticket,
        schedule_steps=schedule,
    )
    trainer.train()
    return trainer


def dead_weights(model: Any, ticket: Ticket) -> Tensor:
    return torch.cat([resolve(model, key).weight[~mask] for key, mask in ticket.masks.items()]).detach()


def plain_loop(model: Any, ticket: Ticket, steps: int) -> nn.Module:
    """AdamW on masked gradients, clipped, with linear decay: no code of ours and no Trainer."""
    masks = {id(resolve(model, key).weight): mask for key, mask in ticket.masks.items()}
    ticket.apply_(model)
    decayed = [
        p for name, p in model.named_parameters() if "LayerNorm" not in name and not name.endswith("bias")
    ]
    others = [p for p in model.parameters() if all(p is not each for each in decayed)]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, eps=1e-8)
    model.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * (steps - step) / steps
        model(**collate(examples())).loss.backward()
        for parameter in model.parameters():
            if id(parameter) in masks:
                parameter.grad *= masks[id(parameter)]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ticket.apply_(model)
    return model


def test_it_trains_like_a_plain_loop_over_masked_weights(tmp_path: Path) -> None:
    ours, theirs = classifier(), classifier()
    ticket = prune(ours, sparsity=0.7)
    train(ours, ticket, tmp_path, 20)
    plain_loop(theirs, ticket, 20)
    for (name, mine), (_, other) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: name + text)


@pytest.mark.parametrize(
    "changes",
    [
        {"batch_size": 4, "gradient_accumulation": 3},
        {"precision": "bf16"},
        {"schedule": "cosine", "warmup_steps": 2},
        {"schedule": "constant"},
        {"optimizer": "adamax"},
        {"optimizer": "sgd"},
    ],
    ids=["accumulation", "mixed precision", "cosine", "constant", "adamax", "sgd"],
)
def test_dead_weights_are_zero_after_every_step(tmp_path: Path, changes: dict[str, Any]) -> None:
    class Watch(transformers.TrainerCallback):
        steps = 0

        def on_step_end(self, args: Any, state: Any, control: Any, **now: Any) -> None:
            Watch.steps += 1
            assert not dead_weights(now["model"], ticket).any()
            for group in now["optimizer"].param_groups:
                assert all(p.dtype == torch.float32 for p in group["params"])

    model = classifier()
    ticket = prune(model, sparsity=0.7)
    before = copy.deepcopy(model)
    train(model, ticket, tmp_path, 100, [Watch()], **changes)
    assert Watch.steps == 100
    kept = ticket.masks["encoder.layer.0.attention.self.query"]
    moved = (
        resolve(model, "encoder.layer.0.attention.self.query").weight
        != resolve(before, "encoder.layer.0.attention.self.query").weight
    )
    assert moved[kept].float().mean() > 0.99


def test_accumulated_batches_are_averaged_as_one_batch_is(tmp_path: Path) -> None:
    """Without clipping, which would hide a gradient that is summed instead; Adam hides it only in part."""
    whole, parts = classifier(), classifier()
    ticket = prune(whole, sparsity=0.5)
    options = {"max_grad_norm": 0.0, "adam_epsilon": 1e-2}
    train(whole, ticket, tmp_path / "whole", 5, **options)
    train(parts, ticket, tmp_path / "parts", 5, batch_size=EXAMPLES // 4, gradient_accumulation=4, **options)
    for mine, other in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-5)


def test_gradient_checkpointing_changes_nothing(tmp_path: Path) -> None:
    plain, saving = classifier(), classifier()
    ticket = prune(plain, sparsity=0.5)
    enable_gradient_checkpointing(saving)
    for model in (plain, saving):
        train(model, ticket, tmp_path / str(id(model)), 5)
    Snapshot.of(plain).require_equal(saving)


def test_the_schedule_may_span_more_steps_than_are_trained(tmp_path: Path) -> None:
    """Chen et al.'s code: a tenth of a schedule, from 1e-2 down to 9e-3 only."""
    model = classifier()
    trainer = train(model, prune(model, sparsity=0.5), tmp_path, 5, schedule_steps=50)
    assert trainer.lr_scheduler.get_last_lr()[0] == pytest.approx(1e-2 * 45 / 50)


def test_names_and_classes_of_the_model_stay(tmp_path: Path) -> None:
    model = classifier()
    names = list(model.state_dict())
    train(model, prune(model, sparsity=0.5), tmp_path, 2)
    assert list(model.state_dict()) == names
    assert type(resolve(model, "encoder.layer.0.attention.self.query")) is nn.Linear


def test_it_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = classifier()
    train(model, prune(model, sparsity=0.5), tmp_path, 2)
    assert capfd.readouterr().out == ""


class TestCheckpoints:
    def test_complete_ones_are_marked_and_two_are_kept(self, tmp_path: Path) -> None:
        model = classifier()
        train(model, prune(model, sparsity=0.5), tmp_path, 7, [CheckpointCallback(10.0)], save_steps=2)
        latest = Checkpoint.latest(tmp_path)
        assert latest is not None
        assert latest.step == 7
        assert latest.seconds > 10
        assert len(list(tmp_path.glob("checkpoint-*"))) == 2

    def test_an_incomplete_one_is_deleted(self, tmp_path: Path) -> None:
        model = classifier()
        train(model, prune(model, sparsity=0.5), tmp_path, 4, [CheckpointCallback()], save_steps=2)
        (tmp_path / "checkpoint-4" / "complete.json").unlink()
        latest = Checkpoint.latest(tmp_path)
        assert latest is not None
        assert latest.step == 2
        assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]
        assert Checkpoint.latest(tmp_path / "nowhere") is None

    def test_one_may_be_asked_for_and_kept_elsewhere(self, tmp_path: Path) -> None:
        model = classifier()
        marks = CheckpointCallback()
        marks.keep(3, tmp_path / "kept")
        train(model, prune(model, sparsity=0.5), tmp_path / "run", 8, [marks], save_steps=2)
        kept = Checkpoint.latest(tmp_path / "kept")
        assert kept is not None
        assert kept.step == 3
        assert {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"} <= {
            path.name for path in kept.path.iterdir()
        }


def test_a_start_with_other_weights_is_an_error(tmp_path: Path) -> None:
    model = classifier()
    start = Snapshot.of(model)
    with torch.no_grad():
        model.classifier.bias[0] += 1e-7
    with pytest.raises(RuntimeError, match=r"rewinding failed: classifier\.bias"):
        train(model, prune(model, sparsity=0.5), tmp_path, 1, [StartCallback(start)])


def test_a_warm_up_ratio_is_a_share_of_the_schedule(tmp_path: Path) -> None:
    """A tenth of 50 steps warms up: after 4 of them the rate is four fifths of its peak."""
    model = classifier()
    trainer = train(model, prune(model, sparsity=0.5), tmp_path, 4, schedule_steps=50, warmup_ratio=0.1)
    assert trainer.lr_scheduler.get_last_lr()[0] == pytest.approx(1e-2 * 4 / 5)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"optimizer": "adamw"}, (torch.optim.AdamW, {"eps": 1e-8})),
        ({"optimizer": "adamax", "adam_epsilon": 1e-6}, (torch.optim.Adamax, {"eps": 1e-6})),
        ({"optimizer": "sgd"}, (torch.optim.SGD, {"momentum": 0})),
    ],
)
def test_the_optimizer_is_the_one_that_is_asked_for(
    tmp_path: Path, options: dict[str, Any], expected: tuple[type, dict[str, Any]]
) -> None:
    model = classifier()
    trainer = train(model, prune(model, sparsity=0.5), tmp_path, 3, weight_decay=0.1, **options)
    kind, values = expected
    optimizer = trainer.optimizer
    optimizer = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps it
    assert isinstance(optimizer, kind)
    decayed, others = optimizer.param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    assert {name: decayed[name] for name in values} == values
