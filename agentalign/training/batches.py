"""Which items a step trains on: a pure function of (seed, step), so a resumed training sees what an uninterrupted one would have."""

import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


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


def even_items(groups: Sequence[Sequence[T]], *, batch_size: int, seed: int, step: int) -> list[T]:
    """`batch_size` items of one step, each group as often as any other however large it is: what is replayed must not forget the rare.

    A group comes once in every epoch over the groups, and then with its next item: so the same item comes twice in a step only where its
    group has come round all of its items.
    """
    chosen = []
    for place in range(step * batch_size, (step + 1) * batch_size):
        epoch, offset = divmod(place, len(groups))
        index = epoch_order(len(groups), seed=seed, epoch=epoch)[offset]
        order = epoch_order(len(groups[index]), seed=seed, epoch=index)
        chosen.append(groups[index][order[epoch % len(order)]])
    return chosen


def steps_for(n_items: int, *, batch_size: int, epochs: float) -> int:
    """Optimizer steps that see every item `epochs` times, rounded up."""
    return max(1, -(-int(n_items * epochs) // batch_size))
