"""The commands of a team, through `main`: who is to rate what, who may log in, and what is forgotten."""

import io
import json

import pytest

from agentalign.cli import main
from agentalign.config.project import Project
from agentalign.records.preference import Item, Preference
from agentalign.records.trajectory import Message, Origin, Trajectory
from agentalign.store.queue import Rules
from agentalign.store.store import Store


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["init"]) == 0
    found = Project(tmp_path)
    with Store(found.store_url) as store:
        store.add([a_run(text) for text in ("The lamp is on.", "The lamp is off.", "ada@example.org has no lamp.")])
    return found


def a_run(text, reference="base"):
    messages = (Message(role="user", content="Switch the lamp on."), Message(role="assistant", content=text))
    return Trajectory(taskset="hello", messages=messages, origin=Origin(kind="rollout", reference=reference, task=text))


def said(capsys, *words):
    capsys.readouterr()
    assert main(list(words)) == 0
    return capsys.readouterr()


def ids(project):
    with Store(project.store_url) as store:
        return [row.id for row in store.runs().rows]


def test_runs_are_put_into_the_queue_taken_out_and_put_back(project, capsys):
    assert "3 runs added" in said(capsys, "queue", "add", "--taskset", "hello", "--overlap", "2").err
    items = json.loads(said(capsys, "queue", "list", "--json").out)
    assert {item["trajectory"] for item in items} == set(ids(project))
    one = ids(project)[0]
    assert "1 changed" in said(capsys, "queue", "close", one[:8]).err
    assert [item["trajectory"] for item in json.loads(said(capsys, "queue", "list", "--status", "closed", "--json").out)] == [one]
    said(capsys, "queue", "open", one[:8])
    assert json.loads(said(capsys, "queue", "list", "--status", "closed", "--json").out) == []
    assert "0 runs added to the queue, 1 changed" in said(capsys, "queue", "add", "--run", one, "--overlap", "3").err


def test_pairs_of_one_task_are_queued_listed_and_closed(project, capsys):
    assert "2 pairs added to the queue, 0 changed" in said(capsys, "queue", "add", "--taskset", "hello", "--pairs", "2").err
    items = json.loads(said(capsys, "queue", "list", "--json").out)
    assert {item["trajectory"] for item in items} | {item["other"] for item in items} == set(ids(project)), (
        "every run once before one twice"
    )
    shown = f"{items[0]['trajectory'][:12]}+{items[0]['other'][:12]}"
    assert shown in said(capsys, "queue", "list").out
    said(capsys, "queue", "close", "+".join(reversed(shown.split("+"))))
    (closed,) = json.loads(said(capsys, "queue", "list", "--status", "closed", "--json").out)
    assert (closed["trajectory"], closed["other"]) == (items[0]["trajectory"], items[0]["other"])
    assert main(["queue", "add", "--taskset", "hello", "--pairs", "1", "--gold", "tone@1=5"]) == 2
    assert main(["queue", "add", "--run", ids(project)[0], "--pairs", "1"]) == 1
    assert "nothing can be compared" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("gold", "word"),
    [
        ("toen@1=5", "has no criterion toen@1"),
        ("tone@2=5", "has no criterion tone@2"),
        ("tone@1=50", "from 1 to 5"),
        ("tone@1=nan", "from 1 to 5"),
    ],
)
def test_a_right_value_that_nobody_could_give_is_refused(project, capsys, gold, word):
    assert main(["queue", "add", "--run", ids(project)[0], "--gold", gold]) == 1
    assert word in capsys.readouterr().err
    assert json.loads(said(capsys, "queue", "list", "--json").out) == []
    said(capsys, "queue", "add", "--run", ids(project)[0], "--gold", "tone@1=5")


def test_forget_names_the_training_that_acted_a_run_out(project, capsys):
    for training in ("hello-ppo-1", "hello-ppo-2"):
        (project.trainings / training).mkdir(parents=True)
        (project.trainings / training / "data.json").write_text("[]")
    with Store(project.store_url) as store:
        store.add([a_run("Lit.", "hello-ppo-1/3"), a_run("Unlit.", "hello-ppo-2/dev-1")])
        made = {run.origin.reference: run.id for run in store.trajectories()}
    out = said(capsys, "forget", "--run", made["hello-ppo-1/3"], "--run", made["hello-ppo-2/dev-1"], "--reason", "a test", "--yes").out
    assert "2 runs" in out
    assert "training hello-ppo-1 learned from some of it" in out
    assert "hello-ppo-2" not in out


