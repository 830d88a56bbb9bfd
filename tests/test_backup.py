"""Backup and restore, damage, migrations and the places where a store may lie."""

import os
import random
import shutil
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from agentalign.errors import DataError, StoreError
from agentalign.records.adapter import Training
from agentalign.records.criterion import Score
from agentalign.records.preference import Item, Preference
from agentalign.records.trajectory import Message, Origin, TokenRecord, Trajectory, TurnTokens
from agentalign.store import sqlite, tables
from agentalign.store.backup import backup, restore
from agentalign.store.database import open_database
from agentalign.store.network import network_file_system
from agentalign.store.schema import MIGRATIONS, migrate
from agentalign.store.store import Store


def run(number: int) -> Trajectory:
    messages = (Message(role="user", content=f"\0 \ud800 ünï {number}"), Message(role="assistant", content="yes"))
    origin = Origin(kind="import", reference="f", sample=number)
    return Trajectory(taskset="desk", task_id=f"t{number}", messages=messages, origin=origin, created="then")


def score(number: int) -> Score:
    return Score(trajectory=run(0).id, criterion="tone@1", value=0.5, rater="ada", rater_kind="human", id=f"s{number}")


def fill(url: str) -> tuple[object, ...]:
    """Put one of everything into the store; returns everything, for comparison."""
    with Store(url) as store:
        tokens = TokenRecord(
            trajectory=run(1).id, base="b", turns=(TurnTokens(message_index=1, context=(1,), completion=(2,), logprobs=(-1,)),)
        )
        store.add([run(number) for number in range(5)], [tokens])
        store.add_scores([score(1), score(2)])
        store.add_preferences([Preference(taskset="desk", items=(Item(run(0).id), Item(run(1).id)), source="human", rater="ada")])
        store.save_training(Training(id="a", recipe="sft", taskset="desk", config="{}", created="c", updated="u"))
    return everything(url)


def everything(url: str) -> tuple[object, ...]:
    with Store(url) as store:
        page = store.runs()
        return (
            list(store.trajectories()),
            page,
            [store.tokens(row.id) for row in page.rows],
            store.scores(),
            store.preferences("desk"),
            store.trainings(),
        )


def test_a_restored_backup_is_the_store_that_was_backed_up(store_url: str, tmp_path: Path) -> None:
    before = fill(store_url)
    report = backup(store_url, tmp_path / "out" / "b.db")
    assert report[:5] == (5, 1, 2, 1, 1) and report.problems == ()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["b.db"]
    with Store(store_url) as store:
        store.add_scores([score(3)])
    with pytest.raises(StoreError, match="holds 11 records, which a restore would replace"):
        restore(tmp_path / "out" / "b.db", store_url)
    assert restore(tmp_path / "out" / "b.db", store_url, force=True) == report
    assert everything(store_url) == before
    with Store(store_url) as store:  # and it can be written to
        store.add([run(9)])
        assert store.add_scores([score(3)]).stored == 1
        assert store.runs().rows[0].id == run(9).id and store.check().problems == ()


def test_a_backup_moves_a_store_to_another_database(store_url: str, tmp_path: Path) -> None:
    before = fill(f"sqlite:///{tmp_path}/first/store.db")
    backup(f"sqlite:///{tmp_path}/first/store.db", tmp_path / "b.db")
    restore(tmp_path / "b.db", store_url)
    assert everything(store_url) == before
    backup(store_url, tmp_path / "c.db")
    restore(tmp_path / "c.db", f"sqlite:///{tmp_path}/third/store.db")
    assert everything(f"sqlite:///{tmp_path}/third/store.db") == before


def test_a_backup_holds_one_moment_while_others_write(store_url: str, tmp_path: Path) -> None:
    fill(store_url)
    stop, written = threading.Event(), [2]

    def write() -> None:
        with Store(store_url) as store:
            while not stop.is_set():
                store.add_scores([score(written[0] + 1), score(written[0] + 2)])  # pairs: a moment has an even number
                written[0] += 2

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for number in range(5):
            low = written[0]
            report = backup(store_url, tmp_path / f"{number}.db")
            assert low <= report.scores <= written[0] + 2 and report.scores % 2 == 0
    finally:
        stop.set()
        writer.join()


