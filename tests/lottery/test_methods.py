"""What rounds each method lays out, its defaults, and options that do not fit."""

from __future__ import annotations

from dataclasses import fields
from fractions import Fraction
from typing import Any

import pytest
import torch

from sparsebert.lottery import methods
from sparsebert.lottery.experiment import RunConfig
from sparsebert.lottery.mask_learning_method import MaskLearningMethod
from sparsebert.lottery.method import Head, Rewind, Source, lottery_method, lottery_methods
from sparsebert.mask_learning.smp import Mask, StaticModelPruningRule
from sparsebert.pruning.pruning_units import PruningUnits
from sparsebert.tickets.ticket import Ticket

TICKET = Ticket({"encoder.layer.0.attention.self.query": torch.eye(4, dtype=torch.bool)})

SOURCES = (
    "Chen et al. 2020",
    "Frankle and Carbin 2019",
    "Lee et al. 2019",
    "Zhu and Gupta 2017",
    "Sanh et al. 2020",
    "Jiang et al. 2023",
    "Xu et al. 2022",
    "Prasanna et al. 2020",
    "Chen et al. 2021",
    "Super Tickets",
)


def path(name: str, sparsity: str, **options: Any) -> list[tuple[str, str, str]]:
    """Source, sparsity and score of each round."""
    rounds = lottery_method(name, **options).rounds(Fraction(sparsity))
    return [(each.source.value, str(float(each.sparsity)), each.scores.name) for each in rounds]


def test_they_are_known_by_name() -> None:
    assert {cls.name for cls in map(methods.__dict__.get, methods.__all__)} == set(lottery_methods())


@pytest.mark.parametrize("name", lottery_methods())
def test_each_says_where_it_comes_from(name: str) -> None:
    text = type(lottery_method(name)).__doc__
    assert text is not None
    assert name in ("dense", "snip-imp") or any(who in text for who in SOURCES)


@pytest.mark.parametrize("name", lottery_methods())
def test_each_option_has_a_help(name: str) -> None:
    for option in fields(lottery_method(name)):
        assert option.metadata["help"], option.name


def test_a_rule_has_the_options_of_its_method() -> None:
    method = lottery_method("smp", mask="L", ramp_steps=7, choose_every=2)
    assert isinstance(method, MaskLearningMethod)
    assert method.rule == StaticModelPruningRule(mask=Mask.LOCAL, ramp_steps=7)


def test_imp_trains_the_dense_model_and_then_each_tenth() -> None:
    dense, *rest = path("imp", "0.7")
    assert dense[:2] == ("all", "0.0")
    assert rest == [("trained", f"0.{i}", "magnitude") for i in range(1, 8)]


