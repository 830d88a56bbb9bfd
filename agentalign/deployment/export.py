"""An adapter as a folder for other people's servers: PEFT files, template, tokenizer, and the command that serves it.

Only what PEFT and vLLM both take is written: plain LoRA, no heads, every file readable by others (safetensors writes 0600).
Surprise: fixed template arguments (`enable_thinking: false`) are set at the top of the exported template: no server can forget them.
"""

import json
import shlex
import shutil
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from pydantic import JsonValue

from agentalign.config.project import Project
from agentalign.errors import RegistryError
from agentalign.rollouts.bundle import TEMPLATE_FILE, Bundle, open_bundle, require_runnable
from agentalign.training.adapter_files import CONFIG_FILE, WEIGHTS_FILE, AdapterConfig, read_adapter
from agentalign.training.base import BUILT_IN
from agentalign.training.dialect import Dialect

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt"
)  # fmt: skip
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Values that vLLM takes for --max-lora-rank (vllm/config/lora.py, 0.32)."""
VLLM_PARSERS = ("hermes", "llama3_json")
"""Call formats that vLLM's --tool-call-parser knows under the same name; of others it returns the text."""
SERVE_FILE = "serve_vllm.sh"


class Exported(NamedTuple):
    """What was written."""

    folder: Path
    adapter: str
    """"name@version"."""
    base: str
    """What adapter_config.json names as the base: a hub name or a folder."""
    command: str
    """Serves it with vLLM."""


def export(project: Project, ref: str, target: Path) -> Exported:
    """Write a policy adapter to a new folder.

    Raises:
        RegistryError: an adapter that was changed, does not fit its base, or is not plain LoRA.
    """
    target = target.absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise RegistryError(f"{target} exists and is not an empty folder. Name a new folder.")
    bundle = open_bundle(project, ref)
    require_runnable(project, bundle)
    config, _ = read_adapter(bundle.folder)
    exported = Exported(target, bundle.card.ref, _base_path(bundle), _command(bundle, config, target))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as name:
            _write(bundle, config, exported, Path(name))
            for file in Path(name).iterdir():
                file.chmod(0o755 if file.name == SERVE_FILE else 0o644)
            Path(name).chmod(0o755)
            if target.exists():
                target.rmdir()
            shutil.copytree(name, target)
    except OSError as error:
        raise RegistryError(f"{target}: the export could not be written ({error}). Free some space, or choose another folder.") from error
    return exported


def _write(bundle: Bundle, config: AdapterConfig, exported: Exported, folder: Path) -> None:
    settings = json.loads((bundle.folder / CONFIG_FILE).read_text("utf-8"))
    settings |= {"base_model_name_or_path": exported.base, "target_modules": sorted(config.targets)}
    (folder / CONFIG_FILE).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", "utf-8")
    for name in (WEIGHTS_FILE, "card.json"):
        shutil.copyfile(bundle.folder / name, folder / name)
    (folder / TEMPLATE_FILE).write_text(fixed_template(bundle.base.template, bundle.base.template_kwargs), "utf-8")
    for name in TOKENIZER_FILES:
        if (bundle.base.folder / name).is_file():
            shutil.copyfile(bundle.base.folder / name, folder / name)
    _without_template(folder / "tokenizer_config.json")
    (folder / "README.md").write_text(_model_card(bundle, exported), "utf-8")
    (folder / "requirements.txt").write_text(_requirements(), "utf-8")
    script = f'#!/bin/sh\n# Serves {exported.adapter} as an OpenAI-compatible server.\nexec {exported.command} "$@"\n'
    (folder / SERVE_FILE).write_text(script, "utf-8")


def fixed_template(template: str, arguments: dict[str, JsonValue]) -> str:
    """The template with its fixed arguments set at the top."""
    lines = [f"{{%- set {name} = {_jinja(value)} -%}}\n" for name, value in arguments.items() if name != "today"]
    return "".join(lines) + template


