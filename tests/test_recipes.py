"""All recipes after each other on a two-layer model and a one-tool desk: every stage trains, remembers, resumes and can be loaded."""

import json
import logging
import os
import shutil
import signal
from dataclasses import replace

import pytest

from agentalign.config.dpo import DPOConfig
from agentalign.config.ppo import PPOConfig
from agentalign.config.project import Project
from agentalign.config.reward import RewardConfig
from agentalign.config.sft import SFTConfig
from agentalign.environments.taskset import load_taskset
from agentalign.errors import DataError, RegistryError, TasksetError, TrainingError, TrainingStoppedError
from agentalign.evaluation.run_eval import EvalPlan, evaluate
from agentalign.recipes import dpo, ppo, reward, sft
from agentalign.recipes.begun import TrainedOn
from agentalign.recipes.data import render_runs
from agentalign.recipes.dry_run import DryRun
from agentalign.recipes.start import base_name, resolve_start
from agentalign.recipes.token_notes import notes_of
from agentalign.recipes.workspace import open_workspace
from agentalign.records.criterion import overall_by_run
from agentalign.records.golden import Golden
from agentalign.records.trajectory import Message, ToolCall, Trajectory
from agentalign.store.filters import RunFilter
from agentalign.store.registry import Registry
from agentalign.store.store import Store
from agentalign.training.dialect import Dialect
from agentalign.training.top_tokens import apart
from tests.small_project import DPO, FIXTURES, PPO, REWARD, SFT, TINY, make_project


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return make_project(tmp_path_factory.mktemp("project"))


class Ends(logging.Handler):
    """Asks this process to end where a line is logged that begins so."""

    def __init__(self, line):
        super().__init__()
        self.line = line

    def emit(self, record):
        if record.getMessage().startswith(self.line):
            os.kill(os.getpid(), signal.SIGTERM)


def rows(project, training):
    return [json.loads(line) for line in (project.trainings / training.id / "metrics.jsonl").read_text().splitlines()]


def test_sft_leaves_an_adapter_that_knows_where_it_came_from(project):
    card, folder = Registry(project.adapters).resolve("toy_desk@1")
    assert (card.recipe, card.kind, card.quantization) == ("sft", "policy", "none")
    assert card.data_counts["expert"] > 0
    assert json.loads(card.config)["max_steps"] == 10
    assert (folder / "chat_template.jinja").read_text() == (FIXTURES / "tiny" / "chat_template.jinja").read_text()
    Registry(project.adapters).verify("toy_desk@1")


def test_a_policy_leaves_golden_turns_and_what_identifies_its_base(project):
    card, folder = Registry(project.adapters).resolve("toy_desk@1")
    golden = Golden.model_validate_json((folder / "golden.json").read_bytes())
    assert golden.held_out and golden.turns and golden.noise < 1e-4
    assert {task.split for task in load_taskset("toy_desk", project.tasks).tasks() if task.id in {t.task for t in golden.turns}} == {"dev"}
    for turn in golden.turns:
        assert len(turn.adapter) == len(turn.base) == len(turn.completion) > 0
        assert {top[0][1] <= 0 for top in turn.adapter} == {True}
    # Ten steps on a two-layer model: rounded to bf16, what they changed is seen at fewer places.
    least = (100 if golden.dtype == "float32" else 20) * max(golden.noise, 1e-6)
    assert any(apart(turn.adapter, turn.base) > least for turn in golden.turns)
    assert "model.safetensors" in card.base_files and card.quantization_recipe["dtype"] and card.seed == 0
    assert "tokenizer_config.json" in card.files and card.dev_scores


def test_the_card_alone_repeats_the_run_and_another_seed_does_not(project, tmp_path):
    card, folder = Registry(project.adapters).resolve("toy_desk@1")
    weights = (folder / "adapter_model.safetensors").read_bytes()
    for name, more, equal in (("same", {}, True), ("other", {"seed": 1}, False)):
        root = shutil.copytree(project.root, tmp_path / name, symlinks=True, ignore=shutil.ignore_patterns("trainings"))
        copy = Project(root)
        shutil.rmtree(copy.adapters)
        with Store(copy.store_url) as store:
            store.save_training(store.training(card.training).model_copy(update={"status": "failed"}))
        again = sft.run(SFTConfig(**json.loads(card.config) | more), copy)
        repeated, files = Registry(copy.adapters).resolve(again.adapter)
        assert ((files / "adapter_model.safetensors").read_bytes() == weights) is equal
        assert repeated.data_digest == card.data_digest


