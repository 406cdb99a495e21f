"""The sources that mutants are planted in."""

from __future__ import annotations

from pathlib import Path

SOURCE_FOLDERS = ("sparsebert", "kernels/sparsebert_kernels")
# Entry points and builds, whose faults show where nothing is tested in this process.
LEFT_OUT = ("build_native.py", "__main__.py")


def source_files(root: Path) -> list[Path]:
    """Return the sources that mutants are generated in."""
    return sorted(
        path
        for folder in SOURCE_FOLDERS
        for path in (root / folder).rglob("*")
        if path.suffix in (".py", ".cpp", ".h") and path.name not in LEFT_OUT
    )


def files_with(root: Path, text: str) -> list[str]:
    """Return the sources in which a text occurs exactly once: where code has moved to, perhaps."""
    return [
        path.relative_to(root).as_posix()
        for path in source_files(root)
        if path.read_text(encoding="utf-8").count(text) == 1
    ]
