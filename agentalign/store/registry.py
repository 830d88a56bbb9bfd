"""The registry of adapters: plain folders adapters/<name>/<version>/ that are written once and never changed.

A version is a number and a content hash: the sha256 of its card, which holds the sha256 of every other file, so `desk@3-1a2b3c4d5e6f`
names these very weights. It is copied aside, forced to the disk and renamed into place, so it is whole or not there. Which version is in
production stands beside the versions in stages.json, with every change that was ever made. Surprise: the registry runs no gate;
`promote` takes the report of one, and refuses a report about another adapter.
"""

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path

from agentalign.errors import RegistryError
from agentalign.records.adapter import NAME, AdapterCard, EvaluationSummary, GateReport
from agentalign.records.golden import Golden
from agentalign.store import beside, stages
from agentalign.store.adapter_folder import OURS, RESTORE, no_link, plain_files, read_card, versions_in
from agentalign.store.files import copy_durably, fsync, put_in_place, sha256, write_whole
from agentalign.store.stages import STAGES, StageChange, Stages

CONTENT_DIGITS = 12
"""Hex digits of the content hash that people see."""

_REF = re.compile(rf"({NAME})(?:@([1-9][0-9]{{0,8}}(?:-[0-9a-f]{{6,64}})?|[a-z]+))?")


