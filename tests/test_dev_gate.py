"""The dev gate: what it counts as lost, what it says, and what a run is worth whose checks broke."""

import logging
import shutil
from dataclasses import replace

import pytest
import torch

from agentalign.config.project import Project
from agentalign.config.sft import SFTConfig
from agentalign.environments.taskset import load_taskset
from agentalign.environments.worker import WorkerPool
from agentalign.errors import DataError
from agentalign.recipes.acted import ActedBefore
from agentalign.recipes.dev_gate import DevGate, _held, _losses, dev_gate, require_gate
from agentalign.recipes.plan import quarter
from agentalign.recipes.workspace import open_workspace
from agentalign.rollouts.collect import spread
from agentalign.store.filters import RunFilter
from agentalign.store.store import Store
from agentalign.training.model import Model
from tests.small_project import FIXTURES, SFT, make_project

BREAKS = """

def breaks_now_and_then(trajectory: Trajectory, task: Task | None) -> bool:
    if sum(task.id.encode()) % 3 == 0:
        raise ValueError("an answer that this check did not foresee")
    return True
"""
VETO = "breaks:\n  description: Does it break?\n  check: breaks_now_and_then\n  gate: true\n"


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return make_project(tmp_path_factory.mktemp("project"))


def test_dev_gate_says_which_criterion_fell_while_success_did_not(project, caplog):
    with open_workspace(SFTConfig(**SFT), project) as work, WorkerPool(work.taskset) as pool:
        model = Model.load(work.base, quantization="none")
        model.load_adapter("policy", work.registry.resolve("toy_desk@1")[1])
        gate = DevGate(model, "policy", work.taskset, pool, n_tasks=9)
        found = gate(0, {})
        assert {"success", "lost in families", "criterion/task_success", "criterion/valid_calls"} <= found.metrics.keys()
        assert found.score == pytest.approx(found.metrics["overall"] + 0.01 * found.metrics["success"])
        assert gate(1, found.metrics) == found
        assert "fell from" not in caplog.text
        worse = gate(2, found.metrics | {"criterion/valid_calls": found.metrics["criterion/valid_calls"] + 1.0, "criterion/polite": 1.0})
        # Nine tasks, of which any criterion may lose one.
        assert worse.metrics["lost in a criterion"] == pytest.approx(8 / 9)
        assert worse.score == pytest.approx(found.score - 8 / 9)
        family = next(name for name in found.metrics if name.startswith("family/"))
        assert gate(3, found.metrics | {family: found.metrics[family] + 1.0}).metrics["lost in families"] > 0
    assert "criterion/valid_calls fell from" in caplog.text
    assert f"{family} fell from" in caplog.text
    assert "criterion/polite applies to no run any more" in caplog.text


def test_runs_that_equal_weights_made_of_equal_tasks_are_taken_over(project, tmp_path, caplog):
    """What DPO starts from is what SFT's last evaluation acted with; people see the runs with either training."""
    caplog.set_level(logging.INFO, "agentalign")
    with (
        open_workspace(SFTConfig(**SFT), project) as work,
        WorkerPool(work.taskset) as pool,
        Store(f"sqlite:///{tmp_path}/runs.db") as store,
    ):
        work = replace(work, store=store)
        models = [Model.load(work.base, quantization="none")]
        models[0].load_adapter("policy", work.registry.resolve("toy_desk@1")[1], trainable=True)
        before = ActedBefore(store, tmp_path / "notes", work.world)

        def found(name, step):
            gate = DevGate(models[-1], "policy", work.taskset, pool, n_tasks=9, name=name, keep=work.keep, before=before)
            caplog.clear()
            return gate(step, {}), f"9 dev runs are those of {taken}" in caplog.text

        taken = "one/dev-4"
        first, known = found("one", 4)
        assert not known
        assert found("two", 0) == (first, True)
        mine, theirs = ({run.task_id: run for run in store.trajectories(RunFilter(policy=name))} for name in (taken, "two/dev-0"))
        assert len(mine) == 9
        assert {task: run.content_digest for task, run in theirs.items()} == {task: run.content_digest for task, run in mine.items()}
        assert not {run.id for run in mine.values()} & {run.id for run in theirs.values()}
        assert all(store.tokens(run.id).turns == store.tokens(mine[task].id).turns for task, run in theirs.items())
        assert {score.trajectory for score in store.scores()} == {run.id for run in [*mine.values(), *theirs.values()]}

        store.forget([next(iter(mine.values())).id], reason="a customer asked for it")
        assert found("three", 0) == (first, False), "what is gone is made again"
        taken = "three/dev-0"
        assert found("four", 0) == (first, True)
        with torch.no_grad():
            models[0].parameters_of("policy")[0].mul_(1.01)
        assert not found("five", 0)[1], "other weights"

        # As between two trainings: saved, and loaded by another process.
        models[0].save_adapter("policy", tmp_path / "saved")
        models.append(Model.load(work.base, quantization="none"))
        models[1].load_adapter("policy", tmp_path / "saved", trainable=True)
        taken = "five/dev-0"
        assert found("six", 0)[1]
        note = max((tmp_path / "notes").iterdir(), key=lambda path: path.stat().st_mtime_ns)
        note.write_text("{")
        assert not found("seven", 0)[1], "a note that cannot be read"


