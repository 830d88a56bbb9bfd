"""Align open language models to a team's own criteria.

The public names, each imported when first used: `import agentalign` alone imports neither torch nor anything else that is slow.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agentalign.deployment.agent import load_agent as load_agent
    from agentalign.environments.taskset import Task as Task
    from agentalign.environments.taskset import Taskset as Taskset
    from agentalign.environments.taskset import load_taskset as load_taskset
    from agentalign.environments.tool import tool as tool
    from agentalign.errors import AgentAlignError as AgentAlignError
    from agentalign.errors import ToolError as ToolError
    from agentalign.records.criterion import Criterion as Criterion
    from agentalign.records.criterion import Score as Score
    from agentalign.records.criterion import overall as overall
    from agentalign.records.preference import Preference as Preference
    from agentalign.records.trajectory import Message as Message
    from agentalign.records.trajectory import ToolCall as ToolCall
    from agentalign.records.trajectory import Trajectory as Trajectory
    from agentalign.store.registry import Registry as Registry
    from agentalign.store.store import Store as Store

_HOMES = {
    "AgentAlignError": "agentalign.errors",
    "Criterion": "agentalign.records.criterion",
    "Message": "agentalign.records.trajectory",
    "Preference": "agentalign.records.preference",
    "Registry": "agentalign.store.registry",
    "Score": "agentalign.records.criterion",
    "Store": "agentalign.store.store",
    "Task": "agentalign.environments.taskset",
    "Taskset": "agentalign.environments.taskset",
    "ToolCall": "agentalign.records.trajectory",
    "ToolError": "agentalign.errors",
    "Trajectory": "agentalign.records.trajectory",
    "load_agent": "agentalign.deployment.agent",
    "load_taskset": "agentalign.environments.taskset",
    "overall": "agentalign.records.criterion",
    "tool": "agentalign.environments.tool",
}

__version__ = "0.1.0"
__all__ = sorted(["__version__", *_HOMES])  # noqa: PLE0605


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'agentalign' has no attribute '{name}'; it has {', '.join(__all__)}.")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
