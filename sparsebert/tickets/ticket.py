"""Ticket: which weights of a BERT stay, and where that choice comes from."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sparsebert.bert import canonical_key, full_name, is_bert_like, resolve, structure
from sparsebert.tickets import file
from sparsebert.tickets.file import TicketContents, brief, is_key
from sparsebert.tickets.provenance import checked_metadata, describe_model, weight_hash

__all__ = ["Ticket", "prunable", "weight_hash"]


class Ticket:
    """Masks over the matrices of a model, with their provenance; True = keep.

    ``masks``: key (module path without wrappers and base-model prefix) -> bool tensor [out, in] on the CPU.
    ``bias_masks``: bool [out] for those of the same keys whose biases are pruned too.
    ``removed``: modules taken out whole; the masks below them keep nothing, and their biases go as well.
    ``metadata``: JSON values such as method, sparsity, granularity, scope, seed, model (id, weight hash),
    versions and history; ValueError if one of them has another type than a ticket file may hold.

    ``sparsity``, ``density`` and ``layer_sparsity`` are shares of the weights in ``masks``, biases left out.
    Two tickets are equal if they keep the same weights; where they come from does not matter.
    Raises ValueError naming the key for masks of another type, dtype or number of dimensions, and for masks
    that are no mapping.
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
            raise ValueError(f"removed is one module, {brief(removed)}; a list of modules is needed")
        self.removed = tuple(_checked_key(name) for name in removed)
        self.metadata = checked_metadata(metadata or {})
        for key, mask in self.bias_masks.items():
            if key not in self.masks:
                raise ValueError(f"the bias mask of {key} has no weight mask beside it")
            if len(mask) != len(self.masks[key]):
                raise ValueError(
                    f"{key}: a bias mask of {len(mask)} for {len(self.masks[key])} output features"
                )
        for name in self.removed:
            below = [key for key in self.masks if _is_below(key, name)]
            if not below:
                raise ValueError(f"removed module {name!r} has no mask below it")
            if any(self.masks[key].any() for key in below):
                raise ValueError(f"removed module {name!r} still keeps weights; its masks must be all False")

    @property
    def sparsity(self) -> float:
        """Share of pruned weights; 0.0 without any mask."""
        total = sum(mask.numel() for mask in self.masks.values())
        return (total - sum(map(_kept, self.masks.values()))) / total if total else 0.0

    @property
    def density(self) -> float:
        """Share of kept weights; 1.0 without any mask."""
        total = sum(mask.numel() for mask in self.masks.values())
        return sum(map(_kept, self.masks.values())) / total if total else 1.0

    @property
    def layer_sparsity(self) -> dict[str, float]:
        """Share of pruned weights of each matrix."""
        return {key: (mask.numel() - _kept(mask)) / mask.numel() for key, mask in self.masks.items()}

    @property
    def digest(self) -> str:
        """The same for tickets that prune the same, whatever their metadata say: "sha256:" and 64 digits."""
        found = hashlib.sha256()
        for masks in (self.masks, self.bias_masks):
            for key, mask in sorted(masks.items()):
                found.update(f"{key} {tuple(mask.shape)}\n".encode())
                found.update(np.packbits(mask.numpy()).tobytes())
        for module in sorted(self.removed):
            found.update(f"{module} removed\n".encode())
        return f"sha256:{found.hexdigest()}"

    def __repr__(self) -> str:
        method = self.metadata.get("method", "unknown method")
        shares = f"sparsity {self.sparsity:.2%}, density {self.density:.2%}"
        return f"Ticket({len(self.masks)} matrices, {shares}, {method})"

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
        """What both keep; a module removed in either is removed. ValueError if their matrices differ."""
        return self._combine(other, torch.logical_and, "intersection", set.union)

    def __or__(self, other: Ticket) -> Ticket:
        """What either keeps; a module removed in both is removed. ValueError if their matrices differ."""
        return self._combine(other, torch.logical_or, "union", set.intersection)

    def __invert__(self) -> Ticket:
        """What this one prunes. ValueError if whole modules are removed: that has no complement."""
        if self.removed:
            raise ValueError(f"a ticket that removes whole modules ({self.removed[0]}) has no complement")
        return Ticket(
            {key: ~mask for key, mask in self.masks.items()},
            bias_masks={key: ~mask for key, mask in self.bias_masks.items()},
            metadata=_derived("complement", self),
        )

    def overlap(self, other: Ticket) -> float:
        """Weights kept by both over weights kept by either (the Jaccard index); 1.0 if both keep none.

        Raises ValueError if the two do not cover the same matrices.
        """
        self._require_same_matrices(other)
        either = sum(_kept(mask | other.masks[key]) for key, mask in self.masks.items())
        both = sum(_kept(mask & other.masks[key]) for key, mask in self.masks.items())
        return both / either if either else 1.0

    def _combine(
        self,
        other: Ticket,
        op: Callable[[Tensor, Tensor], Tensor],
        operation: str,
        of_removed: Callable[[set[str], set[str]], set[str]],
    ) -> Ticket:
        self._require_same_matrices(other)
        removed = of_removed(set(self.removed), set(other.removed))
        return Ticket(
            {key: op(mask, other.masks[key]) for key, mask in self.masks.items()},
            bias_masks={key: op(mask, other.bias_masks[key]) for key, mask in self.bias_masks.items()},
            removed=[name for name in dict.fromkeys(self.removed + other.removed) if name in removed],
            metadata=_derived(operation, self, other),
        )

    def _require_same_matrices(self, other: Ticket) -> None:
        require_ticket(other)
        for kind in ("masks", "bias_masks"):
            mine: dict[str, Tensor] = getattr(self, kind)
            theirs: dict[str, Tensor] = getattr(other, kind)
            if wrong := mine.keys() ^ theirs.keys():
                raise ValueError(f"tickets of different models: only one of them has {kind} of {min(wrong)}")
            for key, mask in mine.items():
                if mask.shape != theirs[key].shape:
                    raise ValueError(
                        f"tickets of different models: {key} is {_shape(mask)} in one and "
                        f"{_shape(theirs[key])} in the other"
                    )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file, bits packed, in one step (see :mod:`sparsebert.tickets.file`).

        Raises ValueError if the metadata exceeds 1 MiB, OSError where the file cannot be written.
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

        Raises FileNotFoundError if there is none, and ValueError in one line for a file that is cut off,
        damaged, written by a newer version or no ticket at all; nothing is allocated for masks that the
        file cannot hold.
        """
        contents = file.read(path)
        try:
            ticket = cls(
                contents.masks,
                bias_masks=contents.bias_masks,
                removed=contents.removed,
                metadata=contents.metadata,
            )
            if (contents.sparsity, contents.layer_sparsity) != (ticket.sparsity, ticket.layer_sparsity):
                raise ValueError("the sparsities it states are not those of its masks")
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)} is not a usable ticket file: {error}") from None
        return ticket

    @classmethod
    def from_model(cls, model: nn.Module, *, include_pooler: bool = False) -> Ticket:
        """Read a ticket off the zeros already in the weights of a BERT-like model (NaN counts as kept).

        Raises ValueError for a model of another family, or without the pooler that is asked for.
        """
        masks = {key: _weight(model, key).detach() != 0 for key in prunable(model, include_pooler)}
        return cls(masks, metadata={"method": "zeros in the weights", "model": describe_model(model)})

    @classmethod
    def from_torch_prune(cls, model: nn.Module) -> Ticket:
        """Read the masks of ``torch.nn.utils.prune`` from their ``weight_mask`` and ``bias_mask`` buffers.

        In a BERT-like model the encoder matrices without such a mask count as kept whole.
        Raises ValueError if nothing is pruned that way, or something that is no 2-D linear weight, or if
        a mask holds anything but 0 and 1.
        """
        masks: dict[str, Tensor] = {}
        biases: dict[str, Tensor] = {}
        if is_bert_like(model):
            masks = {
                key: torch.ones_like(_weight(model, key), dtype=torch.bool)
                for key in structure(model).linears
            }
        pruned = False
        for name, buffer in model.named_buffers():
            path, _, kind = name.rpartition(".")
            if kind not in ("weight_mask", "bias_mask"):
                continue
            if not isinstance(module := model.get_submodule(path), nn.Linear):
                raise ValueError(f"{path} is pruned and is a {type(module).__name__}, not a linear layer")
            if not torch.all((buffer == 0) | (buffer == 1)):
                raise ValueError(f"{name} holds values other than 0 and 1")
            pruned = True
            key = canonical_key(path)
            masks.setdefault(key, torch.ones_like(module.weight, dtype=torch.bool))
            (masks if kind == "weight_mask" else biases)[key] = buffer.bool()
        if not pruned:
            raise ValueError(f"nothing in {type(model).__name__} is pruned with torch.nn.utils.prune")
        metadata = {"method": "torch.nn.utils.prune", "model": describe_model(model)}
        return cls(masks, bias_masks=biases, metadata=metadata)

    def check(self, model: nn.Module, *, weights: bool = False) -> None:
        """Raise ValueError, naming the first mismatch, unless the ticket fits the model.

        Names, shapes and the number of encoder matrices must agree, and a weight that is shared between
        modules (a tied decoder) must be masked the same in all of them. ``weights=True`` also asks for
        the very weights the ticket was made for, by their hash: true of the untouched pre-trained model
        only.
        """
        for key, mask in self.masks.items():
            try:
                module = resolve(model, key)
            except ValueError as error:
                raise ValueError(f"ticket of another model: {error}") from None
            bias = {"bias": self.bias_masks[key]} if key in self.bias_masks else {}
            for name, expected in {"weight": mask, **bias}.items():
                tensor = getattr(module, name, None)
                actual = _shape(tensor) if isinstance(tensor, Tensor) else "missing"
                if actual != _shape(expected):
                    raise ValueError(
                        f"ticket of another model: {key}.{name} is {_shape(expected)} in the ticket "
                        f"and {actual} in {type(model).__name__}"
                    )
        origin = self.metadata.get("model", {})
        if "linears" in origin and is_bert_like(model):
            count = len(structure(model).linears)
            if origin["linears"] != count:
                raise ValueError(
                    f"ticket of another model: made for {origin['linears']} encoder matrices, "
                    f"{type(model).__name__} has {count}"
                )
        self._refuse_one_side_of_tied_weights(model)
        if weights:
            if "weights" not in origin:
                raise ValueError("the ticket does not say which weights it was made for")
            if origin["weights"] != weight_hash(model):
                raise ValueError(
                    f"ticket of another model: made for weights {origin['weights']} "
                    f"(model {origin.get('id', 'unknown')}), these are {weight_hash(model)}"
                )

    def apply_(self, model: nn.Module) -> nn.Module:
        """Set what it prunes to +0 in place, NaN and inf too; returns the model. Raises as `targets` does."""
        with torch.no_grad():
            for parameter, mask in self.targets(model):
                parameter.masked_fill_(~mask.to(parameter.device), 0)
        return model

    def targets(self, model: nn.Module) -> list[tuple[Tensor, Tensor]]:
        """The parameters of a model that the ticket masks, each with its mask on the CPU.

        Below a removed MLP biases are masked whole, so that the layer's output is LN(input). Raises
        ValueError if the ticket does not fit (:meth:`check`) or a weight is no plain parameter (but packed).
        """
        self.check(model)
        weights = [(_parameter(model, key, "weight"), mask) for key, mask in self.masks.items()]
        return weights + [
            (_parameter(model, key, "bias"), ~dead)
            for key, dead in self.dead_biases().items()
            if getattr(resolve(model, key), "bias", None) is not None
        ]

    def dead_biases(self) -> dict[str, Tensor]:
        """Key -> bool [out], True = pruned, of the biases it prunes: by masks, or with a removed module."""
        gone = [key for key in self.masks if any(_is_below(key, name) for name in self.removed)]
        masked = {key: ~mask for key, mask in self.bias_masks.items()}
        return masked | {key: self.masks[key].new_ones(len(self.masks[key])) for key in gone}

    def _refuse_one_side_of_tied_weights(self, model: nn.Module) -> None:
        masks = {f"{full_name(model, key)}.weight": mask for key, mask in self.masks.items()}
        masks |= {f"{full_name(model, key)}.bias": mask for key, mask in self.bias_masks.items()}
        shared: dict[int, list[str]] = defaultdict(list)
        for name, parameter in model.named_parameters(remove_duplicate=False):
            # Meta and empty tensors have no address.
            shared[parameter.data_ptr() or id(parameter)].append(name)
        for names in shared.values():
            masked = next((name for name in names if name in masks), None)
            if len(names) == 1 or masked is None:
                continue
            for name in names:
                if name not in masks or not torch.equal(masks[name], masks[masked]):
                    raise ValueError(
                        f"{masked} is tied to {name}: masking one side prunes both; give both the same mask"
                    )


def require_ticket(ticket: object) -> None:
    """Raise ValueError for what is no ticket: a path of one, its masks."""
    if not isinstance(ticket, Ticket):
        raise ValueError(
            f"ticket is a {type(ticket).__name__}; a sparsebert.Ticket is needed: Ticket.load reads a file, "
            "Ticket(masks) makes one"
        )


def prunable(model: nn.Module, include_pooler: bool = False) -> tuple[str, ...]:
    """Keys of the encoder matrices of a BERT-like model, and of its pooler if asked for.

    Raises ValueError for a model of another family, or without the pooler that is asked for.
    """
    found = structure(model)
    if not include_pooler:
        return found.linears
    if found.pooler is None:
        raise ValueError(f"{type(model).__name__} has no pooler to include")
    return (*found.linears, found.pooler)


def _checked_masks(masks: Mapping[str, Tensor], dimensions: int) -> dict[str, Tensor]:
    if not isinstance(masks, Mapping):
        raise ValueError(
            f"masks are a {type(masks).__name__}; a mapping from module paths to bool tensors is needed "
            "(Ticket.load reads a file, Ticket.from_model a model's zeros)"
        )
    checked: dict[str, Tensor] = {}
    for name, mask in masks.items():
        key = _checked_key(name)
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            found = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            raise ValueError(f"the mask of {key} must be a torch.bool tensor, not {found}")
        if mask.dim() != dimensions or mask.numel() == 0:
            expected = "[out, in]" if dimensions == 2 else "[out]"
            raise ValueError(f"the mask of {key} must be {expected} and not empty, not {_shape(mask)}")
        if mask.is_meta:
            raise ValueError(f"the mask of {key} is on the meta device: it has no values")
        if key in checked:
            raise ValueError(f"two masks for {key}")
        checked[key] = mask.detach().cpu().contiguous()
    return checked


def _checked_key(name: object) -> str:
    key = canonical_key(str(name))
    if not is_key(name) or not is_key(key):
        raise ValueError(f"{brief(name)} is no module path")
    return key


def _derived(operation: str, *tickets: Ticket) -> dict[str, Any]:
    """Metadata of a ticket made from others: their histories and one step more; the model, if it is one."""
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


def _weight(model: nn.Module, key: str) -> Tensor:
    weight = resolve(model, key).weight
    if not isinstance(weight, Tensor):
        raise ValueError(f"{key} of {type(model).__name__} has no weight")
    return weight


def _parameter(model: nn.Module, key: str, name: str) -> Tensor:
    module = resolve(model, key)
    parameter = module._parameters.get(name)
    if parameter is None:
        raise ValueError(
            f"{key}.{name} of {type(model).__name__} is no plain parameter: "
            "undo its pruning, parametrization or packing first"
        )
    return parameter


def _same(mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> bool:
    return mine.keys() == theirs.keys() and all(torch.equal(mask, theirs[key]) for key, mask in mine.items())


def _is_below(key: str, module: str) -> bool:
    return f"{key}.".startswith(f"{module}.")


def _kept(mask: Tensor) -> int:
    return int(np.count_nonzero(mask.numpy()))


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape))
