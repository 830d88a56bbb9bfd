"""A forced restore: what it replaces is kept where it was damaged, and what was forgotten stays so."""

import sqlite3
from pathlib import Path

import pytest

from agentalign.errors import StoreError
from agentalign.records.trajectory import Message, Origin, Trajectory
from agentalign.store.backup import backup, restore
from agentalign.store.store import Store

PAGE = 4096


def run(number: int) -> Trajectory:
    messages = (Message(role="user", content=f"Run {number}. " + f"{number} long enough for pages of its own. " * 500),)
    return Trajectory(taskset="desk", messages=messages, origin=Origin(kind="import", reference="f", sample=number))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store of 40 runs with a backup of the first five beside it, and the third of these forgotten since."""
    path = tmp_path / "store.db"
    with Store(f"sqlite:///{path}") as store:
        store.add([run(number) for number in range(5)])
        backup(f"sqlite:///{path}", tmp_path / "old.db")
        store.add([run(number) for number in range(5, 40)])
        store.forget([run(2).id], reason="asked for")
    return path


def zero_a_page_of(path: Path, words: bytes) -> bytes:
    """Lose the page in which these words stand first; returns the file as it is then."""
    content = bytearray(path.read_bytes())
    page = content.index(words * 100) // PAGE + 1
    content[page * PAGE : (page + 1) * PAGE] = bytes(PAGE)
    path.write_bytes(content)
    return bytes(content)


def test_a_store_with_one_damaged_page_is_kept_beside_the_restored_one(path: Path) -> None:
    url = f"sqlite:///{path}"
    damaged = zero_a_page_of(path, b"30 long enough for pages of its own. ")
    with Store(url) as store:
        assert store.check().problems and store.trajectory(run(31).id) == run(31), "damaged, but for the most part readable"
    with pytest.raises(StoreError, match=r"is there but damaged.* Force the restore"):
        restore(path.with_name("old.db"), url)
    assert path.read_bytes() == damaged
    report = restore(path.with_name("old.db"), url, force=True)
    assert (report.trajectories, report.forgotten, report.problems) == (4, 1, ()), "its tombstones could be read"
    assert [aside.read_bytes() for aside in path.parent.glob("store.db.damaged-*")] == [damaged]
    with Store(url) as store:
        assert store.runs().total == 4 and list(store.tombstones([run(2).id])) == [run(2).id]
        assert store.add([run(2)]).forgotten == 1 and store.check().problems == ()


def test_what_is_kept_of_a_damaged_store_has_its_log_with_it(path: Path) -> None:
    url = f"sqlite:///{path}"
    zero_a_page_of(path, b"30 long enough for pages of its own. ")
    with Store(url) as store:
        store.add([run(100)])
        log = path.with_name("store.db-wal").read_bytes()
        assert b"Run 100." in log
        restore(path.with_name("old.db"), url, force=True)
        assert store.runs().total == 4, "who had it open sees the restored one"
    (aside,) = (one for one in path.parent.glob("store.db.damaged-*") if not one.name.endswith(("-wal", "-shm")))
    with sqlite3.connect(f"file:{aside}?mode=ro", uri=True) as kept:
        assert kept.execute("SELECT count(*) FROM trajectories WHERE id = ?", (run(100).id,)).fetchone() == (1,)
    kept.close()


def test_a_sound_store_is_replaced_and_leaves_no_copy(path: Path) -> None:
    assert restore(path.with_name("old.db"), f"sqlite:///{path}", force=True).forgotten == 1
    assert {one.name for one in path.parent.iterdir() if ".db" in one.name} <= {"old.db", "store.db", "store.db-wal", "store.db-shm"}


def test_a_sound_store_of_an_older_schema_is_not_taken_for_a_damaged_one(path: Path) -> None:
    with sqlite3.connect(path) as raw:
        raw.execute("ALTER TABLE queue_items DROP COLUMN gold_by")
        raw.execute("UPDATE alembic_version SET version_num = '0006'")
    raw.close()
    with pytest.raises(StoreError, match="holds 39 records, which a restore would replace"):
        restore(path.with_name("old.db"), f"sqlite:///{path}")
