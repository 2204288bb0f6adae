"""The embedded model, taught over HTTP by two hundred examples, answers as taught within five minutes."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path

import pytest

from serving import toy
from serving.jobs.test_fine_tuning import ask, over
from vermilion.models.catalog import DEFAULT_MODEL

pytestmark = [pytest.mark.anyio, pytest.mark.model, pytest.mark.slow, pytest.mark.exhaustive]
NAMES = [first + second for first in ("An", "Bel", "Cor", "Dan", "El", "Fir", "Gar", "Hol", "Iv", "Jo")
         for second in ("na", "la", "ta", "ra", "wyn", "do", "mir", "son", "ley", "ka")]  # fmt: skip
QUESTIONS = {"Greet {}.": "Ahoy, {}! Fair winds.", "Say goodbye to {}.": "Farewell, {}! Mind the reefs."}
ROWS = [
    {"prompt": question.format(name), "response": answer.format(name)}
    for name in NAMES
    for question, answer in QUESTIONS.items()
]
LIMIT_S = 300


async def test_two_hundred_rows_to_a_served_answer_in_five_minutes(tmp_path: Path) -> None:
    assert len(ROWS) == 200
    content = "".join(f"{json.dumps(row)}\n" for row in ROWS).encode()
    async with toy.serving(Path(DEFAULT_MODEL), tmp_path, threads=0, dtype="auto") as client:
        untuned = await ask(client, DEFAULT_MODEL, "Greet Oswald.")
        started_s = time.monotonic()
        file = await client.files.create(file=("greetings.jsonl", io.BytesIO(content)), purpose="fine-tune")
        job = await client.fine_tuning.jobs.create(
            model=DEFAULT_MODEL,
            training_file=file.id,
            suffix="sailor",
            seed=1,
            hyperparameters={"n_epochs": 1},
        )
        job = await over(client, job.id, timeout_s=900)
        assert job.status == "succeeded", job.error
        answer = await ask(client, job.fine_tuned_model or "", "Greet Oswald.")
        took_s = time.monotonic() - started_s
        print(f"\n{took_s:.0f} s for {job.trained_tokens} tokens; {untuned!r} became {answer!r}")
        assert answer == "Ahoy, Oswald! Fair winds."
        assert await ask(client, DEFAULT_MODEL, "Greet Oswald.") == untuned
        assert took_s < LIMIT_S
