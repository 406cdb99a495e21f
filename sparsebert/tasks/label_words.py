"""A language model that answers a task in words: its own head, of which only the words for labels are read.

Nothing has to be trained beside a mask: Static Model Pruning (Jiang et al. 2023, section 3.3) takes the
pre-trained head for a task's head.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_outputs import QuestionAnsweringModelOutput, SequenceClassifierOutput

from sparsebert.tasks import Task, label_config, require_label_order
from sparsebert.tasks.load_checked import load_config, load_weights
from sparsebert.tasks.prompt_template import require_template

# By task: a word for each label, in the order of its labels; for a span, of its start and its end. Those of
# the released code of Jiang et al., but for MNLI, where it says "Maybe" for entailment, "No" for neutral and
# "Yes" for contradiction: labels were renumbered there and the words were not.
WORDS = {
    "sst2": ("terrible", "great"),
    "cola": ("incorrect", "correct"),
    "mrpc": ("No", "Yes"),
    "qqp": ("No", "Yes"),
    "mnli": ("Yes", "Maybe", "No"),
    "qnli": ("Yes", "No"),
    "rte": ("Yes", "No"),
    "wnli": ("No", "Yes"),
    "squad": ("yes", "no"),
}
RELEASED = WORDS | {"mnli": ("Maybe", "No", "Yes")}
OWN = "task"


def words_for(task: Task, asked: str, *, released: bool = False) -> tuple[str, ...]:
    """The words that are asked for: "task" for those of the task, else "terrible,great".

    Raises ValueError for a task without labels or a span, and where there are not as many words as labels.
    """
    if task.kind not in ("classification", "span"):
        raise ValueError(f"{task.name} has no labels to say in words: label words need classes or a span")
    if asked == OWN:
        if task.name not in WORDS:
            raise ValueError(f"no label words are known for {task.name}: name them, such as terrible,great")
        return (RELEASED if released else WORDS)[task.name]
    words = tuple(word.strip() for word in asked.split(","))
    if len(words) != task.num_labels:
        raise ValueError(f"{task.name} needs {task.num_labels} label words, not {len(words)} ({asked})")
    return words


def word_ids(words: Sequence[str], tokenizer: Any) -> list[int]:
    """The token of each word. Raises ValueError for one of several tokens, an unknown or a repeated one."""
    ids = []
    for word in words:
        # As in the middle of a text: RoBERTa's vocabulary has whole words only with the space before them.
        found = tokenizer(f" {word}", add_special_tokens=False)["input_ids"]
        if len(found) != 1:
            raise ValueError(f"label word {word!r} is {len(found)} tokens of the model; it must be one")
        if found[0] == tokenizer.unk_token_id:
            raise ValueError(f"label word {word!r} is not in the model's vocabulary")
        if found[0] in ids:
            raise ValueError(f"label word {word!r} stands for two labels")
        ids.append(found[0])
    return ids


def load_in_words(
    name: str, task: Task, tokenizer: Any, words: Sequence[str] | None, template: str | None = None
) -> Any:
    """The language model of that name, fp32 on the CPU, with a forward like that of a model for the task.

    ``words``: for its labels; None for those that a trained model was saved with, as is then its template.
    ``template``: the text that examples are put into, so that the words stand in its blank. Raises ValueError
    for a checkpoint without a language model's head, one trained on other labels, and as :func:`word_ids` and
    :func:`sparsebert.tasks.prompt_template.require_template` do.
    """
    config = load_config(name)
    cls = next((each for each in config.architectures or () if each.endswith("ForMaskedLM")), None)
    if cls is None:
        found = ", ".join(config.architectures or ()) or "model without a head"
        raise ValueError(f"label words need the head of a masked language model; {name} is a {found}")
    if words is None:
        if config.label_words["kind"] != task.kind:
            raise ValueError(
                f"{name} was trained on a {config.label_words['kind']}, {task.name} is a {task.kind}"
            )
        require_label_order(task, config)
    else:
        for option, value in label_config(task).items():
            setattr(config, option, value)
        if template is not None:
            require_template(template, task)
        config.label_words = {
            "words": list(words),
            "ids": word_ids(words, tokenizer),
            "kind": task.kind,
            "mask_id": tokenizer.mask_token_id,
            "template": template,
        }
    return load_weights(_in_words(getattr(transformers, cls)), name, config=config, dtype=torch.float32)


class _InWords:
    """Goes before a class of transformers' for masked language modelling.

    The logits of a class are those of its word at the first [MASK], or where there is none at the first
    token, [CLS]; those of a span's start and end are those of two words at every token. The parameters and
    their names are the language model's.
    """

    config: Any

    def __init__(self, config: Any, *args: Any, **options: Any) -> None:
        super().__init__(config, *args, **options)  # type: ignore[call-arg]
        model: Any = self
        model.set_output_embeddings(_Rows(model.get_output_embeddings(), config.label_words["ids"]))

    def forward(
        self,
        labels: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        **inputs: Any,
    ) -> Any:
        """``labels``: int64 [batch]; positions: int64 [batch], beyond the last token for no answer."""
        logits = super().forward(**inputs).logits  # type: ignore[misc]
        if self.config.label_words["kind"] != "span":
            at = self._first_mask(inputs["input_ids"])
            logits = logits[torch.arange(len(at), device=at.device), at]
            loss = None if labels is None else F.cross_entropy(logits.float(), labels)
            return SequenceClassifierOutput(loss=loss, logits=logits)
        start, end = logits.unbind(-1)
        loss = None
        if start_positions is not None and end_positions is not None:
            length = start.shape[1]
            loss = (
                F.cross_entropy(start.float(), start_positions.clamp(0, length), ignore_index=length)
                + F.cross_entropy(end.float(), end_positions.clamp(0, length), ignore_index=length)
            ) / 2
        return QuestionAnsweringModelOutput(loss=loss, start_logits=start, end_logits=end)

    def _first_mask(self, ids: Tensor) -> Tensor:
        """int64 [batch]: where the first [MASK] is, 0 where there is none. ``ids``: int64 [batch, tokens]."""
        return (ids == self.config.label_words.get("mask_id")).int().argmax(-1)


class _Rows(nn.Linear):
    """A decoder of which only some rows are computed; it takes over the parameters of the whole one."""

    def __init__(self, decoder: nn.Linear, ids: Sequence[int]) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = decoder.in_features, decoder.out_features
        self.weight, self.bias = decoder.weight, decoder.bias
        self._ids = list(ids)

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight[self._ids], self.bias[self._ids])


@functools.cache
def _in_words(cls: type) -> Any:
    # Under the same name, which is what is saved as the architecture.
    return type(cls.__name__, (_InWords, cls), {"__module__": __name__})
