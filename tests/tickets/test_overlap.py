"""Overlaps of tickets: the Jaccard index, that of chance, and what tickets must share to be compared."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sparsebert import Ticket
from sparsebert.tickets.overlap import Overlap, PackedMasks, overlap

KEY, OTHER = "encoder.layer.0.attention.self.query", "encoder.layer.0.output.dense"


def mask(density: float, seed: int, shape: tuple[int, int] = (60, 50)) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < density


def compare(**tickets: Ticket) -> Overlap:
    return overlap({name: PackedMasks.of(ticket) for name, ticket in tickets.items()})


def test_it_is_the_index_of_every_two_tickets() -> None:
    tickets = {
        name: Ticket({KEY: mask(0.3, seed), OTHER: mask(0.6, seed, (7, 9))})
        for seed, name in enumerate("abc")
    }
    common = compare(**tickets)
    assert common.names == ("a", "b", "c")
    for i, one in enumerate(tickets.values()):
        for j, other in enumerate(tickets.values()):
            assert common.jaccard[i, j] == pytest.approx(one.overlap(other))
    assert common.note == ""


def test_independent_masks_have_the_index_of_chance() -> None:
    shape = 2000, 1500
    common = compare(a=Ticket({KEY: mask(0.1, 1, shape)}), b=Ticket({KEY: mask(0.4, 2, shape)}))
    assert common.chance[0, 1] == pytest.approx(0.04 / 0.46, rel=0.01)
    assert common.jaccard[0, 1] == pytest.approx(common.chance[0, 1], rel=0.01)


def test_chance_knows_that_densities_differ_by_matrix() -> None:
    """Two tickets that keep one of two matrices whole agree because of their densities alone."""
    whole, nothing = torch.ones(4, 4, dtype=torch.bool), torch.zeros(4, 4, dtype=torch.bool)
    common = compare(a=Ticket({KEY: whole, OTHER: nothing}), b=Ticket({KEY: whole, OTHER: nothing}))
    assert common.chance[0, 1] == common.jaccard[0, 1] == 1


def test_tickets_that_keep_nothing_are_equal() -> None:
    nothing = Ticket({KEY: torch.zeros(4, 4, dtype=torch.bool)})
    assert compare(a=nothing, b=nothing).jaccard[0, 1] == 1


def test_matrices_of_one_ticket_alone_are_left_out_and_named() -> None:
    both = {KEY: mask(0.3, 1), OTHER: mask(0.5, 2)}
    common = compare(a=Ticket({KEY: both[KEY]}), b=Ticket(both | {"pooler.dense": mask(0.5, 3)}))
    assert (common.matrices, common.jaccard[0, 1]) == (1, 1)
    assert common.note == (
        f"Compared on the matrices that all tickets have (1): b also has {OTHER} and 1 more."
    )


class TestRefusals:
    def test_one_ticket(self) -> None:
        with pytest.raises(ValueError, match=r"^an overlap needs at least two tickets, got 1$"):
            compare(a=Ticket({KEY: mask(0.3, 1)}))

    def test_matrices_of_two_shapes(self) -> None:
        message = f"^tickets of different models: {KEY} is 60x50 in a and 50x60 in b$"
        with pytest.raises(ValueError, match=message):
            compare(a=Ticket({KEY: mask(0.3, 1)}), b=Ticket({KEY: mask(0.3, 1, (50, 60))}))

    def test_models_with_other_numbers_of_layers(self) -> None:
        """The matrices that both have would agree in shape."""
        tickets = {
            name: Ticket({KEY: mask(0.3, 1)}, metadata={"model": {"linears": linears}})
            for name, linears in (("a", 36), ("b", 72))
        }
        message = "^tickets of different models: a is for 36 encoder matrices, b for 72$"
        with pytest.raises(ValueError, match=message):
            compare(**tickets)

    def test_nothing_in_common(self) -> None:
        message = "^tickets of different models: a, b have no matrix in common$"
        with pytest.raises(ValueError, match=message):
            compare(a=Ticket({KEY: mask(0.3, 1)}), b=Ticket({OTHER: mask(0.3, 1)}))
