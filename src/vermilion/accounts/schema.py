"""The tables. Times are microseconds since 1970 (UTC), money is whole picodollars (1e-12 of a dollar).

Picodollars make every sum exact on every database: a price of $0.000001 per million tokens is one of them
per token. What changes with each request stands in `meters` and `admissions`; `ledger`, `grants` and
`prices` are only ever added to, which triggers of the database enforce.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    }
)
APPEND_ONLY = ("ledger", "grants", "prices")
_SERIAL = BigInteger().with_variant(Integer, "sqlite")
"""SQLite numbers rows only in a column of the type INTEGER."""


def _limits() -> list[Column[int]]:
    """Null is no limit. The budget is picodollars per calendar month."""
    return [
        Column("requests_per_minute", BigInteger),
        Column("tokens_per_minute", BigInteger),
        Column("concurrency", BigInteger),
        Column("budget", BigInteger),
    ]


organisations = Table(
    "organisations",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("name", String(200), nullable=False),
    Column("plan", String(10), nullable=False),
    Column("created_at_us", BigInteger, nullable=False),
    Column("signed_up", Boolean, nullable=False),
    Column("disabled", Boolean, nullable=False),
    *_limits(),
    Index(None, "created_at_us"),
)

users = Table(
    "users",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("organisation_id", ForeignKey("organisations.id"), nullable=False),
    Column("email", String(320), nullable=False),
    Column("created_at_us", BigInteger, nullable=False),
    UniqueConstraint("email"),
)

keys = Table(
    "keys",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("organisation_id", ForeignKey("organisations.id"), nullable=False),
    Column("user_id", ForeignKey("users.id")),
    Column("name", String(200), nullable=False),
    Column("digest", String(64), nullable=False),
    Column("scopes", String(200), nullable=False),
    Column("created_at_us", BigInteger, nullable=False),
    Column("expires_at_us", BigInteger),
    Column("revoked_at_us", BigInteger),
    *_limits(),
    Index(None, "organisation_id"),
)

meters = Table(
    "meters",
    metadata,
    Column("subject", String(40), primary_key=True),
    Column("requests", Float(53), nullable=False),
    Column("tokens", Float(53), nullable=False),
    Column("at_us", BigInteger, nullable=False),
    Column("granted_tokens", BigInteger, nullable=False),
    Column("used_tokens", BigInteger, nullable=False),
    Column("month", String(7), nullable=False),
    Column("month_spent", BigInteger, nullable=False),
)
"""One row per organisation and per key: how full its buckets were `at_us`, and running sums."""

grants = Table(
    "grants",
    metadata,
    Column("id", _SERIAL, primary_key=True),
    Column("organisation_id", ForeignKey("organisations.id"), nullable=False),
    Column("tokens", BigInteger, nullable=False),
    Column("reason", String(200), nullable=False),
    Column("at_us", BigInteger, nullable=False),
    Index(None, "organisation_id"),
)

prices = Table(
    "prices",
    metadata,
    Column("id", _SERIAL, primary_key=True),
    Column("model", String(200), nullable=False),
    Column("effective_at_us", BigInteger, nullable=False),
    Column("input", BigInteger, nullable=False),
    Column("cached_input", BigInteger, nullable=False),
    Column("output", BigInteger, nullable=False),
    UniqueConstraint("model", "effective_at_us"),
)
"""Picodollars per token; the model `*` stands for every model without a price of its own."""

admissions = Table(
    "admissions",
    metadata,
    Column("request_id", String(80), primary_key=True),
    Column("organisation_id", String(40), nullable=False),
    Column("key_id", String(40), nullable=False),
    Column("server", String(40), nullable=False),
    Column("idempotency_key", String(255)),
    Column("expires_at_us", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)
"""Requests under way, on a lease that their server renews: those of a dead server run out. There are never
many, so no index beside the key: each would be one more page to write for every request."""

ledger = Table(
    "ledger",
    metadata,
    Column("id", _SERIAL, primary_key=True),
    Column("request_id", String(80), nullable=False),
    Column("organisation_id", ForeignKey("organisations.id"), nullable=False),
    Column("key_id", ForeignKey("keys.id"), nullable=False),
    Column("model", String(200), nullable=False),
    Column("route", String(200), nullable=False),
    Column("outcome", String(10), nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("passes", BigInteger, nullable=False),
    Column("charged_input", BigInteger, nullable=False),
    Column("charged_cached", BigInteger, nullable=False),
    Column("charged_output", BigInteger, nullable=False),
    Column("price_id", BigInteger, ForeignKey("prices.id"), nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("started_at_us", BigInteger, nullable=False),
    Column("settled_at_us", BigInteger, nullable=False),
    Column("day", String(10), nullable=False),
    Column("idempotency_key", String(255)),
    UniqueConstraint("request_id"),
    Index(None, "organisation_id", "day"),
    Index(
        "uq_ledger_idempotency_key",
        "organisation_id",
        "idempotency_key",
        unique=True,
        sqlite_where=text("idempotency_key IS NOT NULL"),
        postgresql_where=text("idempotency_key IS NOT NULL"),
    ),
)
"""One row per answered, aborted or failed request. `charged_*` tokens are those no grant covered."""

replies = Table(
    "replies",
    metadata,
    Column("organisation_id", String(40), primary_key=True),
    Column("idempotency_key", String(255), primary_key=True),
    Column("body_digest", String(64), nullable=False),
    Column("events", Text, nullable=False),
    Column("expires_at_us", BigInteger, nullable=False),
    Index(None, "expires_at_us"),
)
"""Answers to requests that came with an idempotency key, for those who ask again."""
