"""`vermilion accounts`: administration of the accounts by the operator."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vermilion.errors import BadParameter, ConfigError

if TYPE_CHECKING:
    from vermilion.accounts.database import Database
    from vermilion.accounts.keys import Secret

app = typer.Typer(help="Organisations, keys, limits, prices and invoices.", no_args_is_help=True)
keys_app = typer.Typer(help="The API keys of an organisation.", no_args_is_help=True)
prices_app = typer.Typer(help="Prices of tokens, by model and date.", no_args_is_help=True)
app.add_typer(keys_app, name="keys")
app.add_typer(prices_app, name="prices")

Where = Annotated[
    str,
    typer.Option("--accounts", envvar="VERMILION_ACCOUNTS", help="A file, or postgresql://user@host/name."),
]
OrganisationId = Annotated[str, typer.Argument(metavar="ORGANISATION", help="Its id, org_...")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Limit = Annotated[str | None, typer.Option(help="A whole number, or none for no limit.")]
Budget = Annotated[str | None, typer.Option(help="Dollars per calendar month (UTC), or none.")]
_NONE = "none"


@contextmanager
def _store(where: str) -> Iterator[Database]:
    from vermilion.accounts.database import open_store

    if not where:
        raise ConfigError("Say which accounts: give --accounts, or set VERMILION_ACCOUNTS.")
    store = open_store(where)
    try:
        yield store
    finally:
        store.close()


@app.command()
def init(accounts: Where = "") -> None:
    """Create the tables, or migrate those of an earlier release."""
    from vermilion.accounts.database import connect, migrate

    if not accounts:
        raise ConfigError("Say where: give --accounts, or set VERMILION_ACCOUNTS.")
    store = connect(accounts)
    try:
        migrate(store)
        print(f"The accounts in {store.name} are ready.", file=sys.stderr)
    finally:
        store.close()


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="The organisation's name.")],
    email: Annotated[str, typer.Option(help="Of its first user; one account per address.")],
    plan: Annotated[str, typer.Option(help="free: refused when the grant is used up; paid: invoiced.")] = (
        "free"
    ),
    free_tokens: Annotated[int, typer.Option(min=0, help="Its free tokens.")] = 10_000_000,
    accounts: Where = "",
) -> None:
    """Create an organisation with its first key. The key is shown only now."""
    with _store(accounts) as store:
        from vermilion.accounts.organisations import NewOrganisation, create_organisation

        new = NewOrganisation(name, email, plan, free_tokens)
        organisation_id, _, secret = create_organisation(store, new)
        print(f"Organisation {organisation_id}", file=sys.stderr)
        _show_secret(secret)


@app.command("list")
def list_(accounts: Where = "", as_json: Json = False) -> None:
    """List the organisations and what they have left."""
    with _store(accounts) as store:
        from vermilion.accounts import organisations
        from vermilion.accounts.money import written

        rows = [
            {
                "id": one.id,
                "name": one.name,
                "plan": "disabled" if one.disabled else one.plan,
                "free_tokens": max(0, one.granted_tokens - one.used_tokens),
                "used_tokens": one.used_tokens,
                "spent_this_month": written(one.month_spent),
                **({"limits": organisations.limits_body(one.limits)} if as_json else {}),
            }
            for one in organisations.list_organisations(store)
        ]
        _print(rows, as_json)


@app.command()
def change(
    organisation: OrganisationId,
    plan: Annotated[str | None, typer.Option(help="free or paid.")] = None,
    disabled: Annotated[bool | None, typer.Option("--disable/--enable", help="Refuse its requests.")] = None,
    accounts: Where = "",
) -> None:
    """Change an organisation's plan, or disable or enable it."""
    values = {"plan": plan, "disabled": disabled}
    given = {name: value for name, value in values.items() if value is not None}
    if not given:
        raise BadParameter("accounts change", "", "--plan, --disable or --enable")
    with _store(accounts) as store:
        from vermilion.accounts import organisations

        organisations.change_organisation(store, organisation, **given)


