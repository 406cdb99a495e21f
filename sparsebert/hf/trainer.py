"""Checkpoints of transformers' Trainer with a sparse model's weights.

The Trainer looks for weight files by transformers' names, which sparse models do not use. Importing this
module extends its three methods that do so; ``sparsebert.hf.import_hook`` imports it.
"""

from __future__ import annotations

import functools
import shutil
from pathlib import Path
from typing import Any

from torch import nn
from transformers.trainer import Trainer

from sparsebert.checkpoints.weight_files import SPARSE_INDEX, SPARSE_WEIGHTS, files_of
from sparsebert.hf.sparse_weights import read_sparse_weights

_load_from_checkpoint = Trainer._load_from_checkpoint
_load_best_model = Trainer._load_best_model
_push_from_checkpoint = Trainer._push_from_checkpoint


@functools.wraps(_load_from_checkpoint)
def load_from_checkpoint(self: Any, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
    """Load the weights of the checkpoint to resume from."""
    if not _load_sparse(self, self.model if model is None else model, resume_from_checkpoint):
        _load_from_checkpoint(self, resume_from_checkpoint, model)


@functools.wraps(_load_best_model)
def load_best_model(self: Any) -> None:
    """Load the weights of the best checkpoint."""
    if not _load_sparse(self, self.model, self.state.best_model_checkpoint):
        _load_best_model(self)


@functools.wraps(_push_from_checkpoint)
def push_from_checkpoint(self: Any, checkpoint_folder: str) -> None:
    """Copy the weights to the output folder, and upload it."""
    folder = Path(checkpoint_folder)
    if self.is_world_process_zero():
        for file in [*files_of(folder, SPARSE_WEIGHTS), *folder.glob(SPARSE_INDEX)]:
            shutil.copy(file, self.args.output_dir)
    _push_from_checkpoint(self, checkpoint_folder)


def _load_sparse(trainer: Any, model: nn.Module, folder: str) -> bool:
    """Load a sparse model's weights from a checkpoint; return False for a checkpoint without such weights."""
    tensors = read_sparse_weights(Path(folder))
    if tensors:
        trainer._issue_warnings_after_load(model.load_state_dict(tensors, strict=False))
    return bool(tensors)


Trainer._load_from_checkpoint = load_from_checkpoint
Trainer._load_best_model = load_best_model
Trainer._push_from_checkpoint = push_from_checkpoint
