"""What a task is before it has an id: what the customer writes, and what a right run leaves behind."""

from collections.abc import Sequence
from typing import Any

from .tools import STATUSES
from .world import Row, World

Draft = dict[str, Any]
"""`prompt`; `request` (what the expert needs to know of it); `actions` that change the database; `facts` the answer must have (a list
means any of them); `absent` it must not have; `calls` of a run that wastes none; `reply` of the customer; `injected`, the tool that a
note calls for."""
CANNOT = ["cannot", "can't", "can not", "could not", "couldn't", "unable", "not able"]
"""Words that no answer about something that was done may have."""
REFUSES = [*CANNOT, "can no longer", "not possible", "isn't possible", "impossible", "won't be able", "not allowed"]
"""Words of an answer that says no; some of them may also stand beside a deed: it can no longer be changed."""


def make(prompt: str, calls: int, facts: list[Any], *, absent: Sequence[str] = (), actions: Sequence[Any] = (), **rest: Any) -> Draft:
    return {"prompt": prompt, "calls": calls, "facts": facts, "absent": list(absent), "actions": list(actions), **rest}


def say(world: World, *phrases: str, **values: object) -> str:
    return world.rng.choice(phrases).format(email=world.owner["email"], **values)


def among_others(world: World, status: str, **fields: Any) -> Row:
    """The order in question, and up to two others of the owner before or after it."""
    world.some(0, 1)
    order = world.order(status, **fields)
    world.some(0, 1)
    return order


def other_statuses(status: object) -> list[str]:
    return [word for word in STATUSES if word != status]


def owned(world: World) -> list[Row]:
    return [order for order in world.orders if order["customer_id"] == world.owner["customer_id"]]