def test_no_run_is_taken_over_from_another_world(project, tmp_path):
    """Somebody edits the environment while a training acts: its runs are of the world that its workers hold."""
    copy = Project(shutil.copytree(project.root, tmp_path / "copy", symlinks=True, ignore=shutil.ignore_patterns("trainings", "tasks")))
    copy.tasks.mkdir()
    desk = shutil.copytree(FIXTURES / "toy_desk", copy.tasks / "toy_desk")
    config = SFTConfig(**SFT, eval_every_steps=1)
    with open_workspace(config, copy) as work, WorkerPool(work.taskset) as pool:
        model = Model.load(work.base, quantization="none")
        model.load_adapter("policy", work.registry.resolve("toy_desk@1")[1])
        with torch.no_grad():
            model.parameters_of("policy")[0].mul_(1.02)  # weights of which nothing is noted
        gate, notes = dev_gate(model, "policy", work, pool, config, "one"), copy.cache / "dev_runs"
        before = set(notes.glob("*"))
        (desk / "prices.yaml").write_text("tea: 3\n")
        gate(0, {})
        assert set(notes.glob("*")) == before
        (desk / "prices.yaml").unlink()
        gate(0, {})
        assert len(set(notes.glob("*")) - before) == 1
        (desk / "prices.yaml").write_text("tea: 3\n")
    with open_workspace(config, copy) as again:
        assert again.world not in ("", work.world), "a file of any kind may be part of it"
    settings = desk / "taskset.yaml"
    settings.write_text(settings.read_text().replace("replayable: true", "replayable: false"))
    with open_workspace(config, copy) as other:
        assert other.world == ""
        assert dev_gate(model, "policy", other, pool, config, "two").before is None


def test_one_task_lost_is_no_loss_and_a_second_is():
    first = {"family/refund": 1.0, "criterion/asks": 0.75}
    assert _losses({"family/refund": (5, 0.8), "criterion/asks": (4, 0.5)}, first) == [pytest.approx(0.0), 0.0]
    assert _losses({"family/refund": (5, 0.6), "criterion/asks": (4, 0.0)}, first) == [pytest.approx(1.0), pytest.approx(2.0)]
    assert _losses({"family/refund": (1, 0.0)}, first) == [0.75], "a family with a single task is watched too"
    assert _losses({"family/new": (5, 0.0)}, first) == [0.0]


def test_one_side_of_a_judgement_cannot_pay_for_the_other():
    families = {"family/refund": (6, 0.5), "family/lookup": (5, 1.0)}
    fell = {"branch/refund/open": (3, 0.0), "branch/refund/closed": (3, 1.0)}
    held = _held(families, fell)
    assert set(held) == {"family/lookup", *fell}
    first = {"family/refund": 0.5, "family/lookup": 1.0, "branch/refund/open": 1.0, "branch/refund/closed": 0.0}
    assert sum(_losses(families, first)) == 0.0
    assert sum(_losses(held, first)) == pytest.approx(3 - 3 / 4)
    assert _held(families, {}) == families


