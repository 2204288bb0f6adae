"""Work that drafting is good at, against llama.cpp without drafting: edits, forms, an agent's thirty calls.

    python bench/peer_tasks.py --out bench/results/peer_tasks.jsonl

llama.cpp gets the same prompts and writes as many tokens as our answers have, without a grammar, which would
only slow it down: this compares the time for the same number of tokens. Both read the prompts anew in edits
and forms and keep the conversation in the agent's loop. Rounds alternate.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from forms import asked

from vermilion.decoding.presets import resolve
from vermilion.engine.llm import LLM
from vermilion.evaluation.environment import environment
from vermilion.evaluation.peers import LlamaCpp, Setup
from vermilion.evaluation.sampler import Ask, Reply, Sampler
from vermilion.evaluation.suite import TASKS
from vermilion.evaluation.task import Setting
from vermilion.models import catalog
from vermilion.models.catalog import DEFAULT_MODEL

_AGENT_CALLS = 30
_FORM_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Recording(Sampler):
    """A sampler that keeps what it was asked and answered."""

    kept: list[tuple[Ask, Reply]] = field(default_factory=list)

    def answer(self, ask: Ask) -> Reply:
        reply = Sampler.answer(self, ask)
        self.kept.append((ask, reply))
        return reply


def edits(sampler: Recording) -> list[tuple[Ask, Reply]]:
    TASKS["edits"].measure(sampler, Setting(limit=1))
    return [pair for pair in sampler.kept if pair[0].existing]


def forms(sampler: Recording) -> list[tuple[Ask, Reply]]:
    for prompt, grammar in asked(sampler.llm):
        sampler.answer(Ask(tuple(prompt), _FORM_TOKENS, grammar=grammar))
    return sampler.kept


def agent(sampler: Recording) -> list[tuple[Ask, Reply]]:
    TASKS["agent"].measure(sampler, Setting())
    return sampler.kept[:_AGENT_CALLS]


WORK: dict[str, Callable[[Recording], list[tuple[Ask, Reply]]]] = {
    "edits": edits,
    "forms": forms,
    "agent": agent,
}


def measured(name: str, llm: LLM, peer: LlamaCpp, rounds: int) -> dict[str, object]:
    """Medians over alternating rounds."""
    ours, theirs = [], []
    for _ in range(rounds):
        pairs = WORK[name](Recording("lossless", llm, resolve(llm.model, "lossless")))
        ours.append(sum(reply.wall_s for _, reply in pairs))
        theirs.append(
            sum(
                peer.timed(reply.prompt_ids, reply.usage.completion_tokens, goes_on=ask.goes_on)
                for ask, reply in pairs
            )
        )
    tokens = sum(reply.usage.completion_tokens for _, reply in pairs)
    return {
        "work": name,
        "answers": len(pairs),
        "tokens": tokens,
        "passes": sum(reply.usage.passes for _, reply in pairs),
        "ours_s": round(statistics.median(ours), 3),
        "llama_cpp_s": round(statistics.median(theirs), 3),
        "times_faster": round(statistics.median(b / a for a, b in zip(ours, theirs, strict=True)), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    llm = LLM(DEFAULT_MODEL)
    setup = Setup(chosen.threads, max_prompt=4096, max_tokens=256)
    peer = LlamaCpp(catalog.find(DEFAULT_MODEL).base, setup)
    where = {
        "benchmark": "peer_tasks",
        **environment(llm),
        "rounds": chosen.rounds,
    }
    for name in WORK:
        line = json.dumps(where | measured(name, llm, peer, chosen.rounds))
        print(line, flush=True)
        if chosen.out:
            with chosen.out.open("a", encoding="utf-8") as file:
                file.write(line + "\n")


if __name__ == "__main__":
    main()
