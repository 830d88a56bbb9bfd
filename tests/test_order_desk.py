"""The taskset itself: what there is, that it is the same everywhere, and that the expert can go on from anywhere."""

import os
import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentalign.environments.check import check_taskset, expert_run
from agentalign.environments.taskset import Task, Taskset, load_taskset
from agentalign.environments.team_code import TeamCode
from agentalign.environments.worker import WorkerPool
from agentalign.errors import ToolError
from agentalign.records.base import digest
from agentalign.records.trajectory import Message, Origin, ToolCall, Trajectory

TASKS = Path(__file__).parents[1] / "tasks"
JUDGEMENT = ("cancel", "change_address", "refund", "remaining_refund")


@pytest.fixture(scope="module")
def desk() -> Taskset:
    return load_taskset("order_desk", TASKS)


@pytest.fixture(scope="module")
def code(desk: Taskset) -> Iterator[TeamCode]:
    with TeamCode(desk.folder) as code:
        yield code


def all_tasks_digest() -> str:
    return digest([task.model_dump(mode="json") for task in load_taskset("order_desk", TASKS).tasks()])


def test_splits_have_their_sizes_and_families_their_shares(desk: Taskset) -> None:
    assert {split: len(desk.tasks(split)) for split in ("train", "dev", "test")} == {"train": 600, "dev": 100, "test": 400}
    assert len({task.family for task in desk.tasks("train")}) == 17
    seen = [task for task in desk.tasks("test") if not task.unseen]
    assert 0.35 <= sum(task.family in JUDGEMENT for task in seen) / len(seen) <= 0.40
    assert Counter(task.family for task in desk.tasks("test") if task.unseen) == {"cancel_latest": 20, "refund_item": 20}
    assert not any(task.unseen for task in desk.tasks("train") + desk.tasks("dev"))
    assert not {task.family for task in desk.tasks("train") + desk.tasks("dev")} & {"cancel_latest", "refund_item"}


def test_every_branch_gets_half_of_its_family(desk: Taskset) -> None:
    for split in ("train", "dev", "test"):
        counts = Counter((task.family, task.branch) for task in desk.tasks(split))
        for family in {family for family, branch in counts if branch}:
            halves = [count for (name, _), count in counts.items() if name == family]
            assert len(halves) == 2
            assert abs(halves[0] - halves[1]) <= 1


def test_expert_runs_are_plenty_where_nothing_is_judged_and_thin_where_a_field_decides(desk: Taskset) -> None:
    shown = Counter((task.family, task.branch) for task in desk.tasks("train") if "expert" in task.tags)
    thin = {(family, branch): count for (family, branch), count in shown.items() if family in JUDGEMENT}
    assert len(thin) == 8
    assert all(count == desk.settings.generator["demonstrations"][family] <= 12 for (family, _), count in thin.items())  # type: ignore[index]
    assert all("expert" in task.tags for task in desk.tasks("train") if task.family not in JUDGEMENT)
    assert not any(task.tags for task in desk.tasks("dev") + desk.tasks("test"))
    assert 400 <= sum(shown.values()) <= 600


def test_no_order_customer_or_email_is_in_two_splits(desk: Taskset) -> None:
    entities = {
        split: set(re.findall(r"\bW\d{4}\b|\bC\d{3}\b|[\w.]+@mail\.com", " ".join(task.data for task in desk.tasks(split))))
        for split in ("train", "dev", "test")
    }
    assert all(len(found) > 100 for found in entities.values())
    assert not entities["train"] & entities["dev"]
    assert not entities["train"] & entities["test"]
    assert not entities["dev"] & entities["test"]


def test_tasks_are_the_same_in_every_process() -> None:
    script = "import sys; sys.path.insert(0, 'tests'); from test_order_desk import all_tasks_digest; print(all_tasks_digest())"
    environment = os.environ | {"PYTHONHASHSEED": "12345", "PYTHONPATH": str(TASKS.parent)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=TASKS.parent, env=environment)
    assert done.stdout.strip() == all_tasks_digest(), done.stderr


def test_the_expert_solves_every_task_of_every_split_and_runs_replay(desk: Taskset, code: TeamCode) -> None:
    report = check_taskset(desk, code)
    assert report.problems == ()
    assert report.played == 1100


def test_the_expert_wastes_no_call_and_tasks_take_up_to_six(desk: Taskset, code: TeamCode) -> None:
    made = {task.id: sum(len(step.message.tool_calls) for step in expert_run(desk, task, code).steps) for task in desk.tasks("test")}
    assert made == {task.id: task.values["calls"] for task in desk.tasks("test")}
    assert set(made.values()) == set(range(7))


