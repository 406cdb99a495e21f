"""Perturbations: what exactly changes, how much of it, and that a seed repeats it."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest

from sparsebert.tasks import Example, Question, find_task
from sparsebert.tasks.perturbations import PERTURBATIONS, perturbed

TEXT = "A gorgeous , witty and seductive movie that nobody in the audience will forget ."
SST2, MNLI, SQUAD = (find_task(name) for name in ("sst2", "mnli", "squad"))


def changed(name: str, text: str = TEXT, severity: float | None = None, seed: int = 0) -> str:
    (example,) = perturbed([Example((text,), 1)], SST2, name, severity=severity, seed=seed)
    assert isinstance(example, Example)
    assert example.label == 1
    return example.texts[0]


class TestTypos:
    @pytest.mark.parametrize(("severity", "count"), [(None, 2), (0.01, 1), (0.5, 8), (1.0, 9)])
    def test_two_neighbours_inside_a_word_change_places(self, severity: float | None, count: int) -> None:
        """The share of 15 words and marks, at most the 9 words with two different letters inside."""
        pairs = [
            pair
            for pair in zip(TEXT.split(), changed("typos", severity=severity).split(), strict=True)
            if pair[0] != pair[1]
        ]
        assert len(pairs) == count
        for before, after in pairs:
            assert sorted(before) == sorted(after)
            assert (before[0], before[-1]) == (after[0], after[-1])
            at = [i for i, (one, two) in enumerate(zip(before, after, strict=True)) if one != two]
            assert at == [at[0], at[0] + 1]

    def test_nothing_to_swap(self) -> None:
        assert changed("typos", "it is so ok , 1234 aaaa") == "it is so ok , 1234 aaaa"


class TestCasing:
    @pytest.mark.parametrize(("severity", "count"), [(None, 7), (0.5, 32), (1.0, 64)])
    def test_letters_change_their_case(self, severity: float | None, count: int) -> None:
        after = changed("casing", severity=severity)
        different = [(one, two) for one, two in zip(TEXT, after, strict=True) if one != two]
        assert len(different) == count
        assert all(one.swapcase() == two for one, two in different)

    def test_letters_without_another_case_stay(self) -> None:
        assert changed("casing", "ß 12 の", 1.0) == "ß 12 の"


class TestNegation:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("a fine film .", "a fine film and false is not true ."),
            ("What a film!", "What a film and false is not true!"),
            ("a film", "a film and false is not true"),
        ],
    )
    def test_a_true_clause_is_added_before_the_end(self, text: str, expected: str) -> None:
        assert changed("negation", text) == expected

    def test_of_a_pair_to_the_second_text(self) -> None:
        (example,) = perturbed([Example(("It rains.", "It is wet."), 0)], MNLI, "negation")
        assert isinstance(example, Example)
        assert example.texts == ("It rains.", "It is wet and false is not true.")


class TestShuffle:
    @pytest.mark.parametrize("seed", range(5))
    def test_no_word_stays(self, seed: int) -> None:
        after = changed("shuffle", seed=seed).split()
        assert Counter(after) == Counter(TEXT.split())
        assert all(one != two for one, two in zip(TEXT.split(), after, strict=True))

    @pytest.mark.parametrize(("severity", "moved"), [(0.01, 2), (0.5, 8)])
    def test_a_share_of_the_words_moves(self, severity: float, moved: int) -> None:
        after = changed("shuffle", severity=severity).split()
        assert sum(one != two for one, two in zip(TEXT.split(), after, strict=True)) == moved

    def test_a_single_word_stays(self) -> None:
        assert changed("shuffle", "film") == "film"


class TestSeeds:
    @pytest.mark.parametrize("name", PERTURBATIONS)
    def test_a_seed_repeats_its_changes_wherever_a_text_stands(self, name: str) -> None:
        rows = [Example((f"{TEXT} {number}",), 0) for number in range(4)]
        once = perturbed(rows, SST2, name, seed=3)
        assert perturbed(rows, SST2, name, seed=3) == once
        assert list(perturbed(rows[::-1], SST2, name, seed=3)) == list(once)[::-1]

    @pytest.mark.parametrize("name", ["typos", "casing", "shuffle"])
    def test_seeds_differ(self, name: str) -> None:
        results = [changed(name, seed=seed) for seed in range(4)]
        assert all(one != two for one, two in pairwise(results))


class TestQuestions:
    def test_the_paragraph_and_its_answers_stay(self) -> None:
        question = Question("7", "Who painted the enormous ceiling ?", TEXT, (("gorgeous", 2),))
        (after,) = perturbed([question], SQUAD, "shuffle")
        assert isinstance(after, Question)
        assert after.question != question.question
        assert (after.context, after.answers, after.id) == (TEXT, question.answers, "7")

    def test_a_question_is_not_negated(self) -> None:
        with pytest.raises(ValueError, match="negation adds a clause to a statement, and squad asks"):
            perturbed([], SQUAD, "negation")


@pytest.mark.parametrize(
    ("task", "name", "severity", "message"),
    [
        ("sst2", "typo", None, "unknown perturbation 'typo'.*typos"),
        ("sst2", "typos", 0.0, r"severity must be in \(0, 1\], got 0"),
        ("sst2", "typos", 1.5, r"severity must be in \(0, 1\], got 1.5"),
        ("sst2", "negation", 0.5, "negation has no degrees: omit the severity"),
        ("wikitext-2", "typos", None, "wikitext-2 is language modelling, whose texts are what is predicted"),
    ],
)
def test_bad_input(task: str, name: str, severity: float | None, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        perturbed([], find_task(task), name, severity=severity)
    assert "\n" not in str(caught.value)
