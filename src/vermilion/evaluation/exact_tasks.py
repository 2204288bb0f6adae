"""Tasks with one right answer: small templated ones, JSON to a schema, and an agent's thirty calls."""

from __future__ import annotations

import json
import random
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vermilion.decoding.presets import resolve
from vermilion.errors import ConfigError
from vermilion.evaluation.sampler import Ask, Reply, Sampler
from vermilion.evaluation.task import EvalTask, Grade, Setting, asked
from vermilion.types import Grammar

_WORDS = (
    "apple", "river", "stone", "cloud", "table", "green", "music", "paper", "house", "light", "bread",
    "horse", "plant", "watch", "chair", "ocean", "lemon", "tiger", "brush", "glass",
)  # fmt: skip
_NAMES = ("Alice", "Bruno", "Chen", "Dalia", "Emil", "Fatima", "Goran", "Hana")
_CITIES = ("Paris", "Lima", "Oslo", "Cairo", "Kyoto", "Quito", "Delhi", "Turin")
AGENT_CALLS = 30


def _templated(sampler: Sampler, setting: Setting) -> dict[str, Any]:
    """Copying, sorting, echoing and counting after three worked examples; the first line has to be right."""

    def grade(sampler: Sampler, ask: Ask, reply: Reply) -> Grade:
        return {"exact": reply.text.strip() == ask.facts["answer"]}

    rng = random.Random(setting.seed)
    makers = (_copy, _sort, _echo, _sum)
    asks = []
    for number in range(setting.limit):
        maker = makers[number % len(makers)]
        shots = [maker(rng) for _ in range(4)]
        text = "\n\n".join(f"Input: {given}\nOutput: {answer}" for given, answer in shots[:3])
        prompt = f"{text}\n\nInput: {shots[3][0]}\nOutput:"
        facts = {"answer": shots[3][1]}
        asks.append(Ask(prompt, 40, stop=("\n",), group=maker.__name__.strip("_"), facts=facts))
    return asked(sampler, asks, grade, setting.watch)


def _copy(rng: random.Random) -> tuple[str, str]:
    words = " ".join(rng.sample(_WORDS, 5))
    return words, words


def _sort(rng: random.Random) -> tuple[str, str]:
    words = rng.sample(_WORDS, 4)
    return " ".join(words), " ".join(sorted(words))


def _echo(rng: random.Random) -> tuple[str, str]:
    name, age, city = rng.choice(_NAMES), rng.randrange(18, 90), rng.choice(_CITIES)
    return f"{name}, {age}, {city}", json.dumps({"name": name, "age": age, "city": city})


def _sum(rng: random.Random) -> tuple[str, str]:
    a, b = rng.randrange(2, 50), rng.randrange(2, 50)
    return f"{a} + {b}", str(a + b)


_PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "city": {"enum": list(_CITIES)},
    },
    "required": ["name", "age", "city"],
    "additionalProperties": False,
}


def _json(sampler: Sampler, setting: Setting) -> dict[str, Any]:
    """One object to a schema: valid by the schema, right by every field."""
    try:
        from jsonschema import Draft202012Validator
    except ModuleNotFoundError:
        raise ConfigError("jsonschema is missing; run: pip install 'vermilion[eval]'") from None

    validator = Draft202012Validator(_PERSON)

    def grade(sampler: Sampler, ask: Ask, reply: Reply) -> Grade:
        try:
            value = json.loads(reply.text)
        except ValueError:
            return {"valid": False, "right": False, "fields_right": 0.0}
        valid = validator.is_valid(value)
        wanted: Mapping[str, object] = ask.facts["answer"]
        hits = sum(valid and value.get(name) == given for name, given in wanted.items())
        return {"valid": valid, "right": valid and value == wanted, "fields_right": hits / len(wanted)}

    rng = random.Random(setting.seed)
    asks = []
    grammar = Grammar("json_schema", json.dumps(_PERSON))
    for _ in range(setting.limit):
        name, age, city = rng.choice(_NAMES), rng.randrange(18, 90), rng.choice(_CITIES)
        question = (
            f"{name} is {age} years old and lives in {city}. Write this as a JSON object with the keys name, "
            "age and city."
        )
        facts = {"answer": {"name": name, "age": age, "city": city}}
        asks.append(Ask(({"role": "user", "content": question},), 60, grammar=grammar, facts=facts))
    return asked(sampler, asks, grade, setting.watch)


