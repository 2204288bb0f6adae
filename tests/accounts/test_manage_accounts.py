"""`vermilion accounts`, from making the tables to an invoice."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from vermilion import cli
from vermilion.accounts import keys as key_text
from vermilion.accounts import organisations
from vermilion.accounts.database import open_store

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command; gives its status and what it printed to standard output."""
    monkeypatch.delenv("VERMILION_ACCOUNTS", raising=False)

    def running(*words: str) -> tuple[int, str]:
        try:
            status = cli.main(["accounts", *words])
        except SystemExit as ended:
            status = int(ended.code or 0)
        printed = capsys.readouterr()
        running.said = printed.err  # type: ignore[attr-defined]
        return status, printed.out

    return running


def test_an_operator_goes_from_nothing_to_a_key_that_works(
    run: Run, empty: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("list", "--accounts", empty)[0] == 2
    assert "vermilion accounts init" in run.said
    assert run("init", "--accounts", empty)[0] == 0
    monkeypatch.setenv("VERMILION_ACCOUNTS", empty)
    status, secret = run("create", "Acme", "--email", "a@example.org", "--plan", "paid")
    assert status == 0
    key_id, given = key_text.parsed(secret.strip())
    store = open_store(empty)
    try:
        assert key_text.matches(organisations.find_key(store, key_id), given)
    finally:
        store.close()
    (one,) = json.loads(run("list", "--json")[1])
    assert (one["name"], one["plan"], one["free_tokens"]) == ("Acme", "paid", 10_000_000)
    assert one["id"] in run("list")[1]


@pytest.fixture
def organisation(run: Run, where: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("VERMILION_ACCOUNTS", where)
    run("create", "Acme", "--email", "a@example.org")
    return str(json.loads(run("list", "--json")[1])[0]["id"])


def test_keys_are_made_listed_limited_and_revoked(run: Run, organisation: str) -> None:
    words = ("--name", "ci", "--scopes", "generate,operate", "--expires", "2999-01-01")
    status, secret = run("keys", "create", organisation, *words)
    assert status == 0
    id = key_text.parsed(secret.strip())[0]
    told = json.loads(run("limits", id, "--requests-per-minute", "5", "--budget", "2.5")[1])
    assert (told["requests_per_minute"], told["budget"], told["concurrency"]) == (5, "2.5", None)
    assert json.loads(run("limits", id, "--budget", "none")[1])["budget"] is None
    assert run("keys", "revoke", f"vm-{id}")[0] == 0
    listed = json.loads(run("keys", "list", organisation, "--json")[1])
    assert [(key["name"], key["revoked_at"] is None) for key in listed] == [("first", True), ("ci", False)]
    assert "generate,operate" in run("keys", "list", organisation)[1]


def test_grants_plans_and_prices_change_and_an_invoice_is_printed(run: Run, organisation: str) -> None:
    run("grant", organisation, "5", "--reason", "a present")
    assert "10000005 tokens are free" in run.said
    assert run("change", organisation, "--plan", "paid", "--disable")[0] == 0
    assert json.loads(run("list", "--json")[1])[0]["plan"] == "disabled"
    assert run("prices", "set", "tiny", "--input", "0.5", "--output", "2")[0] == 0
    rows = json.loads(run("prices", "list", "--json")[1])
    assert [(row["model"], row["input"], row["cached_input"], row["output"]) for row in rows] == [
        ("*", "0.25", "0.025", "1"),
        ("tiny", "0.5", "0.05", "2"),
    ]
    bill = json.loads(run("invoice", organisation, "2026-01")[1])
    assert (bill["total"], bill["lines"]) == ("0", [])
    assert run("usage", organisation, "--format", "csv")[1].startswith("day,key,model,requests")
    assert json.loads(run("usage", organisation, "--format", "json")[1]) == []


@pytest.mark.parametrize(
    "words",
    [
        ("list",),
        ("init",),
        ("init", "--accounts", "mysql://x/y"),
    ],
)
def test_without_a_place_it_says_what_to_give(run: Run, words: tuple[str, ...]) -> None:
    assert run(*words)[0] == 2
    assert "accounts" in run.said and "Traceback" not in run.said


@pytest.mark.parametrize(
    "words",
    [
        ("grant", "org_x", "5"),
        ("limits", "org_x"),
        ("limits", "nokey"),
        ("limits", "nokey", "--concurrency", "many"),
        ("change", "org_x"),
        ("keys", "create", "org_x", "--scopes", "root"),
        ("keys", "create", "org_x", "--expires", "soon"),
        ("keys", "revoke", "nokey"),
        ("usage", "org_x", "--by", "route"),
        ("usage", "org_x", "--format", "xml"),
        ("invoice", "org_x", "january"),
        ("prices", "set", "m", "--input", "cheap", "--output", "1"),
        ("create", "X", "--email", "nobody"),
    ],
)
def test_a_mistake_is_one_line(run: Run, organisation: str, words: tuple[str, ...]) -> None:
    assert run(*words)[0] == 2
    assert len(run.said.strip().splitlines()) <= 3 and "Traceback" not in run.said
