"""Whether answers fit the schemas that people have: real functions, and the JSON Schema test suite.

    pip download --no-deps bfcl-eval && unzip bfcl_eval-*.whl -d bfcl
    pip download --no-deps --no-binary :all: jsonschema && tar xf jsonschema-*.tar.gz
    python bench/schemas.py --functions bfcl/bfcl_eval/data --suite jsonschema-*/json/tests \\
        --out bench/results/schemas.jsonl

A tiny model of random weights over bytes answers under the grammar of each schema, strict and not; jsonschema
judges what it wrote by the schema as it was given. One row per set and strictness, of schemas:

    valid     all answers fit
    said      one does not, for a keyword that the reply's header names
    refused   with a reason
    cut       no answer was whole at the limit
    unjudged  the judge itself fails, as at patterns that Python cannot read
    wrong     the rest
"""

from __future__ import annotations

import argparse
import json
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jsonschema.protocols import Validator
from jsonschema.validators import Draft4Validator, Draft7Validator, Draft202012Validator
from jsonschema_specifications import REGISTRY as SPECIFICATIONS  # type: ignore[import-untyped]
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT4, DRAFT7, DRAFT202012

from vermilion.config import EngineConfig
from vermilion.engine.engine import Engine
from vermilion.engine.loading import assemble
from vermilion.errors import BadRequest
from vermilion.models.families import Architecture, ModelSpec, Traits
from vermilion.models.families.family_table import FAMILIES
from vermilion.models.transformer import Transformer
from vermilion.serving.generation.schema_values import types
from vermilion.serving.generation.schemas import enforceable
from vermilion.serving.http.notices import open_notices
from vermilion.types import Decoding, Finish, Grammar, Request, Sampling, Text

EOS, MASK, VOCAB = 256, 257, 258
DRAFTS = {"draft2020-12": Draft202012Validator, "draft7": Draft7Validator, "draft4": Draft4Validator}
MAX_TOKENS = 300
BATCH = 48
CLOSING = {ord('"'): 4.0, ord("}"): 4.0, ord("]"): 4.0, EOS: 4.0}
"""Added to the scores of what ends a value: random weights never would."""
SAMPLING = Sampling(temperature=1.0, max_tokens=MAX_TOKENS, logit_bias=CLOSING, stop_repetition=False)


class ByteTokenizer:
    eos_token_ids = (EOS,)

    def encode(self, text: str, special: bool = False) -> list[int]:
        return list(text.encode())

    def is_special(self, token_id: int) -> bool:
        return token_id >= EOS

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id]) if token_id < EOS else b""

    def token_text(self, token_id: int) -> str:
        return self.token_bytes(token_id).decode("utf-8", "replace")

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", "replace")


@dataclass
class Case:
    """One schema and what became of it."""

    name: str
    schema: Any
    judge: Validator
    ignored: list[str] = field(default_factory=list)
    refused: str = ""
    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: str = ""

    @property
    def outcome(self) -> str:
        if self.refused:
            return "refused"
        if self.outcomes["wrong"]:
            return "said" if self.ignored else "wrong"
        return next((kind for kind in ("valid", "unjudged") if self.outcomes[kind]), "cut")

    def judged(self, text: str) -> None:
        try:
            value = json.loads(text)
        except ValueError as error:
            self.outcomes["wrong"], self.wrong = self.outcomes["wrong"] + 1, f"{text[:80]}: {error}"
            return
        try:
            found = next(iter(self.judge.iter_errors(value)), None)
        except Exception:
            # The judge itself fails: at patterns of ECMA's that Python cannot read, at schemas of two drafts.
            self.outcomes["unjudged"] += 1
            return
        self.outcomes["valid" if found is None else "wrong"] += 1
        if found is not None:
            self.wrong = f"{text[:80]}: {found.message[:80]}"


def tiny_engine() -> Engine:
    architecture = Architecture(
        num_layers=2, hidden_size=32, num_heads=4, num_kv_heads=2, head_dim=8, ffn_size=48,
        vocab_size=VOCAB, context_length=512,
    )  # fmt: skip
    built, generator = Transformer(architecture), torch.Generator().manual_seed(0)
    for name, parameter in built.named_parameters():
        if "norm" in name:
            parameter.data.fill_(1.0)
        else:
            parameter.data.normal_(0, 0.5, generator=generator)
    traits = Traits("causal", True, MASK, (EOS,), gated=True)
    spec = ModelSpec("tiny-bytes", architecture, traits, FAMILIES[0])
    config = EngineConfig(kv_tokens=32768, page_size=16, dtype="float32", threads=1)
    return assemble(built, spec, ByteTokenizer(), config)  # type: ignore[arg-type]


def functions(folder: Path) -> Iterator[Case]:
    """Every distinct function of the Berkeley function-calling leaderboard, by its parameters."""
    seen: set[str] = set()
    for path in [*sorted(folder.glob("BFCL*.json")), *sorted(folder.glob("multi_turn_func_doc/*.json"))]:
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            for function in row.get("function") or ([row] if "parameters" in row else []):
                written = json.dumps(function, sort_keys=True)
                if isinstance(function, dict) and written not in seen:
                    seen.add(written)
                    schema = function["parameters"]
                    yield Case(function["name"], schema, Draft202012Validator(with_types(schema)))


