"""Training steps and rollouts on one CUDA GPU, on random weights of an 8B shape in NF4.

Steps: token trees against the same runs one by one. Rollouts: our sessions against transformers' own `generate`.

    .venv/bin/python benchmarks/gpu.py                       # every workload, 5 repetitions
    .venv/bin/python benchmarks/gpu.py --only pairs steps    # some of them
    .venv/bin/python benchmarks/gpu.py --only small --profile    # what a step of each way launches, and how long Python takes for it
    .venv/bin/python benchmarks/gpu.py --device cpu --tiny   # does the script work? on a toy shape

No hub is needed: weights are drawn, and only their shape matters for speed. Both ways alternate in one process. A speed counts only when
the losses, or the first turn's words, agree, so those come first. MFU is the share of the speed of a large bf16 matrix product measured
in the same run.
"""

import argparse
import json
import platform
import random
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import bitsandbytes as bnb
import torch
import transformers
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from agentalign.config.project import Project
from agentalign.recipes.data import Part, Turn
from agentalign.training.base import prepare_base
from agentalign.training.dialect import Dialect
from agentalign.training.model import Model
from agentalign.training.tree import TreeBatch, build_tree

sys.path.insert(0, str(Path(__file__).parent / "peers"))
from drawn import EIGHT_B, TOY, VOCABULARY, calm, config_of
from turns import FULL, SMALL, Acted, Shape, act, alike

CRITIC = "critic"
AGREE = {torch.float32: 1e-3, torch.bfloat16: 2e-2}
"""Largest difference of the mean losses, in nats, that rounding explains."""


Ways = dict[str, list[TreeBatch]]


@dataclass(frozen=True)
class Workload:
    """Runs that share a beginning, and then go their own ways in turns of (tool result, agent) tokens."""

    what: str
    groups: int
    """Groups of runs in a step."""
    runs: int
    """Runs per group."""
    shared: int
    """Tokens that all runs of the step begin with: system prompt and tool schemas."""
    prompt: int
    """Tokens that the runs of one group share after that."""
    turns: int
    """Turns of each run of its own."""
    critic: bool = False
    """Whether the step is PPO's: reference, old policy and values are read first, and a critic is trained beside the policy."""


WORKLOADS = {
    "pairs": Workload("two trajectory pairs with tau-bench-like lengths", groups=2, runs=2, shared=1500, prompt=900, turns=6),
    "steps": Workload("four step pairs: all but the last turn is common", groups=4, runs=2, shared=1500, prompt=2500, turns=1),
    "rankings": Workload("one ranking of four runs", groups=1, runs=4, shared=1500, prompt=900, turns=6),
    "groups": Workload("a group of eight rollouts behind a long prompt", groups=1, runs=8, shared=4000, prompt=200, turns=1),
    "schemas": Workload("four runs of different tasks behind 4,000 tokens of schemas", groups=4, runs=1, shared=4000, prompt=200, turns=3),
    "ppo": Workload("PPO: eight runs scored, policy and critic trained", groups=4, runs=2, shared=1500, prompt=200, turns=3, critic=True),
    "nothing": Workload("four runs with nothing in common", groups=4, runs=1, shared=0, prompt=1200, turns=3),
    "small": Workload("four short runs: is a step bound by launches?", groups=4, runs=1, shared=390, prompt=40, turns=1),
}  # fmt: skip
RESULT, WORDS = 220, 70
"""Tokens of a tool result and of what the agent writes in a turn."""
ROLLOUTS = "rollouts"
"""Acting, which is no step: sixteen runs of four turns with mock tools, from the quantized base with its adapter."""
SAME = 0.9
"""Share of the first turn's tokens that two ways of acting in 16 bits have to have in common; in fp32 all of them."""


