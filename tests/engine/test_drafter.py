"""A drafter changes what a text costs, never the text; and it guesses what its training would."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from tests import tiny
from tests.engine import drafted
from tests.engine.test_matches_reference import SAMPLINGS, outcome, prompt
from vermilion.decoding.drafting import RowCosts
from vermilion.decoding.forward_jobs import Job
from vermilion.decoding.grammar import Grammars
from vermilion.decoding.passes import Reading
from vermilion.engine.engine import Engine
from vermilion.models.transformer import Transformer
from vermilion.training.base_states import text_of
from vermilion.training.drafter_loss import Frozen, block_states
from vermilion.types import Decoding, Finish, Grammar, Request, Sampling

LOSSLESS = [
    Decoding("lossless", block_length=8, draft_nodes=12),
    Decoding("lossless", block_length=8, draft_nodes=3, lookup=16),
]


def requests(decoding: Decoding) -> list[Request]:
    return [Request(f"{i}", prompt(5 + 9 * i, i), one, decoding) for i, one in enumerate(SAMPLINGS)]


@pytest.mark.parametrize("decoding", LOSSLESS)
@pytest.mark.parametrize("settings", [{}, {"prefill_chunk": 8, "max_rows": 24}, {"kv_tokens": 208}])
def test_drafted_text_is_the_bases_own(
    decoding: Decoding, settings: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    plain = outcome(drafted.engine(drafted.model(drafter=False)), requests(Decoding("ar")))
    engine = drafted.engine(drafted.model(), **settings)
    found = outcome(engine, requests(decoding))
    assert [one.tokens for one in found] == [one.tokens for one in plain]
    assert engine._drafted["drafter"] > 0
    # A pass of the drafter that fails ends no request: it would not be noticed otherwise.
    assert not caplog.records


def test_accepted_drafts_save_passes() -> None:
    # A drafter whose layers are the base's last guesses well what those decide.
    built = drafted.model()
    with torch.no_grad():
        for layer in built.layers:
            layer.output.weight.mul_(0.02)
            layer.down.weight.mul_(0.02)
    [found] = outcome(drafted.engine(built), [Request("a", prompt(9, 1), Sampling(max_tokens=40))])
    assert found.passes < 40


def asked(engine: Engine, request: Request) -> list[tuple[Job, list[Reading], tuple[int, ...]]]:
    """Every pass of the drafter for the request: its job, its readings, and the settled tokens."""
    seen = []
    inner = engine.worker.draft

    def draft(jobs: Sequence[Job]) -> list[list[Reading]]:
        answers = inner(jobs)
        tokens = tuple(engine._sequences[request.id].program.tokens)
        seen.extend((job, found, tokens) for job, found in zip(jobs, answers, strict=True))
        return answers

    engine.worker.draft = draft  # type: ignore[method-assign]
    tiny.run(engine, [request])
    return seen


def likeliest(built: Transformer, tokens: Sequence[int], length: int) -> list[list[int]]:
    """The drafter's eight likeliest tokens in each row of a block behind `tokens`, by the path of training:
    the base's states of the whole text, and plain attention over them."""
    drafter = built.drafter
    assert drafter is not None
    text = text_of(built, [*tokens, *([0] * length)], 0, drafter.shape.taps)
    frozen = Frozen.of(built, drafter.vocabulary_W)
    anchors = torch.tensor([len(tokens) - 1])
    positions = anchors[:, None] + torch.arange(length)
    hidden_RH = block_states(drafter, frozen, text, anchors, positions)
    logits_RW = hidden_RH @ frozen.head_WH.T
    return [drafter.vocabulary_W[row.topk(8).indices].tolist() for row in logits_RW]


@torch.no_grad()
def test_the_engine_drafts_as_training_does() -> None:
    built = drafted.model()
    seen = asked(drafted.engine(built), Request("a", prompt(21, 3), Sampling(max_tokens=24)))
    assert len(seen) > 10
    for job, readings, tokens in seen:
        wanted = likeliest(built, tokens, len(job.rows.reads))
        assert [[token for token, _ in reading.top] for reading in readings] == wanted
        # Behind the token that the first row stands on, the head has had its say.
        assert readings[0].given.keys() == {tokens[-1]}


