"""Which items a step trains on: a pure function of (seed, step), so a resumed training sees what an uninterrupted one would have."""

import random
from collections.abc import Iterator, Sequence


def epoch_order(n_items: int, *, seed: int, epoch: int) -> list[int]:
    """A permutation of range(n_items)."""
    order = list(range(n_items))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return order


def step_items(n_items: int, *, batch_size: int, seed: int, step: int) -> list[int]:
    """Item indices of one optimizer step: `batch_size` in a row from the endless chain of shuffled epochs."""
    chosen = []
    for place in range(step * batch_size, (step + 1) * batch_size):
        epoch, offset = divmod(place, n_items)
        chosen.append((epoch, offset))
    orders = {epoch: epoch_order(n_items, seed=seed, epoch=epoch) for epoch, _ in chosen}
    return [orders[epoch][offset] for epoch, offset in chosen]


def steps_for(n_items: int, *, batch_size: int, epochs: float) -> int:
    """Optimizer steps that see every item `epochs` times, rounded up."""
    return max(1, -(-int(n_items * epochs) // batch_size))


def batched(items: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """Consecutive slices of at most `size`."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