def test_same_command_again_returns_the_finished_training(project):
    # A tracker changes no result, so it makes no other training.
    again = sft.run(SFTConfig(**SFT, max_steps=10, eval_every_steps=5, report_to="tensorboard"), project)
    assert again.adapter == "toy_desk@1"
    assert len(Registry(project.adapters).list()) >= 1


def test_without_a_start_a_recipe_does_not_build_on_its_own_result(project):
    config = DPOConfig(**DPO, max_steps=1, seed=11, contrasts=True)
    first = dpo.run(config, project)
    assert Registry(project.adapters).resolve("toy_desk")[0].ref == first.adapter
    assert dpo.run(config, project).id == first.id, "the same command began another training, on top of its own result"
    with open_workspace(config, project) as work:
        assert resolve_start(work, config, "ppo")[0].start == first.adapter


def test_a_base_that_is_not_named_is_that_of_the_adapter_to_continue(project):
    registry = Registry(project.adapters)
    base = registry.resolve("toy_desk@1")[0].base
    unnamed = DPOConfig(**{key: value for key, value in DPO.items() if key != "base"}, max_steps=1, seed=31)
    for config in (unnamed, unnamed.model_copy(update={"start": "toy_desk@1"})):
        with open_workspace(config, project) as work:
            assert work.base.name == base
            about = TrainedOn(["a run"])
            named = config.model_copy(update={"base": base})
            assert work.planned("dpo", config, about).id == work.planned("dpo", named, about).id, "naming it made another training"
            assert json.loads(work.planned("dpo", config, about).config)["base"] == base
    assert base_name(SFTConfig(taskset="toy_desk"), registry, "toy_desk") == "smollm2-135m", "sft begins with the bare base"
    assert base_name(SFTConfig(taskset="toy_desk", start="toy_desk@1"), registry, "toy_desk") == base
    assert base_name(unnamed, registry, "nothing_yet") == "smollm2-135m"


def test_a_base_that_only_a_card_names_is_never_fetched(project, monkeypatch):
    registry = Registry(project.adapters)
    card, folder = registry.resolve("toy_desk@1")
    unnamed = DPOConfig(**{key: value for key, value in DPO.items() if key != "base"})
    for name in ("stranger/model", "../../nowhere", "not a name \x1b[2J", "~nobody/model", "long/" * 2000, "no\0thing"):
        monkeypatch.setattr(Registry, "resolve", lambda _self, _ref, name=name: (card.model_copy(update={"base": name}), folder))
        with pytest.raises(RegistryError, match=r"not on this machine\. If you trust it, name it: base") as refused:
            base_name(unnamed, registry, "toy_desk")
        assert "\x1b" not in str(refused.value)


def test_going_on_with_another_quantization_is_said(project, caplog):
    with open_workspace(DPOConfig(**DPO), project) as work:
        resolve_start(work, DPOConfig(**DPO, start="toy_desk@1"), "dpo")
        assert not [one for one in caplog.records if "quantization" in one.message]
        resolve_start(work, DPOConfig(**DPO | {"quantization": "nf4"}, start="toy_desk@1"), "dpo")
    assert "toy_desk@1 was trained with quantization none and goes on with nf4" in caplog.text


def test_a_start_is_found_in_one_walk_however_often_policies_and_reward_models_took_turns(project, monkeypatch):
    with open_workspace(DPOConfig(**DPO), project) as work:
        first, _ = work.registry.resolve("toy_desk@1")
        cards = [first.model_copy(update={"version": 2, "recipe": "dpo", "parents": ("toy_desk@2",)})]  # by hand: its own parent
        for version in range(3, 60):
            ranked = f"toy_desk-reward@{version}"
            cards.append(first.model_copy(update={"name": "toy_desk-reward", "version": version, "parents": (f"toy_desk@{version - 1}",)}))
            cards.append(first.model_copy(update={"version": version, "parents": (f"toy_desk@{version - 1}", ranked)}))
        monkeypatch.setattr(Registry, "list", lambda _: [first, *cards])
        assert resolve_start(work, DPOConfig(**DPO), "dpo")[0].start == "toy_desk@1"


