"""A real server over a real base of toy size, in this process, for tests of everything around `agentalign serve`."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import torch
import uvicorn

from agentalign.config.project import Project
from agentalign.deployment.serve import Served, Settings, open_server
from agentalign.deployment.serving.worker import Worker
from agentalign.environments.taskset import load_taskset
from agentalign.records.adapter import AdapterCard, GateReport
from agentalign.records.base import digest
from agentalign.store.registry import Registry
from agentalign.training.base import prepare_base
from agentalign.training.model import Model
from agentalign.training.quantize import Quantization

TINY = Path(__file__).parent / "fixtures" / "tiny"
TOY_DESK = load_taskset(TINY.parent / "toy_desk")
SYSTEM = TOY_DESK.system_prompt
(ORDER,) = json.loads(TOY_DESK.tools)


def add_soft_adapter(
    project: Project, folder: Path, *, name: str, std: float, seed: int, quantization: Quantization = "none"
) -> AdapterCard:
    """Publish an adapter that bends the base by so much that it still does what it can do."""
    base = prepare_base(str(folder), project.cache)
    model = Model.load(base, quantization="none", device="cpu", dtype=torch.float32)
    model.add_adapter("policy", r=4, alpha=8, seed=seed)
    torch.manual_seed(seed)
    for key, tensor in model.adapter_tensors("policy").items():
        if ".lora_B." in key:
            tensor.data.normal_(std=std)
    registry = Registry(project.adapters)
    version = registry.next_version(name)
    files = project.state / "made" / f"{name}-{version}"
    model.save_adapter("policy", files)
    (files / "chat_template.jinja").write_text(base.template, "utf-8")
    card = AdapterCard(
        name=name, version=version, kind="policy", taskset="toy_desk", recipe="sft", training="made-by-hand", base=str(folder),
        base_digest=base.digest, quantization=quantization, template_digest=digest(base.template), config=json.dumps({"seed": seed}),
    )  # fmt: skip
    return registry.save(card, files)


def promote(project: Project, ref: str, stage: str = "production") -> None:
    Registry(project.adapters).promote(ref, stage, GateReport(adapter=ref, checks=()))


class Running:
    """A server on a port of this machine."""

    def __init__(self, served: Served, url: str) -> None:
        self.served, self.url = served, url
        self.client = httpx.Client(base_url=url, timeout=60, trust_env=False)

    def chat(self, content: str = "hi", *, expect: int = 200, **more: Any) -> dict[str, Any]:
        body = {"model": "toy_desk@production", "messages": [{"role": "user", "content": content}], **more}
        answer = self.client.post("/v1/chat/completions", json=body)
        assert answer.status_code == expect, answer.text
        found: dict[str, Any] = answer.json()
        return found


@contextmanager
def running(project: Project, refs: tuple[str, ...] = (), **more: Any) -> Iterator[Running]:
    served = open_server(project, refs, device="cpu", settings=more.pop("settings", Settings()), **more)
    server = uvicorn.Server(uvicorn.Config(served.app, port=0, log_level="warning", access_log=False))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    found = Running(served, f"http://127.0.0.1:{port}")
    try:
        yield found
    finally:
        found.client.close()
        server.should_exit = True
        thread.join()


@contextmanager
def held(worker: Worker) -> Iterator[None]:
    """Inside, the worker does nothing, and what is handed in waits."""
    begun, go = threading.Event(), threading.Event()

    def hold() -> None:
        begun.set()
        go.wait(300)

    change = threading.Thread(target=worker.change, args=(hold,))
    change.start()
    try:
        assert begun.wait(30)
        yield
    finally:
        go.set()
        change.join()


def until(true: Any) -> None:
    for _ in range(12000):
        if true():
            return
        time.sleep(0.01)
    raise AssertionError("it did not come to that")
