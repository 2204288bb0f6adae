"""Key/value memory as pages of token slots: who owns them, who shares them, what they hold.

Pure bookkeeping. A page is in exactly one state: free, held by one or more requests, or idle (held by none
but remembered as the keys of some prefix, and taken back least-recently-used first when memory is short).
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence

Digest = bytes


def chain(parent: Digest, tokens: Sequence[int]) -> Digest:
    """Name of a page: everything its keys depend on, which is all tokens up to its end."""
    return hashlib.blake2b(parent + array("q", tokens).tobytes(), digest_size=16).digest()


class PageCache:
    """Pages 0 to num_pages - 1 of `page_size` tokens each."""

    def __init__(self, num_pages: int, page_size: int, *, share: bool = True, salt: bytes = b"") -> None:
        self.num_pages = num_pages
        self.page_size = page_size
        self.share = share
        self.root = chain(salt, ())
        self._holders = [0] * num_pages
        self._free = bytearray(b"\x01" * num_pages)
        self._num_free = num_pages
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._by_digest: dict[Digest, int] = {}
        self._digests: dict[int, Digest] = {}

    @property
    def num_available(self) -> int:
        """Pages that `allocate` could hand out."""
        return self._num_free + len(self._idle)

    @property
    def num_slots(self) -> int:
        return self.num_pages * self.page_size

    @property
    def num_idle(self) -> int:
        return len(self._idle)

    @property
    def num_held(self) -> int:
        return self.num_pages - self.num_available

    def match(self, tokens: Sequence[int], max_tokens: int, salt: str = "") -> tuple[list[int], Digest]:
        """Take hold of the longest remembered run of whole pages at the start of `tokens`, `max_tokens`
        at the most. Returns the pages and the digest of the last. What was stored under one salt, such as
        an adapter's name, is not found under another."""
        pages: list[int] = []
        digest = chain(self.root + salt.encode(), ()) if salt else self.root
        size = self.page_size
        while self.share and (len(pages) + 1) * size <= max_tokens:
            following = chain(digest, tokens[len(pages) * size : (len(pages) + 1) * size])
            page = self._by_digest.get(following)
            if page is None:
                break
            digest = following
            self._hold(page)
            pages.append(page)
        return pages, digest

    def allocate(self, count: int, after: int = -1, expect: int = 0) -> list[int] | None:
        """`count` pages for one holder, or None if there are not so many.

        Prefers the pages right behind page `after`, and for a first allocation a free run of `expect` pages,
        so that a request's keys tend to lie in one piece and can be read without a gather.
        """
        if count > self.num_available:
            return None
        pages: list[int] = []
        for _ in range(count):
            page = self._pick(after, max(expect, count) - len(pages))
            self._forget(page)
            self._holders[page] = 1
            pages.append(page)
            after = page
        return pages

    def release(self, pages: Sequence[int]) -> None:
        """Give up one hold on each page. A remembered page stays idle, any other becomes free."""
        for page in reversed(pages):
            assert self._holders[page] > 0, "page released twice"
            self._holders[page] -= 1
            if self._holders[page]:
                continue
            if page in self._digests:
                # Last pages first: a prefix is worth more than what follows it.
                self._idle[page] = None
            else:
                self._free[page] = 1
                self._num_free += 1

    def flush(self) -> None:
        """Forget what idle pages hold: nothing of finished requests is shared any more."""
        while self._idle:
            page, _ = self._idle.popitem(last=False)
            self._forget(page)
            self._free[page] = 1
            self._num_free += 1

    def remember(self, page: int, parent: Digest, tokens: Sequence[int]) -> Digest:
        """Record that a held page now stores the keys of `tokens` behind `parent`; returns its digest."""
        digest = chain(parent, tokens)
        if self.share and page not in self._digests and digest not in self._by_digest:
            self._digests[page] = digest
            self._by_digest[digest] = page
        return digest

    def check(self) -> None:
        """Raise AssertionError unless every page is in exactly one state."""
        for page in range(self.num_pages):
            states = (self._holders[page] > 0) + self._free[page] + (page in self._idle)
            assert states == 1, f"page {page} is in {states} states"
        assert self._num_free == sum(self._free)
        assert all(self._by_digest[digest] == page for page, digest in self._digests.items())
        assert len(self._by_digest) == len(self._digests)

    def _hold(self, page: int) -> None:
        if self._holders[page] == 0:
            del self._idle[page]
        self._holders[page] += 1

    def _pick(self, after: int, run: int) -> int:
        """A page to hand out: the neighbour of `after`, a free run, any free page, the oldest idle one."""
        if 0 <= after < self.num_pages - 1 and self._free[after + 1]:
            return self._take(after + 1)
        while self._num_free and run:
            start = self._free.find(b"\x01" * run)
            if start >= 0:
                return self._take(start)
            run //= 2
        page, _ = self._idle.popitem(last=False)
        return page

    def _take(self, page: int) -> int:
        self._free[page] = 0
        self._num_free -= 1
        return page

    def _forget(self, page: int) -> None:
        digest = self._digests.pop(page, None)
        if digest is not None:
            del self._by_digest[digest]
