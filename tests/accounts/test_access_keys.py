"""Access keys: what the command line gives out, boto3 signs with, and a service checks."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import ssl
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anthropic
import boto3
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


def test_anthropics_client_signs_and_sends_bearer_keys(
    url: str, given: Given, count: Callable[[str], int], store: Database
) -> None:
    asked: dict[str, Any] = {
        # Its colon is sent as it is and encoded where it is signed.
        "model": "anthropic.claude-sonnet-4-5-20250929-v1:0",
        "max_tokens": 9,
        "messages": [{"role": "user", "content": "hi"}],
    }
    shared: dict[str, Any] = {"base_url": url, "aws_region": "us-east-1", "max_retries": 0}
    signing = {"aws_access_key": given.id, "aws_secret_key": given.secret}
    with anthropic.AnthropicBedrock(**shared, **signing) as client:
        assert client.messages.create(**asked).content[0].text == "Hello, world!"
        with client.messages.stream(**asked) as stream:
            assert "".join(stream.text_stream) == "Hello, world!"
    with anthropic.AnthropicBedrock(**shared, api_key=given.bearer) as client:
        assert client.messages.create(**asked).content[0].text == "Hello, world!"
    with (
        anthropic.AnthropicBedrock(**shared, **{**signing, "aws_secret_key": "wrong"}) as client,
        pytest.raises(anthropic.PermissionDeniedError, match="does not match"),
    ):
        client.messages.create(**asked)
    assert count("ledger") == 3


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl, for a certificate")
def test_boto3_sends_its_bearer_key_over_https(
    url: str, given: Given, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *names]
    subprocess.run([*make, "-out", certificate, "-keyout", key], check=True, capture_output=True)
    monkeypatch.setenv("AWS_BEARER_TOKEN_BEDROCK", given.bearer)
    with encrypted(url, certificate, key) as address:
        client = boto3.client(
            "bedrock-runtime", endpoint_url=address, region_name="us-east-1", verify=str(certificate)
        )
        with closing(client):
            reply = client.converse(**ASKED)
    assert reply["output"]["message"]["content"] == [{"text": "Hello, world!"}]


@contextmanager
def encrypted(url: str, certificate: Path, key: Path) -> Iterator[str]:
    """The address of a proxy that ends TLS in front of the service, as in production."""
    target = urlsplit(url)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while content := await reader.read(65536):
                writer.write(content)
                await writer.drain()
        writer.close()

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner, outer = await asyncio.open_connection(target.hostname, target.port)
        await asyncio.gather(copy(reader, outer), copy(inner, writer))

    async def serve() -> None:
        server = await asyncio.start_server(pass_on, "127.0.0.1", 0, ssl=context)
        ports.append(server.sockets[0].getsockname()[1])
        opened.set()
        async with server:
            await asyncio.to_thread(done.wait)

    ports, opened, done = list[int](), threading.Event(), threading.Event()
    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        assert opened.wait(20)
        yield f"https://localhost:{ports[0]}"
    finally:
        done.set()
        thread.join(20)


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
