"""README.md and export.json of an export: for people and for programs, where it comes from, how to use it, and what was measured."""

import json
from pathlib import Path

from agentalign.deployment.export_files import Written, base_path
from agentalign.deployment.trial import Trial
from agentalign.records.adapter import AdapterCard
from agentalign.records.base import Record, now
from agentalign.rollouts.bundle import TEMPLATE_FILE, Bundle
from agentalign.store.files import sha256
from agentalign.training.dialect import Dialect

EXPORT_FILE = "export.json"
TITLES = {
    "peft": "A LoRA adapter", "vllm": "A LoRA adapter", "gguf": "A LoRA adapter for llama.cpp",
    "merged": "A model, base and LoRA adapter in one,",
}  # fmt: skip


class ExportRecord(Record):
    """export.json: enough to know later what this folder is, without opening a weight."""

    form: str
    adapter: str
    content: str
    """Hash over the version's files in the registry."""
    base: str
    base_digest: str
    quantization: str
    """How the base was rounded in training."""
    dtype: str = ""
    """What merged weights were written in."""
    converter: str = ""
    """sha256 of llama.cpp's converter."""
    trial: Trial | None = None
    files: dict[str, str]
    """sha256 of every other file."""
    created: str


def write_record(
    bundle: Bundle, folder: Path, *, form: str, content: str, trial: Trial | None, dtype: str = "", converter: str = ""
) -> None:
    """export.json, last of all: it lists the others."""
    files = {str(path.relative_to(folder)): sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()}
    card = bundle.card
    record = ExportRecord(
        form=form, adapter=card.ref, content=content, base=card.base, base_digest=card.base_digest, quantization=card.quantization,
        dtype=dtype, converter=converter, trial=trial, files=files, created=now(),
    )  # fmt: skip
    (folder / EXPORT_FILE).write_text(record.model_dump_json(indent=2) + "\n", "utf-8")


def write_readme(bundle: Bundle, folder: Path, written: Written, trial: Trial | None, *, form: str) -> None:
    """The model card."""
    card = bundle.card
    library = {"merged": "transformers", "gguf": "gguf"}.get(form, "peft")
    date = ""
    if Dialect.load(bundle.base).report.writes_date:
        date = "\nThe template writes today's date; training saw one fixed date. Expect slightly different prompts on a server.\n"
    said = "\n".join(f"- {sentence}" for sentence in trial.sentences()) if trial else "- It was not tried before it was written."
    text = f"""---
library_name: {library}
base_model: {json.dumps(base_path(bundle))}
pipeline_tag: text-generation
tags: [{"" if form == "merged" else "lora, "}tool-calling, agentalign]
---
# {card.ref}

{TITLES[form]} that makes an agent better at the taskset *{card.taskset}*. `card.json` says in full how it was made,
`{EXPORT_FILE}` what this folder is.

| what | |
|---|---|
{_table(_about(card))}

## Use
{written.use}
The adapter was trained under `{TEMPLATE_FILE}`. Under another chat template, or without its tools, it is not the same agent.
{date}
## Tried
{said}

## Figures of its training

| figure | value |
|---|---|
{_table({name: f"{value:g}" for name, value in sorted(card.metrics.items())})}
"""
    (folder / "README.md").write_text(text, "utf-8")


def _about(card: AdapterCard) -> dict[str, str]:
    return {
        "Taskset": card.taskset, "Recipe": card.recipe, "Parents": ", ".join(card.parents) or "none",
        "Base": f"{card.base} ({card.base_digest[:12]})",
        "Trained on": f"the base in {card.quantization}" if card.quantization != "none" else "the base as it is", "Made": card.created,
        "Trained from": ", ".join(f"{count} {source}" for source, count in card.data_counts.items()) or "see card.json",
    }  # fmt: skip


def _table(rows: dict[str, str]) -> str:
    return "\n".join(f"| {name} | {value} |" for name, value in rows.items())
