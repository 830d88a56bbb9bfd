"""One base, many adapters: contexts, copies, files, heads, merging, and the 4-bit path."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Gemma4Config, Gemma4TextConfig

from agentalign.errors import ModelError, RegistryError
from agentalign.training.model import Model
from agentalign.training.quantize import load_network, plain_weight
from agentalign.training.tree import build_tree
from tests.test_attention import CONFIGS, SHAPE, make_model, three_levels_deep, tree_pass


@pytest.fixture
def model(tmp_path):
    return make_model(tmp_path, CONFIGS["llama"])


def logprobs(model, adapter, tree=None):
    with model.using(adapter), torch.no_grad():
        return model.token_logprobs(tree or build_tree(three_levels_deep()))


def test_new_adapter_changes_nothing_and_depends_on_its_seed_alone(model):
    model.add_adapter("one", r=4, alpha=8, seed=5, trainable=False)
    torch.rand(100)
    model.add_adapter("two", r=4, alpha=8, seed=5, trainable=False)
    torch.testing.assert_close(logprobs(model, "one"), logprobs(model, None))
    for key, tensor in model.adapter_tensors("one").items():
        torch.testing.assert_close(tensor, model.adapter_tensors("two")[key])


def test_using_switches_and_restores_adapter_and_gradients(model):
    model.add_adapter("other", r=4, alpha=8, trainable=False)
    policy, base = logprobs(model, "policy"), logprobs(model, None)
    assert float((policy - base).abs().max()) > 1e-3
    with model.using("policy"):
        with model.using(None), torch.no_grad():
            torch.testing.assert_close(model.token_logprobs(build_tree(three_levels_deep())), base)
        assert all(p.requires_grad for p in model.parameters_of("policy"))
        assert not any(p.requires_grad for p in model.parameters_of("other"))
    with model.using("other"):
        assert not any(p.requires_grad for p in [*model.parameters_of("policy"), *model.parameters_of("other")])


def test_leaving_with_an_open_graph_raises(model):
    with pytest.raises(ModelError, match="back-propagated"), model.using("policy"):
        kept = model.token_logprobs(build_tree(three_levels_deep()))
    assert kept.requires_grad


def test_unknown_adapter_and_head_are_named(model):
    with pytest.raises(ModelError, match=r"'nobody'.*policy"), model.using("nobody"):
        pass
    with pytest.raises(ModelError, match="no head 'reward'"):
        model.apply_head("reward", torch.zeros(1, 32))


def test_copy_is_equal_and_independent(model):
    model.copy_adapter("policy", "reference", trainable=False)
    before = logprobs(model, "reference")
    torch.testing.assert_close(before, logprobs(model, "policy"))
    with torch.no_grad():
        for parameter in model.parameters_of("policy"):
            parameter.add_(0.1)
    torch.testing.assert_close(logprobs(model, "reference"), before)


def test_saved_adapter_with_head_comes_back_equal(model, tmp_path):
    model.add_head("reward", 1)
    torch.nn.init.normal_(model.heads["reward"].weight)
    model.save_adapter("policy", tmp_path / "saved", heads=["reward"])
    assert {p.name for p in (tmp_path / "saved").iterdir()} == {"adapter_config.json", "adapter_model.safetensors", "heads.safetensors"}
    other = Model.load(model.base, quantization="none", device="cpu", dtype=torch.float32)
    other.load_adapter("policy", tmp_path / "saved")
    torch.testing.assert_close(logprobs(other, "policy"), logprobs(model, "policy"))
    torch.testing.assert_close(other.heads["reward"].weight, model.heads["reward"].weight)


@pytest.mark.parametrize("damage", ["missing", "surplus", "shape", "nan", "dora", "regex"])
def test_adapter_that_does_not_fit_is_refused(model, tmp_path, damage):
    folder = tmp_path / "saved"
    model.save_adapter("policy", folder)
    tensors = load_file(folder / "adapter_model.safetensors")
    config = json.loads((folder / "adapter_config.json").read_text())
    first = sorted(tensors)[0]
    if damage == "missing":
        del tensors[first]
    elif damage == "surplus":
        tensors["base_model.model.extra.lora_A.weight"] = torch.zeros(4, 4)
    elif damage == "shape":
        tensors[first] = torch.zeros(4, 7)
    elif damage == "nan":
        tensors[first][0, 0] = float("nan")
    else:
        config |= {"use_dora": True} if damage == "dora" else {"target_modules": "(.*.*)*x"}
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config))
    other = Model.load(model.base, quantization="none", device="cpu", dtype=torch.float32)
    with pytest.raises(RegistryError):
        other.load_adapter("policy", folder)


def test_non_finite_adapter_is_not_saved(model, tmp_path):
    with torch.no_grad():
        model.parameters_of("policy")[0].fill_(float("inf"))
    with pytest.raises(RegistryError, match="NaN or infinity"):
        model.save_adapter("policy", tmp_path / "saved")


def test_merged_copy_computes_what_the_adapter_computes(model):
    runs = three_levels_deep()
    sequence = torch.tensor([[*runs[1].turns[-1].context, *runs[1].turns[-1].completion]])
    tree = build_tree(runs[1:2])
    with model.using("policy"), torch.no_grad():
        hidden = model.hidden(tree)
    with torch.no_grad():
        merged = model.merged_copy("policy")(input_ids=sequence).logits[0].argmax(-1)
        unmerged = (hidden @ model.head_weight.t()).argmax(-1)
    torch.testing.assert_close(merged, unmerged)
    bare = model.merged_copy(None)
    for name, module in model.network.named_modules():
        if hasattr(module, "base_layer"):
            torch.testing.assert_close(dict(bare.named_modules())[name].weight, plain_weight(module.base_layer))


def test_merging_leaves_the_base_as_it_was(model):
    before = logprobs(model, None)
    model.merged_copy("policy")
    model.merged_copy("policy")
    assert torch.equal(logprobs(model, None), before)


def test_four_bit_gradients_and_logprobs_are_the_same_before_and_after_an_evaluation(tmp_path):
    base = make_model(tmp_path, CONFIGS["llama"]).base
    model = Model.load(base, quantization="nf4", device="cpu", dtype=torch.float32)
    model.add_adapter("policy", r=4, alpha=8, seed=3)
    for key, tensor in model.adapter_tensors("policy").items():
        if ".lora_B." in key:
            tensor.data.normal_(std=0.2)
    before = tree_pass(model, three_levels_deep())
    model.network.eval()
    with model.using(None), torch.no_grad():
        model.token_logprobs(build_tree(three_levels_deep()))
    after = tree_pass(model, three_levels_deep())
    assert torch.equal(before[0], after[0])
    assert all(torch.equal(a, b) for a, b in zip(before[1], after[1], strict=True))
    # The gradient is right, not merely the same: a step along it changes the weighted sum as it predicts.
    for parameter, gradient in zip(model.parameters_of("policy"), after[1], strict=True):
        parameter.data += 1e-4 * gradient
    moved = tree_pass(model, three_levels_deep())
    predicted = 1e-4 * sum(float((g * g).sum()) for g in after[1])
    from tests.test_attention import weights_for

    measured = float(((moved[0] - before[0]) * weights_for(len(before[0]))).sum())
    assert measured == pytest.approx(predicted, rel=0.1)


def test_int8_base_loads_trains_and_merges(tmp_path):
    base = make_model(tmp_path, CONFIGS["llama"]).base
    model = Model.load(base, quantization="int8", device="cpu")
    model.add_adapter("policy", r=4, alpha=8)
    tree_pass(model, three_levels_deep())
    assert any(float(p.grad.abs().max()) > 0 for p in model.parameters_of("policy"))
    model.merged_copy("policy")


def test_a_base_that_changes_its_logits_is_refused_also_where_its_language_model_says_so(tmp_path):
    text = Gemma4TextConfig(**SHAPE, head_dim=8, global_head_dim=8, final_logit_softcapping=30.0)
    for number, config in enumerate((text, Gemma4Config(text_config=text))):
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / str(number))
        with pytest.raises(ModelError, match=r"changes its logits after the output matrix \(final_logit_softcapping = 30"):
            load_network(tmp_path / str(number), "none", dtype=torch.float32, device=torch.device("cpu"))
