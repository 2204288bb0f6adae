"""Files of audio in the usual formats, as samples for recognition.

FFmpeg (through PyAV) reads them. The format is told from the first bytes and never left to FFmpeg, among
whose formats are play lists that name other files of this machine.
"""

from __future__ import annotations

import io
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from vermilion.errors import BadRequest, SpeechNotInstalled
from vermilion.speech.recognizer import SAMPLE_RATE

_HEAD_BYTES = 16
_FORMATS = "flac, mp3, mp4, m4a, mpga, ogg, opus, wav, webm, aac"


class NotAudio(BadRequest):
    def __init__(self, reason: str) -> None:
        super().__init__(f"file: {reason} Send one of {_FORMATS}.", "file", "invalid_file_format")


class AudioTooLong(BadRequest):
    status = 413

    def __init__(self, most_s: float) -> None:
        super().__init__(f"file: it is longer than {most_s:g} s. Send it in parts.", "file", "audio_too_long")


def _format(head: bytes) -> str | None:
    """FFmpeg's name of it."""
    if head[:4] == b"RIFF" and head[8:12] == b"WAVE":
        return "wav"
    if head[4:8] == b"ftyp":
        return "mp4"
    for start, name in ((b"fLaC", "flac"), (b"OggS", "ogg"), (b"\x1aE\xdf\xa3", "matroska"), (b"ID3", "mp3")):
        if head.startswith(start):
            return name
    if len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0:
        # The bits of the layer are 0 in ADTS alone.
        return "mp3" if head[1] & 0x06 else "aac"
    return None


def decode(file: BinaryIO, most_s: float) -> NDArray[np.float32]:
    """Mono samples from -1 to 1 at `SAMPLE_RATE`, of the first stream of sound.

    Raises `NotAudio`, `AudioTooLong` and `SpeechNotInstalled`.
    """
    try:
        import av
    except ImportError:
        raise SpeechNotInstalled("Run: pip install 'vermilion[voice]'") from None
    file.seek(0)
    # A form's file may be of a kind that FFmpeg cannot seek in.
    content = file.read()
    name = _format(content[:_HEAD_BYTES])
    if name is None:
        raise NotAudio("it begins as none of the known formats do.")
    try:
        with av.open(io.BytesIO(content), format=name, metadata_errors="ignore") as container:
            samples_S = _samples(container, most_s)
    except (av.FFmpegError, UnicodeDecodeError, ValueError) as error:
        raise NotAudio(f"it cannot be read as {name} ({_reason(error)}).") from None
    if not len(samples_S):
        raise NotAudio("it has no sound in it.")
    return samples_S


def _samples(container: Any, most_s: float) -> NDArray[np.float32]:
    import av

    if not container.streams.audio:
        raise NotAudio("it has no sound in it.")
    resampler = av.AudioResampler("s16", "mono", SAMPLE_RATE)
    pieces: list[NDArray[np.int16]] = []
    left = int(most_s * SAMPLE_RATE)
    for packet in container.demux(container.streams.audio[0]):
        try:
            frames = packet.decode()
        except av.error.InvalidDataError:
            # A damaged piece, as of a recording cut short; what follows may be sound.
            continue
        for frame in frames:
            for resampled in resampler.resample(frame):
                pieces.append(resampled.to_ndarray()[0])
                left -= len(pieces[-1])
        if left < 0:
            raise AudioTooLong(most_s)
    pieces += [rest.to_ndarray()[0] for rest in (resampler.resample(None) if pieces else [])]
    if not pieces:
        return np.zeros(0, np.float32)
    return np.concatenate(pieces).astype(np.float32) / np.float32(32768)


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or type(error).__name__)
