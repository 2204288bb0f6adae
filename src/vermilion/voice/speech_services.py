"""Our recognisers and synthesisers as stages of pipecat's pipeline."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from pipecat.frames.frames import Frame, TranscriptionFrame, VADUserStoppedSpeakingFrame
from pipecat.processors.frame_processor import FrameDirection
from pipecat.services.settings import STTSettings, TTSSettings
from pipecat.services.stt_service import SegmentedSTTService
from pipecat.services.tts_service import TTSService
from pipecat.transcriptions.language import Language
from pipecat.utils.time import time_now_iso8601

from vermilion.serving.audio.speech_threads import SpeechThread
from vermilion.speech.recognizer import Recognizer, Transcript
from vermilion.speech.synthesizer import Synthesizer
from vermilion.voice.clauses import ClauseAggregator

_TYPICAL_LATENCY_S = 1.0
"""Of nearly all transcripts; a turn waits for later ones too."""
_NO_SPEECH, _UNLIKELY = 0.6, -1.0
"""Whisper's own rule for silence: both, since a single word alone looks like none."""
_END_SILENCE_S = 0.19
"""A stretch of speech ends with so much silence at least: the detector's 0.2 s in frames of 32 ms."""
_LONGEST_SYNTHESIS_S = 20.0
"""Of a sentence: pipecat takes a voice that is silent for longer, 3 s unless told, to have failed."""
_BYTES_PER_SAMPLE = 2


@dataclass(frozen=True, slots=True)
class _EarlyTranscript:
    speech: bytes
    transcript: asyncio.Task[Transcript]


class RecognizerService(SegmentedSTTService):
    """Transcribes what the voice detector cuts out, a stretch at a time.

    It begins at a pause, before the detector is sure that the stretch is over; where speech goes on instead,
    what was begun is thrown away.
    """

    wants_wav_segments = False

    def __init__(self, recognizer: Recognizer, thread: SpeechThread[Recognizer], **options: Any) -> None:
        """`thread`: where it works, for all calls of the process."""
        settings = STTSettings(model=recognizer.name, language=Language.EN)
        super().__init__(settings=settings, ttfs_p99_latency=_TYPICAL_LATENCY_S, **options)
        self._recognizer, self._thread = recognizer, thread
        self._early: _EarlyTranscript | None = None

    def can_generate_metrics(self) -> bool:
        return True

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Keeps the end of a stretch, silent but for what came while the detector judged it: the next one's
        first sound, perhaps."""
        stopped = isinstance(frame, VADUserStoppedSpeakingFrame)
        end = bytes(self._audio_buffer[-self._end_silence_bytes() :]) if stopped else b""
        await super().process_frame(frame, direction)
        self._audio_buffer[:0] = end

    def begin_early(self) -> None:
        """The caller paused; what was said so far may be all."""
        if self._early is not None:
            self._early.transcript.cancel()
        speech = bytes(self._audio_buffer)
        task = asyncio.create_task(self._heard(speech + self._trailing_silence()))
        # One that is thrown away may fail unseen.
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._early = _EarlyTranscript(speech, task)

    async def run_stt(self, audio: bytes) -> AsyncGenerator[Frame, None]:
        """`audio`: 16-bit mono PCM at the pipeline's rate, 16 kHz."""
        await self.start_processing_metrics()
        early, self._early = self._early, None
        if early is not None and self._is_whole(early.speech, audio):
            heard = await early.transcript
        else:
            if early is not None:
                early.transcript.cancel()
            heard = await self._heard(audio)
        await self.stop_processing_metrics()
        if heard.text and not is_silence(heard):
            yield TranscriptionFrame(heard.text, self._user_id, time_now_iso8601(), Language.EN)

    def _is_whole(self, speech: bytes, audio: bytes) -> bool:
        """Whether `audio` is `speech` and no more than the silence that ended it."""
        rest_bytes = len(audio) - len(self._trailing_silence()) - len(speech)
        return rest_bytes <= self._end_silence_bytes() and audio.startswith(speech)

    def _end_silence_bytes(self) -> int:
        return int(_END_SILENCE_S * self.sample_rate) * _BYTES_PER_SAMPLE

    async def _heard(self, audio: bytes) -> Transcript:
        return await self._thread.run(partial(self._recognizer.transcribe, np.frombuffer(audio, np.int16)))


def is_silence(heard: Transcript) -> bool:
    """Whether nobody spoke, whatever the text says."""
    surest = max((segment.avg_logprob for segment in heard.segments), default=0.0)
    return heard.no_speech_prob > _NO_SPEECH and surest < _UNLIKELY


class SynthesizerService(TTSService):
    """Speaks the first clause of an answer, then sentence by sentence."""

    def __init__(self, synthesizer: Synthesizer, thread: SpeechThread[Synthesizer], **options: Any) -> None:
        """`thread`: where it works, for all calls of the process."""
        settings = TTSSettings(model=synthesizer.name, voice=synthesizer.name, language=None)
        super().__init__(
            settings=settings,
            push_start_frame=True,
            push_stop_frames=True,
            stop_frame_timeout_s=_LONGEST_SYNTHESIS_S,
            **options,
        )
        self._synthesizer, self._thread = synthesizer, thread
        self._text_aggregator = ClauseAggregator()

    def can_generate_metrics(self) -> bool:
        return True

    async def on_turn_context_completed(self) -> None:
        """All sound of a turn is there when its text ends, though the last piece may have had none."""
        self._is_yielding_frames_synchronously = True
        await super().on_turn_context_completed()

    async def run_tts(self, text: str, context_id: str) -> AsyncGenerator[Frame, None]:
        await self.start_tts_usage_metrics(text)
        rate = self._synthesizer.sample_rate
        try:
            pieces = self._thread.each(piece.tobytes() for piece in self._synthesizer.speak(text))
            async for frame in self._stream_audio_frames_from_iterator(
                pieces, in_sample_rate=rate, context_id=context_id
            ):
                await self.stop_ttfb_metrics()
                yield frame
        except Exception:
            # What is said next, the apology first of all, would wait for the end of this turn.
            await self.remove_audio_context(context_id)
            raise
        finally:
            await self.stop_ttfb_metrics()
