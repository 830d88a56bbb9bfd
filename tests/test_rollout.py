"""Rollouts: how runs go, end and break, whatever the policy is."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from small_taskset import FILES, make_taskset

from agentalign.environments.taskset import Taskset
from agentalign.environments.team_code import TeamCode
from agentalign.environments.worker import WorkerPool
from agentalign.errors import TasksetError
from agentalign.records.trajectory import Message, StopReason, ToolCall, Trajectory, TurnTokens
from agentalign.rollouts.policy import ExpertPolicy, PolicyTurn, TurnRequest
from agentalign.rollouts.rollout import Job, rollout


def call(name: str, number: int = 3, id: str = "x") -> ToolCall:
    return ToolCall(id=id, name=name, arguments=json.dumps({"amount": number}))


class Script:
    """A policy that says what a function of the run's messages says."""

    name = "script"
    tokens_digest = "tokenizer"

    def __init__(self, act: Callable[[TurnRequest], PolicyTurn]) -> None:
        self._act = act
        self.sizes: list[int] = []
        self.finished: list[int] = []

    def act(self, requests: Sequence[TurnRequest]) -> list[PolicyTurn]:
        self.sizes.append(len(requests))
        return [self._act(request) for request in requests]

    def finish(self, slot: int) -> None:
        self.finished.append(slot)

    def runs_at_once(self, max_tokens: int) -> int:
        return 3


def says(*calls: ToolCall, content: str = "", **more: object) -> PolicyTurn:
    return PolicyTurn(Message(role="assistant", content=content, tool_calls=calls, **more))


def adds_then_answers(request: TurnRequest) -> PolicyTurn:
    last = request.messages[-1]
    return says(call("add")) if last.role == "user" else says(content=last.content)


@pytest.fixture
def taskset(tmp_path: Path) -> Taskset:
    return make_taskset(tmp_path)


@pytest.fixture
def pool(taskset: Taskset) -> Iterator[TeamCode]:
    with TeamCode(taskset.folder) as code:
        yield code


def run(taskset: Taskset, pool: TeamCode, act: Callable[[TurnRequest], PolicyTurn], task: str = "one") -> Trajectory:
    (result,) = rollout(taskset, Script(act), [Job(taskset.task(task))], pool=pool)
    return result.trajectory


def words(trajectory: Trajectory) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in trajectory.messages]


def test_a_run_says_all_about_itself(taskset, pool):
    (result,) = rollout(taskset, Script(adds_then_answers), [Job(taskset.task("one"), sample=2)], seed=9, pool=pool)
    found = result.trajectory
    assert words(found) == [
        ("system", "You count."),
        ("user", "Add 3 to 1."),
        ("assistant", ""),
        ("tool", "total: 4"),
        ("assistant", "total: 4"),
    ]
    assert found.stop_reason == StopReason.ANSWERED
    assert found.origin.model_dump() == {"kind": "rollout", "reference": "script", "task": "one", "sample": 2, "seed": 9}
    assert (found.taskset, found.task_id, found.family, found.split) == ("counter", "one", "easy", "train")
    assert [tool["function"]["name"] for tool in json.loads(found.tools)] == ["add", "crash"]
    assert json.loads(found.metadata) == {"tags": ["expert"], "task": {"start": 1}, "unseen": False}
    assert found.created
    assert found.seconds is not None
    assert result.tokens is None


def test_the_customer_may_go_on(taskset, pool):
    found = run(taskset, pool, adds_then_answers, "again")
    assert [content for role, content in words(found) if role == "user"] == ["Add 3 to 5.", "Add 3 again."]
    assert found.answer == "total: 11"
    assert found.stop_reason == StopReason.ANSWERED


