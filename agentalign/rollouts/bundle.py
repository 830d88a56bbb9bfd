"""Everything that an adapter needs to act: card, files, and its base under the template it was trained under.

An adapter is worth nothing under another base or template, and says so nowhere by itself: so both are looked up by the card, and compared
with it before anything is loaded.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from agentalign.config.project import Project
from agentalign.errors import RegistryError
from agentalign.records.adapter import AdapterCard
from agentalign.records.base import digest
from agentalign.rollouts.policy import LocalPolicy
from agentalign.store.registry import Registry
from agentalign.training.adapter_generator import adapter_generator
from agentalign.training.base import Base, prepare_base
from agentalign.training.model import Model
from agentalign.training.quantize import Quantization

TEMPLATE_FILE = "chat_template.jinja"


@dataclass(frozen=True)
class Bundle:
    """One version of an adapter with its base."""

    card: AdapterCard
    folder: Path
    """The version's folder in the registry."""
    base: Base


def open_bundle(project: Project, ref: str) -> Bundle:
    """The bundle of "name", "name@3" or "name@production"; looks at no weights of the adapter."""
    card, folder = Registry(project.adapters).resolve(ref)
    template = folder / TEMPLATE_FILE
    base = prepare_base(card.base, project.cache, json.loads(card.template_kwargs), template=template if template.is_file() else None)
    return Bundle(card, folder, base)


def other_base(bundle: Bundle) -> str:
    """Why the base at hand is not the one the adapter was trained on; empty where it is."""
    if bundle.base.digest == bundle.card.base_digest:
        return ""
    files = bundle.base.unlike(bundle.card.base_files) or "weights or tokenizer"
    return (
        f"{bundle.card.ref} was trained on {bundle.card.base} with digest {bundle.card.base_digest[:12]}, but the one here has "
        f"{bundle.base.digest[:12]}: another {files}. Put the same base there, or train anew."
    )


def other_template(bundle: Bundle) -> str:
    """Why the template at hand is not the one the adapter was trained under; empty where it is."""
    if digest(bundle.base.template) == bundle.card.template_digest:
        return ""
    file = bundle.folder / TEMPLATE_FILE
    return f"{bundle.card.ref} was trained under another chat template than the one in {file}. Put the file back as it was saved."


def require_runnable(project: Project, bundle: Bundle) -> None:
    """RegistryError where files were changed, the base or template is another one, or the adapter is no policy."""
    if bundle.card.kind != "policy":
        raise RegistryError(f"{bundle.card.ref} is a {bundle.card.kind} model: it gives numbers and no messages. Name a policy adapter.")
    Registry(project.adapters).verify(bundle.card.ref)
    problem = other_base(bundle) or other_template(bundle)
    if problem:
        raise RegistryError(problem)


def adapter_policy(project: Project, ref: str, *, temperature: float = 0.0, seed: int = 0, device: str = "auto") -> LocalPolicy:
    """An adapter that acts in this process, merged into its dequantised base."""
    bundle = open_bundle(project, ref)
    require_runnable(project, bundle)
    model = Model.load(bundle.base, quantization=bundle.card.quantization, device=device)
    model.load_adapter("policy", bundle.folder)
    return _policy(model, "policy", bundle.card.ref, temperature, seed)


def base_policy(
    project: Project,
    base: str,
    quantization: Quantization,
    *,
    temperature: float = 0.0,
    seed: int = 0,
    device: str = "auto",
) -> LocalPolicy:
    """The bare base, rounded as training sees it, so that what an adapter adds can be measured."""
    model = Model.load(prepare_base(base, project.cache), quantization=quantization, device=device)
    model.add_adapter("nothing", r=1, alpha=1.0, trainable=False)  # B is zero: merging it copies the dequantised weights
    return _policy(model, "nothing", "base", temperature, seed)


def _policy(model: Model, adapter: str, name: str, temperature: float, seed: int) -> LocalPolicy:
    return LocalPolicy(adapter_generator(model, adapter), model.dialect, name, temperature=temperature, seed=seed)
