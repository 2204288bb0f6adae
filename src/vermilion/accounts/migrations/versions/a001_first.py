"""The first tables, the default price, and the triggers that keep what is written."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "a001"
down_revision = None

_SERIAL = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_APPEND_ONLY = ("ledger", "grants", "prices")


def upgrade() -> None:
    _parties()
    _money()
    _requests()
    op.execute(
        "INSERT INTO prices (model, effective_at_us, input, cached_input, output) "
        "VALUES ('*', 0, 250000, 25000, 1000000)"
    )
    _keep()


def _limits() -> list[sa.Column[int]]:
    names = ("requests_per_minute", "tokens_per_minute", "concurrency", "budget")
    return [sa.Column(name, sa.BigInteger) for name in names]


def _organisation() -> sa.Column[str]:
    return sa.Column("organisation_id", sa.String(40), sa.ForeignKey("organisations.id"), nullable=False)


def _big(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger, nullable=False)


def _text(name: str, length: int) -> sa.Column[str]:
    return sa.Column(name, sa.String(length), nullable=False)


def _parties() -> None:
    op.create_table(
        "organisations",
        sa.Column("id", sa.String(40), primary_key=True),
        _text("name", 200),
        _text("plan", 10),
        _big("created_at_us"),
        sa.Column("signed_up", sa.Boolean, nullable=False),
        sa.Column("disabled", sa.Boolean, nullable=False),
        *_limits(),
    )
    op.create_index("ix_organisations_created_at_us", "organisations", ["created_at_us"])
    op.create_table(
        "users",
        sa.Column("id", sa.String(40), primary_key=True),
        _organisation(),
        _text("email", 320),
        _big("created_at_us"),
        sa.UniqueConstraint("email", name="uq_users_email"),
    )
    op.create_table(
        "keys",
        sa.Column("id", sa.String(40), primary_key=True),
        _organisation(),
        sa.Column("user_id", sa.String(40), sa.ForeignKey("users.id")),
        _text("name", 200),
        _text("digest", 64),
        _text("scopes", 200),
        _big("created_at_us"),
        sa.Column("expires_at_us", sa.BigInteger),
        sa.Column("revoked_at_us", sa.BigInteger),
        *_limits(),
    )
    op.create_index("ix_keys_organisation_id", "keys", ["organisation_id"])


def _money() -> None:
    op.create_table(
        "meters",
        sa.Column("subject", sa.String(40), primary_key=True),
        sa.Column("requests", sa.Float(53), nullable=False),
        sa.Column("tokens", sa.Float(53), nullable=False),
        _big("at_us"),
        _big("granted_tokens"),
        _big("used_tokens"),
        _text("month", 7),
        _big("month_spent"),
    )
    op.create_table(
        "grants",
        sa.Column("id", _SERIAL, primary_key=True),
        _organisation(),
        _big("tokens"),
        _text("reason", 200),
        _big("at_us"),
    )
    op.create_index("ix_grants_organisation_id", "grants", ["organisation_id"])
    op.create_table(
        "prices",
        sa.Column("id", _SERIAL, primary_key=True),
        _text("model", 200),
        _big("effective_at_us"),
        _big("input"),
        _big("cached_input"),
        _big("output"),
        sa.UniqueConstraint("model", "effective_at_us", name="uq_prices_model_effective_at_us"),
    )


def _requests() -> None:
    op.create_table(
        "admissions",
        sa.Column("request_id", sa.String(80), primary_key=True),
        _text("organisation_id", 40),
        _text("key_id", 40),
        _text("server", 40),
        sa.Column("idempotency_key", sa.String(255)),
        _big("expires_at_us"),
        sqlite_with_rowid=False,
    )
    counts = ("prompt_tokens", "cached_tokens", "completion_tokens", "passes")
    charged = ("charged_input", "charged_cached", "charged_output")
    op.create_table(
        "ledger",
        sa.Column("id", _SERIAL, primary_key=True),
        _text("request_id", 80),
        _organisation(),
        sa.Column("key_id", sa.String(40), sa.ForeignKey("keys.id"), nullable=False),
        _text("model", 200),
        _text("route", 200),
        _text("outcome", 10),
        *(_big(name) for name in (*counts, *charged)),
        sa.Column("price_id", sa.BigInteger, sa.ForeignKey("prices.id"), nullable=False),
        *(_big(name) for name in ("amount", "started_at_us", "settled_at_us")),
        _text("day", 10),
        sa.Column("idempotency_key", sa.String(255)),
        sa.UniqueConstraint("request_id", name="uq_ledger_request_id"),
    )
    named = sa.text("idempotency_key IS NOT NULL")
    op.create_index(
        "uq_ledger_idempotency_key",
        "ledger",
        ["organisation_id", "idempotency_key"],
        unique=True,
        sqlite_where=named,
        postgresql_where=named,
    )
    op.create_index("ix_ledger_organisation_id_day", "ledger", ["organisation_id", "day"])
    op.create_table(
        "replies",
        sa.Column("organisation_id", sa.String(40), primary_key=True),
        sa.Column("idempotency_key", sa.String(255), primary_key=True),
        _text("body_digest", 64),
        sa.Column("events", sa.Text, nullable=False),
        _big("expires_at_us"),
    )
    op.create_index("ix_replies_expires_at_us", "replies", ["expires_at_us"])


def _keep() -> None:
    """Rows of money may be added, never changed or taken away."""
    if op.get_bind().dialect.name == "sqlite":
        for table in _APPEND_ONLY:
            for verb in ("UPDATE", "DELETE"):
                op.execute(
                    f"CREATE TRIGGER {table}_no_{verb.lower()} BEFORE {verb} ON {table} "
                    f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
                )
        return
    op.execute(
        "CREATE FUNCTION append_only() RETURNS trigger LANGUAGE plpgsql AS $$ "
        "BEGIN RAISE EXCEPTION '% is append-only', TG_TABLE_NAME; END $$"
    )
    for table in _APPEND_ONLY:
        op.execute(
            f"CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION append_only()"
        )
