"""Which route asks for which role: the one table, enforced in front of every route of ours and printed in SECURITY.md.

A route that is missing here is for admins alone, so that a forgotten line closes a door and opens none; a test names it. Gradio's own
routes are not ours: the guard keeps everybody out of them who is not logged in.
"""

from typing import NamedTuple

from fastapi import Request

from agentalign.store.accounts import Role
from agentalign.ui.auth import require


class Rule(NamedTuple):
    """Who may use a route."""

    method: str
    path: str
    role: Role | None
    """The lowest role; None for anybody."""
    is_own: bool = False
    """About one person's own thing: to everyone else, whatever their role, it does not exist."""


RULES = (
    Rule("GET", "/login", None),
    Rule("POST", "/api/login", None),
    Rule("POST", "/api/logout", "rater"),
    Rule("GET", "/api/session", "rater"),
    Rule("GET", "/api/choices", "rater"),
    Rule("GET", "/api/runs", "rater"),
    Rule("GET", "/api/runs/{run}", "rater"),
    Rule("GET", "/api/runs/{run}/tokens", "rater"),
    Rule("POST", "/api/scores", "rater"),
    Rule("POST", "/api/scores/many", "rater"),
    Rule("POST", "/api/compare", "rater"),
    Rule("POST", "/api/preferences", "rater", is_own=True),
    Rule("GET", "/api/export/{what}.{form}", "lead"),
    Rule("GET", "/api/runs/{run}/links", "rater"),
    Rule("GET", "/api/runs/{run}/corrections", "rater"),
    Rule("POST", "/api/corrections", "rater"),
    Rule("POST", "/api/corrections/withdrawn", "rater"),
    Rule("GET", "/api/guidelines", "rater"),
    Rule("GET", "/run/{run}", None),
    Rule("GET", "/api/agreement", "lead"),
    Rule("GET", "/api/agreement/cases", "lead"),
    Rule("GET", "/api/agreement/case", "lead"),
    Rule("POST", "/api/decisions", "lead"),
    Rule("POST", "/api/decisions/pair", "lead"),
    Rule("GET", "/api/lineage/adapters", "lead"),
    Rule("GET", "/api/lineage", "lead"),
    Rule("GET", "/api/trainings", "lead"),
    Rule("GET", "/api/trainings/form", "lead"),
    Rule("GET", "/api/trainings/{id}", "lead"),
    Rule("GET", "/api/trainings/{id}/curves", "lead"),
    Rule("POST", "/api/trainings/plans", "lead"),
    Rule("GET", "/api/trainings/plans/{token}", "lead"),
    Rule("POST", "/api/trainings", "lead"),
    Rule("POST", "/api/trainings/{id}/stop", "lead"),
    Rule("POST", "/api/trainings/{id}/resume", "lead"),
    Rule("GET", "/api/adapters/{name}/{version}/checks", "lead"),
    Rule("POST", "/api/adapters/{name}/{version}/checks", "lead"),
    Rule("POST", "/api/adapters/{name}/{version}/promote", "lead"),
    Rule("GET", "/api/play", "rater"),
    Rule("GET", "/api/play/tasks", "rater"),
    Rule("POST", "/api/play/model", "lead"),
    Rule("POST", "/api/play/model/unload", "lead"),
    Rule("POST", "/api/play/chats", "rater"),
    Rule("GET", "/api/play/chats/{chat}", "rater", is_own=True),
    Rule("POST", "/api/play/chats/{chat}/say", "rater", is_own=True),
    Rule("POST", "/api/play/chats/{chat}/customer", "rater", is_own=True),
    Rule("POST", "/api/play/chats/{chat}/call", "rater", is_own=True),
    Rule("POST", "/api/play/chats/{chat}/stop", "rater", is_own=True),
    Rule("POST", "/api/play/chats/{chat}/resume", "rater", is_own=True),
    Rule("POST", "/api/play/chats/{chat}/rewrite", "rater", is_own=True),
    Rule("POST", "/api/play/chats/{chat}/branch", "rater", is_own=True),
    Rule("POST", "/api/play/chats/{chat}/keep", "rater", is_own=True),
    Rule("POST", "/api/play/chats/{chat}/discard", "rater", is_own=True),
    Rule("GET", "/api/queue", "rater"),
    Rule("POST", "/api/queue/next", "rater"),
    Rule("POST", "/api/queue/{assignment}/beat", "rater", is_own=True),
    Rule("POST", "/api/queue/{assignment}/done", "rater", is_own=True),
    Rule("POST", "/api/queue/{assignment}/skip", "rater", is_own=True),
    Rule("GET", "/api/queue/items", "lead"),
    Rule("POST", "/api/queue/items", "lead"),
    Rule("POST", "/api/queue/items/status", "lead"),
    Rule("POST", "/api/queue/items/gold", "lead"),
    Rule("POST", "/api/queue/pairs", "lead"),
    Rule("POST", "/api/queue/pairs/gold", "lead", is_own=True),
)


def enforce(request: Request) -> None:
    """401 or 403 where the person of this request may not use its route."""
    path = getattr(request.scope.get("route"), "path", "")
    method = "GET" if request.method == "HEAD" else request.method
    rule = next((rule for rule in RULES if (rule.method, rule.path) == (method, path)), None)
    role = "admin" if rule is None else rule.role
    if role is not None:
        require(request, role)


def may(role: Role | None, rule: Rule) -> bool:
    """Whether somebody of this role (None: nobody in particular) may use the route."""
    order: tuple[Role | None, ...] = (None, "rater", "lead", "admin")
    return order.index(role) >= order.index(rule.role)


def table() -> str:
    """The rules as SECURITY.md shows them."""
    people: tuple[Role | None, ...] = (None, "rater", "lead", "admin")
    lines = ["| route | nobody, expired | rater | lead | admin | someone else's |", "|---|---|---|---|---|---|"]
    for rule in RULES:
        cells = ["yes" if may(role, rule) else "401" if role is None else "403" for role in people]
        lines.append(f"| `{rule.method} {rule.path}` | {' | '.join(cells)} | {'no' if rule.is_own else ''} |")
    return "\n".join(lines)
