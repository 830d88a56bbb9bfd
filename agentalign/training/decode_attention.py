"""Attention of the generator: one shared prefix, kept once, and a ragged suffix per row.

All tokens of a forward stand in one flat row (1, N), whichever run they belong to, so the linear layers see no padding; only the attention
knows rows. Scores against the prefix are one matrix product over all rows and heads; scores against the suffixes are one batched product
over the padded storage; both are joined before a single softmax.
Surprise: no mask reaches the model. An attention name without a mask function makes transformers pass `attention_mask=None`, and unknown
keywords of `model(...)` reach the attention function: that is how a `Pass` arrives here.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PretrainedConfig, PreTrainedModel

from agentalign.errors import ModelError

NAME = "agentalign_decode"
"""Name under which transformers knows `decode_attention`."""

BLOCK = 64
"""Suffix storage grows in whole blocks of tokens."""
GROWTH = 1.25
"""By how much at least, so that long runs are not copied for every block; no more, since a product reads all of it (`VIEWED`)."""
VIEW = 16
"""Attention reads the stored suffixes up to the longest one, rounded up to this many tokens, or all of the storage."""
VIEWED = 0.6
"""On a CPU, the share of the storage from which on all of it is read: products with part of it take three to six times as long."""
PIECE = 512
"""Longest run of new tokens of one slot in one forward."""
PASS_TOKENS = 2048
"""Most (padded) tokens of a prefill forward."""
PASS_SCORES = 2**26
"""Most attention scores a prefill forward may hold: 256 MB in fp32."""
ROWS = 128
"""Runs under way at once on a CPU, where more do not make a step cheaper."""
MOST_ROWS = 512
"""On a GPU, where a step of 512 rows takes hardly longer than one of 64."""
CACHE_SHARE = 0.3
"""Of the free GPU memory, for keys and values: growing them needs as much again for a moment."""


class Piece(NamedTuple):
    """Consecutive new tokens of one row."""

    row: int
    shared: int
    """How many tokens of the shared prefix this row's context begins with."""
    start: int
    """Position of the first new token in the row's context, >= shared."""
    size: int


