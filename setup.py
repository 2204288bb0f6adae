"""Compiles the native kernels into the wheel, or beside their sources for an editable install.

Where that fails the package is built without them and runs on PyTorch.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

NATIVE = Path(__file__).parent / "src" / "vermilion" / "native"


class BuildWithKernels(build_py):
    def run(self) -> None:
        super().run()
        compiler = runpy.run_path(str(NATIVE / "compile.py"))
        folder = NATIVE if self.editable_mode else Path(self.build_lib, "vermilion", "native")
        try:
            print("compiled", compiler["compile_library"](folder / compiler["LIBRARY_NAME"]))
        except compiler["CompileError"] as error:
            print(
                f"The native backend was not compiled; Vermilion will run on PyTorch.\n{error}",
                file=sys.stderr,
            )


class Wheel(bdist_wheel):
    def get_tag(self) -> tuple[str, str, str]:
        """The library has a plain C interface: one wheel serves every Python of a platform."""
        return ("py3", "none", super().get_tag()[2])


class WithLibrary(Distribution):
    def has_ext_modules(self) -> bool:
        return True


setup(cmdclass={"build_py": BuildWithKernels, "bdist_wheel": Wheel}, distclass=WithLibrary)
