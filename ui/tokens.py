"""A run as the trainer sees it: the same base, dialect and render, told token by token.

SFT counts every token the agent wrote as one; the reward model learns none of them and is read at the last; what PPO and DPO made of single
tokens is known where a training noted it.
Only bases that are ready on this machine are used: looking at a run never downloads or converts anything.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel

from agentalign.config.project import Project
from agentalign.errors import DataError, RegistryError
from agentalign.records.trajectory import TokenRecord, Trajectory
from agentalign.store.registry import Registry

if TYPE_CHECKING:
    from agentalign.recipes.token_notes import TurnNote
    from agentalign.training.dialect import Dialect
    from agentalign.training.render import RenderedTurn

PLAIN = {"sft": 1.0, "reward": 0.0}
"""Views that need no training, and what every token the agent wrote weighs in them."""


class TurnView(BaseModel):
    """One assistant turn as tokens."""

    message: int
    step: int
    seen: int
    """Prompt tokens that the turn before already held."""
    context: list[str]
    """The prompt's other tokens as pieces of text; not trained."""
    trained: list[str]
    """The tokens the agent wrote, as pieces of text; trained."""
    figures: dict[str, list[float | None]]
    """By name a value per trained token: weight, sampler, old, reference, advantage; only what is known."""
    value: float | None = None
    """What the critic expected before this turn."""
    recorded: bool
    """The sampled ids themselves, not a render."""
    rerendered: bool


class TokensView(BaseModel):
    """A whole run as tokens."""

    base: str
    n_tokens: int
    n_trainable: int
    turns: list[TurnView]
    seen_as: str
    """Whose view this is: "sft", "reward", or a training's id."""
    views: list[str]
    """All views that there are of this run."""
    said: list[str]
    """What the training noted of the run, in words."""


def known_bases(project: Project, policy: str) -> list[Path]:
    """Folders of bases that are ready here: the one of the adapter that made the run first, then the cached ones, newest first."""
    cached = [path for path in (project.cache / "bases").glob("[!.]*") if (path / "config.json").is_file()]
    cached.sort(key=lambda path: (-path.stat().st_mtime_ns, path.name))
    try:
        card, _folder = Registry(project.adapters).resolve(policy)
    except RegistryError:
        return cached
    return [Path(card.base), *cached] if (Path(card.base) / "config.json").is_file() else cached


def tokens_view(run: Trajectory, recorded: TokenRecord | None, project: Project, seen_as: str = "sft") -> TokensView:
    """The run under the base its tokens were recorded with, if that is ready here, else under the first known one."""
    from agentalign.recipes.token_notes import notes_of
    from agentalign.training.render import render

    cache = project.cache
    folders = known_bases(project, run.origin.reference)
    if not folders:
        raise DataError(
            "there is no base model in this project's cache, so no tokenizer. Run `agentalign train` or `agentalign demo` first."
        )
    folder = next((f for f in folders if recorded and _dialect(f, cache).digest == recorded.base), folders[0])
    dialect = _dialect(folder, cache)
    rendered = render(run, dialect, tokens=recorded, max_tokens=None)
    exact = recorded is not None and recorded.base == dialect.digest
    sampled = {turn.message_index for turn in recorded.turns} if recorded and exact else set()
    noted = notes_of(project.trainings, run.id, run.origin.reference)
    if seen_as not in (*PLAIN, *noted):
        raise DataError(f"training {seen_as!r} noted nothing of this run; there is: {', '.join([*PLAIN, *noted])}.")
    notes = noted.get(seen_as, [])
    turns: list[TurnView] = []
    before: tuple[int, ...] = ()
    steps = {step.message_index: step.index for step in run.steps}
    for turn in rendered.turns:
        view = _turn_view(turn, before, dialect, steps[turn.message_index], turn.message_index in sampled)
        about = [one for note in notes for one in note.turns if one.message == turn.message_index]
        view.figures.update(
            _figures(about, len(turn.completion)) if notes else {"weight": [PLAIN.get(seen_as, 0.0)] * len(turn.completion)}
        )
        view.value = next((one.value for one in about if one.value is not None), None)
        turns.append(view)
        before = turn.context + turn.completion
    return TokensView(
        base=folder.name,
        n_tokens=rendered.n_tokens,
        n_trainable=rendered.n_trainable,
        turns=turns,
        seen_as=seen_as,
        views=[*PLAIN, *noted],
        said=[note.said for note in notes],
    )


def _figures(about: Sequence["TurnNote"], size: int) -> dict[str, list[float | None]]:
    """A value per token of a turn; the weights of several pairs add up, because their losses do."""
    found: dict[str, list[float | None]] = {"weight": [0.0] * size}
    for one in about:
        for place, value in enumerate(one.weight, one.start):
            if place < size:
                found["weight"][place] = (found["weight"][place] or 0.0) + value
                if one.advantage is not None:
                    found.setdefault("advantage", [None] * size)[place] = one.advantage
        for name, values in (("old", one.old), ("reference", one.reference)):
            for place, value in enumerate(values, one.start):
                if place < size:
                    found.setdefault(name, [None] * size)[place] = value
    return found


def _turn_view(turn: "RenderedTurn", before: tuple[int, ...], dialect: "Dialect", step: int, recorded: bool) -> TurnView:
    seen = next((n for n, (a, b) in enumerate(zip(before, turn.context, strict=False)) if a != b), min(len(before), len(turn.context)))
    return TurnView(
        message=turn.message_index,
        step=step,
        seen=seen,
        context=pieces(dialect, turn.context[seen:]),
        trained=pieces(dialect, turn.completion),
        figures={"sampler": [*turn.logprobs]} if len(turn.logprobs) == len(turn.completion) else {},
        recorded=recorded,
        rerendered=turn.rerendered,
    )


def pieces(dialect: "Dialect", ids: Sequence[int]) -> list[str]:
    """The text of each token; a character that several tokens make together stands at the last of them."""
    found: list[str] = []
    waiting: list[int] = []
    for token in ids:
        waiting.append(token)
        text = dialect.decode(waiting)
        whole = not text.endswith("\ufffd") or len(waiting) >= 4
        found.append(text if whole else "")
        waiting = [] if whole else waiting
    if waiting:
        found[-1] = dialect.decode(waiting)
    return found


@lru_cache(maxsize=4)
def _dialect(folder: Path, cache: Path) -> "Dialect":
    from agentalign.training.base import prepare_base
    from agentalign.training.dialect import Dialect

    return Dialect.load(prepare_base(str(folder), cache))
