"""Early-Bird's mask distance: each search, the bound, the draw, and records that lack them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sparsebert.report.early_bird_plots import early_bird_figure, early_bird_pictures, searches
from tests.report.test_run_tables import rounds

SEARCH = {
    "drawn_at": 30,
    "steps": 100,
    "steps_per_epoch": 50,
    "saved": 0.7,
    "settled": True,
    "epsilon": 0.1,
    "window": 2,
    "distances": [[10, 0.4], [20, 0.09], [30, 0.05]],
}


def run(seed: int = 1, **changes: Any) -> list[Any]:
    dense, ticket = rounds("early-bird", [0.0, 0.3], [0.8, 0.79], seed=seed)
    return [dense | {"search": None}, ticket | {"search": SEARCH | changes}]


def test_each_seed_has_a_search_with_its_distances() -> None:
    first, second = searches([*run(), *run(seed=2)])
    assert (first.name, second.name) == ("early-bird 30%, seed 1", "early-bird 30%, seed 2")
    assert first.points == ((10, 0.4), (20, 0.09), (30, 0.05))
    assert (first.epsilon, first.window, first.drawn_at) == (0.1, 2, 30)


def test_searches_of_other_methods_and_fixed_draws_have_no_distances() -> None:
    assert searches(run(distances=[])) == []
    judged = rounds("importance", [0.5], [0.8], search=[{"metric": 0.8}])
    assert searches([*judged, *rounds("smp-l", [0.5], [0.8], search={"step": 5, "metric": 0.5})]) == []
    assert early_bird_pictures(judged) == []


def test_the_alt_text_says_where_the_distance_starts_and_when_the_ticket_is_drawn() -> None:
    (picture,) = early_bird_pictures([*run(), *run(seed=2, settled=False)])
    course = "40.0% at step 10, 5.0% at step 30 of 100, where its ticket was drawn"
    assert picture.alt == (
        f"Mask distance of Early-Bird: tiny on sst2, 2 runs. early-bird 30%, seed 1: {course}. "
        f"early-bird 30%, seed 2: {course}, before its mask had settled."
    )
    assert "It waits for 2 consecutive distances below 0.1 (dashed)." in picture.caption


def test_records_of_versions_that_logged_no_epsilon_have_no_line_and_it_is_said() -> None:
    pytest.importorskip("matplotlib")
    old = {name: value for name, value in SEARCH.items() if name not in ("epsilon", "window")}
    (row,) = rounds("early-bird", [0.3], [0.8], search=old)
    (picture,) = early_bird_pictures([row])
    assert "The records are of a version that did not log epsilon: it is not drawn." in picture.caption
    assert not early_bird_figure("title", searches([row])).axes[0].texts
    (mixed,) = early_bird_pictures([row | {"seed": 9}, *run()])
    assert "The records of early-bird 30%, seed 9 are of a version" in mixed.caption


def test_the_line_the_bound_and_the_draw_are_drawn() -> None:
    pytest.importorskip("matplotlib")
    (axes,) = early_bird_figure("title", searches(run())).axes
    line, star, bound = (np.asarray(each.get_xydata()).tolist() for each in axes.get_lines())
    assert line == [[10, 40], [20, 9], [30, 5]]
    assert star == [[30, 5]]
    assert bound[0][1] == bound[1][1] == 10
    assert [text.get_text() for text in axes.texts] == ["epsilon 0.1"]
    assert axes.get_xlim() == (0, 100)
    assert axes.child_axes[0].get_xlabel() == "epochs"


def test_without_one_length_of_an_epoch_there_is_no_axis_of_epochs() -> None:
    pytest.importorskip("matplotlib")
    (axes,) = early_bird_figure("title", searches([*run(), *run(seed=2, steps_per_epoch=7)])).axes
    assert axes.child_axes == []


def test_the_numbers_hold_each_distance() -> None:
    (picture,) = early_bird_pictures(run())
    assert picture.numbers is not None
    assert picture.numbers.rows[1] == (
        "early-bird 30%, seed 1", "20", "0.09", "0.1", "2", "30", "100", "true",
    )  # fmt: skip
