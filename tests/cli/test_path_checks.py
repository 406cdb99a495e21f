"""Paths of options are judged before any work, in a line that names the option."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from sparsebert import results
from sparsebert.cli.path_checks import require_files, require_folders, require_records, require_writable


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a file and a folder in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("some text\n")
    (tmp_path / "folder").mkdir()
    return tmp_path


def complaint(check: Callable[[], None]) -> str:
    with pytest.raises(ValueError, match=r"^--") as caught:
        check()
    return str(caught.value)


@pytest.mark.usefixtures("here")
class TestFilesToRead:
    @pytest.mark.parametrize(
        ("path", "line"),
        [
            ("missing", "--data: file missing does not exist"),
            ("file/below", "--data: file file/below does not exist"),
            ("folder", "--data: folder is a folder; expected a file"),
        ],
    )
    def test_that_are_none(self, path: str, line: str) -> None:
        assert complaint(lambda: require_files({"--data": Path(path)})) == line

    def test_of_several_the_first_at_fault_is_named(self) -> None:
        files = {"--a": Path("file"), "--b": [Path("file"), Path("missing")], "--c": Path("other")}
        assert complaint(lambda: require_files(files)) == "--b: file missing does not exist"

    def test_options_that_were_not_given(self) -> None:
        require_files({"--a": None, "--b": Path("file")})

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
    def test_without_permission(self, here: Path) -> None:
        (here / "file").chmod(0)
        assert "no permission" in complaint(lambda: require_files({"--a": Path("file")}))


@pytest.mark.usefixtures("here")
class TestFilesToWrite:
    @pytest.mark.parametrize(
        ("path", "line"),
        [
            ("missing/new", "--plot: cannot write missing/new: the folder missing does not exist"),
            ("file/new", "--plot: cannot write file/new: the folder file does not exist"),
            ("folder", "--plot: cannot write folder: it is a folder"),
        ],
    )
    def test_that_cannot_be(self, path: str, line: str) -> None:
        assert complaint(lambda: require_writable({"--plot": Path(path)})) == line

    def test_over_another_one_or_anew_or_not_at_all(self) -> None:
        require_writable({"--a": Path("file"), "--b": Path("new"), "--c": None})
        assert not Path("new").exists()


@pytest.mark.usefixtures("here")
class TestFilesOfRecords:
    def test_something_else_is_not_appended_to(self) -> None:
        line = complaint(lambda: require_records("--json", Path("file")))
        assert line.startswith("--json: cannot append records to file: file:1 is not JSON")
        Path("file").write_bytes(b"\x80\x81")
        assert complaint(lambda: require_records("--json", Path("file"))).endswith("not UTF-8 text")

    def test_records_are(self) -> None:
        results.append("new", [results.stamp("eval", {})])
        require_records("--json", Path("new"))
        require_records("--json", Path("newer"))
        require_records("--json", None)

    def test_in_a_folder_that_is_not_there(self) -> None:
        assert "does not exist" in complaint(lambda: require_records("--json", Path("missing/new")))


@pytest.mark.usefixtures("here")
class TestFolders:
    @pytest.mark.parametrize("path", ["file", "file/below", "file/far/below"])
    def test_below_a_file(self, path: str, here: Path) -> None:
        line = complaint(lambda: require_folders({"--out": Path(path)}))
        assert line.startswith(f"--out {path}: ")
        assert line.endswith("file is a file; expected a folder")

    def test_that_are_there_or_can_be_made(self) -> None:
        require_folders({"--out": Path("folder"), "--dense": Path("new/below"), "--other": None})
        assert not Path("new").exists()
