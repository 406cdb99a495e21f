"""A ticket of heads and MLPs, and the arrays that describe it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sparsebert.pruning.head_mlp_masks import UnitMasks
from sparsebert.tickets.ticket import Ticket

transformers = pytest.importorskip("transformers")

HEADS = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]], dtype=np.float32)
MLPS = np.array([1.0, 0.0, 1.0], dtype=np.float32)


def bert(**changes: int) -> transformers.BertModel:
    shape = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24, "num_hidden_layers": 3}
    return transformers.BertModel(transformers.BertConfig(vocab_size=20, **shape | changes))


def good() -> Ticket:
    return UnitMasks(torch.from_numpy(HEADS == 1), torch.from_numpy(MLPS == 1)).ticket(bert(), {})
