"""The denoiser asked about known texts: the numbers of training's forward, and nothing seen too early."""

from __future__ import annotations

import random

import pytest
import torch

from tests import tiny
from vermilion.evaluation.denoiser_metrics import drafting, implied, likelihood
from vermilion.evaluation.probe import Block, Cut, blocks, guesses
from vermilion.evaluation.reference_texts import ReferenceText, written
from vermilion.training.forward import Forward, NoisyRows
from vermilion.training.masks import Layout

RNG = random.Random(5)
TOKENS = tuple(RNG.randrange(2, tiny.MASK) for _ in range(33))


@pytest.mark.parametrize("kind", ["causal-shift", "block", "block-shift"])
@pytest.mark.parametrize("rate", [0.25, 1.0])
def test_guesses_are_those_of_the_training_forward(kind: str, rate: float) -> None:
    built, traits = tiny.model(kind), tiny.TRAITS[kind]
    length = traits.block_grid or 5
    cut = blocks(len(TOKENS), Cut(length, rate, anchored=traits.shift), random.Random(1))
    asked = guesses(tiny.engine(kind, built), TOKENS, cut)

    count = cut[-1].end
    ids = torch.tensor([TOKENS[:count]])
    position = torch.arange(count)[None]
    hidden = torch.zeros(1, count, dtype=torch.bool)
    for block in cut:
        hidden[0, list(block.hidden)] = True
    forward = Forward(built)
    seen = forward.seen(Layout(torch.zeros_like(ids), position // length, traits.context))
    _, past = forward.clean(ids, position, seen)
    masked = torch.where(hidden, tiny.MASK, ids)
    logits = built.logits(forward.noisy(NoisyRows(masked, hidden), position, seen, past)[0])
    logits[:, tiny.MASK] = float("-inf")
    logprob = logits.log_softmax(-1)
    for guess in (guess for block in asked for guess in block):
        row = logprob[guess.position - traits.shift]
        assert guess.token == int(row.argmax())
        assert guess.target_logprob == pytest.approx(float(row[TOKENS[guess.position]]), abs=1e-9)


def test_a_guess_depends_on_nothing_behind_its_blocks_start() -> None:
    engine = tiny.engine("causal-shift", tiny.model("causal-shift"))
    block = Block(10, 15, (11, 12, 13, 14))
    changed = (*TOKENS[:11], *(7 for _ in TOKENS[11:]))
    assert [g.token for g in guesses(engine, TOKENS, [block])[0]] == [
        g.token for g in guesses(engine, changed, [block])[0]
    ]
    earlier = (*TOKENS[:9], 7, *TOKENS[10:])
    assert [g.logprob for g in guesses(engine, TOKENS, [block])[0]] != [
        g.logprob for g in guesses(engine, earlier, [block])[0]
    ]


def test_overlapping_blocks_do_not_see_each_other() -> None:
    engine = tiny.engine("causal-shift", tiny.model("causal-shift"))
    cut = [Block(p - 1, p + 3, tuple(range(p, p + 3))) for p in range(4, 20)]
    together = guesses(engine, TOKENS, cut)
    for block, guess in zip(cut, together, strict=True):
        assert [g.token for g in guess] == [g.token for g in guesses(engine, TOKENS, [block])[0]]


def test_blocks_hide_the_share_asked_for_and_never_an_anchor() -> None:
    for rate, expected in ((0.25, 2), (0.5, 4), (1.0, 7), (0.01, 1)):
        for block in blocks(50, Cut(8, rate, first=3), random.Random(0)):
            assert len(block.hidden) == expected
            assert block.start not in block.hidden
            assert block.start <= min(block.hidden) and max(block.hidden) < block.end <= 50


def test_likelihood_adds_up() -> None:
    engine = tiny.engine("causal-shift", tiny.model("causal-shift"))
    texts = [ReferenceText("a", TOKENS, 3), ReferenceText("b", TOKENS[::-1], 0)]
    figures = likelihood(engine, texts, 5, seed=0)
    assert figures["tokens"] == 30 + 32
    readings = engine.score(TOKENS[:3], TOKENS[3:]) + engine.score(TOKENS[:0:-1][:1], TOKENS[::-1][1:])
    base = sum(-r.target_logprobs[0] for r in engine.score(TOKENS[:3], TOKENS[3:])) / 30
    assert figures["by_group"]["a"]["base_nll"] == pytest.approx(base, abs=1e-4)
    assert len(readings) == figures["tokens"]
    assert set(figures["nll"]) == {"0.25", "0.5", "0.75", "1.0"}
    assert len(figures["nll_by_offset"]) == len(figures["agreement"]) == 4
    assert figures["accepted"] == implied(figures["agreement"])
    assert figures == likelihood(engine, texts, 5, seed=0)
    assert figures["nll"] != likelihood(engine, texts, 5, seed=1)["nll"]


def test_the_implied_length_is_the_sum_of_running_products() -> None:
    assert implied([0.5, 0.5, 1.0]) == 0.5 + 0.25 + 0.25
    assert implied([]) == 0


def test_a_replay_counts_cycles_as_drafting_and_verifying_would() -> None:
    engine = tiny.engine("causal-shift", tiny.model("causal-shift"))

    class Llm:
        tokenizer = tiny.Letters()

    Llm.engine = engine  # type: ignore[attr-defined]
    from vermilion.evaluation.fixed_prompts import FixedPrompt

    [text] = written(Llm(), [FixedPrompt("prose", "once upon")], 24)  # type: ignore[arg-type]
    figures = drafting(engine, [text], (4,))["block_4"]

    # The same by hand: a draft of three, then the base's verdict, until the text ends; riding, the base has
    # given the first of the three.
    tokens = text.ids
    for name, riding in (("tokens_per_cycle", 0), ("tokens_per_riding_cycle", 1)):
        at, cycles = text.num_prompt, 0
        while at <= len(tokens) - 3:
            [block] = guesses(engine, tokens, [Block(at - 1, at + 3, (at, at + 1, at + 2))])
            drafted = [tokens[at]] if riding else [block[0].token]
            for guess in block[1:]:
                drafted.append(guess.behind(drafted[-1]))
            run = 0
            while run < 3 and drafted[run] == tokens[at + run]:
                run += 1
            at += run + 1
            cycles += 1
        assert figures[name] == pytest.approx((at - text.num_prompt) / cycles, abs=1e-4)


def test_a_draft_head_changes_what_is_guessed_behind_a_token_alone() -> None:
    plain, headed = (tiny.model("causal-shift", draft_head=given) for given in (False, True))
    block = [Block(3, 7, (4, 5, 6))]
    [before], [after] = (
        guesses(tiny.engine("causal-shift", model), TOKENS, block) for model in (plain, headed)
    )
    assert [one.token for one in before] == [one.token for one in after]
    assert [len(one.given) for one in before] == [0, 0, 0]
    # The first stands behind a token that all rows saw.
    assert [len(one.given) for one in after] == [0, 8, 8]
    assert len({after[1].behind(token) for token in after[1].given}) > 1
    unknown = next(token for token in range(tiny.VOCAB) if token not in after[1].given)
    assert after[1].behind(unknown) == after[1].token


def test_the_base_follows_its_own_greedy_text() -> None:
    engine = tiny.engine("causal-shift", tiny.model("causal-shift"))

    class Llm:
        tokenizer = tiny.Letters()

    Llm.engine = engine  # type: ignore[attr-defined]
    from vermilion.evaluation.fixed_prompts import FixedPrompt

    prompts = [FixedPrompt("prose", "once upon"), FixedPrompt("code", "def f(x):")]
    for text in written(Llm(), prompts, 12):  # type: ignore[arg-type]
        readings = engine.score(text.ids[: text.num_prompt], text.ids[text.num_prompt :])
        assert [reading.token for reading in readings] == list(text.ids[text.num_prompt :])


def test_a_model_that_sees_everything_has_no_blocks_to_ask_about() -> None:
    engine = tiny.engine("full", tiny.model("full"))
    with pytest.raises(ValueError, match="no blocks"):
        guesses(engine, TOKENS, [Block(0, 4, (1,))])
