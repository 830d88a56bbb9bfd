"""Fixtures of tests about the pages' routes: a project with the small desk, its store, and a client that has opened the page."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from small_desk import HOME, make_desk
from starlette.testclient import TestClient

from agentalign.config.project import Project
from agentalign.store.store import Store
from agentalign.ui.api import create_api


class DeskFixtures(NamedTuple):
    """To be given their names in a test module; one that has its own project takes the other two."""

    project: Any
    store: Any
    client: Any


def desk_fixtures(rater: str = "rater") -> DeskFixtures:
    """The fixtures, with the person at the page."""

    @pytest.fixture
    def project(tmp_path: Path) -> Project:
        return make_desk(tmp_path)

    @pytest.fixture
    def store(project: Project) -> Iterator[Store]:
        with Store(project.store_url) as store:
            yield store

    @pytest.fixture
    def client(project: Project) -> Iterator[TestClient]:
        with TestClient(create_api(project, rater=rater), base_url=HOME) as client:
            client.get("/")  # opening the page signs the cookie
            yield client

    return DeskFixtures(project, store, client)
