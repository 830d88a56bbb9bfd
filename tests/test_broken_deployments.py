"""Every way in which a deployment has been seen to be wrong in silence is stopped, by the check that is about it and with what to do.

The servers are real ones of ours, each over another project: another template, base, merge or adapter behind the same name.
"""

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

pytest.importorskip("prometheus_client", reason="serving is an extra: pip install 'agentalign[serve]'")

import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from safetensors.torch import load_file, save_file
from small_server import TINY, TOY_DESK, Running, add_soft_adapter, promote, running

import agentalign
from agentalign.config.project import Project
from agentalign.deployment.deploy_check import APPLIED, CONTROL, DISTANCE, REMEDIES, TEMPLATE, deploy_check
from agentalign.deployment.serve import Settings
from agentalign.deployment.served_tasks import TASKS, verdict
from agentalign.deployment.serving.chat import Limits
from agentalign.environments.team_code import TeamCode
from agentalign.errors import AgentAlignError, RegistryError
from agentalign.evaluation.compare import compare
from agentalign.evaluation.evaluate import Evaluation
from agentalign.evaluation.run_eval import EvalPlan, evaluate, stored_evaluation
from agentalign.records.adapter import GateCheck, GateReport
from agentalign.rollouts.golden import make_golden
from agentalign.store.registry import Registry
from agentalign.store.store import Store
from agentalign.training.base import prepare_base
from agentalign.training.model import Model

STD, SEED = 0.15, 1
SETTINGS = Settings(limits=Limits(max_tokens=200, max_context=900))


def new_project(folder: Path) -> Project:
    project = Project.create(folder)
    (project.tasks / "toy_desk").symlink_to(TINY.parent / "toy_desk")
    return project


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """toy_desk@2 has golden prompts, an evaluation, and the base of this fixture; toy_desk@1 is the same without."""
    root = tmp_path_factory.mktemp("project")
    base = Path(shutil.copytree(TINY, root / "base"))
    project = new_project(root / "home")
    card = add_soft_adapter(project, base, name="toy_desk", std=STD, seed=SEED)
    registry = Registry(project.adapters)
    model = Model.load(prepare_base(str(base), project.cache), quantization="none", device="cpu", dtype=torch.float32)
    model.load_adapter("policy", registry.resolve(card.ref)[1])
    files = project.state / "golden"
    shutil.copytree(registry.resolve(card.ref)[1], files)
    with TeamCode(TOY_DESK.folder) as pool, Store(project.store_url) as store:
        golden = make_golden(model, "policy", TOY_DESK, pool, store)
        assert golden is not None
        (files / "golden.json").write_text(golden.model_dump_json())
        registry.save(card.model_copy(update={"version": 2}), files)
        evaluate(project, store, "toy_desk@2", plan=EvalPlan(limit=12))
    promote(project, "toy_desk@2")
    return project


@pytest.fixture(scope="module")
def sound(project: Project) -> Iterator[Running]:
    with running(project, settings=SETTINGS) as found:
        yield found


def elsewhere(folder: Path, *, std: float = STD, change: Callable[[Path], None] = lambda _: None) -> Project:
    """A project whose adapter has the same name, on a copy of the base that something was done to."""
    base = Path(shutil.copytree(TINY, folder / "base"))
    change(base)
    project = new_project(folder / "home")
    add_soft_adapter(project, base, name="toy_desk", std=std, seed=SEED)
    promote(project, "toy_desk@1")
    return project


def check_of(report: GateReport, name: str) -> GateCheck:
    return next(check for check in report.checks if check.name == name)


def stopped(report: GateReport, name: str) -> None:
    """The check failed, was measured, and says what to do."""
    check = check_of(report, name)
    assert not check.passed
    assert check.measured
    assert check.detail.endswith(REMEDIES[name])
    assert not report.passed


def another_template(base: Path) -> None:
    file = base / "chat_template.jinja"
    file.write_text("{{- '<|im_start|>system\nYou are helpful.<|im_end|>\n' -}}\n" + file.read_text())


def another_base(base: Path) -> None:
    torch.manual_seed(7)
    weights = {key: value + 0.05 * value.float().std().nan_to_num() * torch.randn_like(value) for key, value in base_tensors(base).items()}
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})


