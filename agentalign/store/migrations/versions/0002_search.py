"""Text search, verdicts per criterion, and lists that stay quick over a million runs. Fills all of it for runs that are there."""

import json
import logging
from collections import defaultdict
from itertools import chain
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_seq = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_key = sa.String(500).with_variant(sa.String(500, collation="C"), "postgresql")
_RANK = {"human": 3, "judge": 2, "check": 1, "reward_model": 0}
CHUNK = 500

logger = logging.getLogger("agentalign")


def upgrade() -> None:
    """Columns, indexes, the table of verdicts, the search index; then the same for what is stored already."""
    op.add_column("trajectories", sa.Column("parent", _key))
    op.add_column("trajectories", sa.Column("n_errors", sa.Integer, nullable=False, server_default="0"))
    op.add_column("trajectories", sa.Column("excerpt", sa.Text, nullable=False, server_default='""'))
    op.drop_index("ix_trajectories_filters", "trajectories")
    op.drop_index("ix_trajectories_policy", "trajectories")
    op.create_index("ix_trajectories_parent", "trajectories", ["parent"])
    op.create_index("ix_trajectories_taskset", "trajectories", ["taskset", "seq"])
    for name in ("family", "policy", "split", "stop_reason"):
        op.create_index(f"ix_trajectories_{name}", "trajectories", [name, "seq"])
        op.create_index(f"ix_trajectories_taskset_{name}", "trajectories", ["taskset", name, "seq"])
    op.create_table(
        "verdicts",
        sa.Column("criterion", _key, primary_key=True),
        sa.Column("trajectory", _seq, sa.ForeignKey("trajectories.seq"), primary_key=True, autoincrement=False),
        sa.Column("value", sa.Float, nullable=False),
        sa.Column("spread", sa.Float, nullable=False),
    )
    op.create_index("ix_verdicts_value", "verdicts", ["criterion", "value"])
    op.create_index("ix_verdicts_spread", "verdicts", ["spread"])
    op.create_index("ix_verdicts_trajectory", "verdicts", ["trajectory"])
    connection = op.get_bind()
    if connection.dialect.name == "sqlite":
        _sqlite_index(connection)
    else:
        _postgres_index(connection)
    _fill_runs(connection)
    _fill_verdicts(connection)


def _sqlite_index(connection: sa.Connection) -> None:
    # Case was removed by Python already. Without positions the index is a fraction of the text; the text itself is looked at anyway.
    connection.exec_driver_sql(
        "CREATE VIRTUAL TABLE run_text USING fts5(search, content='bodies', content_rowid='trajectory', "
        "tokenize='trigram case_sensitive 1', detail='none')"
    )
    added = "INSERT INTO run_text(rowid, search) VALUES (new.trajectory, new.search);"
    gone = "INSERT INTO run_text(run_text, rowid, search) VALUES ('delete', old.trajectory, old.search);"
    for name, event, does in (
        ("run_text_added", "INSERT", added),
        ("run_text_gone", "DELETE", gone),
        ("run_text_changed", "UPDATE OF search", gone + added),
    ):
        connection.exec_driver_sql(f"CREATE TRIGGER {name} AFTER {event} ON bodies BEGIN {does} END")
    connection.exec_driver_sql("INSERT INTO run_text(run_text) VALUES ('rebuild')")


def _postgres_index(connection: sa.Connection) -> None:
    try:
        with connection.begin_nested():
            connection.exec_driver_sql("CREATE EXTENSION IF NOT EXISTS pg_trgm WITH SCHEMA public")
    except sa.exc.DBAPIError as error:
        first = str(error.orig).strip().splitlines()[0]
        logger.warning(
            "PostgreSQL cannot make the extension pg_trgm (%s): text search works without it, but reads every run. Have an administrator "
            "run CREATE EXTENSION pg_trgm, then CREATE INDEX ix_bodies_search ON bodies USING gin (search gin_trgm_ops).",
            first,
        )
        return
    where = "SELECT quote_ident(n.nspname) FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace WHERE e.extname = 'pg_trgm'"
    schema = connection.exec_driver_sql(where).scalar_one()
    connection.exec_driver_sql(f"CREATE INDEX ix_bodies_search ON bodies USING gin (search {schema}.gin_trgm_ops)")


def _fill_runs(connection: sa.Connection) -> None:
    rows = sa.text("SELECT trajectory, record FROM bodies WHERE trajectory > :after ORDER BY trajectory LIMIT :chunk")
    update = sa.text("UPDATE trajectories SET parent = :parent, n_errors = :n_errors, excerpt = :excerpt WHERE seq = :seq")
    after = -1
    while found := connection.execute(rows, {"after": after, "chunk": CHUNK}).all():
        connection.execute(update, [{"seq": seq, **_told(record)} for seq, record in found])
        after = found[-1][0]


def _told(record: str) -> dict[str, object]:
    # A damaged record must not keep a store from opening: reading that run says what is wrong with it.
    try:
        run = json.loads(record)
        messages = run["messages"]
        said = next((message.get("content", "") for message in messages if message["role"] == "user"), "")
        errors = sum(bool(message.get("error")) or bool(message.get("malformed")) for message in messages)
        return {"parent": run["parent"][0] if run.get("parent") else None, "n_errors": errors, "excerpt": json.dumps(said[:140])}
    except (ValueError, LookupError, TypeError, AttributeError):
        return {"parent": None, "n_errors": 0, "excerpt": '""'}


def _fill_verdicts(connection: sa.Connection) -> None:
    query = sa.text("SELECT t.seq, s.record FROM scores s JOIN trajectories t ON t.id = s.trajectory ORDER BY t.seq, s.seq")
    insert = sa.text("INSERT INTO verdicts (criterion, trajectory, value, spread) VALUES (:criterion, :trajectory, :value, :spread)")
    found: list[dict[str, object]] = []
    current: tuple[int, list[dict[str, Any]]] = (-1, [])
    for seq, record in chain(connection.execute(query), [(-2, "")]):
        if seq != current[0]:
            found += _verdicts(*current)
            current = (seq, [])
        try:
            current[1].append(json.loads(record))
        except ValueError:
            continue
    if found:
        connection.execute(insert, found)


def _verdicts(seq: int, scores: list[dict[str, Any]]) -> list[dict[str, object]]:
    newest = {}
    for score in sorted(scores, key=lambda score: score["time"]):
        newest[(score["criterion"], score["rater_kind"], score["rater"], score["step"])] = score["value"]
    values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    places: dict[str, dict[object, list[float]]] = defaultdict(lambda: defaultdict(list))
    for (criterion, kind, _rater, step), value in newest.items():
        if value is not None:
            values[criterion][kind].append(value)
            if kind != "reward_model":
                places[criterion][step].append(value)
    found = []
    for criterion, kinds in sorted(values.items()):
        counted = kinds[max(kinds, key=lambda kind: _RANK.get(kind, 3))]
        spread = max((max(some) - min(some) for some in places[criterion].values()), default=0.0)
        found.append({"criterion": criterion, "trajectory": seq, "value": sum(counted) / len(counted), "spread": spread})
    return found
