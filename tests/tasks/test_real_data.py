"""The readers on the tasks' real files: every row is read, and simple baselines score what is published."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparsebert.tasks import (
    EncodedQuestions,
    Example,
    Question,
    TaskData,
    answer_texts,
    best_answers,
    encode,
    load,
)
from sparsebert.tasks.metrics import compute
from sparsebert.tasks.tables import read_columns

pytestmark = pytest.mark.real_data


@pytest.fixture(scope="module")
def real_tokenizer(data_folder: Path) -> Any:
    """The vocabulary of bert-base-uncased."""
    from transformers import BertTokenizer

    return BertTokenizer(str(data_folder / "bert-vocab" / "vocab.txt"))


def has_train(task: str) -> bool:
    return task != "qnli"


def read(task: str, folder: Path) -> TaskData:
    return load(task, folder, train=has_train(task))


# Rows of train and dev, and how many of dev have the task's label 1.
ROWS = {
    "sst2": (67_349, 872, 444),
    "cola": (8_551, 1_043, 721),
    "mrpc": (3_668, 408, 279),
    "qnli": (0, 5_463, 2_761),
    "wnli": (635, 71, 31),
}


@pytest.mark.parametrize("task", ROWS)
def test_every_row_of_glue_is_read(data_folder: Path, task: str) -> None:
    data = read(task, data_folder)
    validation = data.validation["validation"]
    ones = Counter(example.label for example in validation if isinstance(example, Example))[1]
    assert (len(data.train), len(validation), ones) == ROWS[task]
    examples = [example for example in (*data.train, *validation) if isinstance(example, Example)]
    texts = [text for example in examples for text in example.texts]
    assert all(texts)
    assert not any("\t" in text or "\n" in text or "\r" in text for text in texts)


def test_quotes_and_the_byte_order_mark_of_mrpc_are_no_hurdle(data_folder: Path) -> None:
    first = load("mrpc", data_folder).validation["validation"][0]
    assert isinstance(first, Example)
    assert first.label == 1
    assert first.texts[0].startswith("He said the foodservice pie business doesn 't fit")
    assert first.texts[1].startswith('" The foodservice pie business does not fit')
    gold = data_folder / "glue" / "MRPC" / "msr_paraphrase_test.txt"
    assert Counter(row[0] for _, row in read_columns(gold, ["Quality"])) == {"1": 1147, "0": 578}


@pytest.mark.parametrize(
    ("task", "always", "expected"),
    [
        ("cola", 1, {"mcc": 0.0, "accuracy": 721 / 1043}),
        ("wnli", 0, {"accuracy": 40 / 71}),
        ("mrpc", 1, {"accuracy": 279 / 408, "f1": 2 * 279 / (2 * 279 + 129)}),
        ("qnli", 1, {"accuracy": 2761 / 5463}),
    ],
)
def test_one_answer_to_everything_scores_the_share_of_that_class(
    data_folder: Path, task: str, always: int, expected: dict[str, float]
) -> None:
    examples = load(task, data_folder, train=False).validation["validation"]
    truth = [example.label for example in examples if isinstance(example, Example)]
    assert compute(task, [always] * len(truth), truth) == pytest.approx(expected)


@pytest.mark.parametrize("task", ROWS)
def test_examples_are_encoded_as_the_tokenizer_does_one_by_one(
    data_folder: Path, real_tokenizer: Any, task: str
) -> None:
    examples = load(task, data_folder, train=False).validation["validation"]
    encoded = encode(examples, task, real_tokenizer)
    assert len(encoded) == len(examples)
    for index in np.random.default_rng(0).choice(len(examples), 50).tolist():
        example = examples[index]
        assert isinstance(example, Example)
        alone = real_tokenizer(*example.texts, truncation=True, max_length=128)
        assert encoded[index] == dict(alone) | {"labels": example.label}


def test_questions_of_squad_and_their_answers_survive_the_windows(
    data_folder: Path, real_tokenizer: Any
) -> None:
    data = load("squad", data_folder)
    assert (len(data.train), len(data.validation["validation"])) == (8_466, 2_104)
    encoded = encode(data.validation["validation"], "squad", real_tokenizer)
    assert isinstance(encoded, EncodedQuestions)
    assert set(encoded.question_of.tolist()) == set(range(2_104))
    starts = np.zeros((len(encoded), 384), np.float32)
    ends = np.zeros_like(starts)
    for window in range(len(encoded)):
        item = encoded[window]
        starts[window, item["start_positions"]] = ends[window, item["end_positions"]] = 1
    # Logits that know the answer: what is lost are answers that end within a token or are too long.
    found = compute("squad", best_answers(encoded, starts, ends), answer_texts(encoded.questions))
    assert found["exact_match"] > 0.98
    assert found["f1"] > 0.99


def test_the_first_accepted_answer_is_always_right(data_folder: Path) -> None:
    questions = load("squad", data_folder, train=False).validation["validation"]
    accepted = answer_texts([asked for asked in questions if isinstance(asked, Question)])
    assert compute("squad", [texts[0] for texts in accepted], accepted) == {"f1": 1.0, "exact_match": 1.0}


def test_no_word_of_wikitext_is_lost(data_folder: Path, real_tokenizer: Any) -> None:
    data = load("wikitext-2", data_folder)
    texts = [" ".join(map(str, lines)) for lines in (data.train, data.validation["validation"])]
    assert [len(text.split()) for text in texts] == [213_886, 241_211]
    lines = [line for line in data.train if isinstance(line, str)][:300]
    encoded = encode(lines, "wikitext-2", real_tokenizer)
    tokens = [token for index in range(len(encoded)) for token in encoded[index]["input_ids"][1:-1]]
    whole = real_tokenizer("\n".join(lines).replace("<unk>", "[UNK]"), add_special_tokens=False)
    assert tokens == whole["input_ids"]
    # Every rare word is one token, and so is what the vocabulary lacks.
    assert tokens.count(real_tokenizer.unk_token_id) >= "\n".join(lines).count("<unk>") > 0
