"""Requests to a server at the same time, answered in order, in threads that no Ctrl+C waits for: a server may take its minutes."""

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TypeVar

Item = TypeVar("Item")
Answer = TypeVar("Answer")


def side_by_side(work: Callable[[Item], Answer], items: Sequence[Item], at_once: int) -> list[Answer]:
    """What `work` says of each; the first exception is raised at once, and what was not begun by then never is."""
    waiting: SimpleQueue[int] = SimpleQueue()
    done: SimpleQueue[tuple[int, Answer | None, Exception | None]] = SimpleQueue()
    for number in range(len(items)):
        waiting.put(number)

    def some() -> None:
        with suppress(Empty):
            while True:
                number = waiting.get_nowait()
                try:
                    done.put((number, work(items[number]), None))
                except Exception as error:  # noqa: BLE001 - whatever broke is raised where it is waited for
                    done.put((number, None, error))

    found: dict[int, Answer] = {}
    try:
        for _ in range(min(at_once, len(items))):
            threading.Thread(target=some, daemon=True).start()
        for _ in items:
            number, answer, error = done.get()
            if error:
                raise error
            found[number] = answer  # type: ignore[assignment]  # there is one where there is no error
    finally:
        with suppress(Empty):
            while True:
                waiting.get_nowait()
    return [found[number] for number in range(len(items))]
