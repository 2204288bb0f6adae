"""Values that cross layers: frozen, made of plain Python data, no tensors.

A caller builds a `Request` out of token ids, a `Sampling` and a `Decoding`; the engine answers with a
stream of `Event`s: any number of `Text` and `Canvas`, then exactly one `Finish`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from vermilion.frozen import frozen

MIN_TEMPERATURE = 1e-4
FinishReason = Literal["stop", "length", "abort", "error"]
Span = tuple[int, int]
"""Half-open range of character offsets into the text that carries it."""


@dataclass(frozen=True, slots=True)
class Decoding:
    """How an answer is decoded: a row of `decoding/decoders.py` and its settings. `models/families` names the
    useful combinations."""

    decoder: str = "lossless"
    threshold: float = 0.9
    block_length: int = 4
    """Rows of one canvas (1 to 256)."""
    first_block: int = 0
    """Rows of an answer's first canvas; later ones are as long as the text they follow, until they have their
    full length. The first text comes sooner, the whole in more passes. 0: all are alike."""
    max_steps: int = 0
    """Most denoise passes per block, 0 for the block length; `schedule` spreads the block over them."""
    revise_below: float = 0.0
    """Reopen a filled position when the base model's own probability of it is lower; 0 never reopens.
    For block decoders on models that have a base."""
    max_revisions: int = 1
    """Most rounds of reopening per block."""
    draft_nodes: int = 8
    """`lossless`, `relaxed`: most drafted tokens that one pass verifies, as a tree (1 to 256)."""
    branches: int = 0
    """`lossless`, `relaxed`: for how many outcomes of a verification the same pass drafts on; 0 drafts in a
    pass of its own. Worth it where rows are cheap."""
    lookup: int = 0
    """`lossless`: most tokens to draft from where the text's last three stood before, in the prompt or in the
    answer; costs no denoise pass. 0 never looks."""
    accept_above: float = 1.0
    """`relaxed`: a draft stands when its base probability is at least this share of the chosen token's."""
    max_temperature: float = 0.8
    min_temperature: float = 0.4
    """`renoise`: what logits are divided by in a canvas's first pass, and towards its last."""
    stop_entropy: float = 0.005
    """`renoise`: a canvas is done when its mean entropy is below so many nats ..."""
    stable_steps: int = 1
    """... and its likeliest tokens have been the same for so many steps."""
    distance_penalty: float = 0.02
    """`reorder`: nats that a mask's entropy is raised by per position behind the first mask."""
    min_threshold: float = 0.4
    """A lower threshold for positions that something else speaks for (`bound`, `hierarchical`, `near`)."""
    factor: float = 1.0
    """`factor`, `bound`: how much may be risked when positions settle together."""
    radius: int = 2
    """`near`: how far from a confident position the lower threshold counts."""
    sub_block: int = 0
    """Settle a block part by part, each of so many positions; 0 all of it at once."""
    eos_last: int = 0
    """1: what ends the text settles only when nothing else can, so that ends do not flood a canvas."""
    position_temperature: float = 0.0
    """`dream-*`: above 0 the positions that settle are drawn by their scores, not the best taken."""
    max_divergence: float = 0.01
    """`stable`: most nats by which a position's distribution may have moved ..."""
    stable_passes: int = 2
    """... in each of so many passes."""
    credit_weight: float = 0.7
    credit_decay: float = 0.8
    credit_power: float = 0.2
    """`credit`: how much earlier passes count, what a pass keeps of that, and the power of a probability that
    is added."""
    edit_threshold: float = 0.9
    """`joint`, `indel`: least confidence of another token that replaces a filled one."""
    keep_threshold: float = 0.9
    """`wino`: least probability of a filled token that stays, by what stands around it alone."""
    soft_tokens: int = 1
    """`soft-parallel`: of how many tokens a filled position is a mixture in the next pass; 0: of its own."""
    post_steps: int = 16
    """`joint`, `indel`: most passes of edits once a block is full."""
    first_length: int = 64
    """`dreamon`, `daedal`: masks that a text of unknown length begins with; it grows up to its limit."""
    growth: int = 8
    end_confidence: float = 0.5
    last_growth: float = 0.9
    end_window: int = 32
    """`daedal`: masks added at a time, and how probable ends of text are, on average over so many places at
    the tail, where a text is long enough to be begun and where it grows no more."""
    guidance: float = 0.0
    """Of fully bidirectional models: how much more the given text counts (classifier-free guidance)."""
    remask: float = 0.02
    """`remdm-*`: how readily a filled position is masked again."""
    cache: str = "none"
    """Of fully bidirectional models: whether passes read keys of an earlier state of the text
    (`decoding/caches.py`), and which; `none` is exact."""
    cache_window: int = 16
    """`vicinity`: positions on both sides of a block that every pass computes."""
    refresh_every: int = 0
    """With a cache: passes of a block after which all is computed again; 0 only when a block opens."""
    warm_steps: int = 1
    """`vicinity`: passes of a block that compute all before the cache is used."""

    def canvas_length(self, num_settled: int, whole: int = 0) -> int:
        """Rows of the canvas that opens behind so many tokens of the answer; `whole` is the model's own block
        length, where it has one."""
        most = whole or self.block_length
        return min(most, max(self.first_block, num_settled)) if self.first_block else most


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are sampled; the same meaning for every decoder."""

    temperature: float = 0.0
    """0 takes the likeliest token; above, Gumbel noise keyed by (seed, position) is added."""
    top_p: float = 1.0
    top_k: int = 0
    """0 for no limit."""
    min_p: float = 0.0
    seed: int = 0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    stop_outside: tuple[str, str] | None = None
    """Marks, one that opens and one that closes, between which no stop string counts: those of a call."""
    max_tokens: int = 512
    min_tokens: int = 0
    ignore_eos: bool = False
    stop_repetition: bool = True
    """Whether an answer that only repeats itself ends before its limit (`decoding/repetition.py`): one that
    has said the same up to 64 tokens at least 16 times in a row, for 512 tokens. Never with `ignore_eos`."""
    logprobs: int | None = None
    """None for none; 0 for the settled token's own; n for the n likeliest beside it (at most 20)."""

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken: below 0.0001 no noise could change it, and a division by a
        denormal temperature is not finite."""
        return self.temperature < MIN_TEMPERATURE


@dataclass(frozen=True, slots=True)
class Grammar:
    """What an answer must be, from its first character to its last."""

    kind: Literal["json_object", "json_schema", "regex", "lark"]
    text: str = ""
    """The schema as JSON, the regular expression, or the Lark grammar (llguidance's dialect, where `%json`
    takes a schema); nothing for `json_object`."""
    closes: bool = True
    """Whether the last tokens before the limit bring the text to its end. Not where the text is free, which
    they would cut short."""


@dataclass(frozen=True, slots=True)
class Seeds:
    """A canvas after the prompt with some tokens fixed; the answer is the tokens of its open positions."""

    ids: tuple[int | None, ...]
    """None marks an open place."""
    candidates: tuple[tuple[int, ...], ...] = ()
    """Per open place, the tokens to choose from. One pass then only reads: each place's token is its
    likeliest candidate, with the log-probabilities of all of them in `TokenInfo.top`, in their order, if
    `Sampling.logprobs` has room for them. Without candidates the places are filled by denoising."""


@dataclass(frozen=True, slots=True)
class Request:
    """One answer to produce. `suffix` (token ids right of the gap) makes it an infill."""

    id: str
    prompt: tuple[int, ...]
    sampling: Sampling = field(default_factory=Sampling)
    decoding: Decoding = field(default_factory=Decoding)
    suffix: tuple[int, ...] = ()
    canvas: bool = False
    """Whether `Canvas` events are wanted; they cost detokenising the whole text each pass."""
    canvas_tokens: bool = False
    """Whether they also tell of each token of the answer."""
    grammar: Grammar | None = None
    existing: tuple[int, ...] = ()
    """Text that the answer is expected to repeat in great part, as an edit does; it serves as a draft."""
    given: tuple[int, ...] = ()
    """The answer itself, where only its log-probabilities are wanted."""
    seeds: Seeds | None = None
    adapter: str = ""
    """Which adapter of the model answers; empty for the model as it was loaded."""
    cache_salt: str = ""
    """Stored prefixes are shared under one salt alone: no organisation learns what another has asked."""
    forwarded: Mapping[str, Any] | None = None
    """What the caller asked in OpenAI's words, for a backend that passes it on to another server."""
    background: bool = False
    """Whether it runs only while nothing else does, and gives its memory to whatever comes."""
    realtime: bool = False
    """Whether the first text matters more than the rest: scheduled first. No piece of its text ends on the
    end of a sentence before it is known what follows, so that a voice can tell one from an abbreviation."""


