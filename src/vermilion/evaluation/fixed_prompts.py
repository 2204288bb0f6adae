"""The fixed prompts of the speed and exactness measurements: chat, code and prose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

CHAT = (
    "What is the capital of France, and why is it famous?",
    "Explain how photosynthesis works to a ten-year-old.",
    "Give me three tips for learning to cook at home.",
    "Write a short email asking a colleague to review a document.",
    "What is the difference between a list and a tuple in Python?",
    "Describe a rainy day in a small town in a few sentences.",
    "How do vaccines help the immune system?",
    "List five uses for a paper clip.",
)
CODE = (
    'import json\n\n\ndef read_config(path):\n    """Read a JSON file and return a dictionary."""\n',
    'def fibonacci(n):\n    """Return the n-th Fibonacci number."""\n    if n < 2:\n',
    "class Stack:\n    def __init__(self):\n        self.items = []\n\n    def push(self, item):\n",
    "import unittest\n\n\nclass TestAddition(unittest.TestCase):\n    def test_add(self):\n",
    'for i in range(1, 101):\n    if i % 15 == 0:\n        print("FizzBuzz")\n',
    "def is_prime(number):\n    if number < 2:\n        return False\n    for",
)
PROSE = (
    "The old lighthouse stood at the edge of the cliff, and every night",
    "In 1969, astronauts landed on the Moon for the first time. The mission",
    "The most important thing about running a small business is",
    "Once upon a time, in a village surrounded by mountains, there lived",
)

SUBJECTS = (
    "volcanoes", "the violin", "bread", "chess", "the Roman Empire", "bees", "gravity", "coffee", "bicycles",
    "the ocean tides", "maps", "glass", "the printing press", "owls", "mathematics", "tea", "bridges",
)  # fmt: skip
FUNCTIONS = (
    "reverse a string", "count the vowels in a text", "merge two sorted lists", "parse a CSV line",
    "compute the mean of a list", "flatten a nested list", "check for balanced brackets", "find duplicates",
    "convert Celsius to Fahrenheit", "rotate a list", "sum the digits of a number", "remove white space",
    "group words by length", "find the longest word", "validate an e-mail address", "shuffle a deck of cards",
    "transpose a matrix",
)  # fmt: skip
OPENINGS = (
    "When the train finally arrived,", "The recipe begins with", "Nobody in the office knew that",
    "Scientists have long wondered why", "On the first day of winter,", "The history of the city begins",
    "My grandmother always said that", "To repair a broken chair, you", "The market was crowded, and",
    "The report concludes that", "At the bottom of the lake lay", "In the middle of the night,",
    "The river flows through", "Every good story needs", "The museum's oldest painting shows",
    "After years of practice, she",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class FixedPrompt:
    """One prompt; `chat` ones go through the model's template."""

    kind: Literal["chat", "code", "prose"]
    text: str


def fixed(limit: int | None = None) -> list[FixedPrompt]:
    """The set, kinds alternating, so that any leading part is a balanced mixture."""
    kinds: tuple[tuple[Literal["chat", "code", "prose"], tuple[str, ...]], ...] = (
        ("chat", CHAT),
        ("code", CODE),
        ("prose", PROSE),
    )
    longest = max(len(texts) for _, texts in kinds)
    mixed = [FixedPrompt(kind, texts[i]) for i in range(longest) for kind, texts in kinds if i < len(texts)]
    return mixed[:limit]


def hundred() -> list[FixedPrompt]:
    """A hundred prompts and a few more, chat, code and prose alike, for measurements of exactness."""
    chat = [FixedPrompt("chat", f"Tell me three interesting things about {subject}.") for subject in SUBJECTS]
    chat += [
        FixedPrompt("chat", f"Write a short paragraph on the history of {subject}.") for subject in SUBJECTS
    ]
    chat += [FixedPrompt("chat", f"Write a Python function to {task}.") for task in FUNCTIONS]
    code = [FixedPrompt("code", f'def solve(value):\n    """Function to {task}."""\n') for task in FUNCTIONS]
    prose = [FixedPrompt("prose", opening) for opening in OPENINGS]
    return [*fixed(), *chat, *code, *prose]
