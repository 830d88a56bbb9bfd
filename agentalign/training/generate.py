"""Batched generation inside the process, with a cache that lives across the turns of many runs.

A `Generator` holds a plain causal LM; a session holds the keys and values of its slots (one run each). `session.generate` takes each slot's
whole context as token ids and computes only what it does not hold yet: the prefix that all contexts share once for everyone, the rest per
slot. A slot that ends its turn leaves the batch at once. Changed weights need a new session: cached keys belong to the old ones.
Surprise: the returned log-probs are the model's own (log-softmax of the raw logits in fp32, that is, temperature 1 and no top_p), whatever
temperature the ids were sampled with.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from agentalign.errors import ModelError
from agentalign.training.completion import Completion, Turn, turns_of
from agentalign.training.decode_attention import NAME, PASS_SCORES, PASS_TOKENS, PIECE, ROWS, KVCache, Pass, Piece, rows_at_once
from agentalign.training.positions import position_limit
from agentalign.training.sampling import Sampler, generate_one

log = logging.getLogger(__name__)


class Session(Protocol):
    """Generation with a cache per slot."""

    def generate(
        self,
        contexts: Mapping[int, Sequence[int]],
        *,
        max_new_tokens: int | Mapping[int, int],
        temperature: float = 0.0,
        top_p: float = 1.0,
        seeds: Mapping[int, int] | None = None,
    ) -> dict[int, Completion]:
        """Continue each slot's context.

        Args:
            contexts: slot -> the whole context; what it shares with the slot's earlier context and completion is not computed again.
            max_new_tokens: for all slots, or per slot.
            temperature: 0 takes the likeliest id.
            top_p: smallest set of likeliest ids with at least this mass; 1 keeps all.
            seeds: slot -> seed of its own random stream for this call, so that a sample does not depend on its neighbours; 0 where absent.
        """
        ...

    def drop(self, slot: int) -> None:
        """Forget the slot's cache; an unknown slot is nothing to forget."""
        ...


class Generator:
    """A causal LM ready to generate; weights may not change while one of its sessions is in use."""

    def __init__(
        self,
        model: PreTrainedModel,
        stop_ids: frozenset[int],
        pad_id: int = 0,
        *,
        within: Callable[[], AbstractContextManager[object]] = nullcontext,
        refusal: str | None = None,
    ) -> None:
        """`within` gives what every computation is done in: an adapter that is active meanwhile, say. `refusal` is what another generator
        of this network found: why slots cannot be computed in a batch, or nothing; None finds it out.
        """
        if not stop_ids:
            raise ModelError("the generator was given no stop ids, so no completion would ever end. Give the dialect's stop_ids.")
        self.model, self.stop_ids, self.pad_id, self._within = model, frozenset(stop_ids), pad_id, within
        self.limit = position_limit(model.config)
        self.refusal = self._probe() if refusal is None else refusal
        if self.refusal:
            log.warning("%s: batched generation is not possible (%s); slots are generated one by one.", type(model).__name__, self.refusal)

    def session(self) -> Session:
        """A new, empty session."""
        return _PlainSession(self) if self.refusal else _BatchSession(self)

    def rows_at_once(self, tokens: int) -> int:
        """How many contexts of up to this many tokens each are best generated together."""
        return ROWS if self.refusal else rows_at_once(self.model, tokens)

    def _probe(self) -> str:
        """Why the batched attention cannot serve this model; empty where it can. Two tokens are run to see that every layer uses it."""
        config = self.model.config
        odd = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
        if odd:
            return f"it has layers of type {', '.join(sorted(odd))}"
        cache = KVCache()
        cache.reserve(1, 2)
        probe = Pass(cache, [Piece(0, 0, 0, 2)], self.model.device)
        try:
            with self.ready(NAME):
                self.forward(torch.zeros(2, dtype=torch.long), probe)
        except (ModelError, ValueError, KeyError) as error:
            return str(error)
        missing = config.num_hidden_layers - len(probe.layers)
        return f"{missing} of its {config.num_hidden_layers} layers do not use transformers' attention interface" if missing else ""

    @contextmanager
    def ready(self, attention: str = "") -> Iterator[None]:
        """Inference mode, evaluation mode and, where named, another attention; all put back at the end."""
        model = self.model
        # Layer by layer: those that recompute activations are in training mode while the rest is not.
        before, training = model.config._attn_implementation, [layer for layer in model.modules() if layer.training]
        model.eval()
        if attention:
            model.set_attn_implementation(attention)
        try:
            with self._within(), torch.inference_mode():
                yield
        finally:
            if attention:
                model.set_attn_implementation(before)
            for layer in training:
                layer.training = True

    def forward(self, ids: Tensor, this: Pass, keep: Tensor | None = None) -> Tensor:
        """Logits (kept, V) of the flat tokens at `keep`; of each piece's last token where not given."""
        output = self.model(
            input_ids=ids[None].to(self.model.device),
            position_ids=this.positions[None],
            use_cache=False,
            logits_to_keep=this.last if keep is None else keep,
            agentalign_pass=this,
        )
        logits: Tensor = output.logits[0]
        return logits

    def budgets(self, contexts: Mapping[int, Sequence[int]], max_new_tokens: int | Mapping[int, int]) -> dict[int, int]:
        """How many tokens each slot may write, within the model's own length."""
        for slot, context in contexts.items():
            if not context:
                raise ModelError(f"slot {slot} has an empty context; there is nothing to continue. Give at least one token id.")
        wanted = max_new_tokens if isinstance(max_new_tokens, Mapping) else dict.fromkeys(contexts, max_new_tokens)
        return {slot: max(0, min(wanted[slot], self.limit - len(context))) for slot, context in contexts.items()}


