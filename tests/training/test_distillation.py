"""The loss of a teacher against plain numpy, a teacher that stays as it is, and the sum that is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from transformers.modeling_outputs import (  # noqa: E402
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)

from sparsebert.training.distillation import (  # noqa: E402
    Distillation,
    Distiller,
    Teacher,
    Teachers,
    teacher_loss,
)
from sparsebert.training.settings import TrainingSettings  # noqa: E402
from sparsebert.training.trainer import TicketTrainer, training_arguments  # noqa: E402

EXAMPLES, CLASSES, TOKENS, WORDS = 12, 3, 7, 30


def drawn(seed: int, *shape: int) -> np.ndarray:
    return 3 * np.random.default_rng(seed).normal(size=shape)


def softmax(x: np.ndarray) -> np.ndarray:
    powers = np.exp(x - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def literal(ours: np.ndarray, theirs: np.ndarray, T: float) -> tuple[float, np.ndarray]:
    """T^2 * KL(p_teacher || p_model), batchmean, and its gradient in the model's logits."""
    p, q = softmax(theirs / T), softmax(ours / T)
    loss = T**2 * (p * (np.log(p) - np.log(q))).sum(-1).mean()
    return loss, T * (q - p) / len(p)


def logits(values: np.ndarray) -> Tensor:
    return torch.tensor(values, requires_grad=True)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_classes(temperature: float) -> None:
    ours, theirs = drawn(0, EXAMPLES, CLASSES), drawn(1, EXAMPLES, CLASSES)
    given = logits(ours)
    loss = teacher_loss(
        SequenceClassifierOutput(logits=given), SequenceClassifierOutput(logits=logits(theirs)), temperature
    )
    loss.backward()
    expected, gradient = literal(ours, theirs, temperature)
    assert loss.item() == pytest.approx(expected, rel=1e-10)
    np.testing.assert_allclose(given.grad.numpy(), gradient, rtol=1e-10, atol=1e-12)


def test_a_span_is_the_mean_of_its_start_and_its_end() -> None:
    ours, theirs = ((drawn(seed, 4, TOKENS), drawn(seed + 1, 4, TOKENS)) for seed in (0, 2))
    outputs = [
        QuestionAnsweringModelOutput(start_logits=torch.tensor(start), end_logits=torch.tensor(end))
        for start, end in (ours, theirs)
    ]
    expected = (literal(ours[0], theirs[0], 2.0)[0] + literal(ours[1], theirs[1], 2.0)[0]) / 2
    assert teacher_loss(*outputs, 2.0).item() == pytest.approx(expected, rel=1e-10)


def test_tags_are_classes_of_the_tokens_that_have_a_label() -> None:
    ours, theirs = drawn(0, EXAMPLES, TOKENS, CLASSES), drawn(1, EXAMPLES, TOKENS, CLASSES)
    labels = torch.from_numpy(np.random.default_rng(2).integers(-1, 2, size=(EXAMPLES, TOKENS)))
    labels = labels.masked_fill(labels < 0, -100)
    scored = labels.numpy() >= 0
    expected, _ = literal(ours[scored], theirs[scored], 2.0)
    outputs = (TokenClassifierOutput(logits=logits(each)) for each in (ours, theirs))
    assert teacher_loss(*outputs, 2.0, labels).item() == pytest.approx(expected, rel=1e-10)


def test_a_score_is_as_far_off_as_its_square() -> None:
    """A softmax of one logit is 1: its divergence would be 0 whatever the two say."""
    ours, theirs = drawn(0, EXAMPLES, 1), drawn(1, EXAMPLES, 1)
    outputs = [SequenceClassifierOutput(logits=torch.tensor(each)) for each in (ours, theirs)]
    expected = ((ours - theirs) ** 2).mean()
    assert teacher_loss(*outputs, 2.0).item() == pytest.approx(expected, rel=1e-10)


