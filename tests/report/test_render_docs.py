"""Documents whose tables and pictures come from result files, and never from a keyboard."""

import pytest

from sparsebert.report.render_docs import main
from sparsebert.results import append

TEXT = """# Title

<!-- results: bench results.jsonl -->
typed by hand
<!-- /results -->

Rest.
"""


@pytest.fixture
def document(tmp_path, bench_record):
    append(tmp_path / "results.jsonl", [bench_record()])
    document = tmp_path / "README.md"
    document.write_text(TEXT)
    return document


def test_write_fills_the_marked_block_and_leaves_the_rest(document):
    assert main(["--write", str(document)]) == 0
    text = document.read_text()
    assert text.startswith("# Title\n\n<!-- results: bench results.jsonl -->\n")
    assert text.endswith("<!-- /results -->\n\nRest.\n")
    assert "| sparse | 3.50x |" in text
    assert "typed by hand" not in text


def test_check_fails_on_a_stale_table_and_passes_on_a_fresh_one(document, capsys):
    assert main(["--check", str(document)]) == 1
    assert "differ" in capsys.readouterr().err
    assert document.read_text() == TEXT
    main(["--write", str(document)])
    assert main(["--check", str(document)]) == 0


@pytest.mark.parametrize(
    ("marker", "message"),
    [
        ("pie results.jsonl", "unknown table 'pie'"),
        ("bench missing.jsonl", "cannot read results"),
        ("layers results.jsonl", "holds no records"),
    ],
)
def test_markers_that_lead_nowhere_are_refused(document, capsys, marker, message):
    document.write_text(TEXT.replace("bench results.jsonl", marker))
    before = document.read_text()
    assert main(["--write", str(document)]) == 2
    assert message in capsys.readouterr().err
    assert document.read_text() == before


def test_a_text_is_taken_in_as_it_is(document):
    (document.parent / "printed.txt").write_text("\n  ┃ 90% ┃ 3.5x ┃\n\n")
    document.write_text(TEXT.replace("bench results.jsonl", "text printed.txt"))
    assert main(["--write", str(document)]) == 0
    assert "-->\n```text\n┃ 90% ┃ 3.5x ┃\n```\n<!--" in document.read_text()
    assert main(["--check", str(document)]) == 0


def test_a_missing_document_is_refused(tmp_path, capsys):
    assert main(["--check", str(tmp_path / "README.md")]) == 2
    assert "README.md" in capsys.readouterr().err


def test_the_kind_text_shows_a_file_as_it_is(tmp_path):
    (tmp_path / "printed.txt").write_text("two\n  lines\n")
    document = tmp_path / "README.md"
    document.write_text("<!-- results: text printed.txt -->\n<!-- /results -->\n")
    assert main(["--write", str(document)]) == 0
    assert "-->\n```text\ntwo\n  lines\n```\n<!--" in document.read_text()


@pytest.fixture
def illustrated(tmp_path, bench_record):
    append(tmp_path / "one.jsonl", [bench_record(0.7)])
    append(tmp_path / "other.jsonl", [bench_record(0.9)])
    document = tmp_path / "README.md"
    document.write_text(
        "Text.\n\n<!-- picture: models one.jsonl other.jsonl speed.png -->\n<!-- /picture -->\n"
    )
    return document


def test_a_picture_is_drawn_of_several_files_and_shown_with_its_text(illustrated):
    pytest.importorskip("matplotlib")
    assert main(["--write", str(illustrated)]) == 0
    assert (illustrated.parent / "speed.png").read_bytes().startswith(b"\x89PNG")
    text = illustrated.read_text()
    assert "\n![Speed-up" in text
    assert "](speed.png)\n\n*Speed-up: bert-base, batch 1, 128 tokens, float32.*" in text
    assert main(["--check", str(illustrated)]) == 0
    first = (illustrated.parent / "speed.png").read_bytes()
    assert main(["--write", str(illustrated)]) == 0
    assert (illustrated.parent / "speed.png").read_bytes() == first


def test_each_of_two_pictures_has_its_own_file(illustrated):
    pytest.importorskip("matplotlib")
    text = illustrated.read_text()
    illustrated.write_text(text + text.replace("speed.png", "again.png"))
    assert main(["--write", str(illustrated)]) == 0
    drawn = sorted(path.name for path in illustrated.parent.glob("*.png"))
    assert drawn == ["again.png", "speed.png"]
    assert illustrated.read_text().count("![Speed-up") == 2


def test_check_names_a_picture_whose_text_is_stale_or_that_is_not_drawn(illustrated, capsys):
    assert main(["--check", str(illustrated)]) == 1
    error = capsys.readouterr().err
    assert "blocks differ" in error
    assert f"{illustrated.parent / 'speed.png'}: not drawn" in error
    assert not (illustrated.parent / "speed.png").exists()


@pytest.mark.parametrize(
    ("marker", "message"),
    [
        ("pie one.jsonl", "unknown picture 'pie'"),
        ("models missing.jsonl", "cannot read results"),
        ("layers one.jsonl", "one.jsonl hold no records for a picture of kind 'layers'"),
    ],
)
def test_picture_markers_that_lead_nowhere_are_refused(illustrated, capsys, marker, message):
    illustrated.write_text(illustrated.read_text().replace("models one.jsonl other.jsonl", marker))
    assert main(["--write", str(illustrated)]) == 2
    assert message in capsys.readouterr().err
