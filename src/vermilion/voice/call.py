"""One call: the stages from the caller's sound to the answer's, and what happens when one of them fails."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray
from pipecat.adapters.llm.schemas.tools_schema import AdapterType, ToolsSchema
from pipecat.audio.turn.smart_turn.base_smart_turn import SmartTurnParams
from pipecat.frames.frames import (
    BotStartedSpeakingFrame,
    BotStoppedSpeakingFrame,
    ErrorFrame,
    FunctionCallResultProperties,
    InterruptionFrame,
    OutputAudioRawFrame,
    TTSSpeakFrame,
)
from pipecat.observers.base_observer import BaseObserver, FramePushed
from pipecat.observers.user_bot_latency_observer import LatencyBreakdown, MeasuredFrom, UserBotLatencyObserver
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import (
    AssistantTurnStoppedMessage,
    LLMContextAggregatorPair,
    LLMUserAggregatorParams,
    UserTurnStoppedMessage,
)
from pipecat.services.inception.llm import InceptionLLMService
from pipecat.services.llm_service import FunctionCallParams
from pipecat.transports.base_transport import BaseTransport
from pipecat.turns.user_stop import TurnAnalyzerUserTurnStopStrategy
from pipecat.turns.user_turn_strategies import UserTurnStrategies
from pipecat.workers.runner import WorkerRunner

from vermilion.serving.audio.speech_threads import SpeechThread
from vermilion.speech.recognizer import SAMPLE_RATE, Recognizer
from vermilion.speech.synthesizer import Synthesizer
from vermilion.voice.call_tools import CallTool, tools_of
from vermilion.voice.canvas_llm import CanvasLLMService
from vermilion.voice.pause_detector import PauseDetector, voice_model
from vermilion.voice.persona import Persona
from vermilion.voice.speech_services import RecognizerService, SynthesizerService
from vermilion.voice.turn_detector import TurnDetector, turn_model
from vermilion.voice.turn_latency import TurnLatency

_LONGEST_PAUSE_S = 1.2
"""Silence that ends a turn whatever the turn detector thinks of the sentence."""
_LATEST_TRANSCRIPT_S = 20.0
"""After that a turn ends without what was said and nothing is answered. pipecat waits for 5 s unless told."""
_WARM_UP_S = 60.0
_APOLOGY_PAUSE_S = 3.0
"""Several failures at once are one apology."""

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Agent:
    """What all calls of a process share: models that are loaded once, and where the answers come from."""

    recognizer: Recognizer
    synthesizer: Synthesizer
    persona: Persona
    base_url: str
    """Of the service, with /v1."""
    model: str
    api_key: str = "unused"
    apology: NDArray[np.int16] = field(init=False)
    """The persona's apology as sound, made before a call needs it."""
    hearing: SpeechThread[Recognizer] = field(init=False)
    """A thread each, since memory goes by how many sentences are heard or spoken at once, over all calls."""
    speaking: SpeechThread[Synthesizer] = field(init=False)

    def __post_init__(self) -> None:
        self.hearing = SpeechThread(lambda: self.recognizer)
        self.speaking = SpeechThread(lambda: self.synthesizer)
        pieces = list(self.synthesizer.speak(self.persona.apology))
        self.apology = np.concatenate(pieces) if pieces else np.zeros(0, np.int16)

    def warm(self) -> None:
        """Takes from the first caller what happens once: loading models, their first forward, and reading the
        persona's instructions, whose keys and values every call then shares."""
        self.recognizer.transcribe(np.zeros(SAMPLE_RATE, np.int16))
        voice_model()
        turn_model()
        messages = [
            {"role": "system", "content": self.persona.system_prompt},
            {"role": "user", "content": "Hello"},
        ]
        httpx.post(
            f"{self.base_url}/chat/completions",
            json={"model": self.model, "messages": messages, "max_tokens": 1},
            headers={"Authorization": f"Bearer {self.api_key}"},
            timeout=_WARM_UP_S,
        ).raise_for_status()


@dataclass(slots=True)
class CallRecord:
    """What happened in a call so far."""

    lines: list[tuple[str, str]] = field(default_factory=list)
    """("user" or "assistant", what was said), as the conversation keeps it."""
    latencies: list[TurnLatency] = field(default_factory=list)
    interruptions: int = 0
    """How often the caller spoke while the agent did."""
    errors: list[str] = field(default_factory=list)