def with_types(schema: Any) -> Any:
    """The leaderboard writes Python's and Java's names of types; a validator knows only JSON's."""
    if isinstance(schema, list):
        return [with_types(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    named = {key: value for key, value in schema.items() if key not in ("type", "properties")}
    written = {
        key: value if key in ("enum", "const", "default") else with_types(value)
        for key, value in named.items()
    }
    if isinstance(schema.get("properties"), dict):
        written["properties"] = {name: with_types(one) for name, one in schema["properties"].items()}
    if "type" in schema and not isinstance(schema["type"], dict):
        known, _ = types(schema["type"])
        if known:
            written["type"] = known
    return written


def suite(folder: Path, draft: str, optional: bool) -> Iterator[Case]:
    kind, registry = DRAFTS[draft], remotes(folder.parent / "remotes", draft)
    for path in sorted((folder / draft).rglob("*.json")):
        if ("optional" in path.parts) != optional:
            continue
        for group in json.loads(path.read_text(encoding="utf-8")):
            schema = group["schema"]
            if isinstance(schema, dict):
                schema = {"$schema": kind.META_SCHEMA["$schema"], **schema}
            judge = kind(schema, registry=registry, format_checker=kind.FORMAT_CHECKER)
            yield Case(f"{path.stem}: {group['description']}", schema, judge)


def remotes(folder: Path, draft: str) -> Registry[Any]:
    """The documents that the suite's references lead to, for the judge alone."""
    dialect = {"draft2020-12": DRAFT202012, "draft7": DRAFT7, "draft4": DRAFT4}[draft]
    found = [
        (
            f"http://localhost:1234/{path.relative_to(folder).as_posix()}",
            Resource.from_contents(json.loads(path.read_text(encoding="utf-8")), dialect),
        )
        for path in sorted(folder.rglob("*.json"))
    ]
    registry: Registry[Any] = SPECIFICATIONS.with_resources(found)
    return registry


def run(engine: Engine, cases: Sequence[Case], strict: bool, num_answers: int) -> None:
    """Fills in what becomes of each."""
    asked: dict[str, Case] = {}
    for number, case in enumerate(cases):
        case.ignored = open_notices()
        try:
            held = enforceable(case.schema, case.name, "tools", strict)
            grammar = Grammar("json_schema", json.dumps({**held, "x-guidance": {"lenient": not strict}}))
            for seed in range(num_answers):
                name = f"{number}-{seed}"
                sampling = Sampling(
                    temperature=1.0,
                    seed=seed,
                    max_tokens=MAX_TOKENS,
                    logit_bias=CLOSING,
                    stop_repetition=False,
                )
                prompt = tuple(b"Answer: ")
                engine.submit(Request(name, prompt, sampling, Decoding("ar"), grammar=grammar))
                asked[name] = case
        except BadRequest as error:
            case.refused = str(error)
    texts = dict.fromkeys(asked, "")
    while engine.has_work:
        for name, event in engine.step():
            if isinstance(event, Text):
                texts[name] += event.text
            elif isinstance(event, Finish) and event.reason == "stop":
                asked[name].judged(texts[name])
            elif isinstance(event, Finish) and event.reason == "error":
                asked[name].refused = event.message


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--functions", type=Path)
    parser.add_argument("--suite", type=Path)
    parser.add_argument("--answers", type=int, default=2, help="answers per schema")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    engine = tiny_engine()
    sets: list[tuple[str, Callable[[], Iterator[Case]]]] = []
    if options.functions:
        sets.append(("bfcl functions", partial(functions, options.functions)))
    for draft in DRAFTS if options.suite else ():
        sets.append((f"{draft} required", partial(suite, options.suite, draft, False)))
        sets.append((f"{draft} optional", partial(suite, options.suite, draft, True)))
    git = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    for name, make in sets:
        for strict in (False, True):
            cases = list(make())
            for start in range(0, len(cases), BATCH):
                run(engine, cases[start : start + BATCH], strict, options.answers)
            counts = Counter(case.outcome for case in cases)
            answers = sum((case.outcomes for case in cases), Counter[str]())
            row = {
                "benchmark": "schemas",
                "set": name,
                "strict": strict,
                "schemas": len(cases),
                **{kind: counts[kind] for kind in ("valid", "said", "refused", "cut", "unjudged", "wrong")},
                "answers": sum(answers.values()),
                "commit": commit,
                "date": datetime.now(UTC).date().isoformat(),
            }
            print(json.dumps(row), flush=True)
            for case in cases:
                if case.outcome == "wrong" or (case.refused and not strict):
                    print(f"  {case.outcome}: {case.name}: {case.refused[:200] or case.wrong}", flush=True)
            if options.out:
                with options.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
