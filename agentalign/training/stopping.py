"""SIGTERM: a request to end, which a training answers between two micro-batches, where its weights are whole.

Acting and evaluating take minutes and keep nothing half done: there the request is answered where it comes, because who asks (a
scheduler, a container that stops) kills after half a minute.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from agentalign.training import ranks
from agentalign.training.ranks import StopAskedError


class StopRequest:
    """A context that remembers whether the process was asked to end. Outside of the main thread nothing can be asked."""

    def __init__(self) -> None:
        self.asked = False
        self._at_once = False
        self._before: Any = None

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside, a request raises StopAskedError wherever the work is (of a base in shards: not inside a forward, but before the next).

        Of several processes the first one alone can be interrupted, in work that the others wait for (the dev gate); all of them end then.
        Elsewhere they would wait for each other, and the request is answered at the next step.
        """
        self._at_once = True
        try:
            if any(ranks.gathered(self.asked)):
                raise StopAskedError
            yield
        finally:
            self._at_once = False

    def _ask(self, _number: int, _frame: FrameType | None) -> None:
        self.asked = True
        if self._at_once:
            ranks.break_off()
