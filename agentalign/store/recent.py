"""Runs that were read last, kept parsed: a page, its corrections and the next rater ask for the same run within seconds.

A record never changes under its id, so what was parsed once is right as long as the run is there; that is asked every time, because
another process may have forgotten it. Surprise: a question about a run's taskset alone never touches its text, however long it is.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable

from sqlalchemy import select

from agentalign.records.trajectory import Trajectory
from agentalign.store.database import Database
from agentalign.store.filters import bindable
from agentalign.store.tables import trajectories

KEPT = 16
"""Runs that are kept, the least recently asked for falling out first."""

MOST_MESSAGES = 20_000
"""Messages of all kept runs together; a run longer than that is kept alone."""


class RecentRuns:
    """The runs that this process read last. For any number of threads."""

    def __init__(self, database: Database, read: Callable[[str], Trajectory]) -> None:
        self._database = database
        self._read = read
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, Trajectory] = OrderedDict()

    def taskset(self, id: str) -> str:
        """The run's taskset; DataError where there is no such run."""
        query = select(trajectories.c.taskset).where(trajectories.c.id == bindable(id, "trajectory id"))
        with self._database.read() as connection:
            found: str | None = connection.execute(query).scalar_one_or_none()
        if found is not None:
            return found
        with self._lock:
            self._kept.pop(id, None)
        return self._read(id).taskset  # says why there is none

    def trajectory(self, id: str) -> Trajectory:
        """The run, whole; DataError where there is no such run, also where there was one a moment ago."""
        self.taskset(id)
        with self._lock:
            found = self._kept.get(id)
            if found is not None:
                self._kept.move_to_end(id)
                return found
        found = self._read(id)
        with self._lock:
            self._kept[id] = found
            self._kept.move_to_end(id)
            while len(self._kept) > 1 and (len(self._kept) > KEPT or self._messages() > MOST_MESSAGES):
                self._kept.popitem(last=False)
        return found

    def _messages(self) -> int:
        return sum(len(run.messages) for run in self._kept.values())
