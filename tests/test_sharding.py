"""A base cut into shards: two processes that hold half of it each train and act as one that holds all of it."""

import json

import pytest
import torch
from torch.distributed.fsdp import FSDPModule

from agentalign.errors import ModelError, TrainingError
from agentalign.training import ranks
from agentalign.training.memory import smaller_may_fit
from agentalign.training.model import Model
from agentalign.training.sharding import pad_forwards
from tests.test_attention import CONFIGS, draw_lora, make_model, three_levels_deep, tree_pass
from tests.test_ranks import run_two

SHARDED = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "true"}
"""What `accelerate launch` sets where its config asks for FSDP2."""
MADE = """
import json, os, sys
from pathlib import Path
import torch
from transformers import AutoModelForCausalLM
from agentalign.recipes.data import Part, fixed_logprobs
from agentalign.training import ranks
from agentalign.training.adapter_generator import adapter_generator
from agentalign.training.base import prepare_base
from agentalign.training.engine import train
from agentalign.training.model import Model
from agentalign.training.schedule import Plan
from agentalign.training.sharding import bytes_of
from agentalign.training.step import Evaluated, Learner, Pass
from tests.small_base import make_base
from transformers import GptOssConfig
from tests.test_attention import CONFIGS, SHAPE, draw_lora, three_levels_deep
from tests.test_engine import packed, sft

torch.set_num_threads(1)
root = Path(sys.argv[1])
folder = root / os.environ["RANK"]
# Trees are refused at the first forward.
SINKS = GptOssConfig(**SHAPE, head_dim=8, sliding_window=7, num_local_experts=2, num_experts_per_tok=2)
FORMS = {"llama": CONFIGS["llama"], "sinks": SINKS}
# Before the group: in one, transformers saves on the first process only.
bases = {}
for form, config in FORMS.items():
    made = make_base(folder / form / "base")
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(made)
    bases[form] = prepare_base(str(made), folder / form / "cache")
ranks.start()

def load(form="llama", quantization="none", **settings):
    model = Model.load(bases[form], quantization=quantization, dtype=torch.float32, **settings)
    model.add_adapter("policy", r=4, alpha=8, seed=3)
    draw_lora(model)
    return model

def act(model):
    session = adapter_generator(model, "policy").session()
    found = session.generate({0: [5, 6, 7], 1: [5, 6, 8, 9]}, max_new_tokens=12)
    return [found[slot].ids for slot in (0, 1)]

def run(model, folder, *, loss=sft, evaluate=None, **plan):
    steps = lambda start: ([Pass("policy", packed, loss)] for _ in range(start, 3))
    plan = Plan(**{"total_steps": 3, "schedule": "constant", "micro_batch_tokens": 170, "eval_every_steps": 2, **plan})
    return train(model, [Learner("policy", learning_rate=1e-3)], steps, plan, folder=folder, evaluate=evaluate)
"""
TRAIN = (
    MADE
    + """
said = []
for form, quantization, checkpointing, trees in (
    ("llama", "none", False, True), ("llama", "nf4", True, True), ("llama", "none", True, False), ("sinks", "none", False, False)
):
    model = load(form, quantization, gradient_checkpointing=checkpointing)
    if form == "llama" and not trees:
        model.give_up_trees()
    before = [p.detach().clone() for p in model.parameters_of("policy")]
    frozen = [p for name, p in model.backbone.layers.named_parameters() if "lora_" not in name]
    layers = sum(p.numel() * p.element_size() for p in frozen)
    acted = []

    def gate():
        acted.append(act(model))
        return Evaluated(float(len(acted)), {})

    # It acts before anything else is computed: what it leaves behind must serve a backward.
    outcome = run(model, root / f"run-{len(said)}", evaluate=lambda step, first: ranks.first(gate))
    assert outcome.best_step == 3, "the start's weights were put back, and nothing is compared"
    assert max(float((p - q).abs().max()) for p, q in zip(model.parameters_of("policy"), before)) > 1e-3
    read = fixed_logprobs(model, "policy", [Part(run.turns) for run in three_levels_deep()], max_tokens=170)
    assert model.tree_capable == trees
    found = [p.detach().flatten().tolist() for p in model.parameters_of("policy")]
    said.append([found, [one.tolist() for one in read], acted, bytes_of(model.network), layers])
(root / f"found-{ranks.rank()}.json").write_text(json.dumps(said))
ranks.stop()
"""
)


