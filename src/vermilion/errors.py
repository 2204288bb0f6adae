"""Errors a caller can act on: what was given, what is allowed, what to do.

Each class carries the HTTP status and the OpenAI error `type` and `code` that the wire modules render,
so that the edge needs no table of its own.
"""

from __future__ import annotations


class VermilionError(Exception):
    """Base of all our errors; `str()` is one line fit for a user."""

    status = 500
    kind = "server_error"
    code: str | None = None
    param: str | None = None
    retry_after_s: int | None = None


class BadRequest(VermilionError):
    """The request as a whole cannot be understood."""

    status = 400
    kind = "invalid_request_error"

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class BadParameter(BadRequest):
    """One parameter is outside what is allowed."""

    def __init__(self, param: str, given: object, allowed: str, hint: str = "") -> None:
        shown = repr(given[:80] if isinstance(given, str) else given)
        shown = shown if len(shown) <= 80 else shown[:77] + "..."
        message = f"{param}: {shown} is not allowed; allowed: {allowed}." + (f" {hint}" if hint else "")
        super().__init__(message, param=param, code="invalid_value")


class ContextLengthExceeded(BadRequest):
    """Prompt and answer do not fit the model's context."""

    def __init__(self, limit: int, given: int) -> None:
        self.limit, self.given = limit, given
        super().__init__(
            f"This model's maximum context length is {limit} tokens. However, your prompt has {given} "
            "tokens. Please reduce the length of the prompt.",
            param="messages",
            code="context_length_exceeded",
        )


class ModelNotFound(VermilionError):
    """No such model is served, or on this disk."""

    status = 404
    kind = "invalid_request_error"
    code = "model_not_found"
    param = "model"

    def __init__(self, name: str, known: tuple[str, ...] = (), more: str = "") -> None:
        """`more` says where the rest of a long list is."""
        listed = ", ".join(known) or "none"
        super().__init__(f"Model {name!r} not found. Known models: {listed}{f'; {more}' if more else ''}.")


class Overloaded(VermilionError):
    """The waiting queue is full; the request was not taken."""

    status = 429
    kind = "rate_limit_error"
    code = "engine_overloaded"
    retry_after_s = 1


class Draining(VermilionError):
    """The service is stopping; the request was not taken."""

    status = 503
    kind = "server_error"
    code = "service_draining"
    retry_after_s = 5

    def __init__(self) -> None:
        super().__init__("The service is shutting down and takes no new requests. Try again shortly.")


class EngineFailure(VermilionError):
    """A step of the engine failed; the requests in it were ended."""

    status = 500
    code = "engine_failure"


class ProcessLost(EngineFailure):
    """A process that holds a part of the model has ended, or is out of step; nothing runs on it any more."""

    status = 503
    code = "model_process_lost"
    retry_after_s = 30


class ModelFileError(VermilionError):
    """A model's files are missing, damaged or not what was expected."""

    code = "model_file_error"


class ConfigError(VermilionError):
    """A configuration file, option or environment value is wrong."""

    code = "config_error"


class SpeechNotInstalled(VermilionError):
    """What speaks and hears is an extra."""

    status = 501
    kind = "invalid_request_error"
    code = "speech_not_installed"

    def __init__(self, detail: str) -> None:
        super().__init__(f"This service has no speech models. {detail}")
