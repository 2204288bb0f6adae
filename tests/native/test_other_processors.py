"""The library for AArch64: compiled by zig, run by qemu; its NEON kernels and its portable ones agree."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path

import pytest

from vermilion.native.compile import compile_library, compilers

PROGRAM = Path(__file__).with_name("small_pass.cpp")


def run(*command: str | Path) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert not done.returncode, done.stdout + done.stderr
    return done.stdout.strip()


@pytest.mark.exhaustive
@pytest.mark.skipif(not shutil.which("qemu-aarch64"), reason="needs qemu-user")
@pytest.mark.skipif(importlib.util.find_spec("ziglang") is None, reason="needs the ziglang package")
@pytest.mark.timeout(1800)
def test_neon_gives_the_scalar_bits(tmp_path: Path) -> None:
    made = compile_library(tmp_path / "small_pass", target="aarch64-linux-musl", program=PROGRAM)
    theirs = run("qemu-aarch64", made, "scalar", "neon")
    if compilers():
        ours = compile_library(tmp_path / "small_pass_here", program=PROGRAM)
        assert run(ours, "scalar") == theirs