def main() -> None:
    """Measure and print; rows go to --json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[*WORKLOADS, ROLLOUTS], default=[*WORKLOADS, ROLLOUTS])
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a toy shape and a tenth of the tokens: shows that the script works, no more")
    parser.add_argument("--base", default="smollm2-135m", help="whose tokenizer the drawn model gets; it plays no part in the figures")
    parser.add_argument("--profile", action="store_true", help="after each workload, what one step of each way spends its time with")
    parser.add_argument("--json", type=Path, help="append the rows to this file")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("there is no CUDA GPU here; --device cpu --tiny tries the script out")
    device = torch.device(arguments.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = random_model(TOY if arguments.tiny else EIGHT_B, device, dtype, arguments.base)
    peak = matmul_flops(device, dtype, 512 if arguments.tiny else 8192)
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.machine()
    print(f"{name}, torch {torch.__version__}, bitsandbytes {bnb.__version__}; matmul {peak / 1e12:.2f} TFLOP/s in {dtype}")
    before = json.loads(arguments.json.read_text(encoding="utf-8")) if arguments.json and arguments.json.exists() else []
    for key in arguments.only:
        if key == ROLLOUTS:
            before.append(measure_rollouts(model, SMALL if arguments.tiny else FULL, arguments.repetitions, name))
        else:
            trees = make_trees(model, key, 0.1 if arguments.tiny else 1.0)
            before.append(measure(model, key, trees, peak, arguments.repetitions, name))
            if arguments.profile:
                profile(model, trees, critic=WORKLOADS[key].critic)
        if arguments.json:  # after each: what was measured is not lost with what fails next
            arguments.json.write_text(json.dumps(before, indent=1), encoding="utf-8")


def make_trees(model: Model, key: str, scale: float) -> Ways:
    """A workload both ways."""
    runs = make_runs(WORKLOADS[key], scale)
    ways = {"tree": [build_tree(runs)], "one by one": [build_tree([run]) for run in runs]}
    return {way: [tree.to(model.device) for tree in trees] for way, trees in ways.items()}


def measure(model: Model, key: str, ways: Ways, peak: float, repetitions: int, machine: str) -> dict[str, object]:
    """One workload both ways."""
    load = WORKLOADS[key]
    useful = sum(tree.n_tokens for tree in ways["one by one"])
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    losses, memory = {}, {}
    for number in range(repetitions + 1):
        for way, trees in ways.items():
            spent, losses[way], memory[way] = fitting_step(model, trees, critic=load.critic)
            if number:  # the first of each warms up
                seconds[way].append(spent)
    equal = abs(losses["tree"] - losses["one by one"]) < AGREE[model.dtype]
    recomputed = ", activations recomputed" if model.recomputes else ""
    times = useful / ways["tree"][0].n_tokens
    print(f"\n{key}: {load.what}; {useful} tokens, {times:.2f} times what the tree computes{recomputed}")
    verdict = "equal" if equal else "NOT EQUAL, the speeds below do not count"
    print(f"  losses {losses['tree']:.4f} and {losses['one by one']:.4f}: {verdict}")
    head = model.head_weight.numel()
    linear = sum(layer.in_features * layer.out_features for layer in model.network.modules() if isinstance(layer, bnb.nn.Linear4bit))
    for way, trees in ways.items():
        middle = statistics.median(seconds[way])
        # Forward, and the gradient of the inputs: 2 + 2 FLOP per weight and computed token. Attention and LoRA come on top.
        flops = 4 * sum(linear * tree.n_tokens + head * len(tree.labels) for tree in trees)
        if load.critic:  # three forwards more, of which two go through the output matrix, and the critic's both ways
            flops += sum((3 * 2 + 4) * linear * tree.n_tokens + 2 * 2 * head * len(tree.labels) for tree in trees)
        mfu = flops / middle / peak
        spread = f"[{min(seconds[way]):.3f}, {max(seconds[way]):.3f}]"
        print(f"  {way:10} {middle:8.3f} s {spread}  {useful / middle:8.0f} useful tokens/s  MFU {mfu:.2f}  {memory[way] / 2**30:.1f} GiB")
    ratio = statistics.median(seconds["one by one"]) / statistics.median(seconds["tree"])
    print(f"  ratio of medians {ratio:.2f}")
    return {
        "workload": key, "metric": "useful tokens/s", "ours": useful / statistics.median(seconds["tree"]),
        "peer": useful / statistics.median(seconds["one by one"]), "peer_name": "the same model, run by run", "peer_version": "",
        "ratio": ratio, "memory_ratio": memory["tree"] / max(1, memory["one by one"]), "losses_equal": equal, "runs": seconds["tree"],
        "machine": machine,
    }  # fmt: skip


def measure_rollouts(model: Model, shape: Shape, repetitions: int, machine: str) -> dict[str, object]:
    """Acting by our sessions and by transformers' `generate`, in turns."""
    ways: dict[str, list[Acted]] = {"session": [], "generate": []}
    for _ in range(repetitions + 1):
        for way, found in ways.items():
            found.append(act(model, shape, VOCABULARY, way))
    same = alike(ways["session"][0], ways["generate"][0])
    equal = same >= (1.0 if model.dtype == torch.float32 else SAME)
    tokens = shape.slots * shape.turns * shape.words
    print(f"\n{ROLLOUTS}: {shape.slots} runs of {shape.turns} turns with mock tools, {tokens} tokens written")
    print(f"  {same:.0%} of the first turn's tokens alike: {'equal' if equal else 'NOT EQUAL, the speeds below do not count'}")
    rates = {}
    for way, found in ways.items():
        seconds = [one.seconds for one in found[1:]]  # the first of each warms up
        rates[way] = tokens / statistics.median(seconds)
        spread = f"[{min(seconds):.3f}, {max(seconds):.3f}]"
        print(f"  {way:10} {statistics.median(seconds):8.3f} s {spread}  {rates[way]:8.0f} tokens/s  {found[-1].peak / 2**30:.1f} GiB")
    print(f"  ratio of medians {rates['session'] / rates['generate']:.2f}")
    return {
        "workload": ROLLOUTS, "metric": "tokens written/s", "ours": rates["session"], "peer": rates["generate"],
        "peer_name": "transformers' generate, all contexts of a turn in a batch", "peer_version": transformers.__version__,
        "ratio": rates["session"] / rates["generate"], "memory_ratio": ways["session"][-1].peak / max(1, ways["generate"][-1].peak),
        "losses_equal": equal, "runs": [one.seconds for one in ways["session"][1:]], "machine": machine,
    }  # fmt: skip


