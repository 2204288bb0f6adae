"""From settled tokens to events: detokenising, stop strings, per-token details, the canvas preview."""

from __future__ import annotations

from dataclasses import replace
from math import exp

from vermilion.decoding.program import Open, Program, Settled
from vermilion.gap_template import open_prompt
from vermilion.text import Detokenizer, StopScanner, Tokenizer, line_end, split_lines
from vermilion.types import (
    Canvas,
    CanvasToken,
    Event,
    Finish,
    FinishReason,
    Request,
    Span,
    Text,
    TokenInfo,
    Usage,
)

_SENTENCE_ENDS = ".!?\u2026\u3002\uff01\uff1f"
_CLOSING_MARKS = "\"'\u201d\u2019\u00bb)]*_"
"""What may close behind a sentence's end and still be its end."""


class Output:
    """What one request has been told so far."""

    def __init__(self, request: Request, tokenizer: Tokenizer, *, before_suffix: bool = False) -> None:
        """`before_suffix`: the answer fills an open line. It ends where it would repeat the first line of the
        suffix, and with its line where it does not begin with a break; a blank of the prompt's that its first
        token repeats (`open_prompt`) is not told."""
        self._request = request
        self._tokenizer = tokenizer
        self._detokenizer = Detokenizer(tokenizer)
        self._scanner = StopScanner(request.sampling.stop, request.sampling.stop_outside)
        ends = self._undecided = before_suffix and not request.sampling.ignore_eos
        self._repeated = repeats_of(tokenizer.decode(request.suffix)) if ends else ()
        self._repeats = StopScanner(self._repeated)
        self._blank = open_prompt(tokenizer, request.prompt)[1] if before_suffix else ""
        self._text: list[str] = []
        self._taken = 0
        self._progress = 0.0
        self._held = ""
        self._told: list[CanvasToken] = []
        """Settled ones; the last of them may still be held back as part of a stop string."""
        self.cached_tokens = 0
        self.stop_string = ""
        """What ended the answer, if a stop string did."""

    def take(self, program: Program) -> list[Event]:
        """The events of one applied pass. Sets `program.finish` where a stop string ended the answer."""
        shown: list[str] = []
        infos: list[TokenInfo] = []
        for settled in program.settled[self._taken :]:
            self._taken += 1
            if settled.token in program.task.eos:
                break
            piece = self._detokenizer.push((settled.token,))
            blank, self._blank = self._blank, "" if piece else self._blank
            piece = piece.removeprefix(blank)
            if self._request.canvas_tokens and piece:
                self._told.append(self._settled_token(settled, len(piece)))
            if self._undecided and piece:
                self._undecided = False
                breaks = () if piece.startswith(("\r", "\n")) else ("\n", "\r\n")
                self._repeats = StopScanner((*self._repeated, *breaks))
            text, again = self._repeats.push(piece)
            text, hit = self._scanner.push(text)
            shown.append(text)
            if self._request.sampling.logprobs is not None:
                infos.append(self._info(settled, blank))
            if hit is not None:
                self.stop_string = hit
                program.finish = "stop"
                break
            if again is not None:
                program.finish = "stop"
                break
        if program.finish is not None and not self.stop_string:
            tail, self.stop_string = self._flushed()
            shown.append(tail)
            if self.stop_string:
                program.finish = "stop"
        events: list[Event] = []
        text = self._held + "".join(shown)
        if self._request.realtime:
            text, self._held = (text, "") if program.finish is not None else _before_sentence_end(text)
        if text or infos:
            self._text.append(text)
            events.append(Text(text, tuple(infos), self._usage(program)))
        if self._request.canvas:
            events.append(self._canvas(program))
        if program.finish is not None:
            events.append(self.finish(program, program.finish))
        return events

    def finish(self, program: Program, reason: FinishReason, message: str = "", code: str = "") -> Finish:
        stop_string = self.stop_string if reason == "stop" else ""
        return Finish(reason, self._usage(program), message, code, program.repetition, stop_string)

    def _usage(self, program: Program) -> Usage:
        return Usage(
            prompt_tokens=len(self._request.prompt) + len(self._request.suffix),
            cached_tokens=min(self.cached_tokens, len(self._request.prompt) + len(self._request.suffix)),
            completion_tokens=self._taken,
            passes=program.passes,
            edits=program.edits,
            drafted_tokens=sum(program.record.drafted.values()),
            accepted_tokens=sum(program.record.accepted.values()),
            cache=program.cache,
            cached_passes=program.cached_passes,
        )

    def _flushed(self) -> tuple[str, str]:
        """What was held back, and the stop string in it that could have grown into a longer one."""
        tail, again = self._repeats.push(self._detokenizer.flush())
        if again is None:
            rest, _ = self._repeats.flush()
            # A line that ends the answer needs no break to be the suffix's.
            tail += "" if rest in {line.rstrip("\r\n") for line in self._repeated} else rest
        tail, hit = self._scanner.push(tail)
        if hit is None:
            rest, hit = self._scanner.flush()
            tail += rest
        return tail, hit or ""

    def _info(self, settled: Settled, blank: str) -> TokenInfo:
        reading = settled.reading
        top = tuple(
            (token, self._tokenizer.token_bytes(token), logprob)
            for token, logprob in reading.top[: self._request.sampling.logprobs]
        )
        raw = self._tokenizer.token_bytes(settled.token).removeprefix(blank.encode())
        # Rounding can put the logarithm of a certainty a hair above zero.
        logprob = min(0.0, reading.logprob)
        return TokenInfo(settled.token, raw, logprob, 2.718281828459045**logprob, settled.pass_number, top)

    def _canvas(self, program: Program) -> Canvas:
        text = "".join(self._text)
        settled: tuple[Span, ...] = ((0, len(text)),) if text else ()
        finished = program.finish is not None
        opened: list[Open] = [] if finished else program.canvas()
        filled = self._taken + sum(not position.masked for position in opened)
        if finished:
            self._progress = 1.0
        else:
            share = filled / max(1, self._request.sampling.max_tokens)
            self._progress = max(self._progress, min(share, 0.999))
        masked: list[Span] = []
        edited: list[Span] = []
        tokens = self._shown_tokens(len(text))
        detokenizer = self._detokenizer.fork()
        pieces = [text]
        length = len(text)
        for position in opened:
            piece = detokenizer.push((position.token,)) if position.token >= 0 else ""
            pieces.append(piece)
            span = (length, length + len(piece))
            length += len(piece)
            if piece and position.masked:
                masked.append(span)
            if piece and position.edited:
                edited.append(span)
            if piece and self._request.canvas_tokens:
                state = "masked" if position.masked else "edited" if position.edited else "filled"
                tokens.append(CanvasToken(*span, state, position.confidence, program.passes))  # type: ignore[arg-type]
        return Canvas(
            "".join(pieces),
            settled,
            tuple(masked),
            tuple(edited),
            self._progress,
            program.passes,
            tuple(tokens),
        )

    def _settled_token(self, settled: Settled, length: int) -> CanvasToken:
        start = self._told[-1].end if self._told else 0
        confidence = exp(min(0.0, settled.reading.logprob))
        return CanvasToken(start, start + length, "settled", confidence, settled.pass_number)

    def _shown_tokens(self, length: int) -> list[CanvasToken]:
        """Those of the first `length` characters, which is how much of the settled text is shown."""
        tokens = list(self._told)
        while tokens and tokens[-1].end > length:
            last = tokens.pop()
            if last.start < length:
                tokens.append(replace(last, end=length))
        return tokens


def repeats_of(suffix: str) -> tuple[str, ...]:
    """What a middle may not hold: the suffix up to the end of its first line that has text, also without the
    blank lines before. None where no break is before that line or behind it: a bracket alone may well stand
    in a middle."""
    lines = split_lines(suffix)
    blank = next((at for at, line in enumerate(lines) if line.strip()), len(lines))
    if blank == len(lines) or not (blank or line_end(lines[0])):
        return ()
    return tuple(dict.fromkeys("".join(lines[at : blank + 1]) for at in {0, max(0, blank - 1)}))


def _before_sentence_end(text: str) -> tuple[str, str]:
    """`text` cut before the marks of a sentence's end that it closes with: "3." may go on as "3.14"."""
    kept = text.rstrip(_CLOSING_MARKS)
    if not kept.endswith(tuple(_SENTENCE_ENDS)):
        return text, ""
    kept = kept.rstrip(_SENTENCE_ENDS)
    return kept, text[len(kept) :]
