"""Writes docs/MODELS.md and docs/models/: what each family's tests have shown, and how to run it.

    python bench/models_page.py --measure   runs the tests, writes bench/results/models.json and the pages
    python bench/models_page.py             writes the pages: from that file, the family table, the catalogue
    python bench/models_page.py --check     changes nothing, fails where a page is another

Tests tell what they have shown by pytest's `record_property`: `family`, `reference`, and `parity_error`
(largest difference of logits in float32) or `trajectory` (a sampler whose every step was reproduced);
`invariance: KIND`, and `native_error` (of the native backend's logits over weights of 8 bits).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from vermilion.cli.list_models import count_text
from vermilion.config import EngineConfig
from vermilion.decoding.caches import CACHES
from vermilion.decoding.decoders import available
from vermilion.models.families import AUTOREGRESSIVE, FAMILIES, Family, Traits
from vermilion.models.families.family_presets import default_preset, presets_for
from vermilion.models.memory import FORMATS, Format
from vermilion.models.published_models import PublishedModel, published_models
from vermilion.native.checkpoint_packing import obstacle

ROOT = Path(__file__).resolve().parent.parent
RESULTS, DOCS = ROOT / "bench" / "results" / "models.json", ROOT / "docs"
INVARIANCES = ("tests/models/test_backbone.py", "tests/native/test_forward.py")
"""The backbone against plain formulas, cached and in pieces; the native backend against PyTorch."""
KINDS = ("logits_of", "trajectories")
INVARIANCE = "invariance: "
Shown = Mapping[str, Any]


def measure() -> dict[str, Any]:
    """Runs every test that records a family, and the invariances. Ends the program where one fails."""
    told = [
        path for path in sorted((ROOT / "tests").rglob("test_*.py")) if "record_property" in path.read_text()
    ]
    cases = list(_cases([*(str(path.relative_to(ROOT)) for path in told), *INVARIANCES]))
    families: dict[str, dict[str, Any]] = {}
    for properties, _ in cases:
        if "family" not in properties:
            continue
        row = families.setdefault(
            properties["family"],
            {"parity_error": None, "native_error": None, "invariances": {}, **{kind: [] for kind in KINDS}},
        )
        if "native_error" in properties:
            row["native_error"] = max(row["native_error"] or 0.0, float(properties["native_error"]))
        for kind in (name.removeprefix(INVARIANCE) for name in properties if name.startswith(INVARIANCE)):
            row["invariances"][kind] = row["invariances"].get(kind, 0) + 1
        if "parity_error" in properties:
            row["parity_error"] = max(row["parity_error"] or 0.0, float(properties["parity_error"]))
            row["logits_of"].append(properties["reference"])
        if "trajectory" in properties:
            row["trajectories"].append(f"{properties['trajectory']} ({properties['reference']})")
    for row in families.values():
        row |= {kind: sorted(set(row[kind])) for kind in KINDS}
    invariances = {name: sum(file == name for _, file in cases) for name in INVARIANCES}
    return {
        "date": time.strftime("%Y-%m-%d"),
        "families": dict(sorted(families.items())),
        "invariances": invariances,
    }


def _cases(paths: Sequence[str]) -> Iterator[tuple[dict[str, str], str]]:
    """(properties, file) of each test that passed."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-m", "not model", f"--junitxml={report}", *paths]
        done = subprocess.run([*command, "-o", "junit_family=xunit1"], cwd=ROOT, check=False)
        if done.returncode:
            sys.exit(done.returncode)
        for case in ElementTree.parse(report).iter("testcase"):
            if case.find("skipped") is None:
                properties = {each.attrib["name"]: each.attrib["value"] for each in case.iter("property")}
                yield properties, case.attrib.get("file", "")


def pages(results: Mapping[str, Any]) -> dict[Path, str]:
    """Every page by where it lies."""
    made = {DOCS / "MODELS.md": _overview(results)}
    for family in FAMILIES:
        made[DOCS / "models" / f"{family.name}.md"] = _family_page(
            family, results["families"].get(family.name, {})
        )
    return made


