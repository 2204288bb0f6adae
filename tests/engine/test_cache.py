"""The page cache hands out only pages whose content is what was asked for."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from vermilion.engine.cache import PageCache

SIZE = 2
PAGES = 9
TEXTS = st.lists(st.sampled_from([4, 5]), min_size=0, max_size=10).map(tuple)


class Use(RuleBasedStateMachine):
    """Holders that store a text page by page, share what is there and let go in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = PageCache(PAGES, SIZE)
        self.content: dict[int, tuple[int, ...]] = {}
        """The whole text up to the end of each page that was ever written."""
        self.held: list[list[int]] = []

    @rule(text=TEXTS, most=st.integers(0, 10))
    def hold(self, text: tuple[int, ...], most: int) -> None:
        pages, digest = self.cache.match(text, most)
        assert len(pages) * SIZE <= min(most, len(text))
        for index, page in enumerate(pages):
            assert self.content[page] == text[: (index + 1) * SIZE]
        whole = len(text) // SIZE
        available = self.cache.num_available
        new = self.cache.allocate(whole - len(pages), after=pages[-1] if pages else -1)
        assert (new is None) == (whole - len(pages) > available)
        if new is None:
            self.cache.release(pages)
            return
        assert len(set(new)) == len(new) and not {page for other in self.held for page in other} & set(new)
        for index, page in enumerate(new, len(pages)):
            self.content[page] = text[: (index + 1) * SIZE]
            digest = self.cache.remember(page, digest, text[index * SIZE : (index + 1) * SIZE])
        self.held.append([*pages, *new])

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def let_go(self, data: st.DataObject) -> None:
        self.cache.release(self.held.pop(data.draw(st.integers(0, len(self.held) - 1))))

    @invariant()
    def adds_up(self) -> None:
        self.cache.check()
        held = {page for pages in self.held for page in pages}
        assert self.cache.num_held == len(held)
        assert self.cache.num_available == PAGES - len(held)


TestUse = Use.TestCase
TestUse.settings = settings(max_examples=60, stateful_step_count=30)


def test_a_released_text_is_found_again_up_to_its_last_whole_page() -> None:
    cache = PageCache(8, 4)
    text = tuple(range(11))
    pages = cache.allocate(3)
    assert pages is not None
    digest = cache.root
    for index in range(2):
        digest = cache.remember(pages[index], digest, text[index * 4 : index * 4 + 4])
    cache.release(pages)
    assert cache.num_idle == 2
    assert cache.match(text, 11) == (pages[:2], digest)
    assert cache.num_idle == 0
    again, _ = cache.match(text, 7)
    assert again == pages[:1]
    assert cache.match((*text[:3], 99, *text[4:]), 11)[0] == []


def test_the_oldest_idle_page_goes_first_and_a_prefix_outlives_what_follows_it() -> None:
    cache = PageCache(4, 1)
    for text in ((1, 2), (3,)):
        pages, digest = cache.allocate(len(text)), cache.root
        assert pages is not None
        for page, token in zip(pages, text, strict=True):
            digest = cache.remember(page, digest, (token,))
        cache.release(pages)
    assert cache.allocate(2) is not None
    assert [len(cache.match(text, 2)[0]) for text in ((1, 2), (3,))] == [1, 1]


def test_equal_pages_behind_different_text_or_under_another_salt_differ() -> None:
    cache, salted = PageCache(4, 1), PageCache(4, 1, salt=b"other")
    assert cache.root != salted.root
    pages = cache.allocate(2)
    assert pages is not None
    cache.remember(pages[1], cache.remember(pages[0], cache.root, (1,)), (7,))
    assert cache.match((7,), 1)[0] == []
    assert cache.match((1, 7), 2)[0] == pages


def test_what_is_stored_under_one_salt_is_not_found_under_another() -> None:
    cache = PageCache(4, 1)
    _, root = cache.match((), 0, "acme")
    pages = cache.allocate(1)
    assert pages is not None
    cache.remember(pages[0], root, (1,))
    assert [cache.match((1,), 1, salt)[0] for salt in ("", "other", "acme")] == [[], [], pages]


def test_nothing_is_shared_when_sharing_is_off() -> None:
    cache = PageCache(2, 1, share=False)
    pages = cache.allocate(1)
    assert pages is not None
    cache.remember(pages[0], cache.root, (1,))
    assert cache.match((1,), 1)[0] == []
    cache.release(pages)
    assert cache.num_idle == 0 and cache.num_available == 2


def test_a_request_grows_in_one_piece_where_it_can() -> None:
    cache = PageCache(12, 1)
    first, second = cache.allocate(2, expect=6), cache.allocate(2, expect=6)
    assert first is not None and second is not None
    cache.release(cache.allocate(1) or [])
    grown = cache.allocate(4, after=first[-1])
    assert grown is not None
    assert first + grown == list(range(first[0], first[0] + 2)) + grown
    lone = PageCache(12, 1)
    start = lone.allocate(3) or []
    assert (lone.allocate(2, after=start[-1]) or []) == [start[-1] + 1, start[-1] + 2]
