"""Ours beside TRL: the same weights, LoRA, token ids and rates, alternating, each side in a process of its own.

    .venv/bin/python benchmarks/peers.py                                  # SFT, DPO and reward model on order-desk runs: about an hour
    .venv/bin/python benchmarks/peers.py --only sft --repetitions 1
    .venv/bin/python benchmarks/peers.py --base tests/fixtures/tiny       # does the script work? seconds, and no speeds worth a word

A speed counts only when the losses agree, so those come first. Per cell 4 steps, the first of which warms up, and 3 repetitions; rows
are appended to benchmarks/results.json. TRL lives in .cache/peers, an environment that shares our torch and transformers.
"tuned" gives both sides the rows sorted by length, and TRL its precomputed reference; in "default" TRL computes DPO's reference inside
each step, which ours does before the first and is not timed: compare DPO by "tuned". DPO is trained on what TRL trains: everything
after the prompt, tool results included. Run it alone on the machine.
"""

import argparse
import json
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from agentalign.config.dpo import DPOConfig
from agentalign.config.project import Project
from agentalign.config.reward import RewardConfig
from agentalign.environments.check import expert_run
from agentalign.environments.taskset import load_taskset
from agentalign.environments.team_code import TeamCode
from agentalign.recipes import dpo, reward, sft
from agentalign.recipes.data import Part, Turn, sft_batches
from agentalign.records.trajectory import Message, Trajectory
from agentalign.training.base import prepare_base
from agentalign.training.engine import train
from agentalign.training.model import Model
from agentalign.training.quantize import fast_bf16
from agentalign.training.render import Rendered, RenderedTurn, render
from agentalign.training.schedule import Plan
from agentalign.training.step import Learner, Pass

HERE = Path(__file__).parent
TRL = "1.16.0"
BATCH, STEPS, RATE, BETA, MAX_LENGTH = 4, 4, 1e-4, 0.5, 4096
CPU = torch.device("cpu")
AGREE = {False: 2e-3, True: 3e-2}
"""Largest relative difference of the losses that rounding explains, by whether bf16 is at work."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=["sft", "dpo", "reward"], default=["sft", "dpo", "reward"])
    parser.add_argument("--variants", nargs="+", choices=["default", "tuned"], default=["tuned"])
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--json", type=Path, default=HERE / "results.json", help="rows are appended here; default: %(default)s")
    parser.add_argument("--full", action="store_true", help="10 repetitions")
    parser.add_argument("--ours", type=Path, help=argparse.SUPPRESS)  # our side of a cell, in a process of its own
    arguments = parser.parse_args()
    if arguments.ours:
        print(json.dumps(our_side(json.loads(arguments.ours.read_text(encoding="utf-8")))))
        return
    peer = environment()
    repetitions = 10 if arguments.full else arguments.repetitions
    print(f"{cpu()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {'bf16' if fast_bf16(CPU) else 'fp32'}, TRL {TRL}")
    with tempfile.TemporaryDirectory() as scratch:
        jobs = make_jobs(arguments.base, Path(scratch))
        for recipe in arguments.only:
            for variant in arguments.variants:
                row = cell(recipe, variant, jobs[recipe], peer, repetitions, Path(scratch))
                before = json.loads(arguments.json.read_text(encoding="utf-8")) if arguments.json.exists() else []
                arguments.json.write_text(json.dumps([*before, row], indent=1) + "\n", encoding="utf-8")


def environment() -> str:
    """The Python of TRL's environment, made on the first call: our packages, and TRL beside them."""
    folder = Project.create(Path.cwd()).root / ".cache" / "peers" / f"trl-{TRL}"
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        (packages,) = folder.glob("lib/python3*/site-packages")
        (packages / "ours.pth").write_text(f"{Path(torch.__file__).parents[1]}\n", encoding="utf-8")
        subprocess.run([str(python), "-m", "pip", "install", "-q", "--no-deps", f"trl=={TRL}"], check=True)
        (folder / "ready").touch()
    return str(python)


