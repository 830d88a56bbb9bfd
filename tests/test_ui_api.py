"""The routes behind the pages: who may come in, what is shown, and when a mark counts."""

import json
import secrets
from collections.abc import Sequence
from typing import Annotated

import pytest
from fastapi import Depends, HTTPException, Request
from small_base import make_base
from small_desk import HOME, HOSTILE, make_run
from small_ui import desk_fixtures
from starlette.datastructures import Headers
from starlette.testclient import TestClient

from agentalign.config.project import Project
from agentalign.errors import ConfigError
from agentalign.records.criterion import Criterion, Score
from agentalign.records.trajectory import Message, Origin, ToolCall, Trajectory
from agentalign.scoring.corrected import Act, correct_step
from agentalign.store.adding import AddReport
from agentalign.store.filters import RunFilter
from agentalign.store.store import Store
from agentalign.ui import views
from agentalign.ui.api import create_api
from agentalign.ui.app import serve_ui
from agentalign.ui.auth import MAX_BODY_BYTES, PERSON, Person, Role, project_signer, require, require_admin, require_lead

project, store, client = desk_fixtures()


def mark(run: Trajectory, **fields: object) -> dict[str, object]:
    return {"key": secrets.token_hex(8), "trajectory": run.id, "criterion": "tone@1", "value": 4, **fields}


# ---- who may come in


