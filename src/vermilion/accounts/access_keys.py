"""Access keys, with whose secret Amazon's clients sign requests instead of sending it.

Who checks a signature needs the secret itself, and accounts keep only hashes. So an access key's secret is
not random: it is HMAC-SHA256 of the key's id under the accounts' signing secret, which stands in the
environment or in a file beside the database, never in it. A copy of the database alone signs nothing, and
neither does the signing secret alone: a key counts only if its row has the hash of that secret, and is not
revoked.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import secrets
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from vermilion.accounts.database import Database
from vermilion.accounts.keys import Secret
from vermilion.errors import ConfigError

SIGNING_SECRET = "VERMILION_SIGNING_SECRET"
"""The variable of the environment; every process of one service needs the same."""
_MARK = "AKVM"
_USE = b"vermilion access key 1:"
_SECRET_BYTES = 30
_LEAST_CHARACTERS = 32


def signing_secret(store: Database, create: bool = False) -> bytes | None:
    """That of the accounts in `store`; None where there is none yet.

    `create` makes one for a database that is a file; for another the variable is needed. Raises `ConfigError`
    without it, and for one that is too short.
    """
    given = os.environ.get(SIGNING_SECRET, "")
    if given:
        if len(given) < _LEAST_CHARACTERS:
            raise ConfigError(f"{SIGNING_SECRET}: at least {_LEAST_CHARACTERS} characters are needed.")
        return given.encode()
    if not store.is_sqlite:
        if create:
            raise ConfigError(
                f"Access keys need a secret that every server of the service knows: set {SIGNING_SECRET} to "
                "what `openssl rand -hex 32` prints, for this command and for serve."
            )
        return None
    path = Path(f"{store.engine.url.database}.signing-secret")
    if create:
        _make(path)
    return path.read_bytes().strip() if path.exists() else None


def _make(path: Path) -> None:
    """Only its owner may read it; another process that makes it at the same time wins."""
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    partial.touch(mode=0o600)
    partial.write_text(secrets.token_hex(32))
    try:
        os.link(partial, path)
    except FileExistsError:
        pass
    finally:
        partial.unlink()


def access_key_id(key_id: str) -> str:
    """The id by which Amazon's clients name the key."""
    return f"{_MARK}{key_id.upper()}"


def key_id_of(access_key: str) -> str | None:
    """The key's own id; None for what cannot be one of ours."""
    bare = access_key.removeprefix(_MARK)
    return bare.lower() if bare != access_key and bare.isascii() and bare.isalnum() else None


@lru_cache(1024)
def secret_of(signing: bytes, key_id: str) -> str:
    """40 characters."""
    made = hmac.digest(signing, _USE + key_id.encode(), hashlib.sha256)
    return base64.urlsafe_b64encode(made[:_SECRET_BYTES]).decode()


def credentials(made: Secret) -> Mapping[str, str]:
    """What Amazon's clients read from the environment. The bearer key is the same key, sent instead of used
    for a signature."""
    return {
        "AWS_ACCESS_KEY_ID": access_key_id(made.key.id),
        "AWS_SECRET_ACCESS_KEY": made.secret,
        "AWS_BEARER_TOKEN_BEDROCK": made.text,
    }
