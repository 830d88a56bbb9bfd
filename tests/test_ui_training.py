"""The training screen's routes: the folder is the truth about what runs, and every evaluation leads to its runs."""

import json
import os
import subprocess
import sys
from unittest.mock import Mock

from small_desk import make_run
from small_ui import desk_fixtures

from agentalign import strict_yaml
from agentalign.recipes.begun import BESIDE_FILE, write_whole
from agentalign.recipes.process import LAUNCH_FILE, LOCK_FILE, read_process, write_process
from agentalign.records.adapter import Training
from agentalign.records.preference import Item, Preference
from agentalign.store.store import Store
from agentalign.training.metrics import write_plan, write_row
from agentalign.ui import launch, trainings

ID = "desk-sft-0123456789ab"


project, store, client = desk_fixtures()


def training(**fields):
    config = json.dumps({"taskset": "desk", "learning_rate": 0.001, "start": None, "origins": ["expert"]})
    return Training(**{"id": ID, "recipe": "sft", "taskset": "desk", "config": config, "data_digest": "d" * 32, **fields})


def make_training(project, store, **fields):
    made = training(**fields)
    store.save_training(made)
    folder = project.trainings / made.id
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "data.json").write_text(json.dumps(["a", "b"]))
    write_plan(folder, 4)
    for step in (1, 2):
        write_row(folder / "metrics.jsonl", step, {"loss": 1 / step, "seconds": 10.0})
    write_row(folder / "metrics.jsonl", 2, {"eval/score": 0.5, "eval/success": 0.25})
    return folder


def test_a_training_whose_process_is_gone_was_interrupted(client, project, store):
    folder = make_training(project, store)
    assert client.get("/api/trainings").json()["rows"][0]["state"] == "interrupted"
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        write_process(folder / LOCK_FILE, other.pid)
        row = client.get("/api/trainings").json()["rows"][0]
        assert (row["state"], row["step"], row["total"], row["seconds_left"]) == ("running", 2, 4, 20.0)
        other.kill()
    assert client.get(f"/api/trainings/{ID}").json()["row"]["state"] == "interrupted"
    store.save_training(training(status="done", adapter="desk@1", note="kept step 2"))
    assert client.get(f"/api/trainings/{ID}").json()["row"]["state"] == "done"


def test_a_training_that_was_started_here_and_did_not_begin_says_so(client, project, store):
    folder = make_training(project, store, status="stopped", note=trainings.NOT_BEGUN)
    assert client.get(f"/api/trainings/{ID}").json()["row"]["note"] == trainings.NOT_BEGUN, "nothing was launched yet"
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        write_process(folder / LAUNCH_FILE, child.pid)
        assert client.get(f"/api/trainings/{ID}").json()["row"]["state"] == "starting"
        child.kill()
    row = client.get(f"/api/trainings/{ID}").json()["row"]
    assert (row["state"], row["note"]) == ("stopped", "ended before it began; its words say why")


def test_a_pid_that_is_used_again_is_another_process(tmp_path):
    file = tmp_path / ".lock"
    write_process(file, os.getpid())
    assert read_process(file) == os.getpid()
    pid, started = file.read_text().split()
    file.write_text(f"{pid} {int(started) - 1}\n")
    assert read_process(file) is None
    for text in ("", "x", "1", "999999999 1"):
        file.write_text(text)
        assert read_process(file) is None


def test_a_page_shows_settings_data_and_evaluations_with_their_runs(client, project, store):
    make_training(project, store, status="done")
    store.add([make_run(policy=f"{ID}/dev-2", sample=n) for n in range(3)])
    page = client.get(f"/api/trainings/{ID}").json()
    assert {one["name"]: one["value"] for one in page["settings"]} == {
        "taskset": "desk", "learning_rate": "0.001", "start": "null", "origins": "expert",
    }  # fmt: skip
    assert (page["items"], page["stages"], page["log"]) == (2, [], "")
    (look,) = page["evaluations"]
    assert look == {"step": 2, "score": 0.5, "success": 0.25, "runs": 3, "policy": f"{ID}/dev-2"}
    assert client.get("/api/runs", params={"policy": look["policy"]}).json()["total"] == 3


def test_curves_are_sent_once_and_then_only_when_there_is_more(client, project, store):
    folder = make_training(project, store)
    url = f"/api/trainings/{ID}/curves?name=loss&name=nothing"
    first = client.get(url).json()
    assert first["curves"] == {"loss": [[1, 2], [1.0, 0.5]], "nothing": [[], []]}
    assert set(first["names"]) == {"loss", "seconds", "eval/score", "eval/success"}
    assert client.get(f"{url}&seen={first['rows']}").json()["unchanged"]
    write_row(folder / "metrics.jsonl", 3, {"loss": 0.1})
    again = client.get(f"{url}&seen={first['rows']}").json()
    assert not again["unchanged"]
    assert again["curves"]["loss"] == [[1, 2, 3], [1.0, 0.5, 0.1]]


