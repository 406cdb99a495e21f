"""The disk space that a round needs, as far as it is known before the round."""

from __future__ import annotations

import math

from sparsebert.lottery.experiment import Experiment, RunConfig
from sparsebert.lottery.mask_learning_method import MaskLearningMethod
from sparsebert.lottery.method import Rewind
from sparsebert.training.checkpoint import TRAINED_COPIES

# States of random generators, settings of the training and its log.
_OTHER_BYTES_IN_CHECKPOINT = 2**15
# Two checkpoints are kept, and exist while the next one is written.
_MAX_CHECKPOINTS = 3
_BITS_IN_WEIGHT = 32


def round_bytes(experiment: Experiment, config: RunConfig, number: int, steps: int) -> int:
    """Return the size of a run's folder in bytes, earlier rounds included, when it is largest in a round.

    Args:
        experiment: Model and data.
        config: Configuration of the run.
        number: Number of the round, from 0.
        steps: Optimizer steps of a round.
    """
    method, later = config.method, number > 0
    model = weight_bytes(experiment)
    trained, best = model, 0
    if isinstance(method, MaskLearningMethod):
        trained += method.score_bytes(experiment.model, config.units)
        if getattr(method, "choose_every", None) is not None:
            best = 2 * trained  # The file of the best masks, and the one that replaces it.
    checkpoints = math.ceil(steps / config.training.save_steps)
    if method.rewind in (Rewind.STEP, Rewind.NONE):
        checkpoints += 1  # at the step to rewind to, or copied from there
    checkpoints = min(checkpoints, _MAX_CHECKPOINTS)
    if method.rewind is Rewind.STEP:
        checkpoints += 1  # the folder ``rewind``
    if method.rewind is Rewind.NONE and later:
        checkpoints += _MAX_CHECKPOINTS - 1  # those of the round before
    # The initial weights; the trained weights of this round, the last and the best one; the final model.
    snapshots = 2 + min(number, 2) + 1
    tickets = (number + 2) * model // _BITS_IN_WEIGHT
    return (
        checkpoints * (TRAINED_COPIES * trained + _OTHER_BYTES_IN_CHECKPOINT)
        + snapshots * model
        + best
        + tickets
        + method.file_bytes(experiment, config)
    )


def weight_bytes(experiment: Experiment) -> int:
    """Return the bytes of the model's weights."""
    return sum(each.nbytes for each in experiment.model.parameters())
