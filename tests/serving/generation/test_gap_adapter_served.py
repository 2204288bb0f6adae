"""A model with an adapter for gaps, served whole: every route that fills gaps goes through it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from serving import toy as service
from tests import peft
from vermilion.config import EngineConfig
from vermilion.engine.llm import LLM
from vermilion.engine.loading import load_model
from vermilion.gap_template import GapTemplate
from vermilion.models import catalog
from vermilion.models.configuration import spec_of
from vermilion.types import Sampling

pytestmark = pytest.mark.anyio
BEFORE, AFTER = "one\n two\n ", "\nfour five\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = service.make(tmp_path_factory.mktemp("toy"))
    spec = spec_of(catalog.find(str(folder)))
    fim = peft.write(folder / "adapter" / "fim", spec.architecture, 2, seed=5)
    (end,) = spec.traits.eos_token_ids
    marks = [token for token in range(6) if token != end][:3]
    GapTemplate((marks[0], marks[1], marks[2], end), 32, 1.0).write(fim)
    return folder


async def test_every_route_fills_by_the_adapter(model: Path, tmp_path: Path) -> None:
    loaded = load_model(str(model), EngineConfig(kv_tokens=2048, threads=1, dtype="float32"))
    llm, template = LLM(loaded=loaded), loaded.engine.gap_template
    assert template is not None

    def middle(before: str, after: str) -> str:
        ids = (llm.tokenizer.encode(text) for text in (before, after))
        asked = template.prompt(*ids, most=400)
        sampling = Sampling(max_tokens=9, min_tokens=1, logit_bias={template.marks[3]: 1.0})
        (answer,) = oracle.generate([asked], sampling, "ar")
        return answer.text

    def fit(text: str) -> float:
        before, given = (llm.tokenizer.encode(part) for part in (BEFORE, text + AFTER))
        return sum(reading.target_logprobs[0] for reading in llm.engine.score(before, given))

    oracle = LLM(loaded=loaded, adapters={"same": model / "adapter" / "fim"}).using("same")
    wanted, plain = middle(BEFORE, AFTER), llm.generate([BEFORE], Sampling(max_tokens=9), "ar")[0].text
    assert wanted and wanted != plain
    async with service.serving(model, tmp_path) as client:
        assert "fim" not in [row.id for row in (await client.models.list()).data], "nobody can name it"
        asked: dict[str, Any] = {"model": "model", "max_tokens": 9, "temperature": 0}
        for preset in ("ar", "lossless", "balanced"):
            more = {"extra_body": {"preset": preset}}
            whole = await client.completions.create(prompt=BEFORE, suffix=AFTER, **asked, **more)
            assert whole.choices[0].text == wanted
            assert whole.usage is not None and whole.usage.prompt_tokens == len(BEFORE) + len(AFTER)
        drawn = asked | {"temperature": 1.0, "seed": 5, "extra_body": {"preset": "ar"}}
        every = await client.completions.create(prompt=BEFORE, suffix=AFTER, n=4, **drawn)
        fits = {text: fit(text) for text in (wanted, *(choice.text for choice in every.choices[1:]))}
        best = await client.completions.create(prompt=BEFORE, suffix=AFTER, n=2, best_of=4, **drawn)
        assert len(fits) == 4
        assert [one.text for one in best.choices] == sorted(fits, key=fits.__getitem__, reverse=True)[:2]
        assert best.usage is not None and best.usage.completion_tokens >= 3 * 9
        chunks = await client.completions.create(prompt=BEFORE, suffix=AFTER, stream=True, **asked)
        assert "".join([chunk.choices[0].text async for chunk in chunks if chunk.choices]) == wanted
        bare = await client.completions.create(
            prompt=BEFORE, suffix="\n", **asked, extra_body={"preset": "ar"}
        )
        assert bare.choices[0].text == plain, "nothing to write towards"

        async def post(path: str, **body: Any) -> dict[str, Any]:
            return await client.post(path, cast_to=dict[str, Any], body={**asked, **body})

        fim = {"prompt": BEFORE, "suffix": AFTER, "stop": [], "presence_penalty": 0}
        assert (await post("/fim/completions", **fim))["choices"][0]["text"] == wanted
        root = str(client.base_url).removesuffix("/v1/")
        infill = {"input_prefix": BEFORE, "input_suffix": AFTER, "n_predict": 9}
        assert (await post(f"{root}/infill", **infill))["content"] == wanted
        holes = (await post("/infill", parts=[BEFORE, {}, AFTER, {}, "\none"]))["holes"]
        assert [hole["text"] for hole in holes] == [wanted, middle(BEFORE + wanted + AFTER, "\none")]
