"""The Store: runs, their tokens, scores, preferences and trainings, in one database; and the way to its queue and accounts.

Append-only but for trainings, and for what is forgotten. Every writing method returns only after COMMIT, so what it returned is what is
kept; storing something twice is never an error, because whoever lost the answer to a save will save again.
"""

from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import NamedTuple

from sqlalchemy import func, select

from agentalign.errors import DataError
from agentalign.records.adapter import Training
from agentalign.records.criterion import Score
from agentalign.records.preference import Preference
from agentalign.records.trajectory import TokenRecord, Trajectory
from agentalign.store import rows, tables
from agentalign.store.accounts import Accounts
from agentalign.store.adding import AddReport, Write, adding_preferences, adding_runs, adding_scores
from agentalign.store.appending import insert_new, read_records
from agentalign.store.check import StoreReport, check
from agentalign.store.choices import RunChoices, choices
from agentalign.store.database import is_one_of, open_database
from agentalign.store.filters import RunFilter, bindable, conditions, cursor, listing, of_criterion
from agentalign.store.forgetting import Forgotten, Tombstone, foreseen, forget, tombstones
from agentalign.store.pairs import Pairs
from agentalign.store.queue import Queue, Rules
from agentalign.store.queue_items import QueueItems
from agentalign.store.recent import RecentRuns

runs_table = tables.trajectories.c

COUNTED = 1000
"""Runs that a list counts: over a million of them, counting every match would take longer than finding the first page."""

COUNTED_TEXTS = 500
"""The same where a text is looked for, because every match has to be read."""

CHUNK = 200
"""Whole runs read at once while streaming; no transaction stays open between chunks."""


class RunRow(NamedTuple):
    """A run in a list."""

    id: str
    taskset: str
    task_id: str | None
    family: str
    split: str
    policy: str
    """`Trajectory.origin.reference`."""
    origin_kind: str
    stop_reason: str
    content_digest: str
    n_steps: int
    n_calls: int
    seconds: float | None
    created: str
    """When the run was made, or stored where it did not say."""
    parent: str | None
    """Run that this one was forked from or corrects."""
    n_errors: int
    """Failed calls, and calls that could not be read."""
    excerpt: str
    """Beginning of the first user message."""


class RunPage(NamedTuple):
    """One page of a list of runs, newest first."""

    rows: list[RunRow]
    next: str | None
    """Hand it to `runs(after=...)` for the next page; None on the last one."""
    total: int
    """How many runs the filter matches, over all pages; at most COUNTED (COUNTED_TEXTS with a text)."""
    is_exact: bool
    """False where there are more than `total`."""


