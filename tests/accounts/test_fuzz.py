"""The routes of accounts, asked with what their schemas allow and what they forbid, on both databases."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
import schemathesis
from hypothesis import given
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode

from serving.fake import FakeBackend, fake_service
from serving.fuzzing import FEW, bounded
from vermilion.accounts import organisations
from vermilion.accounts.accounts_config import AccountsConfig
from vermilion.accounts.database import Database
from vermilion.accounts.gate import Accounts
from vermilion.accounts.organisations import NewOrganisation
from vermilion.serving.http.app import create_app


@pytest.fixture
def document(store: Database) -> Iterator[Any]:
    accounts = Accounts(store, AccountsConfig(sign_ups_per_hour=10**6))
    secret = organisations.create_organisation(store, NewOrganisation("Acme", "a@example.org"))[2]
    app = create_app(fake_service(FakeBackend(), accounts, allowed_hosts=("*",)))
    opened = schemathesis.openapi.from_asgi("/openapi.json", app)
    opened.config.update(headers={"authorization": f"Bearer {secret.text}"})
    yield opened.include(path_regex="^/v1/(accounts|keys|usage|invoices)")
    accounts.writer.close()


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_no_request_breaks_the_accounts(document: Any, mode: GenerationMode) -> None:
    for operation in (found.ok() for found in document.get_all_operations()):

        @given(case=operation.as_strategy(generation_mode=mode))
        @bounded(FEW)
        def ask(case: Any) -> None:
            reply = case.call()
            assert reply.status_code < 500, f"{reply.status_code}: {reply.text[:500]}"
            if reply.status_code >= 400:
                assert set(json.loads(reply.content)["error"]) == {"message", "type", "param", "code"}

        # Without parameters and body there is nothing to do wrong.
        with suppress(Unsatisfiable):
            ask()
