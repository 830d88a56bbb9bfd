"""Deploy-checks from the pages: told, started in a process of their own, and held against by promotion."""

import time
from collections.abc import Iterator
from typing import Any

import pytest
from small_base import add_adapter, make_base
from small_desk import HOME, HOSTILE
from starlette.testclient import TestClient

from agentalign.config.project import Project
from agentalign.records.adapter import GateCheck, GateReport
from agentalign.store.registry import Registry
from agentalign.ui.api import create_api

URL = "/api/adapters/hello/1"
PATIENCE = 300


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """hello@1 and hello@2, without golden prompts and never evaluated."""
    project = Project.create(tmp_path_factory.mktemp("project"))
    base = make_base(project.root / "base")
    for seed in (1, 2):
        add_adapter(project, base, seed=seed)
    return project


@pytest.fixture(scope="module")
def client(project: Project) -> Iterator[TestClient]:
    with TestClient(create_api(project, rater="lea"), base_url=HOME) as client:
        client.get("/")
        yield client


def when_over(client: TestClient, url: str) -> Any:
    deadline = time.monotonic() + PATIENCE
    while (told := client.get(url).json())["working"] and time.monotonic() < deadline:
        assert told["step"]
        time.sleep(0.2)
    assert not told["working"]
    return told


def test_reports_are_told_newest_first_and_of_the_version_alone(client: TestClient, project: Project) -> None:
    registry = Registry(project.adapters)
    assert client.get("/api/adapters/hello/2/checks").json()["state"] == ""
    for passed, detail in ((False, HOSTILE[1]), (True, "fine")):
        check = GateCheck(name="log-probs", passed=passed, detail=detail)
        registry.keep("hello@2", GateReport(adapter="hello@2", content=registry.content("hello@2"), target=HOSTILE[0], checks=(check,)))
    told = client.get("/api/adapters/hello/2/checks").json()
    assert (told["state"], [one["state"] for one in told["reports"]]) == ("green", ["green", "red"])
    assert told["reports"][1]["checks"] == [{"name": "log-probs", "verdict": "failed", "detail": HOSTILE[1]}]
    assert told["reports"][0]["target"] == HOSTILE[0]
    assert client.get(f"{URL}/checks").json()["reports"] == []
    assert client.get("/api/adapters/hello/9/checks").status_code == 404
    assert client.post("/api/adapters/nobody/1/checks", json={}).status_code == 404


def test_a_check_runs_in_a_process_of_its_own_and_leaves_its_report_beside_the_version(client: TestClient, project: Project) -> None:
    begun = client.post(f"{URL}/checks", json={}).json()
    assert begun["working"]
    refused = client.post("/api/adapters/hello/2/checks", json={})
    assert refused.status_code == 422 and "hello@1 is being checked" in refused.json()["detail"]
    told = when_over(client, f"{URL}/checks")
    assert (told["state"], told["reason"]) == ("not measured", "")
    assert told["reports"][0]["checks"][0]["verdict"] == "failed, not measured"
    assert [report.state for report in Registry(project.adapters).checks("hello@1")] == ["not measured"]
    # Where no report came, its words are told.
    file = project.adapters / "hello" / "2" / "adapter_model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-10])
    try:
        client.post("/api/adapters/hello/2/checks", json={})
        told = when_over(client, "/api/adapters/hello/2/checks")
    finally:
        file.write_bytes(whole)
    assert "is damaged" in told["reason"]
    assert client.get(f"{URL}/checks").json()["reason"] == "", "of another version"


def test_without_a_green_check_promotion_wants_a_reason_and_keeps_whose_it_is(client: TestClient, project: Project) -> None:
    for reason in ("", "   "):
        refused = client.post(f"{URL}/promote", json={"stage": "candidate", "reason": reason})
        assert refused.status_code == 422 and "deploy-check" in refused.json()["detail"]
    report = client.post(f"{URL}/promote", json={"stage": "candidate", "reason": "compared by hand"}).json()
    assert {check["name"]: check["passed"] for check in report["checks"]}["deploy-check"] is False
    assert Registry(project.adapters).history("hello")[-1].gate.forced == "compared by hand (lea)"
    assert client.get(f"{URL}/checks").json()["stages"] == ["candidate"]
    assert client.post(f"{URL}/promote", json={"stage": "previous", "reason": "x"}).status_code == 422
