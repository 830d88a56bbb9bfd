"""A batch that requests join and leave between two steps, each row under its own adapter: generation for a server.

A step computes one piece of waiting prompts, then one token for every row that has its prompt behind it; so a long prompt delays the
others by a piece, never by its whole length. A row that is over stays behind as a *kept* row: a request of the same owner that begins with
the same tokens under the same adapter takes it over (the next turn of a conversation) or copies its beginning (the same system prompt).
Surprise: a prompt and a token are one thing here. A row has tokens, some of them computed; whoever has exactly one left is decoding. So a
batch that broke is mended by forgetting what was computed: the rows' tokens are all there is to know.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from agentalign.errors import ModelError
from agentalign.training.decode_attention import PASS_SCORES, PASS_TOKENS, PIECE, KVCache, Pass, Piece
from agentalign.training.generate import Generator, common_length
from agentalign.training.mixed_lora import MixedLora
from agentalign.training.sampling import Penalties, Sampler

TAIL = 16
"""A kept row is taken over where at most this many of its tokens differ; where more do, another request may want them still."""
MAX_REFUSALS = 200
"""Ids that a constraint may refuse in one place before that counts as having no way to go on."""

NO_NUMBERS = "the scores of {} are no numbers here, so nothing can be sampled from them. Use another version."


class Constraint(Protocol):
    """What a turn may say. Each request has its own; it follows what is written."""

    @property
    def over(self) -> bool:
        """Nothing may follow any more."""
        ...

    def allowed(self) -> Tensor | None:
        """(V,) ids that may come next; None where `refuses` alone decides. ModelError where nothing may."""
        ...

    def refuses(self, token: int) -> bool:
        """Whether this id may not come next, for what is cheaper to ask about one id than about all."""
        ...

    def advance(self, token: int) -> None:
        """This id is written. ModelError where nothing can be said of what may follow."""
        ...


class Stop(Protocol):
    """What ends a turn besides the ids that do. Each request has its own; it follows what is written."""

    @property
    def over(self) -> bool:
        """The turn is over."""
        ...

    def advance(self, token: int) -> None:
        """This id was written; never one that ends the turn by itself."""
        ...


@dataclass
class Work:
    """One request, from its prompt to its last token."""

    key: int
    """Names it in what `Batch.step` gives."""
    context: Sequence[int]
    adapter: str | None
    """None for the bare base."""
    budget: int
    """Most tokens to write, at least 1."""
    sampler: Sampler = field(default_factory=Sampler)
    seed: int = 0
    owner: str = ""
    """Who asks. A kept row is its owner's alone: how much of a prompt was there already tells what another one has said."""
    top: int = 0
    """How many of the likeliest ids to name at each place."""
    constraint: Constraint | None = None
    penalties: Penalties = field(default_factory=Penalties)
    stop: Stop | None = None
    ids: list[int] = field(default_factory=list)
    """Written so far."""
    cached: int = 0
    """Tokens of the context that were not computed, since a kept row had them."""
    random: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.random = torch.Generator().manual_seed(self.seed)


class Written(NamedTuple):
    """What a step did for one request."""

    key: int
    token: int
    logprob: float
    """Of the model, in nats, at temperature 1, unhindered by constraints."""
    top: tuple[tuple[int, float], ...] = ()
    """Likeliest ids and their log-probs."""
    end: Literal["", "stop", "length"] = ""
    """Why this was the last token."""
    problem: str = ""
    """Why the request cannot go on; then `token` says nothing."""


@dataclass
class _Row:
    """A row of the cache: the first `held` of its tokens have keys and values there."""

    adapter: str | None
    owner: str
    tokens: list[int]
    held: int
    work: Work | None
    """None for a kept row."""
    used: int
    """When it was last worked on, for choosing which kept row to give up."""

    @property
    def pending(self) -> int:
        return len(self.tokens) - self.held if self.work else 0


