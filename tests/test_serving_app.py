"""The server beside its worker: clients that leave, versions that cannot be served, a base whose adapters cannot."""

import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("prometheus_client", reason="serving is an extra: pip install 'agentalign[serve]'")

from small_base import make_base
from small_server import TINY, Running, add_soft_adapter, held, promote, running, until

from agentalign.config.project import Project
from agentalign.deployment.serve import Settings, open_server
from agentalign.deployment.serving.chat import Limits
from agentalign.deployment.serving.worker import Job
from agentalign.errors import RegistryError
from agentalign.store.registry import Registry

URL = "/v1/chat/completions"
MOST = 600


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = Project.create(tmp_path_factory.mktemp("project"))
    for seed in (1, 2, 3):
        add_soft_adapter(project, TINY, name="odd", std=0.5, seed=seed)
    promote(project, "odd@1")
    return project


@pytest.fixture(scope="module")
def server(project: Project) -> Iterator[Running]:
    with running(project, settings=Settings(running=4, waiting=4, limits=Limits(max_tokens=MOST, max_context=900))) as found:
        yield found


@pytest.fixture
def jobs(server: Running, monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """What is handed in, each of it a long answer that comes steadily, a token in ten milliseconds."""
    worker, seen = server.served.chat.worker, list[Job]()
    generator, submit = worker._batch.generator, worker.submit
    forward = generator.forward

    def slowly(*given: Any) -> Any:
        time.sleep(0.01)
        return forward(*given)

    def seeing(*handed: Job) -> None:
        seen.extend(handed)
        submit(*handed)

    monkeypatch.setattr(generator, "stop_ids", frozenset())
    monkeypatch.setattr(generator, "forward", slowly)
    monkeypatch.setattr(worker, "submit", seeing)
    return seen


def leave(server: Running, model: str, *, stream: bool) -> None:
    """Ask, and go before there is an answer."""
    body = {"model": model, "messages": [{"role": "user", "content": "x"}], "max_tokens": MOST, "stream": stream}
    with httpx.Client(base_url=server.url, timeout=0.4, trust_env=False) as client, pytest.raises(httpx.ReadTimeout):
        client.post(URL, json=body)


def test_a_client_that_leaves_while_its_whole_answer_is_written_frees_its_row(server: Running, jobs: list[Job]) -> None:
    leave(server, "odd@1", stream=False)
    until(lambda: jobs and jobs[0].over)
    assert len(jobs[0].work.ids) < MOST
    until(lambda: not any(server.served.chat.adapters._used.values()))


def test_a_client_that_leaves_before_its_stream_begins_frees_its_row(server: Running, jobs: list[Job]) -> None:
    """It leaves while the adapter that it wants waits to come into memory."""
    with held(server.served.chat.worker):
        leave(server, "odd@2", stream=True)
        time.sleep(0.2)  # for the server to see it
        assert not jobs, "it was not understood yet"
    until(lambda: jobs and jobs[0].over)
    assert len(jobs[0].work.ids) < MOST
    until(lambda: not any(server.served.chat.adapters._used.values()))


def test_a_deadline_in_the_middle_of_a_prompt_frees_the_row_and_keeps_what_was_computed(
    server: Running, jobs: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = server.served.chat.worker._batch
    forward, calls = batch.generator.forward, 0

    def counting(*given: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            jobs[0].deadline = 0.0
        return forward(*given)

    asked = {"model": "odd@1", "content": "word " * 60, "max_tokens": 8}
    monkeypatch.setattr("agentalign.training.continuous.PIECE", 8)
    monkeypatch.setattr(batch.generator, "forward", counting)
    server.chat(**asked, expect=504)
    assert (calls, jobs[0].work.ids) == (3, [])
    assert not any(server.served.chat.adapters._used.values())
    again = server.chat(**asked)
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] >= 24
    server.served.chat.worker.change(lambda: list(batch.clear()))
    fresh = server.chat(**asked)
    assert fresh["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert again["choices"] == fresh["choices"]


def test_an_adapter_stays_for_a_request_that_waits_while_others_come_into_memory(server: Running, project: Project) -> None:
    names = ("odd@1", "odd@2")
    expected = [server.chat(model=name, max_tokens=8)["choices"] for name in names]
    with running(project, names[:1], settings=Settings(running=1, waiting=4, loaded=1)) as small, ThreadPoolExecutor(2) as threads:
        worker, adapters = small.served.chat.worker, small.served.chat.adapters
        with held(small.served.chat.worker):
            waits = threads.submit(small.chat, model=names[0], max_tokens=8)
            until(lambda: worker.waiting == 1)
            comes = threads.submit(small.chat, model=names[1], max_tokens=8)
            until(lambda: worker._changes)
        assert [one.result()["choices"] for one in (waits, comes)] == expected
        assert [one.result()["model"] for one in (waits, comes)] == list(names)
        assert adapters.loaded == list(names), "more than one, for as long as both were wanted"
        small.chat(model="odd@3", max_tokens=1)
        assert adapters.loaded == ["odd@3"]


def test_a_conversation_is_bound_to_no_version_that_cannot_be_served(server: Running, project: Project) -> None:
    def say(conversation: str) -> httpx.Response:
        body = {"model": "odd@production", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
        return server.client.post(URL, json=body, headers={"X-Conversation-Id": conversation})

    promote(project, "odd@3")
    weights = project.adapters / "odd" / "3" / "adapter_model.safetensors"
    weights.chmod(0o644)
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    try:
        assert say("c").status_code == 404
    finally:
        Registry(project.adapters).roll_back("odd")
    assert say("c").json()["model"] == "odd@1"


def test_a_version_that_is_being_copied_hides_no_other_one(server: Running, project: Project) -> None:
    def names() -> set[str]:
        answer = server.client.get("/v1/models")
        assert answer.status_code == 200, answer.text
        return {row["id"] for row in answer.json()["data"]}

    coming = project.adapters / "odd" / "4"
    before = names()
    coming.mkdir()
    try:
        (coming / "adapter_config.json").write_text("{}")
        assert names() == before - {"odd"}, "the bare name would be the newest version, which is not whole"
        with running(project, settings=Settings(running=1)) as small:
            assert small.chat(model="odd@production", max_tokens=1)["model"] == "odd@1"
    finally:
        shutil.rmtree(coming)
    assert names() == before


def test_stages_that_cannot_be_read_hide_no_other_adapter(server: Running, project: Project) -> None:
    torn = project.adapters / "odd" / "stages.json"
    whole = torn.read_bytes()
    torn.write_bytes(whole[:-3])
    try:
        ids = {row["id"] for row in server.client.get("/v1/models").json()["data"]}
    finally:
        torn.write_bytes(whole)
    assert "odd@1" in ids and "odd@production" not in ids


def test_a_bare_name_whose_newest_version_has_another_base_is_not_listed(server: Running, project: Project, tmp_path: Path) -> None:
    for folder, seed in ((TINY, 1), (make_base(tmp_path / "other"), 2)):
        add_soft_adapter(project, folder, name="moved", std=0.5, seed=seed)
    ids = {row["id"] for row in server.client.get("/v1/models").json()["data"]}
    assert {name for name in ids if name.startswith("moved")} == {"moved@1"}
    server.chat(model="moved", expect=404)


def test_an_adapter_that_was_trained_on_another_rounding_of_the_base_is_not_served(server: Running, project: Project) -> None:
    # The same files in NF4 are another base: one adapter did half of its tasks on it, and nothing was said.
    card = add_soft_adapter(project, TINY, name="rounded", std=0.5, seed=1, quantization="nf4")
    assert card.ref not in {row["id"] for row in server.client.get("/v1/models").json()["data"]}
    said = server.chat(model="rounded@1", expect=404)
    assert "trained on the base in nf4, and this server has it in none" in str(said)


def test_a_loaded_version_answers_while_another_one_is_on_its_way(server: Running, project: Project) -> None:
    adapters = server.served.chat.adapters
    assert adapters.acquire("odd@1") == "odd@1"
    try:
        with adapters._loading:  # as long as a version comes into memory
            assert adapters.acquire("odd@1") == "odd@1"
            adapters.release("odd@1")
    finally:
        adapters.release("odd@1")


def test_a_server_whose_adapter_cannot_be_served_leaves_no_thread_behind(project: Project) -> None:
    before = set(threading.enumerate())
    with pytest.raises(RegistryError):
        open_server(project, ("odd@1", "nobody@1"), device="cpu")
    assert not [thread for thread in set(threading.enumerate()) - before if thread.name == "agentalign-worker"]
