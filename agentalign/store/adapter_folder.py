"""The folders of adapters, <name>/<version>/: what may be published as a version, and the card of one that was.

A version is plain files beside each other, and nothing that carries code.
"""

import re
from pathlib import Path

from agentalign.errors import RegistryError
from agentalign.records.adapter import AdapterCard
from agentalign.store.files import sha256

OURS = ("card.json", "card.sha256")
"""What the registry writes beside an adapter's own files."""
RESTORE = "Copy it back from where it was trained or kept, or delete the version's folder."
_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
_REQUIRED = ("adapter_config.json", "adapter_model.safetensors")
_CODE = (".py", ".so", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib")


def plain_files(folder: Path) -> list[str]:
    """Names of the files to publish; RegistryError where a folder holds something that an adapter must not."""
    if not folder.is_dir():
        raise RegistryError(f"{folder} is not a folder, so there is no adapter in it. Name the folder that holds adapter_config.json.")
    names = []
    for entry in sorted(folder.iterdir()):
        if entry.name in OURS:
            continue
        if entry.is_symlink() or not entry.is_file() or not _FILE.fullmatch(entry.name):
            raise RegistryError(f"{entry} is a link, a folder or oddly named; an adapter is plain files beside each other. Remove it.")
        if entry.suffix in _CODE:
            raise RegistryError(f"{entry} can carry code; an adapter's tensors are kept as .safetensors. Convert or remove it.")
        names.append(entry.name)
    missing = [name for name in _REQUIRED if name not in names]
    if missing:
        raise RegistryError(f"{folder} lacks {' and '.join(missing)}, so it is not an adapter. Save it with `save_adapter` first.")
    return names


def no_link(home: Path) -> None:
    """RegistryError where an adapter's folder is a link: it would lead out of the registry."""
    if home.is_symlink():
        raise RegistryError(f"{home} is a link; adapters are plain folders. Put the folder itself there.")


def versions_in(home: Path) -> list[int]:
    """The versions that an adapter's folder has, whole or not, oldest first."""
    if not home.is_dir():
        return []
    found = (entry for entry in home.iterdir() if re.fullmatch("[1-9][0-9]{0,8}", entry.name))
    return sorted(int(entry.name) for entry in found if entry.is_dir() and not entry.is_symlink())


def read_card(folder: Path) -> tuple[AdapterCard, str]:
    """The card of a version's folder, and its sha256; RegistryError where it is not what was saved, or the folder was moved."""
    ref, file = f"{folder.parent.name}@{folder.name}", folder / "card.json"
    try:
        content = sha256(file)
        if f"{content}\n".encode() != file.with_name("card.sha256").read_bytes():
            raise RegistryError(f"{ref} is damaged: {file} is not what card.sha256 beside it says. {RESTORE}")
        card = AdapterCard.model_validate_json(file.read_bytes())
    except (OSError, ValueError) as error:
        raise RegistryError(f"{ref} is damaged: {file} or card.sha256 beside it cannot be read. {RESTORE}") from error
    if card.ref != ref:
        raise RegistryError(f"{folder} holds {card.ref}: it was moved or copied there. Move it back to {card.name}/{card.version}.")
    return card, content
