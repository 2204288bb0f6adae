"""What drafts are found to be worth, and what they may lose."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from vermilion.decoding.draft_record import CREDIT, INCOME, MAX_BALANCE, Acceptance, DraftRecord, Source
from vermilion.decoding.drafting import DraftBudget, RowCosts, worthwhile
from vermilion.decoding.passes import Pass, Reading
from vermilion.decoding.program import Task
from vermilion.decoding.speculative import Speculative
from vermilion.models.families import Traits
from vermilion.types import Decoding

CURVE = RowCosts((1, 4, 8, 16), (4.0, 4.6, 8.0, 14.0), noisy_row_ms=0.1)


def test_acceptance_starts_at_its_prior_and_follows_the_text() -> None:
    acceptance = Acceptance(Acceptance(0.7))
    assert acceptance.rate == pytest.approx(0.7)
    for _ in range(50):
        acceptance.note(0.0)
    assert acceptance.rate < 0.15
    for _ in range(50):
        acceptance.note(1.0)
    # What all requests saw weighs as much as eight of its own drafts, and half of that were the refused ones.
    assert acceptance.rate > 0.8


def note_refused(record: DraftRecord, source: Source, times: int) -> None:
    for _ in range(times):
        record.note_guesses(2, [], [])
        record.note(source, depths=[0, 1], logprobs=[-0.1, -0.2], accepted=0)


def test_a_request_that_stopped_drafting_tries_again() -> None:
    record = DraftRecord(DraftRecord())
    note_refused(record, "drafter", 30)
    before = record.yields(2)[0][0]
    passes = next(n for n in itertools.count() if record.yields(1)[0][0] > 0.6 or record.rest("drafter"))
    assert before < 0.25
    assert 20 < passes < 400


def test_the_guessers_own_probabilities_are_calibrated() -> None:
    record = DraftRecord(DraftRecord())
    for _ in range(40):
        record.note("denoiser", depths=[0], logprobs=[math.log(0.8)], accepted=0)
    assert record.tree_chances([math.log(0.8)])[0] < 0.2
    assert record.drafted["denoiser"] == 40 and record.accepted["denoiser"] == 0


def test_what_guesses_yield_is_their_chances_by_depth() -> None:
    record = DraftRecord(DraftRecord())
    for _ in range(60):
        # Two drafts for the first position, one for the second, none for the third.
        record.note_guesses(3, [0, 0, 1], [0.5, 0.25, 0.3])
    (first, first_rows), (second, second_rows), (third, third_rows) = record.yields(3)
    assert first == pytest.approx(0.75, abs=0.02) and first_rows == pytest.approx(2.0, abs=0.1)
    assert second == pytest.approx(0.3, abs=0.05) and second_rows == pytest.approx(1.0, abs=0.05)
    assert third < 0.1 and third_rows < 0.1


def test_a_request_learns_from_those_before_it() -> None:
    shared, alone = DraftRecord(), DraftRecord()
    note_refused(DraftRecord(shared), "drafter", 40)
    for _ in range(40):
        DraftRecord(shared).note("lookup", depths=[0, 1], logprobs=[0.0, 0.0], accepted=0)
    next_one = DraftRecord(shared)
    assert next_one.yields(1)[0][0] < 0.25 < 0.6 < alone.yields(1)[0][0]
    assert next_one.run_chances("lookup", 1)[0] < 0.25 < alone.run_chances("lookup", 1)[0]
    assert next_one.tree_chances([0.0])[0] < 0.25 < alone.tree_chances([0.0])[0]
    assert not shared.drafted


def test_runs_of_text_grow_longer_while_they_are_right() -> None:
    record, budget = DraftRecord(DraftRecord()), DraftBudget(CURVE, rows=1, streams=1)
    counts = []
    for accepted in (1.0, 0.0, 0.0, 0.0):
        count = worthwhile(record.run_chances("existing", 64), budget)
        counts.append(count)
        right = int(count * accepted)
        record.note("existing", depths=list(range(count)), logprobs=[0.0] * count, accepted=right)
    assert counts[0] >= 3
    assert counts[1] > counts[0]
    assert counts[3] < counts[1]


TRAITS = Traits("causal", True, 0, (), drafter=5)


@dataclass
class Stream:
    """Answers of 64 tokens, one after the other, whose passes cost what `costs` says, and a drafter that is
    always as sure, and right as often as `chance` says of the answer's number."""

    chance: Callable[[int], float]
    sure: float
    costs: RowCosts = field(default_factory=lambda: RowCosts((1, 64), (4.0, 29.2), drafter_ms=(0.8, 0.1)))
    shared: DraftRecord = field(default_factory=DraftRecord)
    passes: int = 0
    ms: float = 0.0

    def answer(self, number: int) -> None:
        random_ = random.Random(number)
        text = [random_.randrange(2, 50_000) for _ in range(80)]
        task = Task((1,), 64, Decoding("lossless", block_length=8, draft_nodes=12), frozenset())
        program = Speculative(task, TRAITS)
        program.record = DraftRecord(self.shared)
        while program.finish is None:
            budget = DraftBudget(self.costs, rows=1, streams=1)
            settled = len(program.tokens)
            if (asked := program.ask_drafter(999, budget)) is not None:
                count = len(asked.reads)
                self.ms += self.costs.drafter_ms[0] + self.costs.drafter_ms[1] * count
                guesses = text[settled : settled + count]
                right = [random_.random() < self.chance(number) for _ in guesses]
                tokens = [token if hit else 0 for token, hit in zip(guesses, right, strict=True)]
                logprob = math.log(self.sure)
                program.drafted([Reading(t, logprob, top=((t, logprob),)) for t in tokens])
            planned = program.plan(budget)
            self.ms += self.costs.at(planned.num_rows)
            self.passes += 1
            program.apply(self.readings(planned, text))

    def readings(self, planned: Pass, text: list[int]) -> list[Reading]:
        return [Reading(text[read.position], -0.5) for read in planned.reads]

    def lost(self, answers: range) -> float:
        """Passes that the answers took longer than without drafts."""
        before = self.ms
        for number in answers:
            self.answer(number)
        return (self.ms - before) / self.costs.at(1) - 64 * len(answers)