def test_several_calls_of_one_turn_are_made_in_order_under_ids_of_their_own(taskset, pool):
    def act(request: TurnRequest) -> PolicyTurn:
        done = request.messages[-1].role == "tool"
        return says(content="done") if done else says(call("add", 1), call("nothing"), call("add", 2))

    found = run(taskset, pool, act)
    results = found.steps[0].results
    assert [(m.content, m.error) for m in results] == [("total: 2", False), ("unknown tool 'nothing'.", True), ("total: 4", False)]
    assert [m.tool_call_id for m in results] == [c.id for c in found.messages[2].tool_calls] == ["call_0", "call_1", "call_2"]


def test_arguments_that_do_not_fit_come_back_for_the_agent_to_read(taskset, pool):
    def act(request: TurnRequest) -> PolicyTurn:
        wrong = ToolCall(id="x", name="add", arguments='{"amount": "much"}')
        return says(content="sorry") if request.messages[-1].role == "tool" else says(wrong)

    found = run(taskset, pool, act)
    assert found.messages[3].error
    assert "amount" in found.messages[3].content
    assert found.stop_reason == StopReason.ANSWERED


def test_a_call_that_cannot_be_read_goes_back_as_an_error_message(taskset, pool):
    def act(request: TurnRequest) -> PolicyTurn:
        if request.messages[-1].role == "user":
            return says(content="<tool_call>{", malformed="the JSON ends too early")
        return says(content="I give up")

    found = run(taskset, pool, act)
    assert found.messages[2].content == "<tool_call>{"
    assert found.messages[3] == Message(role="tool", content="error: the tool call could not be read: the JSON ends too early", error=True)
    assert found.stop_reason == StopReason.ANSWERED


def test_turns_tokens_and_seconds_are_limited(taskset, pool, tmp_path):
    assert run(taskset, pool, lambda request: says(call("add"))).stop_reason == StopReason.MAX_TURNS
    cut = run(taskset, pool, lambda request: PolicyTurn(Message(role="assistant", content="and so on"), stopped=False))
    assert (cut.stop_reason, cut.answer) == (StopReason.MAX_TOKENS, "and so on")
    full = run(taskset, pool, lambda request: PolicyTurn(None, stopped=False))
    assert (full.stop_reason, len(full.messages)) == (StopReason.MAX_TOKENS, 2)
    home = tmp_path / "slow"
    home.mkdir()
    slow = make_taskset(home, taskset_yaml=FILES["taskset.yaml"].replace("max_seconds: 600", "max_seconds: 0"))
    assert run(slow, pool, lambda request: says(call("add"))).stop_reason == StopReason.MAX_SECONDS


def test_under_default_limits_no_run_of_a_slow_batch_ends_by_time(tmp_path, pool, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])

    def slow(request: TurnRequest) -> PolicyTurn:
        clock[0] += 30.0  # a round of eight takes four minutes
        return adds_then_answers(request)

    home = tmp_path / "slow"
    home.mkdir()
    taskset = make_taskset(home, taskset_yaml=FILES["taskset.yaml"].replace("max_seconds: 600, ", ""))
    jobs = [Job(taskset.task("one"), sample) for sample in range(8)]
    made = [result.trajectory.stop_reason for result in rollout(taskset, Script(slow), jobs, pool=pool, batch=8)]
    assert made == [StopReason.ANSWERED] * 8


def test_a_broken_tool_ends_its_run_alone_with_the_traceback(taskset, pool):
    def act(request: TurnRequest) -> PolicyTurn:
        return says(ToolCall(id="x", name="crash")) if request.task.id == "two" else adds_then_answers(request)

    jobs = [Job(taskset.task(name)) for name in ("one", "two", "broken", "again")]
    one, two, broken, again = [result.trajectory for result in rollout(taskset, Script(act), jobs, pool=pool)]
    assert one.stop_reason == again.stop_reason == StopReason.ANSWERED
    assert two.stop_reason == broken.stop_reason == StopReason.ERROR
    assert "a bug of the team" in two.error
    assert "Traceback" in two.error
    assert [message.role for message in two.messages] == ["system", "user", "assistant"]
    assert "no such counter" in broken.error
    assert [message.role for message in broken.messages] == ["system"]


