"""Configuration: frozen dataclasses, filled from a TOML file and dotted overrides.

`load` works for any frozen dataclass, nested to any depth:

    load(ServeConfig, Path("serve.toml"), ["engine.max_rows=256", "port=8080"])

An override wins over the file, the file over the defaults. Whatever is unknown or of the wrong type raises
`ConfigError`, naming the setting, where it was written and what is allowed.
"""

from __future__ import annotations

import dataclasses
import re
import tomllib
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from vermilion.errors import ConfigError

Config = TypeVar("Config")
PAGE_SIZE = 16
"""Positions of a page of the key-value cache, where nothing else is said or needed."""


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """How a model is run. Every field may stand in a file's `[engine]` table."""

    backend: Literal["auto", "native", "torch"] = "auto"
    """`native`: the C++ kernels for CPUs, in quantised weights; `torch`: PyTorch; `auto`: the kernels where
    they can run the model, which a GPU or a `dtype` rules out."""
    quantize: Literal["q8", "q4", "int8", "fp8", "none"] = "q8"
    """`q8`, `q4`: bits of a weight on the native backend, where the checkpoint is not quantised itself; a GPU
    leaves weights as they are. `int8`, `fp8`: eight bits of a weight on a GPU. `none` leaves weights as they
    are everywhere, on PyTorch."""
    dtype: Literal["auto", "float32", "bfloat16", "float64"] = "auto"
    """`auto`: bfloat16 on a GPU, float32 on a CPU."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`, ... `auto` takes the first GPU there is."""
    tensor_parallel: int = 1
    """Processes that share one model, on PyTorch: as many GPUs, or as many parts of the CPU's cores."""
    threads: int = 0
    """CPU threads of a forward pass; 0 for all cores."""
    kv_tokens: int = 8320
    """Positions the key-value cache holds, over all requests."""
    page_size: int = 0
    """Positions of one page, the unit in which the cache is lent out; 0: 16, or what the model
    needs."""
    max_rows: int = 256
    """Most token rows of one forward pass."""
    prefill_chunk: int = 256
    """Most prompt tokens of one request in one forward pass."""
    max_pause_ms: float = 40.0
    """Prompts are read in pieces so small that a step which also brings answers on takes no longer, or at
    most twice as long as without them. Measured costs of rows decide (models with a next token)."""
    max_running: int = 32
    """Most requests decoded at once."""
    max_waiting: int = 64
    """Most requests queued; past it a request is refused as overloaded."""
    prefix_cache: bool = True
    """Whether the pages of a finished request serve later ones with the same beginning."""
    memory_budget: str = ""
    """Memory for all models of a service together, such as 12GB or 800MB; past it the one that was used
    longest ago is unloaded. Empty: four fifths of the machine's, or of the GPU's."""

    def __post_init__(self) -> None:
        least = {
            "threads": 0,
            "tensor_parallel": 1,
            "kv_tokens": 1,
            "page_size": 0,
            "max_rows": 1,
            "prefill_chunk": 1,
            "max_pause_ms": 0,
            "max_running": 1,
            "max_waiting": 0,
        }
        for name, limit in least.items():
            if getattr(self, name) < limit:
                raise ConfigError(f"engine.{name}: {getattr(self, name)} is too small; the least is {limit}.")
        self.memory_budget_bytes  # noqa: B018 a budget that cannot be read is refused here
        page = self.page_size or PAGE_SIZE
        if self.kv_tokens < page:
            raise ConfigError(f"engine.kv_tokens: {self.kv_tokens} holds no page of engine.page_size={page}.")

    @property
    def memory_budget_bytes(self) -> int:
        """0 where none is set. Raises ConfigError for what is no size."""
        if not self.memory_budget:
            return 0
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(MB|GB|TB)", self.memory_budget.strip(), re.IGNORECASE)
        if found is None:
            raise ConfigError(
                f"engine.memory_budget: {self.memory_budget!r} is not a size; write 12GB or 800MB."
            )
        return int(float(found[1]) * {"MB": 1e6, "GB": 1e9, "TB": 1e12}[found[2].upper()])


class _Written(str):
    """A value as typed after `key=`; its meaning depends on the field it is for."""


