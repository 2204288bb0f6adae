"""Amazon's Signature Version 4: a request signed with an access key's secret, which is not sent.

docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html. The signature is of the
request in one canonical form and of its body, and is good for five minutes before and after its date.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from urllib.parse import quote, unquote

from starlette.datastructures import Headers
from starlette.types import Scope

from vermilion.errors import BadRequest
from vermilion.serving.http.amazon_errors import SignatureRefused

ALGORITHM = "AWS4-HMAC-SHA256"
MAX_SKEW_S = 300
_CONTENT = "x-amz-content-sha256"
_UNSIGNED = "UNSIGNED-PAYLOAD"
_CHUNKED = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"
_DATE = re.compile(r"\d{8}T\d{6}Z", re.ASCII)
_FIELDS = re.compile(r"(Credential|SignedHeaders|Signature)=([^,\s]+)\s*,?\s*")
_LONGEST = 4096
_NOTHING = hashlib.sha256(b"").hexdigest()
_CHUNK = re.compile(rb"([0-9a-fA-F]{1,8});chunk-signature=([0-9a-f]{64})\r\n")


@dataclass(frozen=True, slots=True)
class Signed:
    """What a request says of its signature."""

    access_key: str
    date: str
    """As 20261128T140000Z."""
    place: str
    """date/region/service/aws4_request: what the signature is for."""
    signed_headers: tuple[str, ...]
    signature: str


def is_signed(headers: Headers) -> bool:
    return headers.get("authorization", "").startswith(ALGORITHM)


def read_signature(headers: Headers, now_s: float) -> Signed:
    """Raises `SignatureRefused` for one that is incomplete or not of now."""
    header = headers.get("authorization", "")
    fields = dict(_FIELDS.findall(header)) if len(header) <= _LONGEST else {}
    date = headers.get("x-amz-date", "")
    access_key, _, place = fields.get("Credential", "").partition("/")
    names = tuple(fields.get("SignedHeaders", "").split(";"))
    parts = place.split("/")
    if not (fields.get("Signature") and date and len(parts) == 4 and parts[3] == "aws4_request"):
        raise _incomplete(
            "Authorization must have Credential (key/date/region/service/aws4_request), SignedHeaders and "
            "Signature, and there must be an X-Amz-Date."
        )
    unsigned = {name for name in headers if name.startswith("x-amz-")}.union({"host"}).difference(names)
    if unsigned:
        raise _incomplete(f"SignedHeaders must name {', '.join(sorted(unsigned))}.")
    _check_date(date, parts[0], now_s)
    return Signed(access_key, date, place, names, fields["Signature"])


def _incomplete(message: str) -> SignatureRefused:
    return SignatureRefused("IncompleteSignatureException", message)


def _check_date(date: str, day: str, now_s: float) -> None:
    try:
        # strptime takes ten times as long.
        signed_s = datetime.fromisoformat(date if _DATE.fullmatch(date) else "").timestamp()
    except ValueError:
        raise _incomplete(f"X-Amz-Date {date[:40]!r} is no date as 20261128T140000Z.") from None
    if not date.startswith(day) or len(day) != 8:
        raise _incomplete("The date in Credential is not that of X-Amz-Date.")
    if abs(now_s - signed_s) > MAX_SKEW_S:
        now = datetime.fromtimestamp(now_s, UTC).strftime("%Y%m%dT%H%M%SZ")
        late = "expired" if now_s > signed_s else "not yet current"
        raise SignatureRefused(
            "InvalidSignatureException",
            f"Signature {late}: {date} is more than {MAX_SKEW_S // 60} minutes from {now}, the time here.",
        )


@dataclass(frozen=True, slots=True)
class PendingSignature:
    """A signature whose head is read; with the body it can be checked."""

    signed: Signed
    secret: str
    scope: Scope

    def content(self, body: bytes) -> bytes:
        """What the body carries. Raises `SignatureRefused` where the signature is not of this request."""
        headers = Headers(scope=self.scope)
        told = headers.get(_CONTENT)
        content_hash = told or hashlib.sha256(body).hexdigest()
        key = _signing_key(self.secret, self.signed.place)
        request = hashlib.sha256(self._canonical(headers, content_hash).encode()).hexdigest()
        expected = self._hmac(key, ALGORITHM, self.signed.date, self.signed.place, request)
        _check(expected, self.signed.signature)
        if told == _CHUNKED:
            return self._unchunked(body, key)
        if told not in (None, _UNSIGNED):
            _check(hashlib.sha256(body).hexdigest(), content_hash)
        return body

    def _unchunked(self, body: bytes, key: bytes) -> bytes:
        """Each chunk's signature is also of the one before it, so that none can be left out."""
        before, parts = self.signed.signature, []
        for signature, part in chunks(body):
            digest = hashlib.sha256(part).hexdigest()
            lines = (f"{ALGORITHM}-PAYLOAD", self.signed.date, self.signed.place, before, _NOTHING, digest)
            _check(self._hmac(key, *lines), signature)
            before = signature
            parts.append(part)
        return b"".join(parts)

    @staticmethod
    def _hmac(key: bytes, *lines: str) -> str:
        return hmac.digest(key, "\n".join(lines).encode(), "sha256").hex()

    def _canonical(self, headers: Headers, content_hash: str) -> str:
        raw = self.scope.get("raw_path") or quote(self.scope["path"]).encode()
        lines = [self.scope["method"], canonical_path(raw.decode("latin-1"))]
        lines.append(_canonical_query(self.scope.get("query_string", b"").decode("latin-1")))
        for name in self.signed.signed_headers:
            values = [" ".join(value.split()) for value in headers.getlist(name)]
            lines.append(f"{name}:{','.join(values)}")
        return "\n".join([*lines, "", ";".join(self.signed.signed_headers), content_hash])


