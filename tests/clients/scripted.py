"""A service whose engine says what it is told: what is proven is the way between a client and the engine.

The embedded model is too small to follow an agent's prompt; this engine calls the tool that a user's words
name, once, and otherwise answers as a model would.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx

from clients.running import MODEL, Running
from serving.fake import MODEL as INFO
from serving.fake import FakeBackend
from serving.threaded import threaded
from vermilion.types import Event, Grammar, Request

CONTEXT_LENGTH = 19_500
"""The fake tokenizer counts characters: so little that agents must be trimmed."""
ANSWER = "The capital of France is Paris."
_ASKED = re.compile(r"Call (?:the )?(\w+) with (\{.*\})")
_FIRST_NAME = re.compile(r'"name": \{"const": "([^"]+)"')


class ScriptedBackend(FakeBackend):
    async def generate(self, request: Request) -> AsyncGenerator[Event, None]:
        prompt = "".join(map(chr, request.prompt))
        said = answer(prompt, request.grammar)
        half = len(said) // 2
        one = FakeBackend((said[:half], said[half:]), model=self.model)
        async for event in one.generate(request):
            yield event


def answer(prompt: str, grammar: Grammar | None) -> str:
    """What a model would say that does as it is told."""
    asked = _ASKED.findall(prompt)
    if grammar is not None and grammar.kind == "lark":
        found = _FIRST_NAME.search(grammar.text)
        name = found[1] if found else ""
        arguments = next((given for called, given in asked if called == name), '{"level": 2}')
    elif grammar is not None:
        return '{"city": "Paris"}'
    else:
        # Only a tool that is offered is called, and only until its result is there.
        offered = [(name, given) for name, given in asked if f'"name": "{name}"' in prompt]
        if not offered or "<tool_response>" in prompt:
            return ANSWER
        name, arguments = offered[-1]
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


@contextmanager
def scripted(log: Path) -> Iterator[Running]:
    """Writes its log to `log`, as the real service does."""
    handler, logger = logging.FileHandler(log), logging.getLogger("vermilion")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        model = replace(INFO, id=MODEL, context_length=CONTEXT_LENGTH)
        with threaded(ScriptedBackend(model=model)) as url:
            while httpx.get(f"{url}/ready").status_code != httpx.codes.OK:
                time.sleep(0.01)
            yield Running(url, log)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        handler.close()
