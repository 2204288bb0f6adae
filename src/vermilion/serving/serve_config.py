"""What an operator decides about the service."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from vermilion.accounts.accounts_config import AccountsConfig
from vermilion.errors import ConfigError
from vermilion.models.families.family_presets import PRESET_NAMES


@dataclass(frozen=True, slots=True)
class ServeConfig:
    """Settings of the HTTP service. Raises `ConfigError` for values that cannot work."""

    host: str = "127.0.0.1"
    port: int = 8000
    """0 lets the system choose one; the log names it."""
    open: bool = False
    """Whether a service without accounts may listen on more than this computer: whoever reaches it may then
    use it."""
    accounts: AccountsConfig = field(default_factory=AccountsConfig)
    """Where `accounts.url` is set, every request needs a key and is written into a ledger."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Other names a client may ask for, each with the id of the model that then answers."""
    mercury_names: bool = True
    """Whether the served model also answers to the names of Inception's, so that a client of theirs needs
    nothing but another address. /v1/models lists them behind the model's own names."""
    claude_names: bool = True
    """Whether it also answers to every name that begins with `claude-`, so that Claude Code needs nothing but
    another address."""
    demanded_tools: tuple[str, ...] = ()
    """Tools that an answer to a user's message must call where a client offers one of them and leaves the
    choice to the model; the first that is offered. For models too small to call tools by themselves."""
    allowed_hosts: tuple[str, ...] = ()
    """Names besides this computer's own that a Host header may carry when `host` is a loopback address, such
    as that of a proxy in front; `*` for any. Web pages of other names must not reach the service."""
    max_body_bytes: int = 8 * 1024 * 1024
    drain_timeout_s: float = 30.0
    """How long running answers may go on after SIGTERM before they are cut short."""
    keep_alive_s: float = 10.0
    """A stream that has been silent for so long gets a comment, so that no proxy gives it up."""
    cors_origins: tuple[str, ...] = ()
    """Web origins whose pages may call the service; `*` for all. Pages of this computer always may."""
    default_preset: str = ""
    """The decoding of a request that names none; empty for the model's own default."""
    default_max_tokens: int = 0
    """The length limit of a chat answer whose request names none; 0 for an eighth of the context, from 256 to
    4096 tokens."""

    model_wait_s: float = 60.0
    """How long a request waits for a model that is not loaded; then it is asked to come again."""
    max_response_store_bytes: int = 64 * 1024 * 1024
    """Memory for the responses of /v1/responses that may be gone on from or read again; 0 keeps none. One
    organisation may take a quarter of it."""
    max_response_age_s: float = 24 * 3600
    """How long they are kept."""

    adapter_folder: Path | None = None
    """Folder whose sub-folders clients may have loaded as adapters; unset, none. Those that the service is
    started with, and those that fine-tuning makes, need none."""

    data_folder: Path | None = None
    """Where files, fine-tuning jobs and batches are kept; the user's own data folder unless set. One service
    at a time may use a folder."""
    max_file_bytes: int = 100 * 1024 * 1024
    """Largest upload to /v1/files."""
    recognizer: str = ""
    """What hears in /v1/audio: base, tiny.en, pocketsphinx, or a folder; the best that is here unless set."""
    synthesizer: str = ""
    """What speaks there: piper, flite or kokoro."""
    max_audio_bytes: int = 25 * 1024 * 1024
    """Largest file to /v1/audio/transcriptions, as OpenAI's."""
    max_audio_s: float = 3600.0
    """Longest of them; an hour takes 230 MB of memory while its turn lasts."""
    max_stored_bytes: int = 10 * 1024 * 1024 * 1024
    """All files together."""
    organisation_stored_bytes: int = 1024 * 1024 * 1024
    """Files of one organisation together, on a service with accounts."""
    organisation_jobs: int = 4
    """Fine-tuning jobs of one organisation that are not over, and its batches, on a service with accounts."""

    def __post_init__(self) -> None:
        if self.open and self.accounts.url:
            raise ConfigError("open: a service with accounts is not open; give --accounts or --open.")
        if not self.open and not self.accounts.url and not is_loopback(self.host):
            raise ConfigError(
                f"host: {self.host!r} can be reached from other computers. Give --accounts with a file or a "
                "PostgreSQL address, so that every request needs a key (vermilion accounts init makes them), "
                "or --open if whoever reaches it may use it, or keep the default 127.0.0.1."
            )
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port: {self.port} is not allowed; allowed: 0 to 65535, 0 for any free one.")
        for name in (
            "max_body_bytes",
            "keep_alive_s",
            "max_file_bytes",
            "max_audio_bytes",
            "max_audio_s",
            "max_stored_bytes",
            "organisation_stored_bytes",
            "organisation_jobs",
        ):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name}: {getattr(self, name)} is not allowed; it must be above 0.")
        if self.default_preset and self.default_preset not in PRESET_NAMES:
            known = ", ".join(PRESET_NAMES)
            raise ConfigError(f"default_preset: {self.default_preset!r} is not one of {known}.")
        if self.drain_timeout_s < 0:
            raise ConfigError(f"drain_timeout_s: {self.drain_timeout_s} is not allowed; allowed: 0 or more.")


@lru_cache(256)
def is_loopback(host: str) -> bool:
    """Whether only this computer can reach a service bound to `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
