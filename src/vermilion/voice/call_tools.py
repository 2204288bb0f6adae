"""What the agent may do in a call: functions with schemas that the answer's grammar holds it to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from vermilion.errors import BadParameter

Arguments = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class CallTool:
    """A function of a call. `parameters` is a JSON schema."""

    name: str
    description: str
    parameters: Mapping[str, Any]
    run: Callable[[Arguments], Mapping[str, Any]]
    """Its result says in "say" what to tell the caller."""

    @property
    def offered(self) -> dict[str, Any]:
        """As OpenAI's clients offer it; strict, so that a grammar holds the arguments."""
        function = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", "function": {**function, "strict": True}}


_SPOKEN_TIMES = {"18:00": "six", "19:00": "seven", "20:00": "eight", "21:00": "nine"}


@dataclass(slots=True)
class TableBook:
    """The tables of one evening a day; lives as long as its call."""

    seats: dict[str, int] = field(default_factory=lambda: {"18:00": 6, "19:00": 2, "20:00": 4, "21:00": 8})
    bookings: list[dict[str, Any]] = field(default_factory=list)

    def tools(self) -> list[CallTool]:
        day = {"type": "string", "enum": ["today", "tomorrow", "friday", "saturday"]}
        guests = {"type": "integer", "minimum": 1, "maximum": 8}
        time = {"type": "string", "enum": list(self.seats)}
        return [
            CallTool(
                "find_tables",
                "Find the times at which a table is free.",
                _schema(day=day, guests=guests),
                self.find,
            ),
            CallTool(
                "book_table",
                "Book a table.",
                _schema(day=day, time=time, guests=guests, name={"type": "string", "maxLength": 40}),
                self.book,
            ),
        ]

    def find(self, arguments: Arguments) -> dict[str, Any]:
        taken = [
            (booking["time"], booking["guests"])
            for booking in self.bookings
            if booking["day"] == arguments["day"]
        ]
        free = [
            time
            for time, seats in self.seats.items()
            if seats - sum(guests for at, guests in taken if at == time) >= arguments["guests"]
        ]
        when = spoken_list([_SPOKEN_TIMES[time] for time in free])
        say = f"We have a table at {when}." if free else "I am sorry, we are full then."
        return {"day": arguments["day"], "free_times": free, "say": say}

    def book(self, arguments: Arguments) -> dict[str, Any]:
        free = self.find(arguments)["free_times"]
        if arguments["time"] not in free:
            when = spoken_list([_SPOKEN_TIMES[time] for time in free])
            say = f"That time is taken. You can have {when}." if free else "I am sorry, we are full then."
            return {"booked": False, "free_times": free, "say": say}
        self.bookings.append(dict(arguments))
        day, guests = arguments["day"], arguments["guests"]
        say = f"Your table for {guests}, {day} at {_SPOKEN_TIMES[arguments['time']]}, is booked."
        return {"booked": True, **arguments, "say": say}


def _schema(**properties: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def spoken_list(things: list[str]) -> str:
    """As people say it: "six, seven or eight"."""
    return " or ".join([", ".join(things[:-1]), things[-1]] if len(things) > 1 else things)


TOOL_SETS: dict[str, Callable[[], list[CallTool]]] = {"table_booking": lambda: TableBook().tools()}
"""Makes the tools of one call."""


def tools_of(name: str) -> list[CallTool]:
    """Fresh tools for a call; none for an empty name. Raises BadParameter."""
    if not name:
        return []
    if name not in TOOL_SETS:
        raise BadParameter("tools", name, ", ".join(TOOL_SETS))
    return TOOL_SETS[name]()
