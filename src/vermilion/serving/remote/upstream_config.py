"""What an operator decides about the servers behind this one."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from vermilion.errors import ConfigError

UPSTREAM_KEY = "VERMILION_UPSTREAM_KEY"
"""The variable of the environment with the key that the upstreams ask for."""


@dataclass(frozen=True, slots=True)
class UpstreamConfig:
    """Servers with OpenAI's API that all serve one model. Raises `ConfigError`."""

    urls: tuple[str, ...] = ()
    """Such as http://10.0.0.7:8000, with /v1 or without. None: the model runs here."""
    model: str = ""
    """What they must serve; the first model that one of them lists unless set."""
    max_requests: int = 256
    """Answers under way at once on each; past that on all of them a request is refused as overloaded."""
    connect_timeout_s: float = 5.0
    silence_timeout_s: float = 300.0
    """How long an upstream may say nothing before it counts as failed."""
    probe_s: float = 2.0
    """How often one that has failed is asked whether it is back."""

    def __post_init__(self) -> None:
        for url in self.urls:
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
                raise ConfigError(f"upstream: {url!r} is no address as http://host:8000.")
        for name in ("max_requests", "connect_timeout_s", "silence_timeout_s", "probe_s"):
            if getattr(self, name) <= 0:
                raise ConfigError(
                    f"upstream.{name}: {getattr(self, name)} is not allowed; it must be above 0."
                )

    @property
    def bases(self) -> tuple[str, ...]:
        """The addresses, each once and with /v1."""
        bare = (url.rstrip("/").removesuffix("/v1") for url in self.urls)
        return tuple(dict.fromkeys(f"{url}/v1" for url in bare))
