"""What only an NVIDIA GPU can show: the same numbers as the CPU, which other tests hold to separate sequences."""

import pytest
import torch

from agentalign.training.cuda_attention import flash_works
from agentalign.training.generate import Generator
from agentalign.training.model import Model
from agentalign.training.tree import build_tree
from agentalign.training.tree_check import TOLERANCE, check_tree
from tests.test_attention import CONFIGS, draw_lora, make_model, three_levels_deep, tree_pass
from tests.test_sharding import compare_shards_with_the_whole, sharded  # noqa: F401  (a fixture)

DEVICE = "cuda"
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU here")]


@pytest.mark.parametrize("name", CONFIGS)
def test_trees_score_and_learn_as_on_the_cpu(tmp_path, name):
    # Not only the numbers: a causal flag that is aligned top-left would be right for roots and wrong for every branch.
    there = tree_pass(make_model(tmp_path / "there", CONFIGS[name]), three_levels_deep())
    here = tree_pass(make_model(tmp_path / "here", CONFIGS[name], device=DEVICE), three_levels_deep())
    torch.testing.assert_close(here[0].cpu(), there[0], atol=1e-4, rtol=0)
    scale = max(float(gradient.abs().max()) for gradient in there[1])
    for one, other in zip(here[1], there[1], strict=True):
        assert float((one.cpu() - other).abs().max()) <= 1e-4 * max(1.0, scale)


@pytest.mark.parametrize("head_dim", [64, 128])
def test_flash_kernels_give_output_and_gradients_of_plain_attention_over_a_tree(head_dim):
    assert flash_works(torch.device(DEVICE, torch.cuda.current_device()), torch.bfloat16, head_dim)


@pytest.mark.parametrize("name", CONFIGS)
def test_trees_pass_the_check_of_the_first_step_in_bfloat16_on_nf4(tmp_path, name):
    base = make_model(tmp_path, CONFIGS[name]).base
    model = Model.load(base, quantization="nf4", device=DEVICE)
    model.add_adapter("policy", r=4, alpha=8, seed=3)
    draw_lora(model)
    with model.using("policy"):
        assert check_tree(model, build_tree(three_levels_deep()).to(model.device)) < TOLERANCE[model.dtype]
    assert model.tree_capable


def test_four_bit_gradients_are_the_same_before_and_after_an_evaluation(tmp_path):
    base = make_model(tmp_path, CONFIGS["llama"]).base
    model = Model.load(base, quantization="nf4", device=DEVICE)
    model.add_adapter("policy", r=4, alpha=8, seed=3)
    draw_lora(model)
    before = tree_pass(model, three_levels_deep())
    with model.using(None), torch.no_grad():
        model.token_logprobs(build_tree(three_levels_deep()).to(model.device))
    after = tree_pass(model, three_levels_deep())
    torch.testing.assert_close(before[0], after[0])
    for one, other in zip(before[1], after[1], strict=True):
        torch.testing.assert_close(one, other, atol=1e-2, rtol=1e-2)


@pytest.mark.usefixtures("sharded")
def test_a_base_in_shards_scores_and_learns_as_the_whole(tmp_path):
    compare_shards_with_the_whole(tmp_path, DEVICE, torch.bfloat16)


def test_generation_writes_what_it_writes_on_the_cpu(tmp_path):
    found = []
    for device in ("cpu", DEVICE):
        model = make_model(tmp_path / device, CONFIGS["llama"], device=device)
        generator = Generator(model.merged_copy("policy"), frozenset({2}))
        contexts = {slot: list(range(5, 40 + slot)) for slot in range(4)}
        found.append({slot: done.ids for slot, done in generator.session().generate(contexts, max_new_tokens=12).items()})
    assert found[0] == found[1]
