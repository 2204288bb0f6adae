"""What goes wrong between this server and those behind it."""

from __future__ import annotations

from vermilion.errors import VermilionError


class UpstreamFailed(VermilionError):
    """One upstream did not answer; another may."""

    def __init__(self, reason: str, busy: bool = False) -> None:
        super().__init__(reason)
        self.busy = busy


class UpstreamUnavailable(VermilionError):
    """No upstream answers."""

    status = 503
    code = "upstream_unavailable"
    retry_after_s = 5


class UpstreamCannot(VermilionError):
    """The request needs what the servers behind this one do not do."""

    status = 501
    kind = "invalid_request_error"
    code = "unsupported_by_upstream"

    def __init__(self, param: str, reason: str) -> None:
        super().__init__(f"{param}: {reason}")
        self.param = param
