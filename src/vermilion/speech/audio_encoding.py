"""Spoken samples as a file that grows: each piece is playable as it comes."""

from __future__ import annotations

import struct
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vermilion.errors import SpeechNotInstalled

SPOKEN_RATE_HZ = 24_000
"""Of every reply, as OpenAI's: `pcm` has no header that could say another."""
MEDIA_TYPES = {
    "mp3": "audio/mpeg",
    "opus": "audio/ogg",
    "aac": "audio/aac",
    "flac": "audio/flac",
    "wav": "audio/wav",
    "pcm": "audio/pcm",
}
_CODECS = {
    "mp3": ("mp3", "libmp3lame", {"write_xing": "0"}),
    "opus": ("ogg", "libopus", {"page_duration": "200000"}),
    "aac": ("adts", "aac", {}),
    "flac": ("flac", "flac", {}),
}
"""FFmpeg's names of container and codec, and options without which nothing comes before the end."""
_BIT_RATE = 64_000
_UNKNOWN_BYTES = 0xFFFFFFFF


class _Growing:
    """What FFmpeg writes to; it cannot go back."""

    def __init__(self) -> None:
        self.content = bytearray()

    def write(self, content: bytes) -> int:
        self.content += content
        return len(content)


class AudioEncoder:
    """One reply: mono, 16 bits, `SPOKEN_RATE_HZ`. Used on one thread."""

    def __init__(self, format: str, sample_rate: int) -> None:
        """`format` is one of `MEDIA_TYPES`; `sample_rate` that of what is given. Raises
        `SpeechNotInstalled`."""
        try:
            import av
        except ImportError:
            raise SpeechNotInstalled("Run: pip install 'vermilion[voice]'") from None
        self._rate = sample_rate
        self._out = _Growing()
        self._stream: Any = None
        if format == "wav":
            self._out.write(_wav_head())
        if format not in _CODECS:
            self._resampler = av.AudioResampler("s16", "mono", SPOKEN_RATE_HZ)
            return
        container, codec, options = _CODECS[format]
        self._container: Any = av.open(self._out, "w", format=container, options=options)
        self._stream = self._container.add_stream(codec, rate=SPOKEN_RATE_HZ, layout="mono")
        if format != "flac":
            self._stream.bit_rate = _BIT_RATE
        self._stream.time_base = Fraction(1, SPOKEN_RATE_HZ)
        self._stream.codec_context.open()
        self._resampler = av.AudioResampler(
            self._stream.format.name, "mono", SPOKEN_RATE_HZ, self._stream.frame_size or None
        )

    def encode(self, samples_S: NDArray[np.int16]) -> bytes:
        """What of the file is done with these."""
        import av

        frame = av.AudioFrame.from_ndarray(samples_S[None], format="s16", layout="mono")
        frame.sample_rate = self._rate
        self._put(self._resampler.resample(frame))
        return self._taken()

    def finish(self) -> bytes:
        """The end of the file."""
        self._put(self._resampler.resample(None))
        if self._stream is not None:
            self._container.mux(self._stream.encode(None))
        self.close()
        return self._taken()

    def close(self) -> None:
        """Must be called: FFmpeg ends the process where a file that is being written is merely dropped."""
        if self._stream is not None:
            self._container.close()

    def _put(self, frames: list[Any]) -> None:
        for frame in frames:
            if self._stream is None:
                self._out.write(frame.to_ndarray().astype("<i2").tobytes())
            else:
                self._container.mux(self._stream.encode(frame))

    def _taken(self) -> bytes:
        content = bytes(self._out.content)
        self._out.content.clear()
        return content


def _wav_head() -> bytes:
    """Of a file whose length nobody knows yet, as OpenAI writes it."""
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, SPOKEN_RATE_HZ, 2 * SPOKEN_RATE_HZ, 2, 16)
    return (
        struct.pack("<4sI4s", b"RIFF", _UNKNOWN_BYTES, b"WAVE")
        + form
        + struct.pack("<4sI", b"data", _UNKNOWN_BYTES)
    )