@dataclass(frozen=True, slots=True)
class _Loop:
    """One run of the agent."""

    replies: Sequence[Reply]
    right: int
    wall_s: float


def _agent(sampler: Sampler, setting: Setting) -> dict[str, Any]:
    """A loop of calls held to a grammar, each on the conversation so far: the sampler's, then the base's.

    Both loops see the same conversation, since the tool's answers and the next errand do not depend on what
    was called. Each starts with an empty cache and keeps its own prefix, as a service would. `limit` has no
    say; fewer calls than thirty would be another task.
    """
    setting.watch.begin(2 * AGENT_CALLS)
    mine = _loop(sampler, setting)
    figures: dict[str, Any] = {"calls": AGENT_CALLS, "right": mine.right / AGENT_CALLS}
    figures |= _cost(mine, "")
    if sampler.llm.engine.traits.has_next_token:
        baseline = _loop(replace(sampler, decoding=resolve(sampler.llm.model, "ar")), setting)
        figures |= _cost(baseline, "_ar")
        figures["speed_vs_ar"] = round(baseline.wall_s / mine.wall_s, 3)
        figures["same_calls"] = [r.text for r in mine.replies] == [r.text for r in baseline.replies]
    return figures


def _cost(loop: _Loop, mark: str) -> dict[str, float]:
    passes = sum(reply.usage.passes for reply in loop.replies)
    tokens = sum(reply.usage.completion_tokens for reply in loop.replies)
    return {
        f"whole{mark}_s": round(loop.wall_s, 2),
        f"call{mark}_s": round(statistics.median(reply.wall_s for reply in loop.replies), 4),
        f"passes{mark}": passes,
        f"tokens_per_pass{mark}": round(tokens / max(1, passes), 4),
    }


def _loop(sampler: Sampler, setting: Setting) -> _Loop:
    rng = random.Random(setting.seed)
    files = [f"{word}.txt" for word in _WORDS]
    call = {
        "type": "object",
        "properties": {
            "tool": {"enum": ["read_file", "delete_file", "list_files"]},
            "path": {"enum": [*files, "."]},
        },
        "required": ["tool", "path"],
        "additionalProperties": False,
    }
    grammar = Grammar("json_schema", json.dumps(call))
    messages: list[dict[str, str]] = [
        {"role": "system", "content": 'You act by one JSON object: {"tool": ..., "path": ...}. '
         "The tools are read_file, delete_file and list_files (path \".\")."}
    ]  # fmt: skip
    replies: list[Reply] = []
    right = 0
    began = time.perf_counter()
    for number in range(AGENT_CALLS):
        file = rng.choice(files)
        errand, tool, path = (
            (f"Read the file {file}.", "read_file", file),
            (f"Delete the file {file}.", "delete_file", file),
            ("List the files.", "list_files", "."),
        )[number % 3]
        messages.append({"role": "user", "content": errand})
        reply = sampler.answer(Ask(tuple(messages), 48, grammar=grammar, goes_on=number > 0))
        replies.append(reply)
        right += _is(reply.text, {"tool": tool, "path": path})
        # The right call is what the conversation goes on with, so that every sampler sees the same one.
        messages.append({"role": "assistant", "content": json.dumps({"tool": tool, "path": path})})
        messages.append({"role": "user", "content": f"Result: {rng.choice(_WORDS)} {rng.randrange(1000)}"})
        messages.append({"role": "assistant", "content": "Done."})
        setting.watch.step()
    return _Loop(replies, right, time.perf_counter() - began)


def _is(text: str, wanted: Mapping[str, str]) -> bool:
    try:
        return bool(json.loads(text) == wanted)
    except ValueError:
        return False


TASKS = (
    EvalTask("templated", "copy, sort, echo as JSON, add: exact answers after three examples", _templated),
    EvalTask("json", "an object to a schema: valid, and right", _json),
    EvalTask("agent", "thirty calls of tools in one conversation, timed beside autoregression", _agent),
)
