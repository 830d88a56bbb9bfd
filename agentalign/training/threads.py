"""Threads that compute, on a CPU: why there should be one.

Each thread that computes in parallel gets helpers of its own from OpenMP, and keeps them until it ends. Once there are more of them than
cores they all go to sleep between two products, in place of waiting awake for the next one (libgomp's throttled spinning): measured, a
token of a 135M model then takes twice as long, although the helpers of the other thread have nothing to do.
"""

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import TypeVar

T = TypeVar("T")


def apart(work: Callable[[], T]) -> T:
    """Do this in a thread that ends with it, and its helpers too; returns and raises what `work` does.

    For what is computed once, beside the thread that computes all the time: loading and merging before a server's worker begins.
    """
    done: SimpleQueue[tuple[T | None, BaseException | None]] = SimpleQueue()

    def do() -> None:
        try:
            done.put((work(), None))
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            done.put((None, error))

    # A daemon: Ctrl+C ends who waits for it at once.
    thread = threading.Thread(target=do, name="apart", daemon=True)
    thread.start()
    result, error = done.get()
    thread.join()
    if error is not None:
        raise error
    return result  # type: ignore[return-value]  # it is there where there is no error
