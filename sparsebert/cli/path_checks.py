"""Checks of paths before the work starts: a bad path must not cost the results of a long run.

Every function takes paths by option, skips paths that are None, and raises ValueError with one line that
begins with the name of the option.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from sparsebert import results


def require_files(files: Mapping[str, Path | Iterable[Path] | None]) -> None:
    """Require readable files."""
    for option, paths in files.items():
        for file in [paths] if isinstance(paths, Path) else paths or ():
            if not file.exists():
                raise ValueError(f"{option}: file {file} does not exist")
            if file.is_dir():
                raise ValueError(f"{option}: {file} is a folder; expected a file")
            if not os.access(file, os.R_OK):
                raise ValueError(f"{option}: no permission to read {file}")


def require_writable(files: Mapping[str, Path | None]) -> None:
    """Require paths to which a file can be written; an existing file may be replaced."""
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
    """Require a path to which a plot can be written, with a supported ending, and an installed matplotlib."""
    from sparsebert.report import plots

    require_writable({option: file})
    if file is not None:
        try:
            plots.require_ending(file)
            plots.require_matplotlib()
        except ValueError as error:
            raise ValueError(f"{option}: {error}") from None


def require_records(option: str, file: Path | None) -> None:
    """Require a file to which records can be appended: a new file, or a file that holds only records."""
    require_writable({option: file})
    if file is not None and file.exists():
        try:
            results.read(file)
        except ValueError as error:
            raise ValueError(f"{option}: cannot append records to {file}: {error}") from None


def require_folders(folders: Mapping[str, Path | None]) -> None:
    """Require folders that can be created or written to."""
    for option, folder in folders.items():
        if folder is None:
            continue
        existing = next(each for each in (folder, *folder.absolute().parents) if each.exists())
        if not existing.is_dir():
            raise ValueError(f"{option} {folder}: {existing} is a file; expected a folder")
        if not os.access(existing, os.W_OK):
            raise ValueError(f"{option} {folder}: no permission to write into {existing}")