def cell(recipe: str, variant: str, job: dict[str, Any], peer: str, repetitions: int, scratch: Path) -> dict[str, Any]:
    """One recipe both ways, alternating."""
    tuned = variant == "tuned"
    rows = sorted(job["rows"], key=_length) if tuned else job["rows"]
    path = scratch / "job.json"
    path.write_text(json.dumps(job | {"rows": rows, "tuned": tuned, "recipe": recipe}), encoding="utf-8")
    sides: dict[str, list[dict[str, Any]]] = {"ours": [], "trl": []}
    for _ in range(repetitions):
        sides["ours"].append(_run([sys.executable, __file__, "--ours", str(path)]))
        sides["trl"].append(_run([peer, str(HERE / "peers" / "trl_side.py"), str(path)]))
    ours, theirs = sides["ours"], sides["trl"]
    # The heads of the reward models learn at other scales: only the first step compares.
    compared = 1 if recipe == "reward" else STEPS
    pairs = list(zip(ours[0]["losses"][:compared], theirs[0]["losses"][:compared], strict=True))
    equal = all(abs(a - b) <= AGREE[job["bf16"]] * max(abs(b), 0.1) for a, b in pairs)
    speed = {side: [BATCH / statistics.median(one["seconds"][1:]) for one in runs] for side, runs in sides.items()}
    memory = {side: statistics.median(one["peak_gib"] for one in runs) for side, runs in sides.items()}
    ratio = statistics.median(speed["ours"]) / statistics.median(speed["trl"])
    unit = {"sft": "samples/s", "dpo": "pairs/s", "reward": "pairs/s"}[recipe]
    print(f"\n{recipe}, {variant}: losses {', '.join(f'{a:.4f} and {b:.4f}' for a, b in pairs)}: {'equal' if equal else 'NOT EQUAL'}")
    for side, found in speed.items():
        print(f"  {side:5} {statistics.median(found):7.3f} {unit} [{min(found):.3f}, {max(found):.3f}]  {memory[side]:.2f} GiB")
    print(f"  {ratio:.2f} times as fast, {memory['ours'] / memory['trl']:.2f} of the memory", flush=True)
    return {
        "workload": f"order desk, {recipe}, {variant}", "metric": unit, "ours": statistics.median(speed["ours"]),
        "peer": statistics.median(speed["trl"]), "peer_name": "TRL", "peer_version": theirs[0]["version"], "ratio": ratio,
        "memory_ratio": memory["ours"] / memory["trl"], "losses_equal": equal, "runs": speed, "machine": cpu(),
    }  # fmt: skip


def _run(command: list[str]) -> dict[str, Any]:
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(HERE.parent)})
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def cpu() -> str:
    """The processor's name."""
    names = [line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()


# ---------------------------------------------------------------- what both sides train on


def make_jobs(base: str, scratch: Path) -> dict[str, dict[str, Any]]:
    """Rows as token ids, an adapter that does something, and a head, the same for both sides."""
    prepared = prepare_base(base, Project.create(Path.cwd()).cache)
    model = Model.load(prepared, quantization="none", dtype=torch.float32)
    model.add_adapter("policy", r=16, alpha=32, seed=0)
    draw = torch.Generator().manual_seed(1)
    for key, tensor in sorted(model.adapter_tensors("policy").items()):
        if ".lora_B." in key:
            tensor.data.copy_(torch.randn(tensor.shape, generator=draw) * 0.01)
    model.save_adapter("policy", scratch / "adapter")
    runs = [(render(a, model.dialect, max_tokens=MAX_LENGTH), render(b, model.dialect, max_tokens=MAX_LENGTH)) for a, b in both_ways()]
    width = int(model.head_weight.shape[1])
    common = {
        "base": str(prepared.folder), "adapter": str(scratch / "adapter"), "scratch": str(scratch / "trl"), "batch": BATCH, "steps": STEPS,
        "rate": RATE, "beta": BETA, "max_length": MAX_LENGTH, "bf16": fast_bf16(CPU), "threads": torch.get_num_threads(), "name": base,
        "head": (torch.randn(width, generator=draw) / width**0.5).tolist(),
    }  # fmt: skip
    paths = [([*a.turns[-1].context, *a.turns[-1].completion], [*b.turns[-1].context, *b.turns[-1].completion], a) for a, b in runs]
    prompts = [len(a.turns[0].context) for _, _, a in paths]
    return {
        "sft": common | {"rows": [{"input_ids": path, "assistant_masks": _mask(run)} for path, _, run in paths]},
        "dpo": common
        | {
            "rows": [{"prompt_ids": a[:n], "chosen_ids": a[n:], "rejected_ids": b[n:]} for (a, b, _), n in zip(paths, prompts, strict=True)]
        },
        "reward": common | {"rows": [{"chosen_ids": a, "rejected_ids": b} for a, b, _ in paths]},
    }


def both_ways() -> Iterator[tuple[Trajectory, Trajectory]]:
    """The expert's run of a task, and one that goes wrong on the way: a needless call that fails, before the last turn."""
    taskset = load_taskset("order_desk")
    pool, tasks = TeamCode(taskset.folder), list(taskset.tasks("train"))
    random.Random(0).shuffle(tasks)
    made = 0
    for task in tasks:
        run = expert_run(taskset, task, pool)
        calls = [call for step in run.steps for call in step.message.tool_calls]
        if not calls or made == BATCH * STEPS:
            continue
        made += 1
        call = calls[0].model_copy(update={"id": "call_again"})
        detour = (
            Message(role="assistant", tool_calls=(call,)),
            Message(role="tool", tool_call_id=call.id, name=call.name, content="Error: this was looked up already.", error=True),
        )
        messages = (*run.messages[: run.steps[-1].message_index], *detour, *run.messages[run.steps[-1].message_index :])
        yield run, Trajectory(**(run.model_dump(exclude={"id", "messages"}) | {"messages": messages}))


def _mask(run: Rendered) -> list[int]:
    mask = [0] * run.n_tokens
    for turn in run.turns:
        mask[len(turn.context) : len(turn.context) + len(turn.completion)] = [1] * len(turn.completion)
    return mask


def _length(row: dict[str, list[int]]) -> int:
    return sum(len(values) for values in row.values())


# ---------------------------------------------------------------- our side


def our_side(job: dict[str, Any]) -> dict[str, Any]:
    """A few steps of a recipe's own loss through our engine."""
    torch.set_num_threads(job["threads"])
    model = Model.load(prepare_base(job["name"], Project.create(Path.cwd()).cache), quantization="none")
    model.load_adapter("policy", Path(job["adapter"]), trainable=True)
    learner, steps = LEARN[job["recipe"]](model, job)
    with tempfile.TemporaryDirectory() as folder:
        plan = Plan(total_steps=STEPS, schedule="constant")
        train(model, [learner], steps, plan, folder=Path(folder))
        rows = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"seconds": [row["seconds"] for row in rows], "losses": [row["loss"] for row in rows], "peak_gib": peak}


