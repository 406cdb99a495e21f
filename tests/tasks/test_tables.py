"""Tables: what is a row and a column, and where in which file something is wrong."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from sparsebert.tasks import Task
from sparsebert.tasks.tables import label_parser, read_columns

Write = Callable[..., Path]
ROW = '{"text": "y", "label": 0}'
SCORES = Task("own", "regression", ("pearson",))


class TestTsv:
    def test_quotes_are_text_and_the_numbers_are_those_of_the_lines(self, write: Write) -> None:
        path = write("a.tsv", "text\tlabel", '" he said\t1', 'she "left"\t0')
        assert list(read_columns(path, ["text", "label"])) == [
            (2, ('" he said', "1")),
            (3, ('she "left"', "0")),
        ]

    def test_columns_come_in_the_order_asked_for(self, write: Write) -> None:
        path = write("a.tsv", "x\ty\tz", "1\t2\t3")
        assert list(read_columns(path, ["z", "x"])) == [(2, ("3", "1"))]

    def test_by_number_the_first_line_is_a_row(self, write: Write) -> None:
        path = write("a.tsv", "gj04\t1\t\tIt rains.", "gj04\t0\t*\tRains it.")
        assert list(read_columns(path, [3, 1])) == [(1, ("It rains.", "1")), (2, ("Rains it.", "0"))]

    def test_a_byte_order_mark_and_windows_line_ends_are_no_text(self, tmp_path: Path) -> None:
        path = tmp_path / "a.tsv"
        path.write_bytes("﻿Quality\ttext\r\n1\tso\r\n".encode())
        assert list(read_columns(path, ["text", "Quality"])) == [(2, ("so", "1"))]

    def test_only_a_newline_ends_a_line(self, write: Write) -> None:
        odd = "one\u2028two\x0cthree\x85four\rfive"
        path = write("a.tsv", "text\tlabel", f"{odd}\t1")
        assert list(read_columns(path, ["text"])) == [(2, (odd,))]

    def test_the_last_line_needs_no_newline(self, tmp_path: Path) -> None:
        path = tmp_path / "a.tsv"
        path.write_text("text\nlast")
        assert list(read_columns(path, ["text"])) == [(2, ("last",))]

    def test_an_empty_file_has_no_rows(self, write: Write) -> None:
        assert list(read_columns(write("a.tsv"), ["text"])) == []

    def test_a_missing_column_is_named_with_those_that_are_there(self, write: Write) -> None:
        path = write("a.tsv", "text\tlabel", "x\t1")
        with pytest.raises(ValueError, match=r"a\.tsv:1: no column 'sentence'; the columns are text, label$"):
            list(read_columns(path, ["sentence"]))

    def test_a_column_that_stands_twice_is_refused(self, write: Write) -> None:
        with pytest.raises(ValueError, match=r"a\.tsv:1: two columns 'x'"):
            list(read_columns(write("a.tsv", "x\tx"), ["x"]))

    @pytest.mark.parametrize("row", ["x", "x\t1\textra"])
    def test_a_row_of_another_width_is_named_by_file_and_line(self, write: Write, row: str) -> None:
        path = write("a.tsv", "text\tlabel", "x\t1", row, "x\t0")
        width = row.count("\t") + 1
        with pytest.raises(ValueError, match=rf"a\.tsv:3: expected 2 columns as in line 1, got {width}$"):
            list(read_columns(path, ["text", "label"]))

    def test_too_few_columns_in_a_file_without_a_header(self, write: Write) -> None:
        with pytest.raises(ValueError, match=r"a\.tsv:1: expected at least 4 columns, got 2"):
            list(read_columns(write("a.tsv", "text\t1"), [3, 1]))

    def test_bytes_that_are_no_utf_8_are_named_by_line(self, tmp_path: Path) -> None:
        path = tmp_path / "a.tsv"
        path.write_bytes(b"text\nfine\ncaf\xe9\n")
        with pytest.raises(ValueError, match=r"a\.tsv:3: not UTF-8 \(byte 0xe9\)"):
            list(read_columns(path, ["text"]))


class TestCsv:
    def test_quoted_commas_quotes_and_newlines_are_text(self, write: Write) -> None:
        path = write("a.csv", "text,label", '"one, ""two""\nthree",yes', "four,no")
        assert list(read_columns(path, ["text", "label"])) == [
            (2, ('one, "two"\nthree', "yes")),
            (4, ("four", "no")),
        ]

    def test_an_open_quote_is_named_by_the_line_where_its_row_begins(self, write: Write) -> None:
        path = write("a.csv", "text,label", "x,1", '"y,1', "z,0")
        with pytest.raises(ValueError, match=r"a\.csv:3: not CSV: unexpected end of data"):
            list(read_columns(path, ["text"]))


class TestJsonLines:
    def test_numbers_and_truth_values_are_read_as_they_are_written(self, write: Write) -> None:
        path = write("a.jsonl", '{"t": "x", "y": 1}', '{"y": true, "t": "z"}', '{"t": "", "y": 2.5, "n": 0}')
        rows = [values for _, values in read_columns(path, ["t", "y"])]
        assert rows == [("x", "1"), ("z", "true"), ("", "2.5")]

    @pytest.mark.parametrize(
        ("line", "complaint"),
        [
            ("{'t': 1}", "not JSON"),
            ('{"t": ' + "1" * 5000 + "}", "not JSON: Exceeds the limit"),
            ('{"t": "x"} {', "not JSON: Extra data"),
            ("[1]", "expected a JSON object, got list"),
            ('{"u": 1}', "no column 't'; the columns are u"),
            ('{"t": {"x": 1}}', """column 't' must hold text or a number, got {"x": 1}"""),
            ("[" * 100_000, "not JSON: nested too deeply"),
        ],
    )
    def test_a_bad_line_is_named_by_file_and_number(self, write: Write, line: str, complaint: str) -> None:
        path = write("a.jsonl", '{"t": "x"}', line, '{"t": "x"}')
        with pytest.raises(ValueError, match=rf"a\.jsonl:2: {complaint}"):
            list(read_columns(path, ["t"]))


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ('{"t": "x", "u": 1, "t": "y"}', "two columns 't'; the columns are t, u, t$"),
        (r'{"t": "a \ud83d b"}', r"column 't' holds \\ud83d, half of a surrogate pair"),
        (r'{"t": "\udc00"}', r"column 't' holds \\udc00, half of a surrogate pair"),
    ],
)
def test_json_that_python_reads_too_kindly(write: Write, name: str, row: str, complaint: str) -> None:
    path = write(name, *(['[{"t": "x"},', f"{row}]"] if name == "a.json" else ['{"t": "x"}', row]))
    with pytest.raises(ValueError, match=rf"{re.escape(name)}:2: {complaint}"):
        list(read_columns(path, ["t"]))


def test_a_whole_surrogate_pair_is_a_character(write: Write) -> None:
    path = write("a.jsonl", r'{"t": "\ud83d\ude00"}')
    assert list(read_columns(path, ["t"])) == [(1, ("\U0001f600",))]


@pytest.mark.parametrize("label", ["1_0", "inf", "nan", "1e999", "0x1", "\u0661"])
def test_scores_that_only_python_calls_numbers(label: str) -> None:
    parse = label_parser(SCORES, ())
    with pytest.raises(ValueError, match=r"^a\.csv:2: label must be a finite number, got "):
        parse(label, "a.csv:2")


@pytest.mark.parametrize("label", ["1", "-.5", "+2.", " 1e-05 ", "1e+100"])
def test_scores(label: str) -> None:
    assert label_parser(SCORES, ())(label, "a.csv:2") == float(label)


fields = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
tables = st.lists(st.tuples(fields, fields), min_size=1, max_size=4)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tables)
def test_what_is_written_is_read_again(tmp_path: Path, rows: list[tuple[str, str]]) -> None:
    with open(tmp_path / "a.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("x", "y"), *rows])
    objects = "".join(json.dumps({"y": y, "x": x}) + "\n" for x, y in rows)
    (tmp_path / "a.jsonl").write_text(objects, encoding="utf-8")
    # A tab-separated file has no way to write these; windows line ends are those of the file.
    plain = [tuple(re.sub(r"[\t\n\r]", " ", field) for field in row) for row in rows]
    lines = "".join(f"{x}\t{y}\n" for x, y in [("x", "y"), *plain])
    (tmp_path / "a.tsv").write_bytes(lines.encode())
    for name, expected in (("a.csv", rows), ("a.jsonl", rows), ("a.tsv", plain)):
        assert [row for _, row in read_columns(tmp_path / name, ["x", "y"])] == expected


def test_a_table_of_an_unknown_kind_is_refused(write: Write) -> None:
    with pytest.raises(ValueError, match=r"must end in \.tsv, \.csv, \.jsonl or \.json, got \.parquet"):
        list(read_columns(write("a.parquet"), ["t"]))


class TestJsonList:
    def test_a_list_of_rows_is_read_with_the_lines_of_its_rows(self, write: Write) -> None:
        path = write("a.json", "", "[", ' {"t": "x", "y": 1},', ' {"y": true,', '  "t": "z"}', " ]", "")
        assert list(read_columns(path, ["t", "y"])) == [(3, ("x", "1")), (4, ("z", "true"))]

    def test_rows_may_stand_in_one_line(self, write: Write) -> None:
        path = write("a.json", '[{"t":"x"},{"t":"[]"}]')
        assert list(read_columns(path, ["t"])) == [(1, ("x",)), (1, ("[]",))]

    def test_an_empty_list_has_no_rows(self, write: Write) -> None:
        assert list(read_columns(write("a.json", "[ ]"), ["t"])) == []

    def test_json_lines_may_have_this_ending_too(self, write: Write) -> None:
        path = write("a.json", '{"t": "x"}', "", '{"t": "y"}')
        assert list(read_columns(path, ["t"])) == [(1, ("x",)), (3, ("y",))]

    @pytest.mark.parametrize(
        ("lines", "complaint"),
        [
            (['[{"t": "x"},', "{'t': 1}]"], "2: not JSON: Expecting property name"),
            (['[{"t": "x"}', '{"t": "y"}]'], "2: not JSON: the list of rows does not go on or end here"),
            (['[{"t": "x"},', "]"], None),
            (['[{"t": "x"}'], "2: not JSON: the list of rows does not go on"),
            (['[{"t": "x"}]', "", "[]"], "3: not JSON: text after the end"),
            (["[1]"], "1: expected a JSON object, got int"),
            (['[{"t": "x"},', '{"u": 1}]'], "2: no column 't'; the columns are u"),
            (["{", '"t": "x"', "}"], "1: not JSON"),
            (["[" * 100_000], "1: not JSON: nested too deeply"),
        ],
    )
    def test_bad_content_is_named_by_file_and_line(
        self, write: Write, lines: list[str], complaint: str | None
    ) -> None:
        path = write("a.json", *lines)
        if complaint is None:  # a comma after the last row does no harm
            assert list(read_columns(path, ["t"])) == [(1, ("x",))]
            return
        with pytest.raises(ValueError, match=rf"a\.json:{complaint}"):
            list(read_columns(path, ["t"]))


class TestAsPeopleWriteThem:
    """Blank lines, long fields, byte-order marks, and blanks around the names of columns."""

    ROWS: ClassVar = {
        "a.csv": ["", "text,label", "", "x,1", "   ", "y,0", ""],
        "a.tsv": ["", "text\tlabel", "", "x\t1", "   ", "y\t0", ""],
        "a.jsonl": ["", '{"text": "x", "label": 9}', "", '{"text": "x", "label": 1}', " ", ROW, ""],
    }

    @pytest.mark.parametrize("end", ["\n", "\r\n"])
    @pytest.mark.parametrize("mark", ["", "\ufeff"])
    @pytest.mark.parametrize("name", ROWS)
    def test_blank_lines_are_skipped_and_counted(
        self, tmp_path: Path, name: str, mark: str, end: str
    ) -> None:
        (tmp_path / name).write_bytes((mark + end.join(self.ROWS[name])).encode())
        rows = list(read_columns(tmp_path / name, ["text", "label"]))
        assert rows[-2:] == [(4, ("x", "1")), (6, ("y", "0"))]

    @pytest.mark.parametrize(
        ("name", "lines"),
        [
            ("a.csv", ['" text ",label\u00a0', "x,1"]),
            ("a.tsv", [" text\t label ", "x\t1"]),
            ("a.jsonl", ['{" text": "x", "label\\ufeff": 1}']),
            ("a.json", ['[{" text": "x", "label ": 1}]']),
        ],
    )
    def test_blanks_around_the_names_of_columns_do_not_matter(
        self, write: Write, name: str, lines: list[str]
    ) -> None:
        ((_, row),) = read_columns(write(name, *lines), ["text", " label"])
        assert row == ("x", "1")

    def test_a_name_that_stands_twice_up_to_blanks_is_refused(self, write: Write) -> None:
        for name, lines in (("a.csv", ["x, x", "1,2"]), ("a.jsonl", ['{"x": 1, "x ": 2}'])):
            with pytest.raises(ValueError, match=rf"{name}:1: two columns 'x'"):
                list(read_columns(write(name, *lines), ["x"]))

    @pytest.mark.parametrize(
        ("name", "header"), [("a.csv", "text;label"), ("a.csv", "text\tlabel"), ("a.tsv", "text,label")]
    )
    def test_other_separators_are_refused_with_the_right_ones(
        self, write: Write, name: str, header: str
    ) -> None:
        with pytest.raises(
            ValueError, match=r":1: no column 'text'; .*; separate columns by commas in \.csv, by tabs"
        ):
            list(read_columns(write(name, header, "x;1"), ["text"]))

    def test_a_field_may_be_longer_than_the_csv_module_s_limit(self, write: Write) -> None:
        limit, text = csv.field_size_limit(), "long " * 40_000
        path = write("a.csv", "text,label", f'"{text}",1')
        assert list(read_columns(path, ["text", "label"])) == [(2, (text, "1"))]
        assert csv.field_size_limit() == limit

    def test_a_width_is_compared_with_the_line_of_the_header(self, write: Write) -> None:
        with pytest.raises(ValueError, match=r"a\.tsv:5: expected 2 columns as in line 3, got 1$"):
            list(read_columns(write("a.tsv", "", "", "text\tlabel", "x\t1", "x"), ["text"]))

    def test_a_null_is_an_empty_cell(self, write: Write) -> None:
        path = write("a.jsonl", '{"t": null, "y": 1}')
        assert list(read_columns(path, ["t", "y"])) == [(1, ("", "1"))]
