"""How much more than its grant or its budget an organisation can use: what was running when it was reached.

Servers decide one after another, in the database, so their number is not in the bound: N requests that run
at once, on however many servers, of at most L tokens each, use at most N * L - 1 tokens too many.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator

import pytest

from vermilion.accounts import organisations
from vermilion.accounts.database import Database
from vermilion.accounts.keys import RateLimits
from vermilion.accounts.organisations import NewOrganisation, Secret
from vermilion.accounts.refusals import AccountInactive, BudgetReached, RateLimited
from vermilion.accounts.transactions import LedgerRequest, Settlement
from vermilion.accounts.writer import Writer
from vermilion.types import Usage

pytestmark = pytest.mark.anyio
NUM_SERVERS = 3
MOST_RUNNING = 5
LONGEST = 40
PRICE = 1_000_000
"""Picodollars per output token, where no other price is set."""


@pytest.fixture
async def servers(store: Database) -> AsyncIterator[list[Writer]]:
    opened = [Writer(store, f"server-{number}") for number in range(NUM_SERVERS)]
    yield opened
    for one in opened:
        await asyncio.to_thread(one.close)


class Asking:
    """Requests of one organisation, each on the next server."""

    def __init__(self, secret: Secret, servers: list[Writer]) -> None:
        self._key = secret.key
        self._servers = itertools.cycle(servers)
        self._numbers = itertools.count()

    async def admit(self) -> LedgerRequest:
        id = f"req-{next(self._numbers)}"
        request = LedgerRequest(id, self._key.id, self._key.organisation_id, "/v1/x", 0)
        await next(self._servers).admit(request)
        return request

    async def settle(self, request: LedgerRequest, num_tokens: int) -> None:
        usage = Usage(0, 0, num_tokens, 1)
        await next(self._servers).settle(Settlement(request, "m", "finished", usage))


async def test_free_tokens_are_overspent_by_what_was_running_and_no_more(
    store: Database, servers: list[Writer]
) -> None:
    """The worst case: one token is left when all that may run at once begin their longest answers."""
    granted = 100
    new = NewOrganisation("A", "a@x.org", free_tokens=granted, limits=RateLimits(concurrency=MOST_RUNNING))
    id, _, secret = organisations.create_organisation(store, new)
    asking = Asking(secret, servers)
    await asking.settle(await asking.admit(), granted - 1)
    running = [await asking.admit() for _ in range(MOST_RUNNING)]
    for _ in range(NUM_SERVERS):
        with pytest.raises(RateLimited):
            await asking.admit()
    for number, request in enumerate(running):
        await asking.settle(request, LONGEST)
        with pytest.raises(AccountInactive):
            await asking.admit()
        assert organisations.organisation(store, id).used_tokens == granted - 1 + (number + 1) * LONGEST
    assert organisations.organisation(store, id).used_tokens - granted == MOST_RUNNING * LONGEST - 1


async def test_a_budget_is_overspent_by_what_was_running_and_no_more(
    store: Database, servers: list[Writer]
) -> None:
    limits = RateLimits(concurrency=MOST_RUNNING, budget=10 * PRICE + 1)
    new = NewOrganisation("A", "a@x.org", plan="paid", free_tokens=0, limits=limits)
    id, _, secret = organisations.create_organisation(store, new)
    asking = Asking(secret, servers)
    await asking.settle(await asking.admit(), 10)
    running = [await asking.admit() for _ in range(MOST_RUNNING)]
    for request in running:
        await asking.settle(request, LONGEST)
        with pytest.raises(BudgetReached):
            await asking.admit()
    assert organisations.organisation(store, id).month_spent - 10 * PRICE == MOST_RUNNING * LONGEST * PRICE


@pytest.mark.parametrize("seed", range(3))
async def test_no_order_of_beginnings_and_ends_overspends_by_more(
    store: Database, servers: list[Writer], seed: int
) -> None:
    chance, granted = random.Random(seed), 400
    new = NewOrganisation("A", "a@x.org", free_tokens=granted, limits=RateLimits(concurrency=MOST_RUNNING))
    id, _, secret = organisations.create_organisation(store, new)
    asking = Asking(secret, servers)
    running: list[LedgerRequest] = []
    used = 0

    async def begin() -> None:
        try:
            running.append(await asking.admit())
        except (RateLimited, AccountInactive) as refusal:
            assert isinstance(refusal, AccountInactive) == (used >= granted)
        else:
            assert used < granted

    async def end() -> None:
        nonlocal used
        request, num_tokens = running.pop(chance.randrange(len(running))), chance.randint(1, LONGEST)
        used += num_tokens
        await asking.settle(request, num_tokens)

    while used < granted or running:
        await asyncio.gather(*(begin() for _ in range(chance.randint(1, 4))))
        for _ in range(chance.randrange(min(3, len(running)) + 1)):
            await end()
    assert organisations.organisation(store, id).used_tokens == used
    assert granted <= used <= granted - 1 + MOST_RUNNING * LONGEST
