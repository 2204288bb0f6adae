"""Where to begin to speak: the first clause of an answer need not wait for the rest of its sentence.

A long first sentence is paid twice, by the model that writes it and by the voice that speaks it whole. The
first piece of an answer therefore ends at the first comma, or before a joining word, behind enough words to
keep the voice busy. All later pieces are whole sentences.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

from pipecat.utils.text.base_text_aggregator import Aggregation, TextType
from pipecat.utils.text.simple_text_aggregator import SimpleTextAggregator

_FEWEST_WORDS = 4
"""Of a first clause: a second of speech, which is as long as the next piece takes."""
_CLAUSE_END = re.compile(r"[,;:]\s$|\s[-\u2013\u2014]\s$")
_JOINING_WORD = re.compile(r"\s(?:because|but|which|while|where|when|although|so that|and then)\s$")


class ClauseAggregator(SimpleTextAggregator):
    """pipecat's sentences, but for the first piece of an answer."""

    _text: str

    def __init__(self) -> None:
        super().__init__()
        self._speaking = False

    async def aggregate(self, text: str) -> AsyncIterator[Aggregation]:
        for letter in text:
            async for sentence in super().aggregate(letter):
                self._speaking = True
                yield sentence
            end = 0 if self._speaking else first_clause_end(self._text)
            if end:
                self._speaking = True
                clause, self._text = self._text[:end], self._text[end:]
                yield Aggregation(text=clause.strip(), type=TextType.SENTENCE)

    async def flush(self) -> Aggregation | None:
        self._speaking = False
        rest: Aggregation | None = await super().flush()
        return rest

    async def handle_interruption(self) -> None:
        self._speaking = False
        await super().handle_interruption()


def first_clause_end(text: str) -> int:
    """The length of the first clause where `text` has just passed its end, else 0."""
    if len(text.split()) < _FEWEST_WORDS:
        return 0
    if _CLAUSE_END.search(text):
        return len(text)
    joining = _JOINING_WORD.search(text)
    return joining.start() if joining and len(text[: joining.start()].split()) >= _FEWEST_WORDS else 0
