"""What a training began with is written down whole, and a training that learns something else is another one."""

import json
import re

import pytest

from agentalign.cli_team import _learned_from
from agentalign.config.dpo import DPOConfig
from agentalign.config.kto import KTOConfig
from agentalign.config.sft import SFTConfig
from agentalign.environments.task import Task
from agentalign.environments.worker import WorkerPool
from agentalign.errors import TrainingError
from agentalign.recipes import dpo, kto
from agentalign.recipes.begun import BESIDE_FILE, LABELS_FILE, TrainedOn, write_whole
from agentalign.recipes.ppo import reward_rules
from agentalign.recipes.standing import standing
from agentalign.recipes.workspace import open_workspace
from agentalign.records.criterion import Criterion, Score
from agentalign.rollouts.policy import ExpertPolicy
from agentalign.rollouts.rollout import Job, rollout
from agentalign.scoring.score import score_trajectories
from agentalign.store.store import Store
from tests.small_project import DPO, SFT, make_scored


@pytest.fixture
def project(tmp_path):
    return make_scored(tmp_path)


def rate(project, run, value):
    """A person has the last word on whether a run was honest, which is a gate."""
    with Store(project.store_url) as store:
        (key,) = {score.criterion for score in store.scores([run]) if score.criterion.startswith("honest@")}
        store.add_scores([Score(trajectory=run, criterion=key, value=value, rater="ada", rater_kind="human")])


def test_a_run_that_was_rated_anew_makes_another_training_and_not_one_that_was_begun(project, caplog):
    config = KTOConfig(**DPO, origins=["expert"], good=0.5)
    with open_workspace(config, project) as work:
        runs, values = kto.choose_runs(work, config)
        first = {run.id: values[run.id] >= config.good for run in runs}
        ids = [run.id for run in runs]
        begun, folder = work.begin("kto", config, TrainedOn(ids, first))
        assert json.loads((folder / LABELS_FILE).read_text()) == first
        turned = first | {ids[0]: not first[ids[0]]}
        assert work.planned("kto", config, TrainedOn(ids, turned)).id != begun.id
        # Down, rated, and given again: it goes on with what it began with.
        assert work.frozen("kto", config, TrainedOn(ids, turned)) == TrainedOn(ids, first)
        assert "goes on with the data it began with; 1 newer items" in caplog.text
        work._done(begun, "adapter@1", "")
        assert work.frozen("kto", config, TrainedOn(ids, turned)) == TrainedOn(ids, turned)


def test_what_changes_no_result_is_written_beside_for_who_goes_on(project):
    config = SFTConfig(**SFT, report_to="tensorboard", gradient_checkpointing=True)
    with open_workspace(config, project) as work:
        begun, folder = work.begin("sft", config, TrainedOn(["a"]))
        assert begun.id == work.planned("sft", SFTConfig(**SFT), TrainedOn(["a"])).id
    assert json.loads((folder / BESIDE_FILE).read_text()) == {"report_to": "tensorboard", "gradient_checkpointing": True}


def test_labels_that_say_nothing_leave_a_trainings_name_as_it_was(project):
    config = SFTConfig(**SFT)
    with open_workspace(config, project) as work:
        assert work.planned("sft", config, TrainedOn(["a"])).id == work.planned("sft", config, TrainedOn(["a"], {}, [])).id


def test_other_weights_of_the_criteria_make_another_training_that_does_not_go_on_with_the_old_one(project):
    config = SFTConfig(**SFT)
    tone = Criterion(name="tone", description="Friendly?", weight=1)
    task, more = Task(id="t1", split="train"), Task(id="t2", split="train")
    light, heavy = (reward_rules([tone.model_copy(update={"weight": weight})], [task]) for weight in (1, 5))
    assert reward_rules([tone.model_copy(update={"description": "Is it friendly?"})], [task]) == light
    assert reward_rules([tone.model_copy(update={"weight": 1})], [task, more]) != light, "PPO's data are its tasks"
    with open_workspace(config, project) as work:
        begun, _ = work.begin("sft", config, TrainedOn(["a"], rules=light))
        assert work.frozen("sft", config, TrainedOn(["a", "b"], rules=light)).ids == ["a"]
        assert work.frozen("sft", config, TrainedOn(["a", "b"], rules=heavy)).ids == ["a", "b"]
        assert work.planned("sft", config, TrainedOn(["a"], rules=heavy)).id != begun.id


