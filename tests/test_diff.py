"""What differs between two versions: a different pair of A and B with the same product is no difference."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_base import add_adapter, make_base

from agentalign.cli import main
from agentalign.config.project import Project
from agentalign.deployment.diff import Update, diff, distances
from agentalign.errors import RegistryError
from agentalign.records.adapter import EvaluationSummary
from agentalign.store.registry import Registry


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """hello@1 and hello@2 are trained apart; hello@3 is hello@1 with A doubled and B halved, and other figures."""
    project = Project.create(tmp_path_factory.mktemp("project"))
    base = make_base(project.root / "base")
    card = add_adapter(project, base, seed=1)
    add_adapter(project, base, seed=2)
    registry = Registry(project.adapters)
    files = project.state / "turned"
    shutil.copytree(registry.resolve("hello@1")[1], files)
    tensors = {key: value * (2 if ".lora_A." in key else 0.5) for key, value in load_file(files / "adapter_model.safetensors").items()}
    save_file(tensors, files / "adapter_model.safetensors")
    registry.save(card.model_copy(update={"version": 3, "data_counts": {"expert": 5, "correction": 1}, "config": '{"seed": 9}'}), files)
    return project


def test_the_distance_is_that_of_the_written_out_products() -> None:
    torch.manual_seed(0)
    one, two = (Update(torch.randn(r, 7), torch.randn(5, r), scale) for r, scale in ((3, 2.0), (4, 0.5)))
    (found,) = distances({"q": one}, {"q": two})
    p, q = (update.scale * update.b @ update.a for update in (one, two))
    assert found.before == pytest.approx(float(p.norm()), rel=1e-5)
    assert found.apart == pytest.approx(float((p - q).norm()), rel=1e-5)
    assert found.cosine == pytest.approx(float((p * q).sum() / p.norm() / q.norm()), abs=1e-5)


def test_a_layer_that_one_side_does_not_adapt_or_adapts_in_another_shape_is_all_difference() -> None:
    one, other = Update(torch.ones(1, 2), torch.ones(3, 1), 1.0), Update(torch.ones(1, 5), torch.ones(3, 1), 1.0)
    (alone,) = distances({"q": one}, {})
    assert (alone.before, alone.after, alone.cosine) == (pytest.approx(6**0.5), 0.0, None)
    (unlike,) = distances({"q": one}, {"q": other})
    assert unlike.apart == pytest.approx(21**0.5)


def test_equal_products_are_no_difference_and_the_card_s_changes_are_told(project: Project) -> None:
    registry = Registry(project.adapters)
    summary = EvaluationSummary(
        content=registry.content("hello@3"), taskset="hello", split="test", settings={"samples": 1}, tasks=9, success=(0.5, 0.2, 0.8),
        criteria={}, time="2026-01-01T00:00:00Z",
    )  # fmt: skip
    registry.keep("hello@3", summary)
    found = diff(project, "hello@1", "hello@3")
    assert found.whole.apart < 1e-3 * found.whole.before
    assert found.whole.cosine == pytest.approx(1)
    assert found.card == []
    assert [(one.name, one.before, one.after) for one in found.data] == [("correction", None, 1), ("expert", 3, 5)]
    assert [one.name for one in found.config] == ["seed", "taskset"]
    assert [(one.before, one.after) for one in found.evaluations] == [(None, 0.5)]
    apart = diff(project, "hello@1", "hello@2").whole
    assert apart.apart > 0.5 * apart.before


def test_the_command_tells_it_in_words_and_as_json(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(project.root)
    assert main(["adapters", "diff", "hello@1", "hello@2", "--layers", "1"]) == 0
    told = capsys.readouterr().out
    assert "all layers" in told
    assert told.count("proj") == 1
    assert main(["adapters", "diff", "hello@1", "hello@2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["before"].startswith("hello@1-")


def test_a_damaged_version_is_not_compared(project: Project, tmp_path: Path) -> None:
    shutil.copytree(project.adapters, tmp_path / "adapters")
    (tmp_path / "adapters" / "hello" / "2" / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(RegistryError, match="is damaged"):
        diff(Project(tmp_path), "hello@1", "hello@2")
