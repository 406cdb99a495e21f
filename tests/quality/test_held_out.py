"""Texts that calibrate, texts to search by and texts for the verdict are never the same."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("transformers")

from sparsebert.quality import agreement, head_of, labelled, split_texts
from sparsebert.quality.held_out import MOST_TEXTS, encoder_of
from sparsebert.tasks import TASKS, Example, Question, Tagged, Task, TextFormat
from sparsebert.tasks.metrics import compute
from sparsebert.tasks.registry import ENTITY_METRICS, TAG_METRICS
from tests.cli.tiny import sentences

TEXTS = [f"text {number}" for number in range(100)]


def test_parts_are_disjoint_and_repeat_with_the_seed() -> None:
    parts = split_texts([*TEXTS, *TEXTS])
    assert sorted(map(len, parts)) == [25, 25, 50]
    assert sorted(text for part in parts for text in part) == sorted(TEXTS)
    assert split_texts(TEXTS) == parts != split_texts(TEXTS, seed=1)


def test_of_many_texts_most_may_be_trained_on() -> None:
    parts = split_texts([str(number) for number in range(5000)])
    assert [len(part) for part in parts] == [5000 - 2 * MOST_TEXTS, MOST_TEXTS, MOST_TEXTS]


def test_too_few_texts_are_refused_with_the_number_needed() -> None:
    with pytest.raises(ValueError, match=r"at least 64 different texts are needed .*, got 63: pass more"):
        split_texts(TEXTS[:63] * 2)


def test_the_dense_model_agrees_with_itself(model_of: Any, batches: Any, tmp_path: Any) -> None:
    model = model_of("BertModel")
    head, encoder = head_of(model, str(tmp_path)), encoder_of(model)
    held_out = agreement(batches, head, encoder)
    assert held_out.measure.count == 8
    assert held_out.quality_of(head, encoder).keep == pytest.approx(1)


def test_labels_judge_by_the_metric_of_the_task(model_of: Any, tokenizer: Any) -> None:
    """A model is right where its labels are its own answers."""
    model = model_of("BertForSequenceClassification", initializer_range=2.0)
    texts = [text for text, _ in sentences(count=40)]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    logits = model(**batch).logits.detach()
    model.classifier.bias.data[1] -= (logits[:, 1] - logits[:, 0]).median()
    classes = model(**batch).logits.argmax(-1).tolist()
    assert 10 < sum(classes) < 30
    task = Task("own", "classification", ("accuracy",), ("no", "yes"), ("text",))
    rows = [Example((text,), label) for text, label in zip(texts, classes, strict=True)]
    head, encoder = head_of(model, "unnamed"), encoder_of(model.base_model)
    held_out = labelled(task, rows, tokenizer, TextFormat(16), head, encoder, batch_size=8)
    assert len(held_out.batches) == 5
    quality = held_out.quality_of(head, encoder)
    assert (quality.value, quality.keep) == (1.0, 1.0)


def test_questions_are_judged_by_their_answers(model_of: Any, tokenizer: Any, monkeypatch: Any) -> None:
    """The dense model's own answers are the accepted ones."""
    monkeypatch.setattr("sparsebert.quality.measures.undecided_reason", lambda *_: None)
    model = model_of("BertForQuestionAnswering", initializer_range=2.0)
    context = "the film is good a plot is bad"
    rows = [Question(str(i), "is the film good", context, (("film", 4),)) for i in range(4)]
    head, encoder = head_of(model, "unnamed"), encoder_of(model.base_model)
    task = Task("own", "span", ("f1", "exact_match"))
    held_out = labelled(task, rows, tokenizer, TextFormat(32), head, encoder)
    assert held_out.measure.name == "f1"
    assert 0 <= held_out.quality_of(head, encoder).value <= 1


def test_questions_without_an_answer_are_judged_as_well(
    model_of: Any, tokenizer: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr("sparsebert.quality.measures.undecided_reason", lambda *_: None)
    model = model_of("BertForQuestionAnswering", initializer_range=2.0)
    rows = [Question(str(i), "is the film good", "a plot is bad", ()) for i in range(4)]
    head, encoder = head_of(model, "unnamed"), encoder_of(model.base_model)
    silent = TextFormat(32, null_score_diff_threshold=-1e9)
    held_out = labelled(TASKS["squad2"], rows, tokenizer, silent, head, encoder)
    assert held_out.quality_of(head, encoder).value == 1.0


@pytest.mark.parametrize(
    ("labels", "metrics", "name"),
    [(("O", "B-A", "I-A"), ENTITY_METRICS, "f1"), (("DET", "NOUN", "VERB"), TAG_METRICS, "accuracy")],
)
def test_tags_are_judged_by_their_entities_or_one_by_one(
    model_of: Any, tokenizer: Any, labels: tuple[str, ...], metrics: tuple[str, ...], name: str
) -> None:
    """A model is right where the tags are its own, and the measure is that of the metric."""
    model = model_of("BertForTokenClassification", initializer_range=2.0, num_labels=3)
    task = Task("own", "tokens", metrics, labels, ("tokens",))
    texts = [tuple(text.split()) for text, _ in sentences(count=24)]
    batch = tokenizer([" ".join(words) for words in texts], padding=True, return_tensors="pt")
    # Every label has its share of the words.
    model.classifier.bias.data -= model(**batch).logits.detach().mean((0, 1))
    own = model(**batch).logits.argmax(-1)[:, 1:]
    right = [
        Tagged(words, tuple(tags[: len(words)].tolist())) for words, tags in zip(texts, own, strict=True)
    ]
    rows = [*right[:20], *(Tagged(row.words, (*row.tags[:-1], (row.tags[-1] + 1) % 3)) for row in right[20:])]
    head, encoder = head_of(model, "unnamed"), encoder_of(model.base_model)
    quality = labelled(task, right, tokenizer, TextFormat(16), head, encoder).quality_of(head, encoder)
    assert (quality.value, quality.keep) == (1.0, 1.0)
    held_out = labelled(task, rows, tokenizer, TextFormat(16), head, encoder, batch_size=8)
    assert held_out.measure.name == name
    expected = compute(task, [row.tags for row in right], [row.tags for row in rows])[name]
    assert held_out.quality_of(head, encoder).value == pytest.approx(expected)
    assert 0.5 < expected < 1