def test_a_request_for_another_host_is_refused(client: TestClient) -> None:
    for host in ("evil.example", "127.0.0.1.evil.example", "evil.example:7860", "localhost:x", ""):
        assert client.get("/api/session", headers={"Host": host}).status_code == 400, host
    for host in ("localhost:9999", "127.0.0.1", "[::1]:7860"):
        assert client.get("/api/session", headers={"Host": host}).status_code == 200, host


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://127.0.0.1:7861", "https://127.0.0.1:7860", "http://localhost:7860"]
)
def test_another_page_can_neither_read_nor_rate(client: TestClient, store: Store, origin: str) -> None:
    run = make_run()
    store.add([run])
    for answer in (
        client.get("/api/session", headers={"Origin": origin}),
        client.post("/api/scores", json=mark(run), headers={"Origin": origin}),
        client.options("/api/scores", headers={"Origin": origin, "Access-Control-Request-Method": "POST"}),
    ):
        assert answer.status_code == 403
        assert not [name for name in answer.headers if name.startswith("access-control")]
    assert client.post("/api/scores", json=mark(run), headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
    assert store.scores() == []
    assert client.post("/api/scores", json=mark(run), headers={"Origin": HOME}).status_code == 200


def test_without_the_signed_cookie_nothing_is_told_or_taken(project: Project, store: Store) -> None:
    run = make_run()
    store.add([run])
    with TestClient(create_api(project, rater="rater"), base_url=HOME) as nobody:
        assert nobody.get("/api/session").status_code == 401
        assert nobody.get(f"/api/runs/{run.id}").status_code == 401
        assert nobody.get("/api/export/scores.csv").status_code == 401
        assert nobody.post("/api/scores", json=mark(run)).status_code == 401
        page = nobody.get("/")
        name, value = next(iter(nobody.cookies.items()))
        assert "HttpOnly" in page.headers["set-cookie"]
        assert "SameSite=Strict" in page.headers["set-cookie"]
        assert nobody.get("/api/session").json()["rater"] == "rater"
        nobody.cookies.clear()
        # Not the last character: its lowest bits are padding, and another one may say the same signature.
        said, signature = value.rsplit(".", 1)
        forged = {"Cookie": f"{name}={said}.{'A' if signature[0] != 'A' else 'B'}{signature[1:]}"}
        assert nobody.get("/api/session", headers=forged).status_code == 401
        assert nobody.get("/api/session", headers={"Cookie": f"{name}=eve"}).status_code == 401
    with TestClient(create_api(project, rater="rater"), base_url=HOME) as later:
        assert later.get("/api/session", headers={"Cookie": f"{name}={value}"}).status_code == 200, "a restart ends no session"


def test_who_rates_is_never_read_from_the_payload(client: TestClient, store: Store) -> None:
    run = make_run()
    store.add([run])
    assert client.post("/api/scores", json=mark(run, rater="eve")).status_code == 422
    assert client.post("/api/scores?rater=eve", json=mark(run)).status_code == 200
    assert [score.rater for score in store.scores()] == ["rater"]


def test_the_one_person_of_this_machine_is_admin_and_nobody_is_nothing(project: Project) -> None:
    app = create_api(project, rater="rater")

    @app.get("/api/for-leads")
    def for_leads(person: Annotated[str, Depends(require_lead)]) -> str:
        return person

    @app.get("/api/for-admins")
    def for_admins(person: Annotated[str, Depends(require_admin)]) -> str:
        return person

    with TestClient(app, base_url=HOME) as client:
        assert [client.get(path).status_code for path in ("/api/for-leads", "/api/for-admins")] == [401, 401]
        client.get("/")
        assert [client.get(path).json() for path in ("/api/for-leads", "/api/for-admins")] == ["rater", "rater"]


@pytest.mark.parametrize(("role", "refused"), [("rater", ["lead", "admin"]), ("lead", ["admin"]), ("admin", [])])
def test_a_role_may_do_what_those_below_it_may(role: Role, refused: list[Role]) -> None:
    request = Request({"type": "http", PERSON: Person("ada", role)})
    wanted: tuple[Role, ...] = ("rater", "lead", "admin")
    for asked in wanted:
        if asked not in refused:
            assert require(request, asked) == ("ada", role)
            continue
        with pytest.raises(HTTPException, match=f"needs the role {asked}; ada is {role}") as error:
            require(request, asked)
        assert error.value.status_code == 403


def test_a_body_over_the_cap_is_refused_however_it_is_sent(client: TestClient, store: Store) -> None:
    run = make_run()
    store.add([run])
    big = json.dumps(mark(run, note="x" * MAX_BODY_BYTES)).encode()
    typed = {"Content-Type": "application/json"}
    assert client.post("/api/scores", content=big, headers=typed).status_code == 413
    chunks = (big[at : at + 8192] for at in range(0, len(big), 8192))
    assert client.post("/api/scores", content=chunks, headers=typed).status_code == 413
    assert store.scores() == []


def test_cookies_of_others_on_this_machine_do_not_hide_ours() -> None:
    signer = project_signer(b"secret")
    own = f"{signer.cookie}={signer.sign('ada')}"
    for others in (f'prefs={{"a": 1}}; {own}', f"{own}; x=a b", f"{signer.cookie}=forged; {own}", f"theme=dark;{own}", f"\xe4=1; {own}"):
        assert signer.read(Headers({"cookie": others})) == ("ada", ""), others
    split = Headers(raw=[(b"cookie", b"prefs=1"), (b"cookie", own.encode())])
    assert signer.read(split) == ("ada", "")
    assert signer.read(Headers({"cookie": f"{signer.cookie}=forged"})) is None


def test_a_save_from_the_page_of_somebody_else_is_not_taken(client: TestClient, store: Store) -> None:
    run = make_run()
    store.add([run])
    refused = client.post("/api/scores", json=mark(run), headers={"X-Agentalign-Rater": "b%C3%B6b"})
    assert refused.status_code == 401 and "logged in as rater" in refused.json()["detail"]
    assert store.scores() == []
    assert client.post("/api/scores", json=mark(run), headers={"X-Agentalign-Rater": "rater"}).status_code == 200


def test_every_answer_carries_the_security_headers(client: TestClient) -> None:
    for path in ("/", "/api/session", "/ui/main.js", "/nothing"):
        headers = client.get(path).headers
        assert "frame-ancestors 'none'" in headers["content-security-policy"], path
        assert "connect-src 'self'" in headers["content-security-policy"], path
        assert headers["x-content-type-options"] == "nosniff", path
        assert headers["x-frame-options"] == "DENY", path


def test_the_pages_are_served_to_this_machine_only(project: Project) -> None:
    for host in ("0.0.0.0", "192.168.1.5", "::"):
        with pytest.raises(ConfigError, match=r"no login yet.*ssh -L"):
            serve_ui(project, host=host)


# ---- what is shown


def test_text_from_runs_arrives_as_it_was_written(client: TestClient, store: Store) -> None:
    for text in HOSTILE:
        run = make_run(text, answer=text, result=text, task=None)
        store.add([run])
        answer = client.get(f"/api/runs/{run.id}")
        assert answer.headers["content-type"] == "application/json"
        assert answer.content.isascii()
        entries = answer.json()["timeline"]
        assert [entries[1]["text"], entries[2]["calls"][0]["result"], entries[3]["text"]] == [text, text, text]
    rows = client.get("/api/runs").json()["rows"]
    assert {row["excerpt"] for row in rows} == set(HOSTILE)


def test_a_result_stands_with_its_call_and_a_stray_one_alone() -> None:
    calls = (ToolCall(id="a", name="first"), ToolCall(id="b", name="second"), ToolCall(id="c", name="third"))
    messages = (
        Message(role="assistant", content="Looking.", tool_calls=calls),
        Message(role="tool", content="two", tool_call_id="b"),
        Message(role="tool", content="one", tool_call_id="a", error=True),
        Message(role="tool", content="stray", tool_call_id="z", name="other"),
        Message(role="assistant", content="Done."),
    )
    run = Trajectory(taskset="desk", messages=messages, origin=Origin(kind="import", reference="file"))
    first, stray, last = views.timeline(run.messages, run.steps)
    assert [(call.name, call.result, call.error) for call in first.calls] == [
        ("first", "one", True),
        ("second", "two", False),
        ("third", None, False),
    ]
    assert (stray.kind, stray.tool, stray.text) == ("tool", "other", "stray")
    assert (first.step, last.step) == (0, 1)


def test_two_calls_under_one_id_each_get_their_own_result() -> None:
    messages = (
        Message(role="assistant", tool_calls=(ToolCall(id="a", name="f"), ToolCall(id="a", name="g"))),
        Message(role="tool", content="one", tool_call_id="a"),
        Message(role="tool", content="two", tool_call_id="a"),
    )
    run = Trajectory(taskset="desk", messages=messages, origin=Origin(kind="import", reference="file"))
    (step,) = views.timeline(run.messages, run.steps)
    assert [call.result for call in step.calls] == ["one", "two"]


def test_the_list_is_filtered_paged_and_knows_what_i_have_not_rated(client: TestClient, store: Store) -> None:
    runs = [make_run(f"Order W{i}", policy="base" if i % 2 else "desk@1", task=f"t{i}") for i in range(60)]
    store.add(runs)
    first = client.get("/api/runs").json()
    assert (first["total"], len(first["rows"])) == (60, 50)
    second = client.get("/api/runs", params={"after": first["next"]}).json()
    assert len({row["id"] for row in first["rows"] + second["rows"]}) == 60
    assert second["next"] is None
    assert client.get("/api/runs", params={"policy": "desk@1", "tool": "cancel", "family": "cancelling"}).json()["total"] == 30
    assert client.get("/api/runs", params={"text": "order w7"}).json()["total"] == 1
    assert client.get("/api/runs", params={"split": "", "stop_reason": "error"}).json()["total"] == 0
    client.post("/api/scores", json=mark(runs[7]))
    assert client.get("/api/runs", params={"unrated": "true"}).json()["total"] == 59
    assert client.get("/api/choices").json()["policy"] == ["base", "desk@1"]
    assert client.get("/api/runs", params={"order_by": "rater"}).status_code == 422
    assert client.get("/api/runs", params={"after": "1; DROP TABLE"}).status_code == 422


def test_a_run_comes_with_the_teams_criteria_and_every_verdict(client: TestClient, store: Store) -> None:
    run = make_run()
    store.add([run])
    store.add_scores(
        [
            Score(trajectory=run.id, criterion="solved@1", value=0, rater="check", rater_kind="check", time="2026-01-01T00:00:00"),
            Score(trajectory=run.id, criterion="solved@1", value=1, rater="check", rater_kind="check", time="2026-01-02T00:00:00"),
            Score(trajectory=run.id, criterion="tone@1", value=2, rater="rater", rater_kind="human"),
        ]
    )
    page = client.get(f"/api/runs/{run.id}").json()
    assert [criterion["key"] for criterion in page["criteria"]] == ["tone@1", "good_step@1", "solved@1"]
    assert [(m["key"], m["anchor"]) for m in page["criteria"][0]["marks"]] == [
        ("1", "rude"),
        ("2", ""),
        ("3", ""),
        ("4", ""),
        ("5", "warm"),
    ]
    assert [(s["criterion"], s["value"], s["mine"]) for s in page["scores"]] == [("solved@1", 1, False), ("tone@1", 2, True)]
    assert page["overall"] == pytest.approx(0.1 + 0.9 * (1 + 0.25) / 2)
    assert page["bases"] == 0


@pytest.mark.parametrize(
    ("scale", "anchors", "keys", "values"),
    [
        ((0, 1), {}, "01", [0, 1]),
        ((-2, 2), {}, "12345", [-2, -1, 0, 1, 2]),
        ((0, 100), {"0": "none", "50": "half", "100": "all"}, "123", [0, 50, 100]),
        ((0, 10), {}, "12345", [0, 2.5, 5, 7.5, 10]),
        ((1, 10), {}, "1234567890", [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
    ],
)
def test_every_scale_gets_marks_with_a_digit_each(
    scale: tuple[float, float], anchors: dict[str, str], keys: str, values: list[float]
) -> None:
    marks = views.marks(Criterion(name="c", description="?", scale=scale, anchors=anchors))
    assert "".join(m.key for m in marks) == keys
    assert [m.value for m in marks] == values


def test_runs_of_an_unknown_taskset_are_shown_without_criteria(client: TestClient, store: Store) -> None:
    run = make_run(taskset="gone")
    store.add([run])
    page = client.get(f"/api/runs/{run.id}").json()
    assert page["criteria"] == []
    assert "'gone' is not in this project" in page["criteria_missing"]
    assert client.post("/api/scores", json=mark(run)).status_code == 422


@pytest.mark.parametrize("name", ["../desk", "..", "/etc"])
def test_runs_that_name_a_path_as_their_taskset_are_shown_without_criteria(client: TestClient, store: Store, name: str) -> None:
    run = make_run(taskset=name)
    store.add([run])
    page = client.get(f"/api/runs/{run.id}").json()
    assert page["criteria"] == []
    assert "is not the name of a taskset" in page["criteria_missing"]
    assert client.get("/api/runs").json()["total"] == 1
    assert client.post("/api/scores", json=mark(run)).status_code == 422


def test_looking_at_runs_runs_no_team_code(client: TestClient, store: Store, project: Project) -> None:
    (project.tasks / "desk" / "tools.py").write_text("raise SystemExit('imported')")
    run = make_run()
    store.add([run])
    assert client.get(f"/api/runs/{run.id}").status_code == 200


def test_a_run_that_is_not_there_is_404(client: TestClient) -> None:
    assert client.get(f"/api/runs/{'0' * 32}").status_code == 404
    assert client.get("/api/runs/..%2f..%2fsecret").status_code in (404, 422)
    assert client.get("/ui/..%2fauth.py").status_code == 404


def test_without_a_cached_base_the_token_view_says_what_to_do(client: TestClient, store: Store) -> None:
    run = make_run()
    store.add([run])
    answer = client.get(f"/api/runs/{run.id}/tokens")
    assert answer.status_code == 422
    assert "no base model" in answer.json()["detail"]


def test_a_run_is_shown_as_the_tokens_a_training_would_see(client: TestClient, store: Store, project: Project) -> None:
    make_base(project.cache / "bases" / "small")
    run = make_run("Grüße 🙂")
    store.add([run])
    assert client.get(f"/api/runs/{run.id}").json()["bases"] == 1
    view = client.get(f"/api/runs/{run.id}/tokens").json()
    first, last = view["turns"]
    assert "".join(last["trained"]) == "Done.<|im_end|>"
    assert "".join(first["context"]).startswith("<|im_start|>system\nHelp.")
    assert "Grüße 🙂" in "".join(first["context"])
    assert last["seen"] == len(first["context"]) + len(first["trained"]), "what was read before is not shown again"
    assert "cancelled" in "".join(last["context"])
    assert view["n_trainable"] == len(first["trained"]) + len(last["trained"])
    assert (view["views"], view["seen_as"], set(last["figures"]["weight"])) == (["sft", "reward"], "sft", {1.0})
    learned = client.get(f"/api/runs/{run.id}/tokens", params={"seen_as": "reward"}).json()["turns"][1]["figures"]
    assert set(learned["weight"]) == {0.0}
    refused = client.get(f"/api/runs/{run.id}/tokens", params={"seen_as": "../../t"})
    assert (refused.status_code, "noted nothing of this run" in refused.json()["detail"]) == (422, True)
    note = {"run": run.id, "said": "chosen", "turns": [{"message": 4, "start": 1, "weight": [2.0], "reference": [-0.5], "advantage": 0.25}]}
    folder = project.trainings / "desk-dpo-1" / "tokens"
    folder.mkdir(parents=True)
    (folder / "pairs.jsonl").write_text(json.dumps(note) + "\n" + json.dumps(note) + "\n")
    told = client.get(f"/api/runs/{run.id}/tokens", params={"seen_as": "desk-dpo-1"}).json()
    assert (told["views"], told["said"]) == (["sft", "reward", "desk-dpo-1"], ["chosen", "chosen"])
    figures = told["turns"][1]["figures"]
    assert figures["weight"][:3] == [0.0, 4.0, 0.0], "two pairs about one token add up"
    assert (figures["reference"][:2], figures["advantage"][:2]) == ([None, -0.5], [None, 0.25])


# ---- when a mark counts


def test_a_mark_is_acknowledged_only_after_the_commit(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store(project.store_url) as store:
        run = make_run()
        store.add([run])
        seen: list[int] = []
        real = Store.add_scores

        def watched(self: Store, scores: Sequence[Score]) -> AddReport:
            report = real(self, scores)
            seen.append(len(store.scores([run.id])))  # another connection: sees what is committed
            return report

        monkeypatch.setattr(Store, "add_scores", watched)
        with TestClient(create_api(project, rater="rater"), base_url=HOME) as client:
            client.get("/")
            answer = client.post("/api/scores", json=mark(run))
        assert answer.json() == {"saved": True, "id": store.scores()[0].id, "known": False}
        assert seen == [1]


def test_a_mark_that_cannot_be_stored_is_not_acknowledged(client: TestClient, store: Store, project: Project) -> None:
    run = make_run()
    store.add([run])
    for path in project.state.glob("store.db*"):
        path.unlink()
    answer = client.post("/api/scores", json=mark(run))
    assert answer.status_code >= 400
    assert "saved" not in answer.json()


def test_marks_that_waited_are_saved_together_and_one_that_is_refused_takes_none_with_it(client: TestClient, store: Store) -> None:
    runs = [make_run(), make_run(sample=1)]
    store.add(runs)
    good = [mark(run, value=value) for run in runs for value in (2, 5)]

    def told(marks: list[dict[str, object]]) -> list[tuple[bool, object]]:
        answer = client.post("/api/scores/many", json={"marks": marks})
        assert answer.status_code == 200 and answer.json()["saved"] is True
        return [(one["saved"], one.get("known", one.get("detail"))) for one in answer.json()["marks"]]

    assert told(good) == [(True, False)] * 4
    assert told([*good[:2], mark(runs[0], value=3)]) == [(True, True), (True, True), (True, False)]
    lost = mark(runs[0]) | {"trajectory": "f" * 32}
    mixed = told([mark(runs[0], value=9), good[0] | {"value": 1}, lost, mark(runs[1], value=1)])
    assert [saved for saved, _ in mixed] == [False, False, False, True]
    assert "runs from 1 to 5" in str(mixed[0][1]) and "other content" in str(mixed[1][1]) and "there is no run" in str(mixed[2][1])
    assert [score.value for score in store.scores()] == [2, 5, 2, 5, 3, 1]
    for wrong in ([], [mark(runs[0])] * 101, [mark(runs[0], key="short")]):
        assert client.post("/api/scores/many", json={"marks": wrong}).status_code == 422
    assert len(store.scores()) == 6


def test_the_same_mark_sent_twice_is_one_mark(client: TestClient, store: Store) -> None:
    run = make_run()
    store.add([run])
    sent = mark(run, note="kind")
    first, again = client.post("/api/scores", json=sent), client.post("/api/scores", json=sent)
    assert (first.json()["known"], again.json()["known"]) == (False, True)
    assert first.json()["id"] == again.json()["id"]
    assert len(store.scores()) == 1
    other = client.post("/api/scores", json=sent | {"value": 1})
    assert other.status_code == 422
    assert "other content" in other.json()["detail"]
    assert [score.value for score in store.scores()] == [4]


def test_a_mark_must_fit_its_criterion(client: TestClient, store: Store) -> None:
    run = make_run()
    store.add([run])
    for wrong, reason in (
        ({"value": 6}, "runs from 1 to 5"),
        ({"criterion": "tone@2"}, "no criterion 'tone@2' in force"),
        ({"step": 0}, "about the whole run"),
        ({"criterion": "good_step@1", "value": 1}, "about single steps"),
        ({"criterion": "good_step@1", "value": 1, "step": 2}, "has 2 steps"),
        ({"key": "short"}, "key"),
        ({"trajectory": "x" * 32}, "trajectory"),
    ):
        answer = client.post("/api/scores", json=mark(run, **wrong))
        assert answer.status_code == 422, wrong
        assert reason in answer.json()["detail"]
    assert client.post("/api/scores", content=b'{"key": NaN', headers={"Content-Type": "application/json"}).status_code == 422
    assert store.scores() == []
    for right in ({"criterion": "good_step@1", "value": 1, "step": 1}, {"value": None}):
        assert client.post("/api/scores", json=mark(run, **right)).status_code == 200
    assert [(s.criterion, s.step, s.status.value) for s in store.scores()] == [
        ("good_step@1", 1, "value"),
        ("tone@1", None, "not_applicable"),
    ]


# ---- blind comparison


def test_a_pair_is_drawn_without_a_word_about_its_origin(client: TestClient, store: Store) -> None:
    one, two = make_run(policy="desk@7", answer="Yes."), make_run(policy="secret-base", answer="No.")
    store.add([one, two])
    drawn = client.post("/api/compare", json={"taskset": "desk"})
    told = drawn.text
    for word in (one.id, two.id, "desk@7", "secret-base", "rollout", "2026-01-02", "1.5", "t1", "call-of"):
        assert word not in told
    assert drawn.json()["shared"] == 3
    assert drawn.json()["rows"] == [{"left": 3, "right": 3, "kind": "changed"}]
    assert {drawn.json()[side]["timeline"][-1]["text"] for side in ("left", "right")} == {"Yes.", "No."}


def test_sides_are_drawn_once_and_survive_a_restart(project: Project) -> None:
    runs = [make_run(policy=f"p{i}", answer=f"Answer {i}.") for i in range(2)]
    sides = set()
    with Store(project.store_url) as store:
        store.add(runs)
    for _restart in range(2):
        with TestClient(create_api(project, rater="rater"), base_url=HOME) as client:
            client.get("/")
            for _ in range(3):
                drawn = client.post("/api/compare", json={"runs": [runs[0].id, runs[1].id]}).json()
                sides.add((drawn["draw"], drawn["left"]["timeline"][-1]["text"]))
    assert len(sides) == 1


def test_sides_are_drawn_by_chance(client: TestClient, store: Store) -> None:
    lefts = []
    for i in range(40):
        pair = make_run(policy="a", answer="A.", task=f"t{i}"), make_run(policy="b", answer="B.", task=f"t{i}")
        store.add(pair)
        lefts.append(client.post("/api/compare", json={"runs": [run.id for run in pair]}).json()["left"]["timeline"][-1]["text"])
    assert 3 < lefts.count("A.") < 37  # misses by chance once in 10^8


@pytest.mark.parametrize(
    ("choice", "better", "strength", "tie", "both_bad"),
    [
        ("left_far", "left", 3, False, False),
        ("left", "left", 1, False, False),
        ("tie", None, 1, True, False),
        ("right", "right", 1, False, False),
        ("right_far", "right", 3, False, False),
        ("both_bad", None, 1, False, True),
    ],
)
def test_a_choice_becomes_a_preference(
    client: TestClient, store: Store, choice: str, better: str | None, strength: float, tie: bool, both_bad: bool
) -> None:
    by_answer = {run.answer: run for run in (make_run(answer="Yes."), make_run(answer="No.", sample=1))}
    store.add(list(by_answer.values()))
    drawn = client.post("/api/compare", json={"taskset": "desk"}).json()
    vote = {"key": secrets.token_hex(8), "draw": drawn["draw"], "choice": choice, "note": "clear"}
    assert [client.post("/api/preferences", json=vote).json()["known"] for _ in range(2)] == [False, True]
    (preference,) = store.preferences("desk")
    assert (preference.strength, preference.tie, preference.both_bad, preference.decided) == (strength, tie, both_bad, better is not None)
    assert (preference.source, preference.rater, preference.note) == ("human", "rater", "clear")
    sides = {side: by_answer[drawn[side]["timeline"][-1]["text"]].id for side in ("left", "right")}
    assert preference.left == sides["left"]
    if better:
        assert preference.items[0].trajectory == sides[better]
    assert client.post("/api/compare", json={"taskset": "desk"}).json()["draw"] is None, "a compared pair does not come again"


def test_runs_that_cannot_be_compared_are_refused_with_the_reason(client: TestClient, store: Store) -> None:
    run, twin, other = make_run(), make_run(sample=1), make_run("Refund W1.", task="t2")
    store.add([run, twin, other])
    assert "word for word the same" in client.post("/api/compare", json={"runs": [run.id, twin.id]}).json()["detail"]
    assert "not of one task" in client.post("/api/compare", json={"runs": [run.id, other.id]}).json()["detail"]
    step = correct_step(run, 0, Act("One moment.", "", ()), "anna")
    store.add([step])
    assert "a single step" in client.post("/api/compare", json={"runs": [step.id, run.id]}).json()["detail"]
    assert client.post("/api/compare", json={"runs": [run.id, "0" * 32]}).status_code == 404
    assert client.post("/api/compare", json={"taskset": "desk"}).json() == {
        "draw": None,
        "open": 0,
        "criteria": [],
        "answers": [],
        "shared": 0,
        "rows": [],
        "left": None,
        "right": None,
    }
    vote = {"key": secrets.token_hex(8), "draw": "0" * 32, "choice": "tie"}
    assert "never drawn" in client.post("/api/preferences", json=vote).json()["detail"]


def test_imported_runs_without_a_task_are_paired_by_how_they_begin(client: TestClient, store: Store) -> None:
    store.add([make_run(answer="Yes.", task=None), make_run(answer="No.", task=None), make_run("Other", task=None)])
    assert client.post("/api/compare", json={"taskset": "desk"}).json()["open"] == 1


def test_the_filter_for_unrated_runs_is_about_one_person(store: Store) -> None:
    run = make_run()
    store.add([run])
    store.add_scores([Score(trajectory=run.id, criterion="tone@1", value=3, rater="paul", rater_kind="human")])
    assert store.runs(RunFilter(unrated_by="paul")).total == 0
    assert store.runs(RunFilter(unrated_by="rater")).total == 1


def test_the_list_is_narrowed_by_score_disagreement_and_errors(client: TestClient, store: Store) -> None:
    low, high = make_run("Cancel W1."), make_run("Cancel W2.", task="t2")
    store.add([low, high])
    store.add_scores([Score(trajectory=low.id, criterion="tone@1", value=v, rater=r, rater_kind="human") for v, r in ((1, "a"), (3, "b"))])
    store.add_scores([Score(trajectory=high.id, criterion="tone@1", value=5, rater="a", rater_kind="human")])

    def asked(**params: str) -> list[str]:
        return [row["id"] for row in client.get("/api/runs", params=params).json()["rows"]]

    assert asked(criterion="tone@1", score_at_most="2") == [low.id]
    assert asked(criterion="tone@1", score_at_least="5", score_at_most="") == [high.id]
    assert asked(disagreement="0") == [low.id]
    assert asked(errors="true") == []
    assert "has its own scale" in client.get("/api/runs", params={"score_at_most": "2"}).json()["detail"]
    assert client.get("/api/runs").json()["is_exact"] is True


def test_who_cannot_judge_and_who_takes_back_is_told_apart_from_not_applicable(client: TestClient, store: Store) -> None:
    run = make_run()
    store.add([run])
    for status in ("cant_judge", "withdrawn"):
        assert client.post("/api/scores", json=mark(run, value=None, status=status)).status_code == 200
    assert client.post("/api/scores", json=mark(run, value=None)).status_code == 200
    assert [s.status.value for s in store.scores()] == ["cant_judge", "withdrawn", "not_applicable"]
    refused = client.post("/api/scores", json=mark(run, value=3, status="cant_judge"))
    assert "has no value" in refused.json()["detail"]
    assert client.post("/api/scores", json=mark(run, value=None, status="error")).status_code == 422


def test_guidelines_are_read_from_the_tasksets_folder_only(client: TestClient, project: Project) -> None:
    assert client.get("/api/guidelines", params={"taskset": "desk"}).json() == {"text": ""}
    (project.tasks / "desk" / "guidelines.md").write_bytes(b"Look <b>twice</b>. \xff" + b"x" * 100_000)
    text = client.get("/api/guidelines", params={"taskset": "desk"}).json()["text"]
    assert text.startswith("Look <b>twice</b>. \ufffd")
    assert len(text) == 64 * 1024
    for name in ("../desk", "gone", "/etc", ""):
        assert client.get("/api/guidelines", params={"taskset": name}).status_code == 422, name


def test_the_reasons_that_were_ticked_are_the_criterions_own(client: TestClient, store: Store, project: Project) -> None:
    (project.tasks / "desk" / "criteria.yaml").write_text("tone: {description: Friendly?, scale: [1, 5], chips: [cold, wordy]}")
    run = make_run()
    store.add([run])
    answer = client.post("/api/scores", json=mark(run, chips=["rude"]))
    assert (answer.status_code, "has no chip 'rude'" in answer.json()["detail"]) == (422, True)
    assert client.post("/api/scores", json=mark(run, chips=["wordy", "cold"])).status_code == 200
    assert store.scores()[0].chips == ("cold", "wordy"), "in the team's order"
    page = client.get(f"/api/runs/{run.id}").json()
    assert (page["criteria"][0]["chips"], page["scores"][0]["chips"]) == (["cold", "wordy"], ["cold", "wordy"])


def test_a_mark_that_was_taken_back_leaves_the_run_unrated(client: TestClient, store: Store) -> None:
    run = make_run()
    store.add([run])
    client.post("/api/scores", json=mark(run))
    assert client.get("/api/runs", params={"unrated": True}).json()["rows"] == []
    client.post("/api/scores", json=mark(run, value=None, status="withdrawn"))
    (row,) = client.get("/api/runs", params={"unrated": True}).json()["rows"]
    assert row["mine"] == 0