@dataclass(frozen=True, slots=True)
class TokenInfo:
    """One settled token. Given only where `Sampling.logprobs` asked for it."""

    id: int
    raw: bytes
    """UTF-8; perhaps only a part of a character."""
    logprob: float
    """Natural log of its probability when it settled, before temperature and filters."""
    confidence: float
    """exp(logprob): what the decoder compared with its threshold."""
    pass_number: int
    """The forward pass after prefill, from 1, in which it settled; 0 for the prefill itself."""
    top: tuple[tuple[int, bytes, float], ...] = ()
    """(id, raw, logprob) of the likeliest tokens at that position."""

    @property
    def text(self) -> str:
        """What is no whole character shows as U+FFFD."""
        return self.raw.decode("utf-8", "replace")


@frozen
class Usage:
    """What a request cost. Passes are all forwards after prefill, denoise, commit and verify alike."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    passes: int = 0
    edits: int = 0
    """Filled positions that a later pass changed."""
    drafted_tokens: int = 0
    """Drafts that a pass verified."""
    accepted_tokens: int = 0
    """Verified drafts that became text."""
    cache: str = ""
    """Which cache of earlier states of the text was read, where that is an approximation; empty for none."""
    cached_passes: int = 0
    """Passes that read it."""

    @property
    def tokens_per_pass(self) -> float:
        return self.completion_tokens / max(1, self.passes)


@frozen
class Text:
    """Settled text. Append it; it never changes."""

    text: str
    tokens: tuple[TokenInfo, ...] = ()
    usage: Usage | None = field(default=None, compare=False, repr=False)
    """What the request has cost so far, for one that is given up before its `Finish`."""


@dataclass(frozen=True, slots=True)
class CanvasToken:
    """One token of the canvas: its characters, and how sure the decoder is of it."""

    start: int
    end: int
    state: Literal["settled", "filled", "masked", "edited"]
    confidence: float
    """What the decoder compared with its threshold: an edited token's new one, a draft's by the denoiser."""
    pass_number: int
    """In which it settled; the pass of the canvas for what has not."""


@dataclass(frozen=True, slots=True)
class Canvas:
    """A preview of the whole answer; it replaces the one before.

    Masked positions show the denoiser's current guess, so that the text reads as text throughout.
    The spans are sorted, disjoint and index `text`; what none of them covers is filled, not settled.
    """

    text: str
    settled: tuple[Span, ...] = ()
    masked: tuple[Span, ...] = ()
    edited: tuple[Span, ...] = ()
    """Positions that revision changed in this block."""
    progress: float = 0.0
    """Filled positions over the limit of the answer; 1.0 only when it is whole. Never falls."""
    pass_number: int = 0
    tokens: tuple[CanvasToken, ...] = ()
    """In the text's order, where `Request.canvas_tokens` asked for them; none without a character."""


