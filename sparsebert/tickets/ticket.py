"""The ticket: which weights of a BERT are kept, and how they were chosen."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sparsebert.bert import canonical_key, weight_of, without_holders
from sparsebert.linear_layers import prunable
from sparsebert.tickets import apply, file, torch_prune
from sparsebert.tickets.apply import shape_text
from sparsebert.tickets.bits import pack_bits
from sparsebert.tickets.file import MAX_WEIGHTS, TicketContents, brief, is_key
from sparsebert.tickets.provenance import checked_metadata, describe_model, masks_digest

# Two sparsities that differ by no more than this are the same: tables and command lines, which state one
# decimal of a percent, print them alike.
SAME_SPARSITY = 5e-4


class Ticket:
    """Masks over the matrices of a model, with their provenance; True = keep.

    Two tickets are equal if they keep the same weights, whatever their metadata.

    Args:
        masks: Module path -> bool [out, in]. Wrappers and the base-model prefix are stripped from the paths.
        bias_masks: The paths whose biases are pruned too -> bool [out].
        removed: Modules that are removed whole. Masks below them keep nothing, and their biases are pruned.
        metadata: JSON values such as method, sparsity, granularity, scope, seed, model and history.

    Attributes:
        masks, bias_masks: As passed, by key (``sparsebert.bert``), on the CPU.
        removed: Paths of the removed modules.
        metadata: As passed, with the versions of the libraries.

    Raises:
        ValueError: A mask has the wrong type, dtype or number of dimensions, a bias mask has no weight mask,
            a removed module keeps weights, or a metadata value has a type that a ticket file cannot hold.
    """

    def __init__(
        self,
        masks: Mapping[str, Tensor],
        *,
        bias_masks: Mapping[str, Tensor] | None = None,
        removed: Iterable[str] = (),
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        self.masks = _checked_masks(masks, dimensions=2)
        self.bias_masks = _checked_masks(bias_masks or {}, dimensions=1)
        if isinstance(removed, str):
            raise ValueError(f"removed must be a list of modules, got the string {brief(removed)}")
        self.removed = tuple(_checked_key(name) for name in removed)
        self.metadata = checked_metadata(metadata or {})
        for key, mask in self.bias_masks.items():
            if key not in self.masks:
                raise ValueError(f"the bias mask of {key} needs a weight mask of the same key")
            if len(mask) != len(self.masks[key]):
                raise ValueError(
                    f"the bias mask of {key} has {len(mask)} entries, "
                    f"its weight mask {len(self.masks[key])} rows"
                )
        for name in self.removed:
            below = [key for key in self.masks if _is_below(key, name)]
            if not below:
                raise ValueError(f"removed module {name!r} has no mask below it")
            if any(self.masks[key].any() for key in below):
                raise ValueError(f"removed module {name!r} still keeps weights; its masks must be all False")

    @property
    def sparsity(self) -> float:
        """Share of pruned weights, biases not counted; 0.0 without any mask."""
        total = sum(mask.numel() for mask in self.masks.values())
        return (total - sum(map(_kept, self.masks.values()))) / total if total else 0.0

    @property
    def density(self) -> float:
        """Share of kept weights, biases not counted; 1.0 without any mask."""
        total = sum(mask.numel() for mask in self.masks.values())
        return sum(map(_kept, self.masks.values())) / total if total else 1.0

    @property
    def prunes(self) -> bool:
        """Whether any weight or bias is pruned; a dense run's ticket prunes none."""
        return not all(mask.all() for masks in (self.masks, self.bias_masks) for mask in masks.values())

    @property
    def layer_sparsity(self) -> dict[str, float]:
        """Share of pruned weights of each matrix, by key."""
        return {key: (mask.numel() - _kept(mask)) / mask.numel() for key, mask in self.masks.items()}

    @property
    def digest(self) -> str:
        """Digest of the masks, equal for tickets that prune the same, whatever their metadata."""
        packed = (
            (key, mask.shape, pack_bits(mask))
            for masks in (self.masks, self.bias_masks)
            for key, mask in sorted(masks.items())
        )
        return masks_digest(packed, self.removed)

    def __repr__(self) -> str:
        method = self.metadata.get("method", "unknown method")
        shares = f"sparsity {self.sparsity:.2%}, density {self.density:.2%}"
        return f"Ticket({len(self.masks)} matrices, {shares}, {method})"

    def _repr_html_(self) -> str:
        from sparsebert.tickets.density_grid import MatrixCount, ticket_html

        counts = [MatrixCount.of(key, mask) for key, mask in self.masks.items()]
        return ticket_html(repr(self), counts, self.metadata, self.removed)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Ticket):
            return NotImplemented
        return (
            _same(self.masks, other.masks)
            and _same(self.bias_masks, other.bias_masks)
            and set(self.removed) == set(other.removed)
        )

    __hash__ = None  # type: ignore[assignment]

    def __and__(self, other: Ticket) -> Ticket:
        """Keep the weights that both keep, and remove the modules that either removes.

        Raises:
            ValueError: The tickets cover different matrices.
        """
        return self._combine(other, torch.logical_and, "intersection", set.union)

    def __or__(self, other: Ticket) -> Ticket:
        """Keep the weights that either keeps, and remove the modules that both remove.

        Raises:
            ValueError: The tickets cover different matrices.
        """
        return self._combine(other, torch.logical_or, "union", set.intersection)

    def __invert__(self) -> Ticket:
        """Keep the weights that this ticket prunes.

        Raises:
            ValueError: The ticket removes whole modules.
        """
        if self.removed:
            raise ValueError(f"a ticket that removes whole modules ({self.removed[0]}) has no complement")
        return Ticket(
            {key: ~mask for key, mask in self.masks.items()},
            bias_masks={key: ~mask for key, mask in self.bias_masks.items()},
            metadata=_derived("complement", self),
        )

    def overlap(self, other: Ticket) -> float:
        """Return the Jaccard index of the kept weights; 1.0 if neither ticket keeps any.

        Raises:
            ValueError: The tickets cover different matrices.
        """
        self._require_same_matrices(other)
        either = sum(_kept(mask | other.masks[key]) for key, mask in self.masks.items())
        both = sum(_kept(mask & other.masks[key]) for key, mask in self.masks.items())
        return both / either if either else 1.0

    def dead_biases(self) -> dict[str, Tensor]:
        """Return the biases that the ticket prunes, by a mask or with a removed module.

        Returns:
            Key -> bool [out], True = pruned.
        """
        below_removed = [key for key in self.masks if any(_is_below(key, name) for name in self.removed)]
        masked = {key: ~mask for key, mask in self.bias_masks.items()}
        return masked | {key: self.masks[key].new_ones(len(self.masks[key])) for key in below_removed}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the ticket atomically as one safetensors file (see :mod:`sparsebert.tickets.file`).

        Raises:
            ValueError: The metadata exceeds 1 MiB.
            OSError: The file cannot be written.
        """
        file.write(
            path,
            TicketContents(
                masks=self.masks,
                bias_masks=self.bias_masks,
                removed=self.removed,
                metadata=self.metadata,
                sparsity=self.sparsity,
                layer_sparsity=self.layer_sparsity,
            ),
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Ticket:
        """Read a ticket file.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The file is truncated, damaged, written by a newer version or not a ticket. The
                message is one line, and no memory is allocated for masks that the file cannot hold.
        """
        contents = file.read(path)
        try:
            ticket = cls(
                contents.masks,
                bias_masks=contents.bias_masks,
                removed=contents.removed,
                metadata=contents.metadata,
            )
            # Earlier versions kept some prefixes that keys no longer have.
            stated = {without_holders(key): value for key, value in contents.layer_sparsity.items()}
            if (contents.sparsity, stated) != (ticket.sparsity, ticket.layer_sparsity):
                raise ValueError("its masks do not have the sparsities that it states")
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)} is not a usable ticket file: {error}") from None
        return ticket

    @classmethod
    def from_model(cls, model: nn.Module, *, include_pooler: bool = False) -> Ticket:
        """Make a ticket from the zeros in the weights that ``prune`` prunes by default; NaN counts as kept.

        Raises:
            ValueError: The model has no linear layer, or no pooler to include.
        """
        masks = {key: weight_of(model, key).detach() != 0 for key in prunable(model, include_pooler)}
        return cls(masks, metadata={"method": "zeros in the weights", "model": describe_model(model)})

    @classmethod
    def from_torch_prune(cls, model: nn.Module) -> Ticket:
        """Make a ticket from the ``weight_mask`` and ``bias_mask`` buffers of ``torch.nn.utils.prune``.

        Encoder matrices of a BERT-like model without such a mask count as kept whole.

        Raises:
            ValueError: The model has no such buffers, a layer other than ``nn.Linear`` has one, or one holds
                values other than 0 and 1.
        """
        masks, bias_masks = torch_prune.read_masks(model)
        metadata = {"method": "torch.nn.utils.prune", "model": describe_model(model)}
        return cls(masks, bias_masks=bias_masks, metadata=metadata)

    def check(self, model: nn.Module, *, weights: bool = False) -> None:
        """Raise ValueError, naming the first mismatch, unless the ticket fits the model.

        Args:
            model: Names, shapes and the number of encoder matrices must agree, and a weight shared between
                modules (a tied decoder) must have the same mask in all of them.
            weights: Also require the weights that the ticket was made for, by their hash. Only the untouched
                pre-trained model passes.
        """
        apply.check(self, model, weights=weights)

    def apply_(self, model: nn.Module) -> nn.Module:
        """Set the pruned weights to +0 in place, NaN and inf included; return the model.

        Raises:
            ValueError: See :meth:`targets`.
        """
        with torch.no_grad():
            for parameter, mask in self.targets(model):
                parameter.masked_fill_(~mask.to(parameter.device), 0)
        return model

    def targets(self, model: nn.Module) -> list[tuple[Tensor, Tensor]]:
        """Return each parameter of the model that the ticket masks, with its mask on the CPU.

        The biases below a removed MLP are masked whole, so that the layer's output is LN(input).

        Raises:
            ValueError: The ticket does not fit (:meth:`check`), or a weight is parametrized or packed instead
                of a plain parameter.
        """
        return apply.targets(self, model)

    def _combine(
        self,
        other: Ticket,
        op: Callable[[Tensor, Tensor], Tensor],
        operation: str,
        combine_removed: Callable[[set[str], set[str]], set[str]],
    ) -> Ticket:
        self._require_same_matrices(other)
        removed = combine_removed(set(self.removed), set(other.removed))
        return Ticket(
            {key: op(mask, other.masks[key]) for key, mask in self.masks.items()},
            bias_masks={key: op(mask, other.bias_masks[key]) for key, mask in self.bias_masks.items()},
            removed=[name for name in dict.fromkeys(self.removed + other.removed) if name in removed],
            metadata=_derived(operation, self, other),
        )

    def _require_same_matrices(self, other: Ticket) -> None:
        require_ticket(other)
        for kind in ("masks", "bias_masks"):
            masks: dict[str, Tensor] = getattr(self, kind)
            other_masks: dict[str, Tensor] = getattr(other, kind)
            if wrong := masks.keys() ^ other_masks.keys():
                raise ValueError(f"tickets of different models: only one of them has {kind} of {min(wrong)}")
            for key, mask in masks.items():
                if mask.shape != other_masks[key].shape:
                    raise ValueError(
                        f"tickets of different models: {key} is {shape_text(mask)} in one and "
                        f"{shape_text(other_masks[key])} in the other"
                    )


def require_ticket(ticket: object) -> None:
    """Raise ValueError for anything but a ticket, such as its path or its masks."""
    if not isinstance(ticket, Ticket):
        raise ValueError(
            f"ticket must be a sparsebert.Ticket, got a {type(ticket).__name__}: Ticket.load reads a file, "
            "Ticket(masks) makes one"
        )


def _checked_masks(masks: Mapping[str, Tensor], dimensions: int) -> dict[str, Tensor]:
    if not isinstance(masks, Mapping):
        raise ValueError(
            f"masks must map module paths to bool tensors, got a {type(masks).__name__} "
            "(Ticket.load reads a file, Ticket.from_model a model's zeros)"
        )
    checked: dict[str, Tensor] = {}
    for name, mask in masks.items():
        key = _checked_key(name)
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            raise ValueError(f"the mask of {key} must be a torch.bool tensor, got {kind}")
        if mask.is_nested or mask.layout != torch.strided:
            raise ValueError(f"the mask of {key} must be a dense tensor, got a nested or sparse one")
        if mask.dim() != dimensions or mask.numel() == 0:
            expected = "[out, in]" if dimensions == 2 else "[out]"
            raise ValueError(f"the mask of {key} must be {expected} and not empty, got {shape_text(mask)}")
        if mask.is_meta:
            raise ValueError(f"the mask of {key} is on the meta device, which holds no values")
        if mask.numel() > MAX_WEIGHTS:
            raise ValueError(
                f"the mask of {key} is {shape_text(mask)}; a ticket has at most {MAX_WEIGHTS} weights"
            )
        if key in checked:
            raise ValueError(f"masks has two entries for {key}; pass one")
        checked[key] = mask.detach().cpu().contiguous()
    return checked


def _checked_key(name: object) -> str:
    key = canonical_key(str(name))
    if not is_key(name) or not is_key(key):
        raise ValueError(f"{brief(name)} is not a module path")
    return key


def _derived(operation: str, *tickets: Ticket) -> dict[str, Any]:
    """Return the metadata of a ticket made from others: their histories, this step, a common model."""
    step = {
        "operation": operation,
        "of": [{"method": ticket.metadata.get("method"), "sparsity": ticket.sparsity} for ticket in tickets],
    }
    derived = {"method": operation, "history": [*_histories(tickets), step]}
    models = [ticket.metadata.get("model") for ticket in tickets]
    if models[0] and all(model == models[0] for model in models):
        derived["model"] = models[0]
    return derived


def _histories(tickets: Iterable[Ticket]) -> Iterator[Any]:
    for ticket in tickets:
        yield from ticket.metadata.get("history", [])


def _same(masks: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> bool:
    return masks.keys() == others.keys() and all(
        torch.equal(mask, others[key]) for key, mask in masks.items()
    )


def _is_below(key: str, module: str) -> bool:
    return f"{key}.".startswith(f"{module}.")


def _kept(mask: Tensor) -> int:
    return int(np.count_nonzero(mask.numpy()))