class Call:
    """One caller on one transport."""

    def __init__(
        self, agent: Agent, transport: BaseTransport, params: PipelineParams, *, watched: bool
    ) -> None:
        """`watched`: a page at the other end is shown captions, latencies and the canvas."""
        self.record = CallRecord()
        self._agent, self._watched = agent, watched
        self._apologised_at = -_APOLOGY_PAUSE_S
        self._tools = {tool.name: tool for tool in tools_of(agent.persona.tools)}
        self.context = self._context()
        self._llm = self._service()
        for tool in self._tools.values():
            self._llm.register_function(tool.name, self._handler(tool))
        recognizer = RecognizerService(agent.recognizer, agent.hearing)
        turns = _turn_taking(PauseDetector(recognizer.begin_early))
        aggregators = LLMContextAggregatorPair(self.context, user_params=turns)
        stages = [
            transport.input(),
            recognizer,
            aggregators.user(),
            self._llm,
            SynthesizerService(agent.synthesizer, agent.speaking),
            transport.output(),
            aggregators.assistant(),
        ]
        observer = UserBotLatencyObserver()
        observer.add_event_handler("on_latency_breakdown", self._measured)
        self.worker = PipelineWorker(
            Pipeline(stages),
            params=params,
            observers=[observer, _BargeIn(self._interrupted)],
            enable_rtvi=watched,
            idle_timeout_secs=None,
        )
        self.worker.add_event_handler("on_pipeline_error", self._failed)
        aggregators.user().add_event_handler("on_user_turn_stopped", self._user_said)
        aggregators.assistant().add_event_handler("on_assistant_turn_stopped", self._assistant_said)
        transport.add_event_handler("on_client_connected", self._greet)
        transport.add_event_handler("on_client_disconnected", self._hang_up)

    async def run(self) -> CallRecord:
        """Until the caller hangs up."""
        runner = WorkerRunner(handle_sigint=False)
        await runner.add_workers(self.worker)
        try:
            await runner.run()
        finally:
            # pipecat leaves its connections open, two a call.
            await self._llm._client.close()
        return self.record

    def _context(self) -> LLMContext:
        if not self._tools:
            return LLMContext()
        offered = [tool.offered for tool in self._tools.values()]
        tools = ToolsSchema(standard_tools=[], custom_tools={AdapterType.OPENAI: offered})
        return LLMContext(tools=tools, tool_choice="required" if self._agent.persona.must_call else "auto")

    def _service(self) -> InceptionLLMService:
        persona, agent = self._agent.persona, self._agent
        settings = InceptionLLMService.Settings(
            model=agent.model,
            reasoning_effort=persona.effort,
            system_instruction=persona.system_prompt,
            max_tokens=persona.max_tokens,
        )
        if persona.temperature is not None:
            settings.temperature = persona.temperature
        place = {"api_key": agent.api_key, "base_url": agent.base_url, "settings": settings}
        if self._watched:
            return CanvasLLMService(show=self._show_canvas, **place)
        return InceptionLLMService(**place)

    def _handler(self, tool: CallTool) -> Callable[[FunctionCallParams], Awaitable[None]]:
        async def handle(call: FunctionCallParams) -> None:
            result = dict(tool.run(call.arguments))
            told = self._agent.persona.must_call
            await call.result_callback(result, properties=FunctionCallResultProperties(run_llm=not told))
            if told:
                await call.llm.push_frame(TTSSpeakFrame(result["say"]))

        return handle

    async def _greet(self, transport: Any, client: Any) -> None:
        if self._agent.persona.greeting:
            await self.worker.queue_frames([TTSSpeakFrame(self._agent.persona.greeting)])

    async def _hang_up(self, transport: Any, client: Any) -> None:
        await self.worker.cancel()

    async def _measured(self, observer: Any, breakdown: LatencyBreakdown) -> None:
        if breakdown.measured_from is not MeasuredFrom.USER_SILENCE:
            return
        latency = TurnLatency.of(breakdown)
        self.record.latencies.append(latency)
        stages = {name: round(ms, 1) for name, ms in latency.stages_ms.items()}
        _log.info("answered after %.0f ms: %s", latency.total_ms, stages)
        await self._tell(
            {
                "type": "latency",
                "turn": len(self.record.latencies),
                "stages_ms": stages,
                "total_ms": round(latency.total_ms, 1),
            }
        )

    async def _user_said(self, aggregator: Any, strategy: Any, message: UserTurnStoppedMessage) -> None:
        self.record.lines.append(("user", message.content or ""))

    async def _assistant_said(self, aggregator: Any, message: AssistantTurnStoppedMessage) -> None:
        self.record.lines.append(("assistant", message.content))

    async def _interrupted(self) -> None:
        self.record.interruptions += 1
        await self._tell({"type": "interrupted"})

    async def _show_canvas(self, canvas: dict[str, Any]) -> None:
        await self._tell({"type": "canvas", **canvas})

    async def _tell(self, message: dict[str, Any]) -> None:
        if self._watched:
            await self.worker.rtvi.send_server_message(message)

    async def _failed(self, worker: Any, frame: ErrorFrame) -> None:
        """Apologise, and let the stage try again at the next turn."""
        stage = frame.processor.name if frame.processor is not None else "pipeline"
        self.record.errors.append(f"{stage}: {frame.error}")
        _log.error("%s failed: %s", stage, frame.error)
        if frame.processor is not None:
            await frame.processor.set_usable(True)
        now = time.monotonic()
        if now - self._apologised_at < _APOLOGY_PAUSE_S:
            return
        self._apologised_at = now
        await self._tell({"type": "apology", "stage": stage})
        await self.worker.queue_frames([self._apology()])

    def _apology(self) -> OutputAudioRawFrame:
        return OutputAudioRawFrame(self._agent.apology.tobytes(), self._agent.synthesizer.sample_rate, 1)


class _BargeIn(BaseObserver):
    """Sees the caller interrupt. Every turn of theirs begins with an interruption; few interrupt speech."""

    def __init__(self, interrupted: Callable[[], Awaitable[None]]) -> None:
        super().__init__(observe_every_push=False)
        self._interrupted = interrupted
        self._speaking = False

    async def on_push_frame(self, data: FramePushed) -> None:
        if isinstance(data.frame, BotStartedSpeakingFrame):
            self._speaking = True
        elif isinstance(data.frame, BotStoppedSpeakingFrame):
            self._speaking = False
        elif isinstance(data.frame, InterruptionFrame) and self._speaking:
            self._speaking = False
            await self._interrupted()


def _turn_taking(voice: PauseDetector) -> LLMUserAggregatorParams:
    detector = TurnDetector(SmartTurnParams(stop_secs=_LONGEST_PAUSE_S))
    strategy = TurnAnalyzerUserTurnStopStrategy(turn_analyzer=detector)
    return LLMUserAggregatorParams(
        vad_analyzer=voice,
        user_turn_strategies=UserTurnStrategies(stop=[strategy]),
        user_turn_stop_timeout=_LATEST_TRANSCRIPT_S,
    )
