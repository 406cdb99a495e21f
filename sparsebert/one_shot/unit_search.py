"""Which heads and neurons to keep: the most Fisher information within a budget, then the best sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def search_units(
    importance: Mapping[str, Tensor], costs: Mapping[str, float], kinds: Mapping[str, str], budget: float
) -> dict[str, Tensor]:
    """Keep the units with the most importance that cost no more than a budget.

    Kwon et al. 2022, algorithm 1: units of a kind are ranked over all layers, and for each number of heads,
    from 1 if the budget allows it, the rest of the budget is filled with neurons. Unlike in the published
    code, no number of heads exceeds the budget. Units of a kind that do not all cost the same are ranked by
    importance over cost.

    Args:
        importance: Float [units], by layer.
        costs: Cost of a unit, by layer.
        kinds: Kind of the units, one or two in all, by layer.
        budget: The budget, in the same unit.

    Returns:
        bool [units], True = keep, by layer.
    """
    ranked = [_Ranking(importance, costs, [n for n in kinds if kinds[n] == kind]) for kind in _order(kinds)]
    first, second = ranked if len(ranked) == 2 else (ranked[0], None)
    affordable = int(torch.searchsorted(first.cost, budget, right=True)) - 1
    if second is None:
        return first.kept(affordable)
    counts = slice(min(1, affordable), affordable + 1)
    others = torch.searchsorted(second.cost, budget - first.cost[counts], right=True) - 1
    best = int((first.total[counts] + second.total[others]).argmax())
    return first.kept(counts.start + best) | second.kept(int(others[best]))


class _Ranking:
    """The units of some layers, the most important first.

    Attributes:
        total: Importance of the first n units, float64 [units + 1].
        cost: Their cost, float64 [units + 1].
    """

    def __init__(
        self, importance: Mapping[str, Tensor], costs: Mapping[str, float], names: Sequence[str]
    ) -> None:
        self._sizes = {name: len(importance[name]) for name in names}
        values = torch.cat([importance[name].double() for name in names])
        prices = torch.cat([torch.full((size,), float(costs[name])) for name, size in self._sizes.items()])
        prices = prices.double()
        self._order = (values / prices).argsort(descending=True, stable=True)
        self.total = _sums(values[self._order])
        self.cost = _sums(prices[self._order])

    def kept(self, count: int) -> dict[str, Tensor]:
        """Return the masks, by layer, of the first ``count`` units."""
        mask = torch.zeros(len(self._order), dtype=torch.bool)
        mask[self._order[:count]] = True
        return dict(zip(self._sizes, mask.split(list(self._sizes.values())), strict=True))


def rearrange(kept: Tensor, gradients: Tensor) -> Tensor:
    """Replace a layer's kept units by as many others that lose less, given how units act together.

    Kwon et al. 2022, section 4.3 and their code: with the Fisher information of a layer, G^T G, the loss of a
    set of units is the squared norm of the sum of their gradients. Starting from the units with the least
    information of their own, each further unit is pruned in turn, and the pruned unit without which the loss
    is least is kept instead.

    Args:
        kept: bool [units]; only the number of units matters.
        gradients: Float [samples, units].

    Returns:
        bool [units].
    """
    pruned = len(kept) - int(kept.sum())
    if pruned in (0, len(kept)):
        return kept
    fisher = gradients.double().t() @ gradients.double()
    alone = fisher.diagonal()
    order = alone.argsort(stable=True)
    members = order[: pruned + 1].clone()  # the last place is that of the unit to add
    pull = fisher[members[:pruned]].sum(0)  # of each unit's gradient and the sum over the members
    for unit in order[pruned:].tolist():
        members[pruned] = unit
        pull += fisher[unit]
        # |s - g|^2 without |s|^2, which is the same for all.
        spared = int((alone[members] - 2 * pull[members]).argmin())
        pull -= fisher[members[spared]]
        members[spared:pruned] = members[spared + 1 :].clone()
    mask = torch.ones_like(kept)
    mask[members[:pruned]] = False
    return mask


def _order(kinds: Mapping[str, str]) -> list[str]:
    # Heads first: there are fewer of them.
    return sorted(set(kinds.values()))


def _sums(values: Tensor) -> Tensor:
    return torch.cat([values.new_zeros(1), values.cumsum(0)])