_OVERVIEW = """# Models

Made by `bench/models_page.py` from the tests' own records ({date}), the family table and the catalogue; a
test holds it to them. Do not edit it.

*Parity error* is the largest difference between our logits and those of the reference implementation, in
float32 (what is below 1e-12 was computed in float64) on tiny random checkpoints of the published layout:
whole prompts, blocks, padding, cached and uncached passes, as the family has them. *Trajectories* are
samplers of the reference of which every step is reproduced, position by position, at temperature 0. A dash
says that no test has recorded it. *Invariances* count tests in which the family's decoders gave the same
text in any company (batch composition, B), however its prompt was cut into chunks (C), behind stored prefixes
(P) and in padded groups (D). *Native error* is that of the native backend's logits over weights of 8 bits
against PyTorch's over the published ones: the median row's mean difference in percent of their spread, on a
tiny random checkpoint. {invariances}

{table}

*Cache*: `exact` keeps the keys and values of settled text, and decoding with them equals decoding without;
`none` means that every pass is whole and exact, since all positions see each other; a request may ask for an
approximation (docs/DECODING.md). *Infill*: `holes anywhere` is native, `gaps` fills one gap between two
texts. *Grammars* are kept to exactly by all families: on `verified` drafts where there is an autoregressive
base, else at the `left edge` of a canvas (docs/DECODING.md). *Tools* are offered to every family through its
checkpoint's own chat template; how well they are called is the checkpoint's matter.
*Backends*: `native` are the C++ kernels for CPUs (q4, q8), `torch` is PyTorch on CPUs and GPUs. Remote code
of a checkpoint is never run.
"""


def _overview(results: Mapping[str, Any]) -> str:
    rows = [_row(family, results["families"].get(family.name, {})) for family in FAMILIES]
    titles = (
        "family|parity error|reference|trajectories|invariances|native error|decoders|cache|infill|tools|"
        "grammars|context|backends"
    )
    head = titles.split("|")
    table = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *(f"| {' | '.join(row)} |" for row in rows)]
    counts = results["invariances"]
    files = ", ".join(f"`{name}`" for name in counts)
    invariances = (
        f"{sum(counts.values())} more tests\n({files}) hold the backbone equal to plain formulas and the\n"
        "native backend to PyTorch, whole, cached and in pieces."
    )
    waiting = sorted({row.family for row in published_models().values() if row.family_row is None})
    text = _OVERVIEW.format(date=results["date"], invariances=invariances, table="\n".join(table))
    return (
        f"{text}\nIn the catalogue, and not read by this version: {', '.join(waiting)}.\n"
        if waiting
        else text
    )


def _row(family: Family, shown: Shown) -> list[str]:
    traits = family.traits or AUTOREGRESSIVE
    error = shown.get("parity_error")
    return [
        f"[{family.name}](models/{family.name}.md)",
        "–" if error is None else f"{error:.1e}",
        "; ".join(shown.get("logits_of", ())) or "–",
        "; ".join(shown.get("trajectories", ())) or "–",
        _invariances(shown),
        _native_error(shown),
        ", ".join(available(traits)),
        _cache(traits),
        _infill(traits),
        "in its template",
        "verified" if traits.has_next_token else "left edge",
        _context(family),
        ", ".join(_backends(family)),
    ]


def _invariances(shown: Shown) -> str:
    kinds = {"B": "batch composition", "C": "prefill chunks", "P": "prefix hits", "D": "padding"}
    counts = shown.get("invariances", {})
    return " ".join(f"{letter}{counts[kind]}" for letter, kind in kinds.items() if kind in counts) or "–"


def _native_error(shown: Shown) -> str:
    error = shown.get("native_error")
    return "–" if error is None else f"{100 * error:.1f} %"


def _checkpoints(family: Family) -> list[PublishedModel]:
    return [row for row in published_models().values() if row.family == family.name]


def _cache(traits: Traits) -> str:
    if traits.context != "full":
        return "exact"
    return f"none; approximate on request: {', '.join(name for name in CACHES if name != 'none')}"


def _infill(traits: Traits) -> str:
    if not traits.denoises or traits.noise == "uniform" or traits.canvas == "causal":
        return "no"
    if traits.expand_token_id >= 0:
        return "holes anywhere; a gap finds its length"
    return "holes anywhere" if traits.context == "full" else "gaps"


def _context(family: Family) -> str:
    known = sorted({row.context_length for row in _checkpoints(family) if row.context_length})
    return ", ".join(f"{length:,}" for length in known) or "as config.json says"


def _backends(family: Family) -> list[str]:
    """`native` where the kernels run every shape of the catalogue that is known; a small one of every family
    they run in `tests/native/test_packing.py`."""
    shapes = [row.architecture for row in _checkpoints(family) if row.architecture is not None]
    native = not any(obstacle(shape) for shape in shapes)
    return ["native", "torch"] if native else ["torch"]


