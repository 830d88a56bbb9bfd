"""An adapter to a hub repository: PEFT files, template, card, its figures, and a model card made from them.

What is pushed is first written whole to a folder; `--dry-run` ends there, so that a person sees every byte before it leaves. Surprise: a
version is more than what is published. Golden prompts are a team's own conversations and stay here unless they are asked for, and no
folder of this machine is named as the base: PEFT elsewhere could not follow it.
"""

import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import EvalResult, HfApi, ModelCardData

from agentalign.config.project import Project
from agentalign.deployment.export_files import fixed_template
from agentalign.deployment.record_golden import read_golden
from agentalign.errors import AgentAlignError, ModelError, RegistryError
from agentalign.records.adapter import AdapterCard, EvaluationSummary
from agentalign.records.golden import Golden
from agentalign.rollouts.bundle import TEMPLATE_FILE, Bundle, open_bundle, require_runnable
from agentalign.rollouts.golden import GOLDEN_FILE
from agentalign.store.registry import Registry
from agentalign.training.adapter_files import CONFIG_FILE, WEIGHTS_FILE, read_adapter

EVALUATIONS_FILE = "evaluations.json"
_HUB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,95}/[A-Za-z0-9][A-Za-z0-9_.-]{0,95}")


class Pushed(NamedTuple):
    """What was pushed, or would be."""

    identity: str
    """"name@version-content"."""
    repository: str
    files: tuple[str, ...]
    where: str
    """Address of the commit, or the folder of a dry run."""


def push(
    project: Project, ref: str, repository: str, *, base: str = "", public: bool = False, golden: bool = False, dry_run: Path | None = None,
    endpoint: str | None = None,
) -> Pushed:  # fmt: skip
    """Push a policy adapter, or write what would be pushed.

    Args:
        repository: "owner/name"; made private where it is not there yet.
        base: what the base is called on the hub; default: the card's, where that is a name of the hub.
        public: a new repository is made public; one that is there has to be.
        golden: push the golden prompts too: held-out tasks and answers, word for word.
        dry_run: a new folder for what would be pushed; nothing is sent.
        endpoint: of the hub; default: the one that huggingface_hub is set to (HF_ENDPOINT). The token is its own too.

    Raises:
        RegistryError: a damaged version, no policy, or a base without a name on the hub.
        ModelError: the hub refused it.
    """
    if not _HUB_NAME.fullmatch(repository):
        raise RegistryError("a repository is named OWNER/NAME, with letters, digits, '-', '_' and '.'. Give e.g. my-team/order-desk.")
    bundle = open_bundle(project, ref)
    require_runnable(project, bundle)
    registry = Registry(project.adapters)
    content = Content(
        bundle, registry.identity(bundle.card.ref), _hub_base(bundle.card, base), registry.evaluations(bundle.card.ref),
        read_golden(bundle) if golden else None,
    )  # fmt: skip
    if dry_run is not None:
        target = dry_run.absolute()
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise RegistryError(f"{target} exists and is not an empty folder. Name a new folder.")
        try:
            target.mkdir(parents=True, exist_ok=True)
            return Pushed(content.identity, repository, _write(content, repository, target), str(target))
        except OSError as error:
            raise RegistryError(f"{target} could not be written ({error}). Free some space, or choose another folder.") from error
    with tempfile.TemporaryDirectory(prefix="push-") as place:
        files = _write(content, repository, Path(place))
        return Pushed(content.identity, repository, files, _send(HfApi(endpoint=endpoint), repository, Path(place), content, public=public))


class Content(NamedTuple):
    """What there is to say about a version."""

    bundle: Bundle
    identity: str
    base: str
    """Its base's name on the hub."""
    evaluations: tuple[EvaluationSummary, ...]
    golden: Golden | None
    """Where they are to be pushed too."""


def _hub_base(card: AdapterCard, named: str) -> str:
    base = named or card.base
    if not _HUB_NAME.fullmatch(base) or (not named and Path(base).exists()):
        raise RegistryError(
            f"the base of {card.ref} is {base}, which is no name of the hub, so nobody could load the adapter. Say what it is "
            "called there: --base OWNER/NAME."
        )
    return base


def _send(api: HfApi, repository: str, folder: Path, content: Content, *, public: bool) -> str:
    try:
        api.create_repo(repository, private=not public, exist_ok=True)
        if not public and not api.repo_info(repository).private:
            raise RegistryError(
                f"{repository} exists and is public, so everybody could read {content.identity}. Give --public, or another."
            )
        if public and api.repo_info(repository).private:
            raise RegistryError(
                f"{repository} exists and is private, which a push does not change. Do that on its page, or push without --public."
            )
        done = api.upload_folder(
            repo_id=repository, folder_path=folder, commit_message=f"agentalign {content.identity}",
            delete_patterns=[EVALUATIONS_FILE, GOLDEN_FILE],  # another version's, where this one has none
        )  # fmt: skip
    except AgentAlignError:
        raise
    except Exception as error:  # what no network raises is the hub's HTTP library's own, another from release to release
        said = " ".join(str(error).split())[:300]
        raise ModelError(
            f"{api.endpoint} did not take {repository} ({type(error).__name__}: {said}). Can this machine reach it, is HF_TOKEN "
            "set, and may it write?"
        ) from error
    return str(done.commit_url)


