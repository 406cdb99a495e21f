"""Atomic writes: a file or folder appears complete or not at all."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest

from sparsebert.atomic import replacing, sweep, write_text


def test_a_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "result"
    target.write_text("before")
    with replacing(target) as unfinished:
        unfinished.write_text("after")
        assert target.read_text() == "before"
    assert target.read_text() == "after"
    assert [path.name for path in tmp_path.iterdir()] == ["result"]


def test_a_folder_takes_the_place_of_another(tmp_path: Path) -> None:
    target = tmp_path / "model"
    for content in ("old", "new"):
        with replacing(target) as unfinished:
            (unfinished / "deep").mkdir(parents=True)
            (unfinished / "deep" / "weights").write_text(content)
    assert (target / "deep" / "weights").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_folder_that_cannot_be_replaced_keeps_its_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "old").write_text("old")
    rename = os.replace

    def refuse_the_new(source: Path, target: Path) -> None:
        if (Path(source) / "new").exists():
            raise OSError("no")
        rename(source, target)

    monkeypatch.setattr(os, "replace", refuse_the_new)
    with contextlib.ExitStack() as stack:
        temporary = stack.enter_context(replacing(folder))
        temporary.mkdir()
        (temporary / "new").write_text("new")
        with pytest.raises(OSError, match="no"):
            stack.close()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (folder / "old").read_text() == "old"


@pytest.mark.parametrize("folder", [False, True], ids=["file", "folder"])
def test_a_full_disk_leaves_what_was_there(tmp_path: Path, folder: bool) -> None:
    target = tmp_path / "result"
    target.write_text("before")

    def fill() -> None:
        with replacing(target) as unfinished:
            if folder:
                unfinished.mkdir()
                unfinished = unfinished / "part"
            unfinished.write_text("half")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        fill()
    assert target.read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["result"]


def test_a_replaced_file_keeps_its_permissions(tmp_path: Path) -> None:
    target = tmp_path / "result"
    target.write_text("before")
    target.chmod(0o640)
    write_text(target, "größer")
    assert target.read_text(encoding="utf-8") == "größer"
    assert target.stat().st_mode & 0o777 == 0o640


def test_the_longest_name_of_a_file_system_can_be_written(tmp_path: Path) -> None:
    target = tmp_path / ("x" * 255)
    write_text(target, "after")
    assert [path.name for path in tmp_path.iterdir()] == [target.name]


def test_a_file_never_replaces_a_folder(tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "weights").write_text("before")
    with pytest.raises(IsADirectoryError, match=f"cannot write {target}: it is a folder"):
        write_text(target, "after")
    assert [path.name for path in tmp_path.rglob("*")] == ["model", "weights"]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    target = tmp_path / "nowhere" / "result"
    with pytest.raises(
        FileNotFoundError, match=f"cannot write {target}: the folder .*nowhere does not exist"
    ):
        write_text(target, "after")


def test_what_a_killed_process_left_is_swept(tmp_path: Path) -> None:
    (tmp_path / ".model.123.tmp").mkdir()
    (tmp_path / ".model.123.tmp" / "weights").write_text("half")
    (tmp_path / ".log.456.tmp").write_text("half")
    (tmp_path / ".lock").touch()
    sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
