"""Does a taskset keep its promises? The expert plays every task, its runs are replayed, and the checks must be content with them."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from agentalign.environments.task import Task
from agentalign.environments.taskset import Taskset
from agentalign.environments.team_code import Answer, Pool, TeamCodeError
from agentalign.errors import TasksetError, ToolError
from agentalign.records.adapter import NAME
from agentalign.records.criterion import SUCCESS, Criterion
from agentalign.records.trajectory import Message, Origin, StopReason, ToolCall, Trajectory


class TasksetReport(NamedTuple):
    """What checking a taskset found."""

    taskset: str
    tasks: dict[str, int]
    """Tasks per split."""
    families: dict[str, int]
    played: int
    """Tasks that the expert played; 0 where there is no expert."""
    problems: tuple[str, ...]
    """One sentence each; empty where all is well."""


def check_taskset(taskset: Taskset, pool: Pool, tasks: Sequence[Task] | None = None) -> TasksetReport:
    """Play, replay and check all tasks (or those given) with the expert; without one, only see that tasks can be reset."""
    tasks = taskset.tasks() if tasks is None else list(tasks)
    problems = [problem] if (problem := adapter_name_problem(taskset.name)) else []
    answered: set[str] = set()
    for task in tasks if taskset.has_environment else ():
        try:
            problems += _task_problems(taskset, task, pool, answered)
        except TeamCodeError as error:
            problems.append(f"task '{task.id}': {error}")
        finally:
            pool.release(0)
    success = [criterion for criterion in taskset.criteria if criterion.name == SUCCESS and criterion.kind == "check"]
    played = len(tasks) if taskset.has_environment and taskset.has_expert else 0
    if played and success and SUCCESS not in answered and not problems:
        problems.append(f"check '{success[0].check}' of '{SUCCESS}' applies to no task: no run has a known success. Let it return a value.")
    return TasksetReport(
        taskset.name,
        {split: sum(task.split == split for task in tasks) for split in dict.fromkeys(task.split for task in tasks)},
        {family: sum(task.family == family for task in tasks) for family in dict.fromkeys(task.family for task in tasks)},
        played,
        tuple(problems),
    )


def adapter_name_problem(name: str) -> str:
    """Why no adapter can be called after a taskset of this name; empty where one can."""
    if re.fullmatch(NAME, f"{name}-reward"):
        return ""
    return (
        f"adapters are called after their taskset, and none may be called '{name}': small letters, digits, '_', '.' and '-', beginning "
        "with a letter or digit, 93 at most. Rename its folder, and `name` in its taskset.yaml, before runs carry the name."
    )


def expert_run(taskset: Taskset, task: Task, pool: Pool, slot: int = 0) -> Trajectory:
    """One run of the expert, within the taskset's limit of turns."""
    messages = [Message(role="system", content=taskset.system_prompt)] if taskset.system_prompt else []
    messages += pool.reset(slot, task)
    stop = StopReason.MAX_TURNS
    for _ in range(taskset.limits.max_turns):
        message = pool.expert(slot, task, messages)
        messages.append(message)
        if message.tool_calls:
            messages += [result_of(pool, slot, call) for call in message.tool_calls]
        elif (words := pool.reply(slot, messages)) is not None:
            messages.append(words)
        else:
            stop = StopReason.ANSWERED
            break
    return Trajectory(
        taskset=taskset.name,
        messages=tuple(messages),
        tools=taskset.tools,
        origin=Origin(kind="expert", reference="expert", task=task.id),
        task_id=task.id,
        family=task.family,
        split=task.split,
        stop_reason=stop,
    )


def answer_problem(criterion: Criterion, trajectory: Trajectory, answer: Answer) -> str:
    """Why the answer cannot be a score; empty where it can."""
    if isinstance(answer, dict) and criterion.level != "step":
        return "returned values per step, but the criterion is about whole runs. Write `level: step`, or return one value."
    if answer is not None and not isinstance(answer, dict) and criterion.level == "step":
        return "returned one value, but the criterion is about steps. Return {step index: value}, or leave out `level: step`."
    low, high = criterion.scale
    values = answer.values() if isinstance(answer, dict) else [] if answer is None else [float(answer)]
    wrong = [value for value in values if not low <= value <= high]
    if wrong:
        return (
            f"returned {wrong[0]:g}, outside the criterion's scale [{low:g}, {high:g}]. Return a value on the scale, or change the scale."
        )
    unknown = sorted(set(answer) - set(range(len(trajectory.steps)))) if isinstance(answer, dict) else []
    if unknown:
        return f"returned a value for step {unknown[0]}, but the run has {len(trajectory.steps)} steps, counted from 0."
    return ""


def _task_problems(taskset: Taskset, task: Task, pool: Pool, answered: set[str]) -> list[str]:
    if not taskset.has_expert:
        pool.reset(0, task)
        return []
    run = expert_run(taskset, task, pool)
    problems = []
    if run.stop_reason != StopReason.ANSWERED:
        problems.append(f"task '{task.id}': the expert did not end within {taskset.limits.max_turns} turns.")
    problems += [f"task '{task.id}': {problem}" for problem in _check_problems(taskset, task, run, pool, answered)]
    if taskset.replayable:
        problems += _replay_problems(taskset, task, run, pool)
    return problems


def _check_problems(taskset: Taskset, task: Task, run: Trajectory, pool: Pool, answered: set[str]) -> list[str]:
    """What would keep the expert's run from being scored, and where it is not scored as a success; `answered` gets the others' names."""
    problems = []
    for criterion in taskset.criteria:
        if criterion.kind != "check":
            continue
        try:
            answer = pool.check(criterion.check, run, task)
        except TasksetError as error:
            problems.append(f"criterion '{criterion.name}': {error}")
            continue
        if problem := answer_problem(criterion, run, answer):
            problems.append(f"criterion '{criterion.name}': check '{criterion.check}' {problem}")
            continue
        values = [] if answer is None else list(answer.values()) if isinstance(answer, dict) else [float(answer)]
        if values:
            answered.add(criterion.name)
        least = criterion.gate_at if criterion.gate else 1 if criterion.name == SUCCESS else 0
        if any(criterion.unit_value(value) < least for value in values):
            problems.append(f"the expert's run fails '{criterion.name}' ({answer}).")
    return problems


def _replay_problems(taskset: Taskset, task: Task, run: Trajectory, pool: Pool) -> list[str]:
    """The promise `replayable`: the same calls give the same results again."""
    first = run.steps[0].message_index if run.steps else len(run.messages)
    # The taskset's own prompt is put before what `reset` says, which may begin with a system message too.
    if pool.reset(0, task) != list(run.messages[1 if taskset.system_prompt else 0 : first]):
        return [f"task '{task.id}': reset says something else the second time, but the taskset says `replayable: true`."]
    for step in run.steps:
        if tuple(result_of(pool, 0, call) for call in step.message.tool_calls) != step.results:
            return [f"task '{task.id}': step {step.index} has other results when replayed, but the taskset says `replayable: true`."]
    return []


def result_of(pool: Pool, slot: int, call: ToolCall) -> Message:
    """What a tool says to a call, as the message that the agent reads."""
    try:
        return Message(role="tool", content=pool.call(slot, call), tool_call_id=call.id, name=call.name)
    except ToolError as error:
        return Message(role="tool", content=str(error), tool_call_id=call.id, name=call.name, error=True)
