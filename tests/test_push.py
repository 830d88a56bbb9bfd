"""What goes to a hub: every byte can be looked at first, and nothing of this machine or of the team's tasks goes along."""

import base64
import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from peft import PeftModel
from small_base import add_adapter, make_base
from transformers import AutoModelForCausalLM

from agentalign import strict_yaml
from agentalign.cli import main
from agentalign.config.project import Project
from agentalign.deployment.push import push
from agentalign.errors import ModelError, RegistryError
from agentalign.records.adapter import EvaluationSummary
from agentalign.records.golden import Golden
from agentalign.store.registry import Registry
from tests.small_answers import JsonHandler

REPOSITORY, BASE = "team/order-desk", "org/base-model"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = Project.create(tmp_path_factory.mktemp("project"))
    base = make_base(project.root / "base")
    card = add_adapter(project, base)
    registry = Registry(project.adapters)
    folder = registry.resolve("hello@1")[1]
    files = project.state / "second"
    files.mkdir()
    for file in folder.iterdir():
        (files / file.name).write_bytes(file.read_bytes())
    golden = Golden(dialect="a customer's words", quantization="none", dtype="float32", device="cpu", held_out=True, noise=0.0, turns=())
    (files / "golden.json").write_text(golden.model_dump_json())
    config = json.dumps({"learning_rate": 0.1, "base": str(base), "start": "/home/someone/x"})
    registry.save(card.model_copy(update={"version": 2, "config": config, "criteria": ("tone|<b>@1",)}), files)
    summary = EvaluationSummary(
        content=registry.content("hello@2"), taskset="hello", split="test", settings={"samples": 1}, tasks=9, success=(0.5, 0.2, 0.8),
        criteria={"task_success@1": 0.5}, time="2026-01-01T00:00:00Z",
    )  # fmt: skip
    registry.keep("hello@2", summary)
    add_adapter(project, base, name="hello-reward", kind="reward")
    return project


def test_a_dry_run_writes_what_would_be_pushed_and_peft_loads_it(project: Project, tmp_path: Path) -> None:
    done = push(project, "hello@2", REPOSITORY, base=BASE, dry_run=tmp_path / "out")
    assert done.files == (
        "README.md", "adapter_config.json", "adapter_model.safetensors", "card.json", "chat_template.jinja", "evaluations.json"
    )  # fmt: skip
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["base_model_name_or_path"] == BASE
    base = AutoModelForCausalLM.from_pretrained(project.root / "base")
    assert PeftModel.from_pretrained(base, tmp_path / "out").active_adapter == "default"
    texts = [file.read_text() for file in (tmp_path / "out").iterdir() if file.suffix != ".safetensors"]
    assert not [text for text in texts if str(project.root) in text or "/home/someone" in text or "customer" in text]
    assert json.loads(json.loads((tmp_path / "out" / "card.json").read_text())["config"]) == {"learning_rate": 0.1}
    assert "golden.json" in push(project, "hello@2", REPOSITORY, base=BASE, golden=True, dry_run=tmp_path / "more").files
    assert "golden.json" not in push(project, "hello@1", REPOSITORY, base=BASE, golden=True, dry_run=tmp_path / "none").files
    Registry(project.adapters).keep("hello@1", Golden.model_validate_json((tmp_path / "more" / "golden.json").read_text()))
    assert "golden.json" in push(project, "hello@1", REPOSITORY, base=BASE, golden=True, dry_run=tmp_path / "later").files


def test_the_model_card_has_the_figures_where_the_hub_reads_them_and_no_markup_of_others(project: Project, tmp_path: Path) -> None:
    push(project, "hello@2", REPOSITORY, base=BASE, dry_run=tmp_path / "out")
    _, head, text = (tmp_path / "out" / "README.md").read_text().split("---\n", 2)
    (tmp_path / "head.yaml").write_text(head)
    data = strict_yaml.load(tmp_path / "head.yaml")
    assert (data["base_model"], data["library_name"]) == (BASE, "peft")
    metrics = [metric for result in data["model-index"][0]["results"] for metric in result["metrics"]]
    assert {"type": "success", "value": 0.5} in [{key: metric[key] for key in ("type", "value")} for metric in metrics]
    assert "| hello, test | 9 | success | 0.500 | 0.200 to 0.800 |" in text
    assert "tone\\|\\<b\\>@1" in text
    push(project, "hello@1", REPOSITORY, base=BASE, dry_run=tmp_path / "bare")
    assert "was not evaluated" in (tmp_path / "bare" / "README.md").read_text()


