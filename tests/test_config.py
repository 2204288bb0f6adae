"""Configuration from defaults, a file and overrides, and what a mistake in it says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from vermilion.config import EngineConfig, load
from vermilion.errors import ConfigError


@dataclass(frozen=True)
class Key:
    name: str
    limit: int | None = 10


@dataclass(frozen=True)
class Service:
    engine: EngineConfig = field(default_factory=EngineConfig)
    host: str = "127.0.0.1"
    timeout_s: float = 30.0
    folder: Path | None = None
    mode: Literal["open", "closed"] | None = None
    keys: tuple[Key, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)
    origins: tuple[str, ...] = ()


def write(folder: Path, text: str) -> Path:
    file = folder / "vermilion.toml"
    file.write_text(text)
    return file


def test_an_override_wins_over_the_file_and_the_file_over_the_default(tmp_path: Path) -> None:
    file = write(tmp_path, "timeout_s = 5\n[engine]\nmax_rows = 64\nthreads = 2\n")
    config = load(Service, file, ["engine.max_rows=128"])
    assert config == Service(engine=EngineConfig(max_rows=128, threads=2), timeout_s=5.0)


def test_nested_lists_tables_and_options_are_built(tmp_path: Path) -> None:
    text = """
        mode = "open"
        origins = ["a", "b"]
        folder = "/srv"
        [aliases]
        small = "smollm2"
        [[keys]]
        name = "one"
    """
    assert load(Service, write(tmp_path, text)) == Service(
        mode="open", origins=("a", "b"), folder=Path("/srv"), aliases={"small": "smollm2"}, keys=(Key("one"),)
    )


def test_what_is_typed_is_read_as_the_setting_wants_it() -> None:
    overrides = [
        "host=8000",
        "timeout_s=2",
        "mode=closed",
        "engine.prefix_cache=false",
        'origins=["x"]',
        "folder=none",
    ]
    config = load(Service, None, overrides)
    assert (config.host, config.timeout_s, config.mode, config.folder) == ("8000", 2.0, "closed", None)
    assert (config.engine.prefix_cache, config.origins) == (False, ("x",))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("engine.max_row=1", "engine.max_row: no such setting. Did you mean engine.max_rows?"),
        ("zzz=1", "zzz: no such setting. Known: engine, host"),
        ("engine.max_rows=many", "engine.max_rows: 'many' is not allowed; allowed: a whole number."),
        ("engine.max_rows=1.5", "a whole number"),
        ("engine.max_rows=true", "a whole number"),
        ("engine.max_rows=0", "engine.max_rows: 0 is too small; the least is 1."),
        ("engine.prefix_cache=1", "true or false"),
        ("engine.dtype=float16", "auto, float32, bfloat16, float64"),
        ("engine=1", "a section"),
        ("host.name=1", "host: {'name': '1'} is not allowed; allowed: text."),
        ("engine.kv_tokens=8", "holds no page"),
        ("keys=[{limit=1}]", "keys[0]: name must be set"),
        ("origins=[1]", "origins[0]: 1 is not allowed; allowed: text."),
        ("max_rows", "write section.key=value"),
        ("=1", "write section.key=value"),
    ],
)
def test_a_mistake_names_the_setting_and_what_is_allowed(override: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(Service, None, [override])
    assert said in str(caught.value)


def test_a_value_used_as_a_section_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="host is a value, not a section"):
        load(Service, write(tmp_path, 'host = "a"'), ["host.name=1"])


def test_a_missing_or_broken_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such configuration file"):
        load(Service, tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load(Service, write(tmp_path, "a = = 1"))
    with pytest.raises(ConfigError, match="cannot be read"):
        load(Service, tmp_path)