def _family_page(family: Family, shown: Shown) -> str:
    traits = family.traits or AUTOREGRESSIVE
    presets = family.presets or presets_for(traits)
    default = family.default_preset or default_preset(presets)
    error = shown.get("parity_error")
    named = ", ".join(f"`{name}` ({each.decoder})" for name, each in presets.items())
    facts = [
        ("`model_type`", ", ".join(f"`{kind}`" for kind in family.model_types)),
        ("how it denoises", _how(traits)),
        ("decoders", ", ".join(f"`{name}`" for name in available(traits))),
        ("presets", f"{named}; `{default}` unless asked"),
        ("cache", _cache(traits)),
        ("infill", _infill(traits)),
        ("grammars", "verified drafts" if traits.has_next_token else "exact, from the left edge of a canvas"),
        ("backends", ", ".join(_backends(family))),
        ("tests of invariances", _invariances(shown)),
        ("error of the native backend", _native_error(shown)),
        *(("logits equal to", f"{each}, within {error:.1e}") for each in shown.get("logits_of", ())),
        *(("trajectory reproduced", each) for each in shown.get("trajectories", ())),
    ]  # fmt: skip
    listed = "\n".join(f"| {name} | {value} |" for name, value in facts)
    return (
        f"# {family.name}\n\nMade by `bench/models_page.py`; [all families](../MODELS.md).\n\n"
        f"| | |\n|---|---|\n{listed}\n\n{_running(family, _checkpoints(family))}"
    )


def _how(traits: Traits) -> str:
    if not traits.denoises:
        return "not at all: it is autoregressive, the baseline of the others and what they are converted from"
    sees = {
        "causal": "committed text sees what stands before it",
        "block": f"committed text sees its block of {traits.block_grid or 'any length'} and all earlier ones",
        "full": "every position sees every other",
    }[traits.context]
    noise = "masks" if traits.noise == "mask" else "tokens drawn uniformly"
    shift = "row i predicts token i + 1" if traits.shift else "a position predicts itself"
    return f"{noise}; {sees}; {shift}"


_RUNNING = """Memory is that of the weights and of a cache for {tokens:,} tokens.

{table}

On a laptop, in {laptop_gb:.1f} GB of memory:

```sh
vermilion serve {name}{quantize}
```

On a GPU, in {gpu_gb:.1f} GB of its memory:

```sh
vermilion serve {name} --device cuda
```

Both fetch the checkpoint where it is not on the disk.
"""


def _running(family: Family, rows: Sequence[PublishedModel]) -> str:
    if not rows:
        return "The catalogue has no checkpoint of it; `vermilion serve OWNER/NAME` takes any of the hub.\n"
    tokens = EngineConfig().kv_tokens

    def needed_gb(row: PublishedModel, kind: Format) -> float:
        return row.memory_bytes(kind, tokens) / 1e9

    lines = ["| model | repository | size | licence | q4 | q8 | bf16 |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        needs = " | ".join(f"{needed_gb(row, kind):.1f} GB" for kind in FORMATS)
        about = (
            f"`{row.name}`",
            row.repository,
            count_text(row.num_parameters),
            row.licence or "unknown",
            needs,
        )
        lines.append(f"| {' | '.join(about)} |")
    small, native = min(rows, key=lambda row: row.num_parameters), "native" in _backends(family)
    return _RUNNING.format(
        tokens=tokens,
        table="\n".join(lines),
        name=small.name,
        quantize=" --quantize q4" if native else "",
        laptop_gb=needed_gb(small, "q4" if native else "float32"),
        gpu_gb=needed_gb(small, "bf16"),
    )


def main(arguments: Sequence[str]) -> None:
    if "--measure" in arguments:
        RESULTS.write_text(json.dumps(measure(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    made = pages(json.loads(RESULTS.read_text(encoding="utf-8")))
    stale = [path for path in (DOCS / "models").glob("*.md") if path not in made]
    if "--check" in arguments:
        wrong = [
            path
            for path, text in made.items()
            if not path.is_file() or path.read_text(encoding="utf-8") != text
        ]
        if wrong or stale:
            names = ", ".join(str(path.relative_to(ROOT)) for path in (*wrong, *stale))
            sys.exit(f"{names}: not what bench/models_page.py makes; run it.")
        return
    (DOCS / "models").mkdir(exist_ok=True)
    for path in stale:
        path.unlink()
    for path, text in made.items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