def test_runs_whose_checks_broke_are_worth_nothing_and_said(project, tmp_path, caplog):
    """A policy must not be worth more for failing in a way that a check cannot read."""
    copy = Project(shutil.copytree(project.root, tmp_path / "copy", symlinks=True, ignore=shutil.ignore_patterns("trainings", "tasks")))
    copy.tasks.mkdir()
    desk = shutil.copytree(FIXTURES / "toy_desk", copy.tasks / "toy_desk")

    def found(n_tasks):
        with open_workspace(SFTConfig(**SFT), copy) as work, WorkerPool(work.taskset) as pool:
            model = Model.load(work.base, quantization="none")
            model.load_adapter("policy", work.registry.resolve("toy_desk@1")[1])
            return DevGate(model, "policy", work.taskset, pool, n_tasks=n_tasks)(0, {})

    whole = found(9)
    with open_workspace(SFTConfig(**SFT), copy) as work:
        broke = sum(sum(task.id.encode()) % 3 == 0 for task in spread(work.taskset.tasks("dev"), 9))
    assert 0 < broke < 9
    (desk / "criteria.py").write_text((desk / "criteria.py").read_text() + BREAKS)
    (desk / "criteria.yaml").write_text((desk / "criteria.yaml").read_text() + VETO)
    caplog.set_level(logging.WARNING, logger="agentalign")
    broken = found(9)
    assert broken.metrics["success"] == whole.metrics["success"], "what is known of success is still told"
    assert broken.score - 0.01 * broken.metrics["success"] <= (9 - broke) / 9
    assert broken.metrics["overall"] > broken.score, "the mean of what could be scored says nothing of the rest"
    assert f"{broke} runs could not be scored whole and count as worth nothing" in caplog.text
    assert "an answer that this check did not foresee" in caplog.text


@pytest.mark.parametrize(
    "criteria",
    [
        "honest:\n  description: Is it honest?\n  check: honest\n  gate: true\ntone:\n  description: Friendly?\n  scale: [1, 5]\n",
        "valid_calls:\n  description: Valid?\n  check: valid_calls\n  level: step\ntask_success:\n  description: Solved?\n",
    ],
    ids=["vetoes alone", "success is for people to tell"],
)
def test_where_no_check_says_what_a_run_is_worth_no_gate_begins(tmp_path, criteria):
    desk = shutil.copytree(FIXTURES / "toy_desk", tmp_path / "toy_desk")
    (desk / "criteria.yaml").write_text(criteria)
    taskset = load_taskset("toy_desk", tmp_path)
    with pytest.raises(DataError, match="the checks of taskset 'toy_desk' alone do not say what a dev run is worth"):
        DevGate(None, "policy", taskset, None, n_tasks=9)
    with pytest.raises(DataError, match="let a check answer it"):
        require_gate(SFTConfig(**SFT, eval_every_steps=5), taskset)
    require_gate(SFTConfig(**SFT), taskset)


def test_a_gate_is_there_by_itself_where_it_can_tell_something(project, caplog):
    def gate(**dials):
        config = SFTConfig(**SFT, **dials)
        with open_workspace(config, project) as work, WorkerPool(work.taskset) as pool:
            return dev_gate(None, "policy", work, pool, config, "toy_desk-sft-1")

    assert gate() is None and "has 30 dev tasks, and by fewer than 40 little can be told" in caplog.text
    assert len(gate(eval_every_steps=3).tasks) == 12
    settings = (project.tasks / "toy_desk").resolve() / "taskset.yaml"
    more = settings.read_text().replace("dev: 30", "dev: 40")
    (project.tasks / "toy_desk").unlink()
    shutil.copytree(settings.parent, project.tasks / "toy_desk")
    (project.tasks / "toy_desk" / "taskset.yaml").write_text(more)
    assert len(gate().tasks) == 12
    assert gate(eval_every_steps=0) is None
    assert [quarter(*one) for one in ((None, 10), (None, 3), (0, 10), (5, 10))] == [2, 1, 0, 5]
