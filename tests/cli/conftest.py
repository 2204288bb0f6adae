"""The command line with a model that answers from a script."""

from __future__ import annotations

import sys

import pytest

from tests.cli import scripted


@pytest.fixture
def fake_llm(monkeypatch: pytest.MonkeyPatch) -> type[scripted.FakeLLM]:
    monkeypatch.setitem(sys.modules, "vermilion.engine.llm", scripted.module())
    monkeypatch.setattr("vermilion.cli.pulling.ensure", lambda model, offline: None)
    return scripted.FakeLLM
