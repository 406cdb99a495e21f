"""Fingerprints: one changed label, weight or place is another digest; what computes nothing is not."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertModel,
    BertTokenizer,
)

from sparsebert.accounting.fingerprints import (
    combined,
    digest_of_examples,
    digest_of_model,
    digest_of_tokenizer,
)
from sparsebert.tasks.examples import Example, Question, TaskData
from sparsebert.tasks.registry import find_task

EXAMPLES = [Example(("a good film",), 1), Example(("a bad film",), 0), Example(("a plot",), 0)]
SHAPE = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 12, "num_hidden_layers": 1}


def bert(cls: Any = BertModel, **changes: Any) -> Any:
    torch.manual_seed(0)
    return cls(BertConfig(**{"vocab_size": 20, **SHAPE, **changes}))


class TestExamples:
    def test_equal_examples_have_equal_digests(self) -> None:
        assert digest_of_examples(EXAMPLES) == digest_of_examples(copy.deepcopy(EXAMPLES))
        assert digest_of_examples(EXAMPLES).startswith("sha256:")

    @pytest.mark.parametrize(
        "changed",
        [
            [EXAMPLES[0], EXAMPLES[1], Example(("a plot",), 1)],
            [EXAMPLES[1], EXAMPLES[0], EXAMPLES[2]],
            EXAMPLES[:2],
            [*EXAMPLES[:2], Example(("a", "plot"), 0)],
            [*EXAMPLES[:2], Example(("a plot",), 0.0)],
        ],
        ids=["label", "order", "number", "pair", "score"],
    )
    def test_a_change_shows(self, changed: list[Example]) -> None:
        assert digest_of_examples(changed) != digest_of_examples(EXAMPLES)

    def test_texts_pairs_and_questions_have_digests(self) -> None:
        question = Question("1", "who", "he did", (("he", 0),))
        moved = Question("1", "who", "he did", (("he", 1),))
        assert digest_of_examples([question]) != digest_of_examples([moved])
        # Two lines are not one line with a line end in it.
        assert digest_of_examples(["a", "b"]) != digest_of_examples(["a\nb"])
        assert digest_of_examples([("a", "b")]) != digest_of_examples([("b", "a")])

    def test_a_task_s_data_has_one_for_each_purpose(self) -> None:
        task = find_task("mnli")
        data = TaskData(task, EXAMPLES, {"matched": EXAMPLES, "mismatched": EXAMPLES[:1]}, {})
        swapped = TaskData(task, EXAMPLES, {"matched": EXAMPLES[:1], "mismatched": EXAMPLES}, {})
        assert data.fingerprints["train"] == digest_of_examples(EXAMPLES)
        assert data.fingerprints["validation"] != swapped.fingerprints["validation"]
        assert TaskData(task, (), {"matched": EXAMPLES}, {}).fingerprints.keys() == {"validation"}


class TestModels:
    def test_one_changed_weight_shows(self) -> None:
        model, other = bert(), bert()
        assert digest_of_model(model) == digest_of_model(other)
        with torch.no_grad():
            other.embeddings.word_embeddings.weight[3, 4] += 1e-6
        assert digest_of_model(model) != digest_of_model(other)

    @pytest.mark.parametrize("change", [{"hidden_act": "relu"}, {"layer_norm_eps": 1e-5}])
    def test_a_configuration_that_computes_something_else_shows(self, change: dict[str, Any]) -> None:
        assert digest_of_model(bert(**change)) != digest_of_model(bert())

    def test_names_of_labels_and_of_the_folder_compute_nothing(self) -> None:
        model, other = bert(BertForSequenceClassification), bert(BertForSequenceClassification)
        other.config.id2label = {0: "bad", 1: "good"}
        other.config._name_or_path = "/elsewhere"
        other.config.transformers_version = "99"
        assert digest_of_model(model) == digest_of_model(other)

    def test_without_its_fresh_head_a_model_is_its_checkpoint(self) -> None:
        """Whatever the seed and the class of the head."""
        heads = {
            cls: {name for name in bert(cls).state_dict() if not name.startswith("bert.")}
            for cls in (BertForSequenceClassification, BertForQuestionAnswering)
        }
        digests = set()
        for cls, fresh in heads.items():
            model = bert(cls, attn_implementation="eager")
            encoder = bert(BertModel, add_pooling_layer=False)
            model.base_model.load_state_dict(encoder.state_dict(), strict=False)
            pooler = {name for name in model.state_dict() if ".pooler." in name}
            digests.add(digest_of_model(model, without=fresh | pooler))
        assert len(digests) == 1

    def test_half_precision_and_scalars_have_digests(self) -> None:
        model = bert().bfloat16()
        model.register_buffer("scale", torch.tensor(2.0))
        assert digest_of_model(model) != digest_of_model(bert())


@pytest.fixture
def tokenizer() -> Any:
    words = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "good", "film", "plot")
    return BertTokenizer(vocab={word: index for index, word in enumerate(words)})


class TestTokenizers:
    def test_the_vocabulary_and_its_order_show(self, tokenizer: Any) -> None:
        other = copy.deepcopy(tokenizer)
        assert digest_of_tokenizer(other) == digest_of_tokenizer(tokenizer)
        other.add_tokens(["plotless"])
        assert digest_of_tokenizer(other) != digest_of_tokenizer(tokenizer)

    def test_a_call_changes_nothing(self, tokenizer: Any) -> None:
        before = digest_of_tokenizer(tokenizer)
        tokenizer(["a film", "a"], truncation=True, max_length=3, padding=True)
        assert digest_of_tokenizer(tokenizer) == before

    def test_one_in_python_has_a_digest(self) -> None:
        class Words:
            special_tokens_map: dict[str, str] = {}  # noqa: RUF012

            def __init__(self, *words: str) -> None:
                self._words = words

            def get_vocab(self) -> dict[str, int]:
                return {word: place for place, word in enumerate(self._words)}

        assert digest_of_tokenizer(Words("a", "b")) == digest_of_tokenizer(Words("a", "b"))
        assert digest_of_tokenizer(Words("a", "b")) != digest_of_tokenizer(Words("b", "a"))

    def test_one_with_a_part_in_python_has_a_digest(self, tokenizer: Any) -> None:
        from tokenizers.pre_tokenizers import PreTokenizer

        class Everything:
            def pre_tokenize(self, text: Any) -> None:
                pass

        tokenizer.backend_tokenizer.pre_tokenizer = PreTokenizer.custom(Everything())
        with pytest.raises(Exception, match="cannot be serialized"):
            tokenizer.backend_tokenizer.to_str()
        assert digest_of_tokenizer(tokenizer).startswith("sha256:")


def test_one_digest_stands_for_several_by_name() -> None:
    assert combined({"validation": "sha256:1"}) == "sha256:1"
    assert combined({"a": "sha256:1", "b": "sha256:2"}) == combined({"b": "sha256:2", "a": "sha256:1"})
    assert combined({"a": "sha256:1", "b": "sha256:2"}) != combined({"a": "sha256:2", "b": "sha256:1"})