def load(kind: type[Config], file: Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """A `kind` from defaults, then the TOML `file`, then `overrides` ("engine.max_rows=256").

    Raises ConfigError.
    """
    return build(kind, merge(read(file) if file else {}, overrides))


def read(file: Path) -> dict[str, Any]:
    """The tables of a TOML file. Raises ConfigError when it is missing, unreadable or not TOML."""
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{file}: no such configuration file.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: cannot be read: {error}.") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file}: not valid TOML: {error}.") from None


def merge(settings: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of nested `settings` in which each override "a.b=value" is set."""
    merged = dict(settings)
    for override in overrides:
        path, equals, value = override.partition("=")
        keys = [key.strip() for key in path.split(".")]
        if not equals or not all(keys):
            raise ConfigError(f"{override!r}: not an override; write section.key=value.")
        table = merged
        for key in keys[:-1]:
            inner = table.get(key, {})
            if not isinstance(inner, Mapping):
                raise ConfigError(f"{path}: {key} is a value, not a section.")
            table[key] = dict(inner)
            table = table[key]
        table[keys[-1]] = _Written(value.strip())
    return merged


def build(kind: type[Config], values: Mapping[str, Any], where: str = "") -> Config:
    """A `kind` with the given fields; `where` is the dotted path of its section, for messages."""
    if not dataclasses.is_dataclass(kind):
        raise TypeError(f"{kind!r} is not a dataclass")
    hints = get_type_hints(kind)
    known = [field.name for field in dataclasses.fields(kind) if field.init]
    given = {}
    for key, value in values.items():
        path = f"{where}.{key}" if where else key
        if key not in known:
            raise _unknown(path, key, known)
        given[key] = _convert(value, hints[key], path)
    missing = [
        field.name
        for field in dataclasses.fields(kind)
        if field.init
        and field.name not in given
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"{where or 'configuration'}: {', '.join(missing)} must be set.")
    return kind(**given)


def _unknown(path: str, key: str, known: Sequence[str]) -> ConfigError:
    section = path.removesuffix(key)
    close = get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"Did you mean {section}{close[0]}?" if close else f"Known: {', '.join(known)}."
    return ConfigError(f"{path}: no such setting. {hint}")


def _convert(value: Any, hint: Any, path: str) -> Any:
    """`value`, from TOML or an override, as the type `hint`; raises ConfigError where it is not one."""
    if isinstance(value, _Written):
        value = _parse(value, hint)
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _convert_union(value, arguments, path)
    if origin is Literal:
        if value in arguments:
            return value
    elif dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if isinstance(value, Mapping):
            return build(hint, value, path)
    elif origin in (tuple, list, Sequence):
        if isinstance(value, (list, tuple)):
            return tuple(_convert(item, arguments[0], f"{path}[{i}]") for i, item in enumerate(value))
    elif origin in (dict, Mapping):
        if isinstance(value, Mapping):
            return {key: _convert(item, arguments[1], f"{path}.{key}") for key, item in value.items()}
    elif hint is Path and isinstance(value, str):
        return Path(value).expanduser()
    elif hint is float and type(value) in (int, float):
        return float(value)
    elif hint is Any or (isinstance(hint, type) and type(value) is hint):
        return value
    raise ConfigError(f"{path}: {value!r} is not allowed; allowed: {_describe(hint)}.")


def _convert_union(value: Any, arguments: tuple[Any, ...], path: str) -> Any:
    """The first member of the union that takes `value`; the error of the last that is not None."""
    refusal: ConfigError | None = None
    for member in arguments:
        if member is type(None):
            if value is None:
                return None
            continue
        try:
            return _convert(value, member, path)
        except ConfigError as error:
            refusal = error
    raise refusal or ConfigError(f"{path}: {value!r} is not allowed.")


def _parse(written: str, hint: Any) -> Any:
    """What was typed after `key=`: `none` for an optional setting, text for a text setting, else TOML."""
    members = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    if written == "none" and type(None) in members:
        return None
    if str in members or Path in members:
        return str(written)
    if any(get_origin(member) is Literal and written in get_args(member) for member in members):
        return str(written)
    try:
        return tomllib.loads(f"value = {written}")["value"]
    except tomllib.TOMLDecodeError:
        return str(written)


def _describe(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return ", ".join(str(argument) for argument in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(argument) for argument in arguments if argument is not type(None))
    if origin in (tuple, list, Sequence):
        return f"a list, each {_describe(arguments[0])}"
    if dataclasses.is_dataclass(hint) or origin in (dict, Mapping):
        return "a section"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}
    return names.get(hint, str(hint))
