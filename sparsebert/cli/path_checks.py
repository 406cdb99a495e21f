"""Checks of paths before the work starts: a bad path must not cost the results of a long run.

Every function takes paths by option, skips paths that are None, and raises ValueError with one line that
begins with the name of the option.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from sparsebert import results
from sparsebert.file_types import is_stream, require_regular, write_problem


def require_files(files: Mapping[str, Path | Iterable[Path] | None]) -> None:
    """Require readable files."""
    for option, paths in files.items():
        for file in [paths] if isinstance(paths, Path) else paths or ():
            if not file.exists():
                raise ValueError(f"{option}: file {file} does not exist")
            if file.is_dir():
                raise ValueError(f"{option}: {file} is a folder; expected a file")
            require_regular_file(option, file)
            if not os.access(file, os.R_OK):
                raise ValueError(f"{option}: no permission to read {file}")


def require_regular_file(option: str, path: Path | None) -> None:
    """Refuse a pipe or a device, whose content may never end; a folder passes."""
    if path is not None and not path.is_dir():
        try:
            require_regular(path)
        except ValueError as error:
            raise ValueError(f"{option}: {error}") from None


def require_writable(files: Mapping[str, Path | None], inputs: Iterable[Path] = ()) -> None:
    """Require paths to which a file can be written: other files than ``inputs`` and than each other.

    Another file that exists may be replaced.
    """
    used = {os.path.realpath(file): f"the input {file}" for file in inputs}
    for option, file in files.items():
        if file is None:
            continue
        problem = write_problem(file) or ("it is a folder" if file.is_dir() else None)
        if problem:
            raise ValueError(f"{option}: cannot write {file}: {problem}")
        if is_stream(file):
            continue
        if (path := os.path.realpath(file)) in used:
            raise ValueError(f"{option} {file} would overwrite {used[path]}; choose another name")
        used[path] = f"the file of {option}"


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
    if file is not None and file.exists() and not is_stream(file):
        try:
            results.read(file)
        except ValueError as error:
            raise ValueError(f"{option}: cannot append records to {file}: {error}") from None


def require_folders(folders: Mapping[str, Path | None]) -> None:
    """Require folders that can be created or written to."""
    for option, folder in folders.items():
        if folder is None:
            continue
        absolute = folder.absolute()
        existing = next(each for each in (absolute, *absolute.parents) if each.exists() or each.is_symlink())
        if not existing.exists():
            raise ValueError(f"{option} {folder}: the link {existing} leads nowhere")
        if not existing.is_dir():
            raise ValueError(f"{option} {folder}: {existing} is a file; expected a folder")
        if not os.access(existing, os.W_OK):
            raise ValueError(f"{option} {folder}: no permission to write into {existing}")