@app.command()
def grant(
    organisation: OrganisationId,
    tokens: Annotated[int, typer.Argument(min=1, help="How many more tokens are free.")],
    reason: Annotated[str, typer.Option(help="Kept with the grant.")] = "",
    accounts: Where = "",
) -> None:
    """Give an organisation free tokens."""
    with _store(accounts) as store:
        from vermilion.accounts import organisations

        organisations.grant(store, organisation, tokens, reason)
        state = organisations.organisation(store, organisation)
        print(f"{max(0, state.granted_tokens - state.used_tokens)} tokens are free.", file=sys.stderr)


@app.command()
def limits(
    id: Annotated[str, typer.Argument(help="An organisation (org_...) or the id of a key.")],
    requests_per_minute: Limit = None,
    tokens_per_minute: Limit = None,
    concurrency: Limit = None,
    budget: Budget = None,
    accounts: Where = "",
) -> None:
    """Show or set the limits of an organisation or key. What is not given stays."""
    with _store(accounts) as store:
        from vermilion.accounts import organisations
        from vermilion.accounts.money import picodollars
        from vermilion.accounts.refusals import AccountNotFound

        counts = {
            "requests_per_minute": requests_per_minute,
            "tokens_per_minute": tokens_per_minute,
            "concurrency": concurrency,
        }
        values = {name: _count(name, text) for name, text in counts.items() if text is not None}
        if budget is not None:
            values["budget"] = None if budget == _NONE else picodollars("budget", budget)
        of_organisation = id.startswith("org_")
        if values:
            (organisations.change_organisation if of_organisation else organisations.change_key)(
                store, id, **values
            )
        owner: Any = (
            organisations.organisation(store, id) if of_organisation else organisations.find_key(store, id)
        )
        if owner is None:
            raise AccountNotFound("key", id)
        print(json.dumps(organisations.limits_body(owner.limits)))


@app.command()
def usage(
    organisation: OrganisationId,
    first: Annotated[str | None, typer.Option("--from", help="The first day; this month's first.")] = None,
    last: Annotated[str | None, typer.Option("--to", help="The last day; today.")] = None,
    by: Annotated[str, typer.Option(help="Some of day,key,model.")] = "day,key,model",
    form: Annotated[str, typer.Option("--format", help="text, csv or json.")] = "text",
    accounts: Where = "",
) -> None:
    """Show what an organisation used, from its ledger."""
    with _store(accounts) as store:
        from vermilion.accounts import reports

        groups = reports.groups(name for name in by.split(",") if name)
        rows = reports.usage(store, organisation, reports.span(first, last), groups)
        if form == "csv":
            print(reports.as_csv(rows, groups), end="")
        elif form in ("text", "json"):
            _print(rows, form == "json")
        else:
            raise BadParameter("--format", form, "text, csv or json")


@app.command()
def invoice(
    organisation: OrganisationId,
    month: Annotated[str, typer.Argument(help="As 2026-01.")],
    accounts: Where = "",
) -> None:
    """Print an organisation's invoice of a month, as JSON."""
    with _store(accounts) as store:
        from vermilion.accounts import reports

        print(json.dumps(reports.invoice(store, organisation, month), indent=2, ensure_ascii=False))


@keys_app.command("list")
def list_keys(organisation: OrganisationId, accounts: Where = "", as_json: Json = False) -> None:
    """List an organisation's keys, without their secrets."""
    with _store(accounts) as store:
        from vermilion.accounts import organisations

        rows = [organisations.key_body(key) for key in organisations.list_keys(store, organisation)]
        if not as_json:
            rows = [{**row, "scopes": ",".join(row["scopes"]), "limits": None} for row in rows]
        _print(rows, as_json)