class Batch:
    """The rows of one generator. One thread owns it, inside `generator.ready(NAME)`."""

    def __init__(self, generator: Generator, lora: MixedLora, *, running: int, kept: int) -> None:
        if generator.refusal:
            raise ModelError(f"this base cannot be served in batches: {generator.refusal}.")
        self.generator, self.lora = generator, lora
        self.running, self.most_rows = running, running + kept
        self.cache = KVCache()
        self.rows: list[_Row] = []
        self._clock = 0
        self._written: list[Written] = []

    @property
    def works(self) -> list[Work]:
        """The requests in work."""
        return [row.work for row in self.rows if row.work]

    @property
    def room(self) -> int:
        """How many more requests may join."""
        return self.running - len(self.works)

    def admit(self, work: Work) -> None:
        """Give a request a row, with what is there already of its tokens."""
        tokens = [*work.context, *work.ids]
        source, same = self._longest_beginning(work, tokens)
        target = self._place(source, same)
        if source is not None and target is not source:
            self.cache.copy(self.rows.index(source), self.rows.index(target), same)
        work.cached = min(same, len(work.context)) if not work.ids else work.cached
        target.adapter, target.owner, target.tokens, target.held, target.work = work.adapter, work.owner, tokens, same, work

    def drop(self, key: int) -> None:
        """End a request; what it has computed is kept."""
        for row in self.rows:
            if row.work and row.work.key == key:
                self._keep(row)

    def clear(self) -> list[Work]:
        """Forget all that was computed, kept rows too; returns the requests that were in work, which may be admitted again."""
        works = self.works
        self.cache, self.rows = KVCache(), []
        return works

    def step(self) -> list[Written]:
        """Compute a piece of what is waiting and a token of what is written. Where it raises, `take` gives what was written before."""
        self._clock += 1
        waiting = [row for row in self.rows if row.pending > 1]
        if waiting:
            self._compute(self._pieces(waiting))
        self._line_up()
        writing = [self._piece(row, 1) for row in self.rows if row.pending == 1]
        if writing:
            self._compute(writing)
        return self.take()

    def take(self) -> list[Written]:
        """What was written and not given yet."""
        written, self._written = self._written, []
        return written

    # ------------------------------------------------------------------ rows

    def _longest_beginning(self, work: Work, tokens: Sequence[int]) -> tuple[_Row | None, int]:
        """The row that holds most of these tokens' beginning. The last token is always computed: its logits are needed."""
        best: tuple[_Row | None, int] = (None, 0)
        for row in self.rows:
            if row.adapter == work.adapter and row.owner == work.owner:
                same = min(common_length(row.tokens[: row.held], tokens), len(tokens) - 1)
                # Of equals a kept row: it may be taken over without a copy.
                if same > best[1] or (same and same == best[1] and row.work is None):
                    best = (row, same)
        return best

    def _place(self, source: _Row | None, same: int) -> _Row:
        if source is not None and source.work is None and source.held - same <= TAIL:
            return source
        if len(self.rows) < self.most_rows:
            self.rows.append(_Row(None, "", [], 0, None, self._clock))
            self.cache.reserve(len(self.rows), self.cache.capacity)
            return self.rows[-1]
        kept = [row for row in self.rows if row.work is None]
        return min((row for row in kept if row is not source or len(kept) == 1), key=lambda row: row.used)

    def _keep(self, row: _Row) -> None:
        row.work, row.tokens = None, row.tokens[: row.held]

    def _forget(self, row: _Row) -> None:
        """A row with what is no number in it: a masked place has probability 0, and 0 x NaN would be the next request's NaN."""
        self.cache.wipe(self.rows.index(row))
        row.work, row.tokens, row.held = None, [], 0

    def _line_up(self) -> None:
        """Move the rows that write to the front: there a step gathers and copies nothing."""
        count = sum(row.pending == 1 for row in self.rows)
        behind = [place for place, row in enumerate(self.rows) if row.pending == 1 and place >= count]
        free = [place for place in range(count) if self.rows[place].pending != 1]
        used = max((self.rows[place].held for place in (*free, *behind)), default=0)
        self.cache.arrange([*free, *behind], [*behind, *free], used)
        for one, other in zip(free, behind, strict=True):
            self.rows[one], self.rows[other] = self.rows[other], self.rows[one]

    # ------------------------------------------------------------------ computing

    def _piece(self, row: _Row, size: int) -> Piece:
        return Piece(self.rows.index(row), 0, row.held, size)

    def _pieces(self, waiting: list[_Row]) -> list[Piece]:
        """One piece of each row, the longest waiting first, within the limits of one forward."""
        heads = self.generator.model.config.num_attention_heads
        some: list[Piece] = []
        for row in sorted(waiting, key=lambda row: row.used):
            piece = self._piece(row, min(PIECE, row.pending))
            padded = (len(some) + 1) * max(p.size for p in (*some, piece))
            keys = max(p.start + p.size for p in (*some, piece))
            if some and (padded > PASS_TOKENS or padded * heads * max(keys, self.cache.capacity) > PASS_SCORES):
                break
            some.append(piece)
        return some

    def _compute(self, pieces: list[Piece]) -> None:
        """One forward; a row whose tokens are all computed by it writes one more."""
        rows = [self.rows[piece.row] for piece in pieces]
        self.cache.reserve(len(self.rows), max(piece.start + piece.size for piece in pieces))
        flat = [token for row, piece in zip(rows, pieces, strict=True) for token in row.tokens[piece.start : piece.start + piece.size]]
        this = Pass(self.cache, pieces, self.generator.model.device)
        final = [i for i, (row, piece) in enumerate(zip(rows, pieces, strict=True)) if piece.size == row.pending]
        with self.lora.tokens_of([(row.adapter, piece.size) for row, piece in zip(rows, pieces, strict=True)]):
            # A forward without any final token still needs a place to read: its logits are thrown away.
            logits = self.generator.forward(torch.tensor(flat), this, this.last[final or [0]])
        for row, piece in zip(rows, pieces, strict=True):
            row.held, row.used = row.held + piece.size, self._clock
        if final:
            self._write([rows[i] for i in final], logits)

    def _write(self, rows: list[_Row], logits: Tensor) -> None:
        chosen = _choose([_work(row) for row in rows], logits)
        for index, row in enumerate(rows):
            work = _work(row)
            token, logprob, problem = chosen[index]
            if not math.isfinite(logprob):
                self._forget(row)
                self._written.append(Written(work.key, 0, 0.0, problem=NO_NUMBERS.format(work.adapter or "the base")))
                continue
            problem = problem or _advance(work, token)
            if problem:
                self._keep(row)
                self._written.append(Written(work.key, token, logprob, problem=problem))
                continue
            top = _likeliest(logits[index], work.top) if work.top else ()
            work.ids.append(token)
            row.tokens.append(token)
            stopped = token in self.generator.stop_ids or bool(work.constraint and work.constraint.over)
            if work.stop and not stopped:
                work.stop.advance(token)
                stopped = work.stop.over
            end: Literal["", "stop", "length"] = "stop" if stopped else "length" if len(work.ids) >= work.budget else ""
            if end:
                self._keep(row)
            self._written.append(Written(work.key, token, logprob, top, end))


def _work(row: _Row) -> Work:
    if row.work is None:
        raise ModelError("a row without a request was computed.")
    return row.work


def _advance(work: Work, token: int) -> str:
    """Tell the constraint what is written; why it cannot follow, empty where it can."""
    if work.constraint is None:
        return ""
    try:
        work.constraint.advance(token)
    except ModelError as error:
        return str(error)
    return ""


def _choose(works: list[Work], logits: Tensor) -> list[tuple[int, float, str]]:
    """(id, log-prob, why there is none) per row of logits (n, V); rows that are sampled alike in one go."""
    found: dict[int, tuple[int, float, str]] = {}
    for sampler in dict.fromkeys(work.sampler for work in works):
        free = [i for i, work in enumerate(works) if work.sampler == sampler and work.constraint is None and not work.penalties]
        if free:
            ids, logprobs = sampler(logits[free], [works[i].random for i in free])
            found |= {i: (token, logprob, "") for i, token, logprob in zip(free, ids, logprobs, strict=True)}
    for i, work in enumerate(works):
        if i not in found:
            try:
                found[i] = (*_bent(work, logits[i : i + 1]), "")
            except ModelError as error:
                found[i] = (0, 0.0, str(error))
    return [found[i] for i in range(len(works))]


def _bent(work: Work, logits: Tensor) -> tuple[int, float]:
    """An id and its log-prob where penalties or a constraint have a word in it."""
    constraint = work.constraint
    shift = work.penalties.shift(work.ids, logits) if work.penalties else None
    if constraint is None:
        (token,), (logprob,) = work.sampler(logits, [work.random], shift=shift)
        return token, logprob
    mask = constraint.allowed()
    allowed = torch.ones_like(logits, dtype=torch.bool) if mask is None else mask[None].to(logits.device)
    for _ in range(MAX_REFUSALS):
        (token,), (logprob,) = work.sampler(logits, [work.random], allowed, shift)
        if not constraint.refuses(token):
            return token, logprob
        # Choosing again without what was refused is choosing from what is allowed: the same shares among the rest.
        allowed = allowed.clone()
        allowed[0, token] = False
        if not allowed.any():
            break
    raise ModelError("nothing that the model would write next is allowed here. Loosen what is asked of the answer.")


def _likeliest(logits: Tensor, count: int) -> tuple[tuple[int, float], ...]:
    values, ids = torch.log_softmax(logits.float(), dim=-1).topk(min(count, logits.shape[-1]))
    return tuple(zip(ids.tolist(), values.tolist(), strict=True))