@lru_cache(1024)
def _signing_key(secret: str, place: str) -> bytes:
    """Good for a day, a region and a service."""
    key = f"AWS4{secret}".encode()
    for step in place.split("/"):
        key = hmac.digest(key, step.encode(), "sha256")
    return key


def canonical_path(path: str) -> str:
    """As sent, so already percent-encoded once; encoded again, as every service but S3 wants it."""
    segments: list[str] = []
    for segment in path.split("/"):
        if segment == "..":
            segments = segments[:-1]
        elif segment not in ("", "."):
            segments.append(segment)
    slash = "/" if path.endswith("/") and segments else ""
    return f"/{quote('/'.join(segments), safe='/-_.~')}{slash}"


def _canonical_query(query: str) -> str:
    pairs = (pair.partition("=") for pair in query.split("&") if pair)
    encoded = [
        (quote(unquote(name), safe="-_.~"), quote(unquote(value), safe="-_.~")) for name, _, value in pairs
    ]
    return "&".join(f"{name}={value}" for name, value in sorted(encoded))


def is_chunked(headers: Headers) -> bool:
    """Whether the body is cut into chunks that are signed one by one."""
    return headers.get(_CONTENT) == _CHUNKED


def chunks(body: bytes) -> list[tuple[str, bytes]]:
    """(signature, content) of each chunk, the empty last one too. Raises `BadRequest`."""
    found: list[tuple[str, bytes]] = []
    at = 0
    while head := _CHUNK.match(body, at):
        end = head.end() + int(head[1], 16)
        if body[end : end + 2] != b"\r\n":
            break
        found.append((head[2].decode(), body[head.end() : end]))
        at = end + 2
        if not found[-1][1] and at == len(body):
            return found
    raise BadRequest("The request body is not whole as aws-chunked.", code="invalid_body")


def _check(expected: str, given: str) -> None:
    if not hmac.compare_digest(expected.encode(), given.encode()):
        raise SignatureRefused(
            "InvalidSignatureException",
            "The request signature we calculated does not match the signature you provided. Check your AWS "
            "Secret Access Key and signing method. A proxy must pass path, Host and body as they were sent.",
        )
