"""SIGTERM: a request to end, which a training answers between two micro-batches, where its weights are whole."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class StopRequest:
    """A context that remembers whether the process was asked to end. Outside of the main thread nothing can be asked."""

    def __init__(self) -> None:
        self.asked = False
        self._before: Any = None

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _ask(self, _number: int, _frame: FrameType | None) -> None:
        self.asked = True
