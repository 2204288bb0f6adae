"""Our event streams against the decoder of Amazon's own client."""

from __future__ import annotations

from botocore.eventstream import EventStreamBuffer
from hypothesis import given
from hypothesis import strategies as st

from vermilion.serving.wire.amazon_events import event_message, exception_message


@given(st.lists(st.tuples(st.booleans(), st.binary(max_size=2000)), max_size=5), st.integers(1, 700))
def test_botocore_reads_back_every_message_however_it_is_cut(
    told: list[tuple[bool, bytes]], size: int
) -> None:
    content = b"".join(
        exception_message("throttlingException", payload) if failed else event_message("chunk", payload)
        for failed, payload in told
    )
    buffer, read = EventStreamBuffer(), []
    for at in range(0, len(content), size):
        buffer.add_data(content[at : at + size])
        # It checks the lengths and both checksums.
        read += [(message.headers, message.payload) for message in buffer]
    kinds = {
        True: {":exception-type": "throttlingException", ":message-type": "exception"},
        False: {":event-type": "chunk", ":message-type": "event"},
    }
    json = {":content-type": "application/json"}
    assert read == [({**kinds[failed], **json}, payload) for failed, payload in told]
