"""Organisations and their keys: shown once, kept as a hash, limited, revoked."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from vermilion.accounts import keys as key_text
from vermilion.accounts import organisations
from vermilion.accounts.database import Database
from vermilion.accounts.keys import RateLimits
from vermilion.accounts.organisations import NewKey, NewOrganisation
from vermilion.accounts.refusals import AccountNotFound
from vermilion.errors import BadParameter, BadRequest


def create(store: Database, email: str = "a@example.org") -> tuple[str, organisations.Secret]:
    id, _, secret = organisations.create_organisation(store, NewOrganisation("Acme", email))
    return id, secret


def test_a_new_organisation_has_ten_million_free_tokens_and_a_key_that_works(store: Database, count) -> None:
    id, secret = create(store)
    state = organisations.organisation(store, id)
    assert (state.granted_tokens, state.used_tokens, state.plan) == (10_000_000, 0, "free")
    assert count("grants") == 1
    key_id, given = key_text.parsed(secret.text)
    assert key_text.matches(organisations.find_key(store, key_id), given)
    assert not key_text.matches(organisations.find_key(store, key_id), given[:-1] + "?")
    assert not key_text.matches(None, given)


def test_no_secret_is_in_the_database(store: Database) -> None:
    _, secret = create(store)
    # vm-, twelve characters that name the key, a dash, the secret; which may hold dashes of its own.
    hidden = secret.text[len("vm-") + 13 :][:20]
    assert len(hidden) == 20
    with store.reading() as connection:
        for table in sa.inspect(connection).get_table_names():
            rows = connection.execute(sa.text(f"SELECT * FROM {table}")).all()
            assert not any(hidden in str(value) for row in rows for value in row)
    assert hidden not in str(organisations.key_body(secret.key))
    assert organisations.key_body(secret.key)["prefix"] == secret.text[: len("vm-") + 12]


@pytest.mark.parametrize("token", ["", "vm-", "vm-abc", "sk-abc-def", "vm--x", "vm-é-x", "vm-a-" + "x" * 300])
def test_what_is_no_key_is_not_even_looked_up(token: str) -> None:
    assert key_text.parsed(token) is None


def test_an_address_has_one_account(store: Database, count) -> None:
    create(store)
    with pytest.raises(BadRequest, match="has an account already"):
        create(store, "A@example.org")
    assert count("organisations") == 1
    with pytest.raises(BadParameter, match="email"):
        create(store, "nobody")


def test_keys_are_listed_revoked_once_and_only_by_their_own_organisation(store: Database) -> None:
    id, first = create(store)
    other, _ = create(store, "b@example.org")
    second = organisations.create_key(
        store, id, NewKey("ci", frozenset(("generate",)), limits=RateLimits(concurrency=2))
    )
    with pytest.raises(AccountNotFound):
        organisations.revoke_key(store, second.key.id, other)
    revoked = organisations.revoke_key(store, second.key.id, id)
    assert revoked.revoked_at_us is not None
    assert organisations.revoke_key(store, second.key.id).revoked_at_us == revoked.revoked_at_us
    listed = organisations.list_keys(store, id)
    assert [(key.id, key.revoked_at_us is None) for key in listed] == [
        (first.key.id, True),
        (second.key.id, False),
    ]
    assert listed[1].limits == RateLimits(concurrency=2)


def test_grants_add_up_and_limits_change(store: Database, count) -> None:
    id, secret = create(store)
    organisations.grant(store, id, 5, "a present")
    organisations.change_organisation(store, id, tokens_per_minute=7, plan="paid")
    organisations.change_key(store, secret.key.id, budget=1)
    state = organisations.organisation(store, id)
    assert (state.granted_tokens, state.plan, state.limits) == (10_000_005, "paid", RateLimits(None, 7))
    assert organisations.find_key(store, secret.key.id).limits == RateLimits(budget=1)
    assert count("grants") == 2


@pytest.mark.parametrize(
    "wrong",
    [
        lambda store, id: organisations.grant(store, id, 0, ""),
        lambda store, id: organisations.change_organisation(store, id, concurrency=0),
        lambda store, id: organisations.change_organisation(store, id, plan="gold"),
        lambda store, id: organisations.create_key(store, id, NewKey(scopes=frozenset(("root",)))),
        lambda store, id: organisations.create_key(store, id, NewKey("n" * 201)),
    ],
)
def test_values_that_cannot_be_are_refused(store: Database, wrong) -> None:
    id, _ = create(store)
    with pytest.raises(BadParameter):
        wrong(store, id)


@pytest.mark.parametrize(
    "missing",
    [
        lambda store: organisations.grant(store, "none", 1, ""),
        lambda store: organisations.change_organisation(store, "none", concurrency=1),
        lambda store: organisations.change_key(store, "none", concurrency=1),
        lambda store: organisations.create_key(store, "none", NewKey()),
        lambda store: organisations.revoke_key(store, "none"),
        lambda store: organisations.organisation(store, "none"),
    ],
)
def test_what_does_not_exist_is_a_404(store: Database, missing) -> None:
    with pytest.raises(AccountNotFound):
        missing(store)