def merged_into_nf4(base: Path) -> None:
    """What merging into a model in NF4 and reading it back leaves: the sum, rounded a second time."""
    holder = new_project(base.parent / "merge")
    card = add_soft_adapter(holder, TINY, name="toy_desk", std=STD, seed=SEED)
    folder = Registry(holder.adapters).resolve(card.ref)[1]
    config, adapter = json.loads((folder / "adapter_config.json").read_text()), load_file(folder / "adapter_model.safetensors")
    weights = base_tensors(base)
    for key, a in adapter.items():
        if ".lora_A." in key:
            name = key.removeprefix("base_model.model.").replace(".lora_A.weight", ".weight")
            update = adapter[key.replace(".lora_A.", ".lora_B.")] @ a * (config["lora_alpha"] / config["r"])
            packed, state = quantize_4bit((weights[name].float() + update).contiguous(), quant_type="nf4")
            weights[name] = dequantize_4bit(packed, state).to(weights[name].dtype)
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})


def base_tensors(base: Path) -> dict[str, torch.Tensor]:
    return dict(load_file(base / "model.safetensors"))


def test_a_sound_deployment_passes_with_its_tasks(project: Project, sound: Running) -> None:
    report = deploy_check(project, "toy_desk@2", endpoint=f"{sound.url}/v1", quantization="none", tasks=6)
    assert report.passed, report
    tasks = check_of(report, TASKS)
    assert "on the same 6 tasks of test: not worse" in tasks.detail
    assert tasks.figures["success"] == 0.0
    with Store(project.store_url) as store:
        assert len(list(store.trajectories())) == 12, "what is only a check is not stored"


@pytest.mark.parametrize(
    ("change", "std", "wrong"),
    [
        (another_template, STD, TEMPLATE),
        (another_base, STD, DISTANCE),
        (merged_into_nf4, 0.0, DISTANCE),  # the adapter is in the weights, so what is served beside them is a zero adapter
        (lambda _: None, 0.0, APPLIED),
    ],
    ids=["another template", "another base", "merged into NF4", "adapter not applied"],
)
def test_a_broken_server_is_stopped_by_the_check_that_is_about_it(
    project: Project, tmp_path: Path, change: Callable[[Path], None], std: float, wrong: str
) -> None:
    with running(elsewhere(tmp_path, std=std, change=change), settings=SETTINGS) as broken:
        report = deploy_check(project, "toy_desk@2", endpoint=f"{broken.url}/v1", model="toy_desk", quantization="none")
    stopped(report, wrong)


def test_too_few_tasks_do_not_judge_another_policy(project: Project, tmp_path: Path) -> None:
    """Where the distance is told and not judged, tasks must tell; of six no claim is made, whatever they lost."""
    with running(elsewhere(tmp_path, std=0.0, change=merged_into_nf4), settings=SETTINGS) as other:
        report = deploy_check(project, "toy_desk@2", endpoint=f"{other.url}/v1", model="toy_desk", quantization="q4", tasks=6)
    assert check_of(report, DISTANCE).passed and "told and not judged" in check_of(report, DISTANCE).detail
    tasks = check_of(report, TASKS)
    assert not tasks.passed
    assert not tasks.measured or "worse beyond chance" in tasks.detail
    assert tasks.measured or "only 10 tasks or more can tell" in tasks.detail


def test_a_server_that_mixes_up_what_comes_together_is_stopped(project: Project, sound: Running) -> None:
    busy, count = threading.Lock(), [0]

    class Mixer(BaseHTTPRequestHandler):
        """Hands on to the sound server; whoever comes while another is being answered gets the other's weights."""

        def do_GET(self) -> None:
            self.answer(httpx.get(sound.url + self.path, trust_env=False))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with busy:
                count[0] += 1
                together = count[0] > 1
            if together:
                body["model"] = "base" if body["model"] != "base" else "toy_desk@2"
            got = httpx.post(sound.url + self.path, json=body, timeout=60, trust_env=False)
            with busy:
                count[0] -= 1
            self.answer(got)

        def answer(self, got: httpx.Response) -> None:
            self.send_response(got.status_code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(got.content)))
            self.end_headers()
            self.wfile.write(got.content)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Mixer) as http:
        threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        report = deploy_check(project, "toy_desk@2", endpoint=f"http://127.0.0.1:{http.server_port}/v1", quantization="none")
        http.shutdown()
    stopped(report, CONTROL)
    assert [check.name for check in report.checks if not check.passed] == [CONTROL], "asked alone, it is all right"


