"""Routes of the lineage picture: the adapters there are, and what one was made from. For leads: it names who rated."""

from typing import Annotated

from fastapi import FastAPI, Query
from pydantic import BaseModel
from starlette.responses import Response

from agentalign.store.lineage import Lineage, lineage
from agentalign.store.registry import Registry
from agentalign.ui.agreement_api import Lead
from agentalign.ui.api import House, ascii_json


class AdapterLine(BaseModel):
    """An adapter in the chooser."""

    ref: str
    recipe: str
    created: str


class AdaptersView(BaseModel):
    """Every version, the newest first."""

    adapters: list[AdapterLine]


def add(app: FastAPI, house: House) -> None:
    """Add the routes."""

    @app.get("/api/lineage/adapters", response_model=AdaptersView)
    def adapters(_lead: Lead) -> Response:
        """What there is a lineage of."""
        cards = sorted(Registry(house.project.adapters).list(), key=lambda card: card.created, reverse=True)
        return ascii_json(AdaptersView(adapters=[AdapterLine(ref=card.ref, recipe=card.recipe, created=card.created) for card in cards]))

    @app.get("/api/lineage", response_model=Lineage)
    def of_adapter(_lead: Lead, ref: Annotated[str, Query(max_length=200)]) -> Response:
        """Where one adapter came from."""
        return ascii_json(lineage(house.store, Registry(house.project.adapters), house.project.trainings, ref))