def test_what_the_policy_cannot_do_for_one_run_ends_that_run(taskset, pool):
    found = run(taskset, pool, lambda request: PolicyTurn(None, error="the server is gone"))
    assert (found.stop_reason, found.error) == (StopReason.ERROR, "the server is gone")


@pytest.mark.parametrize("batch", [1, 2, 64])
def test_runs_come_in_the_order_of_the_jobs_and_do_not_depend_on_the_batch(taskset, pool, batch):
    jobs = [Job(taskset.task(name), sample) for sample in range(3) for name in ("again", "one", "broken", "two")]
    policy = Script(adds_then_answers)
    told: list[tuple[int, int]] = []
    found = [r.trajectory for r in rollout(taskset, policy, jobs, pool=pool, batch=batch, progress=lambda *at: told.append(at))]
    alone = [result.trajectory for job in jobs for result in rollout(taskset, Script(adds_then_answers), [job], pool=pool)]
    assert [t.id for t in found] == [t.id for t in alone]
    assert [t.origin.task for t in found] == [job.task.id for job in jobs]
    assert told == [(done, 12) for done in range(1, 13)]
    assert max(policy.sizes) <= batch
    assert len(policy.finished) == 12


def test_a_slot_is_free_for_the_next_job_when_its_run_ends(taskset, pool):
    policy = Script(adds_then_answers)
    jobs = [Job(taskset.task("again"))] + [Job(taskset.task("one"), sample) for sample in range(2)]
    list(rollout(taskset, policy, jobs, pool=pool, batch=2))
    # "again" takes four turns; in the meantime both runs of "one" take two each in the other slot.
    assert policy.sizes == [2, 2, 2, 2]


def test_an_iterator_that_is_left_early_gives_its_slots_back(taskset, pool):
    policy = Script(adds_then_answers)
    results = rollout(taskset, policy, [Job(taskset.task("one")), Job(taskset.task("again"))], pool=pool)
    next(results)
    results.close()
    assert sorted(policy.finished) == [0, 1]


def test_recorded_tokens_belong_to_the_run_and_the_tokenizer(taskset, pool):
    def act(request: TurnRequest) -> PolicyTurn:
        turn = adds_then_answers(request)
        tokens = TurnTokens(message_index=len(request.messages), context=(1, 2), completion=(3,), logprobs=(-0.5,))
        return turn._replace(tokens=tokens)

    (result,) = rollout(taskset, Script(act), [Job(taskset.task("one"))], pool=pool)
    assert result.tokens is not None
    assert (result.tokens.trajectory, result.tokens.base) == (result.trajectory.id, "tokenizer")
    assert [turn.message_index for turn in result.tokens.turns] == [step.message_index for step in result.trajectory.steps]


def test_the_expert_plays_through_workers(taskset):
    with WorkerPool(taskset, 1) as workers:
        policy = ExpertPolicy(workers)
        jobs = [Job(taskset.task(name)) for name in ("one", "again", "two")]
        one, again, two = [r.trajectory for r in rollout(taskset, policy, jobs, origin_kind="expert", pool=workers)]
    assert (one.answer, again.answer) == ("total: 4", "total: 11")
    assert one.origin.kind == "expert"
    assert one.origin.reference == "expert"
    # The expert gives each call the same id; in the run they are told apart.
    assert [c.id for step in again.steps for c in step.message.tool_calls] == ["call_0", "call_1"]
    assert two.stop_reason == StopReason.ERROR
    assert "the expert does not know" in two.error


def test_a_taskset_of_criteria_alone_makes_no_runs(tmp_path):
    taskset = make_taskset(tmp_path)
    for name in ("tools.py", "environment.py"):
        (taskset.folder / name).unlink()
    with TeamCode(taskset.folder) as pool, pytest.raises(TasksetError, match="criteria only"):
        rollout(taskset, Script(adds_then_answers), [], pool=pool)