def test_what_is_worse_than_the_evaluation_beyond_chance_is_stopped(project: Project) -> None:
    found = stored_evaluation(project, "toy_desk@2", "toy_desk", "test")
    assert found is not None
    perfect = found.model_copy(update={"tasks": tuple(task.model_copy(update={"success": 1.0}) for task in found.tasks)})
    worse = verdict(perfect, compare(perfect, found), 12)
    assert not worse.passed
    assert "worse beyond chance" in worse.detail
    assert verdict(found, compare(found, perfect), 12).passed


def test_a_criterion_of_one_task_is_no_claim(project: Project) -> None:
    found = stored_evaluation(project, "toy_desk@2", "toy_desk", "test")
    assert found is not None
    name = found.criteria[0].split("@")[0]

    def with_one(value: float) -> Evaluation:
        tasks = [task.model_copy(update={"criteria": {name: value} if number == 0 else {}}) for number, task in enumerate(found.tasks)]
        return found.model_copy(update={"tasks": tuple(tasks)})

    check = verdict(with_one(1.0), compare(with_one(1.0), with_one(0.0)), 12)
    assert (check.passed, check.figures[name]) == (True, -1.0)
    assert f"below 10 tasks, so no claim is made of: {name} (1)" in check.detail


def test_without_an_evaluation_tasks_are_not_measured(project: Project, sound: Running, tmp_path: Path) -> None:
    shutil.copytree(project.root, tmp_path / "copy", symlinks=True, ignore=shutil.ignore_patterns("evaluations"))
    report = deploy_check(Project(tmp_path / "copy"), "toy_desk@2", endpoint=f"{sound.url}/v1", quantization="none", tasks=3)
    assert "Run `agentalign eval toy_desk@2` first" in check_of(report, TASKS).detail
    assert not report.passed


def test_truncated_weights_and_another_base_are_stopped_before_anything_is_asked(project: Project, tmp_path: Path) -> None:
    shutil.copytree(project.root, tmp_path / "copy", symlinks=True)
    copy = Project(tmp_path / "copy")
    registry = Registry(copy.adapters)
    card, folder = registry.resolve("toy_desk@2")
    files = copy.state / "cut"
    shutil.copytree(folder, files)
    tensors = load_file(files / "adapter_model.safetensors")
    del tensors[next(key for key in sorted(tensors) if ".lora_B." in key)]
    save_file(tensors, files / "adapter_model.safetensors")
    cut = registry.save(card.model_copy(update={"version": 3}), files)  # cut before it was saved: its digests are right
    with pytest.raises(AgentAlignError, match=r"missing|lacks|expected"):
        deploy_check(copy, cut.ref)
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-64])
    with pytest.raises(RegistryError, match="is damaged"):
        deploy_check(copy, "toy_desk@2")
    base = Path(card.base)
    kept = (base / "config.json").read_text()
    try:
        (base / "config.json").write_text(json.dumps(json.loads(kept) | {"rope_theta": 5000.0}))
        with pytest.raises(RegistryError, match="was trained on"):
            deploy_check(project, "toy_desk@2")
    finally:
        (base / "config.json").write_text(kept)


def test_an_agent_on_our_server_streams_what_it_says_and_is_recorded_under_the_version_that_answered(
    project: Project, sound: Running
) -> None:
    ask = {"role": "user", "content": "I want a bako."}
    with agentalign.load_agent("toy_desk@production", project, backend="openai", base_url=f"{sound.url}/v1", record=True) as agent:
        whole = agent.chat([ask])
        *pieces, last = agent.stream([ask])
    assert last == whole
    assert "".join(map(str, pieces)) == (whole["content"] or "")
    with Store(project.store_url) as store:
        kept = [run for run in store.trajectories() if run.origin.kind == "capture"]
    assert {run.origin.reference for run in kept} == {"toy_desk@2"}
