"""What every export carries beside its weights: the template it was trained under, the tokenizer, and where the base lies.

Surprise: fixed template arguments (`enable_thinking: false`) are set at the top of the exported template: no server can forget them.
"""

import json
import shutil
from pathlib import Path
from typing import NamedTuple

from pydantic import JsonValue

from agentalign.rollouts.bundle import TEMPLATE_FILE, Bundle
from agentalign.training.base import BUILT_IN

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt"
)  # fmt: skip


class Written(NamedTuple):
    """What a writer of one form hands back."""

    command: str
    """Serves the export."""
    use: str
    """The README's section on its use, Markdown."""


def write_words(bundle: Bundle, folder: Path) -> None:
    """The chat template, and the tokenizer without one of its own."""
    (folder / TEMPLATE_FILE).write_text(fixed_template(bundle.base.template, bundle.base.template_kwargs), "utf-8")
    for name in TOKENIZER_FILES:
        if (bundle.base.folder / name).is_file():
            shutil.copyfile(bundle.base.folder / name, folder / name)
    _without_template(folder / "tokenizer_config.json")


def fixed_template(template: str, arguments: dict[str, JsonValue]) -> str:
    """The template with its fixed arguments set at the top."""
    lines = [f"{{%- set {name} = {_jinja(value)} -%}}\n" for name, value in arguments.items() if name != "today"]
    return "".join(lines) + template


def base_path(bundle: Bundle) -> str:
    """What others find the base under: its name on the hub, or its folder."""
    name = bundle.card.base
    local = name in BUILT_IN or name.endswith(".gguf") or Path(name).expanduser().is_dir()
    return str(bundle.base.folder) if local else name


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