@keys_app.command("create")
def create_key(
    organisation: OrganisationId,
    name: Annotated[str, typer.Option(help="A name to recognise it by.")] = "",
    scopes: Annotated[str, typer.Option(help="Some of generate,jobs,manage,operate.")] = "generate",
    expires: Annotated[str | None, typer.Option(help="Expiry date, as 2026-12-31.")] = None,
    aws: Annotated[
        bool,
        typer.Option("--aws", help="With an id and a secret for Amazon's clients to sign with."),
    ] = False,
    accounts: Where = "",
) -> None:
    """Create a key. It is shown only now."""
    with _store(accounts) as store:
        from vermilion.accounts import access_keys, organisations
        from vermilion.accounts.clock import parsed_us
        from vermilion.accounts.keys import checked_scopes

        try:
            until = None if expires is None else parsed_us(expires)
        except ValueError:
            raise BadParameter("expires", expires, "a day or a time, as 2026-12-31") from None
        signing = (access_keys.signing_secret(store, create=True) or b"") if aws else b""
        new = organisations.NewKey(name, checked_scopes(scopes.split(",")), until, signing=signing)
        made = organisations.create_key(store, organisation, new)
        if aws:
            print(f"Key {made.key.prefix}; keep these, they are not shown again:", file=sys.stderr)
            print("\n".join(f"{name}={value}" for name, value in access_keys.credentials(made).items()))
        else:
            _show_secret(made)


@keys_app.command("revoke")
def revoke_key(key: Annotated[str, typer.Argument(help="Its id, or vm-id.")], accounts: Where = "") -> None:
    """Revoke a key, at once and for good."""
    with _store(accounts) as store:
        from vermilion.accounts import organisations

        revoked = organisations.revoke_key(store, key.removeprefix("vm-"))
        print(f"{revoked.prefix} is revoked.", file=sys.stderr)


@prices_app.command("list")
def list_prices(accounts: Where = "", as_json: Json = False) -> None:
    """List past, present and future prices, in dollars per million tokens."""
    with _store(accounts) as store:
        from vermilion.accounts import reports
        from vermilion.accounts.clock import stamp

        rows = reports.list_prices(store)
        _print([{"from": stamp(row.pop("effective_at_us")), **row} for row in rows], as_json)


@prices_app.command("set")
def set_price(
    model: Annotated[str, typer.Argument(help="Its id; * for every model without its own price.")],
    input: Annotated[str, typer.Option(help="Dollars per million prompt tokens.")],
    output: Annotated[str, typer.Option(help="Dollars per million tokens.")],
    cached_input: Annotated[str | None, typer.Option(help="A tenth of input unless set.")] = None,
    effective: Annotated[
        str | None, typer.Option("--from", help="When it takes effect; now unless set.")
    ] = None,
    accounts: Where = "",
) -> None:
    """Set a price from now or a later time on. Earlier answers keep their price."""
    with _store(accounts) as store:
        from decimal import Decimal

        from vermilion.accounts import reports
        from vermilion.accounts.money import per_token

        fresh = per_token("--input", input)
        cached = per_token("--cached-input", cached_input or str(Decimal(input) / 10))
        reports.set_price(store, model, (fresh, cached, per_token("--output", output)), effective)


def _count(name: str, text: str) -> int | None:
    if text == _NONE:
        return None
    if not text.isascii() or not text.isdigit():
        raise BadParameter(name, text, "a whole number from 1, or none")
    return int(text)


def _show_secret(secret: Secret) -> None:
    """The secret alone goes to standard output, so that a script can take it."""
    print(f"Key {secret.key.prefix}; keep it, it is not shown again:", file=sys.stderr)
    print(secret.text)


def _print(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    shown = [{name: "" if value is None else str(value) for name, value in row.items()} for row in rows]
    names = [name for name in (shown[0] if shown else {}) if any(row[name] for row in shown)]
    widths = {name: max(len(name), *(len(row[name]) for row in shown)) for name in names}
    for row in [dict(zip(names, names, strict=True)), *shown] if shown else []:
        print("  ".join(row[name].ljust(widths[name]) for name in names).rstrip())
