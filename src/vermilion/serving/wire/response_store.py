"""Responses that clients may ask for again or go on from, in memory and for a while."""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vermilion.errors import BadRequest, VermilionError
from vermilion.serving.wire.responses_bodies import Item

_ITEM_BYTES = 1024
"""What an item takes beside its texts, at most."""
_REFERENCE = "item_reference"
_SHARES = 4
"""One owner may take this part of the store, so that none empties it of all others' responses."""


class ResponseNotFound(VermilionError):
    status = 404
    kind = "invalid_request_error"

    def __init__(self, id: str) -> None:
        super().__init__(f"Response with id '{id[:100]}' not found. Responses are kept for a while only.")


class PreviousResponseNotFound(BadRequest):
    def __init__(self, id: str) -> None:
        super().__init__(
            f"Previous response with id '{id[:100]}' not found. Responses are kept for a while only; "
            "send the conversation so far as `input`.",
            "previous_response_id",
            "previous_response_not_found",
        )


@dataclass(frozen=True, slots=True)
class StoredResponse:
    id: str
    body: bytes
    """The response as it was sent."""
    conversation: tuple[Item, ...]
    """All before it, and what it said."""
    num_said: int = 0
    """Items at the end of the conversation that it said."""

    @property
    def size_bytes(self) -> int:
        texts = sum(
            len(text.encode("utf-8", "replace"))
            for item in self.conversation
            for text in (item.content, item.arguments, item.input, item.output)
        )
        return len(self.body) + texts + _ITEM_BYTES * len(self.conversation)


class ResponseStore:
    """The youngest responses of every owner, at most `max_bytes` together and none older than `max_age_s`."""

    def __init__(self, max_bytes: int, max_age_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_bytes = max_bytes
        self._max_age_s = max_age_s
        self._clock = clock
        self._kept: OrderedDict[tuple[str, str], tuple[float, int, StoredResponse]] = OrderedDict()
        self._num_bytes: Counter[str] = Counter()

    @property
    def num_bytes(self) -> int:
        return self._num_bytes.total()

    def put(self, owner: str, response: StoredResponse) -> None:
        """Keeps it, unless it alone is too much; the owner's oldest, then anybody's, go for lack of room."""
        size_bytes, share_bytes = response.size_bytes, self._max_bytes // _SHARES
        if size_bytes > share_bytes:
            return
        self._kept[owner, response.id] = (self._clock(), size_bytes, response)
        self._num_bytes[owner] += size_bytes
        while self._num_bytes[owner] > share_bytes:
            self._drop(next(key for key in self._kept if key[0] == owner))
        while self.num_bytes > self._max_bytes:
            self._drop(next(iter(self._kept)))

    def get(self, owner: str, id: str) -> StoredResponse:
        """Raises `ResponseNotFound`, also for another owner's."""
        self._expire()
        try:
            return self._kept[owner, id][2]
        except KeyError:
            raise ResponseNotFound(id) from None

    def delete(self, owner: str, id: str) -> None:
        """Raises `ResponseNotFound`."""
        self.get(owner, id)
        self._drop((owner, id))

    def conversation(self, owner: str, previous: str | None, items: Sequence[Item]) -> list[Item]:
        """`items` behind the conversation of the `previous` response, with references resolved.

        Raises `PreviousResponseNotFound` and `BadRequest`.
        """
        try:
            before = self.get(owner, previous).conversation if previous else ()
        except ResponseNotFound as error:
            raise PreviousResponseNotFound(previous or "") from error
        if not any(item.type == _REFERENCE for item in items):
            return [*before, *items]
        self._expire()
        known = {
            item.id: item
            for (of, _), (_, _, response) in self._kept.items()
            for item in response.conversation
            if of == owner and item.id
        }
        for item in items:
            if item.type == _REFERENCE and item.id not in known:
                raise BadRequest(
                    f"Item with id '{(item.id or '')[:100]}' not found. Items are kept with their responses, "
                    "for a while only; send the item itself.",
                    "input",
                )
        return [*before, *(known[item.id or ""] if item.type == _REFERENCE else item for item in items)]

    def _expire(self) -> None:
        while self._kept:
            key, (since_s, _, _) = next(iter(self._kept.items()))
            if self._clock() - since_s <= self._max_age_s:
                return
            self._drop(key)

    def _drop(self, key: tuple[str, str]) -> None:
        self._num_bytes[key[0]] -= self._kept.pop(key)[1]
        if not self._num_bytes[key[0]]:
            del self._num_bytes[key[0]]
