"""Plans are measured into a cache of the tests' own; compaction leaves rows and columns out however small."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.compaction.conftest import copies_are_free  # noqa: F401


@pytest.fixture(autouse=True, scope="module")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield
