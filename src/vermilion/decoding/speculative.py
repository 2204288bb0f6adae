"""Autoregression and self-speculation: one program, with and without drafts.

Every pass runs the clean row of the last settled token and of each drafted one, so it settles the longest
path of drafts that the base model accepts plus one token of the base's own, whatever the drafts were worth:
never less than one token per pass. Noisy rows ride in the same pass and draft for the next: in a pass that
verifies nothing, behind the settled text; in a pass that verifies, behind each of the `branches` likeliest
outcomes (the idea of TiDAR, arXiv 2511.08923). Such rows stand on tokens that may be refused and on a base
token not yet known, which costs them quality, never correctness.

`lossless` keeps exactly what the base would have chosen. Since the sampling noise is keyed by (seed,
position), that holds for sampled text too, token for token, and needs no rejection step: noise shared by
draft and base makes the two agree about as often as rejection sampling would accept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import exp

from vermilion.decoding.commit import (
    Level,
    Node,
    accepted_child,
    ancestors,
    chained,
    copied,
    draft_tree,
    likeliest_ends,
)
from vermilion.decoding.draft_record import Source
from vermilion.decoding.drafting import DraftBudget, gain_of, worthwhile, worthwhile_guesses
from vermilion.decoding.passes import ON_IT, Pass, Read, Reading, Segment
from vermilion.decoding.program import Open, Program, Task
from vermilion.decoding.prompt_lookup import PromptLookup
from vermilion.decoding.repetition import RepetitionWatch
from vermilion.models.families import Traits

CHOICES = 8
"""Tokens per position that a tree of drafts may choose from."""


class Speculative(Program):
    """Decoders `ar` (never drafts), `lossless` and `relaxed`."""

    def __init__(self, task: Task, traits: Traits) -> None:
        super().__init__(task, traits)
        self._watch = RepetitionWatch() if task.stop_repetition else None
        self._tree: tuple[Node, ...] = ()
        """Guessed drafts for the next pass."""
        self._run: tuple[Node, ...] = ()
        """A chain of drafts copied from text, for the next pass."""
        self._verifying: tuple[Node, ...] = ()
        """The drafts of the planned pass."""
        self._guesser: Source = "drafter" if traits.drafter else "denoiser"
        self._source: Source = self._guesser
        """Where they come from."""
        self._branches: dict[int, list[Read]] = {}
        self._prompt_lookup = PromptLookup()
        self._hopeless = False
        """Whether rows cost too much for any draft in the planned pass: with many streams at once."""
        self._wants_drafts = False
        """Whether the drafter may be asked before the next pass."""
        self._guessed = 0
        """How many positions the tree of drafts was guessed for, until it is weighed."""
        self._asked = False
        """Whether the drafter was asked before the planned pass."""
        self._least = 0.0
        """The chance that its drafts must have, at least, to be worth a row."""
        self._saved = 0
        """Passes that the accepted drafts saved: none where the grammar leaves no choice anyway."""
        self._moves: tuple[tuple[int, int], ...] = ()
        """Keys of accepted drafts that lie in another slot than their position's."""

    @property
    def _copies(self) -> Source:
        """Where runs are copied from."""
        return "existing" if self.task.existing else "lookup"

    @property
    def lossless(self) -> bool:
        return self.task.decoding.decoder != "relaxed"

    @property
    def max_draft_rows(self) -> int:
        decoding = self.task.decoding
        if decoding.decoder == "ar":
            return 0
        nodes = max(decoding.draft_nodes, decoding.lookup)
        if self.traits.drafter or not self.traits.denoises:
            return nodes + self.traits.drafter
        rows = decoding.block_length + self.traits.unread_masks
        return nodes + max(1, min(decoding.branches, nodes + 1)) * rows

    @property
    def max_slots(self) -> int:
        return self.limit + self.max_draft_rows

    @property
    def cacheable(self) -> int:
        return self.cached if self._moves else len(self.tokens) - 1

    def forget(self) -> None:
        super().forget()
        self._moves = ()
        self._wants_drafts = False

    def plan(self, budget: DraftBudget | None = None) -> Pass:
        budget = budget and budget.under(self.task.constraint)
        self._hopeless = budget is not None and budget.hopeless
        self._verifying, self._source = self._chosen(budget)
        settled, tree = len(self.tokens), self._verifying
        stored = self.cached + len(self._moves)
        clean = Segment(tuple(self.tokens[stored:]), stored, stored, sees=stored, span=1)
        segments = [clean]
        reads = [Read(len(clean.ids) - 1, settled, "next", self._children(-1))]
        for index, node in enumerate(tree):
            path = ancestors(tree, index)
            segments.append(
                Segment(
                    (node.token,),
                    start=settled + node.depth,
                    slot=settled + index,
                    sees=settled,
                    span=1,
                    also=tuple(settled + i for i in path[:-1]),
                )
            )
            history = tuple(tree[i].token for i in path)
            position = settled + node.depth + 1
            reads.append(Read(len(clean.ids) + index, position, "next", self._children(index), history))
        self._branches = {}
        for end in self._ends():
            segment, wanted = self._branch(end, segments, len(reads), budget)
            if wanted:
                segments.append(segment)
                self._branches[end] = wanted
                reads += wanted
        reserve = 0 if self.task.decoding.decoder == "ar" else self.traits.drafter
        return Pass(tuple(segments), tuple(reads), self._moves, reserve)

    def ask_drafter(self, num_slots: int, budget: DraftBudget | None = None) -> Pass | None:
        """The drafter's pass before the next plan, in no more than `num_slots` slots; None for none.

        Its rows stand behind the settled text: the last token, whose base row has not run yet, then masks.
        """
        settled, mask = len(self.tokens), max(0, self.traits.mask_token_id)
        # What a grammar forced has no keys yet.
        stored = self.cached + len(self._moves)
        budget = budget and budget.under(self.task.constraint)
        self._least = budget.cost(1) if budget is not None else 0.0
        if not self._wants_drafts or (budget is not None and budget.hopeless):
            return None
        # A draft for the answer's last position saves no pass: the base gives that token anyway.
        count = min(self.traits.drafter, self.limit - 1 - settled, num_slots - (settled - 1))
        if count > 0 and budget is not None:
            account = self.record.account(self._guesser)
            yields = self.record.yields(count)
            count, gain = worthwhile_guesses(yields, budget, budget.drafter_cost, account.balance)
            run = self.record.run_chances(self._copies, len(self._run))
            if run and gain_of(run, budget) >= gain:
                return None
            if count:
                account.spend(budget.drafter_cost(count))
        if count <= 0:
            return None
        ids = (self.tokens[-1], *([mask] * (count - 1)))
        masked = (False, *([True] * (count - 1)))
        rows = Segment(ids, settled - 1, settled - 1, stored, span=0, noisy=True, masked=masked)
        reads = [
            Read(row, settled + row, "draft", top=CHOICES, after=row - 1 if row else ON_IT)
            for row in range(count)
        ]
        return Pass((rows,), tuple(reads), self._moves)

    def drafted(self, readings: Sequence[Reading]) -> None:
        """Take in what the drafter guessed."""
        # The pass has put accepted drafts' keys where they belong.
        self.cached += len(self._moves)
        self._moves = ()
        self._wants_drafts, self._asked = False, True
        self._tree, self._guessed = self._drafted(readings), len(readings)

    def _children(self, parent: int) -> tuple[int, ...]:
        """Targets of a base read: only a relaxed verdict looks at more than the base's own choice."""
        if self.lossless:
            return ()
        return tuple(node.token for node in self._verifying if node.parent == parent)

    def _chosen(self, budget: DraftBudget | None) -> tuple[tuple[Node, ...], Source]:
        """The drafts to verify: those from text or the denoiser's, whichever promise more; without a budget
        those from text where there are any, and as many as there are."""
        copied = self._copies
        if self._hopeless:
            return (), self._guesser
        if budget is None:
            return (self._run, copied) if self._run else (self._tree, self._guesser)
        if not (self._run or self._tree or self._guessed):
            return (), self._guesser
        run = self.record.run_chances(copied, len(self._run))
        tree = self.record.tree_chances([node.logprob for node in self._tree])
        if self._guessed:
            worth = worthwhile(tree, budget)
            self.record.note_guesses(self._guessed, [node.depth for node in self._tree[:worth]], tree[:worth])
            self._guessed = 0
        copies = bool(run) and gain_of(run, budget) >= gain_of(tree, budget)
        drafts, chances, source = (self._run, run, copied) if copies else (self._tree, tree, self._guesser)
        account = self.record.account(source)
        count = budget.affordable(worthwhile(chances, budget), account.balance)
        account.spend(budget.cost(count))
        return drafts[:count], source

    def _ends(self) -> tuple[int, ...]:
        """Outcomes of this pass to draft behind."""
        decoder, traits = self.task.decoding.decoder, self.traits
        if decoder == "ar" or self._hopeless or traits.drafter or not traits.denoises:
            return ()
        return likeliest_ends(self._verifying, self.task.decoding.branches) if self._verifying else (-1,)

    def _branch(
        self, end: int, segments: list[Segment], num_reads: int, budget: DraftBudget | None
    ) -> tuple[Segment, list[Read]]:
        """Noisy rows behind the drafts up to node `end`: a visible anchor, then masks, as in training.

        The first mask stands for the base token that this pass will add there; each mask's row reads the
        position behind it, or its own. No reads where the answer has no room for what they would draft.
        """
        settled, mask = len(self.tokens), self.traits.mask_token_id
        path = ancestors(self._verifying, end)
        unknown = settled + len(path)
        # A draft for the answer's last position saves no pass: the base gives that token anyway.
        length = self.task.decoding.canvas_length(settled - len(self.task.prompt))
        count = min(length - 1, self.limit - 2 - unknown)
        if budget is not None:
            budget, account = budget.plus(len(self._verifying)), self.record.account(self._guesser)
            yields = self.record.yields(count)
            count, _ = worthwhile_guesses(yields, budget, budget.denoiser_cost, account.balance)
            if count:
                account.spend(budget.denoiser_cost(count))
        unread = self.traits.unread_masks
        masks = count + unread
        segment = Segment(
            ids=(self._verifying[end].token if path else self.tokens[-1], *([mask] * masks)),
            start=unknown - 1,
            slot=segments[-1].slot + len(segments[-1].ids),
            sees=settled if path else settled - 1,
            span=0 if self.traits.canvas == "bidirectional" else 1,
            noisy=True,
            masked=(False, *([True] * masks)),
            also=tuple(settled + i for i in path[:-1]),
        )
        row = sum(len(earlier.ids) for earlier in segments)
        history = tuple(self._verifying[i].token for i in path)
        # The base's read at `end` gives the token before the first draft, and each draft the next one's.
        after = [end + 1, *range(num_reads, num_reads + count)]
        return segment, [
            Read(row + unread + i, unknown + i, "draft", history=history, top=CHOICES, after=after[i - 1])
            for i in range(1, count + 1)
        ]

    def apply(self, readings: Sequence[Reading]) -> None:
        self._count_pass()
        settled, tree = len(self.tokens), self._verifying
        preview = [position.token for position in self.canvas()]
        path = self._verified(readings)
        num_forced = len(self.tokens) - settled - len(path) - 1
        self.edits += sum(a != b for a, b in zip(preview, self.tokens[settled:], strict=False))
        # The base's K/V of accepted drafts is good; off the first path it lies in a later slot.
        in_place = sum(index == depth for depth, index in enumerate(path))
        self.cached = settled + in_place
        self._moves = tuple(
            (settled + index, settled + depth) for depth, index in enumerate(path) if index != depth
        )
        self._note_drafts(path)
        self._asked = False
        end = path[-1] if path else -1
        self._tree, self._run, self._verifying, self._guessed = (), (), (), 0
        if self.finish is None and end in self._branches:
            at = 1 + len(tree)
            for branch, wanted in self._branches.items():
                if branch == end:
                    # What the grammar forced stands where the first of these guesses would.
                    guesses = readings[at + max(0, num_forced) : at + len(wanted)]
                    self._tree, self._guessed = self._drafted(guesses), len(guesses)
                at += len(wanted)
        drafts = self.finish is None and self.task.decoding.decoder != "ar"
        self._wants_drafts = drafts and self.traits.drafter > 0
        if drafts and not self._hopeless:
            self._run = self._copied()

    def _note_drafts(self, path: Sequence[int]) -> None:
        """Tell the record what the pass's drafts came to, of which `path` was accepted."""
        tree, record = self._verifying, self.record
        if tree:
            depths, logprobs = [node.depth for node in tree], [node.logprob for node in tree]
            record.note(self._source, depths, logprobs, len(path))
            record.account(self._source).earn(self._saved)
        if self._run and not (tree and self._source == self._copies):
            record.rest(self._copies)
        guessed = self._branches or self._asked or (tree and self._source == self._guesser)
        if not guessed and self.task.decoding.decoder != "ar":
            record.rest(self._guesser)

    def _verified(self, readings: Sequence[Reading]) -> list[int]:
        """Settle what the base accepts and its next token; the accepted nodes."""
        share = 1.0 if self.lossless else self.task.decoding.accept_above
        path: list[int] = []
        end, limit, constraint = -1, self.limit, self.task.constraint
        self._saved = 0
        while self.finish is None:
            verdict = accepted_child(self._verifying, end, readings[end + 1], share)
            if verdict is None:
                self._settle(readings[end + 1])
                break
            end, reading = verdict
            self._saved += constraint is None or constraint.forced() is None
            self._settle(reading)
            if self.limit != limit:
                # The rows behind did not know yet that the end is near.
                break
            path.append(end)
        self._settle_forced()
        return path

    def _settle_forced(self) -> None:
        """What the grammar leaves no choice about needs no pass; the next one stores it with the rest."""
        constraint = self.task.constraint
        while constraint is not None and self.finish is None:
            token = constraint.forced()
            if token is None:
                return
            self._settle(Reading(token, 0.0))

    def _copied(self) -> tuple[Node, ...]:
        """What the existing text, or else the text so far, says next. What stands there needs no guess."""
        decoding = self.task.decoding
        # The answer's last token is the base's own anyway.
        room = max(0, self.limit - 1 - len(self.tokens))
        if self.task.existing:
            answer = self.tokens[len(self.task.prompt) :]
            run = copied(self.task.existing, answer, min(decoding.draft_nodes, room))
        elif decoding.lookup and self.lossless:
            run = self._prompt_lookup.follow(self.tokens, min(decoding.lookup, room))
        else:
            return ()
        constraint = self.task.constraint
        return chained(run if constraint is None else run[: constraint.follows(run)])

    def _drafted(self, guesses: Sequence[Reading]) -> tuple[Node, ...]:
        levels = [self._level(guess) for guess in guesses]
        # What will not be verified need not be held against a grammar, either.
        least = self.record.least_logprob(self._least)
        return self._kept(draft_tree(levels, self.task.decoding.draft_nodes, self.tokens[-1], least))

    def _level(self, guess: Reading) -> Level:
        if self.task.sampled:
            # The token that shares the base's noise is by far the likeliest to be its choice.
            return Level(((guess.token, guess.logprob),), guess.given)
        return Level(guess.top[:CHOICES], guess.given)

    def _kept(self, tree: tuple[Node, ...]) -> tuple[Node, ...]:
        """The tree without the drafts that leave the grammar, nor what stands on them."""
        constraint = self.task.constraint
        if constraint is None:
            return tree
        kept: list[Node] = []
        new_index = {-1: -1}
        for index, node in enumerate(tree):
            path = [tree[i].token for i in ancestors(tree, index)]
            if node.parent in new_index and constraint.follows(path) == len(path):
                new_index[index] = len(kept)
                kept.append(replace(node, parent=new_index[node.parent]))
        return tuple(kept)

    def canvas(self) -> list[Open]:
        """The likeliest path of the drafts."""
        view: list[Open] = []
        parent, before = -1, 0.0
        for index, node in enumerate(self._verifying or self._run or self._tree):
            # Children are found likeliest first.
            if node.parent == parent and node.depth == len(view):
                confidence = min(1.0, exp(node.logprob - before))
                view.append(Open(node.token, masked=False, confidence=confidence))
                parent, before = index, node.logprob
        return view
