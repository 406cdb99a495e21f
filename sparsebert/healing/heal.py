"""Healing: train what a ticket keeps until the model answers as the dense model does, without labels."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sparsebert.bert import is_bert_like, positions, resolve, structure
from sparsebert.healing.settings import MAX_LENGTH, HealingSettings
from sparsebert.pruning.gradients import evaluating
from sparsebert.tickets.provenance import weight_hash
from sparsebert.tickets.ticket import Ticket

if TYPE_CHECKING:
    from sparsebert.healing.texts import HealingTexts, Row, Text


@dataclass(frozen=True)
class Healing:
    """What healing did.

    Attributes:
        healed: Whether any state was better than the start; if not, the weights are as they were.
        steps, tokens, seconds: Optimizer steps, tokens trained on and wall time, the search included.
        best_step: Step of the state that was kept; 0 for the start.
        learning_rate: Peak learning rate.
        trials: Learning rates that were tried, with the loss on the validation texts after each; None if it
            was not finite.
        loss_before, loss_after: Loss on the validation texts, by which the best state was chosen.
        agreement_before, agreement_after: Mean cosine of the embeddings (or the logits) to the dense model's
            on texts that neither trained nor chose, so that it may fall.
        measure: "embeddings" or "logits".
        texts: Number of texts that trained, chose and judged.
        precision: Precision of matrix products in training.
        sparsity: Share of zeros, before and after.
    """

    healed: bool
    steps: int
    tokens: int
    seconds: float
    best_step: int
    learning_rate: float
    trials: tuple[tuple[float, float | None], ...]
    loss_before: float
    loss_after: float
    agreement_before: float
    agreement_after: float
    measure: str
    texts: dict[str, int]
    precision: str
    sparsity: float

    def record(self) -> dict[str, Any]:
        """Return the fields of a record."""
        return asdict(self)


def heal_(
    model: nn.Module,
    texts: Sequence[Text],
    *,
    teacher: nn.Module,
    tokenizer: Any,
    ticket: Ticket | None = None,
    checkpoint: Path | None = None,
    progress: Callable[[str], object] | None = None,
    **settings: Any,
) -> Healing:
    """Train the kept weights of a pruned model, in place, to reproduce the dense model's outputs.

    Pruned weights stay zero in every step. The loss is read from the hidden states after each layer, and from
    the sentence embeddings or, for classifiers and question answering, the logits; labels are never needed.
    Held-out texts decide: of the states whose embeddings or logits are at least as close to the dense model's
    as those of the start, the one with the lowest loss is kept. If none has a lower loss than the start, the
    weights stay as they are.

    Args:
        model: The pruned model, a Hugging Face model with plain linear layers.
        texts: Texts like those that the model will read, or pairs of texts; a tenth chooses and a tenth
            judges.
        teacher: The dense model, of the same architecture. It does not change.
        tokenizer: Tokenizer of both.
        ticket: Weights to keep at zero; None for the zeros in the encoder's weights.
        checkpoint: File for the state of the unfinished healing. If it exists, healing goes on from there.
        progress: Called with a line about the current step.
        settings: Fields of :class:`~sparsebert.healing.settings.HealingSettings`: ``minutes=10`` or
            ``steps``, ``learning_rate``, ``max_length``, ``embeddings`` and so on.

    Returns:
        What was done.

    Raises:
        ValueError: The model is not a BERT-like encoder, has no zeros or is not float32, the teacher has
            another architecture, the texts are too few, a setting is out of range, or the checkpoint belongs
            to another healing.
    """
    # Late: importing sparsebert stays quick.
    from sparsebert.healing.bf16_products import bf16_products, suits
    from sparsebert.healing.checkpoint import Checkpoint
    from sparsebert.healing.schedule import Budget
    from sparsebert.healing.student import Student
    from sparsebert.healing.targets import Reader, TargetCache, require_same_architecture
    from sparsebert.healing.texts import encode
    from sparsebert.healing.training import Healer, Saving, restored

    began = time.perf_counter()
    options = HealingSettings(**settings)
    require_encoder(model)
    max_length = _max_length(model, options)
    require_same_architecture(model, teacher)
    _require_float32(model, teacher)
    ticket = ticket if ticket is not None else zeros_of(model)
    if ticket.sparsity == 0:
        raise ValueError("the model has no zeros in its encoder: heal a pruned model, or pass a ticket")
    say = progress or (lambda text: None)
    say("encoding the texts")
    rows = encode(texts, tokenizer, max_length, options.seed)
    device = next(model.parameters()).device
    bf16 = options.precision == "bf16" or (options.precision == "auto" and suits(device))
    read = Reader(model, options.pooling)
    with contextlib.ExitStack() as stack:
        for each in (model, teacher):
            stack.enter_context(evaluating(each))
            if bf16:
                stack.enter_context(bf16_products(_linears(each)))
        student = stack.enter_context(Student(model, ticket, options.embeddings))
        identity = _identity(model, ticket, rows, options)
        saved = Checkpoint.load(checkpoint, identity) if checkpoint is not None else None
        say("comparing with the dense model")
        budget = Budget(
            options.minutes * 60 if options.steps is None else None,
            options.steps,
            began=began,
            spent=saved.numbers["seconds"] if saved is not None else 0.0,
        )
        healer = Healer(
            student,
            read,
            rows,
            train_targets=TargetCache(teacher, read, options.cache),
            held_out_targets=TargetCache(teacher, read, options.cache),
            settings=options,
            budget=budget,
            progress=say,
        )
        before, start = healer.agreement(), student.weights()
        state, best = (healer.search(), start) if saved is None else restored(saved, student)
        best = healer.train(state, best, Saving(checkpoint, identity) if checkpoint is not None else None)
        student.set_weights(best)
        after = healer.agreement() if state.best_step else before
    return Healing(
        healed=state.best_step > 0,
        steps=state.step,
        tokens=state.tokens,
        seconds=budget.spent,
        best_step=state.best_step,
        learning_rate=state.rate,
        trials=tuple(state.trials),
        loss_before=state.loss_before,
        loss_after=state.best_loss,
        agreement_before=before,
        agreement_after=after,
        measure="logits" if read.has_logits else "embeddings",
        texts={name: len(getattr(rows, name)) for name in ("train", "validation", "judge")},
        precision="bf16" if bf16 else "fp32",
        sparsity=ticket.sparsity,
    )


def require_encoder(model: nn.Module) -> None:
    """Raise ValueError, saying what the model is, unless healing can read its hidden states."""
    from sparsebert.tasks.models import is_decoder  # late: importing sparsebert stays quick

    config = getattr(model, "config", None)
    if not is_bert_like(model) and hasattr(config, "model_type") and is_decoder(config):
        raise ValueError(
            f"healing takes BERT, RoBERTa, DistilBERT and ELECTRA encoders; {type(model).__name__} is a "
            "decoder: train it on text instead, with `sparsebert train --lm causal --method ticket`"
        )
    structure(model)


def zeros_of(model: nn.Module) -> Ticket:
    """Return the ticket of the zeros in the encoder's weights.

    A row that is pruned whole and has no bias is dead: it gets none.
    """
    ticket = Ticket.from_model(model)
    biases = {}
    for key, mask in ticket.masks.items():
        bias = getattr(resolve(model, key), "bias", None)
        if isinstance(bias, Tensor) and bool((dead := ~mask.any(1) & (bias.detach().cpu() == 0)).any()):
            biases[key] = ~dead
    return Ticket(ticket.masks, bias_masks=biases, metadata=ticket.metadata)


def _max_length(model: nn.Module, settings: HealingSettings) -> int:
    """Return the tokens at which texts are cut."""
    from sparsebert.tasks.text_format import trained_length  # late: importing sparsebert stays quick

    limit = positions(model)
    if limit is None or (settings.max_length or 0) <= limit:
        length = trained_length(model) or MAX_LENGTH
        return settings.max_length or min(length, limit or length)
    raise ValueError(f"max_length must be at most {limit}, the model's positions, got {settings.max_length}")


def _require_float32(model: nn.Module, teacher: nn.Module) -> None:
    for name, each in (("model", model), ("teacher", teacher)):
        parameter = next(each.parameters())
        if parameter.dtype != torch.float32:
            raise ValueError(f"the {name} must be float32, got {parameter.dtype}: call .float() on it")
        if parameter.device != next(model.parameters()).device:
            raise ValueError(f"the teacher must be on the model's device, got {parameter.device}")


def _linears(model: nn.Module) -> list[nn.Linear]:
    modules = (resolve(model, key) for key in structure(model).linears)
    return [module for module in modules if isinstance(module, nn.Linear)]


def _identity(
    model: nn.Module, ticket: Ticket, rows: HealingTexts, settings: HealingSettings
) -> dict[str, Any]:
    return {
        "weights": weight_hash(model),
        "masks": ticket.digest,
        "texts": _digest((*rows.train, *rows.validation)),
        **{name: value for name, value in asdict(settings).items() if name != "cache"},
    }


def _digest(rows: Sequence[Row]) -> str:
    return hashlib.sha256(repr(rows).encode()).hexdigest()
