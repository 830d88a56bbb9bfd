"""The queue over HTTP, a team's logins, every route for every person, and what nobody may see while rating blind."""

import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fastapi.routing import APIRoute
from small_desk import HOME, make_desk, make_run
from starlette.testclient import TestClient

from agentalign.config.project import Project
from agentalign.errors import ConfigError
from agentalign.records.criterion import Score
from agentalign.records.preference import Item, Preference
from agentalign.records.trajectory import Trajectory
from agentalign.store.queue import Rules
from agentalign.store.store import Store
from agentalign.ui import access, auth
from agentalign.ui.api import create_api
from agentalign.ui.app import serve_ui
from agentalign.ui.team import ADDRESS_TRIES, TRIES, Tries

PASSWORD = "correct horse battery"
PEOPLE = {"ada": "rater", "bob": "rater", "lea": "lead", "max": "admin"}
PLAIN = Rules(gold_rate=0.0, repeat_rate=0.0)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = make_desk(tmp_path_factory.mktemp("team"))
    with Store(project.store_url) as store:
        for name, role in PEOPLE.items():
            store.accounts.set(name, role, PASSWORD)
    return project


@pytest.fixture(scope="module")
def store(project: Project) -> Iterator[Store]:
    with Store(project.store_url) as store:
        yield store


@pytest.fixture(scope="module")
def app(project: Project) -> Any:
    return create_api(project, rater="nobody", team=True, rules=PLAIN)


@pytest.fixture(scope="module")
def clients(app: Any) -> Iterator[dict[str, TestClient]]:
    """A client for everybody who is logged in, and one for nobody."""
    with TestClient(app, base_url=HOME, follow_redirects=False) as nobody:
        found = {"nobody": nobody}
        for name in PEOPLE:
            client = TestClient(app, base_url=HOME, follow_redirects=False)
            answer = client.post("/api/login", json={"name": name, "password": PASSWORD})
            assert answer.json() == {"rater": name, "role": PEOPLE[name]}
            assert "HttpOnly" in answer.headers["set-cookie"] and "SameSite=Strict" in answer.headers["set-cookie"]
            found[name] = client
        yield found


def mark(client: TestClient, run: str, value: float = 4) -> None:
    said = {"key": secrets.token_hex(8), "trajectory": run, "criterion": "tone@1", "value": value}
    assert client.post("/api/scores", json=said).json()["saved"] is True


# ---- the queue


def test_a_rater_takes_rates_and_finishes(clients: dict[str, TestClient], store: Store) -> None:
    run = make_run(answer="Rate me.")
    store.add([run])
    store.queue_items.add([run.id], priority={run.id: 1.0})
    ada = clients["ada"]
    hand = ada.post("/api/queue/next", json={}).json()["current"]
    assert (hand["run"], hand["lease"], set(hand)) == (run.id, 600, {"assignment", "run", "state", "left", "lease"})
    at = f"/api/queue/{hand['assignment']}"
    key = {"key": secrets.token_hex(8)}
    refusal = ada.post(f"{at}/done", json=key)
    assert refusal.status_code == 422 and "not answered yet: tone@1" in refusal.json()["detail"]
    assert ada.post(f"{at}/beat", json={}).json()["left"] == 600
    assert ada.get("/api/queue").json()["current"]["run"] == run.id
    mark(ada, run.id)
    assert ada.post(f"{at}/done", json=key).json() == {"saved": True, "id": hand["assignment"], "known": False, "late": False}
    assert ada.post(f"{at}/done", json=key).json()["known"] is True
    assert ada.get("/api/queue").json()["current"] is None
    assert clients["bob"].post(f"{at}/done", json=key).status_code == 404


def test_a_skip_is_stored_with_its_reason(clients: dict[str, TestClient], store: Store) -> None:
    run = make_run(answer="Skip me.")
    store.add([run])
    assert clients["lea"].post("/api/queue/items", json={"runs": [run.id], "overlap": 2}).json() == {"added": 1, "changed": 0}
    bob = clients["bob"]
    hand = bob.post("/api/queue/next", json={}).json()["current"]
    said = {"key": secrets.token_hex(8), "reason": "not in my language"}
    assert bob.post(f"/api/queue/{hand['assignment']}/skip", json=said).json()["saved"] is True
    listed = {item["trajectory"]: item for item in clients["lea"].get("/api/queue/items").json()["items"]}
    assert listed[hand["run"]]["skips"] == ["not in my language"]
    assert clients["lea"].post("/api/queue/items/status", json={"runs": [run.id], "status": "closed"}).json() == {"changed": 1}


# ---- blind


SECRETS = ("secret-adapter@7", "2026-01-02T03:04:05", "eve-the-other", "what eve noted")