def test_a_parent_that_cannot_be_read_may_have_had_any_recipes_part(project, monkeypatch):
    with open_workspace(DPOConfig(**DPO), project) as work:
        first, _ = work.registry.resolve("toy_desk@1")
        monkeypatch.setattr(Registry, "list", lambda _: [first, first.model_copy(update={"version": 200, "parents": ("elsewhere@4",)})])
        with pytest.raises(RegistryError, match="there is no toy_desk@200"):  # the one that is taken, and is only in this list
            resolve_start(work, DPOConfig(**DPO), "dpo")
        damaged = project.adapters / "elsewhere" / "4"
        damaged.mkdir(parents=True)
        try:
            with pytest.raises(RegistryError, match=r"elsewhere@4 is damaged.*Name a start"):
                resolve_start(work, DPOConfig(**DPO), "dpo")
            assert resolve_start(work, DPOConfig(**DPO, start="toy_desk@1"), "dpo")[0].start == "toy_desk@1"
            older = first.model_copy(update={"version": 0, "parents": ("elsewhere@4",)})
            monkeypatch.setattr(Registry, "list", lambda _: [older, first])
            assert resolve_start(work, DPOConfig(**DPO), "dpo")[0].start == "toy_desk@1", "one that is fine is newer"
        finally:
            shutil.rmtree(damaged.parent)


def test_a_version_that_is_being_copied_in_stops_only_what_builds_on_its_own_name(project):
    config = SFTConfig(**SFT, max_steps=2, seed=77)
    coming = [project.adapters / "other" / "7", project.adapters / "toy_desk" / "99"]
    with open_workspace(config, project) as work:
        about = TrainedOn([run.id for run in sft.choose_runs(work, config)])
        try:
            coming[0].mkdir(parents=True)
            assert work.begin("sft", config, about)[0].status != "done"
            assert resolve_start(work, DPOConfig(**DPO), "dpo")[0].start == "toy_desk@1"
            coming[1].mkdir()
            for build in (lambda: work.begin("sft", config, about), lambda: resolve_start(work, DPOConfig(**DPO), "dpo")):
                with pytest.raises(RegistryError, match="toy_desk@99 is damaged"):
                    build()
        finally:
            for folder in (coming[0].parent, coming[1]):
                shutil.rmtree(folder, ignore_errors=True)


def test_an_interrupted_training_goes_on_with_the_data_it_began_with(project, caplog):
    config = SFTConfig(**SFT, max_steps=2, seed=7)
    with open_workspace(config, project) as work:
        ids = [run.id for run in sft.choose_runs(work, config)]
        begun, folder = work.begin("sft", config, TrainedOn(ids[:-3]))
        assert json.loads((folder / "data.json").read_text()) == ids[:-3]
    done = sft.run(config, project)
    assert (done.id, done.status) == (begun.id, "done")
    assert "goes on with the data it began with; 3 newer items" in caplog.text
    assert Registry(project.adapters).resolve(done.adapter)[0].data_counts["expert"] == len(ids) - 3
    # Data that is gone is another matter: that is a new training.
    with open_workspace(config, project) as work:
        assert work.frozen("dpo", DPOConfig(**DPO), TrainedOn(["a", "b"])) == TrainedOn(["a", "b"])


def test_under_another_template_it_is_another_training(project):
    config = SFTConfig(**SFT, max_steps=10, eval_every_steps=5)
    with open_workspace(config, project) as work:
        about = TrainedOn([run.id for run in sft.choose_runs(work, config)])
        same = work.planned("sft", config, about)
        edited = replace(work, base=replace(work.base, template=work.base.template + " "))
        assert edited.planned("sft", config, about).id != same.id
        with pytest.raises(DataError, match=r"with another chat template than .* bring back what was changed"):
            resolve_start(edited, DPOConfig(**DPO, start="toy_desk@1"), "dpo")


