"""The public names of the package."""

from __future__ import annotations

import pytest

import sparsebert


def test_dir_shows_the_public_names_alone() -> None:
    assert dir(sparsebert) == sorted(sparsebert.__all__)


@pytest.mark.parametrize("name", sparsebert.__all__)
def test_every_public_name_loads_and_has_a_home(name: str) -> None:
    public = getattr(sparsebert, name)
    assert name == "__version__" or (public.__name__ == name and public.__module__.startswith("sparsebert."))


def test_other_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="module 'sparsebert' has no attribute 'sparsify_model'"):
        sparsebert.sparsify_model  # noqa: B018
