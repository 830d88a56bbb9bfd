"""The fixtures that whole-chain tests stand on: a toy taskset, and a tiny model that can do most of it."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from agentalign.environments.check import check_taskset
from agentalign.environments.taskset import load_taskset
from agentalign.environments.team_code import TeamCode
from agentalign.rollouts.policy import LocalPolicy
from agentalign.rollouts.rollout import Job, rollout
from agentalign.training.base import prepare_base
from agentalign.training.dialect import Dialect
from agentalign.training.generate import Generator
from agentalign.training.render import render

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture(scope="module")
def taskset():
    return load_taskset(FIXTURES / "toy_desk")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return prepare_base(str(FIXTURES / "tiny"), tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def results(taskset, base):
    dialect = Dialect.load(base)
    model = AutoModelForCausalLM.from_pretrained(base.folder, dtype=torch.float32)
    policy = LocalPolicy(Generator(model, dialect.stop_ids, dialect.pad_id), dialect, "tiny", temperature=1.0, seed=0)
    return list(rollout(taskset, policy, [Job(task, 0) for task in taskset.tasks("test")], pool=TeamCode(taskset.folder)))


def test_the_toy_desk_keeps_its_promises(taskset):
    assert check_taskset(taskset, TeamCode(taskset.folder)).problems == ()


def test_the_tiny_model_is_under_a_megabyte(base):
    assert sum(file.stat().st_size for file in base.folder.iterdir()) < 1_000_000


def test_the_tiny_model_orders_what_is_asked_for_and_leaves_something_to_learn(taskset, results):
    pool = TeamCode(taskset.folder)

    def share(check: str, family: str) -> float:
        runs = [r.trajectory for r in results if r.trajectory.family == family]
        return sum(pool.check(check, run, taskset.task(run.task_id or "")) is not False for run in runs) / len(runs)

    assert share("task_success", "order") > 0.8
    assert 0.1 < share("honest", "sold_out") < 0.9
    assert 0.1 < share("asks_when_unclear", "unclear") < 0.9


def test_sampled_tokens_are_what_is_rendered(base, results):
    dialect = Dialect.load(base)
    for result in results:
        rendered = render(result.trajectory, dialect, tokens=result.tokens, max_tokens=320)
        assert [turn.completion for turn in rendered.turns] == [turn.completion for turn in result.tokens.turns]
        assert all(len(turn.logprobs) == len(turn.completion) for turn in rendered.turns)


def test_what_was_sampled_goes_on_into_the_next_prompt(results):
    for result in results:
        for before, after in zip(result.tokens.turns, result.tokens.turns[1:], strict=False):
            path = before.context + before.completion
            assert after.context[: len(path)] == path


def test_the_prompt_rendered_from_the_record_is_the_prompt_that_was_sent(base, results):
    dialect = Dialect.load(base)
    for result in results:
        first = result.tokens.turns[0]
        assert dialect.context_ids(result.trajectory.messages[: first.message_index], result.trajectory.tools) == list(first.context)
