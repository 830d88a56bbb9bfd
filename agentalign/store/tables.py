"""The tables of the store, for both databases.

A record is kept whole as JSON text, with a digest by which damage is seen; the other columns only filter and order. Runs are split in
two: `trajectories` holds one short row per run, so that lists and counts over a million of them stay quick, `bodies` the long texts.
Who is to rate what (queue_items, assignments), accounts and tombstones are rows, not records: they change.
Surprise: `seq`, not time, is the order of insertion, because clocks jump.
"""

from sqlalchemy import BigInteger, Boolean, Column, Float, ForeignKey, Index, Integer, LargeBinary, MetaData, String, Table, Text, true
from sqlalchemy.types import TypeEngine

REVISIONS = ("0001", "0002", "0003", "0004", "0005", "0006", "0007", "0008", "0009")
"""Every schema this code knows, oldest first; the last one is the schema of the tables below."""

NAME_LENGTH = 500
"""Longest name, id or reference that a column takes: an index entry of PostgreSQL holds at most 2704 bytes."""

metadata = MetaData()


def _sequence() -> TypeEngine[int]:
    return BigInteger().with_variant(Integer, "sqlite")


def _key() -> TypeEngine[str]:
    # Byte order, as in SQLite: lets PostgreSQL find a prefix by its index, whatever the language of the database.
    return String(NAME_LENGTH).with_variant(String(NAME_LENGTH, collation="C"), "postgresql")


trajectories = Table(
    "trajectories",
    metadata,
    Column("seq", _sequence(), primary_key=True),
    Column("id", _key(), nullable=False, unique=True),
    Column("taskset", _key(), nullable=False),
    Column("task_id", _key()),
    Column("family", _key(), nullable=False),
    Column("split", _key(), nullable=False),
    Column("policy", _key(), nullable=False),
    Column("origin_kind", _key(), nullable=False),
    Column("stop_reason", _key(), nullable=False),
    Column("content_digest", _key(), nullable=False, index=True),
    Column("n_steps", Integer, nullable=False),
    Column("n_calls", Integer, nullable=False),
    Column("seconds", Float),
    Column("created", _key(), nullable=False),
    Column("parent", _key(), index=True),
    Column("n_errors", Integer, nullable=False),
    Column("excerpt", Text, nullable=False),
    # Each ends with `seq`: a list is read newest first, and its first page should cost no more than its rows.
    Index("ix_trajectories_taskset", "taskset", "seq"),
    Index("ix_trajectories_task", "task_id", "taskset"),
    *(Index(f"ix_trajectories_{name}", name, "seq") for name in ("family", "policy", "split", "stop_reason")),
    *(Index(f"ix_trajectories_taskset_{name}", "taskset", name, "seq") for name in ("family", "policy", "split", "stop_reason")),
    # Of these two together there may be none where each alone has a hundred thousand.
    Index("ix_trajectories_policy_split", "policy", "split", "seq"),
    Index("ix_trajectories_taskset_policy_split", "taskset", "policy", "split", "seq"),
)

bodies = Table(
    "bodies",
    metadata,
    Column("trajectory", _sequence(), ForeignKey("trajectories.seq"), primary_key=True, autoincrement=False),
    Column("record", Text, nullable=False),
    Column("digest", _key(), nullable=False),
    Column("search", Text, nullable=False),
)

calls = Table(
    "calls",
    metadata,
    Column("tool", _key(), primary_key=True),
    Column("trajectory", _sequence(), ForeignKey("trajectories.seq"), primary_key=True, autoincrement=False),
)

tokens = Table(
    "tokens",
    metadata,
    Column("trajectory", _sequence(), ForeignKey("trajectories.seq"), primary_key=True, autoincrement=False),
    Column("base", _key(), nullable=False),
    Column("data", LargeBinary, nullable=False),
    Column("digest", _key(), nullable=False),
)

scores = Table(
    "scores",
    metadata,
    Column("seq", _sequence(), primary_key=True),
    Column("id", _key(), nullable=False, unique=True),
    Column("trajectory", _key(), ForeignKey("trajectories.id"), nullable=False, index=True),
    Column("criterion", _key(), nullable=False),
    Column("person", _key()),
    Column("record", Text, nullable=False),
    Column("digest", _key(), nullable=False),
    # Of a person's score: false once it was taken back, and false for the taking back.
    Column("stands", Boolean, nullable=False, default=True, server_default=true()),
    Index("ix_scores_person", "person", "trajectory"),
)

