"""Tree attention is exact: packed in one tree or as separate sequences, log-probabilities and LoRA gradients are the same."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GptOssConfig,
    GraniteMoeHybridConfig,
    Lfm2Config,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PretrainedConfig,
    Qwen3Config,
    Qwen3NextConfig,
)

from agentalign.training.attention import TREE_ATTENTION, leaf_paths, tree_capable
from agentalign.training.base import prepare_base
from agentalign.training.model import Model
from agentalign.training.tree import build_tree
from tests.small_base import make_base

SHAPE = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
CONFIGS = {
    "llama": LlamaConfig(**SHAPE),
    "qwen3": Qwen3Config(**SHAPE, head_dim=8),
    "sliding qwen3": Qwen3Config(**SHAPE, head_dim=8, use_sliding_window=True, sliding_window=7, max_window_layers=1),
    "mistral": MistralConfig(**SHAPE, sliding_window=7),
}


@dataclass(frozen=True)
class Turn:
    context: tuple[int, ...]
    completion: tuple[int, ...]


@dataclass(frozen=True)
class Run:
    turns: tuple[Turn, ...]


def ids(generator: torch.Generator, count: int) -> tuple[int, ...]:
    return tuple(torch.randint(5, 300, (count,), generator=generator).tolist())


def three_levels_deep() -> list[Run]:
    """Runs that share a long prompt, two of them a trainable turn, two of those its result and the start of the next turn."""
    draw = torch.Generator().manual_seed(1)
    prompt, turn, result, start = ids(draw, 150), ids(draw, 6), ids(draw, 4), ids(draw, 3)
    later = (*prompt, *turn, *result)
    return [
        Run((Turn(prompt, ids(draw, 5)),)),
        Run((Turn(prompt, turn), Turn(later, (*start, *ids(draw, 4))))),
        Run((Turn(prompt, turn), Turn(later, (*start, *ids(draw, 2))))),
        Run((Turn(prompt, turn), Turn((*prompt, *turn, *ids(draw, 3)), ids(draw, 6)))),
    ]


def make_model(tmp_path: Path, config: PretrainedConfig, *, checkpointing: bool = False, device: str = "cpu") -> Model:
    folder = make_base(tmp_path / "base")
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    base = prepare_base(str(folder), tmp_path / "cache")
    model = Model.load(base, quantization="none", device=device, dtype=torch.float32, gradient_checkpointing=checkpointing)
    model.add_adapter("policy", r=4, alpha=8, seed=3)
    draw_lora(model)
    return model


def draw_lora(model: Model) -> None:
    """An adapter that does something, the same on every device."""
    draw = torch.Generator().manual_seed(1)
    for key, tensor in sorted(model.adapter_tensors("policy").items()):
        if ".lora_B." in key:
            tensor.data.copy_(torch.randn(tensor.shape, generator=draw) * 0.2)


def weights_for(count: int) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(count))


def tree_pass(model: Model, runs: list[Run]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Log-probabilities, and gradients of a weighted sum over every run's tokens."""
    for parameter in model.parameters_of("policy"):
        parameter.grad = None
    tree = build_tree(runs).to(model.device)
    with model.using("policy"):
        logprobs = model.token_logprobs(tree)
        (logprobs * weights_for(len(logprobs)).to(logprobs)).sum().backward()
    return logprobs.detach(), [p.grad.clone() for p in model.parameters_of("policy")]