def _jinja(value: JsonValue) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(_jinja(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)}: {_jinja(item)}" for key, item in value.items()) + "}"
    return "none" if value is None else json.dumps(value)


def _without_template(config: Path) -> None:
    """The template stands in its own file; a second one inside tokenizer_config.json would win in some versions."""
    if config.is_file():
        settings = json.loads(config.read_text("utf-8"))
        settings.pop("chat_template", None)
        config.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _base_path(bundle: Bundle) -> str:
    name = bundle.card.base
    local = name in BUILT_IN or name.endswith(".gguf") or Path(name).expanduser().is_dir()
    return str(bundle.base.folder) if local else name


def _command(bundle: Bundle, config: AdapterConfig, target: Path) -> str:
    words = ["vllm", "serve", _base_path(bundle), "--enable-lora", "--lora-modules", f"{bundle.card.name}={target}"]
    words += ["--max-lora-rank", str(_server_rank(bundle, config.r))]
    call_format = Dialect.load(bundle.base).call_format
    if call_format in VLLM_PARSERS:
        words += ["--enable-auto-tool-choice", "--tool-call-parser", call_format]
    words += ["--chat-template", str(target / TEMPLATE_FILE)]
    return shlex.join(words)


def _server_rank(bundle: Bundle, rank: int) -> int:
    for allowed in VLLM_RANKS:
        if rank <= allowed:
            return allowed
    raise RegistryError(f"{bundle.card.ref} has rank {rank}; servers take {VLLM_RANKS[-1]} at most. Train it with a smaller lora_r.")


def _requirements() -> str:
    lines = ["# For `PeftModel.from_pretrained`, as tested. vLLM brings its own versions and wants an environment of its own."]
    for package in ("torch", "transformers", "peft", "safetensors"):
        try:
            lines.append(f"{package}>={version(package).split('+')[0]}")
        except PackageNotFoundError:
            continue
    return "\n".join(lines) + "\n"


def _model_card(bundle: Bundle, exported: Exported) -> str:
    card = bundle.card
    rows = {
        "Taskset": card.taskset, "Recipe": card.recipe, "Parents": ", ".join(card.parents) or "none",
        "Base": f"{card.base} ({card.base_digest[:12]})",
        "Trained on": f"the base in {card.quantization}" if card.quantization != "none" else "the base as it is", "Made": card.created,
        "Trained from": ", ".join(f"{count} {source}" for source, count in card.data_counts.items()) or "see card.json",
    }  # fmt: skip
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    figures = "\n".join(f"| {name} | {value:g} |" for name, value in sorted(card.metrics.items()))
    date = ""
    if Dialect.load(bundle.base).report.writes_date:
        date = "\nThe template writes today's date; training saw one fixed date. Expect slightly different prompts on a server.\n"
    return f"""---
library_name: peft
base_model: {json.dumps(exported.base)}
pipeline_tag: text-generation
tags: [lora, tool-calling, agentalign]
---
# {card.ref}

A LoRA adapter that makes an agent better at the taskset *{card.taskset}*. `card.json` says in full how it was made.

| what | |
|---|---|
{table}

## Use
With vLLM: `./{SERVE_FILE}`, then ask for the model `{card.name}`:

    {exported.command}

On a CPU build of vLLM never mix requests to the bare base with requests to the adapter: those to the base may be answered with the adapter.
On another machine put the base where `adapter_config.json` names it, or change `base_model_name_or_path`.

With PEFT:

    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained({json.dumps(exported.base)}, dtype="bfloat16")
    model = PeftModel.from_pretrained(model, {json.dumps(str(exported.folder))})
    tokenizer = AutoTokenizer.from_pretrained({json.dumps(str(exported.folder))})

The adapter was trained under `{TEMPLATE_FILE}`. Under another chat template, or without its tools, it is not the same agent.
{date}
## Figures of its training

| figure | value |
|---|---|
{figures}
"""
