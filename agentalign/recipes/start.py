"""What a recipe builds on: the adapter to continue, and the base that it stands on."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from agentalign.config.training import TrainingConfig
from agentalign.errors import DataError, RegistryError
from agentalign.records.adapter import AdapterCard, AdapterKind, RecipeName
from agentalign.records.base import digest
from agentalign.store.registry import Registry

if TYPE_CHECKING:
    from agentalign.recipes.workspace import Workspace

logger = logging.getLogger("agentalign")
C = TypeVar("C", bound=TrainingConfig)
FIRST_BASE = "smollm2-135m"
"""Where nothing is continued and none is named."""


def base_name(config: TrainingConfig, registry: Registry, policy: str) -> str:
    """The base that the config names, else that of the adapter to continue, which `resolve_start` holds it to.

    Raises:
        RegistryError: that adapter is damaged, or names a base that this machine never had: no card makes it fetch a stranger's. (One that
            is in the hub's cache may still be brought up to date there, as where it is named.)
    """
    if config.base is not None:
        return config.base
    start = config.start
    if start is None and config.recipe != "sft":
        start = newest_start(registry, policy, config.recipe) or (policy if registry.cards(policy) else None)
    if start is None or (card := registry.resolve(start)[0]).base == FIRST_BASE:
        return FIRST_BASE
    registry.verify(card.ref)
    if not _at_hand(card.base):
        raise RegistryError(f"{card.ref} was trained on {card.base!a:.100}, which is not on this machine. If you trust it, name it: base.")
    logger.info("base: %s, that of %s; base: names another", card.base, card.ref)
    return card.base


def _at_hand(base: str) -> bool:
    try:
        return Path(base).expanduser().exists() or isinstance(try_to_load_from_cache(base, "config.json"), str)
    except (HFValidationError, OSError, RuntimeError, ValueError):
        # Too long for a path, nobody's home, no name of a model: a card says what it will.
        return False


def newest_start(registry: Registry, policy: str, recipe: str) -> str:
    """The newest policy of this name that the recipe has no part in, itself or before; empty where there is none."""
    cards = {card.ref: card for card in registry.list()}
    # Each is asked about once: a policy and its reward model have the same parents, and ways would double with every round.
    known: dict[str, bool] = {}

    def has_part(ref: str) -> bool:
        if ref not in known:
            known[ref] = False  # also while its parents are asked about, since a card may name itself
            if ref not in cards and registry.holds(ref):
                raise RegistryError(f"{ref} is damaged, and whether {recipe} had a part in it cannot be read. Name a start: start: NAME@V.")
            known[ref] = ref in cards and (cards[ref].recipe == recipe or any(has_part(parent) for parent in cards[ref].parents))
        return known[ref]

    registry.cards(policy)  # refused where one cannot be read: another would be taken for the newest
    return next((ref for ref, card in reversed(cards.items()) if card.name == policy and not has_part(ref)), "")


def resolve_start(work: "Workspace", config: C, recipe: RecipeName) -> tuple[C, Path]:
    """The config with its start adapter as "name@version", and that adapter's folder.

    Without a start it is the newest policy that this recipe has no part in, itself or before: else the same command again would not find
    its finished training but build on its own result.
    """
    name = work.adapter_name("policy")
    newest = newest_start(work.registry, name, recipe) if config.start is None else ""
    card, folder = resolve_adapter(work, config.start or newest or name, "policy")
    if config.start is None:
        why = f"the newest policy that {recipe} has no part in" if newest else "the newest policy"
        logger.info("starting from %s, %s; start: names another", card.ref, why)
    if card.quantization != config.quantization:
        logger.warning(
            "%s was trained with quantization %s and goes on with %s: on such a base it is another policy, and often a worse one",
            *(card.ref, card.quantization, config.quantization),
        )
    return config.model_copy(update={"start": card.ref}), folder


def resolve_adapter(work: "Workspace", ref: str, kind: AdapterKind) -> tuple[AdapterCard, Path]:
    """An adapter to build on, verified file by file.

    Raises:
        RegistryError: it does not exist, or a file of it differs from its card.
        DataError: it is of another kind, or was trained on another base or template.
    """
    card, folder = work.registry.resolve(ref)
    if card.kind != kind:
        raise DataError(f"adapter {card.ref} is a {card.kind} model, and a {kind} model is needed here; name another.")
    if card.base_digest != work.base.digest or card.template_digest != digest(work.base.template):
        files = work.base.unlike(card.base_files) or "weights or tokenizer"
        other = "another chat template" if card.base_digest == work.base.digest else f"another {files}"
        raise DataError(
            f"adapter {card.ref} was trained on {card.base} (digest {card.base_digest[:12]}) with {other} than {work.base.name} "
            f"({work.base.digest[:12]}) has now; name the same base, or bring back what was changed in it."
        )
    work.registry.verify(card.ref)
    return card, folder
