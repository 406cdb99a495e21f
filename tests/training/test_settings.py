"""Settings: how many steps a round has, and refusals."""

from __future__ import annotations

from typing import Any

import pytest

from sparsebert.training.settings import TrainingSettings


@pytest.mark.parametrize(
    ("changes", "examples", "steps"),
    [
        ({}, 67349, 3 * 2105),  # SST-2 in batches of 32
        ({"epochs": 0.5}, 64, 1),
        ({"epochs": 2, "gradient_accumulation": 4, "batch_size": 8}, 100, 2 * 4),
        ({"steps": 300}, 7, 300),
    ],
)
def test_steps_of_a_round(changes: dict[str, Any], examples: int, steps: int) -> None:
    assert TrainingSettings(**changes).steps_of(examples) == steps


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"epochs": 0}, "epochs must be positive"),
        ({"epochs": float("nan")}, "epochs must be positive"),
        ({"learning_rate": -1e-5}, "learning_rate must be positive"),
        ({"weight_decay": -0.1}, "weight_decay must be at least 0"),
        ({"seed": -1}, "seed must be"),
        ({"precision": "bf61"}, "did you mean 'bf16'"),
        ({"schedule": "liner"}, "did you mean 'linear'"),
        ({"device": "gpu"}, "unknown device"),
        ({"save_steps": 0}, "save_steps"),
        ({"warmup_ratio": 1.0}, "warmup_ratio must be at least 0 and below 1, got 1.0; write 10 % as 0.1"),
        ({"warmup_ratio": float("nan")}, "warmup_ratio must be"),
        ({"warmup_ratio": 0.1, "warmup_steps": 5}, "warmup_steps 5 conflicts with warmup_ratio 0.1"),
        ({"optimizer": "adamx"}, "did you mean 'adamax'"),
        ({"optimizer": "sgd", "adam_epsilon": 1e-6}, "adam_epsilon 1e-06 does not apply to sgd"),
        # 0 / 0 where no gradient came: the embeddings of unseen tokens.
        ({"adam_epsilon": 0.0}, "adam_epsilon must be positive, got 0.0"),
        ({"max_grad_norm": -1.0}, "max_grad_norm must be at least 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainingSettings(**changes)


def test_a_round_needs_examples_and_room_for_its_warm_up() -> None:
    with pytest.raises(ValueError, match="training needs at least one example"):
        TrainingSettings().steps_of(0)
    with pytest.raises(ValueError, match="warmup_steps must be below the 10 steps of a round, got 10"):
        TrainingSettings(steps=10, warmup_steps=10).steps_of(100)
    with pytest.raises(ValueError, match="got 1 from a warmup_ratio"):
        TrainingSettings(steps=1, warmup_ratio=0.1).steps_of(100)


@pytest.mark.parametrize(
    ("ratio", "steps", "warmup"), [(0.1, 30, 3), (0.1, 31, 4), (0.06, 50, 3), (0.0, 9, 0)]
)
def test_a_warm_up_ratio_is_a_decimal_share_of_the_schedule_rounded_up(
    ratio: float, steps: int, warmup: int
) -> None:
    assert TrainingSettings(warmup_ratio=ratio).warmup_of(steps) == warmup