def test_an_alarm_reaches_the_page(client, project, store):
    folder = make_training(project, store)
    write_row(folder / "metrics.jsonl", 3, {"loss": float("nan"), "skipped": 1.0})
    (alarm,) = client.get(f"/api/trainings/{ID}/curves").json()["alarms"]
    assert (alarm["name"], alarm["level"], alarm["step"]) == ("not finite", "warn", 3)


def test_votes_are_read_from_blind_comparisons_of_dev_runs(store):
    made = training()
    start, later, other = (make_run(policy=policy, answer=policy) for policy in (f"{ID}/dev-0", f"{ID}/dev-2", "base"))
    runs = [run.model_copy(update={"split": "dev"}) for run in (start, later, other)]
    store.add(runs)

    def vote(best, worst, **fields):
        items = (Item(best.id), Item(worst.id))
        return Preference(**{"taskset": "desk", "items": items, "source": "human", "rater": "r", "left": best.id, **fields})

    counted = [vote(start, later), vote(later, start), vote(later, start, tie=True)]
    others = [vote(later, other), vote(later, start, left=None)]
    assert trainings.votes(store, made, [*counted, *others]) == [(2, 0.0), (2, 1.0), (2, 0.5)]


def test_what_the_machine_refuses_is_a_sentence(client, project, store, monkeypatch):
    folder = make_training(project, store)
    (folder / trainings.LOG_FILE).mkdir()
    refused = client.post(f"/api/trainings/{ID}/resume", json={})
    assert refused.status_code == 422 and "output.log" in refused.json()["detail"] and "mend the rights" in refused.json()["detail"]
    store.save_training(training(status="running"))
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        write_process(folder / LOCK_FILE, child.pid)
        for error, words in ((PermissionError, "another account"), (ProcessLookupError, "ended just now")):
            with monkeypatch.context() as patched:
                patched.setattr(os, "kill", Mock(side_effect=error))
                refused = client.post(f"/api/trainings/{ID}/stop", json={})
            assert refused.status_code == 422 and words in refused.json()["detail"]
        child.kill()


def test_settings_of_a_training_that_was_begun_elsewhere_are_those_that_were_given(client, project, store, monkeypatch):
    config = json.dumps({"taskset": "desk", "base": "/models/\U00020bb7"})
    made = training(config=config)
    store.save_training(made)
    (project.trainings / ID).mkdir(parents=True, exist_ok=True)
    beside = {"report_to": "wandb", "gradient_checkpointing": True}
    write_whole(project.trainings / ID / BESIDE_FILE, beside)
    monkeypatch.setattr(launch, "_launch", lambda *_: None)
    launch.resume(project, made)
    assert strict_yaml.load(project.trainings / ID / launch.SETTINGS_FILE) == {**json.loads(config), **beside, "training": ID}


def test_a_page_does_not_keep_what_is_started_from_it_off_the_hub():
    program = "from agentalign.ui import pages; from agentalign.ui.launch import environment; print(environment().get('HF_HUB_OFFLINE'))"
    outside = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    for own in ({}, {"HF_HUB_OFFLINE": "1"}):
        done = subprocess.run([sys.executable, "-c", program], env=outside | own, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == own.get("HF_HUB_OFFLINE", "None")


def test_comparisons_are_read_for_a_training_that_has_runs_to_compare_and_not_at_every_look(client, project, store, monkeypatch):
    make_training(project, store)
    read, asked = Store.preferences, []
    monkeypatch.setattr(Store, "preferences", lambda *arguments: asked.append(arguments) or read(*arguments))
    look = f"/api/trainings/{ID}/curves"
    assert client.get(look).status_code == 200 and asked == []
    start, later = (make_run(policy=f"{ID}/dev-{step}", answer=str(step)).model_copy(update={"split": "dev"}) for step in (0, 2))
    store.add([start, later])
    store.add_preferences([Preference(taskset="desk", items=(Item(start.id), Item(later.id)), source="human", rater="r", left=start.id)])
    assert [client.get(look).status_code for _ in range(2)] == [200, 200]
    assert len(asked) == 1


def test_what_is_not_there_is_404_and_nobody_is_told_anything(client, project, store):
    make_training(project, store)
    assert client.get("/api/trainings/desk-sft-ffffffffffff").status_code == 404
    for odd in ("..", "..%2f..%2fetc-0123456789ab", "x"):
        assert client.get(f"/api/trainings/{odd}").status_code in (404, 422)
    client.cookies.clear()
    for path in ("/api/trainings", f"/api/trainings/{ID}", f"/api/trainings/{ID}/curves"):
        assert client.get(path).status_code == 401
