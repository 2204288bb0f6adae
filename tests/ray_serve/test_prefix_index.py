"""Which replica a prompt goes to."""

from __future__ import annotations

from vermilion.ray_serve.prefix_index import STEP, PrefixIndex, links_of
from vermilion.types import Request

IDLE = {"a": 0, "b": 0}


def asking(*tokens: int, adapter: str = "", salt: str = "") -> list[int]:
    return links_of(Request("one", tokens, adapter=adapter, cache_salt=salt))


def test_links_stand_for_whole_steps_of_the_beginning() -> None:
    short, long = asking(*range(STEP)), asking(*range(3 * STEP + 1))
    assert (len(short), len(long)) == (1, 3) and long[:1] == short
    assert asking(*range(STEP - 1)) == []
    assert asking(*range(STEP), 7)[0] == short[0] != asking(*range(1, STEP + 1))[0]


def test_nothing_is_shared_between_organisations_or_adapters() -> None:
    tokens = tuple(range(2 * STEP))
    chains = [asking(*tokens), asking(*tokens, salt="acme"), asking(*tokens, adapter="legal")]
    links = [set(chain) for chain in chains]
    assert not (links[0] & links[1] or links[0] & links[2] or links[1] & links[2])


def test_the_longest_beginning_in_common_comes_first_unless_it_is_far_busier() -> None:
    index = PrefixIndex(imbalance=2)
    index.add(asking(*range(4 * STEP)), "b")
    index.add(asking(*range(2 * STEP)), "a")
    links = asking(*range(4 * STEP))
    assert index.rank(links, IDLE) == ["b", "a"]
    assert index.rank(links, {"a": 1, "b": 3}) == ["b", "a"]
    assert index.rank(links, {"a": 1, "b": 4}) == ["a", "b"]
    assert index.rank(asking(*range(1, 200)), {"a": 2, "b": 1}) == ["b", "a"]


def test_an_adapter_goes_where_it_was_read() -> None:
    index = PrefixIndex(imbalance=2)
    index.add(asking(1, 2, adapter="legal"), "b")
    assert index.rank(asking(3, 4, adapter="legal"), {"a": 0, "b": 1}) == ["b", "a"]
    assert index.rank(asking(3, 4, adapter="other"), {"a": 0, "b": 1}) == ["a", "b"]


def test_a_replica_that_is_gone_is_forgotten() -> None:
    index = PrefixIndex(imbalance=2)
    links = asking(*range(2 * STEP))
    index.add(links, "a")
    index.keep(["b"])
    index.add(links[:1], "b")
    assert index.rank(links, IDLE)[0] == "b"


def test_old_beginnings_make_room_and_those_in_use_stay() -> None:
    index = PrefixIndex(imbalance=2, capacity=4)
    first, second, third = (asking(*range(number, number + 2 * STEP)) for number in (0, 500, 900))
    index.add(first, "a")
    index.add(second, "a")
    index.add(first, "a")
    index.add(third, "b")
    assert index.rank(first, {"a": 1, "b": 0})[0] == "a"
    assert index.rank(second, {"a": 1, "b": 0})[0] == "b"
