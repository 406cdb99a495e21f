"""Masked language models as task models: the logits of words serve as the outputs of a task's head.

The pre-trained head then serves as the task's head, so only the masks need training (Static Model Pruning,
Jiang et al. 2023, section 3.3).
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

# Task -> one word per label, in the order of the labels; for spans, words for start and end; for scores, the
# word whose logit is the score. They follow the released code of Jiang et al., but for two tasks. That code
# renumbers the labels of MNLI but not its words, so it has "Maybe" for entailment, "No" for neutral and "Yes"
# for contradiction; and its eval.sh has "No" for the entailment of WNLI, which run.sh does not train.
WORDS = {
    "sst2": ("terrible", "great"),
    "cola": ("incorrect", "correct"),
    "mrpc": ("No", "Yes"),
    "qqp": ("No", "Yes"),
    "mnli": ("Yes", "Maybe", "No"),
    "qnli": ("Yes", "No"),
    "rte": ("Yes", "No"),
    "wnli": ("No", "Yes"),
    "stsb": ("Yes",),
    "squad": ("yes", "no"),
}
RELEASED = WORDS | {"mnli": ("Maybe", "No", "Yes"), "wnli": ("Yes", "No")}
KNOWN_WORDS = "task"


def words_for(task: Task, option: str, *, released: bool = False) -> tuple[str, ...]:
    """Return the words for a task's labels.

    Args:
        task: The task.
        option: The words, such as "terrible,great", or "task" for the built-in words of the task.
        released: Whether the built-in words are exactly the words of SMP's released code.

    Raises:
        ValueError: For language modelling and tags of words, a task without built-in words, or a number of
            words that differs from the number of the head's outputs.
    """
    if task.models_language or task.kind == "tokens":
        other = "models language" if task.models_language else "has a tag for each word"
        raise ValueError(f"label words need a task with classes, scores or spans; {task.name} {other}")
    if option == KNOWN_WORDS:
        if task.name not in WORDS:
            example = "Yes" if task.kind == "regression" else "terrible,great"
            raise ValueError(f"{task.name} has no built-in label words; pass some, such as {example}")
        return (RELEASED if released else WORDS)[task.name]
    words = tuple(word.strip() for word in option.split(","))
    if len(words) != task.num_labels:
        needed = f"{task.num_labels} label word{'s' if task.num_labels > 1 else ''}"
        raise ValueError(f"{task.name} needs {needed}, got {len(words)}: {option}")
    return words


def word_ids(words: Sequence[str], tokenizer: Any) -> list[int]:
    """Return the token of each word. Raises ValueError unless each word is one known, distinct token."""
    ids = []
    for word in words:
        # With a leading space, as within a text: RoBERTa's vocabulary has whole words only in this form.
        tokens = tokenizer(f" {word}", add_special_tokens=False)["input_ids"]
        if len(tokens) != 1:
            raise ValueError(
                f"label word {word!r} must be one token of the model, got {len(tokens)}; choose another"
            )
        if tokens[0] == tokenizer.unk_token_id:
            raise ValueError(f"label word {word!r} is not in the model's vocabulary; choose another")
        if tokens[0] in ids:
            raise ValueError(f"label word {word!r} stands for two labels; choose another")
        ids.append(tokens[0])
    return ids


def load_in_words(
    name: str, task: Task, tokenizer: Any, words: Sequence[str] | None, template: str | None = None
) -> Any:
    """Load a masked language model whose forward pass returns the logits of the task's labels.

    Args:
        name: Hub id or folder of the model.
        task: The task.
        tokenizer: The model's tokenizer.
        words: Words for the task's labels; None for the words and the template of a trained model.
        template: Text around each example, with a blank for the words.

    Returns:
        The model in fp32 on the CPU.

    Raises:
        ValueError: For a checkpoint without the head of a masked language model, one trained on other labels,
            and as :func:`word_ids` and :func:`sparsebert.tasks.prompt_template.require_template`.
    """
    config = load_config(name)
    cls = next((each for each in config.architectures or () if each.endswith("ForMaskedLM")), None)
    if cls is None:
        kind = ", ".join(config.architectures or ()) or "model without a head"
        raise ValueError(f"label words need the head of a masked language model; {name} is a {kind}")
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
    in_words = _in_words(getattr(transformers, cls))
    return load_weights(in_words, name, fresh_head=False, config=config, dtype=torch.float32)


class _InWords:
    """Mixin for transformers' classes for masked language modelling.

    The logit of a class is the logit of its word at the first [MASK], or at the first token ([CLS]) if there
    is none; the score of a regression is the logit of its one word, as it stands. The logits of a span's
    start and end are the logits of two words at every token. Parameters and their names are the same as in
    the language model.
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
        """Return logits, and a loss if there are targets.

        Args:
            labels: int64 [batch]; the scores of a regression, floating-point [batch].
            start_positions: int64 [batch]; positions beyond the last token are not scored.
            end_positions: int64 [batch]; positions beyond the last token are not scored.
            inputs: Inputs of the language model.
        """
        logits = super().forward(**inputs).logits  # type: ignore[misc]
        kind = self.config.label_words["kind"]
        if kind != "span":
            at = self._first_mask(inputs["input_ids"])
            logits = logits[torch.arange(len(at), device=at.device), at]
            loss = None
            if labels is not None and kind == "regression":
                loss = F.mse_loss(logits.squeeze(-1).float(), labels.float())
            elif labels is not None:
                loss = F.cross_entropy(logits.float(), labels)
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
        """Return the position of the first [MASK], int64 [batch], or 0, from ids, int64 [batch, tokens]."""
        return (ids == self.config.label_words.get("mask_id")).int().argmax(-1)


class _Rows(nn.Linear):
    """A decoder that computes only some of its outputs and shares the parameters of the whole decoder."""

    def __init__(self, decoder: nn.Linear, ids: Sequence[int]) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = decoder.in_features, decoder.out_features
        self.weight, self.bias = decoder.weight, decoder.bias
        self._ids = list(ids)

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight[self._ids], self.bias[self._ids])


@functools.cache
def _in_words(cls: type) -> Any:
    # transformers saves the class name as the architecture, so the name must not change.
    return type(cls.__name__, (_InWords, cls), {"__module__": __name__})
