"""Organisations, their users, keys, limits and grants: what people change, each in its own transaction."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import IntegrityError

from vermilion.accounts import keys as key_text
from vermilion.accounts.access_keys import secret_of
from vermilion.accounts.admission import FREE, PLANS
from vermilion.accounts.clock import day_of, now_us, stamp
from vermilion.accounts.database import Database
from vermilion.accounts.keys import Key, RateLimits, Secret
from vermilion.accounts.money import written
from vermilion.accounts.refusals import AccountNotFound
from vermilion.accounts.schema import grants, keys, meters, organisations, users
from vermilion.accounts.transactions import key_of
from vermilion.errors import BadParameter, BadRequest

FREE_TOKENS = 10_000_000
"""What a new organisation is granted."""
_EMAIL = re.compile(r"[^@\s]{1,64}@[^@\s]{1,250}")
_LONGEST_NAME = 200


@dataclass(frozen=True, slots=True)
class NewOrganisation:
    """What an organisation begins with."""

    name: str
    email: str
    plan: str = FREE
    free_tokens: int = FREE_TOKENS
    limits: RateLimits = field(default_factory=RateLimits)
    signed_up: bool = False


@dataclass(frozen=True, slots=True)
class NewKey:
    name: str = ""
    scopes: frozenset[str] = frozenset(("generate", "jobs", "manage"))
    expires_at_us: int | None = None
    limits: RateLimits = field(default_factory=RateLimits)
    user_id: str | None = None
    signing: bytes = b""
    """The accounts' signing secret, for a key that signs requests as Amazon's clients do."""


@dataclass(frozen=True, slots=True)
class Organisation:
    id: str
    name: str
    plan: str
    disabled: bool
    created_at_us: int
    limits: RateLimits
    granted_tokens: int
    used_tokens: int
    month_spent: int
    """Picodollars, in the calendar month of the last request."""


def create_organisation(store: Database, new: NewOrganisation) -> tuple[str, str, Secret]:
    """Ids of the organisation and of its first user, and a first key. Raises `BadParameter`, `BadRequest`."""
    if not _EMAIL.fullmatch(new.email) or not new.email.isprintable():
        raise BadParameter("email", new.email, "an address such as name@example.org")
    if new.plan not in PLANS:
        raise BadParameter("plan", new.plan, " or ".join(PLANS))
    organisation_id, user_id = key_text.new_id("org_"), key_text.new_id("user_")
    now = now_us()
    try:
        with store.writing() as connection:
            connection.execute(
                organisations.insert().values(
                    id=organisation_id,
                    name=_name(new.name),
                    plan=new.plan,
                    created_at_us=now,
                    signed_up=new.signed_up,
                    disabled=False,
                    **asdict(new.limits),
                )
            )
            connection.execute(
                users.insert().values(
                    id=user_id, organisation_id=organisation_id, email=new.email.lower(), created_at_us=now
                )
            )
            connection.execute(_empty_meter(organisation_id, now))
            if new.free_tokens:
                _grant(connection, organisation_id, new.free_tokens, "sign-up")
            secret = _create_key(connection, organisation_id, NewKey(name="first", user_id=user_id))
    except IntegrityError:
        raise BadRequest(
            f"email: {new.email} has an account already.", "email", "email_already_registered"
        ) from None
    return organisation_id, user_id, secret


def num_signed_up(store: Database, since_us: int) -> int:
    """Organisations that signed up by themselves since then."""
    counted = sa.select(sa.func.count()).where(
        organisations.c.signed_up, organisations.c.created_at_us > since_us
    )
    with store.reading() as connection:
        return connection.execute(counted).scalar_one()


def organisation(store: Database, organisation_id: str) -> Organisation:
    """Raises `AccountNotFound`."""
    found = list_organisations(store, organisation_id)
    if not found:
        raise AccountNotFound("organisation", organisation_id)
    return found[0]


def list_organisations(store: Database, id: str | None = None) -> list[Organisation]:
    """Oldest first; at most the one of `id` where it is given."""
    used = (meters.c.granted_tokens, meters.c.used_tokens, meters.c.month_spent)
    wanted = (
        sa.select(organisations, *used)
        .join(meters, meters.c.subject == organisations.c.id)
        .where(sa.true() if id is None else organisations.c.id == id)
        .order_by(organisations.c.created_at_us, organisations.c.id)
    )
    with store.reading() as connection:
        return [
            Organisation(
                row.id,
                row.name,
                row.plan,
                row.disabled,
                row.created_at_us,
                RateLimits(row.requests_per_minute, row.tokens_per_minute, row.concurrency, row.budget),
                row.granted_tokens,
                row.used_tokens,
                row.month_spent,
            )
            for row in connection.execute(wanted)
        ]


def change_organisation(store: Database, organisation_id: str, **values: Any) -> None:
    """Sets columns of its row: `plan`, `disabled`, the fields of `RateLimits`. Raises `AccountNotFound`."""
    if values.get("plan", FREE) not in PLANS:
        raise BadParameter("plan", values["plan"], " or ".join(PLANS))
    _check_limits(values)
    _change(store, organisations, ("organisation", organisation_id), values)


def change_key(store: Database, key_id: str, **values: Any) -> None:
    """Sets limits of a key. Raises `AccountNotFound`."""
    _check_limits(values)
    _change(store, keys, ("key", key_id), values)


def grant(store: Database, organisation_id: str, num_tokens: int, reason: str) -> None:
    """Adds free tokens. Raises `AccountNotFound` and `BadParameter`."""
    if not 0 < num_tokens < 2**53:
        raise BadParameter("tokens", num_tokens, "whole numbers above 0")
    with store.writing() as connection:
        _find(connection, organisations, ("organisation", organisation_id))
        _grant(connection, organisation_id, num_tokens, reason)


def create_key(store: Database, organisation_id: str, new: NewKey) -> Secret:
    """Raises `AccountNotFound`."""
    with store.writing() as connection:
        _find(connection, organisations, ("organisation", organisation_id))
        return _create_key(connection, organisation_id, new)


def list_keys(store: Database, organisation_id: str) -> list[Key]:
    """Oldest first, revoked ones included."""
    wanted = sa.select(keys).where(keys.c.organisation_id == organisation_id)
    with store.reading() as connection:
        return [key_of(row) for row in connection.execute(wanted.order_by(keys.c.created_at_us, keys.c.id))]


def find_key(store: Database, key_id: str) -> Key | None:
    with store.reading() as connection:
        row = connection.execute(sa.select(keys).where(keys.c.id == key_id)).first()
    return key_of(row) if row else None


def revoke_key(store: Database, key_id: str, organisation_id: str | None = None) -> Key:
    """Ends a key at once; revoking it again changes nothing. Raises `AccountNotFound`, also for a key of
    another organisation than the given one."""
    with store.writing() as connection:
        row = _find(connection, keys, ("key", key_id))
        if organisation_id not in (None, row.organisation_id):
            raise AccountNotFound("key", key_id)
        unrevoked = sa.and_(keys.c.id == key_id, keys.c.revoked_at_us.is_(None))
        connection.execute(keys.update().where(unrevoked).values(revoked_at_us=now_us()))
        return key_of(_find(connection, keys, ("key", key_id)))


def key_body(key: Key) -> dict[str, Any]:
    """What may be shown of a key."""
    limits = key.limits
    return {
        "id": key.id,
        "name": key.name,
        "prefix": key.prefix,
        "scopes": sorted(key.scopes),
        "created_at": stamp(key.created_at_us),
        "expires_at": stamp(key.expires_at_us),
        "revoked_at": stamp(key.revoked_at_us),
        "limits": limits_body(limits),
    }


def limits_body(limits: RateLimits) -> dict[str, Any]:
    budget = None if limits.budget is None else written(limits.budget)
    return {**asdict(limits), "budget": budget}


def _create_key(connection: Connection, organisation_id: str, new: NewKey) -> Secret:
    id, now = key_text.new_id(), now_us()
    secret = secret_of(new.signing, id) if new.signing else key_text.new_secret()
    key = Key(
        id=id,
        organisation_id=organisation_id,
        name=_name(new.name),
        digest=key_text.digest(secret),
        scopes=key_text.checked_scopes(new.scopes),
        created_at_us=now,
        expires_at_us=new.expires_at_us,
        revoked_at_us=None,
        limits=new.limits,
    )
    connection.execute(
        keys.insert().values(
            id=key.id,
            organisation_id=organisation_id,
            user_id=new.user_id,
            name=key.name,
            digest=key.digest,
            scopes=" ".join(sorted(key.scopes)),
            created_at_us=now,
            expires_at_us=key.expires_at_us,
            **asdict(key.limits),
        )
    )
    connection.execute(_empty_meter(key.id, now))
    return Secret(key, secret)


def _empty_meter(subject: str, now: int) -> sa.Insert:
    return meters.insert().values(
        subject=subject,
        requests=0.0,
        tokens=0.0,
        at_us=now,
        granted_tokens=0,
        used_tokens=0,
        month=day_of(now)[:7],
        month_spent=0,
    )


def _grant(connection: Connection, organisation_id: str, num_tokens: int, reason: str) -> None:
    given = {"organisation_id": organisation_id, "tokens": num_tokens, "reason": reason[:_LONGEST_NAME]}
    connection.execute(grants.insert().values(**given, at_us=now_us()))
    more = {"granted_tokens": meters.c.granted_tokens + num_tokens}
    connection.execute(meters.update().where(meters.c.subject == organisation_id).values(**more))


def _change(store: Database, table: sa.Table, named: tuple[str, str], values: dict[str, Any]) -> None:
    with store.writing() as connection:
        _find(connection, table, named)
        connection.execute(table.update().where(table.c.id == named[1]).values(**values))


def _find(connection: Connection, table: sa.Table, named: tuple[str, str]) -> sa.Row[Any]:
    # PostgreSQL cannot even be asked for a text with NUL in it.
    wanted = sa.select(table).where(table.c.id == named[1])
    row = connection.execute(wanted).first() if named[1].isprintable() else None
    if row is None:
        raise AccountNotFound(*named)
    return row


def _check_limits(values: dict[str, Any]) -> None:
    names: Iterable[str] = RateLimits.__dataclass_fields__
    RateLimits(**{name: values[name] for name in names if name in values})


def _name(name: str) -> str:
    if len(name) > _LONGEST_NAME or not name.isprintable():
        raise BadParameter("name", name, f"at most {_LONGEST_NAME} printable characters")
    return name
