"""Epilogues compiled ahead of time issue as many instructions an element as the cost table says."""

from __future__ import annotations

import json

import pytest

from sparsebert_kernels.cuda import epilogue_cost
from tests.triton.test_aot import run

TARGETS = {"sm_80": 8, "sm_90": 9, "sm_100": 10}
GELU_LIMIT = 11  # instructions that either GELU may take
ROUNDING = 0.15  # two figures of one decimal, and the set-up that their programs do not share


@pytest.fixture(scope="module")
def issued() -> dict[tuple[str, str], float]:
    """Instructions an output element, by target and label."""
    targets = [word for target in TARGETS for word in ("--target", target)]
    done = run("--module", "tests.triton.epilogue_cases", *targets, "--check")
    assert done.returncode == 0, done.stderr
    rows = map(json.loads, done.stdout.splitlines())
    return {(row["target"], row["label"]): row["element_instructions"] for row in rows}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])
def test_gelu_takes_eleven_instructions_at_most(issued, target, activation):
    added = issued[target, activation] - issued[target, "none"]
    assert 5 < added <= GELU_LIMIT + ROUNDING


@pytest.mark.parametrize("target", TARGETS)
def test_the_table_is_an_upper_bound_near_what_is_compiled(issued, target):
    for activation, added in epilogue_cost.ACTIVATION.items():
        actual = issued[target, activation]
        expected = epilogue_cost.instructions(activation, TARGETS[target])
        assert actual - ROUNDING <= expected <= 1.3 * actual, (activation, added)
    residual = epilogue_cost.instructions("none", TARGETS[target], residual=True)
    assert issued[target, "none residual"] == pytest.approx(residual, rel=0.1)


def test_a_capability_that_was_not_compiled_counts_as_an_older_one():
    assert epilogue_cost.instructions("gelu", 12) == epilogue_cost.instructions("gelu", 10)
    assert epilogue_cost.instructions("gelu", 7) == epilogue_cost.instructions("gelu", 8)
