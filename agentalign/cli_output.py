"""What the command line prints: data to stdout, talk and progress to stderr.

Text of runs is inert here too: characters that steer a terminal are shown as escapes, never sent.
"""

import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

Tick = Callable[[int, int], None]
"""Told (done, total)."""

_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def plain(text: object) -> str:
    """Text without characters that steer a terminal or turn the direction of writing."""
    return _STEERING.sub(lambda found: ascii(found[0])[1:-1], str(text))


def say(text: str) -> None:
    """A sentence for the person, on stderr."""
    print(plain(text), file=sys.stderr, flush=True)


def show(text: str = "") -> None:
    """A line of data, on stdout."""
    print(plain(text))


def show_json(value: object) -> None:
    """Data as JSON, on stdout; ASCII, so that any terminal and any text will do."""
    print(json.dumps(value, indent=2, default=str))


def show_table(header: Sequence[str], rows: Sequence[Sequence[object]], *, empty: str) -> None:
    """Columns of text, numbers to the right; the sentence `empty`, on stderr, where there are no rows."""
    if not rows:
        say(empty)
        return
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(len(line[column]) for line in [list(header), *cells]) for column in range(len(header))]
    right = [all(isinstance(row[column], int | float | None) for row in rows) for column in range(len(header))]
    for line in [list(header), *cells]:
        parts = [text.rjust(width) if to_right else text.ljust(width) for text, width, to_right in zip(line, widths, right, strict=True)]
        print("  ".join(parts).rstrip())


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3f}"
    text = plain(value).replace("\n", " ").replace("\t", " ")
    return text if len(text) <= 60 else text[:57] + "..."


@contextmanager
def progress(what: str) -> Iterator[Tick]:
    """A bar with the time left on a terminal; elsewhere a line now and then. Importing rich takes time, so only here."""
    if not sys.stderr.isatty():
        yield _lines(what)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:
        bar = bars.add_task(what, total=None)

        def tick(done: int, total: int) -> None:
            if bars.tasks[0].total is not None and done < bars.tasks[0].completed:
                bars.reset(bar)  # the same kind of work begins anew, for another adapter
            bars.update(bar, completed=done, total=total)

        yield tick


def _lines(what: str) -> Tick:
    """Ten lines at most, however long the work is."""
    began, told, before = time.monotonic(), 0, 0

    def tick(done: int, total: int) -> None:
        nonlocal began, told, before
        if done < before:
            began, told = time.monotonic(), 0
        before = done
        if total and done * 10 // total > told:
            told = done * 10 // total
            left = (time.monotonic() - began) / done * (total - done)
            say(f"{what}: {done} of {total}, {duration(left)} left")

    return tick


def duration(seconds: float) -> str:
    """A time as people say it: 45 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