@pytest.mark.parametrize(
    ("ref", "repository", "base", "words"),
    [
        ("hello@1", REPOSITORY, "", "no name of the hub"),
        ("hello@1", REPOSITORY, "../base", "no name of the hub"),
        ("hello@1", "order-desk", BASE, "OWNER/NAME"),
        ("hello@1", "team/order desk", BASE, "OWNER/NAME"),
        ("hello-reward@1", REPOSITORY, BASE, "gives numbers"),
    ],
)
def test_what_cannot_be_pushed_is_a_sentence(project: Project, tmp_path: Path, ref: str, repository: str, base: str, words: str) -> None:
    with pytest.raises(RegistryError, match=words):
        push(project, ref, repository, base=base, dry_run=tmp_path / "out")
    assert not (tmp_path / "out").exists()


class Hub(JsonHandler, BaseHTTPRequestHandler):
    """As much of a hub as one commit needs; it keeps what it was sent."""

    private, refuses = True, False
    created: list[dict[str, object]] = []
    committed: dict[str, bytes] = {}
    there: tuple[str, ...] = ()
    deleted: list[str] = []

    def do_GET(self) -> None:
        if "/tree/" in self.path:
            self.answer([{"type": "file", "oid": "0" * 40, "size": 1, "path": name} for name in self.there])
            return
        self.answer({"id": REPOSITORY, "private": self.private, "siblings": [], "tags": [], "sha": "0" * 40})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        where = f"http://127.0.0.1:{self.server.server_port}/{REPOSITORY}"  # type: ignore[attr-defined]
        if self.refuses:
            self.answer({"error": "no"}, 403)
        elif self.path == "/api/repos/create":
            self.created.append(json.loads(body))
            self.answer({"url": where})
        elif "/preupload/" in self.path:
            files = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(body)["files"]]
            self.answer({"files": files})
        elif "/commit/" in self.path:
            entries = [json.loads(line) for line in body.splitlines()]
            self.committed.update(
                {one["value"]["path"]: base64.b64decode(one["value"]["content"]) for one in entries if one["key"] == "file"}
            )
            self.deleted += [one["value"]["path"] for one in entries if one["key"] == "deletedFile"]
            self.answer({"commitUrl": f"{where}/commit/{'1' * 40}", "commitOid": "1" * 40, "success": True})
        else:
            self.answer({"errors": [], "warnings": []})


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    Hub.private, Hub.refuses, Hub.created, Hub.committed, Hub.there, Hub.deleted = True, False, [], {}, (), []
    with HTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_what_is_pushed_is_what_the_dry_run_showed_to_a_private_repository(project: Project, tmp_path: Path, hub: str) -> None:
    push(project, "hello@2", REPOSITORY, base=BASE, dry_run=tmp_path / "out")
    done = push(project, "hello@2", REPOSITORY, base=BASE, endpoint=hub)
    assert done.where.endswith("1" * 40)
    assert Hub.committed == {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    assert "private" in json.dumps(Hub.created[0])


def test_what_was_said_of_another_version_does_not_stay_beside_this_one(project: Project, hub: str) -> None:
    Hub.there = ("README.md", "evaluations.json", "golden.json", "somebody's.txt")
    push(project, "hello@1", REPOSITORY, base=BASE, endpoint=hub)
    assert set(Hub.deleted) == {"evaluations.json", "golden.json"} - set(Hub.committed)
    assert "golden.json" in Hub.deleted


def test_a_private_repository_is_not_said_to_be_public(project: Project, hub: str) -> None:
    with pytest.raises(RegistryError, match="exists and is private"):
        push(project, "hello@2", REPOSITORY, base=BASE, endpoint=hub, public=True)
    assert Hub.committed == {}


def test_a_public_repository_and_a_hub_that_refuses_get_nothing(project: Project, hub: str) -> None:
    Hub.private = False
    with pytest.raises(RegistryError, match="is public"):
        push(project, "hello@2", REPOSITORY, base=BASE, endpoint=hub)
    push(project, "hello@2", REPOSITORY, base=BASE, endpoint=hub, public=True)
    Hub.committed.clear()
    Hub.refuses = True
    with pytest.raises(ModelError, match="did not take"):
        push(project, "hello@2", REPOSITORY, base=BASE, endpoint=hub, public=True)
    assert Hub.committed == {}


def test_a_hub_that_is_not_there_is_a_sentence(project: Project, hub: str) -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))  # taken and never listened at, so nobody answers
        with pytest.raises(ModelError, match=r"did not take team/order-desk.*Can this machine reach it"):
            push(project, "hello@2", REPOSITORY, base=BASE, endpoint=f"http://127.0.0.1:{one.getsockname()[1]}")


def test_a_dry_run_where_nothing_can_be_written_is_a_sentence(project: Project, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(RegistryError, match="could not be written"):
        push(project, "hello@2", REPOSITORY, base=BASE, dry_run=tmp_path / "file" / "out")


def test_the_command_shows_where_a_dry_run_lies(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(project.root)
    assert main(["adapters", "push", "hello@2", REPOSITORY, "--base", BASE, "--dry-run", str(tmp_path / "out")]) == 0
    told = capsys.readouterr()
    assert told.out.strip() == str(tmp_path / "out")
    assert "would be pushed to team/order-desk" in told.err
