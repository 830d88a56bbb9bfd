"""Processes are killed at random points: whatever was acknowledged is there once, unaltered, and everything opens again."""

import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from agentalign.records.criterion import Score
from agentalign.records.trajectory import Message, Origin, Trajectory
from agentalign.store.backup import backup
from agentalign.store.registry import Registry
from agentalign.store.store import Store

pytestmark = pytest.mark.hard

WRITERS, KILLS = 4, 20

RATER = """
import random, sys
from agentalign.records.criterion import Score
from agentalign.store.store import Store

url, trajectory, life = sys.argv[1:]
with Store(url) as store:
    for number in range(10**9):
        rating = Score(
            trajectory=trajectory, criterion="tone@1", value=random.random(), rater=life, rater_kind="human",
            note=random.randbytes(random.choice([10, 5000])).hex(), id=f"{life}-{number}",
        )
        store.add_scores([rating])
        print(rating.model_dump_json(), flush=True)
"""

OPENER = """
import sys
from agentalign.store.store import Store
from agentalign.store import schema
import alembic.command

print("ready", flush=True)
Store(sys.argv[1]).close()
print("open", flush=True)
"""

SAVER = """
import sys
from pathlib import Path
from agentalign.records.adapter import AdapterCard
from agentalign.store.registry import Registry

registry = Registry(Path(sys.argv[1]))
print("ready", flush=True)
while True:
    card = AdapterCard(
        name="desk", version=registry.next_version("desk"), kind="policy", taskset="desk", recipe="sft", training="t", base="b",
        base_digest="d", quantization="nf4", template_digest="x",
    )
    print(registry.save(card, Path(sys.argv[2])).ref, flush=True)
"""


class Writer:
    """A process that says on its standard output what it was promised is kept."""

    def __init__(self, code: str, *arguments: str) -> None:
        self.lines: list[str] = []
        self.process = subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.endswith(b"\n"):
                self.lines.append(line.decode().rstrip())

    def wait_for_a_line(self) -> None:
        self.wait_for_lines(1)

    def wait_for_lines(self, number: int) -> None:
        while len(self.lines) < number and self.process.poll() is None:
            time.sleep(0.002)
        if self.process.poll() is not None:
            assert self.process.stderr is not None
            pytest.fail(f"the writer ended by itself: {self.process.stderr.read().decode()[-3000:]}")

    def kill(self) -> list[str]:
        self.process.kill()
        self.process.wait()
        self._thread.join()
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()
        return self.lines


def test_no_acknowledged_rating_is_lost_when_raters_are_killed(store_url: str, tmp_path: Path) -> None:
    chance = random.Random()
    rated = Trajectory(taskset="desk", messages=(Message(role="user", content="hi"),), origin=Origin(kind="import", reference="f"))
    with Store(store_url) as store:
        store.add([rated])
    acknowledged: list[str] = []
    writers = [Writer(RATER, store_url, rated.id, f"life-{number}") for number in range(WRITERS)]
    for life in range(WRITERS, WRITERS + KILLS):
        victim = writers.pop(0)
        victim.wait_for_a_line()
        time.sleep(chance.uniform(0, 0.2))
        acknowledged += victim.kill()
        writers.append(Writer(RATER, store_url, rated.id, f"life-{life}"))
        if life % 8 == 0:
            known = len(acknowledged)
            assert backup(store_url, tmp_path / f"{life}.db").scores >= known
    for writer in writers:
        writer.wait_for_a_line()
        acknowledged += writer.kill()
    with Store(store_url) as store:
        kept = store.scores()
        assert len({made.id for made in kept}) == len(kept)
        by_id = {made.id: made for made in kept}
        lost = [line for line in acknowledged if by_id.get(Score.model_validate_json(line).id) != Score.model_validate_json(line)]
        assert lost == []
        assert len(acknowledged) >= WRITERS + KILLS
        assert store.check().problems == ()
        print(f"{len(acknowledged)} acknowledged, {len(kept)} kept, {KILLS + WRITERS} kills")


def test_a_store_whose_maker_was_killed_opens_all_the_same(store_url: str) -> None:
    chance = random.Random()
    for _ in range(6):
        opener = Writer(OPENER, store_url)
        opener.wait_for_a_line()
        time.sleep(chance.uniform(0, 0.1))
        opener.kill()
    with Store(store_url) as store:
        assert store.runs().total == 0 and store.check().problems == ()


def test_a_killed_save_leaves_whole_versions_only(tmp_path: Path) -> None:
    chance = random.Random()
    trained = tmp_path / "trained"
    trained.mkdir()
    (trained / "adapter_config.json").write_text("{}")
    (trained / "adapter_model.safetensors").write_bytes(random.randbytes(3_000_000))
    registry, promised = Registry(tmp_path / "adapters"), []
    for _ in range(10):
        saver = Writer(SAVER, str(registry.folder), str(trained))
        saver.wait_for_a_line()
        time.sleep(chance.uniform(0, 0.1))
        promised += saver.kill()[1:]
        for card in registry.list():
            registry.verify(card.ref)
    assert {*promised} <= {card.ref for card in registry.list()}
    assert registry.next_version("desk") == len(registry.list()) + 1
