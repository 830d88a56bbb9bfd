"""Bases of real shapes with drawn weights, as folders: what a step costs depends on the shape, and no hub is needed."""

import shutil
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from agentalign.training.base import prepare_base

VOCABULARY = 49152
EIGHT_B = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8}
TOY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
DRAWN = {"llama-8b-drawn": EIGHT_B, "llama-toy-drawn": TOY}
TOKENIZER_OF = "smollm2-135m"


def config_of(shape: dict[str, int]) -> LlamaConfig:
    """A Llama of that shape."""
    return LlamaConfig(**shape, vocab_size=VOCABULARY, max_position_embeddings=32768, tie_word_embeddings=False)


def drawn_base(name: str, cache: Path, device: torch.device) -> str:
    """The folder of that base in bf16, made on the first call; the tokenizer is the built-in base's."""
    folder = cache / "bases" / name
    if not folder.is_dir():
        tokenizer, partial = prepare_base(TOKENIZER_OF, cache), folder.with_name(f".{name}")
        torch.manual_seed(0)
        with device:
            network = AutoModelForCausalLM.from_config(config_of(DRAWN[name]), dtype=torch.bfloat16)
        with torch.no_grad():
            for key, weight in network.named_parameters():
                weight.mul_(calm(key, network.config))
        network.save_pretrained(partial, max_shard_size="4GB")
        for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copy(tokenizer.folder / file, partial)
        partial.rename(folder)
        del network
        torch.cuda.empty_cache()
    return str(folder)


def calm(name: str, config: LlamaConfig) -> float:
    """Factor of a drawn weight. What each layer adds is as small as in trained networks: else each makes the last one's rounding larger."""
    return (2 * config.num_hidden_layers) ** -0.5 if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
