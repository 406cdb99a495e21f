"""The order of a classifier's labels is asserted: parity with the hub's datasets."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from sparsebert.tasks import TASKS, label_config, require_label_order


def config(**options: Any) -> Any:
    from transformers import BertConfig

    return BertConfig(**options)


def named(*labels: str) -> Any:
    return config(id2label=dict(enumerate(labels)))


@pytest.mark.parametrize("task", TASKS)
def test_a_configuration_made_for_the_task_is_accepted(task: str) -> None:
    require_label_order(task, config(**label_config(task)))


@pytest.mark.parametrize(
    "labels",
    [("entailment", "neutral", "contradiction"), ("ENTAILMENT", "Neutral", "CONTRADICTION")],
)
def test_case_does_not_matter(labels: tuple[str, ...]) -> None:
    require_label_order("mnli", named(*labels))


def test_nor_do_blanks_and_dashes() -> None:
    require_label_order("qnli", named("Entailment", "not-entailment"))
    require_label_order("qnli", named("entailment", "not entailment"))


def test_the_old_order_of_mnli_is_refused_with_both_orders() -> None:
    with pytest.raises(
        ValueError,
        match=r"^the model's label order \(config\.id2label\): contradiction, entailment, neutral; "
        r"mnli expects entailment, neutral, contradiction$",
    ):
        require_label_order("mnli", named("contradiction", "entailment", "neutral"))


def test_other_labels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"the model's labels .*: yes, no; rte expects entailment, not_"):
        require_label_order("rte", named("yes", "no"))


def test_an_order_that_is_not_stated_is_refused_and_not_guessed() -> None:
    with pytest.raises(ValueError, match=r"has placeholders \(LABEL_0, LABEL_1, LABEL_2\).*mnli expects"):
        require_label_order("mnli", config(num_labels=3))


@pytest.mark.parametrize(("task", "outputs"), [("mnli", 2), ("sst2", 3), ("stsb", 2)])
def test_another_number_of_outputs_is_refused(task: str, outputs: int) -> None:
    needed = TASKS[task].num_labels
    with pytest.raises(ValueError, match=f"{task} needs a model with {needed} outputs, got {outputs}"):
        require_label_order(task, config(num_labels=outputs))


def test_keys_read_from_json_are_strings() -> None:
    require_label_order("sst2", SimpleNamespace(id2label={"1": "positive", "0": "negative"}))


def test_heads_without_classes_have_no_order() -> None:
    for task in ("squad", "wikitext-2", "stsb"):
        require_label_order(task, config(num_labels=1))
