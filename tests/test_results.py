"""Result files: whole records, appended and never lost."""

import json
import threading

import pytest

from sparsebert.results import SCHEMA, append, read, stamp


def test_round_trip_keeps_order_and_values(tmp_path):
    file = tmp_path / "results.jsonl"
    rows = [
        stamp("bench", {"ratio": {"onednn": {"median": 3.25}}, "note": "größer"}),
        stamp("layer", {"m": 8}),
    ]
    append(file, rows)
    assert read(file) == rows
    assert read(file, kind="layer") == rows[1:]


def test_unicode_s_other_ends_of_lines_end_none(tmp_path):
    file = tmp_path / "results.jsonl"
    row = stamp("bench", {"note": "one\u2028two\x85three"})
    file.write_text(json.dumps(row, ensure_ascii=False) + "\r\n", encoding="utf-8")
    assert read(file) == [row]


def test_appending_keeps_the_earlier_bytes(tmp_path):
    file = tmp_path / "results.jsonl"
    append(file, [stamp("bench", {"n": 1})])
    before = file.read_bytes()
    append(file, [stamp("bench", {"n": 2})])
    assert file.read_bytes().startswith(before)
    assert [row["n"] for row in read(file)] == [1, 2]


def test_a_last_line_without_newline_is_kept_apart(tmp_path):
    file = tmp_path / "results.jsonl"
    file.write_text(json.dumps(stamp("bench", {"n": 1})))
    append(file, [stamp("bench", {"n": 2})])
    assert [row["n"] for row in read(file)] == [1, 2]


def test_two_writers_both_keep_their_rows(tmp_path):
    file = tmp_path / "results.jsonl"

    def write(writer: int) -> None:
        for n in range(10):
            append(file, [stamp("bench", {"writer": writer, "n": n})])

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(read(file)) == 40


@pytest.mark.parametrize("value", [float("nan"), object()])
def test_what_is_no_json_is_refused_and_nothing_is_written(tmp_path, value):
    file = tmp_path / "results.jsonl"
    append(file, [stamp("bench", {"n": 1})])
    before = file.read_bytes()
    with pytest.raises(ValueError, match="not plain JSON"):
        append(file, [stamp("bench", {"n": 2}), stamp("bench", {"n": value})])
    assert file.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["results.jsonl"]


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match="nowhere does not exist"):
        append(tmp_path / "nowhere" / "results.jsonl", [])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{broken", ":2 is not JSON"),
        ("[1]", ":2 is not a result record"),
        ('{"n": 1}', ":2 is not a result record"),
        ('{"schema": "1", "kind": "bench"}', ":2 is not a result record"),
        ('{"schema": 1, "kind": ["bench"]}', ":2 is not a result record"),
        (json.dumps({"schema": SCHEMA + 1, "kind": "bench"}), f"reads up to {SCHEMA}: update sparsebert"),
    ],
)
def test_lines_that_are_no_records_are_named_by_number(tmp_path, line, message):
    file = tmp_path / "results.jsonl"
    file.write_text(json.dumps(stamp("bench", {})) + "\n" + line + "\n")
    with pytest.raises(ValueError, match=message):
        read(file)


def test_every_record_says_when_and_in_which_schema():
    row = stamp("bench", {})
    assert row["schema"] == SCHEMA
    assert row["timestamp"].endswith("+00:00")