def test_an_interrupted_training_does_not_go_on_under_other_checks(project, tmp_path, caplog):
    copy = Project(shutil.copytree(project.root, tmp_path / "copy", symlinks=True, ignore=shutil.ignore_patterns("trainings")))
    (copy.tasks / "toy_desk").unlink()
    shutil.copytree(FIXTURES / "toy_desk", copy.tasks / "toy_desk")
    config = SFTConfig(**SFT, max_steps=4, eval_every_steps=2, save_every_steps=1, seed=11)
    ends = Ends("step 3/")
    logging.getLogger("agentalign").addHandler(ends)
    try:
        with caplog.at_level("INFO"), pytest.raises(TrainingStoppedError):
            sft.run(config, copy)
    finally:
        logging.getLogger("agentalign").removeHandler(ends)
    checks = copy.tasks / "toy_desk" / "criteria.py"
    before = checks.read_text()
    checks.write_text(before + "\n\nMENDED = True\n")
    with pytest.raises(TrainingError, match=r"checks or environment were edited since training .* began"):
        sft.run(config, copy)
    checks.write_text(before)
    expert = copy.tasks / "toy_desk" / "expert.py"
    expert.write_text(expert.read_text() + "\n\nFASTER = True\n")
    assert sft.run(config, copy).status == "done", "no evaluation depends on who shows how it is done"


@pytest.mark.parametrize("credit", ["token", "turn", "run"])
def test_dpo_learns_from_pairs_and_writes_the_fields_names(project, credit):
    config = DPOConfig(**DPO, start="toy_desk@1", max_steps=4, credit=credit, learning_rate=1e-3, min_reference_prob=0.001, replay=2)
    training = dpo.run(config, project)
    first, last = rows(project, training)[0], rows(project, training)[-1]
    assert {"loss", "rewards/margins", "rewards/accuracies", "logps/chosen", "num_tokens"} <= first.keys()
    # fp32 and no quantization: the reference is the start, so the first margin is 0 and the loss log 2.
    assert first["rewards/margins"] == pytest.approx(0.0, abs=1e-3)
    assert first["loss/dpo"] == pytest.approx(0.6931, abs=1e-3)
    assert last["rewards/margins"] > 0.01
    card, _ = Registry(project.adapters).resolve(training.adapter)
    assert card.parents == ("toy_desk@1",)
    assert sum(count for name, count in card.data_counts.items() if name.startswith("pairs/")) > 0
    with Store(project.store_url) as store:
        pair = next(one for one in store.preferences("toy_desk") if one.decided)
    better, worse = (notes_of(project.trainings, item.trajectory, "base")[training.id] for item in pair.items)
    assert all(weight > 0 for note in better if note.said.startswith("chosen") for turn in note.turns for weight in turn.weight)
    assert any(weight < 0 for note in worse if note.said.startswith("rejected") for turn in note.turns for weight in turn.weight)
    if credit == "token":
        assert all(len(turn.weight) == 1 and turn.reference[0] <= 0 for note in (*better, *worse) for turn in note.turns)