def test_drafts_are_the_same_behind_a_prefix_hit_and_in_small_chunks() -> None:
    request = Request("a", prompt(40, 4), Sampling(max_tokens=16))
    runs = []
    for settings, warm in (({}, False), ({}, True), ({"prefill_chunk": 8, "max_rows": 16}, False)):
        engine = drafted.engine(drafted.model(), **settings)
        if warm:
            tiny.run(engine, [Request("b", request.prompt, Sampling(max_tokens=2))])
        runs.append([[r.top for r in readings] for _, readings, _ in asked(engine, request)])
    tokens = [[[[token for token, _ in top] for top in each] for each in run] for run in runs]
    assert tokens[0] == tokens[1] == tokens[2]


def test_a_drafter_that_fails_ends_no_request() -> None:
    engine = drafted.engine(drafted.model())
    inner, calls = engine.worker.draft, []

    def draft(jobs: Sequence[Job]) -> list[list[Reading]]:
        calls.append(len(jobs))
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        return inner(jobs)

    engine.worker.draft = draft  # type: ignore[method-assign]
    wanted = [Request("a", prompt(9, 1), Sampling(max_tokens=20))]
    events = tiny.run(engine, wanted)
    finish = events["a"][-1]
    assert isinstance(finish, Finish) and finish.reason == "length" and len(calls) > 2
    plain = outcome(
        drafted.engine(drafted.model(drafter=False)),
        [Request("a", prompt(9, 1), Sampling(max_tokens=20), Decoding("ar"))],
    )
    found = outcome(engine, [Request("b", prompt(9, 1), Sampling(max_tokens=20))])
    assert found[0].tokens == plain[0].tokens


class Reversible(tiny.Letters):
    """Reads what it writes, as a grammar's forced text has to be."""

    def encode(self, text: str, special: bool = False) -> list[int]:
        return [ord(character) - 33 for character in text]


def under_a_grammar(*, drafter: bool = True) -> Engine:
    engine = drafted.engine(drafted.model(drafter=drafter))
    engine.grammars = Grammars(Reversible(), tiny.VOCAB)  # type: ignore[arg-type]
    return engine


def held(name: str, decoding: Decoding) -> Request:
    grammar = Grammar("regex", "([0-9A-Za-v]{2}wxyz){6}[0-9A-Za-v]{3}")
    return Request(name, prompt(9, 1), Sampling(max_tokens=60), decoding, grammar=grammar)


def test_under_a_grammar_the_drafter_sees_only_what_is_stored_and_text_is_the_bases_own() -> None:
    [plain] = outcome(under_a_grammar(drafter=False), [held("a", Decoding("ar"))])
    engine, gaps = under_a_grammar(), set()
    inner = engine.worker.draft

    def draft(jobs: Sequence[Job]) -> list[list[Reading]]:
        [job] = jobs
        program = engine._sequences["b"].program
        [segment] = job.rows.segments
        assert segment.sees == program.cached + len(job.rows.moves)
        gaps.add(segment.slot - segment.sees)
        return inner(jobs)

    engine.worker.draft = draft  # type: ignore[method-assign]
    [found] = outcome(engine, [held("b", LOSSLESS[0])])
    assert found.tokens == plain.tokens
    assert gaps >= {0, 4}, "of four tokens that the grammar forced"


def test_a_dear_grammar_is_not_drafted_under() -> None:
    for mask_ms, drafts in ((0.0, True), (50.0, False)):
        engine = under_a_grammar()
        costs = engine.scheduler.costs = RowCosts((1, 512), (4.0, 4.0))
        costs.mask_ms = mask_ms
        costs.note = costs.note_masks = costs.note_asking = lambda *times: None  # type: ignore[method-assign]
        outcome(engine, [held("a", LOSSLESS[0])])
        assert (engine._drafted["drafter"] > 0) == drafts