def test_the_expert_plays_the_same_in_a_worker(desk: Taskset, code: TeamCode) -> None:
    tasks = desk.tasks("dev")[::10]
    with WorkerPool(desk, 2, seconds=60) as pool:
        runs = [expert_run(desk, task, pool, slot) for slot, task in enumerate(tasks)]
    assert [run.id for run in runs] == [expert_run(desk, task, code).id for task in tasks]


def test_prompt_and_results_are_short_enough_for_a_small_model(desk: Taskset, code: TeamCode) -> None:
    assert len(desk.system_prompt) < 500
    assert len(desk.tools) < 2800
    for task in desk.tasks("dev"):
        run = expert_run(desk, task, code)
        assert max(len(message.content) for message in run.messages[1:]) < 160


def test_one_customer_cannot_be_told_from_the_request_which_branch_is_right(desk: Taskset) -> None:
    for family in JUDGEMENT:
        words: dict[str, set[str]] = {}
        for task in desk.tasks("train"):
            if task.family == family:
                plain = re.sub(r"\bW\d{4}\b|\d+ \w+ (Road|Street|Lane)", "X", str(task.values["prompt"]))
                words.setdefault(task.branch, set()).add(plain)
        first, second = words.values()
        assert first == second


def _wander(task: Task, code: TeamCode, rng: random.Random, steps: int) -> list[Message]:
    """A careless agent: random calls with the task's own entities, sometimes broken ones."""
    messages = [Message(role="system", content="s"), *code.reset(0, task)]
    orders = [*re.findall(r'"order_id":"(W\d{4})"', task.data), "W0000"]
    customers = re.findall(r'"customer_id":"(C\d{3})"', task.data)
    emails = re.findall(r"[\w.]+@mail\.com", task.data)
    for number in range(steps):
        name, arguments = rng.choice(
            [
                ("find_customer", {"email": rng.choice(emails)}),
                ("list_orders", {"customer_id": rng.choice(customers)}),
                ("get_order", {"order_id": rng.choice(orders)}),
                ("get_payment", {"order_id": rng.choice(orders)}),
                ("cancel_order", {"order_id": rng.choice(orders)}),
                ("refund_order", {"order_id": rng.choice(orders), "amount": rng.choice((1, 5, 50))}),
                ("update_address", {"order_id": rng.choice(orders), "address": "1 Wrong Road"}),
                ("fly", {"order_id": 3}),
            ]
        )
        call = ToolCall(id=f"w{number}", name=name, arguments=str(arguments).replace("'", '"'))
        try:
            result = Message(role="tool", content=code.call(0, call), tool_call_id=call.id)
        except ToolError as error:
            result = Message(role="tool", content=str(error), tool_call_id=call.id, error=True)
        messages += [Message(role="assistant", tool_calls=(call,)), result]
    return messages


def test_the_expert_goes_on_from_any_history_and_tells_the_truth_about_it(desk: Taskset, code: TeamCode) -> None:
    rng, clean = random.Random(5), 0
    for task in [*desk.tasks("train")[::4], *(task for task in desk.tasks("test") if task.unseen)]:
        for steps in (1, 3, 8):
            messages = _wander(task, code, rng, steps)
            before = len(messages)
            for _ in range(10):
                message = code.expert(0, task, messages)
                messages.append(message)
                for call in message.tool_calls:
                    # The expert's own calls always work.
                    messages.append(Message(role="tool", content=code.call(0, call), tool_call_id=call.id))
                if not message.tool_calls:
                    words = code.reply(0, messages)
                    if words is None:
                        break
                    messages.append(words)
            else:
                pytest.fail(f"{task.id}: the expert does not end")
            run = _as_run(task, messages)
            assert code.check("honest_report", run, task) is True, (task.family, task.branch, run.answer)
            start = _as_run(task, messages[:before])
            if code.check("policy_kept", start, task) and not _writes(messages[:before]):
                clean += 1
                assert code.check("task_success", run, task) is True, (task.family, task.branch, run.answer)
    assert clean > 30


def _as_run(task: Task, messages: list[Message]) -> Trajectory:
    return Trajectory(taskset="order_desk", messages=tuple(messages), origin=Origin(kind="rollout", reference="t"), task_id=task.id)


def _writes(messages: list[Message]) -> list[str]:
    writes = ("cancel_order", "refund_order", "update_address")
    return [call.name for message in messages for call in message.tool_calls if call.name in writes]