def test_reward_model_ranks_held_out_pairs_and_ppo_acts_with_it(project):
    config = RewardConfig(**REWARD, start="toy_desk@1", max_steps=30, learning_rate=3e-3, report_to="tensorboard")
    training = reward.run(config, project)
    card, _ = Registry(project.adapters).resolve(training.adapter)
    assert (card.name, card.kind, card.heads) == ("toy_desk-reward", "reward", ("reward",))
    assert 0.5 <= card.metrics["accuracy"] <= 1.0
    assert card.metrics["reward_sd"] > 0
    assert list((project.trainings / training.id / "tensorboard").iterdir()), "the rows did not reach the tracker"

    small = PPOConfig(
        **PPO, start="toy_desk@1", reward=card.ref, iterations=2, tasks_per_iteration=6, samples_per_task=3, critic_warmup_steps=3,
        eval_every_steps=1, learning_rate=1e-3, replay=2,
    )  # fmt: skip
    done = ppo.run(small, project)
    found = [row for row in rows(project, done) if "loss/policy" in row]
    assert len(found) == 2
    figures = {
        "reward/mean",
        "reward/gain",
        "kl",
        "clip_fraction",
        "loss/value",
        "kl_k3",
        "loss/nll",
        "peak_memory_gib",
        "learned",
        "tokens_per_run",
    }
    assert figures <= found[0].keys()
    # The second iteration acts the first one's tasks out again, and only then can tell.
    assert ["reward/rise" in row for row in found] == [False, True]
    # Before the first update policy and reference are one.
    assert found[0]["kl"] == pytest.approx(0.0, abs=1e-3)
    assert found[0]["kl_k3"] == pytest.approx(0.0, abs=1e-4)
    assert found[0]["clip_fraction"] == 0.0
    # The critic begins at what runs are worth on the whole: an error of the size of their squares would be one that begins at 0.
    with Store(project.store_url) as store:
        past = [
            run.id for run in store.trajectories(RunFilter(taskset="toy_desk", origin_kind="rollout")) if "/" not in run.origin.reference
        ]
        worth = overall_by_run(load_taskset("toy_desk", project.tasks).criteria, store.scores(past)).values()
    warmup = [json.loads(line) for line in (project.trainings / done.id / "critic" / "metrics.jsonl").read_text().splitlines()]
    assert warmup[0]["value_error"] < 0.5 * sum(value**2 for value in worth if value is not None) / len(worth)
    assert Registry(project.adapters).resolve(done.adapter)[0].parents == ("toy_desk@1", card.ref)
    with Store(project.store_url) as store:
        runs = list(store.trajectories(RunFilter(training=done.id)))
        made = [run for run in runs if run.origin.reference.startswith(f"{done.id}/") and run.split == "train"]
        assert len(made) == 36
        looked = [run for run in runs if run.origin.reference == f"{done.id}/dev-1"]
        assert len(looked) == 12
        assert {run.split for run in looked} == {"dev"}
        assert all(store.scores([run.id]) for run in looked), "a kept dev run says what it was worth"
        assert all(store.tokens(run.id) for run in made)
        noted = {run.id: notes_of(project.trainings, run.id, run.origin.reference).get(done.id, []) for run in made}
        learned = [notes[-1] for notes in noted.values() if notes]
        assert len(learned) == sum(row["learned"] for row in found)
        for run in made:
            for note in noted[run.id]:
                recorded = {turn.message_index: len(turn.completion) for turn in store.tokens(run.id).turns}
                assert {turn.message: len(turn.old) for turn in note.turns} == recorded, "a log-prob per token that was sampled"
                assert all(len(turn.reference) == len(turn.weight) and turn.advantage is not None for turn in note.turns)
        first = [turn for note in learned if "iteration 0" in note.said for turn in note.turns]
        assert all(turn.old == pytest.approx(turn.reference, abs=1e-3) for turn in first), "policy and reference begin as one"


@pytest.mark.parametrize("past", ["past runs", "none"])
def test_a_ppo_that_was_interrupted_tells_what_one_that_was_not_tells(project, tmp_path, caplog, past):
    """Asked to end while it acts in its second iteration, after the checkpoint of the first."""

    caplog.set_level(logging.INFO, logger="agentalign")

    def card(name, interrupted):
        copy = Project(shutil.copytree(project.root, tmp_path / name, symlinks=True, ignore=shutil.ignore_patterns("trainings")))
        ranked = reward.run(RewardConfig(**REWARD, start="toy_desk@1", max_steps=2), copy)
        if past == "none":
            with Store(copy.store_url) as store:
                store.forget([run.id for run in store.trajectories(RunFilter(taskset="toy_desk", origin_kind="rollout"))], reason="a test")
        config = PPOConfig(
            **PPO, start="toy_desk@1", reward=ranked.adapter, iterations=2, tasks_per_iteration=4, samples_per_task=2,
            critic_warmup_steps=2, eval_every_steps=2, save_every_steps=1, replay=2,
        )  # fmt: skip
        foreseen = ppo.run(config, copy, dry_run=True)
        # Without runs of its own the start is looked at first, but for no more runs than two iterations make.
        assert foreseen.items["runs to see where it stands"] == (0 if past == "past runs" else 16)
        ends, logger = Ends("iteration 1:"), logging.getLogger("agentalign")
        if interrupted:
            logger.addHandler(ends)
            try:
                with pytest.raises(TrainingStoppedError, match="step 1 is saved"):
                    ppo.run(config, copy)
            finally:
                logger.removeHandler(ends)
        return Registry(copy.adapters).resolve(ppo.run(config, copy).adapter)[0]

    whole, torn = card("whole", False), card("torn", True)
    assert torn.data_counts == whole.data_counts
    assert (torn.data_counts["rollouts"], torn.data_counts["critic warm-up steps"]) == (16, 2 if past == "past runs" else 0)
    assert torn.data_counts["runs of the start"] == (0 if past == "past runs" else 16)
    clocks = {"seconds", "tokens_per_second", "peak_memory_gib"}
    assert {name: value for name, value in torn.metrics.items() if name not in clocks} == pytest.approx(
        {name: value for name, value in whole.metrics.items() if name not in clocks}
    )


