"""What is kept of responses: how much, how long, for whom."""

from __future__ import annotations

import pytest

from vermilion.serving.wire.response_store import ResponseNotFound, ResponseStore, StoredResponse
from vermilion.serving.wire.responses_bodies import Item

SAID = Item.model_validate({"role": "assistant", "content": "a" * 1000, "id": "msg_1"})


def response(id: str, *items: Item) -> StoredResponse:
    return StoredResponse(id, b"{}", items)


def kept(store: ResponseStore, owner: str, *ids: str) -> list[str]:
    found = []
    for id in ids:
        try:
            found.append(store.get(owner, id).id)
        except ResponseNotFound:
            continue
    return found


def test_an_owner_has_room_for_a_quarter_and_loses_the_oldest() -> None:
    size_bytes = response("r1", SAID).size_bytes
    assert size_bytes >= 1000
    store = ResponseStore(4 * 2 * size_bytes, max_age_s=100)
    for id in ("r1", "r2", "r3"):
        store.put("ada", response(id, SAID))
    assert kept(store, "ada", "r1", "r2", "r3") == ["r2", "r3"]
    assert store.num_bytes == 2 * size_bytes


def test_owners_together_fill_the_store_and_no_more() -> None:
    size_bytes = response("r1", SAID).size_bytes
    store = ResponseStore(4 * size_bytes, max_age_s=100)
    for owner in ("a", "b", "c", "d", "e"):
        store.put(owner, response("r1", SAID))
    assert [owner for owner in "abcde" if kept(store, owner, "r1")] == ["b", "c", "d", "e"]
    assert store.num_bytes == 4 * size_bytes


def test_what_alone_is_too_much_is_not_kept() -> None:
    store = ResponseStore(4 * 2000, max_age_s=100)
    store.put("ada", response("r1"))
    store.put("ada", response("r2", SAID))
    assert (kept(store, "ada", "r1", "r2"), store.num_bytes) == (["r1"], 2)


def test_age_ends_a_response() -> None:
    now_s = 0.0
    store = ResponseStore(1 << 20, max_age_s=10, clock=lambda: now_s)
    store.put("ada", response("r1", SAID))
    now_s = 10.0
    assert kept(store, "ada", "r1") == ["r1"]
    now_s = 10.5
    assert kept(store, "ada", "r1") == []
    assert store.num_bytes == 0


def test_nobody_reads_deletes_or_continues_anothers() -> None:
    store = ResponseStore(1 << 20, max_age_s=100)
    store.put("ada", response("r1", SAID))
    reference = Item.model_validate({"type": "item_reference", "id": "msg_1"})
    assert store.conversation("ada", None, [reference]) == [SAID]
    for ask in (
        lambda: store.get("bob", "r1"),
        lambda: store.delete("bob", "r1"),
        lambda: store.conversation("bob", "r1", []),
        lambda: store.conversation("bob", None, [reference]),
    ):
        with pytest.raises(Exception, match="not found"):
            ask()
    assert kept(store, "ada", "r1") == ["r1"]
