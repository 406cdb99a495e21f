"""Running text as token ids: one stream of tokens, cut into blocks, for language modelling."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING

from sparsebert.tasks.encoded import TEXTS_AT_ONCE, Encoded, Row
from sparsebert.tasks.registry import Task
from sparsebert.tasks.text_format import TextFormat

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Placeholder of WikiText for a rare word.
_RARE_WORD = "<unk>"


def masked_blocks(
    lines: Sequence[str], task: Task, tokenizer: PreTrainedTokenizerBase, text_format: TextFormat
) -> Encoded:
    """Encode running text for masked language modelling: blocks between [CLS] and [SEP], without loss."""
    return Encoded(_blocks(lines, tokenizer, text_format.length(task)), {})


def causal_blocks(
    lines: Sequence[str], task: Task, tokenizer: PreTrainedTokenizerBase, text_format: TextFormat
) -> Encoded:
    """Encode running text for causal language modelling, as run_clm.py of transformers does.

    Lines keep their ends, blocks have no special tokens, and the last block stays.

    Raises:
        ValueError: The length leaves no token to predict, or the text has none.
    """
    length = text_format.length(task)
    # The first token of a block is predicted by none.
    if length < 2:
        raise ValueError(f"max_length={length} leaves no token to predict; use at least 2")
    blocks = Encoded(_blocks(lines, tokenizer, length, causal=True), {})
    if len(lines) and not len(blocks):
        raise ValueError(f"{task.name}: one token of text leaves none to predict; use a longer text")
    return blocks


def _blocks(
    lines: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_length: int, *, causal: bool = False
) -> Iterator[Row]:
    """Join all lines into one stream of tokens, and yield it in blocks, each between [CLS] and [SEP].

    For causal language modelling lines keep their ends, blocks have no special tokens, and a last one of one
    token is left out.
    """
    unknown_token = tokenizer.unk_token or _RARE_WORD
    # Lines of the hub end in a newline, those of a file do not.
    end = "\n" if causal else ""
    texts = [line.rstrip("\r\n").replace(_RARE_WORD, unknown_token) + end for line in lines if line.strip()]
    chunks = (texts[start : start + TEXTS_AT_ONCE] for start in range(0, len(texts), TEXTS_AT_ONCE))
    ids: Iterator[int] = chain.from_iterable(
        chain.from_iterable(tokenizer(chunk, add_special_tokens=False, truncation=False)["input_ids"])
        for chunk in chunks
    )
    has_types = "token_type_ids" in tokenizer.model_input_names
    room, least = (max_length, 2) if causal else (max_length - 2, 1)
    block: list[int] = []
    for token in chain(ids, (None,)):
        if len(block) >= least and (token is None or len(block) == room):
            row = block if causal else [tokenizer.cls_token_id, *block, tokenizer.sep_token_id]
            yield {"input_ids": row} | ({"token_type_ids": [0] * len(row)} if has_types else {})
            block = []
        if token is not None:
            block.append(token)