def test_ppo_raises_the_reward_it_is_trained_on(project):
    ranks = reward.run(RewardConfig(**REWARD, start="toy_desk@1", max_steps=10, learning_rate=3e-3), project)
    eager = PPOConfig(
        **PPO, start="toy_desk@1", reward=ranks.adapter, iterations=8, tasks_per_iteration=12, num_mini_batches=2, critic_warmup_steps=4,
        learning_rate=6e-3, temperature=1.0, kl_beta=0.005, nll_coefficient=0.0, seed=1,
    )  # fmt: skip
    done = ppo.run(eager, project)
    gains = [row["reward/gain"] for row in rows(project, done) if "reward/gain" in row][:: eager.num_mini_batches]
    assert len(gains) == 8
    assert sum(gains[-3:]) / 3 > sum(gains[:3]) / 3 + 0.1, gains


def test_adapter_is_evaluated_on_tasks_it_never_saw(project):
    with Store(project.store_url) as store:
        found = evaluate(project, store, "toy_desk@1", against="base", plan=EvalPlan(limit=12, base=TINY, quantization="none"))
    assert found.evaluation.split == "test"
    assert found.evaluation.everything.n == 12
    assert found.comparison is not None


def test_dry_run_says_what_it_would_do_and_does_nothing(project):
    before = [card.ref for card in Registry(project.adapters).list()]
    for module, config in ((sft, SFTConfig(**SFT, max_steps=7)), (dpo, DPOConfig(**DPO, start="toy_desk@1", max_steps=3))):
        found = module.run(config, project, dry_run=True)
        assert isinstance(found, DryRun)
        assert found.seconds > 0
        assert found.stats.trainable > 0
    assert [card.ref for card in Registry(project.adapters).list()] == before


def test_a_taskset_that_no_adapter_can_be_called_after_is_refused_before_any_work(project, tmp_path):
    empty = Project.create(tmp_path)
    empty.tasks.mkdir(exist_ok=True)
    shutil.copytree(FIXTURES / "toy_desk", empty.tasks / "ToyDesk")
    settings = empty.tasks / "ToyDesk" / "taskset.yaml"
    settings.write_text(settings.read_text().replace("name: toy_desk", "name: ToyDesk"))
    with pytest.raises(TasksetError, match="none may be called 'ToyDesk': small letters"):
        sft.run(SFTConfig(**{**SFT, "taskset": "ToyDesk"}), empty, dry_run=True)


def test_a_run_that_is_nested_too_deeply_is_refused_and_the_others_are_trained_on(project):
    config = SFTConfig(**SFT, max_refused=0.5)
    with open_workspace(config, project) as work:
        good = work.train_runs(["expert"])[0]
        call = ToolCall(id="c", name="order", arguments='{"item": ' + "[" * 500 + "]" * 500 + "}")
        said = (*good.messages[: good.steps[0].message_index], Message(role="assistant", tool_calls=(call,)))
        deep = Trajectory(taskset=good.taskset, messages=said, tools=good.tools, origin=good.origin)
        data = render_runs([deep, good], work.store, Dialect.load(work.base), config)
    assert list(data.rendered) == [good.id]
    assert [refusal.trajectory for refusal in data.refused] == [deep.id]


def test_preferences_on_dev_and_test_runs_are_never_trained_on(project):
    from agentalign.recipes.preferences import choose_preferences

    with open_workspace(SFTConfig(**SFT), project) as work:
        _, runs = choose_preferences(work, "overall")
        assert {run.split for run in runs.values()} == {"train"}
        assert {run.split for run in work.train_runs(["rollout", "expert"])} == {"train"}


def test_what_is_missing_is_one_sentence(project, tmp_path):
    empty = Project.create(tmp_path)
    empty.tasks.mkdir(exist_ok=True)
    (empty.tasks / "toy_desk").symlink_to(FIXTURES / "toy_desk")
    with pytest.raises(DataError, match="nothing to learn from"):
        sft.run(SFTConfig(**SFT), empty)
    with pytest.raises(RegistryError):
        dpo.run(DPOConfig(**DPO), empty)
    with pytest.raises(DataError, match="max_refused"):
        sft.run(SFTConfig(**SFT, max_tokens=40), project)