def test_a_pair_with_a_known_answer_is_queued_and_what_people_say_is_counted_beside_runs(project, capsys):
    one, two, _ = ids(project)
    known = ("queue", "add", "--run", one, "--run", two, "--pairs", "1", "--by", "lea", "--gold")
    assert "1 pairs added to the queue" in said(capsys, *known, f"overall={two[:8]}", "--gold", "tone@1=both_bad").err
    (item,) = json.loads(said(capsys, "queue", "list", "--json").out)
    assert (item["is_gold"], item["gold_by"], {item["trajectory"], item["other"]}) == (True, "lea", {one, two})
    assert "gold, by lea" in said(capsys, "queue", "list").out
    assert main([*known[:-3], "--by", "lea"]) == 2
    assert "none is given" in capsys.readouterr().err
    for wrong, word in (
        ("overall=better", "no run's id"),
        ("tone=tie", "tone@1=tie"),
        ("toen@1=tie", "has no criterion toen@1"),
        (f"overall={ids(project)[2]}", "no answer about a pair"),
    ):
        assert main([*known, wrong]) != 0
        assert word in capsys.readouterr().err
    with Store(project.store_url) as store:
        queue = store.queue(Rules(gold_rate=1.0))
        hand = queue.take("ada")
        items = (Item(hand.trajectory), Item(hand.other))
        better = items if items[0].trajectory == two else items[::-1]
        word = {"taskset": "hello", "source": "human", "rater": "ada"}
        store.add_preferences([Preference(items=better, **word), Preference(items=items, tie=True, criterion="tone@1", **word)])
        queue.finish(hand.id, "ada")
    marks = json.loads(said(capsys, "queue", "gold", "--json").out)
    assert {(mark["criterion"], mark["given"] == mark["expected"], mark["other"] is None) for mark in marks} == {
        ("overall", True, False),
        ("tone@1", False, False),
    }
    shown = said(capsys, "queue", "gold").out
    assert "pairs" in shown and "lea" in shown


def test_accounts_are_made_listed_and_removed_and_no_password_is_shown(project, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("correct horse battery\n"))
    said(capsys, "users", "add", "ada", "--role", "lead")
    shown = said(capsys, "users", "list", "--json").out
    assert [(user["name"], user["role"]) for user in json.loads(shown)] == [("ada", "lead")]
    assert "horse" not in shown
    said(capsys, "users", "remove", "ada")
    assert main(["users", "remove", "ada"]) == 1
    assert "no account 'ada'" in capsys.readouterr().err


def test_forgetting_says_what_would_go_and_then_deletes_it(project, capsys):
    assert "1 runs" in said(capsys, "forget", "--text", "ada@example.org", "--reason", "asked for").out
    assert len(ids(project)) == 3
    assert "1 runs, 0 scores" in said(capsys, "forget", "--text", "ada@example.org", "--reason", "asked for", "--yes").out
    assert len(ids(project)) == 2
    said(capsys, "forget", "--run", ids(project)[0], "--reason", "asked for", "--yes")
    assert len(ids(project)) == 1
    assert main(["forget", "--reason", "nothing named", "--yes"]) == 2


def test_what_is_announced_to_go_is_what_goes_forks_included(project, capsys):
    one = ids(project)[0]
    messages = (Message(role="user", content="Switch the lamp on."), Message(role="assistant", content="No."))
    origin = Origin(kind="rollout", reference="base", task="fork")
    with Store(project.store_url) as store:
        for _fork in range(2):
            parent = store.runs().rows[0].id if _fork else one
            store.add([Trajectory(taskset="hello", messages=messages, origin=origin, parent=(parent, 0))])
        store.accounts.set("bob", "rater", "correct horse battery")
    named = ("forget", "--run", one, "--person", "bob", "--reason", "asked for")
    assert "3 runs, 0 scores and 0 preferences would go, and the account of bob." in said(capsys, *named).out
    assert len(ids(project)) == 5
    assert "3 runs, 0 scores and 0 preferences are deleted" in said(capsys, *named, "--yes").out
    assert len(ids(project)) == 2


@pytest.mark.parametrize("words", [("forget", "--reason", "asked for", "--yes"), ("queue", "add")])
def test_runs_are_named_or_filtered_and_never_both(project, capsys, words):
    assert main([*words, "--run", ids(project)[0], "--text", "lamp"]) == 2
    assert "--run names single runs" in capsys.readouterr().err
    assert len(ids(project)) == 3
    assert json.loads(said(capsys, "queue", "list", "--json").out) == []
