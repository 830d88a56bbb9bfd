"""The registry of adapters: plain folders adapters/<name>/<version>/ that are written once and never changed.

A version is copied aside, forced to the disk and renamed into place, so it is whole or not there. Which version is in production stands
beside the versions in stages.json, with every change that was ever made. Surprise: the registry runs no gate; `promote` takes the
report of one, and refuses a report about another adapter.
"""

import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

from agentalign.errors import RegistryError
from agentalign.records.adapter import AdapterCard, GateReport
from agentalign.records.base import Record, now
from agentalign.store.files import copy_durably, fsync, put_in_place, sha256, write_whole

STAGES = ("production", "candidate", "previous")

_REF = re.compile(r"([a-z0-9][a-z0-9_.-]{0,99})(?:@([1-9][0-9]{0,8}|[a-z]+))?")
_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
_REQUIRED = ("adapter_config.json", "adapter_model.safetensors")
_OURS = ("card.json", "card.sha256")
_CODE = (".py", ".so", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib")


class StageChange(Record):
    """One line of an adapter's history."""

    action: Literal["promote", "roll_back"]
    stage: str
    version: int
    replaced: int | None
    """The version that held the stage before."""
    gate: GateReport | None = None
    """The report it was promoted on; None for a roll back."""
    time: str


class _Stages(Record):
    """Content of stages.json."""

    stages: dict[str, int] = {}
    history: tuple[StageChange, ...] = ()


class Registry:
    """The adapters in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def next_version(self, name: str) -> int:
        """The version after the highest that ever was, deleted ones included if they once had a stage."""
        if not _REF.fullmatch(name):
            raise RegistryError(
                f"{name!r} is not an adapter's name: small letters, digits, '_', '.' and '-', beginning with a letter or digit."
            )
        promoted = [change.version for change in self._read_stages(name).history]
        return max([0, *self._versions(name), *promoted]) + 1

    def save(self, card: AdapterCard, files: Path) -> AdapterCard:
        """Publish the files of a folder as the card's version; returns the card with their sha256.

        The folder holds adapter_config.json and adapter_model.safetensors, and may hold heads.safetensors, chat_template.jinja and other
        plain files without code; a card.json of an older version in it is left out.
        """
        names = _plain_files(files)
        home = self.folder / card.name
        target = home / str(card.version)
        try:
            home.mkdir(parents=True, exist_ok=True)
            _no_link(home)
            with _lock(home):
                if os.path.lexists(target):
                    raise RegistryError(
                        f"{card.ref} exists, and versions never change. Save it as {card.name}@{self.next_version(card.name)}."
                    )
                for left_by_a_crash in home.glob(".saving-*"):
                    shutil.rmtree(left_by_a_crash)
                return self._publish(card, files, names, target)
        except OSError as error:
            raise RegistryError(
                f"{card.ref} could not be saved ({error}); nothing of it was kept. Free space or fix the rights."
            ) from error

    def _publish(self, card: AdapterCard, files: Path, names: list[str], target: Path) -> AdapterCard:
        aside = target.with_name(f".saving-{card.version}")
        aside.mkdir(mode=0o755)
        aside.chmod(0o755)
        try:
            for name in names:
                copy_durably(files / name, aside / name)
            card = card.model_copy(update={"files": {name: sha256(aside / name) for name in names}})
            write_whole(aside / "card.json", card.model_dump_json(indent=2) + "\n")
            write_whole(aside / "card.sha256", sha256(aside / "card.json") + "\n")
            fsync(aside)
            put_in_place(aside, target)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        return card

    def resolve(self, ref: str) -> tuple[AdapterCard, Path]:
        """Card and folder of "name" (its newest version), "name@3" or "name@production" (or candidate, previous).

        Reads the card only; `verify` looks at the weights.
        """
        name, wanted = self._parse(ref)
        versions = self._versions(name)
        if not versions:
            raise RegistryError(f"there is no adapter {name!r} in {self.folder}. {self._nearest(name)}")
        if wanted is None:
            version = versions[-1]
        elif wanted.isdigit():
            version = int(wanted)
        else:
            stages = self._read_stages(name).stages
            if wanted not in stages:
                raise RegistryError(f"{name} has no {wanted} version; only {_list(versions)}. Promote one: `agentalign promote`.")
            version = stages[wanted]
        if version not in versions:
            raise RegistryError(f"there is no {name}@{version}; {name} has version {_list(versions)}. Name one of these.")
        return self._read_card(name, version), self.folder / name / str(version)

    def verify(self, ref: str) -> None:
        """RegistryError naming the first file that is not what was saved: changed, missing or added."""
        card, folder = self.resolve(ref)
        present = {entry.name for entry in folder.iterdir()} - set(_OURS)
        for name in sorted(present | set(card.files)):
            file = folder / name
            if name not in present:
                raise RegistryError(f"{card.ref} is damaged: {file} is missing. {_RESTORE}")
            if name not in card.files or file.is_symlink() or not file.is_file():
                raise RegistryError(f"{card.ref} is damaged: {file} was added after it was saved. Remove that file.")
            if sha256(file) != card.files[name]:
                raise RegistryError(f"{card.ref} is damaged: {file} is not what was saved (its sha256 differs). {_RESTORE}")

    def promote(self, ref: str, stage: str, gate: GateReport) -> None:
        """Make a version that passed its gate "production" or "candidate"; what was in production becomes "previous"."""
        if stage not in ("production", "candidate"):
            raise RegistryError(f"a version is promoted to production or candidate, not to {stage!r}. Choose one of these.")
        card, _ = self.resolve(ref)
        if gate.adapter != card.ref:
            raise RegistryError(f"{card.ref} cannot be promoted on a gate report about {gate.adapter!r}. Run the gate for {card.ref}.")
        if not gate.passed:
            failed = "; ".join(f"{check.name}: {check.detail}" for check in gate.checks if not check.passed)
            raise RegistryError(f"{card.ref} did not pass its gate ({failed}). Promote another, or give a reason to force it.")
        self.verify(card.ref)
        with self._changing(card.name) as held:
            before = held.stages.get("production")
            stages: dict[str, int] = {**held.stages, stage: card.version}
            if stage == "production":
                if before is not None and before != card.version:
                    stages["previous"] = before
                if stages.get("candidate") == card.version:
                    del stages["candidate"]
            replaced = held.stages.get(stage)
            change = StageChange(action="promote", stage=stage, version=card.version, replaced=replaced, gate=gate, time=now())
            self._write_stages(card.name, stages, (*held.history, change))

    def roll_back(self, name: str) -> AdapterCard:
        """Put the previous version back into production; returns its card. Going back further is a promotion with a gate."""
        name, wanted = self._parse(name)
        if wanted not in (None, "previous"):
            raise RegistryError(
                f"a rollback goes to the version that was in production before ({name}@previous), not to {name}@{wanted}. Name the adapter "
                f"alone, or promote the version that you want: `agentalign promote {name}@VERSION production`."
            )
        self.resolve(name)
        with self._changing(name) as held:
            production, previous = held.stages.get("production"), held.stages.get("previous")
            if previous is None:
                raise RegistryError(
                    f"{name} has no previous version to roll back to. Promote a version: `agentalign promote {name}@VERSION`."
                )
            self.verify(f"{name}@{previous}")
            stages: dict[str, int] = {**held.stages, "production": previous}
            del stages["previous"]
            change = StageChange(action="roll_back", stage="production", version=previous, replaced=production, time=now())
            self._write_stages(name, stages, (*held.history, change))
        return self._read_card(name, previous)

    def stages(self, name: str) -> dict[str, int]:
        """Which version holds which stage; empty where none was promoted."""
        self.resolve(name)
        return dict(self._read_stages(name).stages)

    def history(self, name: str) -> tuple[StageChange, ...]:
        """Every promotion and roll back, oldest first."""
        self.resolve(name)
        return self._read_stages(name).history

    def _parse(self, ref: str) -> tuple[str, str | None]:
        match = _REF.fullmatch(ref)
        if match is None or (match[2] is not None and not match[2].isdigit() and match[2] not in STAGES):
            raise RegistryError(
                f"{ref!r} is not an adapter reference. Write name, name@3, name@production, name@candidate or name@previous."
            )
        return match[1], match[2]

    def _versions(self, name: str) -> "list[int]":
        home = self.folder / name
        _no_link(home)
        if not home.is_dir():
            return []
        found = (entry for entry in home.iterdir() if re.fullmatch("[1-9][0-9]{0,8}", entry.name))
        return sorted(int(entry.name) for entry in found if entry.is_dir() and not entry.is_symlink())

    def _names(self) -> "list[str]":
        if not self.folder.is_dir():
            return []
        return sorted(
            entry.name for entry in self.folder.iterdir() if entry.is_dir() and _REF.fullmatch(entry.name) and self._versions(entry.name)
        )

    def _nearest(self, name: str) -> str:
        names = self._names()
        near = get_close_matches(name, names, n=3, cutoff=0.5)
        if near:
            return f"Did you mean {_list(near, 'or')}?"
        return f"It has {_list(names[:10])}." if names else "Train one: `agentalign train`."

    def _read_card(self, name: str, version: int) -> AdapterCard:
        file = self.folder / name / str(version) / "card.json"
        try:
            if f"{sha256(file)}\n".encode() != file.with_name("card.sha256").read_bytes():
                raise RegistryError(f"{name}@{version} is damaged: {file} is not what card.sha256 beside it says. {_RESTORE}")
            card = AdapterCard.model_validate_json(file.read_bytes())
        except (OSError, ValueError) as error:
            raise RegistryError(f"{name}@{version} is damaged: {file} or card.sha256 beside it cannot be read. {_RESTORE}") from error
        if (card.name, card.version) != (name, version):
            raise RegistryError(
                f"{file.parent} holds {card.ref}: it was moved or copied there. Move it back to {card.name}/{card.version}."
            )
        return card

    def _read_stages(self, name: str) -> _Stages:
        file = self.folder / name / "stages.json"
        try:
            return _Stages.model_validate_json(file.read_bytes())
        except FileNotFoundError:
            return _Stages()
        except (OSError, ValueError) as error:
            raise RegistryError(
                f"{file} cannot be read, so the stages of {name} are unknown. Put back a copy, or delete it and promote anew."
            ) from error

    def _write_stages(self, name: str, stages: dict[str, int], history: tuple[StageChange, ...]) -> None:
        write_whole(self.folder / name / "stages.json", _Stages(stages=stages, history=history).model_dump_json(indent=2) + "\n")

    @contextmanager
    def _changing(self, name: str) -> Iterator[_Stages]:
        try:
            with _lock(self.folder / name):
                yield self._read_stages(name)
        except OSError as error:
            raise RegistryError(
                f"the stages of {name} could not be written ({error}); they are as before. Free some space or fix the rights."
            ) from error

    def list(self) -> "list[AdapterCard]":
        """Every version of every adapter, by name, oldest first."""
        return [self._read_card(name, version) for name in self._names() for version in self._versions(name)]


_RESTORE = "Copy it back from where it was trained or kept, or delete the version's folder."


def _plain_files(folder: Path) -> list[str]:
    """Names of the files to publish; RegistryError where a folder holds something that an adapter must not."""
    if not folder.is_dir():
        raise RegistryError(f"{folder} is not a folder, so there is no adapter in it. Name the folder that holds adapter_config.json.")
    names = []
    for entry in sorted(folder.iterdir()):
        if entry.name in _OURS:
            continue
        if entry.is_symlink() or not entry.is_file() or not _FILE.fullmatch(entry.name):
            raise RegistryError(f"{entry} is a link, a folder or oddly named; an adapter is plain files beside each other. Remove it.")
        if entry.suffix in _CODE:
            raise RegistryError(f"{entry} can carry code; an adapter's tensors are kept as .safetensors. Convert or remove it.")
        names.append(entry.name)
    missing = [name for name in _REQUIRED if name not in names]
    if missing:
        raise RegistryError(f"{folder} lacks {_list(missing)}, so it is not an adapter. Save it with `save_adapter` first.")
    return names


def _no_link(home: Path) -> None:
    if home.is_symlink():
        raise RegistryError(f"{home} is a link; adapters are plain folders. Put the folder itself there.")


@contextmanager
def _lock(home: Path) -> Iterator[None]:
    """One process at a time may save or promote versions of one adapter; the system frees the lock when its holder dies."""
    descriptor = os.open(home / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _list(items: "list[str] | list[int]", word: str = "and") -> str:
    *most, last = [str(item) for item in items]
    return f"{', '.join(most)} {word} {last}" if most else last
