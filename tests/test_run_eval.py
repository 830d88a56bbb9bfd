"""Stored evaluations: one per adapter, split and plan; a small one never stands in for a large one."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from small_base import add_adapter, make_base

from agentalign.config.project import Project
from agentalign.environments.skeleton import copy_taskset
from agentalign.errors import DataError
from agentalign.evaluation.compare import compare
from agentalign.evaluation.evaluate import Evaluation, summarise
from agentalign.evaluation.report import write_report
from agentalign.evaluation.run_eval import EvalPlan, Evaluated, evaluate, stored_evaluation, stored_evaluations
from agentalign.records.criterion import Criterion, Score
from agentalign.records.trajectory import Message, Origin, Trajectory
from agentalign.store.registry import Registry
from agentalign.store.store import Store
from agentalign.training.base import prepare_base


@pytest.fixture
def project(tmp_path: Path) -> Project:
    made = Project.create(tmp_path)
    copy_taskset("hello", made.tasks)
    make_base(tmp_path / "base")
    return made


def measure(project: Project, limit: int | None) -> Evaluated:
    plan = EvalPlan(limit=limit, base=str(project.root / "base"), quantization="none")
    with Store(project.store_url) as store:
        return evaluate(project, store, "base", taskset="hello", plan=plan)


def found(n: int, created: str, **settings: str | int | float) -> Evaluation:
    criterion = Criterion(name="task_success", description="Done?", kind="check", check="done")
    messages = Message(role="user", content="hi"), Message(role="assistant", content="hello")
    origins = [Origin(kind="rollout", reference="hello@1", task=f"t{i}") for i in range(n)]
    runs = [Trajectory(taskset="hello", task_id=origin.task, origin=origin, messages=messages) for origin in origins]
    scores = [Score(trajectory=run.id, criterion=criterion.key, value=1.0, rater="check", rater_kind="check") for run in runs]
    return summarise("hello@1", "test", [criterion], runs, scores, {}, settings=settings).model_copy(update={"created": created})


def test_a_smaller_evaluation_replaces_no_larger_one(project: Project) -> None:
    whole, part = measure(project, None), measure(project, 1)
    assert whole.report.json.is_file()
    assert whole.report != part.report
    stored = stored_evaluation(project, "base", "hello", "test")
    assert stored == whole.evaluation
    assert stored.everything.n == 2
    assert stored_evaluations(project, "base", "hello", "test") == [whole.evaluation, part.evaluation]


def test_an_evaluation_is_found_by_its_plan(project: Project) -> None:
    part = measure(project, 1)
    plan = EvalPlan(limit=1, base=str(project.root / "base"), quantization="none")
    assert stored_evaluation(project, "base", "hello", "test", plan=plan) == part.evaluation
    assert stored_evaluation(project, "base", "hello", "test", plan=plan._replace(limit=None)) is None
    assert stored_evaluation(project, "base", "hello", "test", plan=plan._replace(temperature=0.5)) is None
    assert stored_evaluation(project, "base", "hello", "dev") is None


def test_the_same_plan_again_replaces_what_it_found(project: Project) -> None:
    measure(project, 1)
    again = measure(project, 1)
    assert stored_evaluations(project, "base", "hello", "test") == [again.evaluation]


def test_of_evaluations_over_equally_many_tasks_the_newest_is_meant(project: Project) -> None:
    folder = project.state / "evaluations" / "hello" / "hello@1-test"
    older, newer = found(3, "2026-01-01", tasks="all", temperature=0.8), found(3, "2026-01-02", tasks="all", temperature=0.0)
    write_report(folder / "newer", newer)
    write_report(folder / "older", older)
    write_report(folder / "small", found(2, "2026-01-03", tasks=2))
    assert stored_evaluation(project, "hello@1", "hello", "test") == newer


def test_all_tasks_are_more_than_a_number_of_them(project: Project) -> None:
    folder = project.state / "evaluations" / "hello" / "hello@1-test"
    write_report(folder / "some", found(3, "2026-01-02", tasks=3))
    write_report(folder / "all, but two checks broke", found(2, "2026-01-01", tasks="all"))
    stored = stored_evaluation(project, "hello@1", "hello", "test")
    assert stored is not None
    assert stored.settings["tasks"] == "all"


def test_evaluations_from_before_plans_had_folders_are_read(project: Project) -> None:
    folder = project.state / "evaluations" / "hello" / "hello@1-test"
    old = found(3, "2026-01-01", tasks="all", temperature=0.0)
    write_report(folder, old)
    write_report(folder / "1-of-now", found(1, "2026-01-02", tasks=1))
    assert stored_evaluation(project, "hello@1", "hello", "test") == old
    again = found(2, "2026-01-03", tasks="all", temperature=0)
    write_report(folder / "all-of-now", again)
    assert stored_evaluation(project, "hello@1", "hello", "test") == again, "the same plan, newer"


@pytest.mark.parametrize("edit", ["prompt", "check", "nothing"])
def test_the_rival_is_acted_out_again_where_the_taskset_was_changed(project: Project, edit: str) -> None:
    plan = EvalPlan(base=str(project.root / "base"), quantization="none")
    add_adapter(project, project.root / "base")
    before = measure(project, None).evaluation
    folder = project.tasks / "hello"
    if edit == "prompt":
        told = folder / "taskset.yaml"
        told.write_text(told.read_text().replace("system_prompt: ", "system_prompt: Be brief. "))
        assert "Be brief" in told.read_text()
    elif edit == "check":
        (folder / "criteria.py").write_text((folder / "criteria.py").read_text() + "\n# mended\n")
    else:
        (folder / "recipes").mkdir()
        (folder / "recipes" / "sft.yaml").write_text("learning_rate: 1e-4\n")
    with Store(project.store_url) as store:
        done = evaluate(project, store, "hello@1", against="base", plan=plan)
    assert done.against is not None
    assert (done.against.created == before.created) == (edit == "nothing")
    assert done.evaluation.taskset_digest == done.against.taskset_digest != ""
    digest = prepare_base(str(project.root / "base"), project.cache).digest
    assert (done.evaluation.content, done.against.content) == (Registry(project.adapters).content("hello@1"), digest)
    if edit != "nothing":
        with pytest.raises(DataError, match="was changed between these evaluations"):
            compare(before, done.evaluation)


@pytest.mark.parametrize("on", ["cuda in bfloat16", "", "here"])
def test_the_rival_is_acted_out_again_where_another_processor_did_it(project: Project, on: str) -> None:
    plan = EvalPlan(base=str(project.root / "base"), quantization="none")
    add_adapter(project, project.root / "base")
    measured = measure(project, None)
    assert measured.evaluation.computed_on in ("cpu in float32", "cpu in bfloat16")
    data = json.loads(measured.report.json.read_text())
    data["evaluation"]["computed_on"] = measured.evaluation.computed_on if on == "here" else on
    measured.report.json.write_text(json.dumps(data))
    with Store(project.store_url) as store:
        done = evaluate(project, store, "hello@1", against="base", plan=plan)
    assert done.against is not None and done.comparison is not None
    assert (done.against.created != measured.evaluation.created) == (on == "cuda in bfloat16")
    assert done.comparison.notes == ()


def test_an_evaluation_goes_on_where_one_of_its_runs_was_forgotten(project: Project) -> None:
    first = measure(project, None).evaluation
    with Store(project.store_url) as store:
        gone = next(iter(store.trajectories()))
        store.forget([gone.id], reason="a name in it")
    again = measure(project, None).evaluation
    assert again.everything == first.everything
    with Store(project.store_url) as store:
        assert gone.id not in {run.id for run in store.trajectories()}
        assert store.scores([gone.id]) == []


def test_a_base_of_the_same_name_and_other_weights_is_acted_out_again(project: Project) -> None:
    plan = EvalPlan(base=str(project.root / "base"), quantization="none")
    before = measure(project, None).evaluation
    weights = project.root / "base" / "model.safetensors"
    save_file({name: tensor + 0.1 for name, tensor in load_file(weights).items()}, weights, metadata={"format": "pt"})
    add_adapter(project, project.root / "base")
    with Store(project.store_url) as store:
        done = evaluate(project, store, "hello@1", against="base", plan=plan)
    assert done.against is not None and done.against.content not in ("", before.content)
    assert done.against.created != before.created


def test_what_was_measured_on_other_files_of_this_number_is_not_found(project: Project) -> None:
    add_adapter(project, project.root / "base", seed=1)
    add_adapter(project, project.root / "base", seed=2)
    registry = Registry(project.adapters)
    folder = project.state / "evaluations" / "hello" / "hello@1-test"
    write_report(folder, found(3, "2026-01-01", tasks="all").model_copy(update={"content": registry.content("hello@1")}))
    assert stored_evaluation(project, "hello@1", "hello", "test") is not None
    (project.adapters / "hello" / "1").rename(project.root / "old")
    card = registry.resolve("hello@2")[0].model_copy(update={"version": 1})
    registry.save(card, project.adapters / "hello" / "2")
    assert stored_evaluation(project, "hello@1", "hello", "test") is None


def test_a_damaged_report_is_named(project: Project) -> None:
    report = measure(project, 1).report.json
    report.write_text("{")
    with pytest.raises(DataError, match=rf"{report}: not a report that can be read\. Delete it"):
        stored_evaluation(project, "base", "hello", "test")
