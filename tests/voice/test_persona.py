"""Who answers a call, read from a file or from the package."""

from __future__ import annotations

from pathlib import Path

import pytest

from vermilion.errors import BadParameter, ConfigError
from vermilion.voice.call_tools import tools_of
from vermilion.voice.persona import SPOKEN, Persona, find_persona


def test_without_a_name_the_default_answers() -> None:
    assert find_persona(None) == Persona()
    assert Persona().system_prompt == SPOKEN


def test_a_shipped_persona_brings_its_tools() -> None:
    persona = find_persona("restaurant")
    assert "Luigi" in persona.greeting
    assert persona.system_prompt.startswith(SPOKEN)
    assert [tool.name for tool in tools_of(persona.tools)] == ["find_tables", "book_table"]


def test_a_file_sets_what_it_names_and_leaves_the_rest(tmp_path: Path) -> None:
    file = tmp_path / "bank.toml"
    file.write_text('name = "Bank"\ngreeting = "Bank, good morning."\nmax_tokens = 40\n', encoding="utf-8")
    persona = find_persona(str(file))
    assert (persona.name, persona.max_tokens, persona.apology) == ("Bank", 40, Persona().apology)


def test_a_mistake_in_a_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "bank.toml"
    file.write_text('greting = "Hello"\n', encoding="utf-8")
    with pytest.raises(ConfigError, match="greting"):
        find_persona(str(file))
    with pytest.raises(BadParameter, match="restaurant, or a TOML file"):
        find_persona("nobody")