def test_whoever_has_the_store_open_sees_the_restored_one_and_writes_into_it(store_url: str, tmp_path: Path) -> None:
    fill(store_url)
    backup(store_url, tmp_path / "b.db")
    with Store(store_url) as store:
        store.add_scores([score(3)])
        assert len(store.scores()) == 3
        restore(tmp_path / "b.db", store_url, force=True)
        assert len(store.scores()) == 2
        store.add_scores([score(4)])
    with Store(store_url) as store:
        assert [made.id for made in store.scores()] == ["s1", "s2", "s4"]


def test_an_existing_file_is_not_overwritten_by_a_backup(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/store.db"
    fill(url)
    (tmp_path / "b.db").write_text("dear")
    with pytest.raises(DataError, match="exists"):
        backup(url, tmp_path / "b.db")
    assert (tmp_path / "b.db").read_text() == "dear"
    assert backup(url, tmp_path / "b.db", force=True).trajectories == 5


def test_a_store_is_not_backed_up_onto_itself(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/store.db"
    before = fill(url)
    (tmp_path / "link.db").symlink_to(tmp_path / "store.db")
    for name in ("store.db", "link.db"):
        with pytest.raises(DataError, match="is the store itself"):
            backup(url, tmp_path / name, force=True)
    assert everything(url) == before


def test_what_is_no_sound_backup_is_refused_and_replaces_nothing(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/store.db"
    before = fill(url)
    with pytest.raises(DataError, match="there is no backup"):
        restore(tmp_path / "none.db", url, force=True)
    (tmp_path / "text.db").write_text("not a database" * 100)
    with pytest.raises(StoreError, match=r"backup .*text\.db is not a SQLite database"):
        restore(tmp_path / "text.db", url, force=True)
    sqlite3.connect(tmp_path / "foreign.db").execute("CREATE TABLE t (x)").connection.close()
    with pytest.raises(DataError, match="no backup of a store"):
        restore(tmp_path / "foreign.db", url, force=True)
    backup(url, tmp_path / "b.db")
    with sqlite3.connect(tmp_path / "b.db") as connection:
        connection.execute("UPDATE bodies SET record = replace(record, 'yes', 'no!') WHERE trajectory = 2")
    connection.close()
    with pytest.raises(StoreError, match=r"is damaged in 1 places; the first: trajectory .* digest does not match"):
        restore(tmp_path / "b.db", url, force=True)
    assert everything(url) == before


def test_a_damaged_store_is_refused_and_moved_aside_by_a_forced_restore(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    url = f"sqlite:///{path}"
    before = fill(url)
    backup(url, tmp_path / "b.db")
    whole = path.read_bytes()
    middle = len(whole) // 2 // 4096 * 4096
    damages = {
        "empty": b"",
        "text": b"x" * 9000,
        "header cut": whole[:50],
        "first page only": whole[:4096],
        "cut": whole[:middle],
        "first page overwritten": b"\xff" * 4096 + whole[4096:],
        "pages overwritten": whole[:4096] + b"\xff" * (len(whole) - 4096),
    }
    for name, content in damages.items():
        path.write_bytes(content)
        with pytest.raises(StoreError, match="Restore a backup"):
            everything(url)
        assert path.read_bytes() == content, name
    path.write_bytes(b"x" * 9000)
    with pytest.raises(StoreError, match="Force the restore"):
        restore(tmp_path / "b.db", url)
    restore(tmp_path / "b.db", url, force=True)
    assert everything(url) == before
    assert [aside.read_bytes() for aside in tmp_path.glob("store.db.damaged-*")] == [b"x" * 9000]


def test_random_damage_is_never_silently_different_content(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    before = fill(f"sqlite:///{path}")
    whole, chance = path.read_bytes(), random.Random(3)
    seen = 0
    for number in range(100):
        damaged = bytearray(whole)
        for _ in range(20):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        copy = tmp_path / f"{number}" / "store.db"
        copy.parent.mkdir()
        copy.write_bytes(damaged)
        try:
            with Store(f"sqlite:///{copy}") as store:
                sound = store.check().problems == ()
            assert not sound or everything(f"sqlite:///{copy}") == before
        except StoreError:
            sound = False
        seen += not sound
    assert seen > 10


def test_a_log_without_its_store_is_not_taken_for_a_new_store(tmp_path: Path) -> None:
    (tmp_path / "store.db-wal").write_bytes(b"frames")
    with pytest.raises(StoreError, match=r"is gone but its log store\.db-wal is there"):
        Store(f"sqlite:///{tmp_path}/store.db")


def test_a_store_that_vanishes_under_us_is_said(tmp_path: Path) -> None:
    with Store(f"sqlite:///{tmp_path}/a/store.db") as store:
        store.add([run(1)])
        (tmp_path / "a").rename(tmp_path / "b")
        with pytest.raises(StoreError, match="is gone"):
            store.runs()
        (tmp_path / "b").rename(tmp_path / "a")
        assert store.runs().total == 1


def test_another_programs_file_is_left_alone(tmp_path: Path) -> None:
    sqlite3.connect(tmp_path / "store.db").execute("CREATE TABLE t (x)").connection.close()
    with pytest.raises(StoreError, match="another program's SQLite file"):
        Store(f"sqlite:///{tmp_path}/store.db")


def test_a_full_disk_is_said_and_loses_nothing(tmp_path: Path) -> None:
    with Store(f"sqlite:///{tmp_path}/store.db") as store:
        store.add([run(1)])
        with store._database.write() as connection:
            pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
            connection.exec_driver_sql(f"PRAGMA max_page_count = {pages + 2}")
        long = Trajectory(
            taskset="desk", messages=(Message(role="user", content="x" * 100_000),), origin=Origin(kind="import", reference="f")
        )
        with pytest.raises(StoreError, match=r"no room left on its disk\. Nothing of this was stored"):
            store.add([run(2), long])
        assert [trajectory.id for trajectory in store.trajectories()] == [run(1).id]
        with store._database.write() as connection:
            connection.exec_driver_sql("PRAGMA max_page_count = 1000000")
        assert store.add([run(2), long]).stored == 2


def test_a_write_that_waits_too_long_for_another_process_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "store.db"
    with Store(f"sqlite:///{path}") as store:
        monkeypatch.setattr(sqlite, "LOCK_SECONDS", 0.01)
        with sqlite.file_lock(path), pytest.raises(StoreError, match=r"locked by another process .* Nothing was written"):
            store.add([run(1)])
        assert store.runs().total == 0  # reading needs no lock
        assert store.add([run(1)]).stored == 1


def test_a_store_is_not_carried_into_a_forked_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store(f"sqlite:///{tmp_path}/store.db") as store:
        monkeypatch.setattr(os, "getpid", lambda: -1)
        with pytest.raises(StoreError, match="was opened before this process was forked"):
            store.runs()


def test_a_folder_with_odd_signs_holds_a_store(tmp_path: Path) -> None:
    folder = tmp_path / "a b%20?c=d#é"
    with Store(f"sqlite:///{folder}/store.db") as store:
        store.add([run(1)])
    assert (folder / "store.db").is_file()
    assert backup(f"sqlite:///{folder}/store.db", folder / "b?.db").trajectories == 1


def test_network_file_systems_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "1 0 0:1 / / rw,relatime - ext4 /dev/a rw\n"
        "2 1 0:2 / /home/team\\040share rw shared:1 master:2 - nfs4 server:/x rw\n"
        "3 2 0:3 / /home/team\\040share/local rw - ext4 /dev/b rw\n"
        "4 1 0:4 / /mnt rw - ext4 /dev/c rw\n"
        "5 1 0:5 / /mnt rw - fuse.sshfs host:/ rw\n"
    )
    assert network_file_system(Path("/home/team share/p/store.db"), mounts) == "nfs4"
    assert network_file_system(Path("/mnt/store.db"), mounts) == "fuse.sshfs"
    for local in ("/home/team share/local/store.db", "/home/team", "/mnt2", "/"):
        assert network_file_system(Path(local), mounts) is None
    assert network_file_system(tmp_path, tmp_path / "none") is None
    monkeypatch.setattr(sqlite, "network_file_system", lambda path: "cifs")
    with pytest.raises(StoreError, match=r"network file system \(cifs\).*AGENTALIGN_DATABASE_URL"):
        Store(f"sqlite:///{tmp_path}/store.db")


@pytest.mark.parametrize(
    "url", ["", "store.db", "sqlite://", "sqlite:///:memory:", "mysql://a:secret@b/c", "postgresql+x", "postgresql://h:port/b"]
)
def test_a_url_that_is_no_store_is_refused(url: str) -> None:
    with pytest.raises(StoreError, match="Write") as caught:
        Store(url)
    assert "secret" not in str(caught.value)


def test_a_server_that_is_not_there_is_said_without_the_password() -> None:
    with pytest.raises(StoreError, match=r"cannot be reached.*AGENTALIGN_DATABASE_URL") as caught:
        Store("postgresql://ada:secret@127.0.0.1:9/none?connect_timeout=5")
    assert "secret" not in str(caught.value)


def test_migrations_make_exactly_our_tables(store_url: str) -> None:
    Store(store_url).close()
    database = open_database(store_url)
    with database.read() as connection:
        # The text index is not a table of ours: SQLite keeps it in five of its own, and PostgreSQL's needs an extension.
        ours = {"include_name": lambda name, kind, _parents: not (name or "").startswith(("run_text", "ix_bodies_search"))}
        differences = compare_metadata(MigrationContext.configure(connection, opts=ours), tables.metadata)
    database.close()
    assert differences == []


def test_the_revisions_we_know_are_the_migrations_there_are() -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("path_separator", "newline")
    scripts = ScriptDirectory.from_config(config)
    assert tuple(script.revision for script in reversed(list(scripts.walk_revisions()))) == tables.REVISIONS


def test_a_newer_schema_is_refused(store_url: str, tmp_path: Path) -> None:
    fill(store_url)
    backup(store_url, tmp_path / "b.db")
    database = open_database(store_url)
    with database.write() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    database.close()
    with pytest.raises(StoreError, match=rf"has schema 9999; this agentalign knows schemas up to {tables.REVISIONS[-1]}"):
        Store(store_url)
    with sqlite3.connect(tmp_path / "b.db") as raw:
        raw.execute("UPDATE alembic_version SET version_num = '9999'")
    raw.close()
    with pytest.raises(StoreError, match=r"backup .* has schema 9999"):
        restore(tmp_path / "b.db", f"sqlite:///{tmp_path}/new/store.db")


NEXT = """
import sqlalchemy as sa
from alembic import op

revision = "next"
down_revision = "{before}"


def upgrade():
    op.add_column("trainings", sa.Column("team", sa.Text, server_default="ours"))
    {then}
"""


def test_an_older_schema_is_brought_up_in_one_step_or_not_at_all(store_url: str, tmp_path: Path) -> None:
    fill(store_url)
    folder = tmp_path / "migrations"
    shutil.copytree(MIGRATIONS, folder, ignore=shutil.ignore_patterns("__pycache__"))
    script = folder / "versions" / "next.py"
    database = open_database(store_url)
    script.write_text(NEXT.format(then="raise RuntimeError('power cut')", before=tables.REVISIONS[-1]))
    with pytest.raises(RuntimeError, match="power cut"), database.write() as connection:
        migrate(connection, folder=folder)
    with database.read() as connection:
        assert connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar_one() == tables.REVISIONS[-1]
        assert "team" not in connection.exec_driver_sql("SELECT * FROM trainings").mappings().one()
    script.write_text(NEXT.format(then="", before=tables.REVISIONS[-1]))
    shutil.rmtree(folder / "versions" / "__pycache__", ignore_errors=True)
    with database.write() as connection:
        migrate(connection, folder=folder)
    with database.read() as connection:
        assert connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar_one() == "next"
        assert connection.exec_driver_sql("SELECT team FROM trainings").scalar_one() == "ours"
    database.close()


def test_many_processes_may_open_a_new_store_at_once(store_url: str) -> None:
    code = "import sys; from agentalign.store.store import Store; print(Store(sys.argv[1]).runs().total)"
    processes = [subprocess.Popen([sys.executable, "-c", code, store_url], stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert [process.communicate()[0].strip() for process in processes] == ["0"] * 4
