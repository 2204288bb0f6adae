"""Sign-up, keys, usage and invoices over HTTP; only on a service with accounts."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Query
from fastapi.responses import Response
from pydantic import BaseModel, Field

from vermilion.accounts import access_keys, organisations, reports
from vermilion.accounts.clock import DAY_US, now_us, parsed_us, stamp
from vermilion.accounts.gate import Accounts, Visit
from vermilion.accounts.keys import RateLimits, Secret, checked_scopes
from vermilion.accounts.meters import Standing
from vermilion.accounts.money import picodollars, written
from vermilion.accounts.organisations import NewKey, NewOrganisation
from vermilion.accounts.refusals import NotPermitted, RateLimited
from vermilion.errors import BadParameter, ConfigError
from vermilion.serving.http.auth import VISIT
from vermilion.serving.http.openapi import operation
from vermilion.serving.http.request_context import RequestContext, json_response
from vermilion.serving.http.routes import MANAGE, OPEN, Route
from vermilion.serving.wire.openai_bodies import WIRE

_HOUR_US = DAY_US // 24
_MOST_BODY_BYTES = 65_536
_CREATED = 201
_GIVEN_SCOPES = ("generate", "jobs", "manage")
"""What a key may hand on; `operate` is for whoever has the command line."""

_Limit = Annotated[int | None, Field(ge=1, lt=2**53)]


class SignUpBody(BaseModel):
    """Body of POST /v1/accounts."""

    model_config = WIRE

    email: str = Field(max_length=320, description="One account per address.")
    organisation: str = Field("", max_length=200, description="A name for people.")


class KeyBody(BaseModel):
    """Body of POST /v1/keys."""

    model_config = WIRE

    name: str = Field("", max_length=200, description="A name for people.")
    scopes: list[str] | None = Field(
        None, description="Some of `generate`, `jobs`, `manage`; all if left out."
    )
    expires_at: str | None = Field(None, description="Until when it is good, as 2026-12-31T00:00:00Z.")
    requests_per_minute: _Limit = Field(None, description="No limit of its own if left out.")
    tokens_per_minute: _Limit = Field(None, description="No limit of its own if left out.")
    concurrency: _Limit = Field(None, description="Requests at once; no limit of its own if left out.")
    budget: str | None = Field(None, max_length=40, description="Dollars per calendar month (UTC).")
    aws: bool = Field(False, description="With an id and a secret for Amazon's clients to sign with.")

    @property
    def limits(self) -> RateLimits:
        budget = None if self.budget is None else picodollars("budget", self.budget)
        return RateLimits(self.requests_per_minute, self.tokens_per_minute, self.concurrency, budget)

    @property
    def expires_at_us(self) -> int | None:
        try:
            return None if self.expires_at is None else parsed_us(self.expires_at)
        except ValueError:
            raise BadParameter("expires_at", self.expires_at, "a time as 2026-12-31T00:00:00Z") from None


def _visit() -> Visit:
    """Of the request that this task answers; the middleware has let nobody in without one."""
    visit = VISIT.get()
    assert visit is not None
    return visit


def _accounts(context: RequestContext) -> Accounts:
    assert context.service.accounts is not None
    return context.service.accounts


async def sign_up(context: RequestContext, body: SignUpBody) -> Response:
    config = _accounts(context).config
    if not config.sign_ups_per_hour:
        raise NotPermitted("Nobody can sign up here; ask whoever runs this service for a key.")
    num_recent = await _accounts(context).call(organisations.num_signed_up, now_us() - _HOUR_US)
    if num_recent >= config.sign_ups_per_hour:
        raise RateLimited("Too many have signed up within the hour. Try again later.", 600, Standing())
    new = NewOrganisation(
        body.organisation or body.email,
        body.email,
        free_tokens=config.free_tokens,
        limits=config.limits,
        signed_up=True,
    )
    organisation_id, user_id, secret = await _accounts(context).call(organisations.create_organisation, new)
    reply = {
        "organisation": {"id": organisation_id, "name": new.name},
        "user": {"id": user_id, "email": body.email.lower()},
        "free_tokens": config.free_tokens,
        "key": _secret_body(secret),
    }
    return _created(reply)


async def account(context: RequestContext) -> Response:
    state = await _accounts(context).call(organisations.organisation, _visit().key.organisation_id)
    return json_response(
        {
            "id": state.id,
            "name": state.name,
            "plan": state.plan,
            "created_at": stamp(state.created_at_us),
            "free_tokens": max(0, state.granted_tokens - state.used_tokens),
            "granted_tokens": state.granted_tokens,
            "used_tokens": state.used_tokens,
            "spent_this_month": written(state.month_spent),
            "limits": organisations.limits_body(state.limits),
        }
    )


async def keys(context: RequestContext) -> Response:
    listed = await _accounts(context).call(organisations.list_keys, _visit().key.organisation_id)
    return json_response({"object": "list", "data": [organisations.key_body(key) for key in listed]})


async def create(context: RequestContext, body: KeyBody) -> Response:
    scopes = checked_scopes(_GIVEN_SCOPES if body.scopes is None else body.scopes, _GIVEN_SCOPES)
    signing = await _signing(context) if body.aws else b""
    new = NewKey(body.name, scopes, body.expires_at_us, body.limits, signing=signing)
    secret = await _accounts(context).call(organisations.create_key, _visit().key.organisation_id, new)
    given = access_keys.credentials(secret) if body.aws else {}
    return _created(_secret_body(secret) | ({"aws": dict(given)} if given else {}))


async def _signing(context: RequestContext) -> bytes:
    """Raises `NotPermitted` where the service was started without what access keys need."""
    try:
        return await _accounts(context).call(access_keys.signing_secret, True) or b""
    except ConfigError:
        raise NotPermitted(
            "This service gives out no access keys: whoever runs it has to set "
            f"{access_keys.SIGNING_SECRET}, of 32 characters or more."
        ) from None


async def revoke(context: RequestContext, id: str) -> Response:
    key = await _accounts(context).call(organisations.revoke_key, id, _visit().key.organisation_id)
    return json_response(organisations.key_body(key))


async def usage(
    context: RequestContext,
    first: Annotated[str | None, Query(alias="from", description="The first day.")] = None,
    last: Annotated[str | None, Query(alias="to", description="The last day.")] = None,
    group_by: Annotated[str, Query(description="Some of these.")] = ",".join(reports.GROUPS),
    kind: Annotated[str, Query(alias="format", description="`json` or `csv`.")] = "json",
) -> Response:
    days = reports.span(first, last)
    by = reports.groups(name for name in group_by.split(",") if name)
    if kind not in ("json", "csv"):
        raise BadParameter("format", kind, "json or csv")
    rows = await _accounts(context).call(reports.usage, _visit().key.organisation_id, days, by)
    if kind == "csv":
        name = f'attachment; filename="usage-{days.first}-{days.last}.csv"'
        return Response(reports.as_csv(rows, by), 200, {"Content-Disposition": name}, "text/csv")
    return json_response({"object": "list", "from": days.first, "to": days.last, "data": rows})


async def invoices(context: RequestContext) -> Response:
    months = await _accounts(context).call(reports.months, _visit().key.organisation_id)
    return json_response({"object": "list", "data": months})


async def invoice(context: RequestContext, month: str) -> Response:
    return json_response(await _accounts(context).call(reports.invoice, _visit().key.organisation_id, month))


def _secret_body(secret: Secret) -> dict[str, Any]:
    return {**organisations.key_body(secret.key), "secret": secret.text}


def _created(content: dict[str, Any]) -> Response:
    response = json_response(content)
    response.status_code = _CREATED
    return response


_LIMITS = {"requests_per_minute": 1000, "tokens_per_minute": 1000000, "concurrency": 32, "budget": None}
_KEY = {
    "id": "k3v9x2m7q4pa",
    "name": "laptop",
    "prefix": "vm-k3v9x2m7q4pa",
    "scopes": ["generate", "jobs", "manage"],
    "created_at": "2026-01-01T00:00:00Z",
    "expires_at": None,
    "revoked_at": None,
    "limits": {**_LIMITS, "tokens_per_minute": None},
}
_ORGANISATION = {"id": "org_8d2k5m3n7p9q", "name": "Acme"}
_ROW = {"day": "2026-01-31", "key": _KEY["id"], "model": "smollm2-135m-diffusion", "requests": 2}
_COUNTED = {"prompt_tokens": 60, "cached_tokens": 16, "completion_tokens": 90}
SIGN_UP = operation(
    "accounts",
    "Sign up",
    "Needs no key. The secret of the first key is in this reply and nowhere else.",
    {"Somebody": {"email": "ada@example.org", "organisation": "Acme"}},
    {"organisation": _ORGANISATION, "free_tokens": 10000000, "key": {**_KEY, "secret": "vm-..."}},
)
ACCOUNT = operation(
    "accounts",
    "What the organisation has left",
    "",
    None,
    {**_ORGANISATION, "plan": "free", "free_tokens": 9999850, "spent_this_month": "0", "limits": _LIMITS},
)
KEYS = operation(
    "accounts", "List the keys", "Without their secrets.", None, {"object": "list", "data": [_KEY]}
)
NEW_KEY = operation(
    "accounts",
    "Make a key",
    "Its secret is in this reply and nowhere else.",
    {"Limited": {"name": "laptop", "scopes": ["generate"], "requests_per_minute": 60}},
    {**_KEY, "secret": "vm-..."},
)
REVOKE = operation("accounts", "Revoke a key", "At once, and for good.", None, _KEY)
USAGE = operation(
    "accounts",
    "Usage by day, key and model",
    "This month's unless days are given, of which both are included. Amounts are exact dollars.",
    None,
    {"object": "list", "data": [{**_ROW, **_COUNTED, "amount": "0.000101"}]},
)
INVOICES = operation("accounts", "Months with an invoice", "", None, {"object": "list", "data": ["2026-01"]})
INVOICE = operation(
    "accounts",
    "The invoice of a month",
    "Adds up to the ledger to the last digit; `payable` is the total in whole cents.",
    None,
    {"month": "2026-01", "status": "closed", "lines": [], "total": "0.000101", "payable": "0.00"},
)


ROUTES = (
    Route(
        "POST",
        "/v1/accounts",
        sign_up,
        SIGN_UP,
        SignUpBody,
        OPEN,
        needs_model=False,
        max_body_bytes=_MOST_BODY_BYTES,
        status_code=_CREATED,
    ),
    Route("GET", "/v1/accounts", account, ACCOUNT, None, MANAGE, needs_model=False),
    Route("GET", "/v1/keys", keys, KEYS, None, MANAGE, needs_model=False),
    Route(
        "POST",
        "/v1/keys",
        create,
        NEW_KEY,
        KeyBody,
        MANAGE,
        needs_model=False,
        max_body_bytes=_MOST_BODY_BYTES,
        status_code=_CREATED,
    ),
    Route("DELETE", "/v1/keys/{id}", revoke, REVOKE, None, MANAGE, needs_model=False),
    Route("GET", "/v1/usage", usage, USAGE, None, MANAGE, needs_model=False),
    Route("GET", "/v1/invoices", invoices, INVOICES, None, MANAGE, needs_model=False),
    Route("GET", "/v1/invoices/{month}", invoice, INVOICE, None, MANAGE, needs_model=False),
)
