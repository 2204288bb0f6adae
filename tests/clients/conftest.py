"""What tests of real clients share: a running service, the clients' programs, a table of what was proven."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from clients.editing import BEFORE
from clients.running import Running, running

Proven = Callable[[str, str, str], None]
_PROVEN = pytest.StashKey[list[tuple[str, str, str]]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_PROVEN] = []


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("service") / "log") as service:
        yield service


@pytest.fixture
def proven(request: pytest.FixtureRequest) -> Proven:
    """To be told, at the end of a test, which client did what: its name, its version, what it did."""
    rows = request.config.stash[_PROVEN]

    def tell(client: str, version: str, what: str) -> None:
        rows.append((client, version, what))

    return tell


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    home.mkdir()
    return home


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    """The file to be changed, in a folder of its own."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    notes = folder / "notes.txt"
    notes.write_text(BEFORE)
    return notes


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    rows = sorted(config.stash[_PROVEN])
    if rows:
        terminalreporter.section("real clients, unmodified")
        widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
        for client, version, what in rows:
            terminalreporter.line(f"{client:<{widths[0]}}  {version:<{widths[1]}}  {what}")
