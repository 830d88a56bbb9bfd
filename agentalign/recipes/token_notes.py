"""What a training thought of single tokens, written beside its metrics so that a run's page can show it later.

PPO notes the runs of its newest iterations, DPO the tokens that its pairs compare. Files are small and bounded, each is whole or not
there, and nothing reads them but the pages: a disk that is full costs the notes, never the training.
"""

import json
import logging
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from agentalign.records.base import Record
from agentalign.training.render import Rendered

if TYPE_CHECKING:
    from agentalign.recipes.data import Part
    from agentalign.recipes.dpo import Pair
    from agentalign.recipes.experience import Experience

logger = logging.getLogger("agentalign")
FOLDER = "tokens"
PAIRS = "pairs.jsonl"
MOST_RUNS = 64
"""Runs of an iteration that are noted."""
MOST_ITERATIONS = 20
"""Iterations that are kept, the newest."""
MOST_PAIRS = 500
MOST_TRAININGS = 50
"""Trainings that are looked through for a run, newest first."""


class TurnNote(Record):
    """Figures for some tokens of one turn, from `start` of what the agent wrote on; a list is empty where a figure was not known."""

    message: int
    start: int = 0
    weight: tuple[float, ...] = ()
    """How much a token counts in the loss: 1 for PPO, the pair's strength for DPO, negative where it is rejected."""
    old: tuple[float, ...] = ()
    """Log-probability (nats) under the policy that sampled it, computed on the training path."""
    reference: tuple[float, ...] = ()
    """Log-probability under the frozen reference."""
    advantage: float | None = None
    """How much better the turn went than expected, in units of the reward; shared by its tokens."""
    value: float | None = None
    """What the critic expected before the turn."""


class RunNote(Record):
    """What one training noted of one run."""

    run: str
    said: str
    """The note in words, such as "iteration 3, reward 0.82" or "chosen against 3fa9c1d2"."""
    turns: tuple[TurnNote, ...] = ()


def note_experience(folder: Path, iteration: int, experience: Sequence["Experience"]) -> None:
    """Note an iteration's runs in the training's folder, and let go of the oldest iteration beyond MOST_ITERATIONS."""
    _write(folder / FOLDER / f"{iteration:06d}.jsonl", map(_of_experience, [iteration] * MOST_RUNS, experience))
    for path in sorted((folder / FOLDER).glob("[0-9]*.jsonl"))[:-MOST_ITERATIONS]:
        path.unlink(missing_ok=True)


def _of_experience(iteration: int, one: "Experience") -> RunNote:
    turns, at = [], 0
    sizes = [len(turn.completion) for turn in one.run.turns]
    # A template that rewrites history may let two turns share tokens; then a token's place in the sums is not its place in the text.
    known = len(one.old_logprobs) == len(one.reference_logprobs) == sum(sizes)
    for place, (turn, size) in enumerate(zip(one.run.turns, sizes, strict=True)):
        turns.append(
            TurnNote(
                message=turn.message_index,
                weight=(1.0,) * size,
                old=_rounded(one.old_logprobs[at : at + size].tolist()) if known else (),
                reference=_rounded(one.reference_logprobs[at : at + size].tolist()) if known else (),
                advantage=round(float(one.advantages[place]), 4),
                value=round(float(one.values[place]), 4),
            )
        )
        at += size
    return RunNote(run=one.run.trajectory, said=f"iteration {iteration}, reward {one.reward:.2f}", turns=tuple(turns))


def note_pairs(folder: Path, pairs: Sequence["Pair"], rendered: dict[str, Rendered]) -> None:
    """Note the compared tokens of the first MOST_PAIRS pairs, a line per side, and which runs are held on to."""

    def notes() -> Iterable[RunNote]:
        for pair in pairs[:MOST_PAIRS]:
            sides = ((pair.chosen, "chosen", 1), (pair.rejected, "rejected", -1))
            for place, (part, role, sign) in enumerate(sides):
                run, other = pair.trajectories[place], pair.trajectories[1 - place]
                turns = _places(part, rendered[run], sign * pair.strength, pair.reference[place]) if run in rendered else ()
                held = ", and held on to as a whole" if role == "chosen" and pair.anchor == run else ""
                if turns:
                    yield RunNote(run=run, said=f"{role} against {other[:8]}{held}", turns=turns)

    _write(folder / FOLDER / PAIRS, notes())


def _places(part: "Part", run: Rendered, weight: float, reference: float) -> tuple[TurnNote, ...]:
    """Where the tokens of a part stand in its run; nothing where they are not of it."""
    found = []
    for piece in part.turns:
        for turn in run.turns:
            start = len(piece.context) - len(turn.context)
            path = turn.context + turn.completion
            if start >= 0 and path[: len(piece.context) + len(piece.completion)] == piece.context + piece.completion:
                alone = len(part.turns) == len(piece.completion) == 1  # then the side's sum is this token's
                known = _rounded([reference]) if alone else ()
                weights = (weight,) * len(piece.completion)
                found.append(TurnNote(message=turn.message_index, start=start, weight=weights, reference=known))
                break
    return tuple(found)


def _rounded(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(round(value, 4) for value in values)


def _write(path: Path, notes: Iterable[RunNote]) -> None:
    partial = path.with_suffix(".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("w", encoding="utf-8") as file:
            for note in notes:
                file.write(note.model_dump_json(exclude_defaults=True) + "\n")
        partial.replace(path)
    except OSError as error:
        logger.warning("%s was not written (%s); the pages will not show these tokens' figures", path, error)
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def notes_of(trainings: Path, run: str, maker: str) -> dict[str, list[RunNote]]:
    """What the trainings of a project noted of a run, by training id, newest training first.

    Args:
        trainings: the folder of all trainings' folders.
        maker: `Trajectory.origin.reference`: PPO's runs name the training and iteration that made them.
    """
    if not trainings.is_dir():
        return {}
    folders = sorted((path for path in trainings.iterdir() if (path / FOLDER).is_dir()), key=lambda path: -path.stat().st_mtime_ns)
    found: dict[str, list[RunNote]] = {}
    made = re.fullmatch(r"(.+)/([0-9]{1,6})", maker)
    for folder in folders[:MOST_TRAININGS]:
        names = [PAIRS] if made is None or made[1] != folder.name else [PAIRS, f"{int(made[2]):06d}.jsonl"]
        if notes := [note for name in names for note in _read(folder / FOLDER / name, run)]:
            found[folder.name] = notes
    return found


def _read(path: Path, run: str) -> list[RunNote]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        return [RunNote.model_validate(json.loads(line)) for line in lines if run in line[:80]]
    except (OSError, ValueError, ValidationError) as error:
        logger.warning("%s cannot be read (%s); its figures are not shown", path, error)
        return []
