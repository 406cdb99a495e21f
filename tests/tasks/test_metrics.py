"""Metrics against values worked out by hand, and at their edges."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sparsebert.tasks import TASKS, Task
from sparsebert.tasks.metrics import compute, primary

# Six examples: four of class 1, two of class 0; one of each class is missed.
TRUTH = [1, 1, 1, 1, 0, 0]
GUESS = [1, 1, 1, 0, 0, 1]
# True positives 3, false positives 1, false negatives 1, true negatives 1.
ACCURACY = 4 / 6
F1 = 2 * 3 / (2 * 3 + 1 + 1)
MCC = (3 * 1 - 1 * 1) / math.sqrt((3 + 1) * (3 + 1) * (1 + 1) * (1 + 1))


class TestClassification:
    @pytest.mark.parametrize(
        ("task", "expected"),
        [
            ("sst2", {"accuracy": ACCURACY}),
            ("qnli", {"accuracy": ACCURACY}),
            ("rte", {"accuracy": ACCURACY}),
            ("wnli", {"accuracy": ACCURACY}),
            ("mrpc", {"accuracy": ACCURACY, "f1": F1}),
            ("qqp", {"accuracy": ACCURACY, "f1": F1}),
            ("cola", {"mcc": MCC, "accuracy": ACCURACY}),
        ],
    )
    def test_by_hand(self, task: str, expected: dict[str, float]) -> None:
        assert compute(task, GUESS, TRUTH) == pytest.approx(expected)
        assert next(iter(expected)) == primary(task)

    def test_logits_and_classes_score_the_same(self) -> None:
        logits = np.full((6, 2), -1.5, np.float32)
        logits[range(6), GUESS] = 2.5
        assert compute("mrpc", logits, TRUTH) == compute("mrpc", np.array(GUESS), np.array(TRUTH))

    def test_a_single_example_keeps_its_dimension(self) -> None:
        assert compute("sst2", np.array([[0.1, 0.9]]), [1]) == {"accuracy": 1.0}

    @pytest.mark.parametrize("always", [0, 1])
    def test_matthews_correlation_of_one_class_is_0(self, always: int) -> None:
        assert compute("cola", [always] * 6, TRUTH)["mcc"] == 0.0
        assert compute("cola", GUESS, [always] * 6)["mcc"] == 0.0

    def test_f1_without_a_positive_is_0(self) -> None:
        assert compute("mrpc", [0] * 6, TRUTH) == pytest.approx({"accuracy": 2 / 6, "f1": 0.0})
        assert compute("mrpc", [0] * 6, [0] * 6) == {"accuracy": 1.0, "f1": 0.0}

    def test_f1_is_that_of_class_1(self) -> None:
        other_way_round = compute("qqp", 1 - np.array(GUESS), 1 - np.array(TRUTH))["f1"]
        assert other_way_round == pytest.approx(2 * 1 / (2 * 1 + 1 + 1))

    def test_classes_of_ones_own_count_alike(self) -> None:
        task = Task("own", "classification", ("accuracy", "macro_f1"), labels=("a", "b", "c"))
        found = compute(task, [0, 0, 1, 1], [0, 1, 1, 1])
        # f1 of a: 2/3, of b: 4/5, of c, which nothing is: 0.
        assert found == pytest.approx({"accuracy": 0.75, "macro_f1": (2 / 3 + 4 / 5) / 3})

    def test_a_run_that_diverged_scores_and_warns(self) -> None:
        logits = np.array([[0.0, 1.0], [np.nan, 0.0], [np.inf, 0.0], [1.0, 0.0]])
        with pytest.warns(UserWarning, match="2 of 4 predictions are not finite: they count as wrong"):
            assert compute("mrpc", logits, [1, 0, 0, 0])["accuracy"] == 0.5

    def test_one_column_of_numbers_is_no_classification(self) -> None:
        with pytest.raises(ValueError, match=r"logits must have the shape \[n, classes\], got \[2\]"):
            compute("sst2", [0.5, 0.5], [0, 1])


class TestMnli:
    def test_matched_and_mismatched_have_keys_of_their_own(self) -> None:
        matched = compute("mnli", [0, 1, 2, 2], [0, 1, 2, 0], split="validation_matched")
        mismatched = compute("mnli", [0, 1], [1, 0], split="validation_mismatched")
        assert matched | mismatched == {"accuracy_matched": 0.75, "accuracy_mismatched": 0.0}
        assert primary("mnli") == "accuracy_matched"

    def test_the_split_must_be_said(self) -> None:
        with pytest.raises(
            ValueError,
            match="split is missing: pass one of validation_matched and validation_mismatched for mnli",
        ):
            compute("mnli", [0], [0])
        with pytest.raises(
            ValueError, match="mnli has no split 'dev'; its splits: validation_matched, valid"
        ):
            compute("mnli", [0], [0], split="dev")


class TestRegression:
    TRUTH = (1.0, 2.0, 3.0, 4.0)
    GUESS = (1.0, 3.0, 2.0, 10.0)

    def test_pearson_and_spearman_by_hand(self) -> None:
        # Deviations from the means 2.5 and 4: products sum to 13, squares to 5 and 50;
        # ranks 1 3 2 4 differ by 1 twice: 1 - 6*2/(4*15).
        expected = {"pearson": 13 / math.sqrt(5 * 50), "spearman": 0.8}
        assert compute("stsb", self.GUESS, self.TRUTH) == pytest.approx(expected)

    def test_ties_share_their_rank(self) -> None:
        # Ranks 1 2.5 2.5 4 against 1 2 3 4: products of deviations 4.5, squares 4.5 and 5.
        found = compute("stsb", [1, 2, 2, 9], self.TRUTH)["spearman"]
        assert found == pytest.approx(4.5 / math.sqrt(4.5 * 5))

    def test_a_head_with_one_output_is_squeezed_in_its_last_dimension_only(self) -> None:
        column = np.array(self.GUESS, np.float32)[:, None]
        assert compute("stsb", column, self.TRUTH) == pytest.approx(compute("stsb", self.GUESS, self.TRUTH))
        with pytest.warns(UserWarning, match="constant"):
            assert compute("stsb", np.array([[0.5]]), [1.0]) == {"pearson": 0.0, "spearman": 0.0}

    @pytest.mark.parametrize(
        ("guess", "truth", "reason"),
        [
            ([2.5] * 4, TRUTH, "predictions are constant"),
            (TRUTH, [2.5] * 4, "references are constant"),
            ([1, 2, math.nan, 4], TRUTH, "not all predictions are finite"),
            ([1, 2, math.inf, 4], TRUTH, "not all predictions are finite"),
        ],
    )
    def test_what_has_no_correlation_counts_as_0_with_a_warning(
        self, guess: list[float], truth: list[float], reason: str
    ) -> None:
        with pytest.warns(UserWarning, match=f"{reason}: the correlation is undefined and counts as 0"):
            assert compute("stsb", guess, truth) == {"pearson": 0.0, "spearman": 0.0}

    def test_float16_predictions_are_scored_in_float64(self) -> None:
        guess = np.linspace(0, 5, 50).astype(np.float16)
        assert compute("stsb", guess, guess)["pearson"] == pytest.approx(1.0, abs=1e-12)


class TestSquad:
    @pytest.mark.parametrize(
        ("prediction", "accepted", "exact_match", "f1"),
        [
            ("Denver Broncos", ["Denver Broncos"], 1, 1),
            # Case, articles, punctuation and blanks do not count.
            ("the  denver BRONCOS.", ["Denver Broncos"], 1, 1),
            ("A. An", ["the"], 1, 0),
            ("theatre", ["atre"], 0, 0),
            # Two of two words right, two of three found: precision 1, recall 2/3.
            ("Broncos of", ["Denver Broncos of"], 0, 0.8),
            # Repeated words count as often as they stand on both sides: 2 common, of 3 and of 2.
            ("no no no", ["no no"], 0, 0.8),
            # The best of the accepted answers.
            ("1859", ["in 1859", "1859", "the year 1859"], 1, 1),
            ("", ["Denver"], 0, 0),
            ("Oslo", ["Denver"], 0, 0),
            # Punctuation is taken out, not replaced by a blank.
            ("U.S.A.", ["USA"], 1, 1),
            ("well-known", ["well known"], 0, 0),
        ],
    )
    def test_the_official_evaluation_by_hand(
        self, prediction: str, accepted: list[str], exact_match: float, f1: float
    ) -> None:
        assert compute("squad", [prediction], [accepted]) == pytest.approx(
            {"exact_match": exact_match, "f1": f1}
        )

    def test_questions_are_averaged(self) -> None:
        found = compute("squad", ["Denver", "Broncos of"], [["Denver"], ["Denver Broncos of"]])
        assert found == pytest.approx({"f1": 0.9, "exact_match": 0.5})
        assert primary("squad") == "f1"

    def test_a_reference_must_be_a_list_of_texts(self) -> None:
        for reference in ("Denver", []):
            with pytest.raises(ValueError, match="must be lists of accepted texts"):
                compute("squad", ["Denver"], [reference])


class TestMaskedLanguageModel:
    def test_only_masked_tokens_are_scored(self) -> None:
        truth = np.array([[-100, 5, -100], [7, -100, 8]])
        guess = np.array([[5, 5, 5], [7, 0, 9]])
        assert compute("wikitext-2", guess, truth) == pytest.approx({"accuracy": 2 / 3})

    def test_logits_have_the_vocabulary_last(self) -> None:
        truth = np.array([[2, -100, 0]])
        assert compute("wikitext-2", np.eye(3)[None, [2, 1, 1]], truth) == {"accuracy": 0.5}

    def test_nothing_masked_is_nothing_to_score(self) -> None:
        with pytest.raises(ValueError, match="no masked token"):
            compute("wikitext-2", [[1]], [[-100]])


class TestSizes:
    @pytest.mark.parametrize("task", sorted(TASKS.keys() - {"mnli"}))
    def test_empty_or_unequal_sizes_are_refused(self, task: str) -> None:
        with pytest.raises(ValueError, match="0 predictions for 0 references"):
            compute(task, [], [])
        with pytest.raises(ValueError, match="2 predictions for 1 references"):
            compute(task, [1, 1], [1])

    @pytest.mark.parametrize("task", ["sst2", "stsb", "wikitext-2"])
    def test_shapes_that_do_not_fit_are_refused(self, task: str) -> None:
        with pytest.raises(ValueError, match="shape"):
            compute(task, np.ones((3, 2, 5)), np.ones(3, int))

    def test_an_unknown_task_offers_the_nearest(self) -> None:
        with pytest.raises(ValueError, match=r"unknown task 'mnl'; .*did you mean 'mnli'"):
            compute("mnl", [0], [0])
