"""Mutants chosen by hand: the most telling line of each package."""

from tests.mutants.mutant import Mutant

CHOSEN: tuple[Mutant, ...] = ()
