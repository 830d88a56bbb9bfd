"""The adapter merged into its base: one plain model that every server of transformers models takes, without a word about LoRA.

It is merged into the *dequantised training base*, the weights that training saw, and not into the base as published: on a base rounded to
NF4 that makes the difference between 0.005 nats per token and 0.35. Surprise: the worst place of all is NF4 itself (0.78): rounding again
rounds the adapter away. So that is refused.
"""

import json
import shlex
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from agentalign.deployment.export_files import Written, fixed_template, write_words
from agentalign.deployment.export_peft import VLLM_PARSERS, client_words
from agentalign.errors import RegistryError
from agentalign.rollouts.bundle import TEMPLATE_FILE, Bundle
from agentalign.training.base import Base, prepare_base
from agentalign.training.dialect import Dialect
from agentalign.training.merging import merge_adapter
from agentalign.training.model import Model

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def require_mergeable(bundle: Bundle, dtype: str) -> None:
    """RegistryError where the weights would be rounded to 4 or 8 bit again."""
    config = json.loads((bundle.base.folder / "config.json").read_text("utf-8"))
    if config.get("quantization_config"):
        raise RegistryError(
            f"{bundle.card.base} is stored quantized, so merged weights would have to be rounded again, and that rounds the adapter away "
            "(measured into NF4: 0.78 nats per token from the trained policy, against 0.005). Train on the base that it was made from, "
            "with quantization: nf4, and export that."
        )
    if dtype not in DTYPES:
        raise RegistryError(
            f"merging into {dtype} rounds the adapter away (measured into NF4: 0.78 nats per token from the trained policy, against 0.005 "
            "in bfloat16). Merge into bfloat16 or float32; whoever rounds that later must measure anew."
        )


def write_merged(bundle: Bundle, trained: Model, target: Path, folder: Path, *, dtype: str) -> Written:
    """Weights, config, tokenizer and template of the plain model.

    Args:
        trained: the base as training rounded it, with the adapter "policy".
        target: where the folder will stand in the end.
    """
    write_plain(bundle, trained, "policy", folder, dtype=dtype)
    words = ["vllm", "serve", str(target), "--served-model-name", bundle.card.name]
    call_format = Dialect.load(bundle.base).call_format
    if call_format in VLLM_PARSERS:
        words += ["--enable-auto-tool-choice", "--tool-call-parser", call_format]
    command = shlex.join([*words, "--chat-template", str(target / TEMPLATE_FILE)])
    use = f"""A model like any other: no PEFT, no adapter, no base beside it. With transformers:

    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained({json.dumps(str(target))}, dtype="{dtype}")
    tokenizer = AutoTokenizer.from_pretrained({json.dumps(str(target))})

With vLLM:

    {command}

{client_words(bundle)}
Whoever rounds it further (GGUF Q4, AWQ, NF4) has another policy again, and should measure that one.
"""
    return Written(command, use)


def write_plain(bundle: Bundle, trained: Model, adapter: str | None, folder: Path, *, dtype: str) -> None:
    """The dequantised base, with an adapter merged into it where one is named, as a Hugging Face folder."""
    plain = AutoModelForCausalLM.from_pretrained(str(bundle.base.folder), dtype=DTYPES[dtype], local_files_only=True)
    merge_adapter(trained.network, adapter, plain)
    plain.save_pretrained(folder)
    write_words(bundle, folder)


def load_plain(bundle: Bundle, folder: Path, cache: Path, *, dtype: str) -> Model:
    """A folder that `write_plain` wrote, loaded as any server would, under its own template."""
    written = prepare_base(str(folder), cache)
    assert written.template == fixed_template(bundle.base.template, bundle.base.template_kwargs)
    today = {name: value for name, value in bundle.base.template_kwargs.items() if name == "today"}
    base = Base(written.name, written.folder, written.digest, written.template, today, written.files)
    return Model.load(base, quantization="none", dtype=DTYPES[dtype])
