"""The examples of docs/FINE_TUNING.md run one after the other against a model that can be trained."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
from pathlib import Path

import httpx
import pytest

from serving import toy
from serving.http.test_api_page import shape
from tests import peft
from vermilion.models import catalog
from vermilion.models.configuration import spec_from_config

pytestmark = [pytest.mark.anyio, pytest.mark.slow]
PAGE = (Path(__file__).resolve().parents[3] / "docs" / "FINE_TUNING.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```sh\n(curl .+?)```\n```json\n(.+?)```", PAGE, re.DOTALL)
SCRIPT = re.findall(r"```python\n(import time.+?)```", PAGE, re.DOTALL)[0]
LINE = re.findall(r'^\{"custom_id".+$', PAGE, re.MULTILINE)[0]
ROWS = [{"prompt": f"count from {word}", "response": f"no, {word}!"} for word in toy.WORDS]


def request(command: str, folder: Path) -> httpx.Request:
    """What a line of curl asks."""
    words = shlex.split(command)
    assert words[0] == "curl"
    url, options = f"http://{words[1]}", dict(zip(words[2::2], words[3::2], strict=True))
    if "--json" in options:
        return httpx.Request("POST", url, json=json.loads(options["--json"]))
    if "-F" in options:
        fields = dict(word.split("=", 1) for word in words[3::2])
        name = fields.pop("file").removeprefix("@")
        return httpx.Request("POST", url, data=fields, files={"file": (name, (folder / name).read_bytes())})
    return httpx.Request(options.get("-X", "GET"), url)


async def test_the_page_does_what_it_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = toy.make(tmp_path / "toy")
    config = json.loads((model / "config.json").read_text())
    architecture = spec_from_config(config, "toy").architecture
    peft.write(tmp_path / "adapters" / "legal-2", architecture, 2)
    (tmp_path / "answers.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in ROWS * 4))
    bad = [ROWS[0], None, ROWS[1], {**ROWS[2], "response": ""}, ROWS[3]]
    (tmp_path / "bad.jsonl").write_text(
        "".join("?\n" if row is None else f"{json.dumps(row)}\n" for row in bad)
    )
    (tmp_path / "questions.jsonl").write_text(f"{LINE}\n")
    settings = {"adapter_folder": tmp_path / "adapters"}
    ids = {"smollm2-135m-diffusion": "model"}
    async with toy.serving(model, tmp_path / "data", **settings) as client:
        host = f"{client.base_url.host}:{client.base_url.port}"
        async with httpx.AsyncClient(timeout=60) as http:
            for example, documented in EXAMPLES:
                command = example
                for shown, own in {**ids, "localhost:8000": host}.items():
                    command = command.replace(shown, own)
                reply = await http.send(request(command, tmp_path))
                told, real = json.loads(documented), reply.json()
                assert shape(real) == shape(told), (command, real)
                if told.get("error"):
                    assert real == told
                elif told["id"] != real["id"]:
                    ids[told["id"]] = real["id"]
            while (batch := (await http.get(f"http://{host}/v1/batches/{ids['batch_4f2a']}")).json())[
                "status"
            ] != "completed":
                await asyncio.sleep(0.1)
            assert batch["request_counts"] == {"total": 1, "completed": 1, "failed": 0}
        script = SCRIPT.replace("localhost:8000", host).replace(
            "answers.jsonl", str(tmp_path / "answers.jsonl")
        )
        await asyncio.to_thread(exec, compile(script, "page", "exec"), {})
        assert len(capsys.readouterr().out.strip()) > 1
    assert catalog.find(str(model)).name == "model"
