"""The worker's thread: one request's fault is that request's alone, nobody's row is kept for nothing, and hot swaps lose nothing."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

pytest.importorskip("prometheus_client", reason="serving is an extra: pip install 'agentalign[serve]'")

from small_server import TINY, Running, add_soft_adapter, held, promote, running, until

from agentalign.config.project import Project
from agentalign.deployment.serve import Settings
from agentalign.deployment.serving.chat import Limits
from agentalign.store.registry import Registry

URL = "/v1/chat/completions"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = Project.create(tmp_path_factory.mktemp("project"))
    for seed, std in ((1, 0.5), (2, 0.5)):
        add_soft_adapter(project, TINY, name="odd", std=std, seed=seed)
    promote(project, "odd@1")
    return project


@pytest.fixture(scope="module")
def server(project: Project) -> Iterator[Running]:
    with running(project, settings=Settings(running=4, waiting=4, limits=Limits(max_tokens=600, max_context=900))) as found:
        yield found


def ask(server: Running, content: str, **more: Any) -> httpx.Response:
    body = {"model": "odd@1", "messages": [{"role": "user", "content": content}], "max_tokens": 20, **more}
    return server.client.post(URL, json=body)


def test_a_request_that_breaks_the_batch_fails_alone(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = {i: ask(server, f"number {i}", max_tokens=40).json()["choices"] for i in range(3)}
    poison = server.served.chat.dialect.encode("poison")
    generator = server.served.chat.worker._batch.generator
    forward = generator.forward

    def breaking(ids: Any, *rest: Any) -> Any:
        if any(ids.tolist()[i : i + len(poison)] == poison for i in range(len(ids))):
            raise RuntimeError("a kernel failed")
        return forward(ids, *rest)

    monkeypatch.setattr(generator, "forward", breaking)
    with ThreadPoolExecutor(4) as threads:
        others = [threads.submit(ask, server, f"number {i}", max_tokens=40) for i in range(3)]
        broken = threads.submit(ask, server, "poison")
    assert broken.result().status_code == 500
    assert "RuntimeError" in broken.result().json()["error"]["message"]
    assert {i: one.result().json()["choices"] for i, one in enumerate(others)} == alone
    assert ask(server, "number 1", max_tokens=40).json()["choices"] == alone[1]


def poisoned(server: Running, ids: Any) -> bool:
    poison, ids = server.served.chat.dialect.encode("poison"), list(ids)
    return any(ids[i : i + len(poison)] == poison for i in range(len(ids)))


@pytest.mark.parametrize("failing", [range(1, 9), [3]])
def test_a_request_that_fails_on_its_way_into_the_batch_fails_alone(server: Running, monkeypatch: pytest.MonkeyPatch, failing: Any) -> None:
    """At every try, or only when it joins the others again after another one broke the batch and worked alone."""
    worker = server.served.chat.worker
    batch, admit, tried = worker._batch, worker._batch.admit, 0
    once = [] if 1 in failing else [RuntimeError("out of memory")]

    def full(work: Any) -> None:
        nonlocal tried
        if poisoned(server, work.context):
            tried += 1
            if tried in failing:
                raise RuntimeError("out of memory")
        elif tried and once:
            raise once.pop()
        admit(work)

    monkeypatch.setattr(batch, "admit", full)
    with ThreadPoolExecutor(3) as threads, held(server.served.chat.worker):
        first = threads.submit(ask, server, "number 1", max_tokens=40)
        until(lambda: worker.waiting == 1)
        second = threads.submit(ask, server, "poison")
        until(lambda: worker.waiting == 2)
        third = threads.submit(ask, server, "number 3", max_tokens=40)
        until(lambda: worker.waiting == 3)
    assert second.result().status_code == 500
    assert "RuntimeError" in second.result().json()["error"]["message"]
    monkeypatch.undo()
    assert first.result().json()["choices"] == ask(server, "number 1", max_tokens=40).json()["choices"]
    assert third.result().json()["choices"] == ask(server, "number 3", max_tokens=40).json()["choices"]
    assert worker.alive
    assert not any(server.served.chat.adapters._used.values()), "the adapter is free again"


def test_what_was_written_before_the_batch_broke_is_told_and_ends_what_it_ended(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = server.served.chat.worker
    generator, calls = worker._batch.generator, 0
    forward = generator.forward

    def breaking(*given: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:  # the prompts are computed, and have given a token each
            raise RuntimeError("out of memory")
        return forward(*given)

    with ThreadPoolExecutor(2) as threads:
        with held(server.served.chat.worker):
            monkeypatch.setattr(generator, "forward", breaking)
            short = threads.submit(ask, server, "a new short one", max_tokens=1, return_token_ids=True)
            long = threads.submit(ask, server, "a new long one", max_tokens=12, return_token_ids=True)
            until(lambda: worker.waiting == 2)
        broken = [one.result().json() for one in (short, long)]
    assert calls > 2
    monkeypatch.undo()
    whole = [ask(server, f"a new {name} one", max_tokens=most, return_token_ids=True).json() for name, most in (("short", 1), ("long", 12))]
    for found, expected in zip(broken, whole, strict=True):
        assert found["choices"][0]["token_ids"] == expected["choices"][0]["token_ids"]
        assert found["choices"][0]["message"] == expected["choices"][0]["message"]
        assert found["usage"]["completion_tokens"] == expected["usage"]["completion_tokens"]


def test_a_request_pays_for_no_fault_of_others_however_many(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = server.served.chat.worker
    generator = worker._batch.generator
    forward = generator.forward

    def breaking(ids: Any, *rest: Any) -> Any:
        if poisoned(server, ids.tolist()):
            raise RuntimeError("a kernel failed")
        return forward(ids, *rest)

    monkeypatch.setattr(generator, "forward", breaking)
    monkeypatch.setattr(generator, "stop_ids", frozenset())
    with ThreadPoolExecutor(2) as threads:
        long = threads.submit(ask, server, "number 1", max_tokens=600)
        until(lambda: worker.running == 1)
        for _ in range(4):
            with held(server.served.chat.worker):
                broken = threads.submit(ask, server, "poison")
                until(lambda: worker.waiting == 1)
            assert broken.result().status_code == 500
        assert not long.done(), "it was in the batch all the time"
        assert long.result().status_code == 200


def test_a_change_that_fails_is_its_callers_failure_alone(server: Running) -> None:
    with pytest.raises(ZeroDivisionError):
        server.served.chat.worker.change(lambda: print(1 / 0))
    assert ask(server, "still there?").status_code == 200


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_whatever_ends_the_thread_every_request_is_told(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    def end(*_given: Any) -> None:
        raise SystemExit  # no Exception: nothing that a request may be blamed for

    with running(project, settings=Settings(running=1, waiting=4)) as server, ThreadPoolExecutor(2) as threads:
        worker = server.served.chat.worker
        with held(server.served.chat.worker):
            monkeypatch.setattr(worker._batch.generator, "forward", end)
            found = [threads.submit(ask, server, f"number {i}") for i in range(2)]
            until(lambda: worker.waiting == 2)
        assert [one.result().status_code for one in found] == [503, 503]
        assert server.client.get("/health").status_code == 503
        assert ask(server, "number 3").status_code == 503
        assert ask(server, "hi", model="odd@2").status_code == 503, "an adapter that is not in memory yet"
        assert not any(server.served.chat.adapters._used.values())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("lost", [True, False])
def test_a_server_whose_device_is_lost_says_so(project: Project, monkeypatch: pytest.MonkeyPatch, lost: bool) -> None:
    def fail(*_given: Any) -> None:
        raise RuntimeError("device-side assert triggered")

    with running(project, settings=Settings(running=1, waiting=4)) as server:
        worker = server.served.chat.worker
        with monkeypatch.context() as patched:
            patched.setattr(worker._batch.generator, "forward", fail)
            patched.setattr("agentalign.deployment.serving.worker.answers", lambda _device: not lost)
            assert ask(server, "number 1").status_code == 500
            until(lambda: worker.alive is not lost)
        assert server.client.get("/health").status_code == (503 if lost else 200)
        assert ask(server, "number 2").status_code == (503 if lost else 200)


def test_a_client_that_goes_away_frees_its_row(server: Running) -> None:
    worker = server.served.chat.worker
    body = {"model": "base", "messages": [{"role": "user", "content": "x"}], "max_tokens": 600, "temperature": 2, "stream": True}
    with httpx.Client(base_url=server.url, timeout=60, trust_env=False) as client, client.stream("POST", URL, json=body) as answer:
        next(answer.iter_lines())
    until(lambda: worker.running == 0)
    with httpx.Client(base_url=server.url, timeout=0.2, trust_env=False) as client:
        _hold(server, client, body)
    until(lambda: worker.running == 0 and worker.waiting == 0)
    assert not any(server.served.chat.adapters._used.values())


def _hold(server: Running, client: httpx.Client, body: dict[str, Any]) -> None:
    """A whole answer that takes longer than the client waits."""
    worker = server.served.chat.worker
    stopped = threading.Event()
    blocker = threading.Thread(target=worker.change, args=(lambda: stopped.wait(1),))
    blocker.start()
    try:
        with pytest.raises(httpx.ReadTimeout):
            client.post(URL, json={**body, "stream": False})
    finally:
        stopped.set()
        blocker.join()


def test_more_than_may_wait_get_a_429_and_what_takes_too_long_a_504(server: Running) -> None:
    worker = server.served.chat.worker
    go = threading.Event()
    threading.Thread(target=worker.change, args=(lambda: go.wait(30),)).start()
    with ThreadPoolExecutor(4) as threads:
        waiting = [threads.submit(ask, server, f"waits {i}") for i in range(4)]
        until(lambda: worker.waiting == 4)
        refused = ask(server, "one too many")
        assert refused.status_code == 429
        assert refused.headers["retry-after"]
        go.set()
        assert [one.result().status_code for one in waiting] == [200] * 4
    server.served.chat.limits = server.served.chat.limits._replace(max_seconds=0)
    try:
        late = ask(server, "late")
        assert late.status_code == 504
    finally:
        server.served.chat.limits = server.served.chat.limits._replace(max_seconds=300)


def test_a_conversation_keeps_its_version_while_the_stage_moves(server: Running, project: Project) -> None:
    promote(project, "odd@1")
    begun = [{"role": "user", "content": "A long story, please."}]
    more: dict[str, Any] = {"model": "odd@production", "max_tokens": 8}

    def say(messages: list[dict[str, Any]], headers: dict[str, str] | None = None, **extra: Any) -> dict[str, Any]:
        found: dict[str, Any] = server.client.post(URL, json={**more, "messages": messages, **extra}, headers=headers).json()
        return found

    first, named = say(begun), say(begun, {"X-Conversation-Id": "c1"})
    marked = say(begun, metadata={"conversation_id": "c2"})
    promote(project, "odd@2")
    try:
        going = [*begun, first["choices"][0]["message"], {"role": "user", "content": "And then?"}]
        assert first["model"] == say(going)["model"] == "odd@1"
        assert say(begun, {"X-Conversation-Id": "c1"})["model"] == named["model"] == "odd@1"
        assert say(begun, metadata={"conversation_id": "c2"})["model"] == marked["model"] == "odd@1"
        assert say(begun)["model"] == "odd@2", "a new conversation"
        assert say(begun, {"X-Conversation-Id": "c3"})["model"] == "odd@2"
        assert say(going, model="odd@2")["model"] == "odd@2", "asked for by number"
        Registry(project.adapters).roll_back("odd")
        assert say(begun, {"X-Conversation-Id": "c4"})["model"] == "odd@1"
        assert say(begun, {"X-Conversation-Id": "c3"})["model"] == "odd@2"
    finally:
        promote(project, "odd@1")


def test_an_opening_that_another_version_answered_before_binds_no_new_conversation(server: Running, project: Project) -> None:
    add_soft_adapter(project, TINY, name="twin", std=0.5, seed=1)
    add_soft_adapter(project, TINY, name="twin", std=0.5, seed=1)
    begun = [{"role": "user", "content": "Where is my order W1042?"}]

    def say(messages: list[dict[str, Any]]) -> dict[str, Any]:
        body = {"model": "twin@production", "messages": messages, "max_tokens": 8}
        found: dict[str, Any] = server.client.post(URL, json=body).json()
        return found

    promote(project, "twin@1")
    first = say(begun)
    promote(project, "twin@2")
    again = say(begun)
    assert again["choices"] == first["choices"], "the versions agree on the first turn"
    going = [*begun, again["choices"][0]["message"], {"role": "user", "content": "And then?"}]
    assert (first["model"], again["model"], say(going)["model"]) == ("twin@1", "twin@2", "twin@2")


def test_a_candidate_answers_its_share_of_the_conversations_and_keeps_them(server: Running, project: Project) -> None:
    promote(project, "odd@1")
    promote(project, "odd@2", "candidate")
    registry = Registry(project.adapters)
    registry.set_canary("odd", 0.5)

    def who(conversation: str) -> str:
        more = {"model": "odd@production", "max_tokens": 1, "metadata": {"conversation_id": conversation}}
        return str(ask(server, "hi", **more).json()["model"])

    begun = {f"canary {i}": who(f"canary {i}") for i in range(20)}
    assert set(begun.values()) == {"odd@1", "odd@2"}
    registry.set_canary("odd", 0)
    assert {conversation: who(conversation) for conversation in begun} == begun, "they end as they began"
    assert {who(f"after {i}") for i in range(10)} == {"odd@1"}


@pytest.mark.hard
def test_a_thousand_requests_through_swaps_and_rollbacks_none_fails_and_none_is_mixed(project: Project) -> None:
    promote(project, "odd@1")
    with running(project, settings=Settings(running=8, waiting=64)) as server:
        expected = {
            (version, i): ask(server, f"question {i}", model=version, max_tokens=6).json()["choices"]
            for version in ("odd@1", "odd@2")
            for i in range(20)
        }
        assert all(expected["odd@1", i] != expected["odd@2", i] for i in range(20)), "the versions answer differently"
        done = threading.Event()

        def swap() -> None:
            while not done.is_set():
                promote(project, "odd@2")
                time.sleep(0.3)
                Registry(project.adapters).roll_back("odd")
                time.sleep(0.3)

        swapper = threading.Thread(target=swap)
        swapper.start()
        try:
            with ThreadPoolExecutor(16) as threads:
                answers = list(
                    threads.map(lambda i: (i % 20, ask(server, f"question {i % 20}", model="odd@production", max_tokens=6)), range(1000))
                )
        finally:
            done.set()
            swapper.join()
        assert {answer.status_code for _, answer in answers} == {200}
        seen = [(answer.json()["model"], i, answer.json()["choices"]) for i, answer in answers]
        assert {version for version, _, _ in seen} == {"odd@1", "odd@2"}
        assert [one for one in seen if one[2] != expected[one[0], one[1]]] == []
    promote(project, "odd@1")
