"""A rule at work in a model: scores beside its weights, and a mask for every optimizer step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from sparsebert.bert import base_model, embeddings, full_name, prunable, resolve, structure
from sparsebert.mask_learning.masked_layers import GatedLinear, LearnedLinear
from sparsebert.mask_learning.rule import Candidates, Gated, Goal, Rule, Scored
from sparsebert.pruning.unit_groups import UnitGroup, unit_groups
from sparsebert.tickets.ticket import Ticket
from sparsebert_kernels.masked import pack_mask, unpack_mask


class Learner:
    """Puts a :class:`LearnedLinear` in the place of every matrix to prune, until :meth:`close_`.

    ``model``: a BERT; its weights stay where they are, under their names, and so do their values.
    ``origin``: a ticket that keeps everything, which says what model the learned one is for.
    ``granularity``, ``block_size``, ``scope``, ``pooling``, ``include_pooler``: as for
    :func:`sparsebert.prune`; units have one score each, those of neurons and heads shared between their
    matrices. ``pooling``: of magnitudes, where they are the scores.

    A score is float32 whatever the precision of training (float64 in a float64 model). ``step``: the
    optimizer step that the masks are for. Raises ValueError for units that do not fit, and for a run that
    the rule's schedule does not fit.
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
        seed: int = 0,
    ) -> None:
        rule.check(goal)
        found = structure(model)
        names = prunable(model, include_pooler)
        shapes = {key: torch.as_tensor(resolve(model, key).weight).shape for key in names}
        groups = unit_groups(granularity, block_size, shapes, found)
        self.model, self.rule, self.goal, self.step, self.seed = model, rule, goal, 0, seed
        # Not the ticket, whose masks are a byte for each weight.
        self._described, self._pooling, self._shapes = origin.metadata["model"], pooling, shapes
        self.candidates = Candidates(groups, found.types, scope)
        self._units = {"granularity": granularity, "scope": scope, "pooling": pooling, "seed": seed}
        if block_size is not None:
            self._units["block_size"] = list(block_size)
        self._keys = [key for key in names if any(key in group.parts for group in groups)]
        whole = {group.name: torch.ones(group.grid, dtype=torch.bool) for group in groups}
        self._kept = {name: _packed(mask) for name, mask in whole.items()}
        self._needed_gradients = [(each, each.requires_grad) for each in model.parameters()]
        self._freeze_()
        self._scores: dict[str, nn.Parameter] = {}
        self._plain: dict[str, nn.Linear] = {}
        self._layers: dict[str, LearnedLinear] = {}
        for group in groups:
            self._insert_(group)

    def derive_(self, step: int) -> None:
        """Set the masks that this optimizer step, counted from 0, is taken with."""
        self.step = step
        with torch.no_grad():
            kept = self.rule.masks(self.scores(), self.candidates, self.goal, step)
            self._kept = {name: _packed(mask) for name, mask in kept.items()}
            if isinstance(self.rule, Gated):
                self._draw_(step)
                return
            for group in self.candidates.groups:
                for key, mask in group.expand(kept[group.name]).items():
                    self._layers[key].set_mask(mask)

    def masks(self) -> dict[str, Tensor]:
        """Key -> bool [out, in] on the model's device: the masks of the step; at first they keep all."""
        found: dict[str, Tensor] = {}
        for group in self.candidates.groups:
            bits = unpack_mask(self._kept[group.name], math.prod(group.grid))
            found |= group.expand(bits.view(group.grid))
        return {key: found[key] for key in self._keys}

    def scores(self) -> Mapping[str, Tensor]:
        """The live scores of units by group; magnitudes of the weights where there are none to train."""
        if isinstance(self.rule, Scored):
            return self._scores
        return {
            group.name: group.pool(
                {key: self._layers[key].weight.detach().abs() for key in group.parts}, self._pooling
            )
            for group in self.candidates.groups
        }

    def penalty(self) -> Tensor | None:
        """What the rule adds to the loss of this step."""
        return self.rule.penalty(self._scores, self.goal, self.step)

    def parameters(self) -> list[nn.Parameter]:
        """The scores that are trained."""
        return list(self._scores.values())

    def load_(self, weights: Path) -> None:
        """Read the scores from the weights file of a checkpoint."""
        with safe_open(weights, "pt") as file, torch.no_grad():
            for name, scores in self._scores.items():
                scores.copy_(file.get_tensor(f"{full_name(self.model, name)}.mask_scores"))

    def close_(self) -> Ticket:
        """Give the model its own linear layers back, holding the weights of the run's result; its ticket.

        Weights that were gated hold the product with their gates.
        """
        self.derive_(self.goal.steps)
        ticket = self._ticket()
        for layer in self._layers.values():
            if isinstance(layer, GatedLinear):
                with torch.no_grad():
                    layer.weight.mul_(layer.eval().gates())
        for key, linear in self._plain.items():
            _replace(self.model, key, linear)
        for parameter, needed in self._needed_gradients:
            parameter.requires_grad_(needed)
        ticket.apply_(self.model)
        return ticket

    def _freeze_(self) -> None:
        frozen = [embeddings(self.model) if self.rule.trains_weights else base_model(self.model)]
        if not self.rule.trains_head:
            frozen.append(self.model)
        for module in frozen:
            module.requires_grad_(False)

    def _insert_(self, group: UnitGroup) -> None:
        scores = None
        first = resolve(self.model, group.name).get_parameter("weight")
        if isinstance(self.rule, Scored):
            # Where the weights are, and never in half precision: scores would tie in masses.
            dtype = torch.promote_types(first.dtype, torch.float32)
            scores = nn.Parameter(
                torch.full(group.grid, self.rule.first_score, dtype=dtype, device=first.device)
            )
            self._scores[group.name] = scores
        for key, units in group.parts.items():
            linear = resolve(self.model, key)
            assert isinstance(linear, nn.Linear)
            self._plain[key] = linear
            owns = key == group.name
            if isinstance(self.rule, Gated):
                assert scores is not None
                self._layers[key] = GatedLinear(linear, scores, units, owns, self.rule)
            else:
                self._layers[key] = LearnedLinear(linear, scores, units, owns)
            _replace(self.model, key, self._layers[key])

    def _draw_(self, step: int) -> None:
        """Random numbers for gates that follow from seed and step: a run that is resumed draws the same, and
        so does every process."""
        generators: dict[torch.device, torch.Generator] = {}
        for group in self.candidates.groups:
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
        ticket = Ticket(self.masks(), metadata={"model": self._described})
        made = {"method": self.rule.name, "sparsity": ticket.sparsity, **self._units}
        step = {"operation": "learn", "options": self.rule.options(), "steps": self.goal.steps, **made}
        ticket.metadata |= {**made, "history": [step]}
        if len(self._keys) < len(self._shapes):
            total = sum(math.prod(shape) for shape in self._shapes.values())
            pruned = sum(int((~mask).sum()) for mask in ticket.masks.values())
            ticket.metadata["encoder_sparsity"] = pruned / total
        return ticket


def _packed(units: Tensor) -> Tensor:
    """A mask over units, bool of any shape, as one row of bits."""
    return pack_mask(units.reshape(1, -1))


def _replace(model: nn.Module, key: str, module: nn.Module) -> None:
    path, _, name = full_name(model, key).rpartition(".")
    setattr(model.get_submodule(path), name, module)