class Store:
    """One store, for any number of threads. `url` is sqlite:///path or postgresql://..."""

    def __init__(self, url: str) -> None:
        self._database = open_database(url)
        self.recent = RecentRuns(self._database, self.trajectory)

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the database. A second call does nothing."""
        self._database.close()

    def add(self, trajectories: Sequence[Trajectory], tokens: Sequence[TokenRecord] = ()) -> AddReport:
        """Store runs, and recorded tokens of these or of stored runs; all of it or, on an error, nothing.

        A fork or correction of a forgotten run is counted as forgotten: it repeats that run's beginning.
        """
        return self._write(adding_runs(trajectories, tokens))

    def add_judged(
        self, trajectories: Sequence[Trajectory], tokens: Sequence[TokenRecord], scores: Sequence[Score], preferences: Sequence[Preference]
    ) -> AddReport:
        """Store runs with what was said about them: all of it or nothing. Returns what came of what was said.

        Raises:
            DataError: a run was forgotten, or goes back to one that was; or as `add_scores` says.
        """
        write_runs, writes = adding_runs(trajectories, tokens), (adding_scores(scores), adding_preferences(preferences))
        with self._database.write() as connection:
            if write_runs(connection).forgotten:
                raise DataError("this begins with words of a run that was forgotten, so it cannot be kept. Discard it.")
            said = [write(connection) for write in writes]
        return AddReport(*(sum(counts) for counts in zip(*said, strict=True)))

    def trajectory(self, id: str) -> Trajectory:
        """The run, whole; DataError where there is none."""
        query = select(tables.bodies.c.record, tables.bodies.c.digest).join(tables.trajectories)
        query = query.where(runs_table.id == bindable(id, "trajectory id"))
        with self._database.read() as connection:
            row = connection.execute(query).one_or_none()
            gone = tombstones(connection, [id]).get(id) if row is None else None
        if gone is not None:
            raise DataError(f"run {id!r} was forgotten on {gone.time[:10]} ({gone.reason}). What it held is deleted for good.")
        if row is None:
            raise DataError(f"there is no run {id!r} in the store. `agentalign runs` lists the runs.")
        return rows.read(Trajectory, row.record, row.digest, f"trajectory {id}")

    def tokens(self, id: str) -> TokenRecord | None:
        """The run's recorded tokens; None where none were recorded."""
        query = select(tables.tokens).join(tables.trajectories).where(runs_table.id == bindable(id, "trajectory id"))
        with self._database.read() as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else rows.read_tokens(id, row.base, row.data, row.digest)

    def resolve_id(self, prefix: str) -> str:
        """The one run id that begins with `prefix`; DataError where there is none or more than one."""
        lowest = bindable(prefix.lower(), "run id")
        query = select(runs_table.id).where(runs_table.id >= lowest, runs_table.id < lowest + "g").order_by(runs_table.id).limit(3)
        with self._database.read() as connection:
            found = list(connection.execute(query).scalars()) if lowest else []
        if not found:
            raise DataError(f"no run's id begins with {prefix!r}. `agentalign runs` lists the runs.")
        if len(found) > 1:
            raise DataError(f"several runs' ids begin with {prefix!r}: {', '.join(found)}. Give more digits.")
        return str(found[0])

    def runs(self, filter: RunFilter = RunFilter(), limit: int = 50, after: str | None = None) -> RunPage:
        """One page of the runs that match, newest first. Later pages cost no more than the first."""
        most = COUNTED_TEXTS if filter.text else COUNTED
        with self._database.read() as connection:
            source, where, place = listing(connection, filter)
            some = select(place).select_from(source).where(*where).limit(most + 1).subquery()
            total = connection.execute(select(func.count()).select_from(some)).scalar_one()
            columns = [runs_table[name] for name in RunRow._fields]
            query = select(*columns, runs_table.seq).select_from(source).where(*where).order_by(place.desc()).limit(limit + 1)
            if after is not None:
                query = query.where(place < cursor(after))
            found = connection.execute(query).all()
        page = [RunRow(*row[:-1])._replace(excerpt=rows.read_excerpt(row.excerpt)) for row in found[:limit]]
        return RunPage(page, str(found[limit - 1].seq) if len(found) > limit else None, min(total, most), total <= most)

    def count(self, filter: RunFilter = RunFilter()) -> int:
        """How many runs match, all of them counted."""
        query = select(func.count()).select_from(tables.trajectories)
        with self._database.read() as connection:
            return connection.execute(query.where(*conditions(connection, filter))).scalar_one()

    def choices(self, taskset: str | None = None) -> RunChoices:
        """The values that occur in the runs of a taskset, or of all."""
        with self._database.read() as connection:
            return choices(connection, taskset)

    def trajectories(self, filter: RunFilter = RunFilter()) -> Iterator[Trajectory]:
        """Every run that matches when the first is asked for, whole, oldest first."""
        with self._database.read() as connection:
            matching = select(runs_table.seq).where(*conditions(connection, filter)).order_by(runs_table.seq)
            seqs = list(connection.execute(matching).scalars())
        query = select(runs_table.id, tables.bodies.c.record, tables.bodies.c.digest).join(tables.bodies).order_by(runs_table.seq)
        for start in range(0, len(seqs), CHUNK):
            with self._database.read() as connection:
                found = connection.execute(query.where(runs_table.seq.in_(seqs[start : start + CHUNK]))).all()
            for row in found:
                yield rows.read(Trajectory, row.record, row.digest, f"trajectory {row.id}")

    def duplicates(self, digests: Iterable[str]) -> dict[str, list[str]]:
        """Stored runs with the given contents: digest -> run ids, oldest first; digests without a run are left out."""
        wanted = [bindable(digest, "content digest") for digest in digests]
        found: dict[str, list[str]] = {}
        with self._database.read() as connection:
            query = select(runs_table.content_digest, runs_table.id).where(is_one_of(connection, runs_table.content_digest, wanted))
            for digest, id in connection.execute(query.order_by(runs_table.seq)):
                found.setdefault(digest, []).append(id)
        return found

    def add_scores(self, scores: Sequence[Score]) -> AddReport:
        """Append scores. A known id with the same content (but for its time) is counted as known; with other content it is a DataError."""
        return self._write(adding_scores(scores))

    def scores(
        self,
        trajectory_ids: Sequence[str] | None = None,
        taskset: str | None = None,
        criterion: str | None = None,
        *,
        seen_by_people: bool = False,
    ) -> list[Score]:
        """Scores in the order they were stored. `criterion` is "name@version", or "name" for all versions.

        Args:
            seen_by_people: only of runs on which some person ever said something.
        """
        table = tables.scores.c
        with self._database.read() as connection:
            query = select(table.id, table.record, table.digest)
            if trajectory_ids is not None:
                query = query.where(is_one_of(connection, table.trajectory, [bindable(id, "trajectory id") for id in trajectory_ids]))
            if taskset is not None:
                query = query.join(tables.trajectories).where(runs_table.taskset == bindable(taskset, "taskset"))
            if criterion is not None:
                query = query.where(of_criterion(table.criterion, criterion))
            if seen_by_people:
                # A decision carries no person; a quote inside of a text would have a backslash before it.
                said = table.person.is_not(None) | table.record.contains('"rater_kind":"adjudicator"', autoescape=True)
                seen = select(table.trajectory).where(said)
                if taskset is not None:
                    seen = seen.join(tables.trajectories).where(runs_table.taskset == taskset)
                query = query.where(table.trajectory.in_(seen))
            return read_records(connection, query.order_by(table.seq), Score)

    def add_preferences(self, preferences: Sequence[Preference]) -> AddReport:
        """Append preferences, as `add_scores` does."""
        return self._write(adding_preferences(preferences))

    def preferences(self, taskset: str, criterion: str | None = None, source: str | None = None) -> list[Preference]:
        """A taskset's preferences in the order they were stored. `criterion` is as in `scores`, or "overall"."""
        table = tables.preferences.c
        query = select(table.id, table.record, table.digest).where(table.taskset == bindable(taskset, "taskset"))
        if criterion is not None:
            query = query.where(of_criterion(table.criterion, criterion))
        if source is not None:
            query = query.where(table.source == bindable(source, "source"))
        with self._database.read() as connection:
            return read_records(connection, query.order_by(table.seq), Preference)

    def save_training(self, training: Training) -> None:
        """Store a training, or replace what is stored under its id."""
        row = rows.training_row(training)
        with self._database.write() as connection:
            if not insert_new(connection, tables.trainings, [row]):
                connection.execute(tables.trainings.update().where(tables.trainings.c.id == training.id).values(row))

    def training(self, id: str) -> Training:
        """The training; DataError where there is none."""
        table = tables.trainings.c
        query = select(table.id, table.record, table.digest).where(table.id == bindable(id, "training id"))
        with self._database.read() as connection:
            found = read_records(connection, query, Training)
        if not found:
            raise DataError(f"there is no training {id!r} in the store. `agentalign train` starts one.")
        return found[0]

    def trainings(self, taskset: str | None = None) -> list[Training]:
        """Trainings in the order they were started."""
        table = tables.trainings.c
        of = [] if taskset is None else [table.taskset == bindable(taskset, "taskset")]
        with self._database.read() as connection:
            return read_records(connection, select(table.id, table.record, table.digest).where(*of).order_by(table.seq), Training)

    def queue(self, rules: Rules = Rules()) -> Queue:
        """The queue of runs to rate, as raters meet it."""
        return Queue(self._database, rules)

    @property
    def queue_items(self) -> QueueItems:
        """The queue as leads meet it."""
        return QueueItems(self._database)

    @property
    def pairs(self) -> Pairs:
        """Pairs to compare, and the sides they were shown in."""
        return Pairs(self._database)

    @property
    def accounts(self) -> Accounts:
        """Who may log in."""
        return Accounts(self._database)

    def forget(self, ids: Sequence[str] = (), person: str | None = None, *, reason: str) -> Forgotten:
        """Delete runs with all that was said about them, and everything a person said, for good; their ids become tombstones."""
        with self._database.erase() as connection:
            return forget(connection, ids, person, reason)

    def foreseen(self, ids: Sequence[str] = (), person: str | None = None) -> Forgotten:
        """What `forget` would delete; nothing is."""
        with self._database.read() as connection:
            return foreseen(connection, ids, person)

    def tombstones(self, ids: Iterable[str]) -> dict[str, Tombstone]:
        """What is left of forgotten runs, scores and preferences, by id; other ids are left out."""
        with self._database.read() as connection:
            return tombstones(connection, [bindable(id, "id") for id in ids])

    def check(self) -> StoreReport:
        """Read every record again and compare; takes long for a big store."""
        with self._database.read() as connection:
            return check(connection)

    def _write(self, write: Write) -> AddReport:
        with self._database.write() as connection:
            return write(connection)