def hide(store: Store, answer: str) -> str:
    """A run with an origin and an opinion that a rater must not learn, alone in the queue; its id."""
    store.queue_items.set_status([item.trajectory for item in store.queue_items.items()], "closed")
    run, other = make_run(answer=answer, policy="secret-adapter@7", task=answer), make_run(answer="Otherwise.", task=answer)
    store.add([run, other])
    said = {"trajectory": run.id, "criterion": "tone@1", "rater": "eve-the-other", "rater_kind": "human", "note": "what eve noted"}
    store.add_scores([Score(**said, value=2)])
    items = (Item(run.id), Item(other.id))
    store.add_preferences([Preference(taskset="desk", items=items, source="human", rater="eve-the-other", note="what eve noted")])
    store.queue_items.add([run.id], priority={run.id: 9.0}, overlap=5)
    return run.id


def answers(app: Any, client: TestClient, run: str) -> Iterator[tuple[str, str]]:
    """Every GET route of the app with this run in its place: path and what it tells."""
    for route in every(app.routes):
        if "GET" in route.methods and route.path.startswith("/api/"):
            for what, form in (("scores", "csv"), ("preferences", "jsonl"), ("scores", "jsonl")):
                path = route.path.replace("{run}", run).replace("{what}", what).replace("{form}", form)
                path = re.sub(r"\{[^}]*\}", run, path)
                yield path, client.get(path, params={"taskset": "desk"}).text


@pytest.mark.parametrize("name", ["bob", "lea", "max"])
def test_nothing_is_told_about_a_run_that_is_open_in_ones_queue(app: Any, clients: dict[str, TestClient], store: Store, name: str) -> None:
    run, client = hide(store, f"Blind for {name}."), clients[name]
    hand = client.post("/api/queue/next", json={}).json()["current"]
    assert hand["run"] == run
    told = dict(answers(app, client, run))
    assert f"/api/runs/{run}" in told and "/api/runs" in told
    for path, text in told.items():
        if "/export/" in path:
            text = "\n".join(line for line in text.splitlines() if run in line)
        if run in path or run in text:
            assert [secret for secret in SECRETS if secret in text] == [], path
    page = client.get(f"/api/runs/{run}").json()
    assert page["hidden"] is True and page["scores"] == [] and page["overall"] is None
    assert [page[field] for field in ("policy", "origin_kind", "created", "seconds")] == ["", "", "", None]
    assert client.get(f"/api/runs/{run}/tokens").status_code == 409
    for filter in ({"policy": "secret-adapter@7"}, {"text": f"Blind for {name}"}, {"task_id": f"Blind for {name}."}):
        assert run not in client.get("/api/runs", params=filter).text, filter
    mark(client, run, 5)
    assert [score["value"] for score in client.get(f"/api/runs/{run}").json()["scores"]] == [5]
    client.post(f"/api/queue/{hand['assignment']}/done", json={"key": secrets.token_hex(8)})
    assert "secret-adapter@7" in client.get(f"/api/runs/{run}").text, "afterwards everything may be seen"
    assert run in client.get("/api/runs", params={"policy": "secret-adapter@7"}).text


def test_a_rater_cannot_look_first_at_what_the_queue_may_bring(clients: dict[str, TestClient], store: Store) -> None:
    run = hide(store, "Not taken yet.")
    assert clients["ada"].get(f"/api/runs/{run}").json()["hidden"] is True
    assert run not in clients["ada"].get("/api/runs", params={"text": "not taken yet"}).text
    assert clients["lea"].get(f"/api/runs/{run}").json()["hidden"] is False
    store.queue_items.set_status([run], "closed")


@contextmanager
def repeating(project: Project, store: Store, run: Trajectory) -> Iterator[TestClient]:
    """The page of a person whose queue holds this run alone, and gives it again."""
    store.add([run])
    for item in store.queue_items.items(status="open"):
        store.queue_items.set_status([item.trajectory], "closed")
    store.queue_items.add([run.id])
    app = create_api(project, rater="solo", rules=Rules(gold_rate=0.0, repeat_rate=1.0, repeat_after=0))
    with TestClient(app, base_url=HOME) as client:
        client.get("/")
        yield client


def test_a_repeat_hides_ones_own_earlier_answer(project: Project, store: Store) -> None:
    run = make_run(answer="Twice.", taskset="desk", task="twice")
    with repeating(project, store, run) as client:
        for value in (2, 5):
            hand = client.post("/api/queue/next", json={}).json()["current"]
            assert hand["run"] == run.id
            assert client.get(f"/api/runs/{run.id}").json()["scores"] == []
            mark(client, run.id, value)
            client.post(f"/api/queue/{hand['assignment']}/done", json={"key": secrets.token_hex(8)})
    kinds = [(found.person, found.kind, found.state) for found in store.queue_items.assignments([run.id])]
    assert kinds == [("solo", "normal", "done"), ("solo", "repeat", "done")]


