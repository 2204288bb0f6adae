"""The kernels' forward pass against a plain one, one instruction set against another, one company of rows
against another."""

from __future__ import annotations

import numpy as np
import pytest

from tests.native import tiny_native
from tests.native.oracle import Oracle, OracleRow
from tests.native.tiny_native import ARCHITECTURES, causal, job, packed, packed_adapter, runner
from vermilion.decoding.passes import Pass, Segment
from vermilion.native.packed_file import Array
from vermilion.native.runner import NativeRunner

SETS = tiny_native.available_sets()
IDS = [(37 * i + 11) % 90 + 2 for i in range(150)]
PAGES = [5, 2, 9, 0, 7, 1, 12, 3, 20, 30]
ROWS_ALONE = list(range(23))
SHAPES = [name for name in ARCHITECTURES if name != "bytes"]


def logits(one: NativeRunner, *jobs_: object) -> Array:
    one.run(jobs_)  # type: ignore[arg-type]
    return np.array(one.logits)


def error(ours: Array, exact: Array) -> float:
    """The median row's. Now and then single precision rounds to another code than double does; such a row,
    and those that see it, move by a percent."""
    return float(np.median(np.abs(ours - exact).mean(1)) / exact.std())


def mixed_segments() -> list[Segment]:
    """A prompt, a tree of drafts behind it, and two canvases of noisy rows."""
    return [
        causal(IDS[:23]),
        Segment((5,), 23, 23, sees=23, span=1),
        Segment((6,), 23, 24, sees=23, span=1),
        Segment((7,), 24, 25, sees=23, span=1, also=(24,)),
        Segment((6, 0, 0), 23, 26, sees=23, span=0, noisy=True, masked=(False, True, True)),
        Segment((7, 0), 24, 29, sees=23, span=0, noisy=True, masked=(False, True), also=(24,)),
    ]


def mixed_rows() -> list[OracleRow]:
    """The same for the oracle."""
    past = tuple(range(23))
    return [
        *(OracleRow(IDS[i], i, tuple(range(i + 1))) for i in range(23)),
        OracleRow(5, 23, (*past, 23)),
        OracleRow(6, 23, (*past, 24)),
        OracleRow(7, 24, (*past, 24, 25)),
        *(OracleRow(i, 23 + n, (*past, 26, 27, 28), True, i == 0, 23) for n, i in enumerate((6, 0, 0))),
        *(OracleRow(i, 24 + n, (*past, 24, 29, 30), True, i == 0, 24) for n, i in enumerate((7, 0))),
    ]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", SHAPES)
def test_logits_are_close_to_a_plain_forward(name: str, bits: int) -> None:
    one = runner(name, bits)
    rows = mixed_rows()
    ours = logits(one, job(PAGES, mixed_segments(), list(range(len(rows)))))
    exact = Oracle(packed(name, bits), ARCHITECTURES[name]).logits(rows)
    assert error(ours, exact) < 1e-5


def test_a_named_adapter_changes_its_rows_alone() -> None:
    one = runner()
    whole = packed_adapter(ARCHITECTURES["plain"], 3)
    one.attach("whole", whole)
    one.attach("keys", packed_adapter(ARCHITECTURES["plain"], 4, "k_proj"))
    rows = mixed_rows()
    mine, other = PAGES[:4], PAGES[4:8]
    every = list(range(len(rows)))
    alone = logits(one, job(mine, mixed_segments(), every))
    both = logits(
        one,
        job(mine, mixed_segments(), every, adapter="whole"),
        job(other, mixed_segments(), every),
        job([*PAGES[8:], 21, 22], mixed_segments(), every, adapter="keys"),
    )
    exact = Oracle(packed("plain"), ARCHITECTURES["plain"]).logits(rows, whole.packed)
    adapted, plain, keyed = both[: len(rows)], both[len(rows) : 2 * len(rows)], both[2 * len(rows) :]
    assert error(adapted, exact) < 1e-5
    assert np.array_equal(plain, alone)
    assert not np.array_equal(keyed, alone)
    one.detach("whole")
    one.detach("keys")
    assert np.array_equal(logits(one, job(mine, mixed_segments(), every)), alone)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("isa", [name for name in SETS if name != "scalar"])
def test_every_instruction_set_gives_the_scalar_bits(isa: str, name: str, bits: int) -> None:
    request = job(PAGES, mixed_segments(), list(range(31)))
    given = [logits(runner(name, bits, isa=one), request) for one in ("scalar", isa)]
    assert np.array_equal(*given)


@pytest.mark.parametrize("page", [8, 16, 32])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_rows_bits_depend_on_its_own_context_alone(page: int, threads: int) -> None:
    expected = logits(runner(), job(PAGES, [causal(IDS)], list(range(len(IDS)))))
    one = runner(pool=(64, page), threads=threads)
    pages = [(7 * i + 3) % 64 for i in range(-(-len(IDS) // page))]
    others = [page for page in range(64) if page not in pages]
    at = 0
    for size in (1, 2, 5, 16, 3, 40, 1, 82):
        chunk = job(pages, [causal(IDS[at : at + size], at)], list(range(size)))
        # Company of all kinds: another prompt before it, noisy rows behind it.
        first = job(others[:8], mixed_segments(), [3, 30])
        last = job(others[8:16], [causal(IDS[3:60])], [56])
        given = logits(one, first, chunk, last)
        assert np.array_equal(given[2 : 2 + size], expected[at : at + size]), (at, size)
        at += size
    assert at == len(IDS)


@pytest.mark.parametrize("page", [8, 16])
def test_a_draft_has_the_bits_of_the_text_it_becomes(page: int) -> None:
    """Stored in another slot, seen through `also`, then moved: the base's keys are the same."""
    expected = logits(runner(), job(PAGES, [causal(IDS[:30])], list(range(30))))
    one = runner(pool=(64, page))
    pages = list(range(10, 18))
    tree = [
        causal(IDS[:20]),
        Segment((3,), 20, 20, sees=20, span=1),
        Segment((IDS[20],), 20, 21, sees=20, span=1),
        Segment((4,), 21, 22, sees=20, span=1, also=(21,)),
        Segment((IDS[21],), 21, 23, sees=20, span=1, also=(21,)),
        Segment((IDS[22],), 22, 24, sees=20, span=1, also=(21, 23)),
    ]
    given = logits(one, job(pages, tree, [19, 21, 23, 24]))
    assert np.array_equal(given, expected[[19, 20, 21, 22]])
    moved = job(pages, [causal(IDS[23:30], 23)], list(range(7)))
    rows = Pass(moved.rows.segments, moved.rows.reads, moves=((21, 20), (23, 21), (24, 22)))
    given = logits(one, type(moved)(pages, rows, moved.wanted))
    assert np.array_equal(given, expected[23:30])


def test_noisy_rows_leave_clean_ones_alone() -> None:
    clean = logits(runner(), job(PAGES, [causal(IDS[:23])], ROWS_ALONE))
    assert np.array_equal(logits(runner(), job(PAGES, mixed_segments(), ROWS_ALONE)), clean)
