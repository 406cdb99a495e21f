"""Builds the native CPU library into the wheel, or into the source tree for an editable install.

All else about the package is in pyproject.toml. Where the library cannot be built, the install goes on
without it and says what is lost (SPARSEBERT_REQUIRE_NATIVE=1 makes that an error).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

PACKAGE = Path("kernels/sparsebert_kernels/cpu")
sys.path.insert(0, str(PACKAGE.resolve()))

import build_native  # noqa: E402


class BuildNative(build_ext):
    """Runs `build_native` in place of setuptools' own compiler calls."""

    def get_ext_filename(self, fullname: str) -> str:
        """The library is loaded through ctypes, so its name carries no Python version."""
        return fullname.replace(".", os.sep) + ".so"

    def build_extension(self, ext: Extension) -> None:
        out = Path(self.get_ext_fullpath(ext.name)).parent
        try:
            build_native.build(out, Path("build/native"))
        except build_native.NativeBuildError as error:
            if build_native.required():
                raise
            print(f"\n{build_native.notice(error)}\n", file=sys.stderr)


class AnyPythonWheel(bdist_wheel):
    """One wheel for every Python: the library uses neither Python.h nor torch's headers."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[
        Extension(
            "sparsebert_kernels.cpu._native",
            sources=[str(path) for path in sorted(PACKAGE.glob("src/*.cpp"))],
            depends=[str(path) for path in sorted(PACKAGE.glob("src/*.h"))],
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildNative, "bdist_wheel": AnyPythonWheel},
)