class _BatchSession:
    """All slots in one batch. Slots stand in rows; the active ones are moved to rows 0..n-1, so that a decode step gathers nothing."""

    def __init__(self, generator: Generator) -> None:
        self.generator = generator
        self._forget()

    def _forget(self) -> None:
        """Nothing is held: as at first, or after a call that broke off, when what is stored need not be what is noted."""
        self.cache = KVCache()
        self.prefix: list[int] = []
        self.slots: list[int] = []
        """Row -> slot."""
        self.shared: dict[int, int] = {}
        """Slot -> how many tokens of the prefix its context begins with."""
        self.held: dict[int, list[int]] = {}
        """Slot -> the ids whose keys and values are stored, shared ones included."""

    @torch.inference_mode()
    def drop(self, slot: int) -> None:
        """See `Session.drop`."""
        if slot in self.held:
            here, last = self.slots.index(slot), self.slots[-1]
            if slot != last:
                self.cache.arrange([here], [len(self.slots) - 1], len(self.held[last]) - self.shared[last])
                self.slots[here] = last
            self.slots.pop()
            del self.held[slot], self.shared[slot]

    def generate(
        self,
        contexts: Mapping[int, Sequence[int]],
        *,
        max_new_tokens: int | Mapping[int, int],
        temperature: float = 0.0,
        top_p: float = 1.0,
        seeds: Mapping[int, int] | None = None,
    ) -> dict[int, Completion]:
        """See `Session.generate`."""
        turns = turns_of(self.generator.budgets(contexts, max_new_tokens), seeds)
        active = [slot for slot in contexts if turns[slot].budget]
        if active:
            try:
                with self.generator.ready(NAME):
                    self._line_up({slot: contexts[slot] for slot in active})
                    logits = self._prefill({slot: contexts[slot] for slot in active})
                    self._decode(active, turns, logits, Sampler(temperature, top_p))
            except BaseException:
                self._forget()
                raise
        return {slot: turn.completion() for slot, turn in turns.items()}

    def _line_up(self, contexts: Mapping[int, Sequence[int]]) -> None:
        """Give these slots the first rows, each with what it shares or holds already."""
        self._share_prefix(list(contexts.values()))
        for slot, context in contexts.items():
            self._admit(slot, context)
        self.cache.reserve(len(self.slots), self.cache.capacity)
        wanted = list(self.slots)
        for row, slot in enumerate(contexts):
            other = wanted.index(slot)
            wanted[row], wanted[other] = slot, wanted[row]
        self._arrange(wanted)

    def _share_prefix(self, contexts: list[Sequence[int]]) -> None:
        """Compute what all contexts begin with, once; a session without slots keeps what new contexts still begin with."""
        if self.held:
            return
        common = min(contexts, key=len)[:-1]
        for context in contexts:
            common = common[: common_length(common, context)]
        kept = common_length(self.prefix, common)
        if 2 * kept > len(common):
            self.prefix = self.prefix[:kept]
            self.cache.cut_prefix(kept)
            return
        self.cache, self.prefix = KVCache(), list(common)
        if common:
            self.slots, self.held, self.shared = [-1], {-1: []}, {-1: 0}
            self._prefill({-1: common})
            self.cache.keep_as_prefix(0, len(common))
            self.slots, self.held, self.shared = [], {}, {}

    def _admit(self, slot: int, context: Sequence[int]) -> None:
        """Give the slot a row, and cut what it holds to what this context begins with."""
        if slot not in self.held:
            self.shared[slot] = common_length(self.prefix, context)
            self.held[slot] = list(context[: self.shared[slot]])
            self.slots.append(slot)
        # At least the last token is computed: its logits are needed.
        same = min(common_length(self.held[slot], context), len(context) - 1)
        self.held[slot] = self.held[slot][:same]
        self.shared[slot] = min(self.shared[slot], same)

    def _arrange(self, wanted: list[int]) -> None:
        """Bring the slots into this order; rows whose slot stays are not touched."""
        at = {slot: row for row, slot in enumerate(self.slots)}
        moved = [row for row, slot in enumerate(wanted) if at[slot] != row]
        used = max((len(self.held[wanted[row]]) - self.shared[wanted[row]] for row in moved), default=0)
        self.cache.arrange(moved, [at[wanted[row]] for row in moved], used)
        self.slots = wanted

    def _prefill(self, contexts: Mapping[int, Sequence[int]]) -> Tensor:
        """Compute what the slots do not hold; logits (n, V) after each context, in the order of `contexts`."""
        pieces: list[Piece] = []
        for row, (slot, context) in enumerate(contexts.items()):
            starts = range(len(self.held[slot]), len(context), PIECE)
            pieces += [Piece(row, self.shared[slot], start, min(PIECE, len(context) - start)) for start in starts]
        ends = [len(context) for context in contexts.values()]
        tokens = list(contexts.values())
        logits: dict[int, Tensor] = {}
        for some in self._passes(pieces):
            self.cache.reserve(len(self.slots), max(p.start + p.size - p.shared for p in some))
            flat = torch.tensor([token for p in some for token in tokens[p.row][p.start : p.start + p.size]])
            this = Pass(self.cache, some, self.generator.model.device)
            final = [i for i, p in enumerate(some) if p.start + p.size == ends[p.row]]
            result = self.generator.forward(flat, this, this.last[final])
            logits |= {some[i].row: row for i, row in zip(final, result, strict=True)}
        for slot, context in contexts.items():
            self.held[slot] = list(context)
        return torch.stack([logits[row] for row in range(len(ends))])

    def _passes(self, pieces: list[Piece]) -> Iterator[list[Piece]]:
        """Pieces of similar length together, each row's in order, within the limits of one forward."""
        first = {p.row: p.start for p in reversed(pieces)}
        pieces = sorted(pieces, key=lambda p: ((p.start - first[p.row]) // PIECE, -p.size))
        heads = self.generator.model.config.num_attention_heads
        some: list[Piece] = []
        for piece in pieces:
            width = max(p.size for p in (*some, piece))
            keys = len(self.prefix) + max(p.start + p.size - p.shared for p in (*some, piece))
            padded = (len(some) + 1) * width
            if some and (padded > PASS_TOKENS or padded * heads * max(keys, self.cache.capacity) > PASS_SCORES):
                yield some
                some = []
            some.append(piece)
        if some:
            yield some

    def _decode(self, active: list[int], turns: Mapping[int, Turn], logits: Tensor, sampler: Sampler) -> None:
        """Sample, drop who is over, compute the rest by one token, and again."""
        stop_ids = self.generator.stop_ids
        while True:
            ids, logprobs = sampler(logits, [turns[slot].random for slot in active])
            for slot, token, logprob in zip(active, ids, logprobs, strict=True):
                turns[slot].add(token, logprob, stop_ids)
            active = self._retire({slot for slot in active if turns[slot].over}, active)
            if not active:
                return
            pieces = [Piece(row, self.shared[slot], len(self.held[slot]), 1) for row, slot in enumerate(active)]
            self.cache.reserve(len(self.slots), max(p.start + 1 - p.shared for p in pieces))
            this = Pass(self.cache, pieces, self.generator.model.device)
            logits = self.generator.forward(torch.tensor([turns[slot].ids[-1] for slot in active]), this)
            for slot in active:
                self.held[slot].append(turns[slot].ids[-1])

    def _retire(self, over: set[int], active: list[int]) -> list[int]:
        """Move these slots behind the active rows; the last active ones take their places. Where nobody is left, nothing moves."""
        left = len(active) - len(over)
        if over and left:
            wanted = list(self.slots)
            behind = [row for row in range(left, len(active)) if wanted[row] not in over]
            for row in range(left):
                if wanted[row] in over:
                    other = behind.pop()
                    wanted[row], wanted[other] = wanted[other], wanted[row]
            self._arrange(wanted)
        return self.slots[:left]


class _PlainSession:
    """One slot after the other by transformers' own loop, from the whole context each turn; for layers that the batch cannot do."""

    def __init__(self, generator: Generator) -> None:
        self.generator = generator

    def drop(self, slot: int) -> None:
        """See `Session.drop`; nothing is held."""

    def generate(
        self,
        contexts: Mapping[int, Sequence[int]],
        *,
        max_new_tokens: int | Mapping[int, int],
        temperature: float = 0.0,
        top_p: float = 1.0,
        seeds: Mapping[int, int] | None = None,
    ) -> dict[int, Completion]:
        """See `Session.generate`."""
        turns = turns_of(self.generator.budgets(contexts, max_new_tokens), seeds)
        stop_ids = self.generator.stop_ids
        sampler = Sampler(temperature, top_p)
        with self.generator.ready():
            for slot, turn in turns.items():
                if turn.budget:
                    for token, logprob in generate_one(self.generator.model, contexts[slot], turn.budget, stop_ids, sampler, turn.random):
                        turn.add(token, logprob, stop_ids)
        return {slot: turn.completion() for slot, turn in turns.items()}


def common_length(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common beginning."""
    length = min(len(a), len(b))
    if list(a[:length]) == list(b[:length]):
        return length
    return next(i for i in range(length) if a[i] != b[i])
