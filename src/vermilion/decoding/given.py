"""An answer that is given: how likely the base finds each of its tokens, in one pass.

Of answers to a gap the base so tells which fits best, without training: P(answer | prompt) P(suffix | prompt
and answer) is, but for a constant, the probability of the answer between the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from vermilion.decoding.drafting import DraftBudget
from vermilion.decoding.passes import Pass, Read, Reading
from vermilion.decoding.program import Open, Program, Task
from vermilion.gap_template import open_prompt
from vermilion.models.families import Traits
from vermilion.text import Tokenizer
from vermilion.types import Request, Sampling

NUM_READ = 32
"""Tokens of a suffix that are read."""


class Given(Program):
    """Settles `task.given` as it is, each token with its log-probability behind all before it."""

    def __init__(self, task: Task, traits: Traits) -> None:
        super().__init__(replace(task, max_tokens=len(task.given), eos=frozenset()), traits)

    @property
    def max_slots(self) -> int:
        return self.limit

    @property
    def max_draft_rows(self) -> int:
        return len(self.task.given) - 1

    def plan(self, budget: DraftBudget | None = None) -> Pass:
        text, start = (*self.task.prompt, *self.task.given), len(self.task.prompt)
        reads = (Read(at - 1 - self.cached, at, "check", (text[at],)) for at in range(start, len(text)))
        return Pass((self._clean(text, len(text) - 1),), tuple(reads))

    def apply(self, readings: Sequence[Reading]) -> None:
        self._count_pass()
        self.cached = len(self.tokens)
        for token, reading in zip(self.task.given, readings, strict=True):
            self._settle(replace(reading, token=token, logprob=reading.target_logprobs[0]))

    def canvas(self) -> list[Open]:
        return []


def fit_of(request: Request, answer: str, tokenizer: Tokenizer) -> Request:
    """Asks how likely `answer` and the suffix's first tokens are behind the prompt, in the tokens that they
    have as one text."""
    before, blank = open_prompt(tokenizer, request.prompt)
    if not before:
        before, blank = request.prompt, ""
    given = (*tokenizer.encode(blank + answer), *request.suffix[:NUM_READ])
    sampling = Sampling(max_tokens=len(given), logprobs=0)
    return replace(request, id=f"{request.id}-fit", prompt=before, suffix=(), given=given, sampling=sampling)
