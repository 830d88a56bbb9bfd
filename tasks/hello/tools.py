"""What the agent can do: typed functions. What it should read about a mistake is a ToolError."""

from agentalign import ToolError, tool

PEOPLE = {7: "Ada", 12: "Grace", 21: "Alan", 30: "Edsger"}


@tool
def find_name(badge: int) -> str:
    """Find the name that belongs to a badge.

    Args:
        badge: The number on the badge.
    """
    if badge not in PEOPLE:
        raise ToolError(f"nobody has badge {badge}.")
    return PEOPLE[badge]
