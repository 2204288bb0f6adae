"""What a caller without the right, the money or the room is told."""

from __future__ import annotations

from vermilion.accounts.meters import Standing
from vermilion.errors import BadRequest, VermilionError


class InvalidKey(VermilionError):
    """No key, or none that is good."""

    status = 401
    kind = "authentication_error"
    code = "invalid_api_key"


class AccountInactive(VermilionError):
    """The free tokens are gone, or the organisation is disabled; Mercury's answer to that."""

    status = 402
    kind = "account_error"
    code = "account_inactive"

    def __init__(self, reason: str) -> None:
        super().__init__(f"Account is inactive: {reason}")


class QuotaReached(VermilionError):
    """The organisation has as many files, jobs or batches as it may have at once."""

    status = 429
    kind = "rate_limit_error"
    code = "quota_reached"


class BudgetReached(VermilionError):
    """The month's budget of the key or of the organisation is spent."""

    status = 402
    kind = "account_error"
    code = "budget_reached"


class NotPermitted(VermilionError):
    """The key is good, but not for this."""

    status = 403
    kind = "permission_error"
    code = "insufficient_scope"


class RateLimited(VermilionError):
    """A limit of the key or of its organisation is reached."""

    status = 429
    kind = "rate_limit_error"
    code = "rate_limit_reached"

    def __init__(self, message: str, retry_after_s: int | None, standing: Standing) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.standing = standing


class IdempotencyConflict(BadRequest):
    """The idempotency key belongs to another request, or to one that is still running."""

    status = 409

    def __init__(self, message: str, code: str, retry_after_s: int | None = None) -> None:
        super().__init__(message, "Idempotency-Key", code)
        self.retry_after_s = retry_after_s


class AccountsUnavailable(VermilionError):
    """The database of accounts cannot be reached: without it nothing may be answered."""

    status = 503
    code = "accounts_unavailable"
    retry_after_s = 5

    def __init__(self) -> None:
        super().__init__("The accounts cannot be reached at the moment. Try again shortly.")


class AccountNotFound(BadRequest):
    """No such organisation, user or key."""

    status = 404

    def __init__(self, kind: str, id: str) -> None:
        super().__init__(f"No {kind} {id[:80]!r}.", kind, f"{kind}_not_found")
