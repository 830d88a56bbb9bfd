"""What an adapter was made from: the ids its training learned from, who said what about them, and what is not here."""

import json
from typing import Any

import pytest
from small_desk import HOME, make_run
from small_ui import desk_fixtures
from starlette.testclient import TestClient

from agentalign.config.project import Project
from agentalign.errors import RegistryError
from agentalign.records.adapter import AdapterCard, RecipeName, Training
from agentalign.records.criterion import Score
from agentalign.records.preference import Item, Preference
from agentalign.store.lineage import DATA_FILE, Lineage, lineage
from agentalign.store.registry import Registry
from agentalign.store.store import Store
from agentalign.ui.api import create_api

BEGAN = "2026-03-01T00:00:00.000000+00:00"
BEFORE = "2026-02-01T00:00:00.000000+00:00"
AFTER = "2026-04-01T00:00:00.000000+00:00"


project, store, _ = desk_fixtures()


def save(project: Project, store: Store, recipe: RecipeName, ids: list[str] | None, **fields: Any) -> str:
    """An adapter of a training that learned from these ids; None where its folder is gone."""
    registry, files = Registry(project.adapters), project.root / "files"
    files.mkdir(exist_ok=True)
    (files / "adapter_config.json").write_text("{}")
    (files / "adapter_model.safetensors").write_bytes(b"weights")
    training = f"desk-{recipe}-000000000000"
    store.save_training(Training(id=training, recipe=recipe, taskset="desk", config="{}", created=BEGAN, status="done"))
    if ids is not None:
        (project.trainings / training).mkdir(parents=True)
        (project.trainings / training / DATA_FILE).write_text(json.dumps(ids))
    card = AdapterCard(
        name="desk", version=registry.next_version("desk"), kind="policy", taskset="desk", recipe=recipe, base="b", base_digest="d",
        quantization="nf4", template_digest="x", **{"training": training, **fields},
    )  # fmt: skip
    return registry.save(card, files).ref


def graph(project: Project, store: Store, ref: str) -> Lineage:
    return lineage(store, Registry(project.adapters), project.trainings, ref)


def links(found: Lineage) -> dict[tuple[str, str], int]:
    return {(edge.start, edge.end): edge.count for edge in found.edges}


def mark(run: str, rater: str, kind: Any = "human", time: str = BEFORE) -> Score:
    return Score(trajectory=run, criterion="tone@1", value=3, rater=rater, rater_kind=kind, time=time)


def test_pairs_lead_to_who_chose_them_and_to_the_ratings_that_made_them(project: Project, store: Store) -> None:
    runs = [make_run(sample=n, answer=str(n)) for n in range(4)]
    store.add(runs)
    a, b, c, d = (run.id for run in runs)
    store.add_scores([mark(a, "ada"), mark(b, "bob"), mark(a, "check", "check"), mark(c, "eve"), mark(b, "late", time=AFTER)])
    chosen = Preference(taskset="desk", items=(Item(a), Item(c)), source="human", rater="ada", left=a)
    decided = Preference(taskset="desk", items=(Item(c), Item(d)), source="adjudicator", rater="lead", note="y")
    made = Preference(taskset="desk", items=(Item(a), Item(b)), source="scores", rater="overall")
    unused = Preference(taskset="desk", items=(Item(b), Item(d)), source="human", rater="zoe")
    store.add_preferences([chosen, decided, made, unused])
    start = save(project, store, "sft", [])
    ref = save(project, store, "dpo", [chosen.id, decided.id, made.id], parents=(start,))
    found = graph(project, store, ref)
    assert links(found) == {
        ("adapter", "training"): 0,
        ("training", "parent desk@1"): 0,
        ("training", "pairs human"): 1,
        ("training", "pairs adjudicator"): 1,
        ("training", "pairs scores"): 1,
        ("pairs human", "choices human"): 1,
        ("choices human", "rater human ada"): 1,
        ("pairs adjudicator", "choices adjudicator"): 1,
        ("choices adjudicator", "rater human lead"): 1,
        ("pairs scores", "ratings human"): 2,
        ("pairs scores", "ratings check"): 1,
        ("ratings human", "rater human ada"): 1,
        ("ratings human", "rater human bob"): 1,
        ("ratings check", "rater check check"): 1,
    }, "not zoe, whose pair was not learned from; not eve, whose run made no pair; not who rated after it began"
    assert not any(node.missing for node in found.nodes)