verdicts = Table(
    "verdicts",
    metadata,
    Column("criterion", _key(), primary_key=True),
    Column("trajectory", _sequence(), ForeignKey("trajectories.seq"), primary_key=True, autoincrement=False),
    Column("value", Float, nullable=False),
    Column("spread", Float, nullable=False),
    Index("ix_verdicts_value", "criterion", "value"),
    Index("ix_verdicts_spread", "spread"),
    Index("ix_verdicts_trajectory", "trajectory"),
)
"""What the scores of a run come to per criterion; made from `scores` and kept in step with them, for filters alone."""

preferences = Table(
    "preferences",
    metadata,
    Column("seq", _sequence(), primary_key=True),
    Column("id", _key(), nullable=False, unique=True),
    Column("taskset", _key(), nullable=False, index=True),
    Column("criterion", _key(), nullable=False),
    Column("source", _key(), nullable=False),
    Column("person", _key()),
    # Of two whole runs: as the queue knows the pair.
    Column("item", _key()),
    Column("record", Text, nullable=False),
    Column("digest", _key(), nullable=False),
    # As in `scores`, for what people said about pairs.
    Column("stands", Boolean, nullable=False, default=True, server_default=true()),
    Index("ix_preferences_item", "item", "person", "seq"),
    # All that is asked of it stands in it: which pairs a person has compared is read without a record.
    Index("ix_preferences_person", "person", "taskset", "criterion", "stands", "item"),
)

trainings = Table(
    "trainings",
    metadata,
    Column("seq", _sequence(), primary_key=True),
    Column("id", _key(), nullable=False, unique=True),
    Column("taskset", _key(), nullable=False),
    Column("adapter", _key(), nullable=False),
    Column("record", Text, nullable=False),
    Column("digest", _key(), nullable=False),
)

queue_items = Table(
    "queue_items",
    metadata,
    Column("seq", _sequence(), primary_key=True),
    # What is rated: the run's id; of a pair both ids, the lower one first, with a "+" between.
    Column("item", _key(), nullable=False),
    Column("trajectory", _key(), ForeignKey("trajectories.id"), nullable=False),
    Column("other", _key(), ForeignKey("trajectories.id")),
    Column("taskset", _key(), nullable=False),
    Column("overlap", Integer, nullable=False),
    Column("gold", Text, nullable=False),
    # Who set it; None where there is none, or nobody said who.
    Column("gold_by", _key()),
    Column("priority", Float, nullable=False),
    Column("status", _key(), nullable=False),
    Column("added", Float, nullable=False),
    Index("ix_queue_items_item", "item", unique=True),
    Index("ix_queue_items_next", "status", "priority", "taskset"),
)

assignments = Table(
    "assignments",
    metadata,
    Column("seq", _sequence(), primary_key=True),
    Column("id", _key(), nullable=False, unique=True),
    Column("item", _key(), nullable=False),
    Column("trajectory", _key(), ForeignKey("trajectories.id"), nullable=False),
    Column("other", _key(), ForeignKey("trajectories.id")),
    Column("on_left", _key()),
    Column("person", _key(), nullable=False),
    Column("kind", _key(), nullable=False),
    Column("state", _key(), nullable=False),
    Column("after", _sequence(), nullable=False),
    Column("until", _sequence()),
    Column("taken", Float, nullable=False),
    Column("expires", Float, nullable=False),
    Column("finished", Float),
    Column("reason", Text, nullable=False),
    # Nobody gets a run twice: what the code promises, the database enforces.
    Index("ix_assignments_once", "item", "person", "kind", unique=True),
    Index("ix_assignments_person", "person", "state"),
)

accounts = Table(
    "accounts",
    metadata,
    Column("seq", _sequence(), primary_key=True),
    Column("name", _key(), nullable=False, unique=True),
    Column("role", _key(), nullable=False),
    Column("password", Text, nullable=False),
    Column("created", _key(), nullable=False),
)

tombstones = Table(
    "tombstones",
    metadata,
    Column("seq", _sequence(), primary_key=True),
    Column("id", _key(), nullable=False, unique=True),
    Column("what", _key(), nullable=False),
    Column("reason", Text, nullable=False),
    Column("time", _key(), nullable=False),
)