def profile(model: Model, ways: Ways, *, critic: bool) -> None:
    """What a step calls, by the time that Python and the processor take for it and, on a GPU, by the card's."""
    cuda = model.device.type == "cuda"
    watched = [torch.profiler.ProfilerActivity.CPU, *([torch.profiler.ProfilerActivity.CUDA] if cuda else [])]
    for way, trees in ways.items():
        with torch.profiler.profile(activities=watched) as found:
            step(model, trees, critic=critic)
        print(f"\n{way}:")
        for order in ("self_cpu_time_total", *(["self_cuda_time_total"] if cuda else [])):
            print(found.key_averages().table(sort_by=order, row_limit=20, max_name_column_width=60))


def fitting_step(model: Model, trees: Sequence[TreeBatch], *, critic: bool) -> tuple[float, float, int]:
    """A step; where it does not fit, activations are recomputed from here on, in both ways alike."""
    try:
        return step(model, trees, critic=critic)
    except torch.OutOfMemoryError:
        if model.recomputes:
            raise
    torch.cuda.empty_cache()
    print("  out of memory: activations are recomputed from here on")
    model.recompute_activations()
    return step(model, trees, critic=critic)


def step(model: Model, trees: Sequence[TreeBatch], *, critic: bool = False) -> tuple[float, float, int]:
    """Forward and backward of the mean token loss, with a critic PPO's other passes too: seconds, loss, peak bytes (CUDA only)."""
    count = sum(len(tree.occurrences) for tree in trees)
    cuda = model.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
    began, total = time.perf_counter(), score_and_judge(model, trees) if critic else 0.0
    with model.using("policy"):
        for tree in trees:
            loss = -model.token_logprobs(tree).sum() / count
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - began, total, torch.cuda.max_memory_allocated() if cuda else 0


