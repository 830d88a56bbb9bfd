"""What a folder may hold to be published as a version of an adapter: plain files beside each other, and nothing that carries code."""

import re
from pathlib import Path

from agentalign.errors import RegistryError

OURS = ("card.json", "card.sha256")
"""What the registry writes beside an adapter's own files."""
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
