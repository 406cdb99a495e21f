"""Prompt templates: text around the texts of an example, with a blank, such as ``{0} It was [MASK].``"""

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
    """Raise ValueError unless a template has one ``[MASK]`` and each placeholder ``{0}``, ``{1}`` once."""
    if task.kind == "span":
        raise ValueError(f"{task.name} takes no template: it reads label words at every token")
    wanted = [str(index) for index in range(len(task.columns))]
    if template.count(_BLANK) != 1 or sorted(_PLACE.findall(template)) != wanted:
        places = " and ".join(f"{{{index}}}" for index in wanted)
        raise ValueError(
            f"template must hold one {_BLANK} and, once each, {places} for the texts of {task.name}, got "
            f"{template!r}"
        )


def filled(
    template: str,
    rows: Sequence[tuple[str, ...]],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
) -> Iterator[str]:
    """Yield the template filled with the texts of each row.

    ``[MASK]`` becomes the tokenizer's mask token; a mask token within a text becomes an unknown word. If a
    row is too long, its texts are truncated at the end, the longest first; the template stays whole.

    Args:
        template: The template.
        rows: Texts of the examples.
        tokenizer: The model's tokenizer.
        max_length: Maximum tokens of a filled template, special tokens included.

    Raises:
        ValueError: If the length leaves no room for text, or the tokenizer is slow or has no mask token.
    """
    mask = tokenizer.mask_token
    if mask is None or not tokenizer.is_fast:
        raise ValueError(
            f"a template needs a fast tokenizer with a mask token, got {type(tokenizer).__name__}"
        )
    around = template.replace(_BLANK, mask)

    def put(texts: Sequence[str]) -> str:
        return _PLACE.sub(lambda place: texts[int(place[1])], around)

    def tokens(text: str) -> int:
        return len(tokenizer(text)["input_ids"])

    width = len(_PLACE.findall(template))
    if tokens(put([""] * width)) + width > max_length:
        raise ValueError(f"max_length={max_length} leaves no room for text beside the template")
    for row in rows:
        texts = [text.replace(mask, str(tokenizer.unk_token)) for text in row]
        # The filled template may have more tokens than the template and its texts separately.
        while (excess := tokens(put(texts)) - max_length) > 0:
            texts = _shortened(texts, excess, tokenizer)
        yield put(texts)


def _shortened(texts: Sequence[str], excess: int, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return the texts without ``excess`` tokens, each removed from the end of the longest text."""
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
