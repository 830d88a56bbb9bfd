"""Memory: how much was taken, how a lack of it is recognised, and how small the same work can be cut."""

import resource
from collections.abc import Callable

import torch

from agentalign.training import ranks

LESS = "A lower micro_batch_tokens needs less memory, and is another training that begins anew."


def is_out_of_memory(error: BaseException) -> bool:
    """True for what CUDA, torch's CPU allocator and Python raise when memory is out."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # The CPU allocator and cuBLAS raise plain RuntimeErrors.
    words = ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(one in str(error) for one in words)


def smaller_may_fit(error: BaseException) -> None:
    """To be called where the work can be done again in smaller pieces: returns if memory was out, and raises the error if not.

    Raises:
        TrainingError: memory was out, but the other processes wait in the middle of the work.
    """
    if not is_out_of_memory(error):
        raise error
    if ranks.sharded():
        raise ranks.broken_off(error, hint=LESS) from error


def give_back(device: torch.device) -> None:
    """What torch keeps of freed memory goes back to the device."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def halved(budget: int, pieces: Callable[[int], int]) -> int | None:
    """The first halving of a token budget that cuts the work into more pieces; None where each holds one group already."""
    now, smaller = pieces(budget), budget // 2
    while smaller and pieces(smaller) == now:
        smaller //= 2
    return smaller or None


def peak_memory(device: torch.device) -> float:
    """Most memory in GiB that was taken so far: the device's by torch's count, or on a CPU the process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    # Linux counts in KiB.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
