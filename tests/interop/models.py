"""Models and tickets that the tests of foreign files share."""

from __future__ import annotations

from typing import Any

import torch

from sparsebert.tickets.ticket import Ticket

LAYERS = 11


def bert(kind: str = "BertModel", layers: int = LAYERS) -> Any:
    """Eleven layers, so that the order of the names is not that of the numbers; 6x6 matrices and 10x6."""
    import transformers

    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=11,
        hidden_size=6,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=10,
        max_position_embeddings=8,
    )
    return getattr(transformers, kind)(config)


def without_an_mlp(ticket: Ticket) -> Ticket:
    """The ticket with the up-projection of layer 2 taken out whole."""
    gone = "encoder.layer.2.intermediate"
    masks = {
        key: torch.zeros_like(mask) if key.startswith(gone) else mask for key, mask in ticket.masks.items()
    }
    return Ticket(masks, removed=[gone])
