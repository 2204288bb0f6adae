"""lm-evaluation-harness asks its own tasks of our model, through its own API, with nothing downloaded."""

from __future__ import annotations

import math
from typing import Any

import pytest

pytestmark = pytest.mark.filterwarnings("ignore")  # the harness and its libraries warn of each other

lm_eval = pytest.importorskip("lm_eval")

import datasets  # noqa: E402
from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.api.registry import get_model  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from tests import tiny  # noqa: E402
from vermilion.errors import BadParameter, BadRequest  # noqa: E402
from vermilion.evaluation.harness import VermilionLM  # noqa: E402
from vermilion.evaluation.sampler import Ask, Sampler  # noqa: E402
from vermilion.types import Decoding  # noqa: E402

DOCUMENTS = [
    {
        "question": "once upon a",
        "choices": [" time", " tree"],
        "gold": 0,
        "text": "the old house by the river",
    },
    {"question": "the old house", "choices": [" fell", " stood"], "gold": 1, "text": "a bird in the hand"},
    {"question": "two and two", "choices": [" five", " four"], "gold": 1, "text": "all is well"},
]


class Llm:
    """What the adapter needs of an LLM, over a tiny model."""

    def __init__(self, kind: str = "causal-shift") -> None:
        self.tokenizer = tiny.Letters()
        self.engine = tiny.engine(kind, tiny.model(kind))
        self.model = self.engine.model
        self.template = None


def adapter(**settings: Any) -> VermilionLM:
    return VermilionLM(llm=Llm(), **settings)


def by_hand(llm: Llm, context: str, continuation: str) -> float:
    ids = llm.tokenizer.encode
    readings = llm.engine.score(ids(context), ids(continuation))  # type: ignore[arg-type]
    return math.fsum(reading.target_logprobs[0] for reading in readings)


def evaluated(model: VermilionLM, **task: Any) -> dict[str, Any]:
    config = {
        "task": "toy",
        "custom_dataset": lambda **given: {"test": datasets.Dataset.from_list(DOCUMENTS)},
        "test_split": "test",
        **task,
    }
    manager = TaskManager(include_defaults=False)  # reading the thousands of built-in ones takes long
    results = lm_eval.simple_evaluate(
        model=model, tasks=[config], bootstrap_iters=0, verbosity="ERROR", task_manager=manager
    )
    return dict(results["results"]["toy"])


def test_it_is_known_under_its_name() -> None:
    assert get_model("vermilion") is VermilionLM


def test_multiple_choice_is_decided_by_the_bases_likelihood() -> None:
    model = adapter()
    figures = evaluated(
        model, output_type="multiple_choice", doc_to_text="{{question}}", doc_to_target="gold",
        doc_to_choice="choices", target_delimiter="", metric_list=[{"metric": "acc"}],
    )  # fmt: skip
    llm = model.llm
    picked = [
        max((0, 1), key=lambda i: by_hand(llm, one["question"], one["choices"][i]))  # type: ignore[arg-type, index]
        for one in DOCUMENTS
    ]
    right = sum(choice == one["gold"] for choice, one in zip(picked, DOCUMENTS, strict=True))
    assert figures["acc,none"] == pytest.approx(right / 3)


def test_perplexity_is_that_of_the_whole_text() -> None:
    model = adapter()
    figures = evaluated(
        model, output_type="loglikelihood_rolling", doc_to_text="", doc_to_target="{{text}}",
        metric_list=[{"metric": "byte_perplexity"}],
    )  # fmt: skip
    llm = model.llm
    total = sum(
        math.fsum(
            reading.target_logprobs[0]
            for reading in llm.engine.score([tiny.EOS], llm.tokenizer.encode(str(one["text"])))
        )
        for one in DOCUMENTS
    )
    size = sum(len(str(one["text"])) for one in DOCUMENTS)
    assert figures["byte_perplexity,none"] == pytest.approx(math.exp(-total / size))


@pytest.mark.parametrize("preset", ["lossless", "ar"])
def test_generated_text_is_the_samplers_up_to_the_stop(preset: str) -> None:
    model = adapter(preset=preset, max_tokens=24)
    plain = Sampler("ar", model.llm, Decoding("ar"))
    texts = [plain.answer(Ask(str(one["question"]), 24)).text for one in DOCUMENTS]
    stop = texts[0][5]
    wanted = [text.partition(stop)[0] for text in texts]
    figures = evaluated(
        model, output_type="generate_until", doc_to_text="{{question}}",
        doc_to_target=lambda doc: wanted[[one["question"] for one in DOCUMENTS].index(doc["question"])],
        generation_kwargs={"until": [stop], "max_gen_toks": 24, "do_sample": False},
        metric_list=[{"metric": "exact_match"}],
    )  # fmt: skip
    assert figures["exact_match,none"] == 1.0


def test_a_long_text_is_scored_in_windows() -> None:
    model = adapter()
    text = "the quick brown fox jumps over the lazy dog " * 20
    assert len(text) > model.llm.model.context_length
    instance = Instance("loglikelihood_rolling", {}, (text,), 0)
    [total] = model.loglikelihood_rolling([instance])
    longest, ids = model.llm.model.context_length, model.tok_encode(text)
    first = model.llm.engine.score([tiny.EOS], ids[: longest - 1])  # type: ignore[arg-type]
    partly = math.fsum(reading.target_logprobs[0] for reading in first)
    assert total < partly < 0 and math.isfinite(total)


def test_what_is_certain_is_said_to_be_greedy() -> None:
    model = adapter()
    answer = Sampler("ar", model.llm, Decoding("ar")).answer(Ask("once upon a time", 8, ignore_eos=True))
    ids = model.tok_encode("once upon a time")
    requests = [(("", ""), ids, list(answer.token_ids)), (("", ""), ids, [*answer.token_ids[:-1], 3])]
    (total, greedy), (_, other) = model._loglikelihood_tokens(requests)
    assert greedy and not other and total < 0


def test_a_setting_there_is_not_is_named() -> None:
    with pytest.raises(BadParameter, match="warmth"):
        adapter(warmth=3)
    assert adapter(
        block_length=8, threshold=0.7, decoder="threshold", batch_size=4
    ).sampler.decoding == Decoding("threshold", threshold=0.7, block_length=8, draft_nodes=12, lookup=64)


def test_a_model_without_a_base_has_no_likelihood() -> None:
    model = VermilionLM(llm=Llm("full"), decoder="threshold")  # type: ignore[arg-type]
    with pytest.raises(BadRequest, match="generate_until"):
        model._loglikelihood_tokens([(("a", "b"), [5], [6])])
