"""What PPO learns from: tasks that went differently from run to run, and how they are dealt to its steps."""

from collections import Counter

import numpy as np
import pytest
import torch

from agentalign.config.ppo import PPOConfig
from agentalign.errors import DataError
from agentalign.recipes.acting import answered, mostly_checks, require_worth, reward_units, unsettled
from agentalign.recipes.data import Part, Turn
from agentalign.recipes.experience import Experience, policy_batches, policy_loss
from agentalign.recipes.ppo import _shares
from agentalign.records.adapter import AdapterCard
from agentalign.records.criterion import Criterion
from agentalign.training.render import Rendered, RenderedTurn
from tests.test_attention import CONFIGS, make_model

CONFIG = PPOConfig(taskset="desk", num_mini_batches=2, seed=3)


def experience(task, sample, reward):
    context, words = (5, 6, 10 + task), (20 + sample, 21)
    run = Rendered(f"{task}/{sample}", (RenderedTurn(1, context, words),))
    nothing = torch.full((2,), -1.0)
    one = np.array([reward])
    return Experience(run, Part((Turn(context, words),)), reward, nothing, nothing, one, one - 0.5, one)


def test_each_step_has_of_every_task_runs_that_went_well_and_runs_that_did_not():
    made = [experience(task, sample, float(sample >= lost)) for task, lost in enumerate((2, 4, 2, 4, 2)) for sample in range(6)]
    for iteration in range(4):
        shares = _shares(made, CONFIG, iteration)
        assert sorted(one.run.trajectory for share in shares for one in share) == sorted(one.run.trajectory for one in made)
        for share in shares:
            counts = Counter((one.run.trajectory.split("/")[0], one.reward) for one in share)
            assert set(counts) == {(str(task), reward) for task in range(5) for reward in (0.0, 1.0)}
    with pytest.raises(DataError, match="too few for 2 mini-batches"):
        _shares(made[:1], CONFIG, 0)


@pytest.mark.parametrize(("samples", "parts"), [(6, 2), (4, 2), (8, 4), (4, 4), (5, 2)])
def test_no_step_has_the_worse_half_of_every_task(samples, parts):
    config = CONFIG.model_copy(update={"num_mini_batches": parts})
    made = [experience(task, sample, float(sample >= 1 + task % (samples - 1))) for task in range(20) for sample in range(samples)]
    whole = np.mean([one.reward for one in made])
    gaps = [[np.mean([one.reward for one in share]) - whole for share in _shares(made, config, iteration)] for iteration in range(20)]
    assert np.abs(np.mean(gaps, axis=0)).max() < 0.03, "a step that only raises, or only lowers"
    sizes = {len(share) for share in _shares(made, config, 0)}
    assert max(sizes) - min(sizes) <= 1


def test_checks_decide_what_is_settled_only_where_they_have_most_of_the_weight():
    valid = Criterion(name="valid", description="?", kind="check", check="valid", weight=1)
    veto = Criterion(name="veto", description="?", kind="check", check="veto", gate=True, weight=9)
    tone, help_ = (Criterion(name=name, description="?", scale=(1, 5), weight=3) for name in ("tone", "help"))
    assert mostly_checks([valid, tone], [])
    assert not mostly_checks([valid, veto, tone, help_], [tone, help_])
    assert mostly_checks([valid.model_copy(update={"weight": 6}), tone, help_], [tone, help_])


def test_a_reward_model_of_what_is_no_longer_asked_is_refused():
    valid = Criterion(name="valid", description="?", kind="check", check="valid")
    veto = Criterion(name="veto", description="?", kind="check", check="veto", gate=True)
    tone = Criterion(name="tone", description="?", scale=(1, 5), version=2)

    def card(criterion):
        return AdapterCard.model_construct(name="desk-reward", version=1, config=f'{{"criterion": "{criterion}"}}')

    require_worth([valid, tone], card("tone@2"))
    require_worth([valid], card("overall"))
    with pytest.raises(DataError, match=r"desk-reward@1 learned tone@1, .* there are: tone@2"):
        require_worth([valid, tone], card("tone@1"))
    with pytest.raises(DataError, match="no run would have a value"):
        require_worth([veto], card("overall"))


def test_rewards_are_mapped_by_where_they_stand_and_one_that_is_no_number_stays_none():
    far, none, mean, above, endless = reward_units([-1e6, float("nan"), 2.0, 5.0, float("inf")], 2.0, 3.0)
    assert (far, mean, above) == (pytest.approx(0.0, abs=1e-9), 0.5, pytest.approx(1 / (1 + np.exp(-1))))
    assert np.isnan([none, endless]).all(), "neither is worth 1"


def test_what_is_left_out_does_not_lend_its_weight_to_the_rest(tmp_path):
    model = make_model(tmp_path, CONFIGS["llama"])
    made = [experience(0, sample, float(sample)) for sample in range(2)]
    settled = [experience(1, sample, 0.5) for sample in range(2)]  # advantages of nothing
    found = []
    for runs, share in (((*made, *settled), 1.0), (made, 0.5)):
        model.network.zero_grad()
        (micro,) = policy_batches(runs, [], 4096)
        with model.using("policy"):
            term = policy_loss(model, micro, CONFIG, share=share).terms["policy"]
            (term.coefficient * term.values.sum() / micro.counts["policy"]).backward()
        found.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters_of("policy")]))
    assert float(found[0].norm()) > 0
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-7)


def test_a_reward_model_of_one_criterion_answers_that_one_alone():
    tone, help_ = (Criterion(name=name, description="?", scale=(1, 5)) for name in ("tone", "help"))
    done = Criterion(name="done", description="?", kind="check", check="done")

    def card(config):
        return AdapterCard.model_construct(config=config)

    assert answered((tone, help_, done), card("{}")) == [tone, help_]
    assert answered((tone, help_, done), card('{"criterion": "overall"}')) == [tone, help_]
    assert answered((tone, help_, done), card('{"criterion": "tone@1"}')) == [tone]


def test_tasks_that_every_run_won_or_lost_alike_are_not_learned_from():
    rewards, groups = [1.0, 0.0, 1.0, 0.95, 0.3], ["open", "open", "won", "won", "alone"]
    assert unsettled(rewards, groups) == [0, 1]
    assert unsettled(rewards, groups, alone=True) == [0, 1, 4]
    assert unsettled([1.0, 1.0, 0.0, 0.0], ["won", "won", "lost", "lost"]) == []
