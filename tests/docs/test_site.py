"""The site builds from the documents, with warnings as errors."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.documents import PAGES, ROOT


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for module in ("sphinx", "myst_parser", "furo", "sphinx_copybutton"):
        pytest.importorskip(module)
    from sphinx.cmd.build import build_main

    code = build_main(["-q", "-W", "--keep-going", "-b", "html", str(ROOT / "docs"), str(tmp_path)])
    assert code == 0, capsys.readouterr().err
    for page in PAGES[1:]:
        assert (tmp_path / page.relative_to(ROOT / "docs").with_suffix(".html")).exists()
    reference = (tmp_path / "reference.html").read_text()
    import sparsebert

    for name in sparsebert.__all__:
        assert name in reference
