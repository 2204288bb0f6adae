"""The console's page: what is sent, with which headers, and that it was built from its sources."""

from __future__ import annotations

import gzip
import re
import runpy
from pathlib import Path

import httpx
import pytest

from console.conftest import Open
from serving.fake import FakeBackend, fake_service
from vermilion.serving.console.console_routes import FOLDER
from vermilion.serving.http.app import create_app

pytestmark = pytest.mark.anyio
ROOT = Path(__file__).resolve().parents[2]
MAX_FIRST_VIEW_BYTES = 150_000


async def test_everybody_may_have_the_page_and_nothing_of_it_comes_from_elsewhere(opened: Open) -> None:
    async with opened() as client:
        page = await client.get("/console/")
        assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
        names = re.findall(r'(?:src|href)="([^"]+)"', page.text)
        assert len(names) >= 3 and all(name.startswith("/console/") for name in names)
        for name in names:
            assert (await client.get(name)).status_code == 200


async def test_no_script_or_style_stands_in_the_page_and_the_policy_forbids_any(opened: Open) -> None:
    async with opened() as client:
        page = await client.get("/console")
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\bstyle=|\bon\w+=", page.text)
    policy = dict(
        part.strip().partition(" ")[::2] for part in page.headers["content-security-policy"].split(";")
    )
    assert policy["default-src"] == "'none'" and policy["frame-ancestors"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert "unsafe" not in page.headers["content-security-policy"]
    assert page.headers["x-content-type-options"] == "nosniff"
    assert page.headers["referrer-policy"] == "no-referrer"


async def test_the_first_view_is_small_and_sent_once(opened: Open) -> None:
    total = 0
    async with opened() as client:
        page = await client.get("/console", headers={"accept-encoding": "gzip"})
        for name in ("/console", *re.findall(r'(?:src|href)="([^"]+)"', page.text)):
            async with client.stream("GET", name, headers={"accept-encoding": "gzip"}) as reply:
                packed = b"".join([part async for part in reply.aiter_raw()])
            assert reply.headers["content-encoding"] == "gzip" and gzip.decompress(packed)
            total += len(packed)
            again = await client.get(name, headers={"if-none-match": reply.headers["etag"]})
            assert again.status_code == 304 and not again.content
    assert total < MAX_FIRST_VIEW_BYTES


@pytest.mark.parametrize("name", ["nothing.js", "..%2f__init__.py", "%2e%2e/pyproject.toml", "source.sha256"])
async def test_nothing_but_the_pages_files_can_be_had(opened: Open, name: str) -> None:
    async with opened() as client:
        reply = await client.get(f"/console/{name}")
    # An address of more than one part is no page's, so that a key is asked for first.
    assert reply.status_code in (401, 404) and "error" in reply.json()


async def test_a_service_without_accounts_asks_nobody_to_sign_in() -> None:
    transport = httpx.ASGITransport(create_app(fake_service(FakeBackend())))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        assert (await client.get("/console/session")).json()["accounts"] is False
        assert (await client.post("/console/session", json={"key": "any"})).json()["accounts"] is False
        assert (await client.get("/console")).status_code == 200


def test_the_committed_files_were_built_from_the_committed_sources() -> None:
    """`scripts/test-console` builds them anew and compares; this needs no Node."""
    digest = runpy.run_path(str(ROOT / "scripts" / "build-console"))["source_digest"]()
    assert (FOLDER / "source.sha256").read_text(encoding="ascii").strip() == digest, (
        "run scripts/build-console"
    )
