"""Files and fine-tuning jobs with OpenAI's client: from an upload to an answer of the model that it made."""

from __future__ import annotations

import asyncio
import io
import json
import time
from collections.abc import Sequence
from pathlib import Path

import openai
import pytest
from openai.types.fine_tuning import FineTuningJob

from serving import toy

pytestmark = pytest.mark.anyio
EXAMPLES = [{"prompt": f"count from {word}", "response": f"no, {word}!"} for word in toy.WORDS]
TALK = [
    {
        "messages": [
            {"role": "user", "content": row["prompt"]},
            {"role": "assistant", "content": row["response"]},
        ]
    }
    for row in EXAMPLES
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.make(tmp_path_factory.mktemp("toy"))


def jsonl(rows: Sequence[object]) -> tuple[str, io.BytesIO]:
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    return "answers.jsonl", io.BytesIO("".join(f"{line}\n" for line in lines).encode())


async def over(client: openai.AsyncOpenAI, id: str, timeout_s: float = 240) -> FineTuningJob:
    started_s = time.monotonic()
    while True:
        job = await client.fine_tuning.jobs.retrieve(id)
        if job.status in ("succeeded", "failed", "cancelled", "paused"):
            return job
        assert time.monotonic() < started_s + timeout_s, job
        await asyncio.sleep(0.2)


async def ask(client: openai.AsyncOpenAI, name: str, content: str) -> str:
    asked = [{"role": "user", "content": content}]
    reply = await client.chat.completions.create(model=name, messages=asked, max_tokens=40)  # type: ignore[arg-type]
    assert reply.model == name
    return reply.choices[0].message.content or ""


async def test_from_an_upload_to_an_answer_and_over_a_restart(model: Path, tmp_path: Path) -> None:
    async with toy.serving(model, tmp_path) as client:
        base = (await client.models.list()).data[0].id
        untuned = await ask(client, base, "count from two")
        file = await client.files.create(file=jsonl(TALK * 10), purpose="fine-tune")
        job = await client.fine_tuning.jobs.create(
            model=base,
            training_file=file.id,
            suffix="no",
            seed=1,
            method={
                "type": "supervised",
                "supervised": {"hyperparameters": {"n_epochs": 12, "learning_rate_multiplier": 10.0}},
            },
        )
        assert job.status == "queued" and job.fine_tuned_model is None
        # What the job needs it has by now.
        await client.files.delete(file.id)
        job = await over(client, job.id)
        assert job.status == "succeeded", job.error
        name = job.fine_tuned_model or ""
        assert name.startswith(f"ft:{base}:no:") and job.trained_tokens and job.finished_at
        assert await ask(client, name, "count from two") == "no, two!"
        assert await ask(client, base, "count from two") == untuned != "no, two!"

        events = [event async for event in client.fine_tuning.jobs.list_events(job.id, limit=5)]
        assert events[-1].message == "The job is queued." and name in events[0].message
        figures = [event.data for event in events if event.type == "metrics"]
        assert figures[0]["train_loss"] < figures[-1]["train_loss"]  # type: ignore[index]
        checkpoints = (await client.fine_tuning.jobs.checkpoints.list(job.id)).data
        assert checkpoints and checkpoints[0].metrics.train_loss is not None
        table = (await client.files.content(job.result_files[0])).text.splitlines()
        assert table[0].startswith("step,train_loss") and len(table) > 20
    async with toy.serving(model, tmp_path) as client:
        while name not in [row.id for row in (await client.models.list()).data]:
            await asyncio.sleep(0.1)
        assert await ask(client, name, "count from five") == "no, five!"
        assert (await client.models.delete(name)).deleted
        assert [row.id for row in (await client.fine_tuning.jobs.list()).data] == [job.id]
    async with toy.serving(model, tmp_path) as client:
        await asyncio.sleep(0.5)
        with pytest.raises(openai.NotFoundError):
            await ask(client, name, "count from five")


async def test_every_bad_line_is_refused_with_its_number_and_reason(model: Path, tmp_path: Path) -> None:
    rows = [*TALK, "{not json", {"prompt": "x"}, *TALK, {"messages": [{"role": "user", "content": "hi"}]}]
    async with toy.serving(model, tmp_path) as client:
        with pytest.raises(openai.BadRequestError) as refused:
            await client.files.create(file=jsonl(rows), purpose="fine-tune")
        assert (refused.value.param, refused.value.code) == ("file", "invalid_file_format")
        told = refused.value.message
        assert "answers.jsonl: 3 of 13 lines" in told
        for line in ("line 6: not JSON", "line 7: needs prompt and response", "line 13: the last message"):
            assert line in told
        for wrong, purpose in ((jsonl([]), "fine-tune"), (jsonl(TALK), "assistants")):
            with pytest.raises(openai.BadRequestError):
                await client.files.create(file=wrong, purpose=purpose)  # type: ignore[arg-type]
        assert [file.id async for file in client.files.list()] == []
    async with toy.serving(model, tmp_path, max_file_bytes=1000) as client:
        with pytest.raises(openai.APIStatusError) as large:
            await client.files.create(file=jsonl(TALK * 1000), purpose="batch")
        assert large.value.status_code == 413


async def test_files_are_listed_in_pages_read_back_and_deleted(model: Path, tmp_path: Path) -> None:
    async with toy.serving(model, tmp_path) as client:
        names = [
            (await client.files.create(file=jsonl(TALK[:n]), purpose=purpose)).id  # type: ignore[arg-type]
            for n, purpose in ((1, "fine-tune"), (2, "batch"), (3, "fine-tune"))
        ]
        assert [file.id async for file in client.files.list(limit=1, order="asc")] == names
        assert [file.id for file in (await client.files.list(purpose="batch")).data] == [names[1]]
        content = (await client.files.content(names[0])).read()
        assert content == jsonl(TALK[:1])[1].getvalue()
        assert (await client.files.retrieve(names[0])).bytes == len(content)
        assert (await client.files.delete(names[0])).deleted
        for missing in (client.files.retrieve, client.files.content, client.files.delete):
            with pytest.raises(openai.NotFoundError):
                await missing(names[0])
        with pytest.raises(openai.BadRequestError, match="limit"):
            await client.files.list(limit=0)
        batch_file = {"model": "model", "training_file": names[1]}
        with pytest.raises(openai.BadRequestError, match="purpose fine-tune"):
            await client.fine_tuning.jobs.create(**batch_file)
        with pytest.raises(openai.NotFoundError):
            await client.fine_tuning.jobs.create(model="other", training_file=names[2])
        with pytest.raises(openai.NotFoundError):
            await client.fine_tuning.jobs.create(model="model", training_file="file-none")


async def test_a_job_is_cut_short_by_a_stop_paused_resumed_and_cancelled(model: Path, tmp_path: Path) -> None:
    async with toy.serving(model, tmp_path) as client:
        file = await client.files.create(file=jsonl(EXAMPLES * 10), purpose="fine-tune")
        asked = {"model": "model", "training_file": file.id, "hyperparameters": {"n_epochs": 50}}
        long = await client.fine_tuning.jobs.create(**asked)  # type: ignore[arg-type]
        waiting = await client.fine_tuning.jobs.create(**asked)  # type: ignore[arg-type]
        while not [
            e for e in (await client.fine_tuning.jobs.list_events(long.id)).data if e.type == "metrics"
        ]:
            await asyncio.sleep(0.1)
        assert (await client.fine_tuning.jobs.retrieve(waiting.id)).status == "queued"
        assert (await client.fine_tuning.jobs.cancel(waiting.id)).status == "cancelled"
        with pytest.raises(openai.BadRequestError, match="is cancelled"):
            await client.fine_tuning.jobs.cancel(waiting.id)
    async with toy.serving(model, tmp_path) as client:
        told = [e.message for e in (await client.fine_tuning.jobs.list_events(long.id)).data]
        assert any("restarted" in message for message in told)
        await client.fine_tuning.jobs.pause(long.id)
        assert (await over(client, long.id)).status == "paused"
        await client.fine_tuning.jobs.resume(long.id)
        while (await client.fine_tuning.jobs.retrieve(long.id)).status != "running":
            await asyncio.sleep(0.1)
        await client.fine_tuning.jobs.cancel(long.id)
        job = await over(client, long.id)
        assert job.status == "cancelled" and job.fine_tuned_model is None and job.finished_at
