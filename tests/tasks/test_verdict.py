"""Verdicts by the criterion of Chen et al. 2020, and none near chance."""

from __future__ import annotations

from typing import Any

import pytest

from sparsebert.tasks import Example, Question
from sparsebert.tasks.metrics import compute
from sparsebert.tasks.verdict import chance_metrics, chance_of, judged_again, summarise, summary, verdict


class TestVerdict:
    # Mean 0.9, standard deviation 0.1 with n - 1 (0.0816 with n).
    DENSE = (0.8, 0.9, 1.0)

    def test_mean_and_standard_deviation(self) -> None:
        found = summary(self.DENSE)
        assert (found.values, found.mean) == (self.DENSE, pytest.approx(0.9))
        assert found.std == pytest.approx(0.1)

    @pytest.mark.parametrize(
        ("ticket", "expected"),
        [
            ((0.91, 0.91), "strict"),
            ((0.9, 0.9), "strict"),
            ((0.85, 0.95), "strict"),
            ((0.89, 0.89), "winning"),
            ((0.8, 0.8), "winning"),
            ((0.79, 0.79), "none"),
        ],
    )
    def test_against_the_dense_mean_and_one_standard_deviation(
        self, ticket: tuple[float, ...], expected: str
    ) -> None:
        found = verdict(self.DENSE, ticket)
        assert found.verdict == expected
        assert (found.dense.values, found.ticket.values) == (self.DENSE, ticket)

    def test_the_same_values_in_another_order_are_strict(self) -> None:
        values = [0.1 + 0.007 * index for index in range(7)]
        assert verdict(values, values[::-1]).verdict == "strict"

    def test_one_dense_seed_has_no_deviation_to_win_within(self) -> None:
        found = verdict([0.9], [0.8999])
        assert (found.verdict, found.dense.std) == ("none", None)
        assert verdict([0.9], [0.9]).verdict == "strict"

    def test_no_value_is_no_verdict(self) -> None:
        with pytest.raises(ValueError, match="at least one seed"):
            verdict([], [0.5])


class TestNearChance:
    """No verdict where the dense model itself has learnt nothing, or scatters down to chance."""

    # Two of three dense runs guess: mean 0.5933, standard deviation 0.1305.
    SCATTERED = (0.52, 0.516, 0.744)

    def test_a_ticket_at_chance_does_not_win_against_dense_runs_that_scatter(self) -> None:
        assert verdict(self.SCATTERED, [0.5, 0.5, 0.5]).verdict == "winning"  # without a chance level
        judged = verdict(self.SCATTERED, [0.5, 0.5, 0.5], 0.51)
        assert judged.verdict == "undecided"
        assert judged.reason == "dense 0.5933 ± 0.1305 (0.5160 to 0.7440) is too close to chance, 0.5100"

    @pytest.mark.parametrize(
        ("dense", "chance", "undecided"),
        [
            ([0.5, 0.5, 0.5], 0.5, True),  # the dense runs guess
            ([0.56], 0.51, False),  # a single run, more than a tenth of the way to 1 above chance
            ([0.55], 0.51, True),
            ([0.80, 0.90, 1.00], 0.5, False),  # scattered, but far above
            ([0.60, 0.70, 0.80], 0.5, True),  # two deviations reach down to chance
            ([0.60, 0.70, 0.80], 0.49, False),
            ([0.97, 0.97], 0.95, False),  # 95 % of the examples have one label
            ([0.954, 0.954], 0.95, True),
            ([0.02, 0.05, 0.08], 0.0, True),  # a correlation
            ([0.5, 0.55, 0.6], 0.0, False),
            ([-0.1, 0.1], 0.0, True),
            ([0.5, 0.5], None, False),  # chance is unknown
        ],
    )
    def test_the_margin(self, dense: list[float], chance: float | None, undecided: bool) -> None:
        assert (verdict(dense, [1.0], chance).verdict == "undecided") is undecided

    @pytest.mark.parametrize(
        ("task", "labels", "expected"),
        [
            ("sst2", [0, 0, 0, 1], {"accuracy": 0.75}),
            ("mrpc", [0, 1, 1, 1], {"accuracy": 0.75, "f1": 6 / 7}),
            ("cola", [0, 1, 1, 1], {"mcc": 0.0, "accuracy": 0.75}),
            ("stsb", [0.0, 5.0, 5.0], {"pearson": 0.0, "spearman": 0.0}),
        ],
    )
    def test_chance_is_the_best_constant_answer(
        self, task: str, labels: list[float], expected: dict[str, float]
    ) -> None:
        examples = [Example(("a",), label) for label in labels]
        chances = chance_metrics(task, {"validation": examples})
        assert chances == pytest.approx(expected)
        if task in ("sst2", "mrpc"):  # as the metrics of that answer are
            constant = [max(set(labels), key=labels.count)] * len(labels)
            assert chances == pytest.approx(compute(task, constant, labels))

    def test_of_every_split_and_kind(self) -> None:
        matched, mismatched = (
            [Example(("a", "b"), label) for label in labels] for labels in ([0, 0, 1], [2, 1])
        )
        chances = chance_metrics("mnli", {"validation_matched": matched, "validation_mismatched": mismatched})
        assert chances == pytest.approx({"accuracy_matched": 2 / 3, "accuracy_mismatched": 0.5})
        questions = [Question("1", "who", "the cat", (("cat", 4),))]
        assert chance_metrics("squad", {"validation": questions}) == {"f1": 0.0, "exact_match": 0.0}
        assert chance_metrics("wikitext-2", {"validation": ["a cat"]}) == {"accuracy": 0.0}

    @pytest.mark.parametrize(
        ("row", "metric", "chance"),
        [
            ({"task": "sst2", "chance": {"accuracy": 0.6}}, "accuracy", 0.6),
            ({"task": "sst2", "chance": 0.7}, "accuracy", 0.7),
            ({"task": "sst2"}, "accuracy", 0.5),
            ({"task": "mnli"}, "accuracy_matched", 1 / 3),
            ({"task": "cola"}, "mcc", 0.0),
            ({"task": "wikitext-2"}, "accuracy", 0.0),
            ({"task": "own"}, "pearson", 0.0),
            ({"task": "own"}, "accuracy", None),
        ],
    )
    def test_a_record_of_before_has_the_chance_of_equal_classes(
        self, row: dict[str, Any], metric: str, chance: float | None
    ) -> None:
        assert chance_of(row, metric) == pytest.approx(chance)

    def test_a_summary_holds_chance_and_spread(self) -> None:
        dense = [
            {"metrics": {"accuracy": value}, "seed": seed, "chance": {"accuracy": 0.51}}
            for seed, value in enumerate(self.SCATTERED)
        ]
        fields = summarise("accuracy", [{"metrics": {"accuracy": 0.5}, "seed": 0}], dense)
        assert (fields["verdict"], fields["chance"]) == ("undecided", 0.51)
        assert fields["dense_values"] == list(self.SCATTERED)
        assert "(0.5160 to 0.7440)" in fields["reason"]

    def test_a_summary_of_before_is_judged_again(self) -> None:
        before = {
            "task": "sst2",
            "metric": "accuracy",
            "verdict": "winning",
            "dense_mean": 0.59,
            "dense_std": 0.13,
        }
        assert judged_again(before)["verdict"] == "undecided"
        assert judged_again(before | {"dense_mean": 0.9})["verdict"] == "winning"
        assert judged_again(before | {"reason": None})["verdict"] == "winning"
        assert judged_again({"mean": 0.5}) == {"mean": 0.5}
