"""A base of a few thousand random weights with real tokenizer and template, and adapters on it, for tests of everything around a model."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models
from tokenizers.pre_tokenizers import ByteLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from agentalign.config.project import Project
from agentalign.records.adapter import AdapterCard, AdapterKind
from agentalign.records.base import digest
from agentalign.store.registry import Registry
from agentalign.training.base import TEMPLATES, Base, prepare_base
from agentalign.training.model import Model

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = (TEMPLATES / "smollm2_tools.jinja").read_text("utf-8")


def make_base(folder: Path) -> Path:
    """A Hugging Face folder: two Llama layers, one token per byte."""
    backend = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate([*SPECIAL, *sorted(ByteLevel.alphabet())])}, merges=[]))
    backend.pre_tokenizer, backend.decoder = ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    words = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=SPECIAL[0], bos_token=SPECIAL[1], eos_token=SPECIAL[2], additional_special_tokens=list(SPECIAL)
    )
    words.chat_template = TEMPLATE
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        max_position_embeddings=8192, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def add_adapter(project: Project, folder: Path, *, name: str = "hello", kind: AdapterKind = "policy", seed: int = 0) -> AdapterCard:
    """Publish an adapter with random A and B on the base in `folder`; a reward model gets a head."""
    base: Base = prepare_base(str(folder), project.cache)
    model = Model.load(base, quantization="none", device="cpu", dtype=torch.float32)
    model.add_adapter("policy", r=4, alpha=8, seed=seed)
    torch.manual_seed(seed)
    for key, tensor in model.adapter_tensors("policy").items():
        if ".lora_B." in key:
            tensor.data.normal_(std=0.3)
    registry = Registry(project.adapters)
    version = registry.next_version(name)
    files = project.state / "made" / f"{name}-{version}"
    if kind == "reward":
        model.add_head("reward", 1)
    model.save_adapter("policy", files, heads=["reward"] if kind == "reward" else [])
    (files / "chat_template.jinja").write_text(base.template, "utf-8")
    card = AdapterCard(
        name=name, version=version, kind=kind, taskset="hello", recipe="reward" if kind == "reward" else "sft", training="made-by-hand",
        base=str(folder), base_digest=base.digest, quantization="none", template_digest=digest(base.template), metrics={"loss": 0.5},
        data_counts={"expert": 3}, config=json.dumps({"taskset": "hello", "seed": seed}),
    )  # fmt: skip
    return registry.save(card, files)
