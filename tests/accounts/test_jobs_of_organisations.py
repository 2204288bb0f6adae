"""Fine-tuned models, files and jobs are one organisation's: it alone sees, uses, deletes and pays them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from accounts.conftest import until
from serving.fake import MODEL, FakeBackend, fake_service
from vermilion.accounts import organisations, reports
from vermilion.accounts.database import Database
from vermilion.accounts.gate import Accounts
from vermilion.accounts.keys import RateLimits
from vermilion.accounts.organisations import NewKey, NewOrganisation, Secret
from vermilion.accounts.schema import ledger
from vermilion.serving.http.app import create_app
from vermilion.serving.jobs import background, fine_tuning_jobs
from vermilion.serving.jobs.job_store import JobStore

pytestmark = pytest.mark.anyio
QUESTION = {"messages": [{"role": "user", "content": "hi"}]}
TUNED = f"ft:{MODEL.id}:support:1a"
TOKENS = 1234
EXAMPLE = json.dumps({"prompt": "a", "response": "b"}).encode() + b"\n"


def organisation(store: Database, name: str, **more: Any) -> Secret:
    new = NewOrganisation(name, f"{name}@example.org", **more)
    return organisations.create_organisation(store, new)[2]


def key(store: Database, secret: Secret, *scopes: str) -> str:
    new = NewKey(scopes=frozenset(scopes))
    return organisations.create_key(store, secret.key.organisation_id, new).text


def succeeded(folder: Path, secret: Secret) -> str:
    """A job that an earlier service has finished; its id."""
    jobs = JobStore(folder)
    record = jobs.new("job", secret.key.organisation_id)
    record.own = {"name": TUNED, "wish": None, "key_id": secret.key.id, "charged": False, "number": 0}
    record.body |= {"status": "succeeded", "fine_tuned_model": TUNED}
    adapter = fine_tuning_jobs.adapter_folder(jobs, record)
    adapter.mkdir(parents=True)
    (adapter / "adapter_config.json").write_text("{}")
    row = {"step": 9, "tokens": TOKENS, "done": 1.0}
    (adapter.parent / "log.jsonl").write_text(json.dumps(row) + "\n")
    jobs.save(record)
    jobs.close()
    return record.id


@asynccontextmanager
async def opened(store: Database, folder: Path, **settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    accounts = Accounts(store)
    service = fake_service(FakeBackend(), accounts, data_folder=folder, **settings)
    app = create_app(service)
    assert service.models is not None
    try:
        async with (
            background.opened(service.config, service.models, app, accounts) as service.background,
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client,
        ):
            yield client
    finally:
        accounts.writer.close()


def by(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


async def listed(client: httpx.AsyncClient, token: str) -> list[str]:
    return [row["id"] for row in (await client.get("/v1/models", headers=by(token))).json()["data"]]


async def test_a_fine_tuned_model_is_its_organisations_alone(store: Database, tmp_path: Path) -> None:
    mine, other = organisation(store, "mine"), organisation(store, "other")
    succeeded(tmp_path, mine)
    async with opened(store, tmp_path) as client:
        while TUNED not in await listed(client, mine.text):
            pass
        assert TUNED not in await listed(client, other.text)
        asked = {**QUESTION, "model": TUNED}
        refused = await client.post("/v1/chat/completions", json=asked, headers=by(other.text))
        assert refused.status_code == 404 and "Known models: tiny-diffusion." in refused.text
        assert (await client.get(f"/v1/models/{TUNED}", headers=by(other.text))).status_code == 404
        assert (await client.delete(f"/v1/models/{TUNED}", headers=by(other.text))).status_code == 404
        reply = await client.post("/v1/chat/completions", json=asked, headers=by(mine.text))
        assert reply.json()["model"] == TUNED
        weak = key(store, mine, "generate", "jobs")
        assert (await client.delete(f"/v1/models/{TUNED}", headers=by(weak))).status_code == 403
        strong = key(store, mine, "manage")
        assert (await client.delete(f"/v1/models/{TUNED}", headers=by(strong))).json()["deleted"]
        assert TUNED not in await listed(client, mine.text)


async def test_an_adapter_of_the_operator_is_deleted_by_the_operator_alone(
    store: Database, tmp_path: Path
) -> None:
    mine = organisation(store, "mine")
    operator = key(store, mine, "generate", "operate")
    (tmp_path / "adapters" / "legal").mkdir(parents=True)
    (tmp_path / "adapters" / "legal" / "adapter_config.json").write_text("{}")
    body = {"lora_name": "legal", "lora_path": "legal"}
    async with opened(store, tmp_path / "data", adapter_folder=tmp_path / "adapters") as client:
        assert (await client.post("/v1/load_lora_adapter", json=body, headers=by(operator))).is_success
        assert "legal" in await listed(client, organisation(store, "other").text)
        assert (await client.delete("/v1/models/legal", headers=by(mine.text))).status_code == 403
        assert (await client.delete("/v1/models/legal", headers=by(operator))).is_success


async def test_training_is_in_the_ledger_once_and_priced(store: Database, tmp_path: Path) -> None:
    mine = organisation(store, "mine", plan="paid", free_tokens=0)
    reports.set_price(store, f"{MODEL.id}:training", (2_000_000, 0, 0))
    id = succeeded(tmp_path, mine)

    def rows() -> list[Any]:
        with store.reading() as connection:
            return list(connection.execute(sa.select(ledger)))

    for _ in range(2):
        async with opened(store, tmp_path) as client:
            await until(lambda: len(rows()) == 1)
            while TUNED not in await listed(client, mine.text):
                pass
    (row,) = rows()
    assert (row.request_id, row.route, row.model) == (id, "/v1/fine_tuning/jobs", f"{MODEL.id}:training")
    assert (row.outcome, row.prompt_tokens, row.amount) == ("finished", TOKENS, TOKENS * 2_000_000)


async def test_files_and_jobs_need_a_scope_of_their_own_and_have_quotas(
    store: Database, tmp_path: Path
) -> None:
    mine = organisation(store, "mine")
    weak, able = key(store, mine, "generate"), key(store, mine, "jobs")
    form = {"data": {"purpose": "fine-tune"}, "files": {"file": ("a.jsonl", EXAMPLE * 20)}}
    limits = {"organisation_stored_bytes": len(EXAMPLE) * 50, "organisation_jobs": 1}
    async with opened(store, tmp_path, **limits) as client:
        for path in ("/v1/files", "/v1/fine_tuning/jobs"):
            for refused in (
                await client.get(path, headers=by(weak)),
                await client.post(path, headers=by(weak)),
            ):
                assert refused.status_code == 403 and "needs jobs" in refused.text
        ids = []
        for code in (200, 200, 429):
            reply = await client.post("/v1/files", headers=by(able), **form)
            assert reply.status_code == code, reply.text
            ids.append(reply.json().get("id"))
        assert reply.json()["error"]["code"] == "quota_reached"
        asked = {"model": MODEL.id, "training_file": ids[0]}
        waiting = await client.post("/v1/fine_tuning/jobs", json=asked, headers=by(able))
        assert waiting.status_code == 200
        second = await client.post("/v1/fine_tuning/jobs", json=asked, headers=by(able))
        assert (second.status_code, second.json()["error"]["code"]) == (429, "quota_reached")


async def test_training_needs_free_tokens_that_will_do(store: Database, tmp_path: Path) -> None:
    mine = organisation(store, "mine", free_tokens=100)
    form = {"data": {"purpose": "fine-tune"}, "files": {"file": ("a.jsonl", EXAMPLE * 20)}}
    async with opened(store, tmp_path) as client:
        file = (await client.post("/v1/files", headers=by(mine.text), **form)).json()["id"]
        asked = {"model": MODEL.id, "training_file": file}
        reply = await client.post("/v1/fine_tuning/jobs", json=asked, headers=by(mine.text))
        assert (reply.status_code, reply.json()["error"]["code"]) == (402, "account_inactive")


async def test_a_line_that_can_never_fit_fails_and_holds_up_nobody(store: Database, tmp_path: Path) -> None:
    tight = organisation(store, "tight", limits=RateLimits(tokens_per_minute=5))
    other = organisation(store, "other")
    url = "/v1/chat/completions"
    lines = [{"custom_id": f"{n}", "method": "POST", "url": url, "body": QUESTION} for n in range(3)]
    content = "\n".join(map(json.dumps, lines)).encode()
    async with opened(store, tmp_path) as client:
        ended = {}
        for secret in (tight, other):
            form = {"data": {"purpose": "batch"}, "files": {"file": ("a.jsonl", content)}}
            file = (await client.post("/v1/files", headers=by(secret.text), **form)).json()["id"]
            asked = {"input_file_id": file, "endpoint": url, "completion_window": "24h"}
            batch = await client.post("/v1/batches", json=asked, headers=by(secret.text))
            ended[secret.text] = batch.json()["id"]
        for token, id in ended.items():
            while (batch := (await client.get(f"/v1/batches/{id}", headers=by(token))).json())["status"] != (
                "completed"
            ):
                await asyncio.sleep(0.02)
            counts = batch["request_counts"]
            assert (counts["completed"], counts["failed"]) == ((0, 3) if token == tight.text else (3, 0))