def test_undo_in_a_repeat_takes_back_only_what_was_said_in_it(project: Project, store: Store) -> None:
    run = make_run(answer="Undone.", task="undone")
    with repeating(project, store, run) as client:
        hand = client.post("/api/queue/next", json={}).json()["current"]
        mark(client, run.id, 5)
        client.post(f"/api/queue/{hand['assignment']}/done", json={"key": secrets.token_hex(8)})
        again = {"run": None}
        while again["run"] != run.id:  # other runs of this person may come again first
            again = client.post("/api/queue/next", json={}).json()["current"]
            if again["run"] != run.id:
                client.post(f"/api/queue/{again['assignment']}/skip", json={"key": secrets.token_hex(8), "reason": "another"})
        mark(client, run.id, 2)
        said = {"key": secrets.token_hex(8), "trajectory": run.id, "criterion": "tone@1", "status": "withdrawn"}
        assert client.post("/api/scores", json=said).json()["saved"] is True
        client.post(f"/api/queue/{again['assignment']}/skip", json={"key": secrets.token_hex(8), "reason": "cannot tell any more"})
        page = client.get(f"/api/runs/{run.id}").json()
    assert [(score["status"], score["value"]) for score in page["scores"]] == [("value", 5.0)]
    assert page["overall"] == 1.0


# ---- every route for every person


def every(routes: Any) -> Iterator[APIRoute]:
    """All routes of our own, those of included routers too."""
    for route in routes:
        if isinstance(route, APIRoute):
            yield route
        else:
            yield from every(getattr(getattr(route, "original_router", None), "routes", []))


def routes(app: Any) -> set[tuple[str, str]]:
    return {(method, route.path) for route in every(app.routes) for method in route.methods}


def test_every_route_is_in_the_table_and_the_table_is_in_security_md(app: Any) -> None:
    known = {(rule.method, rule.path) for rule in access.RULES}
    assert routes(app) - known == set(), "these routes are for admins alone until ui/access.py says who may use them"
    assert known - routes(app) == set(), "these are in ui/access.py, but no routes"
    assert access.table() in (Path(__file__).parents[1] / "SECURITY.md").read_text("utf-8"), access.table()


def test_everybody_gets_what_the_table_says_and_foreign_pages_nothing(
    app: Any, clients: dict[str, TestClient], monkeypatch: pytest.MonkeyPatch, store: Store
) -> None:
    run = make_run(answer="For everyone.", task="everyone")
    store.add([run])
    for rule in access.RULES:
        path = re.sub(r"\{[^}]*\}", "0" * 32, rule.path.replace("{run}", run.id).replace("{what}.{form}", "scores.csv"))
        for name, client in clients.items():
            if rule.path in ("/api/login", "/api/logout"):
                continue  # asked for in tests of their own: they change who somebody is
            role = PEOPLE.get(name)
            given = client.request(rule.method, path, json={} if rule.method == "POST" else None)
            expected = None if access.may(role, rule) else 401 if role is None else 403  # type: ignore[arg-type]
            if expected is None:
                assert given.status_code not in (401, 403), (rule, name, given.text)
            else:
                assert given.status_code == expected, (rule, name, given.text)
            foreign = client.request(rule.method, path, json={}, headers={"Origin": "https://evil.example"})
            assert foreign.status_code == 403, (rule, name)
    monkeypatch.setattr(auth, "TEAM_SECONDS", -1)
    for rule in access.RULES:
        if rule.role is not None and rule.path != "/api/logout":
            path = re.sub(r"\{[^}]*\}", "0" * 32, rule.path.replace("{what}.{form}", "scores.csv"))
            assert clients["max"].request(rule.method, path, json={}).status_code == 401, rule


def test_a_route_that_is_not_in_the_table_is_for_admins_alone(project: Project) -> None:
    app = create_api(project, rater="nobody", team=True)

    @app.get("/api/forgotten-line")
    def forgotten() -> str:
        return "told"

    with TestClient(app, base_url=HOME) as client:
        for name, status in (("ada", 403), ("lea", 403), ("max", 200)):
            client.post("/api/login", json={"name": name, "password": PASSWORD})
            assert client.get("/api/forgotten-line").status_code == status, name


# ---- logins


