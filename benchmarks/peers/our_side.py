"""Our side of benchmarks/peers.py, in a process of its own: a few steps of a recipe's own loss through our engine.

python our_side.py JOB.json     # prints one JSON object: seconds and loss of every step, peak memory
"""

import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from agentalign.config.dpo import DPOConfig
from agentalign.config.project import Project
from agentalign.config.reward import RewardConfig
from agentalign.recipes import dpo, reward, sft
from agentalign.recipes.compared import apart
from agentalign.recipes.data import Part, Turn, sft_batches
from agentalign.training.base import prepare_base
from agentalign.training.engine import train
from agentalign.training.memory import peak_memory
from agentalign.training.model import Model
from agentalign.training.render import Rendered, RenderedTurn
from agentalign.training.schedule import Plan
from agentalign.training.step import Learner, LossTerms, MicroBatch, Pass

Job = dict[str, Any]


def main() -> None:
    """Train a few steps and print what they took."""
    job: Job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(job["threads"])
    base = prepare_base(job["name"], Project.create(Path.cwd()).cache)
    dtype = torch.bfloat16 if job["bf16"] else torch.float32
    model = Model.load(base, quantization=job["quantization"], dtype=dtype, gradient_checkpointing="auto")
    model.load_adapter("policy", Path(job["adapter"]), trainable=True)
    learner, passes = LEARN[job["recipe"]](model, job)

    def steps(start: int) -> Iterator[Sequence[Pass]]:
        return iter([[one] for one in passes[start:]])

    with tempfile.TemporaryDirectory() as folder:
        plan = Plan(total_steps=job["steps"], schedule="constant", micro_batch_tokens=job["micro_batch_tokens"])
        train(model, [learner], steps, plan, folder=Path(folder))
        rows = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    peak = peak_memory(model.device)
    computed = [round(row["tokens_per_second"] * row["seconds"]) for row in rows]
    found = {"seconds": [row["seconds"] for row in rows], "losses": [row["loss"] for row in rows], "peak_gib": peak, "computed": computed}
    print(json.dumps(found))


def _in_steps(
    items: Sequence[Any], job: Job, batches: Callable[[Any, int], list[MicroBatch]], loss: Callable[..., LossTerms]
) -> list[Pass]:
    size = len(items) // job["steps"]
    return [Pass("policy", partial(batches, items[step * size : (step + 1) * size]), loss) for step in range(job["steps"])]


def _sft(_model: Model, job: Job) -> tuple[Learner, list[Pass]]:
    runs = [_as_rendered(row["input_ids"], row["assistant_masks"], str(i)) for i, row in enumerate(job["rows"])]
    return Learner("policy", learning_rate=job["rate"]), _in_steps(runs, job, sft_batches, sft.token_loss)


def _as_rendered(ids: Sequence[int], mask: Sequence[int], name: str) -> Rendered:
    turns: list[RenderedTurn] = []
    at = 0
    while at < len(ids):
        end = at
        while end < len(ids) and mask[end]:
            end += 1
        if end > at:
            turns.append(RenderedTurn(len(turns), tuple(ids[:at]), tuple(ids[at:end])))
        at = end + 1
    return Rendered(name, tuple(turns))


def _dpo(model: Model, job: Job) -> tuple[Learner, list[Pass]]:
    config = DPOConfig(taskset="order_desk", credit="run", beta=job["beta"], nll_coefficient=0.0, replay=0, min_reference_prob=0.0)
    pairs = []
    for i, row in enumerate(job["rows"]):
        prompt = tuple(row["prompt_ids"])
        sides = apart(*([Turn(prompt, tuple(row[key]))] for key in ("chosen_ids", "rejected_ids")))
        assert sides is not None
        pairs.append(dpo.Pair(*sides, strength=1.0, trajectories=(f"{i}+", f"{i}-"), anchor=None, source="bench"))
    with tempfile.TemporaryDirectory() as cache:
        known = dpo.with_reference(model, pairs, config, Path(cache))
    batches = _in_steps(known, job, _pair_batches, lambda m, micro: dpo.pair_loss(m, micro, config))
    return Learner("policy", learning_rate=job["rate"]), batches


def _pair_batches(pairs: Sequence[dpo.Pair], budget: int) -> list[MicroBatch]:
    return dpo.pair_batches(pairs, [], {}, budget)


def _reward(model: Model, job: Job) -> tuple[Learner, list[Pass]]:
    config = RewardConfig(taskset="order_desk", centering=0.0)
    model.add_head(reward.HEAD, 1)
    head = model.heads[reward.HEAD]
    assert isinstance(head, torch.nn.Linear)
    with torch.no_grad():
        weight = torch.tensor(job["head"])[None]
        head.weight.copy_(weight * weight.shape[1] ** 0.5)  # ours divides the rows by sqrt(H)
    items, size = [], job["size"]
    step = size * (size - 1) // 2
    for at in range(0, len(job["rows"]), step):
        first = job["rows"][at : at + size - 1]  # the best run against each other one
        runs = [first[0]["chosen_ids"], *(row["rejected_ids"] for row in first)]
        parts = tuple(Part((Turn(tuple(ids[:-1]), tuple(ids[-1:])),)) for ids in runs)
        names = tuple(f"{at}/{i}" for i in range(size))
        items.append(reward.Ranked(parts, (float("nan"),) * size, 1.0, names, str(at), "bench"))
    batches = _in_steps(items, job, reward.ranked_batches, lambda m, micro: reward.ranked_loss(m, micro, config))
    return Learner("policy", (reward.HEAD,), job["rate"], head_rate=job["rate"]), batches


LEARN: dict[str, Callable[[Model, Job], tuple[Learner, list[Pass]]]] = {"sft": _sft, "dpo": _dpo, "reward": _reward}


if __name__ == "__main__":
    main()
