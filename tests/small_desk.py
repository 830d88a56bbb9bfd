"""A project with a small taskset to rate by, and runs of it, for tests of the pages."""

import json
from pathlib import Path

from agentalign.config.project import Project
from agentalign.records.trajectory import Message, Origin, StopReason, ToolCall, Trajectory

HOME = "http://127.0.0.1:7860"
HOSTILE = (
    "<script>window.pwned=1</script>",
    '<img src=x onerror="window.pwned=1">',
    "${window.pwned=1} {{window.pwned=1}} `${7*7}`",
    "![beacon](http://203.0.113.1/x.png) [click](javascript:alert(1))",
    "</pre></textarea><iframe src='http://203.0.113.1'>",
    "C:\\new\\table \x1b[31mred\x1b[0m \u202egnp.exe \x00 end",
    "a lone \ud800 surrogate",
)
CRITERIA = """
tone:
  description: Is the agent friendly?
  scale: [1, 5]
  anchors: {"1": rude, "5": warm}
good_step:
  description: Is this step right?
  level: step
solved:
  description: Was the task done?
  check: solved
"""


def make_desk(folder: Path) -> Project:
    project = Project.create(folder)
    taskset = project.tasks / "desk"
    taskset.mkdir()
    (taskset / "taskset.yaml").write_text("name: desk\nsystem_prompt: Help.\n")
    (taskset / "criteria.yaml").write_text(CRITERIA)
    return project


def make_run(
    said: str = "Cancel order W1.",
    *,
    answer: str = "Done.",
    policy: str = "base",
    task: str | None = "t1",
    result: str = "cancelled",
    sample: int = 0,
    taskset: str = "desk",
) -> Trajectory:
    call = ToolCall(id="call-of-" + policy, name="cancel", arguments='{"order_id": "W1"}')
    return Trajectory(
        taskset=taskset,
        messages=(
            Message(role="system", content="Help."),
            Message(role="user", content=said),
            Message(role="assistant", tool_calls=(call,)),
            Message(role="tool", content=result, tool_call_id=call.id, name="cancel"),
            Message(role="assistant", content=answer),
        ),
        origin=Origin(kind="rollout", reference=policy, task=task or "", sample=sample),
        task_id=task,
        family="cancelling",
        split="train",
        stop_reason=StopReason.ANSWERED,
        created="2026-01-02T03:04:05.000000+00:00",
        seconds=1.5,
    )


def long_run(n_steps: int, *, sample: int = 0) -> Trajectory:
    """A run of so many calls, the 31st of which fails where there are so many."""
    messages: list[Message] = [Message(role="user", content="Count.")]
    for step in range(n_steps):
        call = ToolCall(
            id=f"c{step}", name="count", arguments=json.dumps({"to": step, "notes": {"by": ["twos"] * 8, "from": 0}, "why": "x" * 60})
        )
        messages.append(Message(role="assistant", content=f"Now {step}.", tool_calls=(call,)))
        messages.append(Message(role="tool", content=f"counted {step}", tool_call_id=call.id, name="count", error=step == 30))
    return Trajectory(taskset="desk", messages=tuple(messages), origin=Origin(kind="rollout", reference="base", sample=sample))
