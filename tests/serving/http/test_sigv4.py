"""Signatures against Amazon's own signer, and against the worked example of its documentation."""

from __future__ import annotations

import hashlib
import time
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers

from serving.fuzzing import MANY, bounded
from vermilion.errors import BadRequest
from vermilion.serving.http.amazon_errors import SignatureRefused, is_amazon
from vermilion.serving.http.app import ROUTES
from vermilion.serving.http.sigv4 import PendingSignature, read_signature

KEY_ID, SECRET = "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"


def signed_scope(method: str, url: str, headers: dict[str, str], body: bytes) -> dict[str, Any]:
    """A request as it arrives that botocore has signed."""
    request = AWSRequest(method, url, headers=headers, data=body)
    SigV4Auth(Credentials(KEY_ID, SECRET), "bedrock", "us-east-1").add_auth(request)
    parts = urlsplit(url)
    sent = {"host": parts.netloc, **{name.lower(): value for name, value in request.headers.items()}}
    return scope_of(method, parts.path, parts.query, sent)


def scope_of(method: str, path: str, query: str, headers: dict[str, str]) -> dict[str, Any]:
    return {
        "type": "http",
        "method": method,
        "path": "unused",
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in headers.items()],
    }


def checked(scope: dict[str, Any], body: bytes, secret: str = SECRET, now_s: float | None = None) -> bytes:
    """The content. Raises `SignatureRefused`."""
    headers = Headers(scope=scope)
    signed = read_signature(headers, time.time() if now_s is None else now_s)
    assert signed.access_key == KEY_ID
    return PendingSignature(signed, secret, scope).content(body)


_segments = st.text(st.characters(min_codepoint=33, max_codepoint=0x2FF), min_size=1, max_size=8)
_pairs = st.dictionaries(st.text("abAB-._~", min_size=1, max_size=4), _segments, max_size=3)


@given(
    st.lists(_segments, min_size=1, max_size=4),
    _pairs,
    st.dictionaries(
        st.sampled_from(["x-amz-target", "content-type", "x-other"]),
        st.text("ab  \tz", min_size=1, max_size=9).filter(lambda value: value.strip()),
    ),
    st.binary(max_size=64),
)
@bounded(MANY)
def test_what_botocore_signs_is_good_and_nothing_else_is(
    segments: list[str], query: dict[str, str], headers: dict[str, str], body: bytes
) -> None:
    path = "/".join(quote(segment, safe="") for segment in segments)
    asked = "&".join(f"{name}={quote(value, safe='-_.~')}" for name, value in query.items())
    url = f"http://localhost:8000/model/{path}/converse{f'?{asked}' if asked else ''}"
    scope = signed_scope("POST", url, headers, body)
    assert checked(scope, body) == body
    named = [(name, value) for name, value in scope["headers"] if name != b"content-type"]
    for changed, given_body in (
        (scope, body + b"x"),
        ({**scope, "method": "PUT"}, body),
        ({**scope, "raw_path": scope["raw_path"] + b"x"}, body),
        ({**scope, "query_string": scope["query_string"] + b"&z=1"}, body),
        ({**scope, "headers": [*named, (b"content-type", b"other")]}, body),
    ):
        if changed is not scope and changed["headers"] != scope["headers"] and "content-type" not in headers:
            continue
        with pytest.raises(SignatureRefused, match="does not match"):
            checked(changed, given_body)
    with pytest.raises(SignatureRefused, match="does not match"):
        checked(scope, body, SECRET.lower())