def stream(chance: Callable[[int], float], sure: float = 0.9, *, in_credit: bool = False) -> Stream:
    made = Stream(chance, sure)
    if in_credit:
        made.shared.account("drafter").balance = math.inf
    return made


def test_drafts_that_are_never_accepted_lose_no_more_than_the_credit_and_the_income() -> None:
    held, free = stream(lambda number: 0.0), stream(lambda number: 0.0, in_credit=True)
    assert 0 < held.lost(range(40)) <= CREDIT + INCOME * held.passes < free.lost(range(40))


def test_good_drafts_gain_as_much_as_without_an_account() -> None:
    held, free = stream(lambda number: 0.8), stream(lambda number: 0.8, in_credit=True)
    gained = -held.lost(range(10))
    assert gained > 0.25 * 640
    assert gained > 0.97 * -free.lost(range(10))


def test_what_was_gained_may_not_all_be_lost_again() -> None:
    changed = stream(lambda number: 0.8 if number < 10 else 0.0)
    changed.lost(range(10))
    passes = changed.passes
    assert changed.lost(range(10, 60)) <= MAX_BALANCE + INCOME * (changed.passes - passes)


def test_drafting_comes_back_with_texts_that_can_be_guessed() -> None:
    changed, always = stream(lambda number: 0.8 if number >= 40 else 0.0), stream(lambda number: 0.8)
    changed.lost(range(40))
    changed.lost(range(40, 50))
    assert changed.lost(range(50, 60)) < 0.95 * always.lost(range(50, 60)) < 0