def _in_steps(items: Sequence[Any], batches: Any, loss: Any) -> Any:
    def steps(start: int) -> Iterator[Sequence[Pass]]:
        for step in range(start, STEPS):
            yield [Pass("policy", partial(batches, items[step * BATCH : (step + 1) * BATCH]), loss)]

    return steps


def _sft(_model: Model, job: dict[str, Any]) -> Any:
    runs = [_as_rendered(row["input_ids"], row["assistant_masks"], str(i)) for i, row in enumerate(job["rows"])]
    return Learner("policy", learning_rate=RATE), _in_steps(runs, sft_batches, sft.token_loss)


def _dpo(model: Model, job: dict[str, Any]) -> Any:
    config = DPOConfig(taskset="order_desk", credit="run", beta=BETA, nll_coefficient=0.0, replay=0, min_reference_prob=0.0)
    pairs = []
    for i, row in enumerate(job["rows"]):
        prompt = tuple(row["prompt_ids"])
        sides = dpo.apart(*([Turn(prompt, tuple(row[key]))] for key in ("chosen_ids", "rejected_ids")))
        assert sides is not None
        pairs.append(dpo.Pair(*sides, strength=1.0, trajectories=(f"{i}+", f"{i}-"), anchor=None, source="bench"))
    with tempfile.TemporaryDirectory() as cache:
        known = dpo.with_reference(model, pairs, config, Path(cache))
    steps = _in_steps(known, lambda some, budget: dpo.pair_batches(some, [], {}, budget), partial(_pair_loss, config=config))
    return Learner("policy", learning_rate=RATE), steps


def _pair_loss(model: Model, micro: Any, config: DPOConfig) -> Any:
    return dpo.pair_loss(model, micro, config)


def _reward(model: Model, job: dict[str, Any]) -> Any:
    config = RewardConfig(taskset="order_desk", centering=0.0)
    model.add_head(reward.HEAD, 1)
    head = model.heads[reward.HEAD]
    with torch.no_grad():
        # Ours divides the rows by sqrt(H).
        weight = torch.tensor(job["head"])[None]
        assert isinstance(head, torch.nn.Linear)
        head.weight.copy_(weight * weight.shape[1] ** 0.5)
    items = []
    for i, row in enumerate(job["rows"]):
        parts = tuple(Part((Turn(tuple(row[key][:-1]), tuple(row[key][-1:])),)) for key in ("chosen_ids", "rejected_ids"))
        nothing = (float("nan"), float("nan"))
        items.append(reward.Ranked(parts, nothing, 1.0, (f"{i}+", f"{i}-"), str(i), "bench"))
    steps = _in_steps(items, reward.ranked_batches, lambda m, micro: reward.ranked_loss(m, micro, config))
    return Learner("policy", (reward.HEAD,), RATE, head_rate=RATE), steps


def _as_rendered(ids: Sequence[int], mask: Sequence[int], name: str) -> Rendered:
    turns, at = [], 0
    while at < len(ids):
        if mask[at]:
            end = at
            while end < len(ids) and mask[end]:
                end += 1
            turns.append(Turn(tuple(ids[:at]), tuple(ids[at:end])))
            at = end
        at += 1
    return Rendered(name, tuple(RenderedTurn(i, turn.context, turn.completion) for i, turn in enumerate(turns)))


LEARN = {"sft": _sft, "dpo": _dpo, "reward": _reward}


if __name__ == "__main__":
    main()
