"""The whole way on a two-layer model: every stage, the report, and a restart that does nothing twice."""

import json
import shutil
from pathlib import Path

import pytest

from agentalign import demo
from agentalign.config.project import Project
from agentalign.store.registry import Registry

FIXTURES = Path(__file__).parent / "fixtures"
COMMON = f"taskset: toy_desk\nbase: {FIXTURES / 'tiny'}\nquantization: none\n"
RECIPES = {
    "sft": "origins: [expert]\nlora_r: 4\nlora_alpha: 8.0\nwarmup_steps: 0\nmax_steps: 8\neval_every_steps: 4\neval_tasks: 9\n",
    "dpo": "warmup_steps: 0\nmax_steps: 2\nlearning_rate: 1e-3\nmin_reference_prob: 0.001\n",
    "reward": "warmup_steps: 0\nmax_steps: 4\nlearning_rate: 1e-3\n",
    "ppo": "iterations: 1\ntasks_per_iteration: 6\nsamples_per_task: 3\ncritic_warmup_steps: 1\nreplay: 2\n",
}


@pytest.fixture
def project(tmp_path):
    found = Project.create(tmp_path)
    folder = found.tasks / "toy_desk"
    shutil.copytree(FIXTURES / "toy_desk", folder, dirs_exist_ok=True)
    generate = (folder / "generate.py").read_text()
    shown = 'data=canonical_json(data), tags=("expert",) if index % 2 else ())'
    (folder / "generate.py").write_text(generate.replace("data=canonical_json(data))", shown))
    (folder / "recipes").mkdir()
    for name, text in RECIPES.items():
        (folder / "recipes" / f"{name}.yaml").write_text(COMMON + text)
    return found


def test_every_stage_is_reported_and_a_restart_goes_on_where_it_stopped(project):
    path = demo.run(project, "quick", 0, taskset="toy_desk")
    report = json.loads(path.read_text())
    assert [stage["name"] for stage in report["stages"] if stage["n"]] == ["base", "sft", "dpo", "ppo"]
    assert {"adapter", "split", "n", "success", "ci", "unseen_families", "criteria"} <= report["stages"][1].keys()
    assert (path.parent / "report.html").read_text().count("<svg") > 2
    cards = [card.ref for card in Registry(project.adapters).list()]
    assert sorted(cards) == sorted(["toy_desk@1", "toy_desk@2", "toy_desk@3", "toy_desk-reward@1"])

    done = json.loads((path.parent / "done.json").read_text())
    del done["ppo"], done["evaluate ppo"]
    (path.parent / "done.json").write_text(json.dumps(done))
    demo.run(project, "quick", 0, taskset="toy_desk")
    again = json.loads((path.parent / "done.json").read_text())
    assert {name: part["at"] for name, part in done.items()} == {name: again[name]["at"] for name in done}
    assert len(Registry(project.adapters).list()) == 4


def test_what_was_evaluated_by_other_checks_is_evaluated_again_and_nothing_trained_anew(project):
    path = demo.run(project, "quick", 0, taskset="toy_desk")
    before = json.loads((path.parent / "done.json").read_text())
    del before["evaluate ppo"]
    (path.parent / "done.json").write_text(json.dumps(before))
    checks = project.tasks / "toy_desk" / "criteria.py"
    checks.write_text(checks.read_text() + "\n\nMENDED = True\n")
    demo.run(project, "quick", 0, taskset="toy_desk")
    after = json.loads((path.parent / "done.json").read_text())
    assert {name for name in before if before[name]["at"] != after[name]["at"]} == {name for name in before if name.startswith("evaluate ")}
    assert len(Registry(project.adapters).list()) == 4
