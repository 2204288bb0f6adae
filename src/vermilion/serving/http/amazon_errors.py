"""Errors as Amazon's clients read them: a type in a header and in the body, one status for each type."""

from __future__ import annotations

import json

from starlette.responses import Response

from vermilion.errors import ContextLengthExceeded, EngineFailure, VermilionError

_BEDROCK = "/model/"
_SAGEMAKER = "/endpoints/"
_SERVER_ERROR = 500
_STATUS = {
    "ValidationException": 400,
    "ServiceQuotaExceededException": 400,
    "ConflictException": 400,
    "IncompleteSignatureException": 400,
    "AccessDeniedException": 403,
    "ResourceNotFoundException": 404,
    "UnknownOperationException": 404,
    "ModelTimeoutException": 408,
    "ModelErrorException": 424,
    "ModelNotReadyException": 429,
    "ThrottlingException": 429,
    "InternalServerException": 500,
    "ServiceUnavailableException": 503,
    "ValidationError": 400,
    "ModelError": 424,
    "InternalFailure": 500,
    "ServiceUnavailable": 503,
}
"""Of each type, as the services' own descriptions have it; 403 for those of a signature."""
_SIGNATURE_STATUS = 403
_BEDROCK_TYPES = {
    401: "AccessDeniedException",
    402: "ServiceQuotaExceededException",
    403: "AccessDeniedException",
    404: "ResourceNotFoundException",
    405: "UnknownOperationException",
    408: "ModelTimeoutException",
    409: "ConflictException",
    429: "ThrottlingException",
    503: "ServiceUnavailableException",
}
_SAGEMAKER_TYPES = {
    401: "AccessDeniedException",
    403: "AccessDeniedException",
    405: "UnknownOperationException",
    429: "ThrottlingException",
    503: "ServiceUnavailable",
}
_TOO_LONG = "Input is too long for requested model. "
"""The words by which clients know that a conversation must be shortened."""


class SignatureRefused(VermilionError):
    """A request that was signed, but not with a key that this service gave out; `code` is Amazon's type."""

    status = _SIGNATURE_STATUS
    kind = "authentication_error"

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def is_amazon(path: str) -> bool:
    """Whether the route at `path` is one of Amazon's own services."""
    return path.startswith((_BEDROCK, _SAGEMAKER))


def amazon_headers(path: str, request_id: str) -> list[tuple[bytes, bytes]]:
    """The id of a request where Amazon's clients look for it."""
    return [(b"x-amzn-requestid", request_id.encode())] if is_amazon(path) else []


def amazon_response(error: VermilionError, path: str) -> Response:
    """The reply of the route at `path`."""
    if path.startswith(_SAGEMAKER):
        kind, body = _sagemaker(error)
    else:
        kind = bedrock_type(error)
        body = bedrock_body(error, kind)
    headers = {"x-amzn-ErrorType": kind}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(error.retry_after_s)
    status = _STATUS.get(kind, _SIGNATURE_STATUS)
    return Response(json.dumps(body), status, headers, "application/json")


def bedrock_type(error: VermilionError) -> str:
    if isinstance(error, SignatureRefused):
        return str(error.code)
    if error.code == "unknown_url":
        return "UnknownOperationException"
    if error.code == "model_loading":
        return "ModelNotReadyException"
    if isinstance(error, EngineFailure):
        return "ModelErrorException"
    other = "InternalServerException" if error.status >= _SERVER_ERROR else "ValidationException"
    return _BEDROCK_TYPES.get(error.status, other)


def bedrock_body(error: VermilionError, kind: str) -> dict[str, object]:
    message = f"{_TOO_LONG if isinstance(error, ContextLengthExceeded) else ''}{error}"
    more = {"originalStatusCode": error.status} if kind.startswith("Model") and "Error" in kind else {}
    return {"message": message, **more}


def _sagemaker(error: VermilionError) -> tuple[str, dict[str, object]]:
    """SageMaker's own errors; what the model's container would refuse is a `ModelError` with its reply."""
    if isinstance(error, SignatureRefused):
        return str(error.code), {"Message": str(error)}
    if error.code in ("model_not_found", "unknown_url"):
        return ("ValidationError" if error.param == "model" else "UnknownOperationException"), {
            "Message": str(error)
        }
    if error.code == "model_loading":
        return "ModelNotReadyException", {"Message": str(error)}
    kind = _SAGEMAKER_TYPES.get(error.status)
    if kind is not None:
        return kind, {"Message": str(error)}
    if error.status >= _SERVER_ERROR and not isinstance(error, EngineFailure):
        return "InternalFailure", {"Message": str(error)}
    said = {"error": {"message": str(error), "type": error.kind, "param": error.param, "code": error.code}}
    original = json.dumps(said)
    return "ModelError", {
        "Message": f"Received client error ({error.status}) from model: {original}",
        "OriginalStatusCode": error.status,
        "OriginalMessage": original,
    }