def test_nobody_is_sent_to_the_login_page(clients: dict[str, TestClient]) -> None:
    page = clients["nobody"].get("/")
    assert (page.status_code, page.headers["location"]) == (303, "/login")
    login = clients["nobody"].get("/login")
    assert login.status_code == 200 and "password" in login.text
    assert "frame-ancestors 'none'" in login.headers["content-security-policy"] and login.headers["cache-control"] == "no-store"


def test_logging_out_ends_the_session_and_the_page_is_told_where_there_is_one(project: Project) -> None:
    with TestClient(create_api(project, rater="nobody", team=True), base_url=HOME, follow_redirects=False) as client:
        client.post("/api/login", json={"name": "bob", "password": PASSWORD})
        assert client.get("/api/session").json()["team"] is True
        assert client.post("/api/logout", json={}).json() == {"left": True}
        assert client.get("/api/session").status_code == 401
        assert client.get("/").headers["location"] == "/login"
    with TestClient(create_api(project, rater="solo"), base_url=HOME) as alone:
        alone.get("/")
        assert alone.get("/api/session").json()["team"] is False


def test_guessing_passwords_is_slowed_down(project: Project) -> None:
    with TestClient(create_api(project, rater="nobody", team=True), base_url=HOME) as client:
        wrong = {"name": "ada", "password": "wrong horse battery"}
        codes = [client.post("/api/login", json=wrong).status_code for _ in range(TRIES + 1)]
        assert codes == [401] * TRIES + [429]
        assert client.post("/api/login", json={"name": "ada", "password": PASSWORD}).status_code == 429
        assert client.post("/api/login", json={"name": "bob", "password": PASSWORD}).status_code == 200


def test_a_flood_of_guesses_shuts_the_login_for_where_it_comes_from_alone() -> None:
    tries = Tries()
    flood = [tries.begin((f"n{number}", "203.0.113.9")) for number in range(100)]
    assert flood == [True] * ADDRESS_TRIES + [False] * (100 - ADDRESS_TRIES)
    assert not tries.begin(("ada", "203.0.113.9")) and tries.begin(("ada", "10.0.0.1"))
    elsewhere = [tries.begin((f"n{number}", f"198.51.100.{number}")) for number in range(200)]
    assert all(elsewhere), "who has not tried of late is heard"
    assert not tries.begin(("n1", "198.51.100.1")), "who has, waits while so many try"


def test_a_removed_account_or_a_new_password_ends_the_session_at_once(project: Project, store: Store) -> None:
    store.accounts.set("eve", "rater", PASSWORD)
    with TestClient(create_api(project, rater="nobody", team=True), base_url=HOME) as client:
        client.post("/api/login", json={"name": "eve", "password": PASSWORD})
        assert client.get("/api/session").json()["role"] == "rater"
        store.accounts.set("eve", "rater", "another horse battery")
        assert client.get("/api/session").status_code == 401
        client.post("/api/login", json={"name": "eve", "password": "another horse battery"})
        assert client.get("/api/session").status_code == 200
        store.accounts.remove("eve")
        assert client.get("/api/session").status_code == 401
    with TestClient(create_api(project, rater="solo"), base_url=HOME) as alone:
        alone.get("/")
        cookie = alone.headers | {"Cookie": "; ".join(f"{name}={value}" for name, value in alone.cookies.items())}
    with TestClient(create_api(project, rater="nobody", team=True), base_url=HOME) as client:
        assert client.get("/api/session", headers=cookie).status_code == 401, "one's own machine's cookie is none of a team's"


def test_a_team_reaches_its_server_by_its_own_name_only(project: Project) -> None:
    home = "https://rate.example.org"
    with TestClient(create_api(project, rater="nobody", team=True, home=home), base_url=home) as client:
        answer = client.post("/api/login", json={"name": "ada", "password": PASSWORD}, headers={"Origin": home})
        assert answer.status_code == 200 and "; Secure" in answer.headers["set-cookie"]
        assert client.get("/api/session", headers={"Host": "evil.example"}).status_code == 400
        assert client.get("/api/session", headers={"Origin": "http://rate.example.org"}).status_code == 403


def test_a_server_for_others_needs_accounts_and_tls(project: Project, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no login yet.*agentalign ui --team"):
        serve_ui(project, host="0.0.0.0")
    with pytest.raises(ConfigError, match=r"no accounts yet.*agentalign users add"):
        serve_ui(make_desk(tmp_path / "empty"), team=True)
    with pytest.raises(ConfigError, match="in the clear"):
        serve_ui(project, host="0.0.0.0", team=True)
    for url in ("http://rate.example.org", "https://rate.example.org/path", "https://user@rate.example.org"):
        with pytest.raises(ConfigError, match="has to be https"):
            serve_ui(project, team=True, home=url)