def separate_pass(model: Model, runs: list[Run]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The same by transformers' own eager attention, one unpadded sequence per turn."""
    for parameter in model.parameters_of("policy"):
        parameter.grad = None
    model.network.set_attn_implementation("eager")
    found = []
    with model.using("policy"):
        for run in runs:
            for turn in run.turns:
                sequence = torch.tensor([[*turn.context, *turn.completion]])
                logits = model.network(input_ids=sequence).logits[0].log_softmax(-1)
                first = len(turn.context)
                found.append(logits[first - 1 : -1].gather(1, sequence[0, first:, None]).squeeze(1))
        logprobs = torch.cat(found)
        (logprobs * weights_for(len(logprobs))).sum().backward()
    return logprobs.detach(), [p.grad.clone() for p in model.parameters_of("policy")]


def assert_equal_passes(one, other):
    torch.testing.assert_close(one[0], other[0], atol=1e-5, rtol=0)
    scale = max(float(gradient.abs().max()) for gradient in other[1])
    for a, b in zip(one[1], other[1], strict=True):
        assert float((a - b).abs().max()) <= 1e-5 * max(1.0, scale)
    assert scale > 1e-3


@pytest.mark.parametrize("name", CONFIGS)
def test_tree_equals_separate_sequences_in_logprobs_and_gradients(tmp_path, name):
    model = make_model(tmp_path, CONFIGS[name])
    assert model.tree_capable
    runs = three_levels_deep()
    assert build_tree(runs).sharing > 3
    assert_equal_passes(tree_pass(model, runs), separate_pass(model, runs))


def test_gradient_checkpointing_changes_nothing(tmp_path):
    runs = three_levels_deep()
    plain = tree_pass(make_model(tmp_path / "plain", CONFIGS["llama"]), runs)
    checkpointed = tree_pass(make_model(tmp_path / "checkpointed", CONFIGS["llama"], checkpointing=True), runs)
    assert_equal_passes(plain, checkpointed)


def test_gradient_checkpointing_wakes_no_dropout_of_the_layers_themselves(tmp_path):
    width = SHAPE["hidden_size"]
    opt = OPTConfig(
        vocab_size=SHAPE["vocab_size"], hidden_size=width, word_embed_proj_dim=width, ffn_dim=SHAPE["intermediate_size"],
        num_hidden_layers=2, num_attention_heads=SHAPE["num_attention_heads"], max_position_embeddings=256, dropout=0.5,
    )  # fmt: skip
    plain = tree_pass(make_model(tmp_path / "plain", opt), three_levels_deep())
    assert_equal_passes(plain, tree_pass(make_model(tmp_path / "checkpointed", opt, checkpointing=True), three_levels_deep()))


def test_gradient_checkpointing_wakes_no_dropout_that_the_base_has(tmp_path):
    config = LlamaConfig(**SHAPE, attention_dropout=0.5)
    plain = tree_pass(make_model(tmp_path / "plain", config), three_levels_deep())
    assert_equal_passes(plain, tree_pass(make_model(tmp_path / "checkpointed", config, checkpointing=True), three_levels_deep()))


def test_template_that_rewrites_history_equals_its_turns_rendered_separately(tmp_path):
    draw = torch.Generator().manual_seed(2)
    prompt, first, second = ids(draw, 20), ids(draw, 5), ids(draw, 4)
    # The second prompt tells the first turn in other words, as templates do that drop old reasoning.
    run = Run((Turn(prompt, first), Turn((*prompt, *ids(draw, 3), *ids(draw, 2)), second)))
    model = make_model(tmp_path, CONFIGS["qwen3"])
    assert_equal_passes(tree_pass(model, [run]), separate_pass(model, [run]))


HYBRIDS = {
    "qwen3-next": Qwen3NextConfig(
        **SHAPE, head_dim=8, layer_types=["linear_attention", "full_attention", "linear_attention"], linear_num_key_heads=2,
        linear_num_value_heads=2, linear_key_head_dim=8, linear_value_head_dim=8, num_experts=0, decoder_sparse_step=1,
        mlp_only_layers=[0, 1, 2],
    ),
    "lfm2": Lfm2Config(**SHAPE, layer_types=["conv", "full_attention", "conv"], block_multiple_of=8),
    "granite-4-h": GraniteMoeHybridConfig(
        **SHAPE, layer_types=["mamba", "attention", "mamba"], mamba_n_heads=8, mamba_d_head=8, mamba_d_state=8, mamba_expand=2,
        mamba_n_groups=1, num_local_experts=0, shared_intermediate_size=48,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HYBRIDS)
def test_hybrid_takes_padded_rows_and_is_exact_there_and_would_not_be_in_a_tree(tmp_path, name):
    hybrid = HYBRIDS[name]
    assert not tree_capable(hybrid)
    model = make_model(tmp_path, hybrid)
    assert not model.tree_capable
    runs = three_levels_deep()
    rows, separate = tree_pass(model, runs), separate_pass(model, runs)
    torch.testing.assert_close(rows[0], separate[0], atol=1e-4, rtol=0)
    scale = max(float(gradient.abs().max()) for gradient in separate[1])
    for one, other in zip(rows[1], separate[1], strict=True):
        assert float((one - other).abs().max()) <= 1e-3 * scale
    model.network.set_attn_implementation(TREE_ATTENTION)
    model.tree_capable = True
    wrong = tree_pass(model, runs)
    assert float((wrong[0] - rows[0]).abs().max()) > 1e-3


def test_attention_sinks_take_padded_rows_and_are_exact_there(tmp_path, caplog):
    sinks = GptOssConfig(**SHAPE, head_dim=8, sliding_window=7, num_local_experts=2, num_experts_per_tok=2)
    assert tree_capable(sinks)  # no word of them in the config
    model = make_model(tmp_path, sinks)
    runs = three_levels_deep()
    rows = tree_pass(model, runs)
    assert not model.tree_capable
    assert caplog.text.count("attends with s_aux") == 1
    assert_equal_passes(rows, separate_pass(model, runs))


def test_leaf_paths_are_the_separate_sequences():
    runs = three_levels_deep()
    tree = build_tree(runs)
    sequences = {tuple(tree.tokens[path].tolist()) for path in leaf_paths(tree)}
    assert sequences == {(*run.turns[-1].context, *run.turns[-1].completion) for run in runs}


def test_soft_caps_and_unknown_architectures_are_not_packed():
    assert not tree_capable(Qwen3NextConfig(**SHAPE))
    odd = LlamaConfig(**SHAPE)
    odd.attn_logit_softcapping = 30.0
    assert not tree_capable(odd)
