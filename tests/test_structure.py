"""The shape of the code base: what may import what, how large a piece may grow, what may not appear."""

from __future__ import annotations

import ast
import os
import re
import runpy
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import pytest

from vermilion.models.families import FAMILIES

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "vermilion"

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_PARAMETERS = 6
MAX_CLASS_DEPTH = 2
MAX_FILE_BYTES = 45_000_000

# Lowest first; a module imports from its own unit or from a lower layer, never from beside or above.
LAYERS = (
    {"errors"},
    {"frozen"},
    {"types"},
    {"config", "text"},
    {"chat_template", "gap_template"},
    {"models"},
    {"decoding"},
    {"native"},
    {"engine"},
    {"data", "accounts", "speech"},
    {"training"},
    {"evaluation"},
    {"serving"},
    {"integrations", "voice", "ray_serve"},
    {"cli", "__init__"},
)
RANK = {unit: rank for rank, layer in enumerate(LAYERS) for unit in layer}
# These answer a client or plan a step; torch would cost them seconds and memory, or a hidden device sync.
TORCH_FREE = (
    "__init__.py",
    "cli",
    "types.py",
    "frozen.py",
    "errors.py",
    "config.py",
    "text.py",
    "chat_template.py",
    "gap_template.py",
    "serving",
    "speech",
    "engine/scheduler.py",
    "engine/cache.py",
    "decoding/presets.py",
    "decoding/decoders.py",
    "decoding/commit.py",
)
# These import it where a model runs on it; on the native backend it is never loaded.
TORCH_LATE = ("engine/llm.py", "engine/service.py", "native")
# Names that stand for two things, each with the reason why it may.
MODULE_HOMONYMS = {"engine": "the package is named after the class of its main module"}
CLASS_HOMONYMS: dict[str, str] = {}
FORBIDDEN = (
    (re.compile(r"\b(?:TO" r"DO|FIX" r"ME|XX" r"X|NotImplemented" r"Error)\b"), "unfinished code"),
    (re.compile(r"\bimport pickle\b|\bpickle\.load|\btorch\.load\("), "pickle; use safetensors"),
    (re.compile(r"\btrust_remote_code\b"), "code from a checkpoint"),
    (re.compile(r"(?<![\w.])eval\("), "eval"),
)