def test_imp_may_prune_shares_of_what_remains() -> None:
    rounds = lottery_method("imp", share="remaining", step=0.2).rounds(Fraction("0.488"))
    assert [each.sparsity for each in rounds] == [0, Fraction(1, 5), Fraction(9, 25), Fraction(61, 125)]


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("standard", {"step": 0.3}, [("all", "0.0"), ("trained", "0.3"), ("trained", "0.6")]),
        ("one-shot", {}, [("start", "0.6")]),
        ("one-shot", {"of": "trained"}, [("all", "0.0"), ("trained", "0.6")]),
        ("random", {}, [("start", "0.6")]),
        ("importance", {}, [("all", "0.0"), ("trained", "0.6")]),
        ("snip", {}, [("start", "0.6")]),
        ("snip-imp", {"step": 0.05}, [("start", "0.5"), ("trained", "0.55"), ("trained", "0.6")]),
        ("snip-imp", {"first": 0.9}, [("start", "0.6")]),
        ("gradual", {}, [("learned", "0.6")]),
        ("movement", {}, [("learned", "0.6")]),
        ("smp", {"mask": "G"}, [("learned", "0.6")]),
        ("l0", {}, [("learned", "0.6")]),
        ("early-bird", {}, [("all", "0.0"), ("found", "0.6")]),
        ("super-tickets", {"step": 0.3}, [("all", "0.0"), ("found", "0.3"), ("found", "0.6")]),
        ("importance-search", {}, [("all", "0.0"), ("found", "0.0")]),
        ("ticket", {}, [("given", "0.6")]),
        ("magnitude-search", {}, [("all", "0.0"), ("found", "0.0")]),
        ("bad-weights", {}, [("all", "0.0"), ("found", "0.6")]),
        ("random-weights", {}, [("given", "0.6")]),
        ("bad-units", {}, [("given", "0.6")]),
        ("random-units", {}, [("given", "0.6")]),
        ("random-layerwise", {}, [("given", "0.6")]),
        ("random-reinit", {}, [("given", "0.6")]),
        ("shuffled", {"within": "layers"}, [("given", "0.6")]),
    ],
)
def test_rounds(name: str, options: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    assert [each[:2] for each in path(name, "0.6", **options)] == expected


def test_scores_are_those_of_the_name() -> None:
    assert path("random", "0.5")[0][2] == "random"
    assert [each[2] for each in path("snip-imp", "0.7")] == ["snip", "magnitude", "magnitude"]


def test_defaults_are_those_of_the_sources() -> None:
    imp = lottery_method("imp")
    assert (imp.rewind, imp.head, imp.schedule_rounds) == (Rewind.PRETRAINED, Head.KEEP, 1)
    assert lottery_method("standard").rewind is Rewind.NONE
    assert lottery_method("dense").rounds(Fraction(0))[0].source is Source.DENSE


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("inp", {}, "did you mean 'imp'"),
        ("imp", {"rewind": "pretraind"}, "did you mean 'pretrained'"),
        ("imp", {"head": "kept"}, "did you mean 'keep'"),
        ("random", {"share": "original"}, "unknown option of method random 'share'"),
        ("imp", {"rewind": "step"}, "rewind='step' needs a positive rewind_step"),
        ("imp", {"rewind_step": 5}, "rewind='step' needs a positive rewind_step"),
        ("imp", {"rewind": "none", "head": "rewind"}, "head must be 'keep'"),
        ("imp", {"schedule_rounds": 0}, "schedule_rounds must be at least 1"),
        ("snip", {"batches": 0}, "batches must be at least 1"),
        ("importance", {"batches": 0}, "batches must be at least 1"),
        ("magnitude-search", {"batches": 0}, "batches must be at least 1"),
        ("magnitude-search", {"threshold": 1.0}, "threshold must be between 0 and 1"),
        ("magnitude-search", {"step": 0.0}, "step must be between 0 and 1"),
        ("magnitude-search", {"most_steps": 0}, "most_steps must be at least 1"),
        ("smp", {"choose_every": 0}, "choose_every must be at least 1, got 0"),
        ("early-bird", {"search_learning_rate": 0.0}, "search_learning_rate must be positive"),
    ],
)
def test_options_that_do_not_fit_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lottery_method(name, **options)


@pytest.mark.parametrize(
    ("name", "sparsity", "ticket", "message"),
    [
        ("imp", None, None, "sparsity is missing"),
        ("imp", 1.0, None, r"sparsity must be in \[0, 1\)"),
        ("imp", 70, None, r"sparsity must be in \[0, 1\)"),
        ("imp", float("nan"), None, "finite number"),
        ("imp", 0.5, TICKET, "finds its own ticket"),
        ("ticket", 0.5, None, "needs a ticket"),
        ("ticket", 0.5, TICKET, "equal the ticket's sparsity, 0.7500"),
        ("dense", 0.5, None, "sparsity must be 0, got 0.5"),
    ],
)
def test_requests_that_make_no_sense_are_refused(
    name: str, sparsity: float | None, ticket: Ticket | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        RunConfig(lottery_method(name), sparsity, ticket=ticket)


def test_two_requests_are_the_same_if_they_describe_the_same() -> None:
    def describe(**changes: Any) -> dict[str, Any]:
        return RunConfig(lottery_method("ticket"), units=PruningUnits(**changes), ticket=TICKET).describe()

    assert describe() == describe()
    assert describe() != describe(scope="matrix")
    assert describe()["ticket"] != RunConfig(lottery_method("ticket"), ticket=~TICKET).describe()["ticket"]


def test_the_first_share_of_snip_is_a_number() -> None:
    with pytest.raises(ValueError, match="first must be a finite number, got nan"):
        lottery_method("snip-imp", first=float("nan")).rounds(Fraction("0.7"))


@pytest.mark.parametrize("name", lottery_methods())
def test_without_units_a_method_chooses_among_those_that_it_is_for(name: str) -> None:
    """What the command asks for where nothing is said: no method refuses its own."""
    method = lottery_method(name)
    method.require_units(method.granularity, method.scope)
