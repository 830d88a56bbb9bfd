"""Throughput of `agentalign serve` beside `transformers serve` and vLLM, at 1, 4 and 16 clients, in one run. Not measured yet.

    .venv/bin/python benchmarks/serve.py order_desk@production                        # ours alone
    .venv/bin/python benchmarks/serve.py order_desk@production --transformers DIR --vllm .venv-vllm/bin/python

Every server gets the same prompts, tools, greedy decoding and token limit; only what it answers is counted, as tokens by its own `usage`.
The others have no NF4 base with adapters beside it: --transformers wants a folder with the adapter merged (or beside its base), --vllm the
Python of an environment of its own and serves the exported adapter. One server runs at a time, since they share the machine's cores.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from openai import OpenAI, OpenAIError

from agentalign.config.project import Project
from agentalign.deployment.export import export
from agentalign.environments.taskset import find_taskset, load_taskset
from agentalign.store.registry import Registry

CLIENTS = (1, 4, 16)
PORT = 8765


class Row(NamedTuple):
    """One server at one number of clients."""

    server: str
    clients: int
    requests: int
    failed: int
    tokens_per_second: float
    median_seconds: float


@contextmanager
def started(command: Sequence[str], log: Path) -> Iterator[None]:
    """The server, once it answers; ended afterwards."""
    with log.open("w") as out, subprocess.Popen(command, stdout=out, stderr=out) as process:
        try:
            client = OpenAI(base_url=f"http://127.0.0.1:{PORT}/v1", api_key="none", timeout=5, max_retries=0)
            for _ in range(600):
                if process.poll() is not None:
                    sys.exit(f"{command[0]} ended with {process.returncode}; see {log}")
                try:
                    client.with_options(timeout=2).get("/../health", cast_to=object)
                    break
                except OpenAIError:
                    time.sleep(1)
            yield
        finally:
            process.terminate()


def measure(server: str, model: str, chats: list[list[dict[str, str]]], tools: list[dict[str, object]], clients: int, tokens: int) -> Row:
    """All chats by so many clients at once; one chat before, to warm up."""
    client = OpenAI(base_url=f"http://127.0.0.1:{PORT}/v1", api_key="none", timeout=600, max_retries=0)

    def ask(chat: list[dict[str, str]]) -> tuple[int, float]:
        began = time.perf_counter()
        try:
            reply = client.chat.completions.create(model=model, messages=chat, tools=tools, temperature=0, max_tokens=tokens)  # type: ignore[call-overload]
        except OpenAIError:
            return -1, 0.0
        return reply.usage.completion_tokens, time.perf_counter() - began

    ask(chats[0])
    began = time.perf_counter()
    with ThreadPoolExecutor(clients) as threads:
        done = list(threads.map(ask, chats))
    seconds = time.perf_counter() - began
    good = [one for one in done if one[0] >= 0]
    median = statistics.median(one[1] for one in good) if good else float("nan")
    return Row(server, clients, len(done), len(done) - len(good), sum(one[0] for one in good) / seconds, median)


def main() -> None:
    """Print a JSON line per server and number of clients."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ref", nargs="?", help="an adapter, such as order_desk@production; without one nothing is measured")
    parser.add_argument("--transformers", metavar="DIR", help="a folder that `transformers serve` takes")
    parser.add_argument("--vllm", metavar="PYTHON", help="the Python of an environment with vLLM")
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--full", action="store_true", help="four times the requests")
    arguments = parser.parse_args()
    if arguments.ref is None:
        print("not measured: name an adapter, such as order_desk@production")
        return
    project = Project.find()
    card, _ = Registry(project.adapters).resolve(arguments.ref)
    taskset = load_taskset(find_taskset(card.taskset, project.tasks))
    tasks = [task for task in taskset.tasks("dev") if task.values.get("prompt")]
    count = arguments.requests * (4 if arguments.full else 1)
    prompts = [str(task.values["prompt"]) for task in tasks] or ["Hello, I need help with my order."]
    chats = [
        [{"role": "system", "content": taskset.system_prompt}, {"role": "user", "content": prompts[i % len(prompts)]}] for i in range(count)
    ]
    here = ["--host", "127.0.0.1", "--port", str(PORT)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        servers = [("agentalign serve", card.ref, [sys.executable, "-m", "agentalign", "serve", card.ref, *here, "--running", "16"])]
        if arguments.transformers:
            servers.append(("transformers serve", arguments.transformers, ["transformers", "serve", arguments.transformers, *here]))
        if arguments.vllm:
            exported = export(project, card.ref, folder / "exported")
            words = ["--model", exported.base, "--enable-lora", "--lora-modules", f"{card.name}={exported.folder}", "--max-lora-rank", "64"]
            words += [
                "--chat-template",
                str(exported.folder / "chat_template.jinja"),
                "--enable-auto-tool-choice",
                "--tool-call-parser",
                "hermes",
            ]
            servers.append(("vllm", card.name, [arguments.vllm, "-m", "vllm.entrypoints.openai.api_server", *words, *here]))
        for server, model, command in servers:
            with started(command, folder / f"{server.split()[0]}.log"):
                for clients in CLIENTS:
                    row = measure(server, model, chats, json.loads(taskset.tools), clients, arguments.tokens)
                    print(json.dumps(row._asdict()), flush=True)


if __name__ == "__main__":
    main()
