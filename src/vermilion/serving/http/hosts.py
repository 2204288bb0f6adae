"""Under which names the service may be asked.

A web page can point a name of its own at 127.0.0.1 (DNS rebinding) and then read whatever a service on
this computer answers. Its requests still carry that name as their Host, and are refused for it.
"""

from __future__ import annotations

from collections.abc import Sequence

from vermilion.errors import VermilionError
from vermilion.serving.serve_config import is_loopback

_LONGEST_SHOWN = 80


class HostNotAllowed(VermilionError):
    """The Host header names neither this computer nor a name the operator allowed."""

    status = 403
    kind = "permission_error"
    code = "host_not_allowed"

    def __init__(self, host: str, option: str) -> None:
        name = host[:_LONGEST_SHOWN]
        super().__init__(
            f"Host {name!r} is not allowed: this service answers only its own computer. Ask it as localhost "
            f"or 127.0.0.1; if the name is meant, start it with {option.format(name)}."
        )


def check_host(header: str | None, bound: str, allowed: Sequence[str], option: str) -> None:
    """Raises `HostNotAllowed` for a stranger's name on a service that only this computer reaches.

    `bound` is the address the service listens on, `option` how a further name, at its `{}`, is allowed. No
    header at all is let through: browsers always send one.
    """
    if header is None or not is_loopback(bound) or "*" in allowed:
        return
    host = _without_port(header).rstrip(".").lower()
    if host.endswith(".localhost") or is_loopback(host):
        return
    if host not in (name.lower() for name in allowed):
        raise HostNotAllowed(host, option)


def _without_port(header: str) -> str:
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0]
