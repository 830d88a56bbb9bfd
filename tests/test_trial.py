"""What is measured of an export, and what is said where it cannot be."""

import shutil
from pathlib import Path

import pytest
import torch
from small_base import make_base
from small_server import TINY, TOY_DESK, add_soft_adapter

from agentalign.config.project import Project
from agentalign.deployment.export import Form, export
from agentalign.deployment.trial import calls_read
from agentalign.environments.team_code import TeamCode
from agentalign.records.trajectory import Message, Origin, ToolCall, Trajectory
from agentalign.rollouts.golden import make_golden
from agentalign.store.registry import Registry
from agentalign.store.store import Store
from agentalign.training.base import prepare_base
from agentalign.training.dialect import Dialect
from agentalign.training.model import Model


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """toy_desk@1 without golden prompts, @2 with them, @3 of a taskset that is not here."""
    project = Project.create(tmp_path_factory.mktemp("project"))
    (project.tasks / "toy_desk").symlink_to(TINY.parent / "toy_desk")
    card = add_soft_adapter(project, TINY, name="toy_desk", std=0.15, seed=1)
    registry = Registry(project.adapters)
    _, folder = registry.resolve(card.ref)
    model = Model.load(prepare_base(str(TINY), project.cache), quantization="none", device="cpu", dtype=torch.float32)
    model.load_adapter("policy", folder)
    with TeamCode(TOY_DESK.folder) as pool, Store(project.store_url) as store:
        golden = make_golden(model, "policy", TOY_DESK, pool, store)
    assert golden is not None
    for version, changed in ((2, {}), (3, {"taskset": "nowhere"})):
        files = project.state / f"version-{version}"
        shutil.copytree(folder, files)
        if version == 2:
            (files / "golden.json").write_text(golden.model_dump_json())
        registry.save(card.model_copy(update={"version": version, **changed}), files)
    return project


def test_golden_prompts_are_enough_for_the_distance(project: Project, tmp_path: Path) -> None:
    trial = export(project, "toy_desk@2", tmp_path / "out", "merged").trial
    assert trial is not None and trial.kl is not None and trial.kl_tokens > 0
    assert trial.success is None
    assert trial.unmeasured == ("success and tool calls: no tasks were asked for.",)


def test_with_neither_tasks_nor_golden_prompts_nothing_is_claimed(project: Project, tmp_path: Path) -> None:
    done = export(project, "toy_desk@1", tmp_path / "out", "merged")
    trial = done.trial
    assert trial is not None and trial.kl is None and trial.success is None
    assert [reason.split(":")[0] for reason in trial.unmeasured] == ["success and tool calls", "the distance to the trained policy"]
    readme = (done.folder / "README.md").read_text()
    assert "Not measured: the distance to the trained policy" in readme and "KL to the trained policy" not in readme


def test_an_adapter_of_a_taskset_that_is_not_here_is_exported_and_says_so(project: Project, tmp_path: Path) -> None:
    trial = export(project, "toy_desk@3", tmp_path / "out", "merged", tasks=2).trial
    assert trial is not None and trial.success is None
    assert "the taskset 'nowhere' is not in this project" in trial.unmeasured[0]


@pytest.mark.parametrize("form", ["vllm", "merged"])
@pytest.mark.parametrize("lost", ["second load", "answers", "distance"])
def test_what_does_not_fit_into_memory_is_said_and_the_export_stands(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: Form, lost: str
) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("out of memory")

    if lost == "second load" and form == "merged":
        monkeypatch.setattr("agentalign.deployment.export.load_plain", full)
    elif lost == "second load":
        monkeypatch.setattr(Model, "load_adapter", full)
    else:
        monkeypatch.setattr(f"agentalign.deployment.trial.{'act_out' if lost == 'answers' else 'policy_distance'}", full)
    trial = export(project, "toy_desk@2", tmp_path / "out", form, tasks=2).trial
    assert trial is not None
    assert any("out of memory" in reason for reason in trial.unmeasured)
    assert ((trial.success is None), (trial.kl is None)) == (lost != "distance", lost != "answers")
    assert list((tmp_path / "out").glob("*.safetensors"))


def test_a_call_left_in_the_text_was_tried_and_not_read(tmp_path: Path) -> None:
    dialect = Dialect.load(prepare_base(str(make_base(tmp_path / "base")), tmp_path))
    call = ToolCall(id="call_0", name="look", arguments='{"id": 1}')

    def run(*messages: Message) -> Trajectory:
        return Trajectory(taskset="toy_desk", messages=messages, origin=Origin(kind="rollout", reference="server"))

    asked = Message(role="user", content="hi")
    good = run(asked, Message(role="assistant", tool_calls=(call,)), Message(role="assistant", content="It is on its way."))
    left = run(asked, Message(role="assistant", content='<tool_call>\n{"name": "look", "arguments": {"id": 1}}\n</tool_call>'))
    broken = run(asked, Message(role="assistant", content="<tool_call>{", malformed="no JSON"))
    odd = run(asked, Message(role="assistant", tool_calls=(call.model_copy(update={"arguments": "[1]"}),)))
    assert calls_read(dialect, [good]) == (1, 1)
    assert calls_read(dialect, [left]) == (0, 1)
    assert calls_read(dialect, [good, left, broken, odd]) == (1, 4)