def score_and_judge(model: Model, trees: Sequence[TreeBatch]) -> float:
    """What PPO computes beside the policy's own pass: reference, old policy and values, then the critic's pass; the critic's loss."""
    turns, total = sum(len(tree.turn_state) for tree in trees), 0.0

    def values(tree: TreeBatch) -> Tensor:
        return model.apply_head(CRITIC, model.hidden(tree)[tree.turn_state]).squeeze(1)

    with torch.no_grad():
        for adapter, read in ((None, model.token_logprobs), ("policy", model.token_logprobs), (CRITIC, values)):
            with model.using(adapter):
                for tree in trees:
                    read(tree)
    with model.using(CRITIC):
        for tree in trees:
            loss = (values(tree) - 1).square().sum() / turns
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
    return total


def make_runs(load: Workload, scale: float) -> list[Part]:
    """Drawn ids; every turn's context is everything before it."""
    draw = random.Random(1)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(draw.randrange(1000, VOCABULARY) for _ in range(max(2, round(count * scale))))

    runs, system = [], ids(load.shared) if load.shared else ()
    for _ in range(load.groups):
        prompt = (*system, *ids(load.prompt))
        for _ in range(load.runs):
            context, turns = prompt, []
            for _ in range(load.turns):
                words = ids(WORDS)
                turns.append(Turn(context, words))
                context = (*context, *words, *ids(RESULT))
            runs.append(Part(tuple(turns)))
    return runs


def random_model(shape: dict[str, int], device: torch.device, dtype: torch.dtype, tokenizer_of: str) -> Model:
    """A Llama of this shape with drawn weights, its linear layers in NF4, and a fresh LoRA adapter on all of them."""
    config = config_of(shape)
    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(config, dtype=dtype)
    torch.manual_seed(0)
    for name, module in list(network.named_modules()):
        for child, layer in list(module.named_children()):
            if isinstance(layer, nn.Linear) and child != "lm_head":
                setattr(module, child, _quantized(layer, device, dtype, calm(f"{child}.weight", config)))
        for key, parameter in list(module.named_parameters(recurse=False)):
            if parameter.is_meta:
                value = torch.ones(parameter.shape) if "norm" in name else torch.randn(parameter.shape) * 0.02
                setattr(module, key, nn.Parameter(value.to(device, dtype), requires_grad=False))
    # Rotary frequencies are computed from the config, not stored: made anew on the device.
    with device:
        network.model.rotary_emb = type(network.model.rotary_emb)(config)
    network.requires_grad_(False)
    base = prepare_base(tokenizer_of, Project.create(Path.cwd()).cache)
    model = Model(network.eval(), base, Dialect.load(base), quantization="nf4", dtype=dtype)
    for adapter in ("policy", CRITIC):
        model.add_adapter(adapter, r=16, alpha=32)
    model.add_head(CRITIC, 1)
    nn.init.normal_(model.head_parameters([CRITIC])[0], std=0.02)  # at zero it would hand no gradient to its adapter
    return model


def _quantized(layer: nn.Linear, device: torch.device, dtype: torch.dtype, scale: float) -> bnb.nn.Linear4bit:
    made = bnb.nn.Linear4bit(
        layer.in_features, layer.out_features, bias=False, compute_dtype=dtype, compress_statistics=True, quant_type="nf4", device="meta"
    )
    drawn = torch.randn(layer.out_features, layer.in_features, dtype=dtype, device=device) * (0.02 * scale)
    made.weight = bnb.nn.Params4bit(drawn.cpu(), requires_grad=False, compress_statistics=True, quant_type="nf4").to(device)
    made.support_avx512bf16_for_cpu = False
    return made


def matmul_flops(device: torch.device, dtype: torch.dtype, size: int) -> float:
    """FLOP/s of a square product: the best of ten."""
    left, right = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        if device.type == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        left @ right
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best


if __name__ == "__main__":
    main()
