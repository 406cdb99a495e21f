"""A tiny BERT on a made-up task: a whole run takes a second. As a script, a run in a process of its own."""

from __future__ import annotations

import argparse
import itertools
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

import sparsebert.lottery.methods  # noqa: F401
from sparsebert.lottery.experiment import Experiment, RunConfig
from sparsebert.lottery.loop import run
from sparsebert.lottery.method import lottery_method
from sparsebert.pruning.pruning_units import PruningUnits
from sparsebert.tickets.ticket import Ticket
from sparsebert.training.distillation import Distillation, Teacher
from sparsebert.training.settings import TrainingSettings

EXAMPLES, LENGTH, WORDS = 40, 8, 30
# Options with which a penalty prunes within a few steps.
PENALISED: dict[str, dict[str, Any]] = {
    "soft-movement": {"threshold": 0.5, "regularisation": 1.0},
    "l0": {"scores_learning_rate": 2.0, "regularisation": 1.0},
}
PRUNABLE = 2 * (4 * 20 * 20 + 2 * 20 * 30)  # 5600: tenths of it are whole numbers


def model(seed: int = 0, dropout: float = 0.1) -> Any:
    torch.manual_seed(seed)
    shape = {"hidden_size": 20, "num_attention_heads": 2, "intermediate_size": 30, "num_hidden_layers": 2}
    rates = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    return BertForSequenceClassification(
        BertConfig(vocab_size=WORDS, initializer_range=0.2, **shape, **rates)
    )


def examples(seed: int = 1) -> list[dict[str, Any]]:
    """Whether the first word is from the second half of the vocabulary."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, WORDS, (EXAMPLES, LENGTH), generator=generator)
    return [{"input_ids": row, "labels": int(row[0] >= WORDS // 2)} for row in ids]


def collate(chosen: list[dict[str, Any]]) -> dict[str, Tensor]:
    return {
        "input_ids": torch.stack([each["input_ids"] for each in chosen]),
        "labels": torch.tensor([each["labels"] for each in chosen]),
    }


def evaluate(trained: nn.Module) -> dict[str, float]:
    batch = collate(examples(seed=2))
    device = next(trained.parameters()).device
    trained.eval()
    with torch.no_grad():
        logits = trained(input_ids=batch["input_ids"].to(device)).logits
    return {"accuracy": float((logits.argmax(1).cpu() == batch["labels"]).float().mean())}


def teacher() -> Teacher:
    """An untrained teacher, whose outputs have nothing to do with the labels."""
    return Teacher(model(seed=9))


def experiment(seed: int = 0, dropout: float = 0.1) -> Experiment:
    return Experiment(model(seed, dropout), examples(), collate, evaluate)


def judged(seen: list[int | None] | None = None) -> Experiment:
    """Add a judge, which records in ``seen`` the number of examples that it is to evaluate on."""

    def judge(trained: nn.Module, examples: int | None, seed: int) -> float:
        if seen is not None:
            seen.append(examples)
        return evaluate(trained)["accuracy"]

    return replace(experiment(), judge=judge)


def request(method: str = "imp", sparsity: float | None = 0.3, **changes: Any) -> RunConfig:
    """Build a RunConfig from options of it, its units, its training and its method, by their names."""
    training = {"steps": 7, "batch_size": 8, "learning_rate": 1e-3, "save_steps": 3, "device": "cpu"}
    fields = TrainingSettings.__dataclass_fields__
    training |= {name: changes.pop(name) for name in list(changes) if name in fields}
    units = {name: changes.pop(name) for name in list(changes) if name in PruningUnits.__dataclass_fields__}
    ticket, distillation = changes.pop("ticket", None), changes.pop("distillation", None)
    return RunConfig(
        lottery_method(method, **changes),
        sparsity,
        PruningUnits(**units),
        TrainingSettings(**training),
        ticket,
        {"task": "made-up", "model": "tiny"},
        distillation,
    )


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--learned", help="a method that learns its masks, instead of imp")
    parser.add_argument("--rewind", default="pretrained")
    parser.add_argument("--rewind-step", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--mask", help="of smp")
    parser.add_argument("--choose-every", type=int, help="of smp")
    parser.add_argument("--taught", action="store_true", help="by a teacher too")
    parser.add_argument("--joint", action="store_true", help="a language model too, on the same encoder")
    parser.add_argument("--die-at-batch", type=int, help="kill -9 while this batch is made")
    parser.add_argument("--die-at-save", type=int, help="kill -9 in the middle of this torch.save")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = request(
        "multi-task" if arguments.joint else "imp",
        rewind=arguments.rewind,
        rewind_step=arguments.rewind_step,
        head="keep",
        batch_size=arguments.batch_size,
    )
    if arguments.learned:
        options = PENALISED.get(arguments.learned, {}) | ({"mask": arguments.mask} if arguments.mask else {})
        options |= {"choose_every": arguments.choose_every} if arguments.choose_every else {}
        scope = lottery_method(arguments.learned, **options).scope
        sparsity = None if lottery_method(arguments.learned, **options).decides_sparsity else 0.3
        config = request(arguments.learned, sparsity, batch_size=arguments.batch_size, scope=scope, **options)
    batches, saves, save = itertools.count(1), itertools.count(1), torch.save

    def collate_or_die(chosen_examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        if next(batches) == arguments.die_at_batch:
            die()
        return whole.collate(chosen_examples)

    def save_or_die(thing: object, file: Any, **options: Any) -> None:
        if next(saves) == arguments.die_at_save:
            Path(file).write_bytes(b"half")
            die()
        save(thing, file, **options)

    torch.save = save_or_die
    whole = replace(judged(), model=model(dropout=arguments.dropout))
    if arguments.joint:
        from tests.lottery import multi_task_tiny

        whole = multi_task_tiny.experiment()
    if arguments.taught:
        whole, config = replace(whole, teacher=teacher()), replace(config, distillation=Distillation())
    run(replace(whole, collate=collate_or_die), config, arguments.out)
    if arguments.learned:
        rank = os.environ.get("RANK", "0")
        Ticket.from_model(whole.model).save(arguments.out / f"rank-{rank}.safetensors")


if __name__ == "__main__":
    sys.exit(main())