class Registry:
    """The adapters in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def next_version(self, name: str) -> int:
        """The version after the highest that ever was, deleted ones included: runs, evaluations and children go by the number."""
        if not re.fullmatch(NAME, name):
            raise RegistryError(
                f"{name!r} is not an adapter's name: small letters, digits, '_', '.' and '-', beginning with a letter or digit."
            )
        held = stages.read(self.folder / name)
        return max([held.highest, *self._versions(name), *(change.version for change in held.history)]) + 1

    def save(self, card: AdapterCard, files: Path) -> AdapterCard:
        """Publish the files of a folder as the card's version; returns the card with their sha256.

        The folder holds adapter_config.json and adapter_model.safetensors, and may hold heads.safetensors, chat_template.jinja and other
        plain files without code; a card.json of an older version in it is left out.
        """
        names = plain_files(files)
        home = self.folder / card.name
        target = home / str(card.version)
        try:
            home.mkdir(parents=True, exist_ok=True)
            no_link(home)
            with _lock(home):
                if os.path.lexists(target):
                    raise RegistryError(
                        f"{card.ref} exists, and versions never change. Save it as {card.name}@{self.next_version(card.name)}."
                    )
                for left_by_a_crash in home.glob(".saving-*"):
                    shutil.rmtree(left_by_a_crash)
                saved = self._publish(card, files, names, target)
                with contextlib.suppress(OSError, RegistryError):  # the version is there; the mark is only about its number
                    held = stages.read(home)
                    stages.write(home, held.model_copy(update={"highest": max(held.highest, card.version)}))
                return saved
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
        """Card and folder of "name" (its newest version), "name@3", "name@3-1a2b3c4d5e6f" or "name@production" (or candidate, previous).

        Reads the card only; `verify` looks at the weights.
        """
        name, wanted = self._parse(ref)
        versions = self._known(name)
        content = ""
        if wanted is None:
            version = versions[-1]
        elif wanted[0].isdigit():
            number, _, content = wanted.partition("-")
            version = int(number)
        else:
            held = stages.read(self.folder / name).stages
            if wanted not in held:
                raise RegistryError(f"{name} has no {wanted} version; only {_list(versions)}. Promote one: `agentalign promote`.")
            version = held[wanted]
        if version not in versions:
            raise RegistryError(f"there is no {name}@{version}; {name} has version {_list(versions)}. Name one of these.")
        card, found = read_card(self.folder / name / str(version))
        if not found.startswith(content):
            raise RegistryError(
                f"{name}@{version} has the content {found[:CONTENT_DIGITS]}, not {content}: another adapter has this number here. Copy the "
                "one that you mean from where it was trained."
            )
        return card, self.folder / name / str(version)

    def content(self, ref: str) -> str:
        """The version's content hash, 64 hex digits: over its card, and so over every file of it."""
        return read_card(self.resolve(ref)[1])[1]

    def identity(self, ref: str) -> str:
        """The full reference, "name@3-1a2b3c4d5e6f"; `resolve` takes it and refuses any other content."""
        card, folder = self.resolve(ref)
        return f"{card.ref}-{read_card(folder)[1][:CONTENT_DIGITS]}"

    def verify(self, ref: str) -> None:
        """RegistryError naming the first file that is not what was saved: changed, missing or added."""
        card, folder = self.resolve(ref)
        present = {entry.name for entry in folder.iterdir()} - set(OURS)
        for name in sorted(present | set(card.files)):
            file = folder / name
            if name not in present:
                raise RegistryError(f"{card.ref} is damaged: {file} is missing. {RESTORE}")
            if name not in card.files or file.is_symlink() or not file.is_file():
                raise RegistryError(f"{card.ref} is damaged: {file} was added after it was saved. Remove that file.")
            if sha256(file) != card.files[name]:
                raise RegistryError(f"{card.ref} is damaged: {file} is not what was saved (its sha256 differs). {RESTORE}")

    def promote(self, ref: str, stage: str, gate: GateReport, *, canary: float | None = None) -> None:
        """Make a version that passed its gate "production" or "candidate"; what was in production becomes "previous".

        Args:
            canary: share of the sessions that a candidate answers, see `for_session`; None: what it had, or none if it is new there.
        """
        if stage not in ("production", "candidate"):
            raise RegistryError(f"a version is promoted to production or candidate, not to {stage!r}. Choose one of these.")
        card, _ = self.resolve(ref)
        content = self.content(card.ref)
        if gate.adapter != card.ref:
            raise RegistryError(f"{card.ref} cannot be promoted on a gate report about {gate.adapter!r}. Run the gate for {card.ref}.")
        if gate.content and gate.content != content:
            raise RegistryError(
                f"the gate report is about {card.ref} with the content {gate.content[:CONTENT_DIGITS]}, but {card.ref} has "
                f"{content[:CONTENT_DIGITS]} now. Run the gate again."
            )
        if not gate.passed:
            failed = "; ".join(f"{check.name}: {check.detail}" for check in gate.checks if not check.passed)
            raise RegistryError(f"{card.ref} did not pass its gate ({failed}). Promote another, or give a reason to force it.")
        self.verify(card.ref)
        with self._changing(card.name) as held:
            after = stages.after_promotion(held, stage, card.version, gate, content)
            stages.write(self.folder / card.name, after if canary is None else stages.after_canary(after, canary))

    def keep(self, ref: str, report: GateReport | EvaluationSummary | Golden) -> None:
        """Keep a deploy-check, an evaluation's summary or golden prompts beside their version; refused where they are about other files."""
        card, folder = self.resolve(ref)
        content = self.content(card.ref)
        if not isinstance(report, Golden) and report.content != content:
            raise RegistryError(f"the report is about other files than {card.ref} has now, so it is not kept beside it. Make it again.")
        with self._changing(card.name):
            beside.keep(folder, content, report)

    def checks(self, ref: str) -> tuple[GateReport, ...]:
        """The deploy-checks of exactly these files, oldest first; the newest counts."""
        folder, content = self.resolve(ref)[1], self.content(ref)
        return tuple(report for report in beside.read_checks(folder).checks if report.content == content)

    def golden(self, ref: str) -> Golden | None:
        """Golden prompts that were recorded of exactly these files after they were saved."""
        held = beside.read_golden(self.resolve(ref)[1])
        return held.golden if held.content == self.content(ref) else None

    def evaluations(self, ref: str) -> tuple[EvaluationSummary, ...]:
        """Summaries of the evaluations of exactly these files, oldest first."""
        folder, content = self.resolve(ref)[1], self.content(ref)
        return tuple(one for one in beside.read_evaluations(folder).evaluations if one.content == content)

    def roll_back(self, name: str) -> AdapterCard:
        """Put the previous version back into production; returns its card. Going back further is a promotion with a gate."""
        name, wanted = self._parse(name)
        if wanted not in (None, "previous"):
            raise RegistryError(
                f"a rollback goes to the version that was in production before ({name}@previous), not to {name}@{wanted}. Name the adapter "
                f"alone, or promote the version that you want: `agentalign promote {name}@VERSION production`."
            )
        self._known(name)
        with self._changing(name) as held:
            previous = held.stages.get("previous")
            if previous is None:
                raise RegistryError(
                    f"{name} has no previous version to roll back to. Promote a version: `agentalign promote {name}@VERSION`."
                )
            self.verify(f"{name}@{previous}")
            stages.write(self.folder / name, stages.after_roll_back(held, previous))
        return read_card(self.folder / name / str(previous))[0]

    def set_canary(self, ref: str, weight: float) -> None:
        """Let the candidate answer this share of the sessions; 0 takes it back. A version that is named must be the candidate."""
        name, wanted = self._parse(ref)
        card, _ = self.resolve(name if wanted == "candidate" else ref)
        with self._changing(name) as held:
            if wanted not in (None, "candidate") and held.stages.get("candidate") != card.version:
                raise RegistryError(
                    f"a canary's share is the candidate's, and {card.ref} is not it. Make it so: `agentalign promote {card.ref} candidate`."
                )
            stages.write(self.folder / name, stages.after_canary(held, weight))

    def canary(self, name: str) -> float:
        """Share of the sessions that the candidate answers."""
        name, _ = self._parse(name)
        self._known(name)
        return stages.read(self.folder / name).canary

    def for_session(self, name: str, session: str) -> AdapterCard:
        """Who answers a session: production, or the candidate for its share. The same session always gets the same version.

        A version must not change within a conversation: its cache and its manners are another's.
        """
        name, _ = self._parse(name)
        held = stages.read(self.folder / name)
        return self.resolve(f"{name}@{stages.stage_of(held, name, session)}")[0]

    def stages(self, name: str) -> dict[str, int]:
        """Which version holds which stage; empty where none was promoted."""
        self._known(name)
        return dict(stages.read(self.folder / name).stages)

    def history(self, name: str) -> tuple[StageChange, ...]:
        """Every promotion, roll back and change of the canary's share, oldest first."""
        self._known(name)
        return stages.read(self.folder / name).history

    def _parse(self, ref: str) -> tuple[str, str | None]:
        match = _REF.fullmatch(ref)
        if match is None or (match[2] is not None and not match[2][0].isdigit() and match[2] not in STAGES):
            raise RegistryError(
                f"{ref!r} is not an adapter reference. Write name, name@3, name@production, name@candidate or name@previous."
            )
        return match[1], match[2]

    def _versions(self, name: str) -> "list[int]":
        home = self.folder / name
        no_link(home)
        return versions_in(home)

    def _known(self, name: str) -> "list[int]":
        """The versions that an adapter has, whole or not; RegistryError where there is no such adapter."""
        versions = self._versions(self._parse(name)[0])
        if not versions:
            raise RegistryError(f"there is no adapter {name!r} in {self.folder}. {self._nearest(name)}")
        return versions

    def holds(self, ref: str) -> bool:
        """Whether a folder of this "name@3" is there, readable or not."""
        name, _, version = ref.partition("@")
        plain = re.fullmatch(NAME, name) and re.fullmatch("[1-9][0-9]{0,8}", version)
        return bool(plain) and int(version) in versions_in(self.folder / name)

    def _homes(self) -> "list[Path]":
        """The folders that hold versions, links too, by name."""
        entries = sorted(self.folder.iterdir()) if self.folder.is_dir() else []
        return [entry for entry in entries if entry.is_dir() and _REF.fullmatch(entry.name) and versions_in(entry)]

    def _names(self) -> "list[str]":
        return [home.name for home in self._homes() if not home.is_symlink()]

    def _nearest(self, name: str) -> str:
        names = self._names()
        near = get_close_matches(name, names, n=3, cutoff=0.5)
        if near:
            return f"Did you mean {_list(near, 'or')}?"
        return f"It has {_list(names[:10])}." if names else "Train one: `agentalign train`."

    @contextmanager
    def _changing(self, name: str) -> Iterator[Stages]:
        try:
            with _lock(self.folder / name):
                yield stages.read(self.folder / name)
        except OSError as error:
            raise RegistryError(
                f"what stands beside {name}'s versions could not be written ({error}); it is as before. Free some space or fix the rights."
            ) from error

    def cards(self, name: str) -> "list[AdapterCard]":
        """Every version of one adapter, oldest first; RegistryError where one cannot be read, such as one that is being copied in."""
        return [read_card(self.folder / name / str(version))[0] for version in self._versions(self._parse(name)[0])]

    def readable(self) -> "tuple[list[AdapterCard], list[str]]":
        """As `list`, and what of the registry cannot be read: versions, stages, and folders that are links."""
        cards: list[AdapterCard] = []
        problems: list[str] = []
        for home in self._homes():
            try:
                no_link(home)
            except RegistryError as error:
                problems.append(str(error))
                continue
            for version in versions_in(home):
                try:
                    cards.append(read_card(home / str(version))[0])
                except RegistryError as error:
                    problems.append(str(error))
            try:
                stages.read(home)
            except RegistryError as error:
                problems.append(str(error))
        return cards, problems

    def list(self) -> "list[AdapterCard]":
        """Every version of every adapter that can be read, by name, oldest first: one bad folder hides no other."""
        return self.readable()[0]


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
