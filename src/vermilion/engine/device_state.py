"""What the worker keeps on the device for each request, from its first forward until it is released.

A request's part of the slot table grows as its pages do; a forward's host work is the rows it runs, however
long the text behind them is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

_FIRST_ROWS, _FIRST_PAGES = 8, 16


@dataclass(slots=True)
class DeviceState:
    """One request's."""

    table_row: int
    num_pages: int = 0
    first_page: int = -1
    last_page: int = -1
    unbroken: bool = True
    """Whether its pages lie in one run."""
    tensors: dict[str, Tensor] = field(default_factory=dict)
    """What its decoder carries from pass to pass (hidden states, distributions), by name."""


class DeviceStates:
    """States by request, and the slot table [T, S] that all of them have a row of."""

    def __init__(self, page_size: int, device: torch.device) -> None:
        self._page_size = page_size
        self._offsets = torch.arange(page_size, device=device)
        self._pages = torch.zeros(_FIRST_ROWS, _FIRST_PAGES, page_size, dtype=torch.int64, device=device)
        self._states: dict[str, DeviceState] = {}
        self._free = list(range(_FIRST_ROWS))

    @property
    def requests(self) -> set[str]:
        """Those that something is kept for."""
        return set(self._states)

    def of(self, request: str) -> DeviceState:
        """The state of a request that has run and has not been released."""
        return self._states[request]

    @property
    def table_TS(self) -> Tensor:
        """Pool slot of each logical slot; what lies behind a request's pages is any slot."""
        return self._pages.flatten(1)

    def update(self, requests: Sequence[tuple[str, Sequence[int]]]) -> list[DeviceState]:
        """The states of (request, its pages), made where they are new, with the pages that came since."""
        states, places, new = [], [], []
        for name, pages in requests:
            state = self._states.get(name) or self._add(name)
            states.append(state)
            if len(pages) == state.num_pages:
                continue
            for index in range(state.num_pages, len(pages)):
                page = pages[index]
                state.first_page = page if index == 0 else state.first_page
                state.unbroken &= index == 0 or page == state.last_page + 1
                state.last_page = page
                places.append((state.table_row, index))
                new.append(page)
            state.num_pages = len(pages)
        if new:
            self._write(places, new)
        return states

    def release(self, request: str) -> None:
        """Forget a request; nothing happens where it has no state."""
        state = self._states.pop(request, None)
        if state is not None:
            self._free.append(state.table_row)

    def _add(self, name: str) -> DeviceState:
        if not self._free:
            self._free += range(len(self._pages), 2 * len(self._pages))
            self._pages = torch.cat([self._pages, torch.zeros_like(self._pages)])
        state = self._states[name] = DeviceState(self._free.pop())
        return state

    def _write(self, places: Sequence[tuple[int, int]], pages: Sequence[int]) -> None:
        while self._pages.shape[1] <= max(index for _, index in places):
            self._pages = torch.cat([self._pages, torch.zeros_like(self._pages)], 1)
        # One transfer for all of them.
        row, index, page = torch.tensor(
            [(*place, page) for place, page in zip(places, pages, strict=True)], device=self._pages.device
        ).unbind(1)
        self._pages[row, index] = page[:, None] * self._page_size + self._offsets


def distances(logprob_RV: Tensor, position_R: Tensor, kept: dict[str, Tensor]) -> list[float]:
    """KL divergence of each row from the row that `kept` has of the same position, infinite where there is
    none; `kept` then has these rows instead."""
    moved_R = torch.full(position_R.shape, torch.inf, dtype=logprob_RV.dtype, device=logprob_RV.device)
    if "logprobs" in kept:
        same_RP = position_R[:, None] == kept["positions"][None]
        row, before = same_RP.nonzero().unbind(1)
        gap = logprob_RV[row] - kept["logprobs"][before]
        share = logprob_RV[row].exp()
        moved_R[row] = torch.where(share > 0, share * gap, 0).sum(-1)
    kept["logprobs"], kept["positions"] = logprob_RV, position_R
    return [float(value) for value in moved_R.double().tolist()]
