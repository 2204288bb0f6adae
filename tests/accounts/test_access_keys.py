"""Access keys: what the command line gives out, boto3 signs with, and a service checks."""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from botocore.exceptions import ClientError

from accounts.test_manage_accounts import organisation, run
from serving.boto import QUESTION, amazon
from serving.fake import MODEL, FakeBackend
from serving.threaded import threaded
from vermilion.accounts import access_keys, organisations
from vermilion.accounts.database import Database

__all__ = ["organisation", "run"]
Run = Callable[..., tuple[int, str]]
ASKED = {"modelId": MODEL.id, "messages": QUESTION}
SIGNING = "0123456789abcdef0123456789abcdef"


@dataclass(frozen=True, slots=True)
class Given:
    """What `vermilion accounts keys create --aws` printed."""

    id: str
    secret: str
    bearer: str


@pytest.fixture
def given(run: Run, organisation: str, database: str, monkeypatch: pytest.MonkeyPatch) -> Given:
    if database == "postgresql":
        monkeypatch.setenv(access_keys.SIGNING_SECRET, SIGNING)
    status, printed = run("keys", "create", organisation, "--aws")
    assert status == 0
    told = dict(line.split("=", 1) for line in printed.splitlines())
    assert list(told) == ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_BEARER_TOKEN_BEDROCK"]
    return Given(*told.values())


@pytest.fixture
def url(given: Given, where: str) -> Iterator[str]:
    with threaded(FakeBackend(), where) as url:
        while httpx.get(f"{url}/ready").status_code != httpx.codes.OK:
            pass
        yield url


def refused(url: str, id: str, secret: str) -> tuple[str, int]:
    with closing(amazon("bedrock-runtime", url, id, secret)) as client, pytest.raises(ClientError) as error:
        client.converse(**ASKED)
    reply = error.value.response
    return reply["Error"]["Code"], reply["ResponseMetadata"]["HTTPStatusCode"]


def test_a_signed_request_is_answered_and_written_into_the_ledger(
    url: str, given: Given, store: Database, count: Callable[[str], int]
) -> None:
    with closing(amazon("bedrock-runtime", url, given.id, given.secret)) as client:
        reply = client.converse(**ASKED)
        assert reply["output"]["message"]["content"] == [{"text": "Hello, world!"}]
        assert "x-ratelimit-limit-requests" not in reply["ResponseMetadata"]["HTTPHeaders"]
        # An ARN is percent-encoded in the path and once more where it is signed.
        arn = f"arn:aws:bedrock:us-east-1:1:custom-model/{MODEL.id}"
        list(client.converse_stream(**{**ASKED, "modelId": arn})["stream"])
        client.invoke_model(modelId=arn, body=json.dumps({"prompt": "Once"}))["body"].read()
    with closing(amazon("sagemaker-runtime", url, given.id, given.secret)) as client:
        client.invoke_endpoint(EndpointName=MODEL.id, Body=json.dumps({"prompt": "Once"}))["Body"].read()
    assert count("ledger") == 4


def test_a_wrong_signature_is_refused_in_amazons_shape(
    url: str, given: Given, store: Database, count: Callable[[str], int]
) -> None:
    assert refused(url, given.id, given.secret.swapcase()) == ("InvalidSignatureException", 403)
    assert refused(url, "AKVMABCDEFGHJKMN", given.secret) == ("UnrecognizedClientException", 403)
    assert refused(url, "AKIAIOSFODNN7EXAMPLE", given.secret) == ("UnrecognizedClientException", 403)
    headers = {"authorization": "AWS4-HMAC-SHA256 Credential=x"}
    reply = httpx.post(f"{url}/model/{MODEL.id}/converse", json={"messages": QUESTION}, headers=headers)
    assert (reply.status_code, reply.headers["x-amzn-errortype"]) == (400, "IncompleteSignatureException")
    # Elsewhere nobody would check it.
    reply = httpx.post(f"{url}/v1/completions", json={"prompt": "a"}, headers=headers)
    assert (reply.status_code, reply.json()["error"]["code"]) == (401, "invalid_api_key")
    assert count("ledger") == 0


def test_a_revoked_access_key_signs_nothing_and_a_bearer_key_has_no_signature(
    url: str, given: Given, run: Run, organisation: str, store: Database
) -> None:
    address = f"{url}/model/{MODEL.id}/converse"
    told = {"messages": QUESTION}
    bearer = {"authorization": f"Bearer {given.bearer}"}
    assert httpx.post(address, json=told, headers=bearer).status_code == 200
    for headers in ({"authorization": "Bearer vm-nothing-right"}, {}):
        reply = httpx.post(address, json=told, headers=headers)
        assert (reply.status_code, reply.headers["x-amzn-errortype"]) == (403, "AccessDeniedException")
    # A key that was made for bearers alone has another secret than the one its id would give.
    plain = organisations.create_key(store, organisation, organisations.NewKey())
    assert refused(url, access_keys.access_key_id(plain.key.id), plain.secret)[1] == 403
    assert run("keys", "revoke", access_keys.key_id_of(given.id))[0] == 0
    # At once: what is remembered of a key is read again where a call is admitted.
    assert refused(url, given.id, given.secret)[1] == 403


def test_scopes_count_for_signed_requests_too(url: str, given: Given, run: Run, organisation: str) -> None:
    words = ("keys", "create", organisation, "--aws", "--scopes", "manage")
    told = dict(line.split("=", 1) for line in run(*words)[1].splitlines())
    pair = told["AWS_ACCESS_KEY_ID"], told["AWS_SECRET_ACCESS_KEY"]
    assert refused(url, *pair) == ("AccessDeniedException", 403)


def test_the_signing_secret_is_a_file_of_its_owner_beside_a_database_that_is_one(
    given: Given, database: str, where: str, store: Database
) -> None:
    if database == "postgresql":
        assert access_keys.signing_secret(store) == SIGNING.encode()
        return
    path = Path(f"{where}.signing-secret")
    if sys.platform != "win32":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    kept = path.read_bytes()
    assert access_keys.signing_secret(store, create=True) == kept
    assert kept not in Path(where).read_bytes()
    assert given.secret.encode() not in Path(where).read_bytes()
    assert os.listdir(path.parent).count(path.name) == 1


def test_without_a_signing_secret_it_is_said_what_to_set(
    run: Run, organisation: str, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(access_keys.SIGNING_SECRET, "short")
    assert run("keys", "create", organisation, "--aws")[0] == 2
    assert "at least 32 characters" in run.said  # type: ignore[attr-defined]
    if database == "postgresql":
        monkeypatch.delenv(access_keys.SIGNING_SECRET)
        assert run("keys", "create", organisation, "--aws")[0] == 2
        assert "openssl rand -hex 32" in run.said  # type: ignore[attr-defined]


def test_an_access_key_names_its_key_and_nothing_else_does() -> None:
    assert access_keys.key_id_of(access_keys.access_key_id("abc234")) == "abc234"
    for other in ("", "AKVM", "AKIA234", "AKVM-1", "AKVMé"):
        assert access_keys.key_id_of(other) is None
