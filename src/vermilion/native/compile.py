"""Builds the kernels' library into this folder: python -m vermilion.native.compile

Needs a C++17 compiler (CXX, c++, g++ or clang++) or the `ziglang` package. Imports nothing of Vermilion, so
that setup.py can use it.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
SOURCES = FOLDER / "kernels"
LIBRARY_NAME = {"win32": "_kernels.dll", "darwin": "_kernels.dylib"}.get(sys.platform, "_kernels.so")

_FLAGS = ("-std=c++17", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-fno-math-errno", "-g0")
_AVX2 = ("-mavx2", "-mfma", "-mf16c")
_INSTRUCTION_SETS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "x86_64": {
        "avx2": _AVX2,
        "avxvnni": (*_AVX2, "-mavxvnni"),
        "avx512vnni": (*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni"),
    },
    "aarch64": {"neon": ("-march=armv8.2-a+dotprod",)},
}
_FOR_ZIG = {"-march=armv8.2-a+dotprod": "-mcpu=generic+v8_2a+dotprod"}
"""Flags that zig's compiler spells in a way of its own."""
_LANES = {"avxvnni": "avx2", "avx512vnni": "avx512"}
_MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}


class CompileError(Exception):
    """No compiler, or one that refuses the sources; the message holds what it said."""


def compilers() -> list[list[str]]:
    """Command lines of the compilers found, the preferred first."""
    found = [[os.environ["CXX"]]] if os.environ.get("CXX") else []
    found += [[path] for name in ("c++", "g++", "clang++") if (path := shutil.which(name))][:1]
    if importlib.util.find_spec("ziglang"):
        found.append([sys.executable, "-m", "ziglang", "c++"])
    return found


def compile_library(
    output: Path = FOLDER / LIBRARY_NAME, *, target: str = "", program: Path | None = None
) -> Path:
    """Compile and link; returns `output`. `target` is a triple for zig, such as aarch64-linux-musl. With the
    source of a `program`, that is linked instead, statically where it has a target.

    Raises CompileError.
    """
    refused = []
    for command in compilers():
        if target and "ziglang" not in command:
            continue
        machine = target.partition("-")[0] or platform.machine().lower()
        try:
            _compile([*command, *(["-target", target] if target else [])], machine, output, program)
            return output
        except CompileError as error:
            refused.append(str(error))
    raise CompileError(
        "\n".join(refused) or "No C++ compiler was found; install g++, clang or the ziglang package."
    )


def _compile(compiler: Sequence[str], machine: str, output: Path, program: Path | None) -> None:
    sets = _INSTRUCTION_SETS.get(_MACHINES.get(machine, machine), {})
    with tempfile.TemporaryDirectory() as folder:
        jobs = []
        for name, flags in {"scalar": (), **sets}.items():
            defined = (f'-DLANES="lanes_{_LANES.get(name, name)}.h"', f"-DTABLE=kernels_{name}")
            level = "-O2" if name == "scalar" else "-O3"
            jobs.append((SOURCES / "kernels.cpp", Path(folder) / f"{name}.o", (level, *flags, *defined)))
        sources = [source for source in sorted(SOURCES.glob("*.cpp")) if source.name != "kernels.cpp"]
        for source in [*sources, *([program] if program else [])]:
            jobs.append((source, Path(folder) / f"{source.stem}.o", ("-O2", f"-I{SOURCES}")))
        commands = [
            [*compiler, *_FLAGS, *flags, "-c", str(source), "-o", str(made)] for source, made, flags in jobs
        ]
        if "ziglang" in compiler:
            commands = [[_FOR_ZIG.get(part, part) for part in command] for command in commands]
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            list(pool.map(_run, commands))
        # Replaced in one step: another process may have the old one open.
        linked = Path(folder) / output.name
        kind = (["-static"] if "-target" in compiler else []) if program else ["-shared"]
        _run([*compiler, *kind, "-pthread", "-o", str(linked), *(str(job[1]) for job in jobs)])
        output.parent.mkdir(parents=True, exist_ok=True)
        own = output.with_suffix(f".{os.getpid()}")
        shutil.copy(linked, own)
        os.replace(own, output)


def _run(command: Sequence[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise CompileError(f"{command[0]}: {error}") from error
    if done.returncode:
        raise CompileError(f"{' '.join(command)}\n{done.stderr.strip()}")


if __name__ == "__main__":
    try:
        print(compile_library(target=sys.argv[1] if len(sys.argv) > 1 else ""))
    except CompileError as error:
        sys.exit(str(error))
