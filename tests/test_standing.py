"""Where PPO's start stands: its own runs count, by the checks, and what it was not seen at is acted out first."""

import pytest

from agentalign.config.sft import SFTConfig
from agentalign.environments.task import Task
from agentalign.environments.worker import WorkerPool
from agentalign.recipes.standing import LOOKS, OPEN, by_checks, kind_of, missing_jobs, openness, standing
from agentalign.recipes.workspace import open_workspace
from agentalign.records.criterion import Criterion, Score
from agentalign.rollouts.policy import ExpertPolicy
from agentalign.rollouts.rollout import rollout
from agentalign.scoring.score import score_trajectories
from tests.small_project import SFT, make_scored

DONE = Criterion(name="done", description="Done?", kind="check", check="done")
TONE = Criterion(name="tone", description="Friendly?", scale=(1, 5))


def task(number, family, branch=""):
    return Task(id=f"t{number}", split="train", family=family, data={"branch": branch} if branch else {})


def test_every_kind_is_seen_once_before_any_is_seen_twice_and_what_was_seen_is_not_acted_out_again():
    tasks = [task(i, "refund", ("open", "closed")[i % 2]) for i in range(20)] + [task(20, "lookup"), task(21, "lookup")]
    seen = {"refund/closed": LOOKS - 2}
    jobs = missing_jobs(tasks, seen, most=100, seed=0)
    counts = {kind: sum(kind_of(job.task) == kind for job in jobs) for kind in ("refund/open", "refund/closed", "lookup/")}
    assert counts == {"refund/open": LOOKS, "refund/closed": 2, "lookup/": LOOKS}
    assert len({(job.task.id, job.sample) for job in jobs}) == len(jobs), "the same task again is another sample of it"
    assert len({job.task.id for job in jobs if job.task.family == "refund"}) == LOOKS + 2
    assert {kind_of(job.task) for job in missing_jobs(tasks, seen, most=3, seed=0)} == set(counts)
    assert jobs == missing_jobs(tasks, seen, most=100, seed=0)


def test_few_runs_that_all_went_well_leave_an_outcome_more_open_than_many():
    assert openness([True] * 6) == pytest.approx(openness([False] * 6))
    assert OPEN < openness([True] * 60) < openness([True] * 6) < openness([True, False] * 3) == pytest.approx(0.25 + OPEN)


def test_what_people_and_models_say_is_not_in_the_checks_value():
    said = [
        Score(trajectory="a" * 32, criterion="done@1", value=1.0, rater="check", rater_kind="check"),
        Score(trajectory="a" * 32, criterion="tone@1", value=1.0, rater="ada", rater_kind="human"),
        Score(trajectory="a" * 32, criterion="done@1", value=0.0, rater="ada", rater_kind="human"),
        Score(trajectory="b" * 32, criterion="tone@1", value=5.0, rater="ada", rater_kind="human"),
    ]
    assert by_checks((DONE, TONE), said) == {"a" * 32: 1.0}


def test_runs_of_another_policy_settle_nothing_and_the_starts_own_do(tmp_path):
    project = make_scored(tmp_path)  # its runs are the expert's
    with open_workspace(SFTConfig(**SFT), project) as work, WorkerPool(work.taskset) as pool:
        acted = []

        def look(jobs):
            acted.append(len(jobs))
            made = list(rollout(work.taskset, ExpertPolicy(pool), jobs, pool=pool))
            runs = [result.trajectory for result in made]
            return runs, score_trajectories(work.taskset, runs, pool=pool)

        kinds = {kind_of(one) for one in work.taskset.tasks("train")}
        found = standing(work, "toy_desk@1", look, project.trainings / "one" / "past.json", most=1000, seed=0)
        assert acted == [LOOKS * len(kinds)]
        assert set(found) == kinds
        assert all(past.weight == pytest.approx(openness([True] * LOOKS)) for past in found.values()), "an expert never fails"
        few = standing(work, "expert", look, project.trainings / "two" / "past.json", most=1000, seed=0)
        assert sum(acted) < 2 * acted[0], "thirty of its own runs are there"
        assert set(few) == kinds
