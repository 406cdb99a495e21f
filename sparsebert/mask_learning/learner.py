"""The learner: applies a mask-learning rule to a model, with scores beside its weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from sparsebert.bert import base_model, embeddings, full_name, is_bert_like, resolve, weight_of
from sparsebert.mask_learning.masked_layers import GatedLinear, MaskedLinear
from sparsebert.mask_learning.rule import Gated, Goal, PrunableUnits, Rule, Scored
from sparsebert.mask_learning.start_mask import below_kept, kept_units, started
from sparsebert.pruning.granularity import PANEL
from sparsebert.pruning.prunable_structure import prunable_structure
from sparsebert.pruning.unit_groups import UnitGroup, unit_groups
from sparsebert.tickets.ticket import Ticket
from sparsebert_kernels.masked import pack_mask, unpack_mask


class Learner:
    """Applies a rule to a model.

    Replaces every linear layer to prune with a :class:`MaskedLinear` until :meth:`close_`. The model's
    weights keep their names, values and storage. Scores are float32 in any precision of training (float64 in
    a float64 model).

    Args:
        model: A model of transformers.
        rule: Turns scores into masks.
        goal: Length and target density of the run.
        origin: A dense ticket of the model, which identifies the model in the learned ticket's metadata.
        granularity: Units, with ``block_size``, as in :func:`sparsebert.prune`. A unit has one score; the
            matrices of neurons and heads share theirs.
        block_size: Rows and columns of a block.
        scope: Which units compete, as in :func:`sparsebert.prune`.
        pooling: How a unit's score is computed from its weights' magnitudes, if the rule trains no scores.
        include_pooler: Whether to prune the pooler too.
        round_to: Columns of which each panel keeps a multiple, as in :func:`sparsebert.prune`.
        seed: Seed of random gates.
        method: Name of the method, for the ticket's metadata.
        options: Options of the method, for the ticket's metadata; None for the rule's options.
        start: Ticket over the matrices to prune, whose mask is the mask of the first step; None to start
            dense.

    Attributes:
        step: Optimizer step of the current masks.

    Raises:
        ValueError: The units do not fit the model or the start ticket, or the rule's schedule does not fit
            the run.
    """

    def __init__(
        self,
        model: Any,
        rule: Rule,
        goal: Goal,
        origin: Ticket,
        *,
        granularity: str = "element",
        block_size: tuple[int, int] | None = None,
        scope: str = "global",
        pooling: str = "mean",
        include_pooler: bool = False,
        round_to: int | None = None,
        seed: int = 0,
        method: str,
        options: Mapping[str, Any] | None = None,
        start: Ticket | None = None,
    ) -> None:
        structure, names = prunable_structure(model, granularity, include_pooler=include_pooler)
        shapes = {key: weight_of(model, key).shape for key in names}
        groups = unit_groups(granularity, block_size, shapes, structure, round_to)
        start_units = {} if start is None else kept_units(start, groups)
        if start is not None:
            goal = started(goal, start_units, groups)
        rule.check(goal)
        self._start = {name: _packed(mask) for name, mask in start_units.items()}
        self._history = [] if start is None else start.metadata.get("history", [])
        self.model, self.rule, self.goal, self.step, self.seed = model, rule, goal, 0, seed
        # Only the description of the model is kept: the ticket's masks take a byte for each weight.
        self._origin, self._pooling, self._shapes = origin.metadata["model"], pooling, shapes
        self._method, self._options = method, asdict(rule) if options is None else dict(options)
        self.units = PrunableUnits(groups, structure.types, scope)
        self._recorded = {"granularity": granularity, "scope": scope, "pooling": pooling, "seed": seed}
        if block_size is not None:
            self._recorded["block_size"] = list(block_size)
            if granularity == PANEL:
                self._recorded["round_to"] = groups[0].quantum * block_size[1]
        self._keys = [key for key in names if any(key in group.parts for group in groups)]
        self._kept = {group.name: _packed(torch.ones(group.grid, dtype=torch.bool)) for group in groups}
        self._required_grad = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
        self._freeze_()
        self._scores: dict[str, nn.Parameter] = {}
        self._linears: dict[str, nn.Module] = {}
        self._layers: dict[str, MaskedLinear] = {}
        for group in groups:
            self._insert_(group, start_units.get(group.name))

    def derive_(self, step: int) -> None:
        """Compute and set the masks of an optimizer step, counted from 0."""
        self.step = step
        with torch.no_grad():
            kept = self.rule.masks(self.scores(), self.units, self.goal, step)
            self._kept = {name: _packed(mask) for name, mask in kept.items()}
            if isinstance(self.rule, Gated):
                self._sample_gates_(step)
                return
            for group in self.units.groups:
                for key, mask in group.expand(kept[group.name]).items():
                    self._layers[key].set_mask(mask)

    def derive_final_(self) -> None:
        """Compute and set the masks that :meth:`close_` would store for the current scores."""
        self.derive_(self.goal.steps)

    def masks(self) -> dict[str, Tensor]:
        """Return the masks of the current step: key -> bool [out, in] on the model's device.

        Before the first step they keep everything.
        """
        masks: dict[str, Tensor] = {}
        for group in self.units.groups:
            bits = unpack_mask(self._kept[group.name], math.prod(group.grid))
            masks |= group.expand(bits.view(group.grid))
        return {key: masks[key] for key in self._keys}

    def scores(self) -> Mapping[str, Tensor]:
        """Return the current scores by group: pooled weight magnitudes if the rule trains no scores."""
        if isinstance(self.rule, Scored):
            return self._scores
        return {group.name: self._magnitudes(group) for group in self.units.groups}

    def penalty(self) -> Tensor | None:
        """Return the rule's loss term for the current step, or None."""
        return self.rule.penalty(self._scores, self.goal, self.step)

    def parameters(self) -> list[nn.Parameter]:
        """Return the trained scores."""
        return list(self._scores.values())

    def load_(self, weights: Path) -> None:
        """Read the scores from the weights file of a checkpoint."""
        with safe_open(weights, "pt") as file, torch.no_grad():
            for name, scores in self._scores.items():
                scores.copy_(file.get_tensor(f"{full_name(self.model, name)}.mask_scores"))

    def close_(self) -> Ticket:
        """Restore the model's linear layers, apply the final masks to their weights, and return the ticket.

        Weights with gates are multiplied by the gates.
        """
        self.derive_final_()
        ticket = self._ticket()
        for layer in self._layers.values():
            if isinstance(layer, GatedLinear):
                with torch.no_grad():
                    layer.matrix.mul_(layer.eval().gates())
        for key, linear in self._linears.items():
            _replace(self.model, key, linear)
        for parameter, required in self._required_grad:
            parameter.requires_grad_(required)
        ticket.apply_(self.model)
        return ticket

    def _freeze_(self) -> None:
        frozen: list[nn.Module] = []
        if not self.rule.trains_weights:
            frozen = [base_model(self.model) if is_bert_like(self.model) else self.model.base_model]
        elif is_bert_like(self.model):
            frozen = [embeddings(self.model)]
        else:
            frozen = [each for each in self.model.base_model.modules() if isinstance(each, nn.Embedding)]
        if not self.rule.trains_head:
            frozen.append(self.model)
        for module in frozen:
            module.requires_grad_(False)

    def _magnitudes(self, group: UnitGroup) -> Tensor:
        weights = {key: self._layers[key].matrix.detach().abs() for key in group.parts}
        pooled = group.pool(weights, self._pooling)
        if group.name not in self._start:
            return pooled
        kept = unpack_mask(self._start[group.name], math.prod(group.grid)).view(group.grid)
        return below_kept(pooled, kept.to(pooled.device))

    def _insert_(self, group: UnitGroup, start: Tensor | None) -> None:
        scores = None
        weight = resolve(self.model, group.name).get_parameter("weight")
        if isinstance(self.rule, Scored):
            # Never in half precision, in which many scores would be equal.
            dtype = torch.promote_types(weight.dtype, torch.float32)
            if start is None:
                first = torch.full(group.grid, self.rule.first_score, dtype=dtype, device=weight.device)
            else:
                first = self.rule.start_scores(start, self.goal).to(weight.device, dtype)
            scores = nn.Parameter(first)
            self._scores[group.name] = scores
        for key, units in group.parts.items():
            linear = resolve(self.model, key)
            self._linears[key] = linear
            owns_scores = key == group.name
            if isinstance(self.rule, Gated):
                assert scores is not None
                self._layers[key] = GatedLinear(linear, scores, units, owns_scores, self.rule)
            else:
                self._layers[key] = MaskedLinear(linear, scores, units, owns_scores)
            _replace(self.model, key, self._layers[key])

    def _sample_gates_(self, step: int) -> None:
        """Set the random numbers of the gates.

        They depend only on seed and step, so a resumed run and all processes of a run sample the same.
        """
        generators: dict[torch.device, torch.Generator] = {}
        for group in self.units.groups:
            scores = self._scores[group.name]
            device = scores.device
            if device not in generators:
                generators[device] = torch.Generator(device).manual_seed((self.seed << 31) + step)
            uniform = torch.rand(
                scores.shape, dtype=scores.dtype, device=device, generator=generators[device]
            )
            for key in group.parts:
                layer = self._layers[key]
                assert isinstance(layer, GatedLinear)
                layer.set_uniform(uniform)

    def _ticket(self) -> Ticket:
        ticket = Ticket(self.masks(), metadata={"model": self._origin})
        recorded = {"method": self._method, "sparsity": ticket.sparsity, **self._recorded}
        step = {"operation": "learn", "options": self._options, "steps": self.goal.steps, **recorded}
        ticket.metadata |= {**recorded, "history": [*self._history, step]}
        if len(self._keys) < len(self._shapes):
            total = sum(math.prod(shape) for shape in self._shapes.values())
            pruned = sum(int((~mask).sum()) for mask in ticket.masks.values())
            ticket.metadata["encoder_sparsity"] = pruned / total
        return ticket


def _packed(units: Tensor) -> Tensor:
    """Pack a bool mask over units, of any shape, into one row of bits."""
    return pack_mask(units.reshape(1, -1))


def _replace(model: nn.Module, key: str, module: nn.Module) -> None:
    path, _, name = full_name(model, key).rpartition(".")
    setattr(model.get_submodule(path), name, module)
