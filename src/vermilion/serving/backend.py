"""What the service needs of an engine; the only thing it knows of one."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from vermilion.errors import ContextLengthExceeded
from vermilion.types import EngineStats, Event, Finish, ModelInfo, Request, Text, Usage

if TYPE_CHECKING:
    from vermilion.chat_template import ChatTemplate
    from vermilion.text import Tokenizer


class EventSource(Protocol):
    """Where answers come from."""

    @property
    def model(self) -> ModelInfo: ...

    def generate(self, request: Request) -> AsyncGenerator[Event, None]:
        """The events of one answer: any number of `Text` and `Canvas`, then exactly one `Finish`.

        Raises `Overloaded` at the first step where the request is not taken. Closing the generator
        cancels the request within one engine step.
        """

    def prefilled(self, request_id: str) -> Usage:
        """What the prompt of a request that runs has cost so far, for one that is given up before its first
        text; with it those of its parts, named `request_id-...`."""


class Backend(EventSource, Protocol):
    """An engine that runs one model."""

    def stats(self) -> EngineStats:
        """Counters and gauges of now; cheap, called from the event loop."""

    async def load_adapter(self, name: str, folder: Path) -> None:
        """Let requests name the adapter in `folder`, in PEFT's layout, while others are answered. Raises
        `ModelFileError` where it does not fit the model."""

    async def unload_adapter(self, name: str) -> None:
        """Requests that run on it end as usual. Raises `ModelNotFound`."""


@dataclass(frozen=True, slots=True)
class OrganisationView:
    """A backend as one organisation sees it: without the adapters of others."""

    backend: Backend
    hidden: frozenset[str]

    @property
    def model(self) -> ModelInfo:
        model = self.backend.model
        return replace(model, adapters=tuple(name for name in model.adapters if name not in self.hidden))

    def generate(self, request: Request) -> AsyncGenerator[Event, None]:
        return self.backend.generate(request)

    def stats(self) -> EngineStats:
        return self.backend.stats()

    def prefilled(self, request_id: str) -> Usage:
        return self.backend.prefilled(request_id)

    async def load_adapter(self, name: str, folder: Path) -> None:
        await self.backend.load_adapter(name, folder)

    async def unload_adapter(self, name: str) -> None:
        await self.backend.unload_adapter(name)


@dataclass(frozen=True, slots=True)
class Ready:
    """A source whose one answer is known already; it costs its prompt and no pass of the model."""

    model: ModelInfo
    text: str

    async def generate(self, request: Request) -> AsyncGenerator[Event, None]:
        usage = Usage(prompt_tokens=len(request.prompt))
        yield Text(self.text, usage=usage)
        yield Finish("stop", usage)

    def prefilled(self, request_id: str) -> Usage:
        return Usage()


@dataclass(frozen=True, slots=True)
class Served:
    """A loaded model with everything a request passes through."""

    backend: Backend
    tokenizer: Tokenizer
    template: ChatTemplate | None
    """None for a base model, which continues texts and cannot chat."""
    source: str = ""
    """What `vermilion train` calls the model: a name of `vermilion models` or a folder; empty if nothing."""
    forwards: bool = False
    """Whether another server has the tokenizer and the template: requests then carry what was asked, and
    tokens are estimates."""

    def check_length(self, num_bytes: int, param: str = "messages") -> None:
        """Raises `ContextLengthExceeded` for texts of at least `num_bytes` that cannot fit whatever their
        tokens are: that takes no time to see, tokenising them would."""
        length, longest = self.backend.model.context_length, self.tokenizer.longest_token_bytes
        if num_bytes > length * longest:
            error = ContextLengthExceeded(length, -(-num_bytes // longest))
            error.param = param
            raise error
