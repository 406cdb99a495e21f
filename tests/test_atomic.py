"""Atomic writes: a file or folder appears complete or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import resource
import shutil
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from sparsebert.atomic import DiskFullError, disk_errors, replacing, sweep, write_text


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


def write_folder(target: Path, error: Exception | None = None) -> None:
    """Write a folder with one file; raise ``error``, if there is one, when the file is half written."""
    with replacing(target, 12_300_000) as unfinished:
        unfinished.mkdir()
        (unfinished / "weights").write_bytes(b"half")
        if error is not None:
            raise error


def null_device(folder: Path) -> Path:
    """Return a device like /dev/null: a new one for root, who could destroy the real one."""
    if os.geteuid() != 0:
        return Path(os.devnull)
    os.mknod(folder / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    return folder / "null"


class TestTargetsThatAreNotRegularFiles:
    def test_a_link_is_followed_and_stays_a_link(self, tmp_path: Path) -> None:
        (tmp_path / "real").mkdir()
        real, link = tmp_path / "real" / "result", tmp_path / "link"
        real.write_text("before")
        link.symlink_to(Path("real") / "result")
        write_text(link, "after")
        assert link.is_symlink()
        assert real.read_text() == "after"
        assert {path.name for path in tmp_path.rglob("*")} == {"real", "result", "link"}

    def test_the_target_of_a_dangling_link_is_created(self, tmp_path: Path) -> None:
        link = tmp_path / "link"
        link.symlink_to(tmp_path / "later")
        write_text(link, "after")
        assert link.is_symlink()
        assert (tmp_path / "later").read_text() == "after"

    def test_a_link_to_a_folder_is_followed(self, tmp_path: Path) -> None:
        (tmp_path / "real").mkdir()
        (tmp_path / "real" / "old").touch()
        (tmp_path / "link").symlink_to("real")
        with replacing(tmp_path / "link") as unfinished:
            unfinished.mkdir()
            (unfinished / "new").touch()
        assert (tmp_path / "link").is_symlink()
        assert [path.name for path in (tmp_path / "real").iterdir()] == ["new"]

    def test_a_loop_of_links_and_a_link_into_nowhere(self, tmp_path: Path) -> None:
        (tmp_path / "loop").symlink_to("loop")
        (tmp_path / "lost").symlink_to("nowhere/result")
        with pytest.raises(OSError, match=r"cannot write .*loop: it is a loop of links"):
            write_text(tmp_path / "loop", "after")
        with pytest.raises(FileNotFoundError, match=r"the folder .*nowhere does not exist"):
            write_text(tmp_path / "lost", "after")
        assert os.readlink(tmp_path / "loop") == "loop"

    def test_a_character_device_is_written_to_in_place(self, tmp_path: Path) -> None:
        device = null_device(tmp_path)
        before = device.stat()
        write_text(device, "after")
        assert (device.stat().st_mode, device.stat().st_ino) == (before.st_mode, before.st_ino)

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
    def test_a_device_without_space(self) -> None:
        with pytest.raises(DiskFullError, match="cannot write /dev/full: No space left on device: 5 bytes"):
            write_text(Path("/dev/full"), "after")

    def test_an_open_file_is_written_to_where_the_process_stands(self, tmp_path: Path) -> None:
        with open(tmp_path / "output", "w") as output:
            output.write("first\n")
            output.flush()
            link = tmp_path / "link"
            link.symlink_to(f"/dev/fd/{output.fileno()}")
            for path in (Path(f"/dev/fd/{output.fileno()}"), link):
                write_text(path, "record\n")
            output.write("last\n")
        assert (tmp_path / "output").read_text() == "first\nrecord\nrecord\nlast\n"

    @pytest.mark.parametrize("kind", ["a pipe", "a socket", "a block device"])
    def test_others_are_refused_and_stay(self, tmp_path: Path, kind: str) -> None:
        target = tmp_path / "target"
        if kind == "a pipe":
            os.mkfifo(target)
        elif kind == "a socket":
            socket.socket(socket.AF_UNIX).bind(str(target))
        else:
            try:
                os.mknod(target, stat.S_IFBLK | 0o600, os.makedev(7, 200))
            except PermissionError:
                pytest.skip("block devices need root")
        mode = target.stat().st_mode
        with pytest.raises(OSError, match=f"cannot write {target}: it is {kind}; name a regular file"):
            write_text(target, "after")
        assert target.stat().st_mode == mode

    def test_no_folder_replaces_a_file_or_a_device(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("before")
        for target in (tmp_path / "file", null_device(tmp_path)):
            with pytest.raises(NotADirectoryError, match="cannot write the folder"):
                write_folder(target)
        assert (tmp_path / "file").read_text() == "before"


class TestPermissions:
    def test_of_a_replaced_file_are_kept_with_their_special_bits(self, tmp_path: Path) -> None:
        target = tmp_path / "result"
        target.write_text("before")
        for mode in (0o600, 0o2644, 0o755):
            target.chmod(mode)
            save_file({"x": torch.zeros(1)}, tmp_path / "other")
            with replacing(target) as unfinished:
                save_file({"x": torch.zeros(1)}, unfinished)
            assert stat.S_IMODE(target.stat().st_mode) == mode

    def test_of_a_new_file_are_those_of_the_umask(self, tmp_path: Path) -> None:
        for umask, mode in ((0o022, 0o644), (0o077, 0o600), (0o002, 0o664)):
            before = os.umask(umask)
            try:
                with replacing(tmp_path / f"file-{umask}") as unfinished:
                    save_file({"x": torch.zeros(1)}, unfinished)
                with replacing(tmp_path / f"folder-{umask}") as unfinished:
                    unfinished.mkdir()
                    save_file({"x": torch.zeros(1)}, unfinished / "model.safetensors")
            finally:
                os.umask(before)
            for file in (tmp_path / f"file-{umask}", tmp_path / f"folder-{umask}" / "model.safetensors"):
                assert stat.S_IMODE(file.stat().st_mode) == mode

    def test_of_a_replaced_folder_are_kept(self, tmp_path: Path) -> None:
        target = tmp_path / "model"
        target.mkdir(mode=0o750)
        with replacing(target) as unfinished:
            unfinished.mkdir()
        assert stat.S_IMODE(target.stat().st_mode) == 0o750

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
    def test_the_owner_is_kept(self, tmp_path: Path) -> None:
        target = tmp_path / "result"
        target.write_text("before")
        os.chown(target, 1234, 1235)
        target.chmod(0o6755)
        write_text(target, "after")
        assert (target.stat().st_uid, target.stat().st_gid) == (1234, 1235)
        assert stat.S_IMODE(target.stat().st_mode) == 0o6755


FULL_DISKS = [
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EDQUOT, "Disk quota exceeded", "some/temporary"),
    OSError(errno.EFBIG, "File too large"),
    SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    Exception("No space left on device (os error 28)"),  # tokenizers
    RuntimeError("[enforce fail at inline_container.cc:672] . PytorchStreamWriter failed: file write failed"),
    RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0"),
    OSError("1000 requested and 8 written"),  # numpy
    shutil.Error([("a", "b", "[Errno 28] No space left on device: 'a' -> 'b'")]),
]


class TestAFullDisk:
    @pytest.mark.parametrize("error", FULL_DISKS, ids=lambda error: f"{type(error).__name__} {error}"[:60])
    def test_is_one_error_whoever_reports_it(self, tmp_path: Path, error: Exception) -> None:
        target = tmp_path / "model"
        with pytest.raises(DiskFullError) as caught:
            write_folder(target, error)
        text = str(caught.value)
        assert text.startswith(f"cannot write {target}: ")
        assert "12.30 MB needed" in text
        assert re.search(r"[\d.]+ [kMG]B free$", text)
        assert "\n" not in text
        assert caught.value.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        assert list(tmp_path.iterdir()) == []
        with (
            pytest.raises(DiskFullError, match=r"checkpoint-1: .*: 5\.00 GB needed"),
            disk_errors(tmp_path / "checkpoint-1", 5_000_000_000),
        ):
            raise error

    def test_names_the_target_of_nested_writes(self, tmp_path: Path) -> None:
        def write() -> None:
            with replacing(tmp_path / "model") as unfinished:
                unfinished.mkdir()
                (unfinished / "weights").write_bytes(b"half")
                write_folder(unfinished / "part", OSError(errno.ENOSPC, "No space left on device"))

        with pytest.raises(
            DiskFullError, match=rf"^cannot write {tmp_path}/model: .*: more than 4 bytes needed"
        ):
            write()

    def test_another_error_stays_as_it_is(self, tmp_path: Path) -> None:
        for error in (OSError(errno.EACCES, "Permission denied"), ValueError("bad"), RuntimeError("bad")):
            with pytest.raises(type(error)) as caught, replacing(tmp_path / "result"):
                raise error
            assert caught.value is error

    def test_a_limit_of_file_sizes_is_named(self, tmp_path: Path) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        try:
            with pytest.raises(DiskFullError, match=r"2\.00 kB needed, 1\.00 kB allowed by the limit"):
                write_text(tmp_path / "result", "x" * 2000)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


HALF_WRITTEN = """
import sys, time
from pathlib import Path
from sparsebert.atomic import replacing
with replacing(Path(sys.argv[1])) as unfinished:
    unfinished.write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""


