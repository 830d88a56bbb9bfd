"""A run as the trainer sees it: the same base, dialect and render, told token by token.

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
    from agentalign.training.dialect import Dialect
    from agentalign.training.render import RenderedTurn

NO_LIMIT = 10**9


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
    recorded: bool
    """The sampled ids themselves, not a render."""
    rerendered: bool


class TokensView(BaseModel):
    """A whole run as tokens."""

    base: str
    n_tokens: int
    n_trainable: int
    turns: list[TurnView]


def known_bases(project: Project, policy: str) -> list[Path]:
    """Folders of bases that are ready here: the one of the adapter that made the run first, then the cached ones, newest first."""
    cached = [path for path in (project.cache / "bases").glob("[!.]*") if (path / "config.json").is_file()]
    cached.sort(key=lambda path: (-path.stat().st_mtime_ns, path.name))
    try:
        card, _folder = Registry(project.adapters).resolve(policy)
    except RegistryError:
        return cached
    return [Path(card.base), *cached] if (Path(card.base) / "config.json").is_file() else cached


def tokens_view(run: Trajectory, recorded: TokenRecord | None, project: Project) -> TokensView:
    """The run under the base its tokens were recorded with, if that is ready here, else under the first known one."""
    from agentalign.training.render import render

    cache = project.cache
    folders = known_bases(project, run.origin.reference)
    if not folders:
        raise DataError(
            "there is no base model in this project's cache, so no tokenizer. Run `agentalign train` or `agentalign demo` first."
        )
    folder = next((f for f in folders if recorded and _dialect(f, cache).digest == recorded.base), folders[0])
    dialect = _dialect(folder, cache)
    rendered = render(run, dialect, tokens=recorded, max_tokens=NO_LIMIT)
    exact = recorded is not None and recorded.base == dialect.digest
    sampled = {turn.message_index for turn in recorded.turns} if recorded and exact else set()
    turns: list[TurnView] = []
    before: tuple[int, ...] = ()
    steps = {step.message_index: step.index for step in run.steps}
    for turn in rendered.turns:
        turns.append(_turn_view(turn, before, dialect, steps[turn.message_index], turn.message_index in sampled))
        before = turn.context + turn.completion
    return TokensView(base=folder.name, n_tokens=rendered.n_tokens, n_trainable=rendered.n_trainable, turns=turns)


def _turn_view(turn: "RenderedTurn", before: tuple[int, ...], dialect: "Dialect", step: int, recorded: bool) -> TurnView:
    seen = next((n for n, (a, b) in enumerate(zip(before, turn.context, strict=False)) if a != b), min(len(before), len(turn.context)))
    return TurnView(
        message=turn.message_index,
        step=step,
        seen=seen,
        context=pieces(dialect, turn.context[seen:]),
        trained=pieces(dialect, turn.completion),
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