# docs.aws.amazon.com/AmazonS3/latest/API/sigv4-streaming.html: 65 KiB of the letter a in two chunks.
STREAMED_AT_S = 1369353600.0
STREAMED = {
    "host": "s3.amazonaws.com",
    "x-amz-date": "20130524T000000Z",
    "x-amz-storage-class": "REDUCED_REDUNDANCY",
    "authorization": f"AWS4-HMAC-SHA256 Credential={KEY_ID}/20130524/us-east-1/s3/aws4_request,"
    "SignedHeaders=content-encoding;content-length;host;x-amz-content-sha256;x-amz-date;"
    "x-amz-decoded-content-length;x-amz-storage-class,"
    "Signature=4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9",
    "x-amz-content-sha256": "STREAMING-AWS4-HMAC-SHA256-PAYLOAD",
    "content-encoding": "aws-chunked",
    "x-amz-decoded-content-length": "66560",
    "content-length": "66824",
}
CHUNKS = (
    (b"ad80c730a21e5b8d04586a2213dd63b9a0e99e0e2307b0ade35a65485a288648", b"a" * 65536),
    (b"0055627c9e194cb4542bae2aa5492e3c1575bbb81b612b7d234b86a503ef5497", b"a" * 1024),
    (b"b6c6ea8a5354eaf15b3cb7646744f4275b71ea724fed81ceb9323e279d449df9", b""),
)


def framed(chunks: Any) -> bytes:
    return b"".join(b"%x;chunk-signature=%s\r\n%s\r\n" % (len(part), sign, part) for sign, part in chunks)


def test_amazons_example_of_signed_chunks_is_read() -> None:
    scope = scope_of("PUT", "/examplebucket/chunkObject.txt", "", STREAMED)
    body = framed(CHUNKS)
    assert len(body) == 66824
    assert checked(scope, body, now_s=STREAMED_AT_S) == b"a" * 66560
    first, second, last = CHUNKS
    for wrong in ([second, first, last], [first, last], [(first[0], b"b" + first[1][1:]), second, last]):
        with pytest.raises(SignatureRefused, match="does not match"):
            checked(scope, framed(wrong), now_s=STREAMED_AT_S)
    for broken in (b"", body[:-1], framed([first, second]), body + b"x", b"ffffffff" + body[5:]):
        with pytest.raises(BadRequest, match="aws-chunked"):
            checked(scope, broken, now_s=STREAMED_AT_S)


def test_a_body_may_be_named_by_its_hash_or_left_unsigned() -> None:
    url, body = "http://localhost/model/m/converse", b"{}"
    told = {"x-amz-content-sha256": hashlib.sha256(body).hexdigest()}
    scope = signed_scope("POST", url, told, body)
    assert checked(scope, body) == body
    with pytest.raises(SignatureRefused, match="does not match"):
        checked(scope, b"[]")
    # Its signer takes the header's word for the body.
    unsigned = signed_scope("POST", url, {"x-amz-content-sha256": "UNSIGNED-PAYLOAD"}, body)
    assert checked(unsigned, b"[]") == b"[]"


@pytest.mark.parametrize(
    ("late_s", "good"), [(0, True), (299, True), (-299, True), (302, False), (-302, False)]
)
def test_a_signature_is_good_for_five_minutes(late_s: float, good: bool) -> None:
    scope = signed_scope("POST", "http://localhost/model/m/converse", {}, b"")
    now_s = time.time() + late_s
    if good:
        assert checked(scope, b"", now_s=now_s) == b""
        return
    with pytest.raises(SignatureRefused, match="Signature") as error:
        checked(scope, b"", now_s=now_s)
    assert error.value.code == "InvalidSignatureException"


@pytest.mark.parametrize(
    "change",
    [
        {"authorization": "AWS4-HMAC-SHA256"},
        {"authorization": "AWS4-HMAC-SHA256 " + "x" * 9000},
        {"x-amz-date": ""},
        {"x-amz-date": "today"},
        {"x-amz-date": "20130524T000000Z"},
        {"x-amz-unsigned": "1"},
    ],
)
def test_an_incomplete_signature_says_what_is_missing(change: dict[str, str]) -> None:
    scope = signed_scope("POST", "http://localhost/model/m/converse", {}, b"")
    headers = {name.decode(): value.decode() for name, value in scope["headers"]}
    scope = scope_of("POST", "/model/m/converse", "", {**headers, **change})
    with pytest.raises(SignatureRefused) as error:
        checked(scope, b"")
    assert error.value.code == "IncompleteSignatureException"


def test_every_route_that_takes_signatures_reads_its_body_where_they_are_checked() -> None:
    signed = [route for route in ROUTES if is_amazon(route.path)]
    assert len(signed) == 7
    assert all(route.body is not None and route.scopes for route in signed)
