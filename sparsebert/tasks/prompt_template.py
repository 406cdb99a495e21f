"""Texts in a sentence with a blank, for a language model to fill in: ``{0} It was [MASK].``"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from sparsebert.tasks.registry import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BLANK = "[MASK]"
_PLACE = re.compile(r"\{(\d+)\}")


def require_template(template: str, task: Task) -> None:
    """Raise ValueError unless it has one ``[MASK]`` and, once each, the texts' places ``{0}``, ``{1}``."""
    if task.kind == "span":
        raise ValueError(f"{task.name} reads its words at every token: it takes no template")
    wanted = [str(index) for index in range(len(task.columns))]
    if template.count(_BLANK) != 1 or sorted(_PLACE.findall(template)) != wanted:
        places = " and ".join(f"{{{index}}}" for index in wanted)
        raise ValueError(
            f"template {template!r}: one {_BLANK} and, once each, {places} for the texts of {task.name} are "
            "expected"
        )


def filled(
    template: str,
    rows: Sequence[tuple[str, ...]],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
) -> Iterator[str]:
    """The template with each row's texts in it, which is at most ``max_length`` tokens with special ones.

    ``[MASK]`` becomes the tokenizer's mask token; one in a text becomes an unknown word. What is too long
    loses the ends of its texts, the longest first, and nothing of the template. Raises ValueError for a
    length without room for a text, and for a slow tokenizer or one without a mask token.
    """
    mask = tokenizer.mask_token
    if mask is None or not tokenizer.is_fast:
        raise ValueError(f"a template needs a fast tokenizer with a mask token: {type(tokenizer).__name__}")
    around = template.replace(_BLANK, mask)

    def put(texts: Sequence[str]) -> str:
        return _PLACE.sub(lambda place: texts[int(place[1])], around)

    def tokens(text: str) -> int:
        return len(tokenizer(text)["input_ids"])

    width = len(_PLACE.findall(template))
    if tokens(put([""] * width)) + width > max_length:
        raise ValueError(f"a length of {max_length} tokens leaves no room for text beside the template")
    for row in rows:
        texts = [text.replace(mask, str(tokenizer.unk_token)) for text in row]
        # Beside each other, texts and template may be cut into more tokens than each by itself.
        while (excess := tokens(put(texts)) - max_length) > 0:
            texts = _shortened(texts, excess, tokenizer)
        yield put(texts)


def _shortened(texts: Sequence[str], excess: int, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The texts without so many of their tokens, taken from the end of whichever has the most."""
    spans = [
        tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        for text in texts
    ]
    counts = [len(each) for each in spans]
    for _ in range(min(excess, sum(counts))):
        counts[counts.index(max(counts))] -= 1
    return [
        text[: each[count - 1][1]] if count else ""
        for text, each, count in zip(texts, spans, counts, strict=True)
    ]
