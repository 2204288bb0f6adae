"""The functions of a call: what is free, what is booked, and schemas that a grammar can hold."""

from __future__ import annotations

import pytest

from vermilion.errors import BadParameter
from vermilion.serving.generation.tools import Tool, Toolbox
from vermilion.voice.call_tools import TableBook, tools_of


def test_a_booked_table_is_no_longer_free() -> None:
    book = TableBook()
    asked = {"day": "friday", "guests": 4}
    assert book.find(asked)["free_times"] == ["18:00", "20:00", "21:00"]
    booked = book.book({**asked, "time": "20:00", "name": "Ann"})
    assert booked["booked"] is True
    assert booked["say"] == "Your table for 4, friday at eight, is booked."
    assert book.find(asked)["free_times"] == ["18:00", "21:00"]
    assert book.find({"day": "saturday", "guests": 4})["free_times"] == ["18:00", "20:00", "21:00"]


def test_a_full_table_is_refused_with_the_free_times() -> None:
    refused = TableBook().book({"day": "friday", "guests": 4, "time": "19:00", "name": "Ann"})
    assert (refused["booked"], refused["free_times"]) == (False, ["18:00", "20:00", "21:00"])
    assert refused["say"] == "That time is taken. You can have six, eight or nine."


def test_every_call_has_tables_of_its_own() -> None:
    first, second = tools_of("table_booking"), tools_of("table_booking")
    first[1].run({"day": "today", "guests": 2, "time": "19:00", "name": "Ann"})
    assert second[0].run({"day": "today", "guests": 2})["free_times"][1] == "19:00"


def test_the_schemas_can_be_held_by_a_grammar() -> None:
    offered = [tool.offered["function"] for tool in tools_of("table_booking")]
    assert all(function["strict"] for function in offered)
    grammar = Toolbox(tuple(Tool(**function) for function in offered)).grammar
    assert grammar is not None
    assert "book_table" in str(grammar)


def test_an_unknown_set_is_answered_with_the_known_ones() -> None:
    assert tools_of("") == []
    with pytest.raises(BadParameter, match="table_booking"):
        tools_of("hammer")
