"""Paths that commands are given, looked at before the work begins: minutes of it could be lost at its end.

Every function takes paths by the names of their options, leaves out those that are None, and raises
ValueError in one line that begins with the option at fault.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from sparsebert import results


def require_files(files: Mapping[str, Path | Iterable[Path] | None]) -> None:
    """Each is a file that can be read."""
    for option, given in files.items():
        for file in [given] if isinstance(given, Path) else given or ():
            if not file.exists():
                raise ValueError(f"{option} {file}: there is no such file")
            if file.is_dir():
                raise ValueError(f"{option} {file} is a folder: a file is expected")
            if not os.access(file, os.R_OK):
                raise ValueError(f"{option} {file}: no permission to read it")


def require_writable(files: Mapping[str, Path | None]) -> None:
    """Each is a file that can be written, over the one that is there."""
    for option, file in files.items():
        if file is None:
            continue
        problem = ""
        if not file.parent.is_dir():
            problem = f"the folder {file.parent} does not exist"
        elif file.is_dir():
            problem = "it is a folder"
        elif not os.access(file if file.exists() else file.parent, os.W_OK):
            problem = "no permission"
        if problem:
            raise ValueError(f"{option}: cannot write {file}: {problem}")


def require_picture(option: str, file: Path | None) -> None:
    """A file that a picture can be drawn to: its name ends as one, and matplotlib is there."""
    from sparsebert.report import plots

    require_writable({option: file})
    if file is not None:
        try:
            plots.require_ending(file)
            plots.require_matplotlib()
        except ValueError as error:
            raise ValueError(f"{option}: {error}") from None


def require_records(option: str, file: Path | None) -> None:
    """A file that records can be appended to: a new one, or one that holds records and nothing else."""
    require_writable({option: file})
    if file is not None and file.exists():
        try:
            results.read(file)
        except ValueError as error:
            raise ValueError(f"{option}: records cannot go into this file: {error}") from None


def require_folders(folders: Mapping[str, Path | None]) -> None:
    """Each is a folder that can be written into, or can be made."""
    for option, folder in folders.items():
        if folder is None:
            continue
        there = next(each for each in (folder, *folder.absolute().parents) if each.exists())
        if not there.is_dir():
            raise ValueError(f"{option} {folder}: {there} is a file, and a folder is expected")
        if not os.access(there, os.W_OK):
            raise ValueError(f"{option} {folder}: no permission to write into {there}")
