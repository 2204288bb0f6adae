"""Setuptools' build backend, which asks for the `ziglang` wheel where the machine has no C++ compiler."""

from __future__ import annotations

import os
import shutil
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import (
    build_editable,
    build_sdist,
    build_wheel,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    found = os.environ.get("CXX") or any(map(shutil.which, ("c++", "g++", "clang++")))
    return [
        *build_meta.get_requires_for_build_wheel(config_settings),
        *([] if found else ["ziglang>=0.13,<1"]),
    ]


get_requires_for_build_editable = get_requires_for_build_wheel
