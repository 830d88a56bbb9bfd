"""Routes behind a run's page that other screens do not need: its relatives, and an address to send to others.

A run's relatives are the run it was forked from or corrects, and the runs that came from it. The surprise: `/run/ID#s42` is answered
by a redirect, and browsers keep the part behind "#" through it, so the page finds the step without the server ever seeing it.
"""

from typing import Annotated

from fastapi import APIRouter, Depends
from pydantic import BaseModel, Field
from starlette.responses import RedirectResponse, Response

from agentalign.errors import DataError
from agentalign.store.filters import RunFilter
from agentalign.store.store import Store
from agentalign.ui import hidden
from agentalign.ui.auth import Person, require_person

RunId = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
MOST = 20
"""Runs that came from one run that its page links to, newest first."""


class Relative(BaseModel):
    """A run that this one came from, or that came from it."""

    id: str
    step: int
    """Step at which they part, of the run that is the parent."""
    kind: str = ""
    """How it came about: correction, rollout, ..."""


class LinksView(BaseModel):
    """A run's relatives."""

    parent: Relative | None
    """None too where the parent is not in the store."""
    children: list[Relative]


def inspect_routes(store: Store) -> APIRouter:
    """The routes, to be included in the app."""
    routes = APIRouter()

    @routes.get("/api/runs/{run}/links")
    def links(person: Annotated[Person, Depends(require_person)], run: RunId) -> LinksView:
        """What this run came from, and what came from it."""
        hidden.refuse_hidden(store, person, run)
        return links_view(store, person, run)

    @routes.get("/run/{run}")
    def address(run: RunId) -> Response:
        """The page of a run, under an address that can be sent to others."""
        return RedirectResponse(f"/?run={run}", 303)

    return routes


def links_view(store: Store, person: Person, run: str) -> LinksView:
    """The relatives of a run that this person may find."""
    ids = [row.id for row in store.runs(hidden.seen_by(person, RunFilter(parent=run)), MOST).rows]
    children = [
        Relative(id=child.id, step=child.parent[1], kind=child.origin.kind)
        for child in store.trajectories(RunFilter(ids=tuple(ids)))
        if child.parent
    ]
    return LinksView(parent=_parent(store, person, run), children=children)


def _parent(store: Store, person: Person, run: str) -> Relative | None:
    try:
        own = store.recent.trajectory(run)  # its page was just shown, so it is read already
    except DataError:
        return None
    if own.parent is None or not store.count(hidden.seen_by(person, RunFilter(ids=(own.parent[0],)))):
        return None
    return Relative(id=own.parent[0], step=own.parent[1])
