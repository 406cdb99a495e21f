"""The order of a classifier's labels is asserted: parity with the hub's datasets."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from sparsebert.tasks import TASKS, Task, label_config, require_label_order
from sparsebert.tasks.label_order import data_labels, label_positions, reorder_outputs_, with_label_map


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
        r"mnli expects entailment, neutral, contradiction; --label-map entailment=entailment,"
        r"neutral=neutral,contradiction=contradiction matches them by name$",
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


class TestLabelMap:
    """A task's labels and the outputs of a checkpoint, by name or by number."""

    @pytest.mark.parametrize(
        ("outputs", "label_map", "positions"),
        [
            (("contradiction", "entailment", "neutral"), {"entailment": "entailment"}, (1, 2, 0)),
            (("ENTAILMENT", "NEUTRAL", "CONTRADICTION"), {"neutral": "NEUTRAL"}, None),
            (("LABEL_0", "LABEL_1", "LABEL_2"), dict(zip("enc", "210", strict=True)), (2, 1, 0)),
            (("c", "n", "e"), {"e": "e", "n": "n", "c": "c"}, (2, 1, 0)),
            (("c", "n", "e"), {"e": "2", "n": "1", "c": "0"}, (2, 1, 0)),
        ],
    )
    def test_an_output_for_each_label(
        self, outputs: tuple[str, ...], label_map: dict[str, str], positions: tuple[int, ...] | None
    ) -> None:
        names = {"e": "entailment", "n": "neutral", "c": "contradiction"}
        task = with_label_map(
            TASKS["mnli"], {names.get(label, label): output for label, output in label_map.items()}
        )
        assert label_positions(task, named(*outputs)) == positions

    @pytest.mark.parametrize(
        ("label_map", "complaint"),
        [
            ({"positive": "good", "negative": "bad"}, "'bad' is not an output of the model: no, yes"),
            ({"positive": "yes", "negative": "2"}, "'2' is not an output of the model: no, yes"),
            ({"positive": "yes", "negative": "1"}, "gives two labels one output of the model: 1, yes"),
            ({"positive": "yes"}, "'negative' is not an output of the model: no, yes"),
            ({"good": "yes"}, "'good' is not a label of sst2: negative, positive"),
        ],
    )
    def test_a_map_that_does_not_fit_is_refused(self, label_map: dict[str, str], complaint: str) -> None:
        with pytest.raises(ValueError, match=complaint):
            label_positions(with_label_map(TASKS["sst2"], label_map), named("no", "yes"))

    def test_a_task_without_classes_has_none(self) -> None:
        with pytest.raises(ValueError, match="a label map needs a task with classes; stsb has none"):
            with_label_map(TASKS["stsb"], {"1": "one"})

    def test_the_labels_of_the_data_for_the_outputs_of_a_model(self) -> None:
        assert data_labels(("NEG", "POS"), {"1": "POS", "0": "neg"}) == ("0", "1")
        assert data_labels(("LABEL_0", "LABEL_1"), {"no": "1", "yes": "0"}) == ("yes", "no")
        assert data_labels(("NEG", "POS"), {}) == ("NEG", "POS")
        with pytest.raises(ValueError, match="'0' and '1' are both 'NEG'"):
            data_labels(("NEG", "POS"), {"0": "NEG", "1": "NEG"})

    @pytest.mark.parametrize("family", ["Bert", "Roberta", "DistilBert", "Electra"])
    def test_reordered_outputs_are_those_of_the_labels(self, family: str) -> None:
        import torch
        import transformers

        shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
        if family == "DistilBert":
            shape = {"dim": 8, "n_layers": 1, "n_heads": 2, "hidden_dim": 8}
        config = getattr(transformers, f"{family}Config")(vocab_size=9, num_labels=3, **shape)
        model = getattr(transformers, f"{family}ForSequenceClassification")(config).eval()
        ids = torch.tensor([[1, 2, 3]])
        task = Task("own", "classification", ("accuracy",), ("a", "b", "c"))
        with torch.no_grad():
            before = model(ids).logits
            reorder_outputs_(model, task, (2, 0, 1))
            assert torch.equal(model(ids).logits, before[:, [2, 0, 1]])
        assert model.config.id2label == {0: "a", 1: "b", 2: "c"}
        assert model.config.label2id == {"a": 0, "b": 1, "c": 2}
