"""Examples as token ids: nothing lost that need not be, and the answers of SQuAD where they stand."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from sparsebert.tasks import (
    EncodedOnce,
    EncodedQuestions,
    Example,
    Question,
    TextFormat,
    best_answers,
    collate,
    encode,
)

WORDS = "the cat sat on the mat . a dog ran in the rain . "


class TestSentences:
    EXAMPLES = (Example(("the cat sat on the mat .",), 1), Example(("a dog",), 0))

    def test_every_example_is_what_the_tokenizer_makes_of_it(self, tokenizer: Any) -> None:
        encoded = encode(self.EXAMPLES, "sst2", tokenizer)
        assert len(encoded) == 2
        for index, example in enumerate(self.EXAMPLES):
            assert encoded[index] == dict(tokenizer(example.texts[0])) | {"labels": example.label}

    def test_pairs_have_two_types_of_tokens(self, tokenizer: Any) -> None:
        item = encode([Example(("a dog", "the cat sat"), 0)], "rte", tokenizer)[0]
        assert item["token_type_ids"] == [0, 0, 0, 0, 1, 1, 1, 1]

    def test_the_longer_of_a_pair_is_cut_first(self, tokenizer: Any) -> None:
        item = encode([Example(("a dog", WORDS), 0)], "rte", tokenizer, TextFormat(10))[0]
        assert item["input_ids"] == tokenizer("a dog", "the cat sat on the")["input_ids"]

    def test_the_length_of_the_task_is_the_default(self, tokenizer: Any) -> None:
        long = [Example((WORDS * 20,), 0)]
        assert encode(long, "sst2", tokenizer).lengths.tolist() == [128]
        assert encode(long, "sst2", tokenizer, TextFormat(16)).lengths.tolist() == [16]

    def test_scores_stay_numbers_with_a_fraction(self, tokenizer: Any) -> None:
        assert encode([Example(("a", "a"), 2.5)], "stsb", tokenizer)[0]["labels"] == 2.5

    def test_more_examples_than_the_tokenizer_takes_at_once(self, tokenizer: Any) -> None:
        examples = [Example(("the " * (index % 7 + 1),), index % 2) for index in range(2100)]
        encoded = encode(examples, "sst2", tokenizer)
        assert encoded.lengths.tolist() == [index % 7 + 3 for index in range(2100)]
        assert [encoded[index]["labels"] for index in range(2100)] == [row.label for row in examples]

    def test_an_empty_text_is_its_special_tokens(self, tokenizer: Any) -> None:
        assert encode([Example(("",), 0)], "sst2", tokenizer)[0]["input_ids"] == [2, 3]

    def test_nothing_encodes_to_nothing(self, tokenizer: Any) -> None:
        for task in ("sst2", "squad", "wikitext-2"):
            assert len(encode([], task, tokenizer)) == 0

    def test_a_length_without_room_is_refused(self, tokenizer: Any) -> None:
        with pytest.raises(ValueError, match="max_length=4 leaves no room"):
            encode([Example(("a", "a"), 0)], "rte", tokenizer, TextFormat(4))


class TestEncodedOnce:
    EXAMPLES = (Example(("the cat sat on the mat .",), 1), Example(("a dog",), 0))

    def test_the_same_again_is_the_same_object(self, tokenizer: Any) -> None:
        once = EncodedOnce()
        first = once(self.EXAMPLES, "sst2", tokenizer, TextFormat(16))
        assert [first[i] for i in (0, 1)] == [
            encode(self.EXAMPLES, "sst2", tokenizer, TextFormat(16))[i] for i in (0, 1)
        ]
        assert once(self.EXAMPLES, "sst2", copy.deepcopy(tokenizer), TextFormat(16)) is first

    def test_anything_else_is_encoded_anew(self, tokenizer: Any) -> None:
        once = EncodedOnce()
        first = once(self.EXAMPLES, "sst2", tokenizer, TextFormat(16))
        other = copy.deepcopy(tokenizer)
        other.name_or_path = "another"
        for changed in (
            once(list(self.EXAMPLES), "sst2", tokenizer, TextFormat(16)),
            once(self.EXAMPLES, "cola", tokenizer, TextFormat(16)),
            once(self.EXAMPLES, "sst2", tokenizer, TextFormat(5)),
            once(self.EXAMPLES, "sst2", other, TextFormat(16)),
            once(self.EXAMPLES, "sst2", tokenizer, TextFormat(16, "{0} .")),
        ):
            assert changed is not first
        assert once(self.EXAMPLES, "sst2", tokenizer, TextFormat(5)).lengths.max() == 5


class TestRunningText:
    LINES = (" the cat sat . ", "", " ", " = the mat = ", "a dog ran on in the <unk> .")

    def test_the_blocks_put_together_are_the_text(self, tokenizer: Any) -> None:
        encoded = encode(self.LINES, "wikitext-2", tokenizer, TextFormat(6))
        whole = " ".join(self.LINES).replace("<unk>", "[UNK]")
        inner = [encoded[index]["input_ids"][1:-1] for index in range(len(encoded))]
        assert [token for block in inner for token in block] == tokenizer(whole)["input_ids"][1:-1]
        assert [len(block) for block in inner] == [4] * (len(inner) - 1) + [len(inner[-1])]
        for index in range(len(encoded)):
            item = encoded[index]
            assert (item["input_ids"][0], item["input_ids"][-1]) == (2, 3)
            assert item["token_type_ids"] == [0] * len(item["input_ids"])
            assert "labels" not in item

    def test_a_rare_word_is_one_unknown_token(self, tokenizer: Any) -> None:
        item = encode(["the <unk> sat"], "wikitext-2", tokenizer)[0]
        assert item["input_ids"] == tokenizer("the [UNK] sat")["input_ids"]


class TestCausalBlocks:
    """Tokens of bytes, of which a newline is one, as of GPT-2."""

    @pytest.fixture
    def by_byte(self) -> Any:
        tokenizers = pytest.importorskip("tokenizers")
        transformers = pytest.importorskip("transformers")
        alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
        model = tokenizers.models.BPE({byte: number for number, byte in enumerate(alphabet)}, [])
        words = tokenizers.Tokenizer(model)
        words.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        words.decoder = tokenizers.decoders.ByteLevel()
        return transformers.PreTrainedTokenizerFast(tokenizer_object=words)

    def test_lines_keep_their_ends_from_a_file_and_from_the_hub(self, by_byte: Any) -> None:
        """Lines of files come without a newline, those of the hub with one; run_clm.py keeps it."""
        of_file = encode([" the cat ", " sat "], "wikitext-2-clm", by_byte)
        of_hub = encode([" the cat \n", " sat \n"], "wikitext-2-clm", by_byte)
        assert by_byte.decode(of_file[0]["input_ids"]) == " the cat \n sat \n"
        assert of_file[0] == of_hub[0]

    def test_a_length_and_a_text_without_a_token_to_predict(self, by_byte: Any, tokenizer: Any) -> None:
        with pytest.raises(ValueError, match="max_length=1 leaves no token to predict; use at least 2"):
            encode(["the cat"], "wikitext-2-clm", by_byte, TextFormat(1))
        with pytest.raises(ValueError, match="one token of text leaves none to predict"):
            encode(["the"], "wikitext-2-clm", tokenizer)


def test_models_without_token_types_get_none(tokenizer: Any) -> None:
    plain = copy.deepcopy(tokenizer)
    plain.model_input_names = ["input_ids", "attention_mask"]
    for examples, task in (
        ([Example(("a", "the cat"), 0)], "rte"),
        (["the cat"], "wikitext-2"),
        ([question("cat", 4)], "squad"),
    ):
        encoded = encode(examples, task, plain)
        batch = collate(task, plain)([encoded[0]])
        assert "token_type_ids" not in encoded[0]
        assert "token_type_ids" not in batch
        assert batch["attention_mask"].all()


def question(answer: str, start: int, context: str = WORDS, asked: str = "the cat") -> Question:
    return Question("q", asked, context, ((answer, start),))


class TestQuestions:
    @pytest.mark.parametrize("answer", ["the cat", "mat", "rain", WORDS.strip()])
    def test_the_targets_are_the_tokens_of_the_answer(self, tokenizer: Any, answer: str) -> None:
        encoded = encode([question(answer, WORDS.index(answer))], "squad", tokenizer)
        item = encoded[0]
        tokens = item["input_ids"][item["start_positions"] : item["end_positions"] + 1]
        assert tokens == tokenizer(answer, add_special_tokens=False)["input_ids"]

    def test_a_token_that_ends_where_the_answer_starts_is_left_out(self, tokenizer: Any) -> None:
        item = encode([question(".", 9, "a dog ran.")], "squad", tokenizer)[0]
        assert item["start_positions"] == item["end_positions"] > 0
        assert item["input_ids"][item["start_positions"]] == tokenizer.vocab["."]

    def test_a_long_paragraph_has_windows_that_overlap_and_cover_it(self, tokenizer: Any) -> None:
        encoded = encode([question("mat", 19, WORDS * 5)], "squad", tokenizer, TextFormat(32))
        assert isinstance(encoded, EncodedQuestions)
        assert len(encoded) > 2
        assert encoded.question_of.tolist() == [0] * len(encoded)
        assert encoded.lengths.max() == 32
        covered: set[int] = set()
        for window in range(len(encoded)):
            spans = encoded.spans(window)
            assert len(spans) == encoded.lengths[window]
            inside = spans[spans[:, 1] > spans[:, 0]]
            first, last = int(inside[0, 0]), int(inside[-1, 1])
            if window:
                assert first in covered
            covered.update(range(first, last))
        assert covered >= set(range(len((WORDS * 5).strip())))

    def test_windows_without_the_whole_answer_point_at_the_first_token(self, tokenizer: Any) -> None:
        encoded = encode([question("mat", 19, WORDS * 5)], "squad", tokenizer, TextFormat(32))
        targets = [(encoded[i]["start_positions"], encoded[i]["end_positions"]) for i in range(len(encoded))]
        # [CLS] the cat [SEP] the cat sat on the mat
        assert targets[0] == (9, 9)
        assert set(targets[1:]) == {(0, 0)}

    def test_an_answer_across_the_edge_of_a_window_is_not_half_an_answer(self, tokenizer: Any) -> None:
        text = WORDS * 5
        whole = encode([question("cat", 4, text)], "squad", tokenizer, TextFormat(32))
        assert isinstance(whole, EncodedQuestions)
        edge = int(whole.spans(0)[:, 1].max())
        answer = text[edge - 9 : edge + 9].strip()
        cut = encode(
            [question(answer, text.index(answer, edge - 9), text)], "squad", tokenizer, TextFormat(32)
        )
        assert cut[0]["start_positions"] == cut[0]["end_positions"] == 0
        assert cut[1]["start_positions"] > 0

    def test_a_long_question_leaves_room_for_the_paragraph(self, tokenizer: Any) -> None:
        encoded = encode([question("cat", 4, asked="dog " * 400)], "squad", tokenizer, TextFormat(64))
        assert (np.array(encoded[0]["token_type_ids"]) == 0).sum() == 32
        assert encoded[0]["start_positions"] > 0

    def test_the_tokens_of_the_question_cover_no_context(self, tokenizer: Any) -> None:
        encoded = encode([question("cat", 4)], "squad", tokenizer)
        assert isinstance(encoded, EncodedQuestions)
        types = np.array(encoded[0]["token_type_ids"])
        assert not encoded.spans(0)[types == 0].any()


class TestBestAnswers:
    @pytest.fixture
    def encoded(self, tokenizer: Any) -> EncodedQuestions:
        """Two questions; the second on a paragraph of several windows."""
        asked = [question("cat", 4), question("rain", WORDS.index("rain"), WORDS * 4)]
        encoded = encode(asked, "squad", tokenizer, TextFormat(32))
        assert isinstance(encoded, EncodedQuestions)
        return encoded

    def logits(self, encoded: EncodedQuestions) -> tuple[np.ndarray, np.ndarray]:
        shape = (len(encoded), int(encoded.lengths.max()) + 3)
        return np.zeros(shape, np.float32), np.zeros(shape, np.float32)

    def test_the_best_span_over_all_windows_wins(self, encoded: EncodedQuestions) -> None:
        starts, ends = self.logits(encoded)
        starts[0, 4], ends[0, 5] = 3, 3
        starts[1, 6], ends[1, 6] = 3, 3
        starts[2, 5], ends[2, 7] = 4, 3
        spans = encoded.spans(2)
        expected = (WORDS * 4)[spans[5, 0] : spans[7, 1]]
        assert best_answers(encoded, starts, ends) == ["the cat", expected]

    def test_an_end_before_its_start_is_no_span(self, encoded: EncodedQuestions) -> None:
        starts, ends = self.logits(encoded)
        starts[0, 8], ends[0, 5], ends[0, 9] = 5, 5, 1
        assert best_answers(encoded, starts, ends)[0] == "the mat"

    def test_a_span_of_the_question_or_the_padding_is_none(self, encoded: EncodedQuestions) -> None:
        starts, ends = self.logits(encoded)
        starts[0, 0] = ends[0, 0] = starts[0, 1] = ends[0, 2] = starts[0, -1] = ends[0, -1] = 9
        starts[0, 5] = ends[0, 5] = 1
        assert best_answers(encoded, starts, ends)[0] == "cat"

    def test_a_span_that_is_too_long_is_none(self, encoded: EncodedQuestions) -> None:
        starts, ends = self.logits(encoded)
        starts[0, 4], ends[0, 9], ends[0, 5] = 5, 5, 1
        assert best_answers(encoded, starts, ends)[0] == "the cat sat on the mat"
        encoded.text_format = TextFormat(32, max_answer_length=2)
        assert best_answers(encoded, starts, ends)[0] == "the cat"

    def test_only_so_many_tokens_begin_and_end_an_answer(self, encoded: EncodedQuestions) -> None:
        starts, ends = self.logits(encoded)
        # The best start lies behind the best end: only the second best make a span.
        starts[0, 8], starts[0, 4], ends[0, 5], ends[0, 4] = 5, 1, 5, 1
        for number, answer in ((1, ""), (2, "the cat")):
            encoded.text_format = TextFormat(32, n_best_size=number)
            assert best_answers(encoded, starts, ends)[0] == answer

    def test_logits_that_are_not_finite_give_no_answer(self, encoded: EncodedQuestions) -> None:
        starts, ends = self.logits(encoded)
        starts[:] = np.nan
        assert best_answers(encoded, starts, ends) == ["", ""]

    def test_a_row_of_logits_for_each_window(self, encoded: EncodedQuestions) -> None:
        starts, ends = self.logits(encoded)
        with pytest.raises(ValueError, match=rf"each of {len(encoded)} windows, got 1 rows of start"):
            best_answers(encoded, starts[:1], ends)
