"""The check of what is deployed: a sound adapter passes, and every broken server or version is seen, over real requests."""

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("prometheus_client", reason="serving is an extra: pip install 'agentalign[serve]'")

import torch
from small_server import TINY, TOY_DESK, Running, add_soft_adapter, promote, running

from agentalign.cli import main
from agentalign.config.project import Project
from agentalign.deployment.check import promote as promote_by_gate
from agentalign.deployment.deploy_check import APPLIED, CONTROL, DISTANCE, TEMPLATE, deploy_check
from agentalign.deployment.serve import Settings
from agentalign.deployment.served_tasks import TASKS
from agentalign.deployment.serving.chat import Limits
from agentalign.environments.team_code import TeamCode
from agentalign.errors import ConfigError, ModelError, RegistryError
from agentalign.records.adapter import GateCheck, GateReport
from agentalign.rollouts.golden import make_golden
from agentalign.store.registry import Registry
from agentalign.store.store import Store
from agentalign.training.base import prepare_base
from agentalign.training.model import Model


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """toy_desk@1 is from before golden turns, @2 is the same with them, @3 has its golden turns and other weights."""
    project = Project.create(tmp_path_factory.mktemp("project"))
    (project.tasks / "toy_desk").symlink_to(TINY.parent / "toy_desk")
    card = add_soft_adapter(project, TINY, name="toy_desk", std=0.15, seed=1)
    registry = Registry(project.adapters)
    # The server computes in bfloat16 where this machine can: it passes all the same.
    model = Model.load(prepare_base(str(TINY), project.cache), quantization="none", device="cpu", dtype=torch.float32)
    model.load_adapter("policy", registry.resolve("toy_desk@1")[1])
    with TeamCode(TOY_DESK.folder) as pool, Store(project.store_url) as store:
        golden = make_golden(model, "policy", TOY_DESK, pool, store)
    assert golden is not None
    odd = add_soft_adapter(project, TINY, name="odd", std=0.25, seed=3)
    for version, weights in ((2, card), (3, odd)):
        files = project.state / f"golden-{version}"
        shutil.copytree(registry.resolve(weights.ref)[1], files)
        (files / "golden.json").write_text(golden.model_dump_json())
        registry.save(card.model_copy(update={"version": version}), files)
    promote(project, "toy_desk@2")
    return project


@pytest.fixture(scope="module")
def server(project: Project) -> Iterator[Running]:
    with running(project, settings=Settings(limits=Limits(max_tokens=200, max_context=900))) as found:
        yield found


@pytest.fixture
def behind(server: Running) -> Iterator[Callable[..., str]]:
    """Starts a real HTTP server that hands requests on to the real one, changed on the way; returns its address."""
    started: list[ThreadingHTTPServer] = []

    def start(change: Callable[[int, dict[str, Any]], None], reply: Callable[[dict[str, Any]], None] = lambda _: None) -> str:
        count, lock = [0], threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.answer(httpx.get(server.url + self.path, trust_env=False))

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    count[0] += 1
                    change(count[0], body)
                self.answer(httpx.post(server.url + self.path, json=body, timeout=60, trust_env=False))

            def answer(self, got: httpx.Response) -> None:
                found = got.json()
                if "choices" in found:
                    reply(found)
                data = json.dumps(found).encode()
                self.send_response(got.status_code)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        started.append(http)
        return f"http://127.0.0.1:{http.server_port}/v1"

    yield start
    for http in started:
        http.shutdown()
        http.server_close()


def verdicts(report: GateReport) -> dict[str, str]:
    return {check.name: check.verdict for check in report.checks}


def failed(report: GateReport) -> set[str]:
    return {check.name for check in report.checks if not check.passed}


def test_a_sound_adapter_passes_in_process(project: Project) -> None:
    report = deploy_check(project, "toy_desk@2")
    assert report.passed, report
    assert (report.target, report.content) == ("in process", Registry(project.adapters).content("toy_desk@2"))


def test_other_weights_than_the_record_s_are_seen_in_process(project: Project) -> None:
    report = deploy_check(project, "toy_desk@3")
    (distance,) = [check for check in report.checks if check.name == DISTANCE]
    assert distance.figures["distance"] > 5e-5
    assert not report.passed or "told and not judged" in distance.detail


