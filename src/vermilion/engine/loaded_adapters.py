"""Which adapters an engine has loaded, and which of its requests go through them. No torch."""

from __future__ import annotations

from collections import Counter
from typing import Protocol

from vermilion.errors import ModelNotFound

FIM = "fim"
"""The handle of the model's own adapter for gaps."""


class Holder(Protocol):
    """What holds the tensors, in a form of its own: the worker or the native runner."""

    def attach(self, name: str, adapter: object) -> None: ...

    def detach(self, name: str) -> None: ...


class Adapters:
    """Adapters by name. Each loading has a handle of its own, which names its tensors and its cached keys:
    what is loaded again under an old name shares nothing with what was there before."""

    def __init__(self, holder: Holder) -> None:
        self._holder = holder
        self._handles: dict[str, str] = {}
        self._users: Counter[str] = Counter()
        self._num_loaded = 0
        self._kept: set[str] = set()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._handles)

    def check(self, name: str) -> None:
        """Raises ModelNotFound for a name that is not loaded; empty means no adapter."""
        if name and name not in self._handles:
            raise ModelNotFound(name, self.names)

    def add(self, name: str, adapter: object) -> None:
        """Requests may name it from now on; those that run on another of this name end on that one."""
        self._num_loaded += 1
        handle = f"#{self._num_loaded}"
        self._holder.attach(handle, adapter)
        old = self._handles.get(name)
        self._handles[name] = handle
        self._drop_unused(old)

    def keep(self, handle: str, adapter: object) -> None:
        """One of the engine's own, known by its handle alone: no request names it, and it stays."""
        self._holder.attach(handle, adapter)
        self._kept.add(handle)

    def remove(self, name: str) -> None:
        """New requests may not name it; its memory goes when the last that runs on it ends."""
        self.check(name)
        self._drop_unused(self._handles.pop(name, None))

    def take(self, name: str) -> str:
        """The handle for one more request, to be given back when it ends; empty for no adapter."""
        self.check(name)
        handle = self._handles[name] if name else ""
        self._users[handle] += 1
        return handle

    def give_back(self, handle: str) -> None:
        self._users[handle] -= 1
        self._drop_unused(handle)

    def _drop_unused(self, handle: str | None) -> None:
        if handle in self._kept:
            return
        if handle and not self._users[handle] and handle not in self._handles.values():
            del self._users[handle]
            self._holder.detach(handle)
