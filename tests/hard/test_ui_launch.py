"""Trainings started from the page are processes of their own: they outlive the server, stop when asked, and go on."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from agentalign.environments.taskset import load_taskset
from agentalign.environments.worker import WorkerPool
from agentalign.rollouts.collect import choose_jobs, collect
from agentalign.rollouts.policy import ExpertPolicy
from agentalign.store.registry import Registry
from agentalign.store.store import Store
from agentalign.ui.api import create_api
from tests.small_desk import HOME
from tests.small_project import SFT, make_scored

pytestmark = pytest.mark.hard

SETTINGS = {name: str(value) for name, value in SFT.items()} | {"max_steps": "40", "eval_every_steps": "20", "save_every_steps": "1"}
PATIENCE = 240
SERVER = """
import json, os, signal, sys, time
from pathlib import Path
from starlette.testclient import TestClient
from agentalign.config.project import Project
from agentalign.ui.api import create_api

client = TestClient(create_api(Project(Path(sys.argv[1])), rater="rater"), base_url=sys.argv[2])
client.get("/")
plan = client.post("/api/trainings/plans", json={"recipe": "sft", "settings": json.loads(sys.argv[3])}).json()
while plan["state"] == "working":
    time.sleep(0.3)
    plan = client.get("/api/trainings/plans/" + plan["plan"]).json()
assert plan["state"] == "ready", plan
started = client.post("/api/trainings", json={"plan": plan["plan"]}).json()
print(json.dumps({"figures": plan["figures"], **started}), flush=True)
os.killpg(0, signal.SIGKILL)
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return make_scored(tmp_path_factory.mktemp("project"))


def wait_for(client, id, wanted):
    deadline = time.monotonic() + PATIENCE
    while True:
        page = client.get(f"/api/trainings/{id}").json()
        if wanted(page["row"]):
            return page
        assert time.monotonic() < deadline, page
        time.sleep(0.2)


def test_a_training_outlives_its_server_stops_when_asked_and_goes_on_with_the_data_that_was_frozen(project):
    command = [sys.executable, "-c", SERVER, str(project.root), HOME, json.dumps(SETTINGS)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as server:
        said, _ = server.communicate(timeout=PATIENCE)
    assert server.returncode == -signal.SIGKILL, "the server and all of its process group are gone"
    told = json.loads(said)
    folder = project.trainings / told["id"]
    frozen = (folder / "data.json").read_text()
    assert told["figures"]["items"] == {"runs": len(json.loads(frozen))}
    assert told["figures"]["training"]["id"] == told["id"]

    with TestClient(create_api(project, rater="rater"), base_url=HOME) as client:
        client.get("/")
        wait_for(client, told["id"], lambda row: row["state"] == "running" and row["step"] >= 2)
        taskset = load_taskset("toy_desk", project.tasks)
        with Store(project.store_url) as store, WorkerPool(taskset) as pool:  # newer runs wait for the next training
            collect(store, taskset, ExpertPolicy(pool), choose_jobs(taskset, "train", limit=36), pool=pool)
        assert client.post(f"/api/trainings/{told['id']}/stop", json={}).json() == {"asked": True}
        stopped = wait_for(client, told["id"], lambda row: row["state"] != "running")
        assert stopped["row"]["state"] == "stopped"
        assert "is saved" in stopped["row"]["note"]
        assert client.post(f"/api/trainings/{told['id']}/stop", json={}).status_code == 422

        assert client.post(f"/api/trainings/{told['id']}/resume", json={}).json() == {"started": True}
        done = wait_for(client, told["id"], lambda row: row["state"] in ("done", "failed"))
        assert done["row"]["state"] == "done", done["log"]
        assert (folder / "data.json").read_text() == frozen
        card, _ = Registry(project.adapters).resolve(done["row"]["adapter"])
        assert card.data_counts["expert"] == len(json.loads(frozen))
        assert [look["step"] for look in done["evaluations"]] == [20, 40]
        assert all(look["runs"] for look in done["evaluations"])

        promote = f"/api/adapters/{card.ref.replace('@', '/')}/promote"
        refused = client.post(promote, json={"stage": "production"})
        assert refused.status_code == 422
        assert "never evaluated" in refused.json()["detail"]
        forced = client.post(promote, json={"stage": "production", "reason": "a test"})
        assert forced.json()["forced"] == "a test (rater)"
        assert client.get(f"/api/trainings/{told['id']}").json()["stages"] == ["production"]


def test_what_cannot_be_trained_is_a_sentence(project):
    with TestClient(create_api(project, rater="rater"), base_url=HOME) as client:
        client.get("/")
        wrong = client.post("/api/trainings/plans", json={"recipe": "sft", "settings": {"taskset": "toy_desk", "learning_rate": "fast"}})
        assert wrong.status_code == 422
        assert "learning_rate" in wrong.json()["detail"]
        plan = client.post("/api/trainings/plans", json={"recipe": "dpo", "settings": {**SETTINGS, "taskset": "no_such_desk"}})
        if plan.status_code == 200:
            token, deadline = plan.json()["plan"], time.monotonic() + PATIENCE
            while (told := client.get(f"/api/trainings/plans/{token}").json())["state"] == "working" and time.monotonic() < deadline:
                time.sleep(0.2)
            assert told["state"] == "refused"
            assert "no_such_desk" in told["reason"]
            assert client.post("/api/trainings", json={"plan": token}).status_code == 422


def test_settings_that_came_to_be_another_training_are_refused(project, tmp_path):
    file = Path(tmp_path) / "sft.yaml"
    file.write_text(json.dumps({**SFT, "max_steps": 1, "training": "toy_desk-sft-000000000000"}))
    command = [sys.executable, "-m", "agentalign", "train", "sft", str(file)]
    done = subprocess.run(command, cwd=project.root, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert done.returncode == 1
    assert "toy_desk-sft-000000000000 was asked for" in done.stderr
