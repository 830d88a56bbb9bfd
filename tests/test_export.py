"""Exports that PEFT and servers accept, and the gate that an adapter must pass."""

import json
import shutil
import stat
from pathlib import Path

import pytest
import torch
from jinja2.sandbox import ImmutableSandboxedEnvironment
from peft import PeftModel
from safetensors.torch import load_file, save_file
from small_base import TEMPLATE, add_adapter, make_base
from transformers import AutoModelForCausalLM, AutoTokenizer

from agentalign.config.project import Project
from agentalign.deployment.check import DEPLOY_CHECKED, expected_tensors, gate, promote
from agentalign.deployment.export import export
from agentalign.deployment.export_files import fixed_template
from agentalign.errors import RegistryError, TasksetError
from agentalign.evaluation.evaluate import Evaluation, summarise
from agentalign.evaluation.report import write_report
from agentalign.records.adapter import GateCheck, GateReport
from agentalign.records.criterion import Criterion, Score
from agentalign.records.trajectory import Message, Origin, Trajectory
from agentalign.rollouts.bundle import open_bundle
from agentalign.store.registry import Registry
from agentalign.training.adapter_files import AdapterConfig
from agentalign.training.model import Model


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with hello@1, hello@2 and hello-reward@1."""
    project = Project.create(tmp_path_factory.mktemp("project"))
    base = make_base(project.root / "base")
    add_adapter(project, base, seed=1)
    add_adapter(project, base, seed=2)
    add_adapter(project, base, name="hello-reward", kind="reward")
    registry = Registry(project.adapters)
    for ref in ("hello@1", "hello@2"):
        check = GateCheck(name="log-probs", passed=True, detail="as near as two runs of the same weights")
        registry.keep(ref, GateReport(adapter=ref, content=registry.content(ref), target="in process", checks=(check,)))
    return project


@pytest.fixture
def project(made: Project, tmp_path: Path) -> Project:
    """A copy that a test may damage; its base stays where the cards say."""
    shutil.copytree(made.root, tmp_path / "copy")
    return Project(tmp_path / "copy")


def evaluation(project: Project, adapter: str, successes: list[bool], split: str = "test") -> Evaluation:
    criterion = Criterion(name="task_success", description="Done?", kind="check", check="done")
    runs = [
        Trajectory(
            taskset="hello", task_id=f"t{i}", split=split, origin=Origin(kind="rollout", reference=adapter, task=f"t{i}"),
            messages=(Message(role="user", content="hi"), Message(role="assistant", content="hello")),
        )
        for i in range(len(successes))
    ]  # fmt: skip
    scores = [
        Score(trajectory=run.id, criterion=criterion.key, value=float(success), rater="check", rater_kind="check")
        for run, success in zip(runs, successes, strict=True)
    ]
    content = Registry(project.adapters).content(adapter)
    return summarise(adapter, split, [criterion], runs, scores, {}, taskset_digest="as it is", content=content)


def test_peft_loads_an_export_and_computes_what_training_computed(made: Project, tmp_path: Path) -> None:
    done = export(made, "hello@1", tmp_path / "out")
    bundle = open_bundle(made, "hello@1")
    model = Model.load(bundle.base, quantization="none", device="cpu", dtype=torch.float32)
    model.load_adapter("policy", bundle.folder)
    ids = torch.tensor([[5, 9, 30, 2, 77]])
    with torch.no_grad():
        expected = model.merged_copy("policy")(ids).logits
        base = AutoModelForCausalLM.from_pretrained(done.base, dtype=torch.float32)
        plain = base(ids).logits
        loaded = PeftModel.from_pretrained(base, str(done.folder))
        found = loaded(ids).logits
    assert torch.allclose(found, expected, atol=1e-4)
    assert not torch.allclose(found, plain, atol=1e-2)


def test_an_export_has_template_and_tokenizer_of_the_base(made: Project, tmp_path: Path) -> None:
    done = export(made, "hello@1", tmp_path / "out")
    words = AutoTokenizer.from_pretrained(done.folder)
    assert words.chat_template == TEMPLATE
    chat = [{"role": "user", "content": "Hi <|im_end|>"}]
    original = AutoTokenizer.from_pretrained(open_bundle(made, "hello@1").base.folder)
    assert words.apply_chat_template(chat, tokenize=False) == original.apply_chat_template(chat, tokenize=False)


def test_an_export_is_plain_readable_and_complete(made: Project, tmp_path: Path) -> None:
    done = export(made, "hello@2", tmp_path / "out")
    settings = json.loads((done.folder / "adapter_config.json").read_text())
    assert settings["target_modules"] == sorted(settings["target_modules"])
    assert Path(settings["base_model_name_or_path"]).is_dir()
    names = {path.name for path in done.folder.iterdir()}
    assert {"adapter_model.safetensors", "chat_template.jinja", "tokenizer.json", "card.json"} <= names
    assert {"README.md", "requirements.txt", "serve_vllm.sh"} <= names
    assert not {name for name in names if "head" in name}
    for path in done.folder.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o755 if path.suffix == ".sh" or path.is_dir() else 0o644), path.name
    assert stat.S_IMODE(done.folder.stat().st_mode) == 0o755
    assert f"--lora-modules hello={done.folder}" in done.command
    assert "--max-lora-rank 8 " in done.command
    assert "--tool-call-parser hermes" in done.command
    readme = (done.folder / "README.md").read_text()
    assert done.command in readme
    assert "send `temperature: 0`" in readme


def test_fixed_template_arguments_stand_in_the_exported_template() -> None:
    template = "{{ enable_thinking }} {{ words[1] }} {{ nothing is none }}"
    fixed = fixed_template(template, {"enable_thinking": False, "words": ["a", "b"], "nothing": None, "today": "2026-01-01"})
    assert ImmutableSandboxedEnvironment().from_string(fixed).render() == "False b True"


@pytest.mark.parametrize(("ref", "words"), [("hello-reward", "gives numbers"), ("hello@7", "no hello@7"), ("nobody", "no adapter")])
def test_what_is_no_policy_is_not_exported(made: Project, tmp_path: Path, ref: str, words: str) -> None:
    with pytest.raises(RegistryError, match=words):
        export(made, ref, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_full_folder_is_left_alone(made: Project, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(RegistryError, match="not an empty folder"):
        export(made, "hello@1", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_changed_file_is_not_exported(project: Project, tmp_path: Path) -> None:
    file = project.adapters / "hello" / "1" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(RegistryError, match="is damaged"):
        export(project, "hello@1", tmp_path / "out")


def test_another_base_under_the_same_path_is_refused(project: Project, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    add_adapter(project, base, name="other")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"rope_theta": 5000.0}))
    with pytest.raises(RegistryError, match="was trained on"):
        export(project, "other", tmp_path / "out")
    checks = {check.name: check.passed for check in gate(project, "other", evaluation=None).checks}
    assert checks == {"files": True, "base": False, "template": True, "weights": True, "evaluated": False, "deploy-check": False}


def test_the_gate_passes_a_sound_and_evaluated_adapter(made: Project) -> None:
    report = gate(
        made,
        "hello@2",
        evaluation=evaluation(made, "hello@2", [True] * 10),
        production=evaluation(made, "hello@1", [False] * 5 + [True] * 5),
    )
    assert report.passed, report
    assert report.adapter == "hello@2"


def test_the_gate_stops_what_is_worse_beyond_chance(made: Project) -> None:
    better, worse = [True] * 30, [False] * 25 + [True] * 5
    before = evaluation(made, "hello@1", better)
    report = gate(made, "hello@2", evaluation=evaluation(made, "hello@2", worse), production=before)
    assert [check.name for check in report.checks if not check.passed] == ["not worse than production"]
    within = gate(
        made, "hello@2", evaluation=evaluation(made, "hello@2", [False, *better[1:]]), production=evaluation(made, "hello@1", better)
    )
    assert within.passed


def test_the_gate_stops_a_criterion_that_fell_while_success_did_not(made: Project) -> None:
    """What a veto forbids may be done more often by whoever succeeds as often."""
    before, after = (evaluation(made, ref, [True] * 30) for ref in ("hello@1", "hello@2"))

    def kept(found: Evaluation, share: float) -> Evaluation:
        tasks = [t.model_copy(update={"criteria": t.criteria | {"policy_kept": float(n >= share * 30)}}) for n, t in enumerate(found.tasks)]
        return found.model_copy(update={"tasks": tuple(tasks), "criteria": (*found.criteria, "policy_kept@1")})

    assert gate(made, "hello@2", evaluation=kept(after, 0.0), production=kept(before, 0.0)).passed
    (failed,) = [
        check for check in gate(made, "hello@2", evaluation=kept(after, 0.5), production=kept(before, 0.0)).checks if not check.passed
    ]
    assert failed.name == "not worse than production"
    assert "but policy_kept -50.0%" in failed.detail


def test_the_gate_needs_an_evaluation_of_this_very_adapter_on_the_same_split(made: Project) -> None:
    assert not gate(made, "hello@2", evaluation=None).passed
    assert not gate(made, "hello@2", evaluation=evaluation(made, "hello@1", [True])).passed
    assert not gate(
        made, "hello@2", evaluation=evaluation(made, "hello@2", [True]), production=evaluation(made, "hello@1", [True], "dev")
    ).passed
    assert gate(made, "hello@2", evaluation=None, forced="first version").passed


def test_what_is_in_production_must_have_been_measured_on_the_same_split(project: Project) -> None:
    def measured(ref: str, split: str) -> None:
        write_report(project.state / "evaluations" / "hello" / f"{ref}-{split}", evaluation(project, ref, [True] * 10, split))

    measured("hello@1", "test")
    assert promote(project, "hello@1", "production").passed, "nothing to beat"
    measured("hello@2", "dev")
    with pytest.raises(RegistryError, match=r"hello@1 is in production and was not evaluated on split dev.*--against hello@1 --split dev"):
        promote(project, "hello@2", "production")
    measured("hello@1", "dev")
    assert promote(project, "hello@2", "production").passed


def test_production_must_have_been_measured_by_the_same_plan(project: Project) -> None:
    def measured(ref: str, successes: list[bool], limit: str | int = "all") -> None:
        settings: dict[str, str | int | float] = {"samples": 1, "tasks": limit, "temperature": 0.0}
        found = evaluation(project, ref, successes).model_copy(update={"settings": settings})
        write_report(project.state / "evaluations" / "hello" / f"{ref}-test" / str(limit), found)

    measured("hello@1", [True] * 40)
    assert promote(project, "hello@1", "production").passed, "nothing to beat"
    measured("hello@2", [True] * 10, limit=10)
    with pytest.raises(RegistryError, match=r"hello@1 .* was not evaluated .* by the same plan.*--against hello@1 --split test`"):
        promote(project, "hello@2", "production")
    measured("hello@1", [True] * 10, limit=10)
    measured("hello@2", [True] * 10 + [False] * 30)
    with pytest.raises(RegistryError, match="worse beyond chance"):
        promote(project, "hello@2", "production")
    measured("hello@2", [True] * 40)
    report = promote(project, "hello@2", "production")
    assert "on 40 tasks" in next(check.detail for check in report.checks if check.name == "evaluated")


def test_what_a_single_task_says_is_not_beyond_chance(made: Project) -> None:
    report = gate(made, "hello@2", evaluation=evaluation(made, "hello@2", [False]), production=evaluation(made, "hello@1", [True]))
    assert report.passed, report


def test_a_production_that_another_processor_measured_is_said(made: Project) -> None:
    before, after = evaluation(made, "hello@1", [True] * 20), evaluation(made, "hello@2", [True] * 20)
    on_gpu = before.model_copy(update={"computed_on": "cuda in bfloat16"})
    on_cpu = after.model_copy(update={"computed_on": "cpu in float32"})
    report = gate(made, "hello@2", evaluation=on_cpu, production=on_gpu)
    assert report.passed and "before were computed on cuda in bfloat16" in str(report)
    fell = evaluation(made, "hello@2", [False] * 20).model_copy(update={"computed_on": "cpu in float32"})
    report = gate(made, "hello@2", evaluation=fell, production=on_gpu)
    assert not report.passed and "worse beyond chance" in str(report) and "Evaluate both on one of them" in str(report)


def test_a_taskset_that_was_changed_in_between_compares_nothing(made: Project) -> None:
    before = evaluation(made, "hello@1", [False] * 20).model_copy(update={"taskset_digest": "as it was"})
    report = gate(made, "hello@2", evaluation=evaluation(made, "hello@2", [True] * 20), production=before)
    (failed,) = [check for check in report.checks if not check.passed]
    assert failed.name == "not worse than production"
    assert "was changed between the evaluations" in failed.detail
    assert "--against hello@1" in failed.detail


def test_an_evaluation_most_of_whose_runs_broke_or_were_not_scored_passes_no_gate(made: Project) -> None:
    sound = evaluation(made, "hello@2", [True] * 40)
    few = sound.model_copy(update={"unscored": 2, "stop_reasons": {"answered": 42}})
    assert gate(made, "hello@2", evaluation=few).passed
    known = {"unusable_runs": 20, "stop_reasons": {"answered": 40}}
    before = ({"unscored": 20, "stop_reasons": {"answered": 60}}, {"stop_reasons": {"answered": 10, "error": 30}})
    for changed in (known, *({**figures, "unusable_runs": None} for figures in before)):  # evaluations from before it was kept
        many = sound.model_copy(update={**changed, "trouble": ("OSError: the desk is closed.",)})
        (failed,) = [check for check in gate(made, "hello@2", evaluation=many).checks if not check.passed]
        assert (failed.name, "the desk is closed" in failed.detail) == ("evaluated", True)


def test_a_rest_of_easy_tasks_is_not_compared(made: Project) -> None:
    before, after = evaluation(made, "hello@1", [True] * 10 + [False] * 10), evaluation(made, "hello@2", [True] * 10)
    (failed,) = [check for check in gate(made, "hello@2", evaluation=after, production=before).checks if not check.passed]
    assert (failed.name, "10 of 20 tasks have a result of" in failed.detail) == ("not worse than production", True)


def test_an_evaluation_of_other_files_or_of_nobody_knows_what_passes_no_gate(made: Project) -> None:
    sound = evaluation(made, "hello@2", [True] * 20)
    for changed in ({"content": Registry(made.adapters).content("hello@1")}, {"content": ""}, {"taskset_digest": ""}):
        report = gate(made, "hello@2", evaluation=sound.model_copy(update=changed))
        (failed,) = [check for check in report.checks if not check.passed]
        assert failed.name == "evaluated"
        assert "Run `agentalign eval hello@2` again" in failed.detail


def test_the_gate_compares_nothing_that_was_measured_by_different_plans(made: Project) -> None:
    half = evaluation(made, "hello@1", [True] * 10).model_copy(update={"settings": {"tasks": 10}})
    report = gate(made, "hello@2", evaluation=evaluation(made, "hello@2", [True] * 20), production=half)
    assert [check.name for check in report.checks if not check.passed] == ["not worse than production"]


def test_an_adapter_that_names_a_path_as_its_taskset_is_not_promoted(project: Project) -> None:
    card, folder = Registry(project.adapters).resolve("hello@1")
    files = project.state / "again"
    shutil.copytree(folder, files)
    card = Registry(project.adapters).save(card.model_copy(update={"version": 3, "taskset": "../elsewhere"}), files)
    write_report(project.state / "elsewhere" / f"{card.ref}-test", evaluation(project, card.ref, [True]))
    with pytest.raises(TasksetError, match="is not the name of a taskset"):
        promote(project, card.ref, "production")


def republish(project: Project, change: str) -> str:
    """A version whose weights were spoilt before it was saved: its files verify, its weights do not."""
    card, folder = Registry(project.adapters).resolve("hello@1")
    files = project.state / "spoilt"
    shutil.copytree(folder, files)
    tensors = load_file(files / "adapter_model.safetensors")
    first = next(key for key in sorted(tensors) if "lora_B" in key)
    if change == "missing":
        del tensors[first]
    elif change == "surplus":
        tensors[first.replace("lora_B", "lora_C")] = tensors[first].clone()
    elif change == "shape":
        tensors[first] = tensors[first][:, :2].contiguous()
    elif change == "nan":
        tensors[first][0, 0] = float("nan")
    elif change == "zero":
        tensors = {key: value * 0 if "lora_B" in key else value for key, value in tensors.items()}
    save_file(tensors, files / "adapter_model.safetensors")
    return Registry(project.adapters).save(card.model_copy(update={"version": 3}), files).ref


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("missing", "are missing"),
        ("surplus", "without a place"),
        ("shape", "of another shape"),
        ("nan", "not made of finite"),
        ("zero", "changes nothing"),
    ],
)
def test_the_gate_sees_weights_that_peft_would_load_in_silence(project: Project, change: str, words: str) -> None:
    ref = republish(project, change)
    report = gate(project, ref, evaluation=evaluation(project, ref, [True]))
    failed, unchecked = [check for check in report.checks if not check.passed]
    assert (failed.name, unchecked.name) == ("weights", DEPLOY_CHECKED)
    assert words in failed.detail


def test_expected_tensors_are_those_that_peft_makes(made: Project) -> None:
    bundle = open_bundle(made, "hello@1")
    tensors = load_file(bundle.folder / "adapter_model.safetensors")
    targets = tuple(json.loads((bundle.folder / "adapter_config.json").read_text())["target_modules"])
    expected = expected_tensors(bundle.base.folder, AdapterConfig(r=4, alpha=8, targets=targets))
    assert expected == {key: tuple(value.shape) for key, value in tensors.items()}
