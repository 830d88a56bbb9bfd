"""Small files that are written once: the secret behind cookies and tokens, and the drawn pairs."""

import os
import secrets
from pathlib import Path

from agentalign.errors import ConfigError


def write_once(path: Path, text: str) -> None:
    """Write a file that is there whole, readable by its owner only, or not at all; whoever is first wins."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.link(fresh, path)
    except FileExistsError:
        pass  # another server of this project was first; both read the same file
    finally:
        fresh.unlink(missing_ok=True)


def project_secret(folder: Path) -> bytes:
    """The secret of the project's pages, made on first use so that cookies and drawn pairs outlive a restart."""
    path = folder / "secret"
    try:
        if not path.exists():
            write_once(path, secrets.token_hex(32))
        secret = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot make or read the secret of the cookies ({error.strerror}). Make the folder writable.") from None
    if len(secret) < 64:
        raise ConfigError(f"{path}: the secret of the cookies is damaged ({len(secret)} bytes). Delete the file; a new one is made.")
    return secret