def test_runs_lead_to_their_ratings_and_what_was_removed_is_said(project: Project, store: Store) -> None:
    run = make_run()
    store.add([run])
    store.add_scores([mark(run.id, "gpt", "judge")])
    found = graph(project, store, save(project, store, "sft", [run.id, "f" * 32]))
    assert links(found)[("training", "runs rollout")] == 1
    assert links(found)[("runs rollout", "ratings judge")] == 1
    (lost,) = [node for node in found.nodes if node.missing]
    assert (lost.title, lost.detail) == ("1 more", "no longer in the store")


def test_runs_that_a_training_made_itself_are_among_what_it_learned_from(project: Project, store: Store) -> None:
    ref = save(project, store, "ppo", [])
    training = "desk-ppo-000000000000"
    runs = [
        make_run(policy=policy, sample=n) for n, policy in enumerate((f"{training}/0", f"{training}/1", f"{training}/dev-1", ref, "base"))
    ]
    store.add([run.model_copy(update={"split": "dev" if "dev" in run.origin.reference else "train"}) for run in runs])
    store.save_training(store.training(training).model_copy(update={"adapter": ref}))
    found = graph(project, store, ref)
    assert links(found)[("training", "own")] == 2
    assert [node.title for node in found.nodes if node.id == "own"] == ["2 runs"]


def test_without_the_trainings_folder_the_cards_counts_are_what_is_known(project: Project, store: Store) -> None:
    ref = save(project, store, "dpo", None, data_counts={"scores": 12}, parents=("gone@3",))
    missing = {node.title: node.detail for node in graph(project, store, ref).nodes if node.missing}
    assert missing == {"12 scores": "which ones is not kept here", "gone@3": "the adapter it went on from"}
    (project.adapters / "gone" / "3").mkdir(parents=True)
    (parent,) = [node for node in graph(project, store, ref).nodes if node.ref == "gone@3"]
    assert parent.missing and parent.detail == "the adapter it went on from, which is there and cannot be read"


def test_a_card_that_names_a_file_elsewhere_reads_nothing(project: Project, store: Store) -> None:
    (project.root / DATA_FILE).write_text('["secret"]')
    outside = "../../"
    store.save_training(Training(id=outside, recipe="sft", taskset="desk", config="{}", created=BEGAN))
    ref = save(project, store, "sft", [], training=outside)
    assert not [node for node in graph(project, store, ref).nodes if node.id == "lost"]


def test_many_raters_are_counted_together(project: Project, store: Store) -> None:
    run = make_run()
    store.add([run])
    store.add_scores([mark(run.id, f"rater {n}") for n in range(20)])
    found = graph(project, store, save(project, store, "sft", [run.id]))
    raters = [node for node in found.nodes if node.kind == "rater"]
    assert (len(raters), raters[-1].title) == (13, "8 more")
    assert links(found)[("ratings human", "raters human")] == 8


def test_the_route_tells_the_same_and_refuses_what_is_not_there(project: Project, store: Store) -> None:
    ref = save(project, store, "sft", [])
    with TestClient(create_api(project, rater="lead"), base_url=HOME) as client:
        client.get("/")
        assert [one["ref"] for one in client.get("/api/lineage/adapters").json()["adapters"]] == [ref]
        assert client.get("/api/lineage", params={"ref": ref}).json() == graph(project, store, ref).model_dump(mode="json")
        assert client.get("/api/lineage", params={"ref": "nothing@1"}).status_code == 422
    with pytest.raises(RegistryError):
        graph(project, store, "nothing@1")
