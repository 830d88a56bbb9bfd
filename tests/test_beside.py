"""What is found out about a version stands beside it: the version stays as it was, and a report is about its content and no other."""

from pathlib import Path

import pytest
from small_base import add_adapter, make_base

from agentalign.config.project import Project
from agentalign.deployment.check import DEPLOY_CHECKED, gate
from agentalign.deployment.deploy_check import deploy_check
from agentalign.errors import RegistryError
from agentalign.records.adapter import EvaluationSummary, GateCheck, GateReport
from agentalign.store.beside import MOST_CHECKS
from agentalign.store.registry import Registry


@pytest.fixture
def project(tmp_path: Path) -> Project:
    project = Project.create(tmp_path)
    base = make_base(project.root / "base")
    add_adapter(project, base, seed=1)
    add_adapter(project, base, seed=2)
    return project


def report(registry: Registry, ref: str, *, passed: bool = True, target: str = "in process") -> GateReport:
    check = GateCheck(name="log-probs", passed=passed, detail="0.3 nats from the record.")
    return GateReport(adapter=ref, content=registry.content(ref), target=target, checks=(check,))


def asked(project: Project, ref: str) -> GateCheck:
    (found,) = [check for check in gate(project, ref, evaluation=None).checks if check.name == DEPLOY_CHECKED]
    return found


def test_the_gate_asks_for_a_green_check_of_exactly_these_files(project: Project) -> None:
    registry = Registry(project.adapters)
    assert "Run `agentalign deploy-check hello@1`" in asked(project, "hello@1").detail
    with pytest.raises(RegistryError, match="Run `agentalign deploy-check hello@1`"):
        registry.promote("hello@1", "candidate", gate(project, "hello@1", evaluation=None))
    deploy_check(project, "hello@1")
    found = asked(project, "hello@1")
    assert (found.passed, "the last one is not measured" in found.detail, "golden prompts" in found.detail) == (False, True, True)
    registry.keep("hello@1", report(registry, "hello@1"))
    assert asked(project, "hello@1").passed
    assert not asked(project, "hello@2").passed
    registry.verify("hello@1")

    files = project.adapters / "hello" / "1"
    files.rename(project.root / "old")
    card = registry.resolve("hello@2")[0].model_copy(update={"version": 1})
    registry.save(card, project.adapters / "hello" / "2")
    assert registry.checks("hello@1") == (), "another adapter has this number now"
    assert not asked(project, "hello@1").passed


def test_the_newest_check_counts_and_red_ones_elsewhere_are_told(project: Project) -> None:
    registry = Registry(project.adapters)
    registry.keep("hello@1", report(registry, "hello@1", passed=False, target="http://far/v1"))
    found = asked(project, "hello@1")
    assert (found.passed, "red (http://far/v1" in found.detail, "0.3 nats" in found.detail) == (False, True, True)
    registry.keep("hello@1", report(registry, "hello@1"))
    found = asked(project, "hello@1")
    assert (found.passed, "red at http://far/v1" in found.detail) == (True, True)
    registry.keep("hello@1", report(registry, "hello@1", passed=False))
    assert not asked(project, "hello@1").passed


def test_a_report_about_other_files_is_not_kept(project: Project) -> None:
    registry = Registry(project.adapters)
    with pytest.raises(RegistryError, match="other files"):
        registry.keep("hello@2", report(registry, "hello@1"))
    with pytest.raises(RegistryError, match="other files"):
        registry.keep("hello@2", report(registry, "hello@2").model_copy(update={"content": ""}))


def test_a_file_that_cannot_be_read_is_named_and_passes_nothing(project: Project) -> None:
    deploy_check(project, "hello@1")
    file = project.adapters / "hello" / "1.checks.json"
    file.write_text('{"checks": [{"passed": true}]}')
    assert not asked(project, "hello@1").passed
    assert str(file) in asked(project, "hello@1").detail


def test_checks_are_let_go_from_the_oldest_on(project: Project) -> None:
    registry = Registry(project.adapters)
    for number in range(MOST_CHECKS + 2):
        registry.keep("hello@1", report(registry, "hello@1", target=f"http://{number}/v1"))
    kept = registry.checks("hello@1")
    assert (len(kept), kept[-1].target) == (MOST_CHECKS, f"http://{MOST_CHECKS + 1}/v1")


def test_an_evaluation_takes_the_place_of_the_last_by_its_plan(project: Project) -> None:
    registry = Registry(project.adapters)

    def summary(mean: float, tasks: int) -> EvaluationSummary:
        return EvaluationSummary(
            content=registry.content("hello@1"), taskset="hello", split="test", settings={"tasks": tasks}, tasks=tasks,
            success=(mean, mean, mean), criteria={"task_success@1": mean}, time="2026-01-01T00:00:00Z",
        )  # fmt: skip

    for one in (summary(0.1, 5), summary(0.2, 9), summary(0.3, 5)):
        registry.keep("hello@1", one)
    assert [(one.tasks, one.success[0]) for one in registry.evaluations("hello@1")] == [(9, 0.2), (5, 0.3)]
    assert registry.evaluations("hello@2") == ()
