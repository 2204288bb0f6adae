"""Accounts as a running service uses them: whose key it is, what may begin, what it came to."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar

from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from vermilion.accounts import access_keys, organisations, transactions
from vermilion.accounts import keys as key_text
from vermilion.accounts.accounts_config import AccountsConfig
from vermilion.accounts.clock import now_us
from vermilion.accounts.database import Database, open_store
from vermilion.accounts.keys import Key
from vermilion.accounts.meters import Standing
from vermilion.accounts.money import Price
from vermilion.accounts.refusals import AccountsUnavailable, InvalidKey, NotPermitted, RateLimited
from vermilion.accounts.transactions import LedgerRequest, Release, Settlement
from vermilion.accounts.writer import LEASE_S, Writer
from vermilion.types import Usage

_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")

_REMEMBERED_S = 1.0
"""How long a key is known without another look. Requests for text read it again when they are admitted."""
_MOST_REMEMBERED = 10_000

_log = logging.getLogger(__name__)


class Accounts:
    """Open accounts of one process; `close` returns once everything is written."""

    def __init__(self, store: Database, config: AccountsConfig | None = None) -> None:
        self.store = store
        self.config = config or AccountsConfig()
        self.writer = Writer(store, key_text.new_id("server_"), LEASE_S)
        self._remembered: dict[str, tuple[float, Key | None]] = {}
        self._signing = access_keys.signing_secret(store)

    @classmethod
    def open(cls, config: AccountsConfig) -> Accounts:
        """Raises `ConfigError`."""
        return cls(open_store(config.url), config)

    def close(self) -> None:
        self.writer.close()
        self.store.close()

    async def call(
        self,
        work: Callable[Concatenate[Database, _Given], _Result],
        *args: _Given.args,
        **kwargs: _Given.kwargs,
    ) -> _Result:
        """What a function of `organisations` or `reports` gives, from a thread. Raises what it raises, and
        `AccountsUnavailable`."""
        try:
            return await asyncio.to_thread(work, self.store, *args, **kwargs)
        except (OperationalError, InterfaceError, PoolTimeout) as error:
            _log.warning("accounts: cannot be reached: %s", type(error).__name__)
            raise AccountsUnavailable() from None

    async def authenticate(self, token: str | None) -> Key:
        """The key of a client. Raises `InvalidKey`."""
        if not token:
            raise InvalidKey("An API key is needed: send it as Authorization: Bearer, x-api-key or api-key.")
        halves = key_text.parsed(token)
        key = await self._find(halves[0]) if halves else None
        if not key_text.matches(key, halves[1] if halves else ""):
            raise InvalidKey("Incorrect API key provided.")
        assert key is not None
        return _good(key)

    async def known(self, key_id: str) -> Key:
        """The key of somebody who has shown it before. Raises `InvalidKey`."""
        return _good(await self._find(key_id))

    async def signer(self, access_key: str) -> tuple[Key, str]:
        """The key that Amazon's clients name by `access_key`, and its secret. Raises `InvalidKey`."""
        if self._signing is None:
            # The first access key of a database makes it.
            self._signing = await asyncio.to_thread(access_keys.signing_secret, self.store)
        key_id = access_keys.key_id_of(access_key)
        key = await self._find(key_id) if key_id else None
        secret = access_keys.secret_of(self._signing or b"", key_id or "")
        if not key_text.matches(key, secret) or self._signing is None:
            raise InvalidKey("The access key is not one of this service.")
        assert key is not None
        if not key.good(now_us()):
            raise InvalidKey("This access key is revoked or has expired.")
        return key, secret

    async def price(self, model: str) -> Price:
        """The price in force."""

        def read(store: Database) -> Price:
            with store.reading() as connection:
                return transactions.price_of(connection, model, now_us())

        return await self.call(read)

    async def _find(self, key_id: str) -> Key | None:
        moment_s = time.monotonic()
        read_s, key = self._remembered.get(key_id, (0.0, None))
        if moment_s - read_s < _REMEMBERED_S and key is not None:
            return key
        key = await self.call(organisations.find_key, key_id)
        if key is not None:
            if len(self._remembered) >= _MOST_REMEMBERED:
                self._remembered.clear()
            self._remembered[key_id] = (moment_s, key)
        return key


def _good(key: Key | None) -> Key:
    if key is None or not key.good(now_us()):
        raise InvalidKey("This API key is revoked or has expired.")
    return key


class Visit:
    """One HTTP request of a key's owner. Each call of a model within it is one row of the ledger."""

    def __init__(self, accounts: Accounts, key: Key, request_id: str, route: str) -> None:
        self.accounts = accounts
        self.key = key
        self.standing: Standing | None = None
        """What the key has left, once a request of it was admitted or refused."""
        self.idempotency_key: str | None = None
        self.body_digest = ""
        self.replayed = False
        self.signature: Callable[[bytes], bytes] | None = None
        """The check of a signed request against its body, which gives its content; nothing begins before."""
        self._request_id = request_id
        self._route = route
        self._num_calls = 0

    def require(self, *scopes: str) -> None:
        """Any of them. Raises `NotPermitted`."""
        if not self.key.scopes.intersection(scopes):
            held = ", ".join(sorted(self.key.scopes))
            raise NotPermitted(f"This API key has the scopes {held}; this needs {' or '.join(scopes)}.")

    async def begin(self, num_prompt_tokens: int) -> tuple[LedgerRequest, str | None]:
        """Admits a call; with it the answer that its idempotency key already has, if any.

        Raises the errors of `refusals.py`.
        """
        assert self.signature is None, "a signed request whose body nobody checked"
        self._num_calls += 1
        suffix = "" if self._num_calls == 1 else f".{self._num_calls}"
        named = self.idempotency_key
        request = LedgerRequest(
            id=f"{self._request_id}{suffix}",
            key_id=self.key.id,
            organisation_id=self.key.organisation_id,
            route=self._route,
            num_prompt_tokens=num_prompt_tokens,
            idempotency_key=f"{named}{suffix}" if named else None,
            body_digest=self.body_digest,
            started_at_us=now_us(),
        )
        try:
            admitted = await self.accounts.writer.admit(request)
        except RateLimited as error:
            self.standing = error.standing
            raise
        self.replayed = admitted.replay is not None
        self.standing = None if self.replayed else admitted.standing
        return request, admitted.replay

    async def settle(self, request: LedgerRequest, model: str, usage: Usage, reply: str | None) -> None:
        """Returns once the usage is durable. Raises `AccountsUnavailable`."""
        await self.accounts.writer.settle(Settlement(request, model, "finished", usage, reply))

    def end(self, request: LedgerRequest, model: str, usage: Usage, outcome: str) -> None:
        """Records soon what an aborted or failed call has used."""
        self.accounts.writer.put(Settlement(request, model, outcome, usage))

    def give_back(self, request: LedgerRequest) -> None:
        """Forgets a call that the engine did not take."""
        self.accounts.writer.put(Release(request))
