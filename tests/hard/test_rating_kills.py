"""A team rates over HTTP while its server is killed again and again: what a rater saw as saved is there, once and unaltered.

2,000 ratings and 8 kills; AGENTALIGN_KILL_RATINGS and AGENTALIGN_KILLS ask for more (CONTRIBUTING.md). A rater does what the page does:
takes a run from the queue, marks and finishes it, compares pairs, and sends a save again under its key until the server says
{"saved": true}. Meanwhile `agentalign import` reads a file, one process writes scores, and another trains adapters one after the other.
"""

import http.client
import json
import os
import random
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from killed_server import PASSWORD, Client, KilledServer
from small_desk import HOSTILE, make_desk, make_run
from test_store_kills import Writer
from training_beside import train_beside, verify_trainings

from agentalign.config.project import DATABASE_VARIABLE, Project
from agentalign.records.base import digest
from agentalign.records.criterion import Score
from agentalign.records.preference import Preference
from agentalign.store.filters import RunFilter
from agentalign.store.queue_items import QueueItem
from agentalign.store.store import Store

pytestmark = pytest.mark.hard

RATINGS = int(os.environ.get("AGENTALIGN_KILL_RATINGS", "2000"))
KILLS = int(os.environ.get("AGENTALIGN_KILLS", "8"))
RATERS = [f"rater-{number}" for number in range(16)]
OVERLAP = 3
MARKS_PER_RUN = 3
IMPORTED = 1500

SCORER = """
import sys, time
from agentalign.records.criterion import Score
from agentalign.store.store import Store

with Store(sys.argv[1]) as store:
    for number in range(10**9):
        run = sys.argv[2:][number % len(sys.argv[2:])]
        made = Score(trajectory=run, criterion="solved@1", value=number % 2, rater="solved", rater_kind="check", id=f"check-{number}")
        store.add_scores([made])
        print(made.model_dump_json(), flush=True)
        time.sleep(0.05)
"""


class Acknowledged(NamedTuple):
    """What a rater was told is saved."""

    id: str
    url: str
    rater: str
    body: dict[str, Any]


class Rater:
    """A person at the page, who goes on until so many ratings are acknowledged."""

    def __init__(self, name: str, port: int, pairs: list[tuple[str, str]], ratings: int, seed: int) -> None:
        self.name, self.client = name, Client(port)
        self.pairs, self.ratings, self.chance = pairs, ratings, random.Random(seed)
        self.hand: dict[str, Any] | None = None
        self.acknowledged: list[Acknowledged] = []
        self.finished: list[str] = []
        self.retries = 0

    def run(self) -> None:
        """Log in and rate."""
        try:
            self.post("/api/login", {"name": self.name, "password": PASSWORD})
            while len(self.acknowledged) < self.ratings:
                self.rate()
                if self.pairs and self.chance.random() < 0.3:
                    self.compare()
        finally:
            self.client.close()

    def rate(self) -> None:
        """The next run of the queue: three marks, then it is finished."""
        hand = self.hand or self.post("/api/queue/next", {})["current"]
        assert hand is not None, "the queue was made too short"
        about = {"trajectory": hand["run"]}
        self.save("/api/scores", {**about, "criterion": "tone@1", "value": self.chance.randint(1, 5), "note": self.note()})
        for step in range(MARKS_PER_RUN - 1):
            self.save("/api/scores", {**about, "criterion": "good_step@1", "step": step, "value": self.chance.randint(0, 1)})
        wish = self.chance.random() < 0.5
        done = self.post(f"/api/queue/{hand['assignment']}/done", {"key": self.key(), "next": wish})
        assert done["saved"] is True and ("next" in done) is wish
        self.hand = done["next"]["current"] if done.get("next") else None
        self.finished.append(hand["assignment"])

    def compare(self) -> None:
        """Which of two runs is better."""
        drawn = self.post("/api/compare", {"runs": self.pairs.pop()})
        choice = self.chance.choice(["left_far", "left", "tie", "right", "right_far", "both_bad"])
        self.save("/api/preferences", {"draw": drawn["draw"], "choice": choice, "note": self.note()})

    def save(self, url: str, said: dict[str, Any]) -> None:
        """Send until it is acknowledged; sometimes once more, and sometimes something else under the same key."""
        body = {"key": self.key(), **said}
        answer = self.post(url, body)
        assert answer["saved"] is True, answer
        self.acknowledged.append(Acknowledged(answer["id"], url, self.name, body))
        if self.chance.random() < 0.1:
            assert self.post(url, body) == {"saved": True, "id": answer["id"], "known": True}
        if self.chance.random() < 0.05:
            refused = self.post(url, {**body, "note": "something else"}, expect=422)
            assert "stored with other content" in refused["detail"]

    def post(self, url: str, body: dict[str, Any], expect: int = 200) -> dict[str, Any]:
        """An answer, however often the server has to be asked."""
        while True:
            try:
                status, answer = self.client.post(url, body)
            except (OSError, http.client.HTTPException):
                self.retries += 1
                time.sleep(0.2)
                continue
            assert status == expect, f"{url} {body}: {status} {answer}"
            return answer

    def key(self) -> str:
        return self.chance.randbytes(16).hex()

    def note(self) -> str:
        # A lone surrogate is refused in so many words: no browser sends one.
        return self.chance.choice(["", self.chance.choice(HOSTILE[:-1]), self.chance.randbytes(1500).hex()])