Function = ast.FunctionDef | ast.AsyncFunctionDef
SOURCES = sorted(PACKAGE.rglob("*.py"))
KERNELS = sorted([*PACKAGE.rglob("*.cpp"), *PACKAGE.rglob("*.h")])


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def at(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


def unit(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def package_of(path: Path) -> list[str]:
    return ["vermilion", *path.relative_to(PACKAGE).parent.parts]


def imports(path: Path, *, at_run_time: bool) -> Iterator[tuple[str, int]]:
    """(dotted module, line) of every import; `at_run_time` leaves out those under TYPE_CHECKING."""
    skipped = {
        id(inner)
        for node in ast.walk(parsed(path))
        if at_run_time and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(parsed(path)):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package_of(path)[: -node.level + 1 or None] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            # `from vermilion import config` names a unit; `from vermilion.types import Text` does not.
            for alias in node.names:
                yield (f"{base}.{alias.name}" if base == "vermilion" else base), node.lineno


def functions(path: Path) -> Iterator[Function]:
    return (node for node in ast.walk(parsed(path)) if isinstance(node, Function))


def test_imports_point_down() -> None:
    wrong = []
    for path in SOURCES:
        own = unit(path)
        if own not in RANK:
            wrong.append(f"{at(path, 1)}: {own} has no layer; give it one in tests/test_structure.py")
            continue
        for module, line in imports(path, at_run_time=False):
            if not module.startswith("vermilion."):
                continue
            target = module.split(".")[1]
            allowed = target == own or RANK.get(target, -1) < RANK[own]
            if target not in RANK or not allowed:
                wrong.append(f"{at(path, line)}: {own} may not import vermilion.{target}")
    assert not wrong, "\n".join(wrong)


def test_the_pages_show_the_layers_and_every_package() -> None:
    design = (ROOT / "docs" / "DESIGN.md").read_text(encoding="utf-8")
    shown = re.search(r"^errors < [^`]*", design, re.MULTILINE)
    assert shown is not None
    layers = [set(layer.replace(",", " ").split()) for layer in shown[0].split("<")]
    assert layers == [layer - {"__init__"} for layer in LAYERS]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    packages = {path.name for path in PACKAGE.iterdir() if any(path.glob("*.py"))}
    assert not [name for name in packages if f"`src/vermilion/{name}/`" not in readme]


def test_edge_and_scheduler_name_no_torch() -> None:
    wrong = [
        f"{at(path, line)}: imports {module}"
        for path in sources_of(TORCH_FREE)
        for module, line in imports(path, at_run_time=True)
        if module.split(".")[0] == "torch"
    ]
    assert not wrong, "\n".join(wrong)


def sources_of(names: Sequence[str]) -> list[Path]:
    named = [PACKAGE / name for name in names]
    return [path for path in SOURCES if any(path == name or name in path.parents for name in named)]


def test_edge_and_scheduler_load_no_torch() -> None:
    modules = [
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
        for path in sources_of(TORCH_FREE + TORCH_LATE)
    ]
    script = (
        "import importlib, sys\n"
        "for module in sys.argv[1:]:\n"
        "    importlib.import_module(module)\n"
        "    if 'torch' in sys.modules: sys.exit(f'{module} loads torch')\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    command = [sys.executable, "-c", script, *modules]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_files_stay_short() -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in [*SOURCES, *KERNELS]}
    wrong = [
        f"{at(path, lines)}: {lines} lines, at most {MAX_FILE_LINES}"
        for path, lines in lengths.items()
        if lines > MAX_FILE_LINES
    ]
    assert not wrong, "\n".join(wrong)


def test_functions_stay_short() -> None:
    wrong = [
        f"{at(path, node.lineno)}: {node.name} has {length} lines, at most {MAX_FUNCTION_LINES}"
        for path in SOURCES
        for node in functions(path)
        if (length := (node.end_lineno or node.lineno) - node.lineno + 1) > MAX_FUNCTION_LINES
    ]
    assert not wrong, "\n".join(wrong)


def kernel_functions(path: Path) -> Iterator[tuple[str, int, int]]:
    """(first line, its number, length) of every C++ function: namespaces are not indented, so that a function
    ends at the first brace that stands where its own line began."""
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        opened = re.match(r"(\s*)\S.*\)( const| noexcept)*( \{|$)", line)
        if (
            not opened
            or not line.rstrip().endswith("{")
            or re.match(r"\s*(if|for|while|switch|else|\})\b", line)
        ):
            continue
        end = next((i for i, after in enumerate(lines[number:], 1) if after.startswith(opened[1] + "}")), 0)
        yield line.strip(), number, end + 1


def test_kernels_stay_short() -> None:
    found = [(path, *function) for path in KERNELS for function in kernel_functions(path)]
    assert len(found) > 50
    wrong = [
        f"{at(path, number)}: {name} has {length} lines, at most {MAX_FUNCTION_LINES}"
        for path, name, number, length in found
        if length > MAX_FUNCTION_LINES
    ]
    assert not wrong, "\n".join(wrong)


def test_functions_take_few_parameters() -> None:
    wrong = []
    for path in SOURCES:
        for node in functions(path):
            given = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
            num_given = sum(parameter.arg not in ("self", "cls") for parameter in given)
            if num_given > MAX_PARAMETERS:
                wrong.append(
                    f"{at(path, node.lineno)}: {node.name} takes {num_given}, at most {MAX_PARAMETERS}"
                )
    assert not wrong, "\n".join(wrong)


def test_classes_are_not_deep() -> None:
    """Depth 1 is a class of its own, 2 a child of one of ours; only errors may go deeper."""
    parents: dict[str, list[str]] = {}
    places: dict[str, str] = {}
    for path in SOURCES:
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.ClassDef):
                parents[node.name] = [ast.unparse(base).split("[")[0] for base in node.bases]
                places[node.name] = at(path, node.lineno)

    def chain(name: str) -> list[str]:
        longest = max((chain(base) for base in parents.get(name, []) if base in parents), key=len, default=[])
        return [name, *longest]

    wrong = [
        f"{places[name]}: {' < '.join(chain(name))}"
        for name in parents
        if len(chain(name)) > MAX_CLASS_DEPTH and chain(name)[-1] != "VermilionError"
    ]
    assert not wrong, "\n".join(wrong)


def test_only_the_family_table_tells_model_types_apart() -> None:
    """What a published kind needs is said in its row; code elsewhere asks for traits and sizes."""
    types = {name for family in FAMILIES for name in (*family.model_types, family.name)}
    wrong = [
        f"{at(path, node.lineno)}: compares {ast.unparse(node)}"
        for path in SOURCES
        if "families" not in path.parts
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Compare)
        and any(
            (isinstance(part, ast.Constant) and part.value in types) or "model_type" in ast.unparse(part)
            for part in (node.left, *node.comparators)
        )
    ]
    assert not wrong, "\n".join(wrong)


def test_one_name_stands_for_one_thing() -> None:
    metrics = runpy.run_path(str(ROOT / "scripts" / "metrics"))
    trees = {path.relative_to(PACKAGE).as_posix(): parsed(path) for path in SOURCES}
    modules, classes = metrics["module_homonyms"](trees), metrics["class_homonyms"](trees)
    wrong = [
        f"{name}: {', '.join(places)}"
        for found, allowed in ((modules, MODULE_HOMONYMS), (classes, CLASS_HOMONYMS))
        for name, places in found.items()
        if name not in allowed
    ]
    wrong += [f"{name}: names one module now; delete it here" for name in MODULE_HOMONYMS.keys() - modules]
    wrong += [f"{name}: names one class now; delete it here" for name in CLASS_HOMONYMS.keys() - classes]
    assert not wrong, "\n".join(wrong)


def test_no_error_is_swallowed() -> None:
    wrong = [
        f"{at(path, node.lineno)}: catches everything and says nothing"
        for path in SOURCES
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or ast.unparse(node.type) in ("Exception", "BaseException"))
        and all(isinstance(statement, ast.Pass) for statement in node.body)
    ]
    assert not wrong, "\n".join(wrong)


def test_nothing_forbidden_is_written() -> None:
    wrong = [
        f"{at(path, number)}: {reason}: {line.strip()}"
        for path in [*SOURCES, *KERNELS]
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        for pattern, reason in FORBIDDEN
        if pattern.search(line)
    ]
    assert not wrong, "\n".join(wrong)


def repository_files() -> list[Path]:
    """What is, or would be, committed."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def test_paths_named_here_and_in_the_package_data_exist() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    patterns = settings["package-data"]["vermilion"]
    wrong = [
        f"pyproject.toml: package data {pattern}" for pattern in patterns if not any(PACKAGE.glob(pattern))
    ]
    wrong += [f"TORCH_FREE: {name}" for name in TORCH_FREE + TORCH_LATE if not (PACKAGE / name).exists()]
    wrong += [f"LAYERS: {name}" for name in RANK.keys() - {unit(path) for path in SOURCES}]
    assert not wrong, "\n".join(wrong)


def test_no_file_is_too_large_for_a_repository() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:1: {size:,} bytes, at most {MAX_FILE_BYTES:,}"
        for path in repository_files()
        if (size := path.stat().st_size) > MAX_FILE_BYTES
    ]
    assert not wrong, "\n".join(wrong)


def test_scripts_can_be_run() -> None:
    scripts = [path for path in (ROOT / "scripts").iterdir() if path.is_file()] + [ROOT / ".ci" / "run"]
    wrong = [f"{at(path, 1)}: not executable" for path in scripts if not os.access(path, os.X_OK)]
    assert not wrong, "\n".join(wrong)