def _write(content: Content, repository: str, folder: Path) -> tuple[str, ...]:
    bundle = content.bundle
    config, _ = read_adapter(bundle.folder)
    settings = json.loads((bundle.folder / CONFIG_FILE).read_text("utf-8"))
    settings |= {"base_model_name_or_path": content.base, "target_modules": sorted(config.targets)}
    (folder / CONFIG_FILE).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", "utf-8")
    shutil.copyfile(bundle.folder / WEIGHTS_FILE, folder / WEIGHTS_FILE)
    (folder / TEMPLATE_FILE).write_text(fixed_template(bundle.base.template, bundle.base.template_kwargs), "utf-8")
    (folder / "card.json").write_text(published_card(bundle.card, content.base) + "\n", "utf-8")
    if content.evaluations:
        listed = [one.model_dump(mode="json") for one in content.evaluations]
        (folder / EVALUATIONS_FILE).write_text(json.dumps(listed, indent=2) + "\n", "utf-8")
    if content.golden is not None:
        (folder / GOLDEN_FILE).write_text(content.golden.model_dump_json() + "\n", "utf-8")
    (folder / "README.md").write_text(model_card(content, repository), "utf-8")
    for file in folder.iterdir():
        file.chmod(0o644)
    return tuple(sorted(file.name for file in folder.iterdir()))


def published_card(card: AdapterCard, base: str) -> str:
    """The card without this machine's paths: the base by its hub name, and of the config only what is no path."""
    try:
        config = json.loads(card.config)
    except ValueError:
        config = {}
    kept = {name: value for name, value in config.items() if name != "base" and not _is_path(value)} if isinstance(config, dict) else {}
    if card.recipe == "foreign":
        kept = {}
    return card.model_copy(update={"base": base, "config": json.dumps(kept)}).model_dump_json(indent=2)


def _is_path(value: object) -> bool:
    return isinstance(value, str) and (value.startswith(("/", "~", ".")) or "\\" in value)


def model_card(content: Content, repository: str) -> str:
    """README.md of the repository: what the hub reads, then what people read."""
    card = content.bundle.card
    results = [
        EvalResult(
            task_type="text-generation", dataset_type=one.taskset, dataset_name=one.taskset, dataset_split=one.split, metric_type=name,
            metric_value=round(value, 4),
        )
        for one in content.evaluations
        for name, value in [("success", one.success[0]), *one.criteria.items()]
    ]  # fmt: skip
    data = ModelCardData(
        base_model=content.base, library_name="peft", pipeline_tag="text-generation", tags=["lora", "tool-calling", "agentalign"],
        model_name=card.ref if results else None, eval_results=results or None,
    )  # fmt: skip
    rounded = f"the base in {card.quantization}" if card.quantization != "none" else "the base as it is"
    counts = ", ".join(f"{count} {source}" for source, count in card.data_counts.items())
    rows = {
        "Version": content.identity, "Taskset": card.taskset, "Recipe": card.recipe, "Parents": ", ".join(card.parents) or "none",
        "Base": f"{content.base}, whose files have the digest {card.base_digest[:12]}", "Trained on": rounded,
        "Trained from": counts or "not known", "Criteria": ", ".join(card.criteria) or "not known", "Made": card.created,
        "Weights (sha256)": card.files.get(WEIGHTS_FILE, ""),
    }  # fmt: skip
    table = "\n".join(f"| {name} | {_cell(value)} |" for name, value in rows.items())
    return f"""---
{data.to_yaml()}
---
# {card.ref}

A LoRA adapter that makes an agent better at the taskset *{_cell(card.taskset)}*, trained with agentalign.

| what | |
|---|---|
{table}

## How good it is
{_figures(content.evaluations)}
## Use

    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained({json.dumps(content.base)}, dtype="bfloat16")
    model = PeftModel.from_pretrained(model, {json.dumps(repository)})
    tokenizer = AutoTokenizer.from_pretrained({json.dumps(content.base)})

Render prompts with `{TEMPLATE_FILE}` of this repository, and give the agent the tools and the system prompt of its taskset: under another
template or without them it is not the same agent. `card.json` says how it was made; files that are not its own (the base's) are not here.
"""


def _figures(evaluations: tuple[EvaluationSummary, ...]) -> str:
    if not evaluations:
        return "\nIt was not evaluated, or its figures were not kept beside it.\n"
    lines = ["", "| tasks | n | figure | mean | 95 % interval |", "|---|---|---|---|---|"]
    for one in evaluations:
        where = _cell(f"{one.taskset}, {one.split}")
        lines.append(f"| {where} | {one.tasks} | success | {one.success[0]:.3f} | {one.success[1]:.3f} to {one.success[2]:.3f} |")
        lines += [f"| {where} | {one.tasks} | {_cell(name)} | {value:.3f} | |" for name, value in one.criteria.items()]
    return "\n".join([*lines, "", f"`{EVALUATIONS_FILE}` has them with the settings they were made with.", ""])


def _cell(text: str) -> str:
    """Text that stays in its table cell and makes no markup, whoever named it."""
    return re.sub(r"([\\`*_{}\[\]<>|])", r"\\\1", " ".join(text.split()))
