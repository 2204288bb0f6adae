"""No mark of the edit format is left in an answer, unless the text that is edited has it."""

from __future__ import annotations

from dataclasses import replace

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.fake import MODEL, FakeBackend, sse
from vermilion.serving.generation.edit_markers import MARKERS, MarkerFilter, without_markers

pytestmark = pytest.mark.anyio
PIECES = [*MARKERS, "<", "|", "<|", "a", "\n", "<|cursor", "|>", "<div>"]


@given(st.lists(st.sampled_from(PIECES), max_size=12), st.lists(st.integers(1, 9), max_size=60))
def test_marks_go_however_the_text_is_cut(pieces: list[str], lengths: list[int]) -> None:
    text, source = "".join(pieces), "if a < b: print('<|cursor|>')"
    one, shown, at = MarkerFilter(source), "", 0
    for length in [*lengths, len(text)]:
        shown += one.push(text[at : at + length])
        at += length
    shown += one.finish()
    assert shown == without_markers(text, source)
    assert shown.count("<|cursor|>") >= pieces.count("<|cursor|>")
    plain = [piece for piece in pieces if piece not in MARKERS or piece in source]
    if not any(piece.startswith(("<|cursor", "|>")) or piece in ("<", "|", "<|") for piece in plain):
        assert shown == "".join(plain)


@pytest.fixture
def backend() -> FakeBackend:
    words = ("<|code_to", "_edit|>\n", "b = 2<|cur", "sor|>\n", "<|/code_to_edit|>")
    return FakeBackend(words=words, model=replace(MODEL, context_length=4096))


def edit(region: str) -> dict[str, object]:
    text = (
        f"<|current_file_content|>\n<|code_to_edit|>\n{region}<|cursor|>\n<|/code_to_edit|>\n"
        "<|/current_file_content|>"
    )
    return {"messages": [{"role": "user", "content": text}]}


def update(original: str) -> dict[str, object]:
    text = (
        f"<|original_code|>\n{original}\n<|/original_code|>\n<|update_snippet|>\nnowhere\n<|/update_snippet|>"
    )
    return {"messages": [{"role": "user", "content": text}]}


async def test_edits_carry_no_marks(client: httpx.AsyncClient) -> None:
    reply = await client.post("/v1/edit/completions", json=edit("a = 1"))
    assert reply.json()["choices"][0]["message"]["content"] == "```\n\nb = 2\n\n```"
    same = await client.post("/v1/edit/completions", json=edit("b = 2"))
    assert same.json()["choices"][0]["message"]["content"] == "None"


@pytest.mark.parametrize(
    ("original", "text"), [("a = 1", "\nb = 2\n"), ("mark = '<|cursor|>'", "\nb = 2<|cursor|>\n")]
)
async def test_applied_files_carry_no_marks_but_their_own(
    client: httpx.AsyncClient, original: str, text: str
) -> None:
    reply = await client.post("/v1/apply/completions", json=update(original))
    assert reply.json()["choices"][0]["message"]["content"] == text
    chunks = sse((await client.post("/v1/apply/completions", json={**update(original), "stream": True})).text)
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == text
