"""A model in the two processes that need it: the engine's, with its weights, and the ingress's, without."""

from __future__ import annotations

import gc
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from vermilion import config
from vermilion.chat_template import ChatTemplate
from vermilion.config import EngineConfig
from vermilion.engine import loading
from vermilion.models import catalog
from vermilion.serving.local_models import open_model
from vermilion.serving.pooled_model import Opened
from vermilion.serving.settings import Settings
from vermilion.text import Tokenizer
from vermilion.types import ModelInfo


@dataclass(frozen=True, slots=True)
class KnownModel:
    """What the ingress needs of a model: no weights."""

    info: ModelInfo
    tokenizer: Tokenizer
    template: ChatTemplate | None


def settings_of(args: Mapping[str, Any]) -> Settings:
    """Tables of a Serve config file, with the accounts of VERMILION_ACCOUNTS. Raises `ConfigError`."""
    url = os.environ.get("VERMILION_ACCOUNTS")
    return config.build(Settings, config.merge(args, [f"serve.accounts.url={url}"] if url else []))


def engine_settings(settings: Settings) -> EngineConfig:
    """Of one replica, which has some of a machine's processors."""
    cpus = int(settings.ray.cpus) or settings.engine.threads or 1
    return replace(settings.engine, threads=settings.engine.threads or cpus)


def open_replica(settings: Settings, name: str) -> Opened:
    """Loads the model and warms it. Raises as `load_model`."""
    _ensure(name)
    opened = open_model(replace(settings, engine=engine_settings(settings)), name)
    gc.collect()
    gc.freeze()
    return opened


def read_model(settings: Settings, name: str) -> KnownModel:
    """Raises as `load_model`."""
    _ensure(name)
    info, _ = loading.describe_model(name, engine_settings(settings))
    return KnownModel(info, *loading.load_text(name))


def _ensure(name: str) -> None:
    """Fetches the model where this machine has none yet."""
    if not catalog.is_pulled(name):
        catalog.pull(name)
