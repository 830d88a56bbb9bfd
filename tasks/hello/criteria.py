"""The checks that criteria.yaml names: True, False, a number on the scale, or None where a check does not apply."""

from agentalign import Task, Trajectory


def right_name(trajectory: Trajectory, task: Task | None) -> bool | None:
    if task is None:
        return None
    name = str(task.values["name"])
    return name in trajectory.answer if name else "?" in trajectory.answer


def looked_up(trajectory: Trajectory, task: Task | None) -> bool:
    return any(call.name == "find_name" for step in trajectory.steps for call in step.message.tool_calls)