@pytest.fixture
def project(tmp_path: Path, store_url: str, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.setenv(DATABASE_VARIABLE, store_url)
    return make_desk(tmp_path)


def test_nothing_that_a_rater_saw_as_saved_is_lost_doubled_or_altered(project: Project, store_url: str) -> None:
    seed = random.randrange(10**9)
    print(f"seed {seed}")
    chance = random.Random(seed)
    items = RATINGS // (MARKS_PER_RUN * OVERLAP) + 2 * len(RATERS)
    queued = [make_run(answer=f"Answer {number}.", sample=number, task=f"q{number}") for number in range(items)]
    judged = [make_run(answer=f"Answer {number}.", policy=policy, task=f"p{number}") for number in range(RATINGS // 40) for policy in "ab"]
    pairs = [(judged[number].id, judged[number + 1].id) for number in range(0, len(judged), 2)]
    with Store(store_url) as store:
        store.add([*queued, *judged])
        store.queue_items.add([run.id for run in queued], overlap=OVERLAP)
    trainer = train_beside(project)
    try:
        trainer.wait_for_a_line()
        with KilledServer(project, RATERS, store_url) as server, Importing(project) as reader:
            scorer = Writer(SCORER, store_url, *(run.id for run in judged[:100]))
            try:
                raters = rate_through_kills(server, pairs, chance)
                told = reader.finish()
            finally:
                checks = scorer.kill()
        trainer.wait_for_lines(2)
    finally:
        trained = trainer.kill()[1:]
    acknowledged = [made for rater in raters for made in rater.acknowledged]
    assert len(acknowledged) >= RATINGS and server.lives == KILLS + 1
    with Store(store_url) as store:
        verify_ratings(store, acknowledged)
        verify_queue(store, raters, [run.id for run in queued])
        verify_trainings(store, project, trained)
        kept = {made.id: made for made in store.scores(taskset="desk", criterion="solved")}
        assert [line for line in checks if kept.get(json.loads(line)["id"]) != Score.model_validate_json(line)] == []
        assert len(kept) - len(checks) in (0, 1) and len(checks) > 0
        assert store.count(RunFilter(taskset="desk")) == len(queued) + len(judged) + IMPORTED
        assert store.check().problems == ()
    retries, slowest = sum(rater.retries for rater in raters), max(server.seconds)
    print(f"{len(acknowledged)} acknowledged, {retries} retries, {KILLS} kills, back within {slowest:.1f} s; {len(checks)} checks; {told}")
    print(f"{len(trained)} trainings beside")


def test_the_check_finds_what_is_lost_doubled_or_altered(tmp_path: Path) -> None:
    run = make_run()
    said = [{"key": f"key-{number}-00", "trajectory": run.id, "criterion": "tone@1", "value": number, "step": None} for number in (1, 2)]
    told = [Acknowledged(digest(["score", "ada", body["key"]]), "/api/scores", "ada", body) for body in said]
    kept = [
        Score(**{**body, "id": made.id, "rater": "ada", "rater_kind": "human"}) for made in told if (body := dict(made.body)).pop("key")
    ]
    with Store(f"sqlite:///{tmp_path / 'store.db'}") as store:
        store.add([run])
        store.add_scores(kept[:1])
        verify_ratings(store, told[:1])
        with pytest.raises(AssertionError, match="1 of 2 acknowledged ratings are lost"):
            verify_ratings(store, told)
        with pytest.raises(AssertionError, match="altered"):
            verify_ratings(store, [told[0]._replace(body={**told[0].body, "value": 3})])
        store.add_scores(kept[1:])
        verify_ratings(store, told)
        with pytest.raises(AssertionError, match="stored twice"):
            verify_ratings(store, told[:1])


def test_one_save_sent_by_many_at_once_is_one_save(project: Project, store_url: str) -> None:
    run = make_run()
    with Store(store_url) as store:
        store.add([run])
    with KilledServer(project, ["ada"], store_url) as server:
        clients = [Client(server.port) for _ in range(16)]
        assert all(client.log_in("ada") for client in clients)
        # Logging in is slow on purpose: the first connections may have been idle for longer than the server keeps them.
        for client in clients:
            client.close()
        mark = {"key": "k" * 16, "trajectory": run.id, "criterion": "tone@1"}
        values = [2 if number == 3 else 4 for number in range(len(clients))]
        with ThreadPoolExecutor(len(clients)) as pool:
            many = pool.map(lambda client, value: [client.post("/api/scores", {**mark, "value": value}) for _ in range(4)], clients, values)
            sent = [(value, *answer) for value, answers in zip(values, many, strict=True) for answer in answers]
        for client in clients:
            client.close()
    # Whichever came first is kept; the other value is told that it is not.
    with Store(store_url) as store:
        (kept,) = store.scores()
    assert [status for _, status, _ in sent] == [200 if value == kept.value else 422 for value, _, _ in sent]
    saved = [answer for _, status, answer in sent if status == 200]
    assert {answer["id"] for answer in saved} == {kept.id} and sum(not answer["known"] for answer in saved) == 1


def rate_through_kills(server: KilledServer, pairs: list[tuple[str, str]], chance: random.Random) -> list[Rater]:
    """All raters at once until each has their share of ratings, and a kill whenever so many of them all are acknowledged."""
    share, more = divmod(RATINGS, len(RATERS))
    raters = [
        Rater(name, server.port, chance.sample(pairs, len(pairs)), share + (number < more), chance.randrange(10**9))
        for number, name in enumerate(RATERS)
    ]
    with ThreadPoolExecutor(len(raters)) as pool:
        working = [pool.submit(rater.run) for rater in raters]
        for place in sorted(chance.sample(range(RATINGS * 9 // 10), KILLS)):
            while sum(len(rater.acknowledged) for rater in raters) < place and not any(one.done() for one in working):
                time.sleep(0.002)
            time.sleep(chance.uniform(0, 0.03))
            server.kill()
            server.start()
        for one in working:
            one.result()
    return raters


class Importing:
    """`agentalign import` of a file, in a process of its own."""

    def __init__(self, project: Project) -> None:
        file = project.root / "chats.jsonl"
        said = [[{"role": "user", "content": f"Question {n}"}, {"role": "assistant", "content": "Answer. " * 50}] for n in range(IMPORTED)]
        file.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in said))
        command = [sys.executable, "-m", "agentalign", "import", str(file), "--taskset", "desk"]
        self.process = subprocess.Popen(command, cwd=project.root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def finish(self) -> str:
        """What it said at its end."""
        told, failed = self.process.communicate(timeout=300)
        assert self.process.returncode == 0, failed
        return told.strip()

    def __enter__(self) -> "Importing":
        return self

    def __exit__(self, *_error: object) -> None:
        self.process.kill()
        self.process.communicate()


def verify_ratings(store: Store, acknowledged: list[Acknowledged]) -> None:
    """Every rating that was acknowledged is stored once as it was said, and no other is."""
    stored: list[Score | Preference] = [made for made in store.scores() if made.rater_kind == "human"]
    stored += store.preferences("desk", source="human")
    by_id = {made.id: made for made in stored}
    assert len(by_id) == len(stored)
    lost = [made for made in acknowledged if made.id not in by_id]
    assert lost == [], f"{len(lost)} of {len(acknowledged)} acknowledged ratings are lost"
    assert len(stored) == len(acknowledged) == len({made.id for made in acknowledged}), "a rating is stored twice"
    altered = [(made, by_id[made.id]) for made in acknowledged if said_in(by_id[made.id]) != said_by(made)]
    assert altered == [], f"{len(altered)} acknowledged ratings are altered"


def said_by(made: Acknowledged) -> dict[str, Any]:
    """What a rater meant, as a record says it."""
    kind = "score" if made.url == "/api/scores" else "preference"
    base = {"id": digest([kind, made.rater, made.body["key"]]), "rater": made.rater, "note": made.body.get("note", "")}
    if kind == "score":
        return {**base, **{name: made.body.get(name) for name in ("trajectory", "criterion", "step", "value")}, "status": "value"}
    choice = made.body["choice"]
    far = 3.0 if choice.endswith("far") else 1.0
    return {**base, "strength": far, "tie": choice == "tie", "both_bad": choice == "both_bad", "right": choice.startswith("right")}


def said_in(made: Score | Preference) -> dict[str, Any]:
    """The same of a stored record."""
    if isinstance(made, Score):
        return made.model_dump(include={"id", "rater", "note", "trajectory", "criterion", "step", "value"}) | {"status": made.status.value}
    told = made.model_dump(include={"id", "rater", "note", "strength", "tie", "both_bad"})
    return {**told, "right": made.items[0].trajectory != made.left}


def verify_queue(store: Store, raters: list[Rater], queued: list[str]) -> None:
    """Every run that was finished is finished, by whom it was finished, and no run has more answers than are wanted."""
    given = store.queue_items.assignments(queued)
    by_id = {made.id: made for made in given}
    for rater in raters:
        assert {by_id[id].person for id in rater.finished} == {rater.name}
        assert {by_id[id].state for id in rater.finished} == {"done"}
    assert sum(made.state == "done" for made in given) == sum(len(set(rater.finished)) for rater in raters)
    assert len({(made.trajectory, made.person, made.kind) for made in given}) == len(given)
    items: list[QueueItem] = store.queue_items.items()
    assert max(item.done + item.live for item in items) <= OVERLAP
