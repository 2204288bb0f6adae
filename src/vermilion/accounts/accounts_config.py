"""What an operator decides about accounts."""

from __future__ import annotations

from dataclasses import dataclass

from vermilion.accounts.keys import RateLimits
from vermilion.accounts.organisations import FREE_TOKENS
from vermilion.errors import ConfigError


@dataclass(frozen=True, slots=True)
class AccountsConfig:
    """Settings of a service's accounts, and what those who sign up by themselves get."""

    url: str = ""
    """Where they are kept: a file, or postgresql://user@host/name. Empty for a service without accounts."""
    sign_ups_per_hour: int = 60
    """How many organisations may sign up over HTTP; 0 for none."""
    free_tokens: int = FREE_TOKENS
    requests_per_minute: int = 1000
    tokens_per_minute: int = 1_000_000
    concurrency: int = 32

    def __post_init__(self) -> None:
        for name, least in (
            ("sign_ups_per_hour", 0),
            ("free_tokens", 0),
            ("requests_per_minute", 1),
            ("tokens_per_minute", 1),
            ("concurrency", 1),
        ):
            if getattr(self, name) < least:
                raise ConfigError(
                    f"accounts.{name}: {getattr(self, name)} is too small; the least is {least}."
                )

    @property
    def limits(self) -> RateLimits:
        return RateLimits(self.requests_per_minute, self.tokens_per_minute, self.concurrency)
