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

import math
from collections.abc import Sequence
from dataclasses import replace

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
from vermilion.decoding.lookup import Repeats
from vermilion.decoding.passes import Pass, Read, Reading, Segment
from vermilion.decoding.program import Open, Program, Task
from vermilion.models.families import Traits

SPECULATIVE = ("ar", "lossless", "relaxed")
CHOICES = 8
"""Tokens per position that a tree of drafts may choose from."""

_FIRST_COPIES = 8
"""Tokens that a run of the existing text begins with."""
FIRST_REPEATS = 4
"""Tokens that a run found by `lookup` begins with."""
_LEAST_CHANCE = math.log(0.3)
"""Of a path that the denoiser drafts under a grammar."""
_MOST_REST = 16
"""Passes that it rests at the most."""


class Speculative(Program):
    """Decoders `ar` (never drafts), `lossless` and `relaxed`."""

    def __init__(self, task: Task, traits: Traits) -> None:
        super().__init__(task, traits)
        self._tree: tuple[Node, ...] = ()
        self._branches: dict[int, list[Read]] = {}
        self._repeats = Repeats()
        self._first_run = _FIRST_COPIES if task.existing else FIRST_REPEATS
        self._run = self._first_run
        """Most tokens to draft next from text that is there: twice as many each time all were right."""
        self._looked_up = False
        """Whether the tree is such a run."""
        self._refused = 0
        """How many of the denoiser's drafts in a row the grammar or the base refused wholly."""
        self._rest = 0
        """Passes until it drafts again."""
        self._moves: tuple[tuple[int, int], ...] = ()
        """Keys of accepted drafts that lie in another slot than their position's."""

    @property
    def lossless(self) -> bool:
        return self.task.decoding.decoder != "relaxed"

    @property
    def draft_rows(self) -> int:
        """Rows that drafting adds to two passes, at the most."""
        decoding = self.task.decoding
        return 0 if decoding.decoder == "ar" else decoding.block_length + decoding.draft_nodes

    @property
    def max_draft_rows(self) -> int:
        decoding = self.task.decoding
        if decoding.decoder == "ar":
            return 0
        nodes = max(decoding.draft_nodes, decoding.lookup)
        return nodes + max(1, min(decoding.branches, nodes + 1)) * decoding.block_length

    @property
    def max_slots(self) -> int:
        return self.limit + self.max_draft_rows

    @property
    def cacheable(self) -> int:
        return self.cached if self._moves else len(self.tokens) - 1

    def forget(self) -> None:
        super().forget()
        self._moves = ()

    def plan(self, draft: bool = True) -> Pass:
        if self._looked_up and not draft:
            self._tree, self._looked_up = (), False
        settled, tree = len(self.tokens), self._tree
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
        for end in self._ends() if draft or not self.lossless else ():
            segment, wanted = self._branch(end, segments, len(reads))
            if wanted:
                segments.append(segment)
                self._branches[end] = wanted
                reads += wanted
        return Pass(tuple(segments), tuple(reads), self._moves)

    def _children(self, parent: int) -> tuple[int, ...]:
        """Targets of a base read: only a relaxed verdict looks at more than the base's own choice."""
        if self.lossless:
            return ()
        return tuple(node.token for node in self._tree if node.parent == parent)

    def _ends(self) -> tuple[int, ...]:
        """Outcomes of this pass to draft behind."""
        if self.task.decoding.decoder == "ar" or self._rest:
            return ()
        return likeliest_ends(self._tree, self.task.decoding.branches) if self._tree else (-1,)

    def _branch(self, end: int, segments: list[Segment], num_reads: int) -> tuple[Segment, list[Read]]:
        """Noisy rows behind the drafts up to node `end`: a visible anchor, then masks, as in training.

        The first mask stands for the base token that this pass will add there; each mask's row reads the
        position behind it. No reads where the answer has no room for what they would draft.
        """
        settled, mask = len(self.tokens), self.traits.mask_token_id
        path = ancestors(self._tree, end)
        unknown = settled + len(path)
        # A draft for the answer's last position saves no pass: the base gives that token anyway.
        length = self.task.decoding.canvas_length(settled - len(self.task.prompt))
        count = min(length - 1, self.limit - 2 - unknown)
        segment = Segment(
            ids=(self._tree[end].token if path else self.tokens[-1], *([mask] * count)),
            start=unknown - 1,
            slot=segments[-1].slot + len(segments[-1].ids),
            sees=settled if path else settled - 1,
            span=0,
            noisy=True,
            masked=(False, *([True] * count)),
            also=tuple(settled + i for i in path[:-1]),
        )
        row = sum(len(earlier.ids) for earlier in segments)
        history = tuple(self._tree[i].token for i in path)
        # The base's read at `end` gives the token before the first draft, and each draft the next one's.
        after = [end + 1, *range(num_reads, num_reads + count)]
        return segment, [
            Read(row + i, unknown + i, "draft", history=history, top=CHOICES, after=after[i - 1])
            for i in range(1, count + 1)
        ]

    def apply(self, readings: Sequence[Reading]) -> None:
        self._count_pass()
        settled, tree = len(self.tokens), self._tree
        path = self._verified(readings)
        num_forced = len(self.tokens) - settled - len(path) - 1
        preview = [position.token for position in self.canvas()]
        self.edits += sum(a != b for a, b in zip(preview, self.tokens[settled:], strict=False))
        # The base's K/V of accepted drafts is good; off the first path it lies in a later slot.
        in_place = sum(index == depth for depth, index in enumerate(path))
        self.cached = settled + in_place
        self._moves = tuple(
            (settled + index, settled + depth) for depth, index in enumerate(path) if index != depth
        )
        end = path[-1] if path else -1
        self._tree = ()
        if self.finish is None and end in self._branches:
            at = 1 + len(tree)
            for branch, wanted in self._branches.items():
                if branch == end:
                    # What the grammar forced stands where the first of these guesses would.
                    self._tree = self._drafted(readings[at + max(0, num_forced) : at + len(wanted)])
                at += len(wanted)
        self._weigh(bool(tree) and not self._looked_up, bool(path))
        all_right = bool(tree) and len(path) == len(tree)
        from_text = bool(self.task.existing) or self._looked_up
        self._run = 2 * self._run if all_right and from_text else self._first_run
        self._looked_up = False
        if self.finish is None and self.task.decoding.decoder != "ar":
            self._draft_from_text()

    def _weigh(self, verified: bool, accepted: bool) -> None:
        """Under a grammar let the denoiser rest where its drafts are refused, the longer the oftener.

        It knows nothing of the grammar, and what forms leave open is seldom what it is good at: drafting all
        the time took 1.23 and 1.29 times as long as not drafting, this 1.09 times (bench/forms.py, one
        thread, median of five), in 115 passes instead of 104 where not drafting took 130.
        """
        if self.task.constraint is None or self.task.existing:
            return
        self._rest = max(0, self._rest - 1)
        useless = bool(self._branches) and not self._tree
        if verified and accepted:
            self._refused = 0
        elif verified or useless:
            self._refused += 1
            self._rest = min(2**self._refused, _MOST_REST)

    def _verified(self, readings: Sequence[Reading]) -> list[int]:
        """Settle what the base accepts and its next token; the accepted nodes."""
        share = 1.0 if self.lossless else self.task.decoding.accept_above
        path: list[int] = []
        end = -1
        while self.finish is None:
            verdict = accepted_child(self._tree, end, readings[end + 1], share)
            if verdict is None:
                self._settle(readings[end + 1])
                break
            end, reading = verdict
            self._settle(reading)
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

    def _draft_from_text(self) -> None:
        """Text that is there already drafts, where it says anything, instead of the denoiser."""
        if self.task.existing:
            self._tree = self._copied() or self._tree
        elif self.task.decoding.lookup and self.lossless:
            size = self._run_within(self.task.decoding.lookup)
            chain = self._kept(chained(self._repeats.follow(self.tokens, size)))
            self._looked_up = bool(chain)
            self._tree = chain or self._tree

    def _copied(self) -> tuple[Node, ...]:
        """What the existing text says next; what stands in it needs no guess."""
        answer = self.tokens[len(self.task.prompt) :]
        return self._kept(
            copied(self.task.existing, answer, self._run_within(self.task.decoding.draft_nodes))
        )

    def _run_within(self, most: int) -> int:
        """Length of the next run: the answer's last token is the base's own anyway."""
        return max(0, min(self._run, most, self.limit - 1 - len(self.tokens)))

    def _drafted(self, guesses: Sequence[Reading]) -> tuple[Node, ...]:
        levels = [self._level(guess) for guess in guesses]
        tree = draft_tree(levels, self.task.decoding.draft_nodes, self.tokens[-1])
        if self.task.constraint is not None:
            # The likeliest paths come first.
            tree = tuple(node for node in tree if node.logprob >= _LEAST_CHANCE)
        return self._kept(tree)

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
            if node.parent in new_index and constraint.keeps(path):
                new_index[index] = len(kept)
                kept.append(replace(node, parent=new_index[node.parent]))
        return tuple(kept)

    def canvas(self) -> list[Open]:
        """The likeliest path of the tree."""
        view: list[Open] = []
        parent = -1
        for index, node in enumerate(self._tree):
            # Children are found likeliest first.
            if node.parent == parent and node.depth == len(view):
                view.append(Open(node.token, masked=False))
                parent = index
        return view
