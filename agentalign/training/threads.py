"""Threads that compute, on a CPU: why there should be one.

Each thread that computes in parallel gets helpers of its own from OpenMP, and keeps them until it ends. Once there are more of them than
cores they all go to sleep between two products, in place of waiting awake for the next one (libgomp's throttled spinning): measured, a
token of a 135M model then takes twice as long, although the helpers of the other thread have nothing to do.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def apart(work: Callable[[], T]) -> T:
    """Do this in a thread that ends with it, and its helpers too; returns and raises what `work` does.

    For what is computed once, beside the thread that computes all the time: loading and merging before a server's worker begins.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="apart") as pool:
        return pool.submit(work).result()
