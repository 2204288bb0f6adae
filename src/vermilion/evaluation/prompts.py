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
    "import json\n\n\ndef read_config(path):\n    \"\"\"Read a JSON file and return a dictionary.\"\"\"\n",
    "def fibonacci(n):\n    \"\"\"Return the n-th Fibonacci number.\"\"\"\n    if n < 2:\n",
    "class Stack:\n    def __init__(self):\n        self.items = []\n\n    def push(self, item):\n",
    "import unittest\n\n\nclass TestAddition(unittest.TestCase):\n    def test_add(self):\n",
    "for i in range(1, 101):\n    if i % 15 == 0:\n        print(\"FizzBuzz\")\n",
    "def is_prime(number):\n    if number < 2:\n        return False\n    for",
)
PROSE = (
    "The old lighthouse stood at the edge of the cliff, and every night",
    "In 1969, astronauts landed on the Moon for the first time. The mission",
    "The most important thing about running a small business is",
    "Once upon a time, in a village surrounded by mountains, there lived",
)


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt; `chat` ones go through the model's template."""

    kind: Literal["chat", "code", "prose"]
    text: str


def fixed(limit: int | None = None) -> list[Prompt]:
    """The set, kinds in turn, so that any leading part is a fair mixture."""
    kinds: tuple[tuple[Literal["chat", "code", "prose"], tuple[str, ...]], ...] = (
        ("chat", CHAT),
        ("code", CODE),
        ("prose", PROSE),
    )
    longest = max(len(texts) for _, texts in kinds)
    mixed = [Prompt(kind, texts[i]) for i in range(longest) for kind, texts in kinds if i < len(texts)]
    return mixed[:limit]