def found_by(folder, processes):
    """What every process found, by rank."""
    folder.mkdir()
    run_two(TRAIN, folder, processes=processes)
    return [json.loads((folder / f"found-{rank}.json").read_text()) for rank in range(processes)]


def test_two_processes_with_half_of_the_layers_each_end_in_the_weights_of_one(tmp_path, monkeypatch):
    (alone,) = found_by(tmp_path / "whole", 1)
    for name, value in SHARDED.items():
        monkeypatch.setenv(name, value)
    first, second = found_by(tmp_path / "shards", 2)
    assert len(alone) == 4
    for whole, one, two in zip(alone, first, second, strict=True):
        assert one[0] == two[0], "the processes hold different weights"
        for mine, theirs in zip(whole[0] + whole[1], one[0] + one[1], strict=True):
            torch.testing.assert_close(torch.tensor(mine), torch.tensor(theirs), atol=1e-5, rtol=0)
        assert len(one[2]) == 3, "the gate did not act before, in the middle and at the end"
        assert one[2] == whole[2], "acting from shards says other words"
        assert two[2] == [], "both processes acted"
        assert whole[3] - one[3] == whole[3] - two[3] == whole[4] // 2, "a process holds more than its half"


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"FSDP_VERSION": "1"}, "asks for FSDP 1"),
        ({"FSDP_OFFLOAD_PARAMS": "true"}, "shards in main memory"),
        ({"FSDP_RESHARD_AFTER_FORWARD": "false"}, "keep whole layers after their forward"),
        ({"FSDP_ACTIVATION_CHECKPOINTING": "true"}, "gradient_checkpointing: true in the recipe"),
    ],
)
def test_a_config_that_asks_for_more_is_refused(monkeypatch, settings, problem):
    for name, value in {**SHARDED, **settings}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(TrainingError, match=problem):
        ranks.start()
    assert not ranks.sharded()


def compare_shards_with_the_whole(folder, device, dtype):
    """One process, which holds all shards, computes from them what it computes from the whole base."""
    found = []
    for _ in range(2):
        model = Model.load(make_model(folder, CONFIGS["llama"]).base, quantization="nf4", device=device, dtype=dtype)
        model.add_adapter("policy", r=4, alpha=8, seed=3)
        draw_lora(model)
        found.append(tree_pass(model, three_levels_deep()))
        ranks.start()
    assert isinstance(model.backbone, FSDPModule), "nothing was cut"
    for one, other in zip([found[0][0], *found[0][1]], [found[1][0], *found[1][1]], strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)


@pytest.mark.usefixtures("sharded")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_process_computes_from_shards_what_it_computes_from_the_whole(tmp_path, dtype):
    compare_shards_with_the_whole(tmp_path, "cpu", dtype)


@pytest.fixture
def sharded(monkeypatch):
    """A launcher's config that asks for shards."""
    for name, value in SHARDED.items():
        monkeypatch.setenv(name, value)
    yield
    ranks.stop()


@pytest.fixture
def alone(sharded):
    """One process whose config asks for shards: it holds them all."""
    ranks.start()


def test_int8_is_refused(alone, tmp_path):
    with pytest.raises(ModelError, match=r"int8.*take nf4 or none"):
        Model.load(make_model(tmp_path, CONFIGS["llama"]).base, quantization="int8", device="cpu")


def test_a_forward_that_broke_off_is_not_followed_by_another(alone, tmp_path):
    model = make_model(tmp_path, CONFIGS["llama"])
    whole = model.backbone.layers[1].forward

    def out_of_memory(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    model.backbone.layers[1].forward = out_of_memory
    with torch.no_grad(), pytest.raises(torch.OutOfMemoryError) as seen:
        pad_forwards(model, 1)
    with pytest.raises(TrainingError, match=r"OutOfMemoryError: CUDA out of memory.*A lower micro_batch_tokens"):
        smaller_may_fit(seen.value)
    model.backbone.layers[1].forward = whole
    with torch.no_grad(), pytest.raises(TrainingError, match="broke off in this process"):
        pad_forwards(model, 1)