@dataclass(frozen=True, slots=True)
class Finish:
    """The last event of a request."""

    reason: FinishReason
    usage: Usage
    message: str = ""
    """For `error` alone: what went wrong, fit for a user's eyes."""
    code: str = ""
    """For `error` alone: `invalid_value` where the request is at fault, nothing where the engine is."""
    repetition: bool = False
    """Whether it was ended for only repeating itself: `length`, or `stop` where a grammar could be ended."""
    stop_string: str = ""
    """Which of `Sampling.stop` ended the answer; empty where none did."""
    fit: float | None = None
    """How likely answer and suffix are behind the prompt, in nats, where that was read."""


Event = Text | Canvas | Finish


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What the edge needs to know of a served model."""

    id: str
    context_length: int
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    mask_token_id: int
    created: int = 0
    description: str = ""
    decoders: tuple[str, ...] = ()
    """Which decoders the model can run."""
    presets: Mapping[str, Decoding] = field(default_factory=dict)
    """Its named decodings."""
    default_preset: str = ""
    """The one that answers where none is named."""
    adapters: tuple[str, ...] = ()
    """Names of the adapters that requests may ask for."""


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What an engine runs on."""

    backend: str
    """`torch` or `native`."""
    device: str
    """`cpu`, `cuda:0`, ..."""
    dtype: str
    """Of the weights."""
    threads: int
    """CPU threads of a forward."""
    instruction_set: str = ""
    """Of the native backend."""
    num_slots: int = 0
    """Positions that the key-value cache holds."""


@frozen
class Timing:
    """What a number of forwards took, summed: in the model, in choosing tokens and in making tensors."""

    forward_s: float = 0.0
    decode_s: float = 0.0
    prepare_s: float = 0.0
    forwards: int = 0
    rows: int = 0

    def __add__(self, other: Timing) -> Timing:
        return Timing(
            self.forward_s + other.forward_s,
            self.decode_s + other.decode_s,
            self.prepare_s + other.prepare_s,
            self.forwards + other.forwards,
            self.rows + other.rows,
        )

    def __sub__(self, other: Timing) -> Timing:
        o = other
        return self + Timing(-o.forward_s, -o.decode_s, -o.prepare_s, -o.forwards, -o.rows)


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Counters since the start and gauges of now, for /metrics and /health."""

    running: int = 0
    waiting: int = 0
    pages_used: int = 0
    pages_total: int = 0
    pages_cached: int = 0
    """Unused pages that hold a prefix another request may share."""
    passes: int = 0
    """Forward passes of the model, each over every running request."""
    preemptions: int = 0
    prefix_hit_tokens: int = 0
    drafted: Mapping[str, int] = field(default_factory=dict)
    """Verified drafts by where they came from: `denoiser`, `lookup`, `existing`."""
    accepted: Mapping[str, int] = field(default_factory=dict)
    """Those that became text."""
    timing: Timing = field(default_factory=Timing)
    """What the passes took."""