def test_half_precision_logits_are_compared_in_float32() -> None:
    outputs = [
        SequenceClassifierOutput(logits=torch.tensor(drawn(seed, 4, 3), dtype=torch.bfloat16))
        for seed in (0, 1)
    ]
    assert teacher_loss(*outputs, 2.0).dtype == torch.float32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight": 0.0}, r"distill_weight must be in \(0, 1\], got 0.0"),
        ({"weight": 1.5}, "distill_weight must be in"),
        ({"weight": float("nan")}, "distill_weight must be in"),
        ({"temperature": 0.0}, "distill_temperature must be positive, got 0.0"),
        ({"temperature": float("inf")}, "distill_temperature must be positive"),
    ],
)
def test_settings_that_make_no_sense(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Distillation(**changes)


def classifier(seed: int, dropout: float = 0.0, labels: int = 2) -> Any:
    torch.manual_seed(seed)
    config = transformers.BertConfig(
        vocab_size=WORDS,
        hidden_size=16,
        num_attention_heads=2,
        intermediate_size=24,
        num_hidden_layers=2,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        initializer_range=0.3,
        num_labels=labels,
    )
    return transformers.BertForSequenceClassification(config)


def examples() -> list[dict[str, Any]]:
    ids = torch.randint(0, WORDS, (EXAMPLES, TOKENS), generator=torch.Generator().manual_seed(1))
    return [{"input_ids": row, "labels": int(row[0] >= WORDS // 2)} for row in ids]


def collate(chosen: list[dict[str, Any]]) -> dict[str, Tensor]:
    return {
        "input_ids": torch.stack([each["input_ids"] for each in chosen]),
        "labels": torch.tensor([each["labels"] for each in chosen]),
    }


class TestTeacher:
    def test_it_answers_without_dropout_and_without_gradients(self) -> None:
        model = classifier(0, dropout=0.5).train()
        teacher = Teacher(model)
        first, second = (teacher(**collate(examples())) for _ in range(2))
        assert torch.equal(first.logits, second.logits)
        assert not first.logits.requires_grad
        assert first.loss is None  # it never sees the labels

    def test_it_reads_segments_only_where_it_knows_them(self) -> None:
        batch = collate(examples()) | {"token_type_ids": torch.ones(EXAMPLES, TOKENS, dtype=torch.int64)}
        knows = classifier(0).eval()
        assert torch.equal(
            Teacher(knows)(**batch).logits,
            knows(input_ids=batch["input_ids"], token_type_ids=batch["token_type_ids"]).logits,
        )
        config = transformers.DistilBertConfig(vocab_size=WORDS, dim=16, n_heads=2, n_layers=1, hidden_dim=24)
        knows_none = transformers.DistilBertForSequenceClassification(config).eval()
        assert torch.equal(
            Teacher(knows_none)(**batch).logits, knows_none(input_ids=batch["input_ids"]).logits
        )

    def test_of_several_the_batch_names_one_and_some_tasks_have_none(self) -> None:
        teacher = Teacher(classifier(0))
        teachers = Teachers([None, teacher])
        batch = collate(examples())
        assert torch.equal(teachers(task=1, **batch).logits, teacher(**batch).logits)
        loss, output = torch.tensor(3.0), SequenceClassifierOutput(logits=torch.zeros(EXAMPLES, 2))
        untaught = Distiller(teachers, Distillation()).mixed(loss, output, {"task": 0, **batch})
        assert untaught is loss


def train(model: Any, folder: Path, distiller: Distiller | None, steps: int = 6, **changes: Any) -> Any:
    options = {"batch_size": EXAMPLES, "learning_rate": 1e-2, "device": "cpu"} | changes
    penalties = options.pop("penalties", [])
    trainer = TicketTrainer(
        model=model,
        args=training_arguments(TrainingSettings(**options), folder, steps),
        train_dataset=examples(),
        data_collator=collate,
        distiller=distiller,
        penalties=penalties,
    )
    trainer.train()
    return trainer


def test_it_trains_like_a_plain_loop(tmp_path: Path) -> None:
    """A tenth of the labels, nine tenths of the teacher and a penalty, which is no part of the mixture."""
    ours, theirs, teacher = classifier(0), classifier(0), classifier(1)
    before = [each.clone() for each in teacher.parameters()]
    distiller = Distiller(Teacher(teacher), Distillation(weight=0.9, temperature=3.0))
    penalties = [lambda: 0.01 * ours.classifier.weight.abs().sum(), lambda: None]
    # Keys have no use for a bias: its gradient is rounding, which a smaller epsilon would blow up.
    train(ours, tmp_path, distiller, penalties=penalties, adam_epsilon=1e-4)

    optimizer = torch.optim.AdamW(theirs.parameters(), lr=1e-2, eps=1e-4, weight_decay=0.0)
    theirs.train()
    for step in range(6):
        optimizer.param_groups[0]["lr"] = 1e-2 * (6 - step) / 6
        batch = collate(examples())
        output = theirs(**batch)
        with torch.no_grad():
            answer = teacher(input_ids=batch["input_ids"]).logits
        divergence = nn.functional.kl_div(
            (output.logits / 3).log_softmax(-1), (answer / 3).softmax(-1), reduction="batchmean"
        )
        penalty = 0.01 * theirs.classifier.weight.abs().sum()
        (0.1 * output.loss + 0.9 * 9 * divergence + penalty).backward()
        nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    for (name, mine), (_, other) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: name + text)
    assert all(torch.equal(*pair) for pair in zip(before, teacher.parameters(), strict=True))


def test_penalties_may_be_of_what_the_forward_pass_has_shown(tmp_path: Path) -> None:
    calls: list[str] = []
    model = classifier(0)
    model.register_forward_pre_hook(lambda *_: calls.append("forward"))
    train(model, tmp_path, None, steps=2, penalties=[lambda: calls.append("penalty")])
    assert calls == ["forward", "penalty"] * 2


def test_accumulated_batches_are_averaged_as_one_batch_is(tmp_path: Path) -> None:
    """Without clipping, which would hide a sum; Adam hides it only in part."""
    distiller = Distiller(Teacher(classifier(1)), Distillation())
    whole, parts = classifier(0), classifier(0)
    options = {"max_grad_norm": 0.0, "adam_epsilon": 1e-2}
    train(whole, tmp_path / "whole", distiller, **options)
    split = {"batch_size": EXAMPLES // 4, "gradient_accumulation": 4}
    train(parts, tmp_path / "parts", distiller, **split, **options)
    for mine, other in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-5)


def test_mixed_precision(tmp_path: Path) -> None:
    """Near what full precision learns, and the teacher's weights stay float32."""
    teacher = classifier(1)
    distiller = Distiller(Teacher(teacher), Distillation())
    full, mixed = (
        train(classifier(0), tmp_path / precision, distiller, precision=precision).state.log_history[-1]
        for precision in ("fp32", "bf16")
    )
    assert mixed["train_loss"] == pytest.approx(full["train_loss"], rel=0.05)
    assert {each.dtype for each in teacher.parameters()} == {torch.float32}