class KVCache:
    """Keys and values of all layers: the prefix (heads, P, D) once, the suffixes (rows, heads, capacity, D) per row.

    A token at position p of a row that shares s prefix tokens stands at place p - s of its suffix.
    """

    def __init__(self) -> None:
        self.prefix_length = 0
        self.prefix: dict[int, tuple[Tensor, Tensor]] = {}
        self.suffix: dict[int, tuple[Tensor, Tensor]] = {}
        self.rows = 0
        self.capacity = 0

    def reserve(self, rows: int, capacity: int) -> None:
        """Make room for this many rows of this many suffix tokens; what is stored stays."""
        if rows <= self.rows and capacity <= self.capacity:
            return
        rows = max(rows, self.rows)
        if capacity > self.capacity:
            capacity = -(-max(capacity, int(GROWTH * self.capacity)) // BLOCK) * BLOCK
        capacity = max(capacity, self.capacity)
        self.suffix = {layer: (_grown(k, rows, capacity), _grown(v, rows, capacity)) for layer, (k, v) in self.suffix.items()}
        self.rows, self.capacity = rows, capacity

    def write(self, layer: int, rows: Tensor, places: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store (N, heads, D) keys and values at (row, place) and return the layer's whole storage."""
        stored = self.suffix.get(layer)
        if stored is None:
            # Zeros, not empty: a masked place has probability 0, and 0 x NaN would be NaN.
            stored = (_storage(keys, self.rows, self.capacity), _storage(values, self.rows, self.capacity))
            self.suffix[layer] = stored
        stored[0][rows, :, places] = keys
        stored[1][rows, :, places] = values
        return stored

    def wipe(self, row: int) -> None:
        """Forget all suffix tokens of a row."""
        for stored in self.suffix.values():
            for tensor in stored:
                tensor[row].zero_()

    def arrange(self, targets: Sequence[int], sources: Sequence[int], length: int) -> None:
        """Give every target row the first `length` suffix tokens of its source row; all are read before any is written.

        However many rows move, it is two kernels a tensor: on a GPU a launch costs more than what it copies.
        """
        if not targets or not length:
            return
        device = next((keys.device for keys, _ in self.suffix.values()), None)
        there, here = torch.tensor(targets, device=device), torch.tensor(sources, device=device)
        for stored in self.suffix.values():
            for tensor in stored:
                tensor[there, :, :length] = tensor[here, :, :length]

    def copy(self, source: int, target: int, length: int) -> None:
        """Give a row the first `length` suffix tokens of another; both rows stand in the storage already."""
        if source == target or not length:
            return
        for stored in self.suffix.values():
            for tensor in stored:
                tensor[target, :, :length] = tensor[source, :, :length]

    def keep_as_prefix(self, row: int, length: int) -> None:
        """Make the row's first suffix tokens the shared prefix; no other row may hold anything."""
        self.prefix = {
            layer: (keys[row, :, :length].clone(), values[row, :, :length].clone()) for layer, (keys, values) in self.suffix.items()
        }
        self.prefix_length = length
        self.suffix = {}
        self.rows = self.capacity = 0

    def cut_prefix(self, length: int) -> None:
        """Shorten the shared prefix; no row may hold anything."""
        self.prefix = {layer: (keys[:, :length].clone(), values[:, :length].clone()) for layer, (keys, values) in self.prefix.items()}
        self.prefix_length = length


def _storage(like: Tensor, rows: int, capacity: int) -> Tensor:
    return like.new_zeros((rows, like.shape[1], capacity, like.shape[2]))


def _grown(old: Tensor, rows: int, capacity: int) -> Tensor:
    new = old.new_zeros((rows, old.shape[1], capacity, old.shape[3]))
    new[: old.shape[0], :, : old.shape[2]] = old
    return new


class Pass:
    """One forward: which new tokens of which rows, and who sees whom.

    n pieces, N tokens in all, T the longest piece. With T = 1 and rows 0..n-1 (every decode step) nothing is gathered or copied.
    """

    def __init__(self, cache: KVCache, pieces: Sequence[Piece], device: torch.device) -> None:
        self.cache = cache
        self.layers: set[int] = set()
        counts = [piece.size for piece in pieces]
        n, width = len(pieces), max(counts)
        rows = [piece.row for piece in pieces]
        self.rows: slice | Tensor = slice(0, n) if rows == list(range(n)) else torch.tensor(rows, device=device)
        self.shared = torch.tensor([piece.shared for piece in pieces], device=device)  # (n,)
        starts = torch.tensor([piece.start for piece in pieces], device=device)
        lengths = torch.tensor(counts, device=device)
        steps = torch.arange(width, device=device)
        # Padding queries repeat the piece's last token: they always see a key, so no row of the softmax is empty.
        within = torch.minimum(steps[None], lengths[:, None] - 1)  # (n, T)
        self.query_positions = starts[:, None] + within  # (n, T)
        if width == 1:
            self.queries, real = None, None
            self.positions = self.query_positions[:, 0]
            self.token_rows = torch.tensor(rows, device=device)
            self.places = self.positions - self.shared
        else:
            self.queries = (lengths.cumsum(0) - lengths)[:, None] + within  # (n, T) into the flat tokens
            real = steps[None] < lengths[:, None]
            self.positions = self.query_positions[real]
            self.token_rows = torch.tensor(rows, device=device).repeat_interleave(lengths)
            self.places = (self.query_positions - self.shared[:, None])[real]
        self.real = real
        longest = max(piece.start + piece.size - piece.shared for piece in pieces)
        self.used = min(cache.capacity, -(-longest // VIEW) * VIEW)
        """Suffix tokens that are read: all that any of these queries may see, and unused ones behind them."""
        if device.type == "cpu" and self.used >= VIEWED * cache.capacity:
            self.used = cache.capacity
        self.last = lengths.cumsum(0) - 1  # (n,) each piece's last token among the flat ones
        self._biases: dict[int | None, Tensor] = {}

    def bias(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """(n, 1, 1, T, P + used): 0 where a query sees a key, minus infinity elsewhere, both of which any precision holds exactly."""
        if window not in self._biases:
            queries = self.query_positions[:, :, None]  # (n, T, 1)
            columns = torch.arange(self.cache.prefix_length + self.used, device=queries.device)
            own = columns - self.cache.prefix_length + self.shared[:, None]  # (n, P + used) positions of suffix columns
            in_prefix = columns < self.cache.prefix_length
            keys = torch.where(in_prefix, columns, own)[:, None]  # (n, 1, P + used)
            visible = (keys <= queries) & (~in_prefix | (columns < self.shared[:, None]))[:, None]
            if window is not None:
                visible &= queries - keys < window
            bias = torch.zeros(visible.shape, dtype=dtype, device=queries.device).masked_fill_(~visible, -torch.inf)
            self._biases[window] = bias[:, None, None]
        return self._biases[window]


def decode_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    agentalign_pass: Pass | None = None,
    **extra: object,
) -> tuple[Tensor, None]:
    """Attend each new token to its row's prefix and suffix. query (1, Hq, N, D), key and value (1, Hk, N, D) -> (1, N, Hq, D)."""
    if agentalign_pass is None:
        raise ModelError(f"attention '{NAME}' was called without a generation pass; it serves Generator alone. Use 'sdpa'.")
    refused = [name for name in ("softcap", "s_aux", "position_bias") if extra.get(name) is not None]
    if refused or attention_mask is not None or query.shape[0] != 1:
        what = refused[0] if refused else "a mask of the model's own"
        raise ModelError(f"{type(module).__name__} attends with {what}, which the batched attention cannot do")
    this, cache = agentalign_pass, agentalign_pass.cache
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    this.layers.add(layer)
    stored = cache.write(layer, this.token_rows, this.places, key[0].transpose(0, 1), value[0].transpose(0, 1))
    keys, values = (side[this.rows, :, : this.used] for side in stored)  # (n, Hk, used, D)
    n, heads = keys.shape[:2]
    flat = query[0].transpose(0, 1) * (scaling if scaling is not None else query.shape[-1] ** -0.5)  # (N, Hq, D)
    width = 1 if this.queries is None else this.queries.shape[1]
    padded = flat if this.queries is None else flat[this.queries]
    group = query.shape[1] // heads
    # (n, Hk, group * T, D): query heads that share a key head stand together, so keys are never repeated.
    rows = padded.view(n, width, heads, group, -1).permute(0, 2, 3, 1, 4).reshape(n, heads, group * width, -1)
    # Part of the storage is not contiguous: a product then copies it, unless it is the left side.
    scores = rows @ keys.transpose(2, 3) if this.used == cache.capacity else (keys @ rows.transpose(2, 3)).transpose(2, 3)
    if cache.prefix_length:
        prefix_keys, prefix_values = cache.prefix[layer]
        by_head = rows.transpose(0, 1).reshape(heads, n * group * width, -1)
        shared = (by_head @ prefix_keys.transpose(1, 2)).view(heads, n, group * width, -1).transpose(0, 1)
        scores = torch.cat([shared, scores], dim=-1)
    biased = scores.reshape(n, heads, group, width, -1).add_(this.bias(sliding_window, scores.dtype))
    # torch sums a softmax of bf16 in fp32, and rounds its result alone.
    weights = torch.softmax(biased, dim=-1).view(n, heads, group * width, -1)
    mixed = weights[..., cache.prefix_length :] @ values
    if cache.prefix_length:
        by_head = weights[..., : cache.prefix_length].transpose(0, 1).reshape(heads, n * group * width, -1)
        mixed = mixed + (by_head @ prefix_values).view(heads, n, group * width, -1).transpose(0, 1)
    result = mixed.view(n, heads, group, width, -1).permute(0, 3, 1, 2, 4).reshape(n, width, heads * group, -1)
    flat_result = result[:, 0] if this.real is None else result[this.real]
    return flat_result[None], None


def rows_at_once(model: PreTrainedModel, tokens: int) -> int:
    """How many rows of up to this many tokens are best computed together: on a GPU, what its free memory holds."""
    if model.device.type != "cuda":
        return ROWS
    free, _ = torch.cuda.mem_get_info(model.device)
    # To the driver all that torch ever reserved is taken: after a training step that is its peak, of which most may be used again.
    again = torch.cuda.memory_reserved(model.device) - torch.cuda.memory_allocated(model.device)
    return rows_that_fit(model.config, model.dtype, tokens, free + again)


def rows_that_fit(config: PretrainedConfig, dtype: torch.dtype, tokens: int, free: int) -> int:
    """How many rows' keys and values of so many tokens each fit into CACHE_SHARE of `free` bytes; 1 to MOST_ROWS."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    each = 2 * config.num_hidden_layers * heads * size * dtype.itemsize * tokens
    return max(1, min(MOST_ROWS, int(CACHE_SHARE * free / each)))


AttentionInterface.register(NAME, decode_attention)
