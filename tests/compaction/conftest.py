"""In models as small as these no row or column would be left out of a product, unless copies cost nothing."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def copies_are_free(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PICKED", "PLACED"):
        monkeypatch.setattr(f"sparsebert.compaction.live_rectangle.{name}", 0)
