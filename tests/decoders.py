"""Small random decoders: GPT-2, made of ``Conv1D``, and a Llama with grouped key and value heads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")

WORDS = (
    "<unk>",
    "<end>",
    *["a", "the", "film", "plot", "is", "was", "good", "fine", "bad", "poor", "and", "but"],
)
IDS = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 1, "initializer_range": 0.3}


def gpt2(name: str = "GPT2LMHeadModel", **changes: Any) -> Any:
    sizes = {"n_embd": 24, "n_head": 3, "n_layer": 2, "vocab_size": len(WORDS), "n_positions": 32}
    return _built(name, transformers.GPT2Config(**sizes | IDS | changes))


def llama(name: str = "LlamaForCausalLM", **changes: Any) -> Any:
    sizes = {
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_hidden_layers": 2,
        "vocab_size": len(WORDS),
        "max_position_embeddings": 32,
    }
    return _built(name, transformers.LlamaConfig(**sizes | IDS | changes))


def _built(name: str, config: Any) -> Any:
    torch.manual_seed(0)
    return getattr(transformers, name)(config).eval()


def batches(count: int = 4) -> list[dict[str, Any]]:
    """Labelled batches of random tokens."""
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(2, len(WORDS), (4, 12), generator=generator) for _ in range(count)]
    return [{"input_ids": each, "attention_mask": torch.ones_like(each), "labels": each} for each in ids]


def tokenizer() -> Any:
    """A word tokenizer without special tokens around a text, and without padding, as GPT-2's."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", bos_token="<end>", eos_token="<end>", model_max_length=32
    )


def saved(folder: Path, model: Any) -> Path:
    """Save a model with the tokenizer."""
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder
