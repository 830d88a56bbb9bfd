"""Taking in a stranger's adapter: checked against the base that the team names, folded to plain LoRA, and saved with a card that says so.

What it was trained on, and how well it does, nobody here knows: the card says "foreign", and the gate asks for an evaluation like of any
other version. What it answers in this engine is recorded at once, so that a server can be held against it. Surprise: nothing of its
config, template or tokenizer is kept. Weights alone come in; template and tokenizer are the base's.
"""

import json
import tempfile
from pathlib import Path
from typing import NamedTuple

from agentalign.config.project import Project
from agentalign.deployment.record_golden import record_golden
from agentalign.environments.taskset import require_name
from agentalign.errors import AgentAlignError
from agentalign.records.adapter import AdapterCard
from agentalign.records.base import digest
from agentalign.rollouts.bundle import TEMPLATE_FILE
from agentalign.store.files import sha256
from agentalign.store.registry import Registry
from agentalign.training.adapter_files import CONFIG_FILE, WEIGHTS_FILE, write_adapter
from agentalign.training.base import prepare_base
from agentalign.training.base_layers import linear_layers
from agentalign.training.foreign_folder import read_foreign
from agentalign.training.lora_form import canonical
from agentalign.training.quantize import Quantization


class Added(NamedTuple):
    """What was taken in."""

    card: AdapterCard
    named_base: str
    """The base that its config names, "" for none; a person compares it with the one they named."""
    folded: bool
    """Its scales were folded into plain LoRA."""
    ignored: tuple[str, ...]
    """Files beside it that were not read."""
    unrecorded: str
    """Why no golden prompts were recorded; empty where they were."""


def add_foreign(
    project: Project,
    folder: Path,
    *,
    base: str,
    taskset: str,
    name: str = "",
    quantization: Quantization = "none",
    template: Path | None = None,
) -> Added:
    """Save a stranger's adapter as the next version of a name.

    Args:
        base: the base that it was trained on, by the team's own word: nothing that the folder names is opened.
        taskset: whose tools and prompt it shall answer to.
        name: in the registry; the taskset's name by default.
        quantization: how its base was rounded while it was trained.
        template: the chat template that it was trained under; the base's own by default, never one from the folder unless named here.

    Raises:
        AdapterRefusedError: the folder is not plain LoRA for this base.
    """
    registry = Registry(project.adapters)
    taskset = require_name(taskset)  # whatever its own name: the card keeps this one, and every later step looks it up
    name = name or taskset
    version = registry.next_version(name)
    prepared = prepare_base(base, project.cache, template=template)
    with tempfile.TemporaryDirectory(prefix="foreign-") as place:
        copy, files = Path(place) / "copy", Path(place) / "files"
        copy.mkdir()
        found = read_foreign(folder, linear_layers(prepared.folder), copy, base_names=(base, str(prepared.folder)))
        config, tensors = canonical(found.form, found.tensors)
        write_adapter(files, config, tensors, base=prepared.name, heads={})
        (files / TEMPLATE_FILE).write_text(prepared.template, "utf-8")
        origin = {
            "folder": str(folder.absolute()),
            "named_base": found.base,
            "folded": not found.form.plain,
            "sha256": {file: sha256(copy / file) for file in (CONFIG_FILE, WEIGHTS_FILE)},
        }
        card = AdapterCard(
            name=name, version=version, kind="policy", taskset=taskset, recipe="foreign", training="", base=prepared.name,
            base_digest=prepared.digest, quantization=quantization, template_digest=digest(prepared.template),
            config=json.dumps({"foreign": origin}),
        )  # fmt: skip
        saved = registry.save(card, files)
    return Added(saved, found.base, not found.form.plain, found.ignored, _why_unrecorded(project, saved.ref))


def _why_unrecorded(project: Project, ref: str) -> str:
    """Record golden prompts; the version stands without them where that fails."""
    try:
        record_golden(project, ref)
    except (AgentAlignError, RuntimeError, MemoryError, ValueError) as error:  # ValueError: a record of what is no number
        return " ".join(str(error).split())[:300] or type(error).__name__
    return ""