@pytest.mark.parametrize("left", ["", '["a"', "7"])
def test_a_data_file_that_was_cut_off_is_written_anew_by_the_same_command(project, left, caplog):
    config = SFTConfig(**SFT)
    with open_workspace(config, project) as work:
        begun, folder = work.begin("sft", config, TrainedOn(["a", "b"]))
        whole = (folder / "data.json").read_text()
        (folder / "data.json").write_text(left)
        about = work.frozen("sft", config, TrainedOn(["a", "b"]))
        assert work.begin("sft", config, about)[0].id == begun.id
        assert (folder / "data.json").read_text() == whole
        # Newer data cannot go on with what nobody can read.
        (folder / "data.json").write_text(left)
        assert work.frozen("sft", config, TrainedOn(["a", "b", "c"])).ids == ["a", "b", "c"]
        assert f"what training {begun.id} began with cannot be read" in caplog.text


def test_what_is_written_down_is_not_touched_again_and_a_refusal_is_a_sentence(tmp_path):
    file = tmp_path / "training" / "data.json"
    write_whole(file, ["a"])
    before = file.stat()
    write_whole(file, ["a"])
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    write_whole(file, ["b"])
    assert [path.name for path in file.parent.iterdir()] == ["data.json"]
    assert file.stat().st_ino != before.st_ino, "renamed, never cut off in place"
    with pytest.raises(TrainingError, match=r"was not written .*run the same command again"):
        write_whole(file / "below", ["a"])


def test_a_past_that_cannot_be_read_is_a_sentence(project):
    with open_workspace(SFTConfig(**SFT), project) as work:
        file = project.trainings / "one" / "past.json"
        first = standing(work, "expert", lambda jobs: ([], []), file, most=2, seed=0)
        assert first == standing(work, "nobody", lambda jobs: pytest.fail("acted out again"), file, most=2, seed=0)
        file.write_text("{")
        with pytest.raises(TrainingError, match=re.escape(str(file))):
            standing(work, "expert", lambda jobs: ([], []), file, most=2, seed=0)


def test_a_run_that_was_forgotten_while_its_training_was_down_is_made_again_and_not_kept(project):
    with open_workspace(SFTConfig(**SFT), project) as work, WorkerPool(work.taskset) as pool:
        jobs = [Job(task) for task in work.taskset.tasks("train")[:3]]
        made = list(rollout(work.taskset, ExpertPolicy(pool), jobs, seed=9, pool=pool))
        runs = [result.trajectory for result in made]
        scores = score_trajectories(work.taskset, runs, pool=pool)
        work.keep(made, scores)
        work.store.forget([runs[0].id], reason="a test")
        work.keep(made, scores)
        assert work.store.scores([runs[0].id]) == []
        assert len(work.store.scores([run.id for run in runs[1:]])) == len([s for s in scores if s.trajectory != runs[0].id])


def test_forget_names_trainings_whose_data_cannot_be_read(tmp_path):
    for name, text in (("empty", ""), ("number", "7"), ("other", '["b"]'), ("whole", '["a", "b"]')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "data.json").write_text(text)
    assert [line.split()[0] for line in _learned_from(tmp_path, {"c"}, {"other"})] == ["empty", "number", "other"]
    lines = _learned_from(tmp_path, {"a"})
    assert [line.split()[0] for line in lines] == ["empty", "number", "whole"]
    assert all("cannot be read" in line for line in lines[:2])
    assert "learned from some of it" in lines[2]


def test_dpo_holds_on_to_the_runs_that_were_good_when_it_began(project, caplog):
    """The better run of a pair fell below what may be learned from as it is: another training, unless one was begun."""
    with Store(project.store_url) as store:
        runs = [run.id for run in store.trajectories()]
    rate(project, runs[0], 0.0)
    config = DPOConfig(**DPO)
    with open_workspace(config, project) as work:
        found = {run.id: run for run in work.train_runs(["expert"])}
        good = dict.fromkeys(sorted(dpo.good_runs(work, found)), True)
        assert runs[1] in good and runs[0] not in good
        begun, _ = work.begin("dpo", config, TrainedOn(["pair"], good))
        rate(project, runs[1], 0.0)
        fewer = dict.fromkeys(sorted(dpo.good_runs(work, found)), True)
        assert set(good) - set(fewer) == {runs[1]}
        assert work.planned("dpo", config, TrainedOn(["pair"], fewer)).id != begun.id
        assert work.frozen("dpo", config, TrainedOn(["pair"], fewer)).labels == good
    assert "1 newer items" in caplog.text
