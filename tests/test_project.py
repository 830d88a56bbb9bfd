from pathlib import Path

import pytest

from agentalign.config.project import Project
from agentalign.errors import ConfigError


def test_a_project_is_found_from_any_folder_below_it(tmp_path: Path) -> None:
    made = Project.create(tmp_path / "team")
    deep = made.tasks / "desk" / "recipes"
    deep.mkdir(parents=True)
    assert Project.find(deep) == made


def test_outside_a_project_the_person_is_told_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="run `agentalign init`"):
        Project.find(tmp_path)


def test_making_a_project_twice_changes_nothing(tmp_path: Path) -> None:
    Project.create(tmp_path)
    ignore = tmp_path / "adapters" / ".gitignore"
    ignore.write_text("mine\n")
    Project.create(tmp_path)
    assert ignore.read_text() == "mine\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".agentalign", "adapters", "tasks"]


def test_weights_are_kept_out_of_git_and_cards_are_not(tmp_path: Path) -> None:
    lines = (Project.create(tmp_path).adapters / ".gitignore").read_text().splitlines()
    assert "*.safetensors" in lines
    assert not any("json" in line for line in lines)


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "tasks").write_text("")
    with pytest.raises(ConfigError, match="tasks: cannot make the project's folders"):
        Project.create(tmp_path)


def test_the_store_is_in_the_project_unless_the_environment_says_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = Project.create(tmp_path)
    monkeypatch.delenv("AGENTALIGN_DATABASE_URL", raising=False)
    assert project.store_url == f"sqlite:///{tmp_path}/.agentalign/store.db"
    monkeypatch.setenv("AGENTALIGN_DATABASE_URL", "postgresql+psycopg://u@h/d")
    assert project.store_url == "postgresql+psycopg://u@h/d"