def test_without_golden_prompts_nothing_is_green_and_promotion_wants_a_reason(
    project: Project, server: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(project.root, tmp_path / "copy", symlinks=True)
    copy = Project(tmp_path / "copy")
    registry = Registry(copy.adapters)
    for report in (deploy_check(copy, "toy_desk@1"), deploy_check(copy, "toy_desk@1", endpoint=f"{server.url}/v1")):
        assert (report.state, report.passed) == ("not measured", False)
        assert verdicts(report) == {"golden prompts": "failed, not measured"}
    assert [report.state for report in registry.checks("toy_desk@1")] == ["not measured", "not measured"], "stored as such"
    monkeypatch.chdir(copy.root)
    assert main(["adapters", "show", "toy_desk@1"]) == 0
    assert "deploy-check not measured, in process" in capsys.readouterr().out
    words = r"deploy-check: the last one is not measured .*agentalign adapters golden toy_desk@1"
    with pytest.raises(RegistryError, match=words):
        promote_by_gate(copy, "toy_desk@1", "candidate")
    promote_by_gate(copy, "toy_desk@1", "candidate", forced="the server was compared by hand")
    assert registry.history("toy_desk")[-1].gate.forced == "the server was compared by hand"


def test_a_green_report_of_old_in_which_something_was_not_measured_is_not_green(project: Project, tmp_path: Path) -> None:
    shutil.copytree(project.root, tmp_path / "copy", symlinks=True)
    copy = Project(tmp_path / "copy")
    registry = Registry(copy.adapters)
    check = GateCheck(name="golden prompts", passed=True, measured=False, detail="it was saved before they were kept")
    old = GateReport(adapter="toy_desk@1", content=registry.content("toy_desk@1"), target="in process", checks=(check,))
    registry.keep("toy_desk@1", old)
    with pytest.raises(RegistryError, match="the last one is not measured"):
        promote_by_gate(copy, "toy_desk@1", "candidate")
    assert GateReport(adapter="x@1", checks=()).state == "not measured"


def test_golden_prompts_recorded_later_make_a_version_measurable_and_stand_beside_it(
    project: Project, server: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(project.root, tmp_path / "copy", symlinks=True)
    copy = Project(tmp_path / "copy")
    registry = Registry(copy.adapters)
    before = registry.content("toy_desk@1")
    monkeypatch.chdir(copy.root)
    assert main(["adapters", "golden", "toy_desk@1"]) == 0
    assert "golden prompts are kept beside toy_desk@1" in capsys.readouterr().out
    registry.verify("toy_desk@1")
    assert registry.content("toy_desk@1") == before, "the version itself never changes"
    report = deploy_check(copy, "toy_desk@1")
    assert report.state == "green", report
    assert "made from the saved files and not by the training" in report.checks[0].detail
    assert deploy_check(copy, "toy_desk@1", endpoint=f"{server.url}/v1", quantization="none").state == "green"
    assert main(["adapters", "golden", "toy_desk@2"]) == 1
    assert "has its golden prompts" in capsys.readouterr().err
    # Of other files they say nothing.
    (copy.adapters / "toy_desk" / "1.golden.json").rename(copy.adapters / "toy_desk" / "3.golden.json")
    assert registry.golden("toy_desk@3") is None


def test_a_sound_server_passes(project: Project, server: Running) -> None:
    report = deploy_check(project, "toy_desk@2", endpoint=f"{server.url}/v1", quantization="none")
    assert report.passed, report
    assert set(verdicts(report).values()) == {"passed"}
    assert "by token ids" in next(check.detail for check in report.checks if check.name == TEMPLATE)


def test_a_server_of_another_precision_is_told_and_not_judged(project: Project, server: Running) -> None:
    def asked(quantization: str) -> GateCheck:
        report = deploy_check(project, "toy_desk@3", endpoint=f"{server.url}/v1", quantization=quantization)
        (found,) = [check for check in report.checks if check.name == DISTANCE]
        return found

    unsaid, told = asked("none"), asked("none/bfloat16")
    assert not unsaid.passed and "computed in float32 on cpu" in unsaid.detail and "--quantization none/bfloat16" in unsaid.detail
    assert not asked("none/float32").passed
    assert told.passed and "told and not judged" in told.detail
    # What is told judges nothing: without tasks nobody knows whether that policy is as good.
    report = deploy_check(project, "toy_desk@3", endpoint=f"{server.url}/v1", quantization="none/bfloat16")
    assert report.state == "not measured" and verdicts(report)[TASKS] == "failed, not measured"
    near = deploy_check(project, "toy_desk@2", endpoint=f"{server.url}/v1", quantization="f16")
    assert near.state == "green", "the same policy in other words"
    with pytest.raises(ConfigError, match="after the slash stands one of bfloat16, float16, float32"):
        asked("none/bf16")


def test_a_server_that_answers_as_the_base_is_seen(project: Project, behind: Callable[..., str]) -> None:
    def forget(_: int, body: dict[str, Any]) -> None:
        body["model"] = "base"

    report = deploy_check(project, "toy_desk@2", endpoint=behind(forget), quantization="q4_k_m")
    assert APPLIED in failed(report)


def test_a_server_that_drops_the_tools_from_the_prompt_is_seen(project: Project, behind: Callable[..., str]) -> None:
    def drop(_: int, body: dict[str, Any]) -> None:
        body.pop("tools", None)

    def silent(reply: dict[str, Any]) -> None:
        reply.pop("prompt_token_ids", None)

    assert TEMPLATE in failed(deploy_check(project, "toy_desk@2", endpoint=behind(drop), quantization="none"))
    counted = deploy_check(project, "toy_desk@2", endpoint=behind(drop, silent), quantization="none")
    assert TEMPLATE in failed(counted) and "number of tokens only" in counted.checks[-1].detail


def test_without_log_probs_nothing_passes_in_silence(project: Project, behind: Callable[..., str]) -> None:
    def without(reply: dict[str, Any]) -> None:
        reply["choices"][0]["logprobs"] = None

    found = verdicts(deploy_check(project, "toy_desk@2", endpoint=behind(lambda *_: None, without), quantization="none"))
    assert {found[DISTANCE], found[APPLIED], found[CONTROL]} == {"failed, not measured"}


def test_a_sound_server_that_says_texts_and_no_ids_passes_and_one_of_another_spelling_is_not_judged(
    project: Project, behind: Callable[..., str]
) -> None:
    def textual(_: int, body: dict[str, Any]) -> None:
        for name in ("return_token_ids", "return_tokens_as_token_ids"):
            body.pop(name, None)

    def entries(reply: dict[str, Any]) -> list[dict[str, Any]]:
        found = (reply["choices"][0]["logprobs"] or {}).get("content") or []
        return [one for entry in found for one in (entry, *entry["top_logprobs"])]

    def without_ids(reply: dict[str, Any]) -> None:
        for entry in entries(reply):
            del entry["id"]

    def raw_pieces(reply: dict[str, Any]) -> None:
        for entry in entries(reply):
            entry["token"] = f"\u0120{entry['token']}"
            del entry["id"]

    found = deploy_check(project, "toy_desk@2", endpoint=behind(textual, without_ids), quantization="none")
    assert verdicts(found)[DISTANCE] == verdicts(found)[APPLIED] == verdicts(found)[CONTROL] == "passed", found
    other = deploy_check(project, "toy_desk@2", endpoint=behind(textual, raw_pieces), quantization="none")
    assert {verdicts(other)[name] for name in (DISTANCE, APPLIED, CONTROL)} == {"failed, not measured"}
    assert "form of its own" in other.checks[0].detail
    assert other.state == "not measured", "nothing there is worse than in training"


def test_damaged_weights_and_a_silent_server_end_with_a_sentence(project: Project, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not say what it serves"):
        deploy_check(project, "toy_desk@2", endpoint="http://127.0.0.1:9/v1")
    shutil.copytree(project.root, tmp_path / "copy", symlinks=True)
    file = tmp_path / "copy" / "adapters" / "toy_desk" / "2" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(RegistryError, match="is damaged"):
        deploy_check(Project(tmp_path / "copy"), "toy_desk@2")
