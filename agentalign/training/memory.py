"""Out of memory: how it is recognised, and how small the same work can be cut."""

from collections.abc import Callable

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """True for what CUDA, torch's CPU allocator and Python raise when memory is out."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # The CPU allocator raises a plain RuntimeError.
    return isinstance(error, RuntimeError) and ("can't allocate memory" in str(error) or "out of memory" in str(error))


def halved(budget: int, pieces: Callable[[int], int]) -> int | None:
    """The first halving of a token budget that cuts the work into more pieces; None where each holds one group already."""
    now, smaller = pieces(budget), budget // 2
    while smaller and pieces(smaller) == now:
        smaller //= 2
    return smaller or None
