"""A fine-tune over HTTP, from a file of 200 examples to a served answer, by the clock: one row of JSON.

    OMP_NUM_THREADS=2 python bench/fine_tune.py --output bench/results/fine_tune.jsonl

Starts a service on a free port with a data folder of its own, uploads the examples, runs a job with the
default number of epochs (or --epochs), and asks the new model something that was not among them. With --url
it uses a service that is there.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import openai

from vermilion.cli.demo import wait_until_ready
from vermilion.evaluation.environment import command, commit, processor

NAMES = [first + second for first in ("An", "Bel", "Cor", "Dan", "El", "Fir", "Gar", "Hol", "Iv", "Jo")
         for second in ("na", "la", "ta", "ra", "wyn", "do", "mir", "son", "ley", "ka")]  # fmt: skip
PAIRS = {"Greet {}.": "Ahoy, {}! Fair winds.", "Say goodbye to {}.": "Farewell, {}! Mind the reefs."}
NEW_NAME = "Oswald"
LIMIT_S = 300


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", help="of a service that is running, such as http://127.0.0.1:8000")
    parser.add_argument("--epochs", type=int, help="instead of the default")
    parser.add_argument("--output", type=Path, help="append the row to this file")
    given = parser.parse_args()
    with service(given.url) as url:
        row = tune(openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0), given.epochs)
    print(json.dumps(row))
    if given.output:
        with given.output.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
    return 0 if row["right"] == len(PAIRS) and row["seconds"] < LIMIT_S else 1


@contextmanager
def service(url: str | None) -> Iterator[str]:
    """The address of a service that answers."""
    if url:
        yield url
        return
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        serve = "import sys; from vermilion.cli import main; sys.exit(main(sys.argv[1:]))"
        options = ["serve", "--port", str(port), "--set", f"serve.data_folder={folder}"]
        with (Path(folder) / "log").open("wb") as log:
            process = subprocess.Popen([sys.executable, "-c", serve, *options], stderr=log)
        try:
            url = f"http://127.0.0.1:{port}"
            wait_until_ready(url, 300, process.pid)
            yield url
        finally:
            process.terminate()
            process.wait(90)


def tune(client: openai.OpenAI, epochs: int | None) -> dict[str, object]:
    """What happened and how long it took."""
    base = client.models.list().data[0].id
    rows = [
        {"prompt": q.format(name), "response": a.format(name)} for name in NAMES for q, a in PAIRS.items()
    ]
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    before, load = [ask(client, base, q) for q in PAIRS], os.getloadavg()[0]
    started_s = time.monotonic()
    file = client.files.create(file=("greetings.jsonl", io.BytesIO(content)), purpose="fine-tune")
    asked = {"hyperparameters": {"n_epochs": epochs}} if epochs else {}
    job = client.fine_tuning.jobs.create(model=base, training_file=file.id, suffix="sailor", seed=1, **asked)  # type: ignore[call-overload]
    told = 0
    while job.status not in ("succeeded", "failed", "cancelled"):
        time.sleep(0.5)
        job = client.fine_tuning.jobs.retrieve(job.id)
        events = client.fine_tuning.jobs.list_events(job.id, limit=100).data[::-1]
        for event in events[told:]:
            print(f"{time.monotonic() - started_s:5.0f} s  {event.message}", file=sys.stderr)
        told = len(events)
    trained_s = time.monotonic() - started_s
    if not job.fine_tuned_model:
        sys.exit(f"The job has {job.status}: {job.error}")
    after = [ask(client, job.fine_tuned_model, q) for q in PAIRS]
    seconds = time.monotonic() - started_s
    client.models.delete(job.fine_tuned_model)
    return {
        "benchmark": "fine_tune",
        "command": command(),
        "commit": commit(),
        "device": processor(),
        "threads": os.environ.get("OMP_NUM_THREADS", "all"),
        "load_average_before": round(load, 1),
        "rows": len(rows),
        "epochs": job.hyperparameters.n_epochs,
        "trained_tokens": job.trained_tokens,
        "seconds_to_model": round(trained_s, 1),
        "seconds": round(seconds, 1),
        "before": before,
        "after": after,
        "right": sum(one == a.format(NEW_NAME) for one, a in zip(after, PAIRS.values(), strict=True)),
    }


def ask(client: openai.OpenAI, model: str, question: str) -> str:
    reply = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": question.format(NEW_NAME)}], max_tokens=40
    )
    return reply.choices[0].message.content or ""


if __name__ == "__main__":
    sys.exit(main())