def test_what_a_process_writes_is_swept_once_it_is_dead_and_not_before(tmp_path: Path) -> None:
    target = tmp_path / "result"
    writer = subprocess.Popen([sys.executable, "-c", HALF_WRITTEN, target], stdout=subprocess.PIPE)
    try:
        assert writer.stdout is not None
        writer.stdout.readline()
        (left,) = tmp_path.iterdir()
        write_text(target, "after")
        sweep(tmp_path)
        assert (left / "result").read_text() == "half"
    finally:
        writer.kill()
        writer.wait()
        writer.stdout.close()
    assert sorted(tmp_path.iterdir()) == sorted([left, target])
    write_text(tmp_path / "another", "after")
    assert left.exists()  # a name is swept by those who write it
    write_text(target, "again")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["another", "result"]


def test_left_overs_of_earlier_versions_are_swept_and_files_of_others_stay(tmp_path: Path) -> None:
    (tmp_path / ".result.0123456789ab.tmp").write_text("half")
    (tmp_path / ".result.abcdefabcdef.tmp").mkdir()
    others = [".result.mine.tmp", ".results.0123456789ab.tmp", "result.tmp", ".result", ".x.0123456789ab.tmp"]
    for name in others:
        (tmp_path / name).touch()
    write_text(tmp_path / "result", "after")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["result", *others])
