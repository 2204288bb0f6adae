"""API keys: `vm-<id>-<secret>`. The id is public and finds the row; of the secret only a hash is kept.

The secret has 256 random bits, so one round of SHA-256 is enough: there is nothing to guess that a slow
hash, made for passwords, would protect.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterable
from dataclasses import dataclass

from vermilion.errors import BadParameter

SCOPES = ("generate", "jobs", "manage", "operate")
"""`generate`: every route of a model. `jobs`: files and fine-tuning. `manage`: the organisation's own keys,
usage, invoices and fine-tuned models. `operate`: the service's metrics and adapters; only the command line
gives it."""

_MARK = "vm-"
_ID_ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"
_ID_LENGTH = 12
_SECRET_BYTES = 32
_LONGEST = 200


@dataclass(frozen=True, slots=True)
class RateLimits:
    """None is no limit; `budget` is picodollars per calendar month (UTC)."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrency: int | None = None
    budget: int | None = None

    def __post_init__(self) -> None:
        for name in ("requests_per_minute", "tokens_per_minute", "concurrency"):
            value = getattr(self, name)
            if value is not None and not 1 <= value < 2**53:
                raise BadParameter(name, value, "whole numbers from 1, or none for no limit")


@dataclass(frozen=True, slots=True)
class Key:
    """A key as its row says; `scopes` are some of `SCOPES`."""

    id: str
    organisation_id: str
    name: str
    digest: str
    scopes: frozenset[str]
    created_at_us: int
    expires_at_us: int | None
    revoked_at_us: int | None
    limits: RateLimits

    @property
    def prefix(self) -> str:
        """What may be shown of it."""
        return f"{_MARK}{self.id}"

    def good(self, now_us: int) -> bool:
        return self.revoked_at_us is None and (self.expires_at_us is None or now_us < self.expires_at_us)


@dataclass(frozen=True, slots=True)
class Secret:
    """A key and, this once, its secret."""

    key: Key
    secret: str

    @property
    def text(self) -> str:
        """The key as its owner keeps it."""
        return f"{self.key.prefix}-{self.secret}"


def new_id(mark: str = "") -> str:
    """A random public name of 60 bits."""
    return mark + "".join(secrets.choice(_ID_ALPHABET) for _ in range(_ID_LENGTH))


def new_secret() -> str:
    return secrets.token_urlsafe(_SECRET_BYTES)


def parsed(token: str) -> tuple[str, str] | None:
    """(id, secret) of what a client sent, or None where it cannot be a key of ours."""
    if not token.startswith(_MARK) or len(token) > _LONGEST or not token.isascii():
        return None
    key_id, dash, secret = token.removeprefix(_MARK).partition("-")
    return (key_id, secret) if dash and key_id.isalnum() and secret else None


def digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def matches(key: Key | None, secret: str) -> bool:
    """In constant time, and as long for a key that does not exist."""
    expected = key.digest if key else "0" * 64
    return hmac.compare_digest(expected, digest(secret)) and key is not None


def checked_scopes(scopes: Iterable[str], allowed: Iterable[str] = SCOPES) -> frozenset[str]:
    """Raises `BadParameter` for what is no scope, or none that may be given here."""
    wanted, known = frozenset(scopes), tuple(allowed)
    unknown = sorted(wanted.difference(known))
    if unknown or not wanted:
        raise BadParameter("scopes", unknown[0] if unknown else "", ", ".join(known))
    return wanted
