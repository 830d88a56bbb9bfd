"""Scores and pairs of the runs that a store holds."""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from agentalign.environments.taskset import Taskset, find_taskset, load_criteria
from agentalign.environments.team_code import Pool
from agentalign.errors import AgentAlignError, DataError
from agentalign.records.base import now
from agentalign.records.criterion import NO_ANSWER, Criterion, Score, ScoreStatus, in_force, overall
from agentalign.records.preference import Preference
from agentalign.records.trajectory import Trajectory
from agentalign.scoring.corrected import corrected_pairs
from agentalign.scoring.pair_words import words
from agentalign.scoring.pairs import Group, Scored, balance, corrections, describe, step_pairs, task_pairs
from agentalign.scoring.score import score_trajectories
from agentalign.scoring.worth import worth
from agentalign.store.filters import RunFilter
from agentalign.store.store import Store

BATCH = 32
"""Runs scored between two commits."""
TEACHERS = ("expert", "correction")
Level = Literal["run", "step", "both"]


class ScoringReport(NamedTuple):
    """What scoring did."""

    runs: int
    scores: int
    errors: int
    """Scores that say that a check broke."""
    first_error: str
    means: dict[str, float]
    """Criterion -> mean value on its own scale, over the runs just scored that it applied to."""


class MadePairs(NamedTuple):
    """Preferences that scores allow."""

    preferences: list[Preference]
    counts: dict[str, dict[str, int]]
    """See `pairs.describe`."""
    runs: int
    without_overall: int
    """Runs that could not be compared: not scored, or a gate's check broke."""
    stored: int
    known: int
    withdrawn: int
    """Pairs made before that the scores do not give any more; they are in force no longer."""


def score_stored(
    store: Store,
    taskset: Taskset,
    *,
    pool: Pool,
    criteria: Collection[str] | None = None,
    only_new: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> ScoringReport:
    """Run the taskset's checks on its stored runs and store the scores; with `only_new` on runs that lack an answer to a current one.

    A check that broke has not answered: it may have been mended, or a worker may have died under it. Runs that are about
    one step are passed over: nothing was acted out after it that a check could look at.
    """
    for name in criteria or ():
        taskset.criterion(name)
    wanted = {c.key for c in taskset.criteria if c.kind == "check" and (criteria is None or c.name in criteria)}
    done = _answered(store, taskset.name) if only_new else {}
    runs = RunFilter(taskset=taskset.name)
    total = store.count(runs)
    made: list[Score] = []
    scored = 0
    waiting: list[Trajectory] = []
    tasks = {task.id: task for task in taskset.tasks()}

    def flush() -> None:
        scores = score_trajectories(taskset, waiting, tasks, criteria=criteria, pool=pool)
        store.add_scores(answered_anew(store, scores))
        made.extend(scores)
        waiting.clear()

    for number, run in enumerate(store.trajectories(runs), 1):
        if not run.is_one_step and wanted - done.get(run.id, set()):
            waiting.append(run)
            scored += 1
        if len(waiting) >= BATCH:
            flush()
        if progress and (number % BATCH == 0 or number == total):
            progress(number, total)
    flush()
    return _scoring_report(made, scored)


def answered_anew(store: Store, new: Sequence[Score]) -> list[Score]:
    """Scores of checks that just answered, behind withdrawals of what these checks said of other steps before.

    An answer is of the whole run and replaces the last. What goes comes first: a check that broke then has its error as the last word,
    and is asked again. Of a run that was forgotten and is made once more there is nothing to keep.
    """
    forgotten = store.tombstones(sorted({score.trajectory for score in new}))
    new = [score for score in new if score.trajectory not in forgotten]
    said = {(score.trajectory, score.criterion, score.step) for score in new}
    asked = {(score.trajectory, score.criterion) for score in new}
    before = in_force(score for score in store.scores(sorted({run for run, _ in asked})) if score.rater_kind == "check")
    gone = [
        old
        for old in before
        if old.status not in NO_ANSWER
        and (old.trajectory, old.criterion) in asked
        and (old.trajectory, old.criterion, old.step) not in said
    ]
    anew = {"status": ScoreStatus.WITHDRAWN, "value": None, "note": "", "id": "", "time": now()}
    return [*(Score.model_validate({**old.model_dump(), **anew}) for old in gone), *new]


def _answered(store: Store, taskset: str) -> dict[str, set[str]]:
    """Per run the criteria on which a check has the last word, and it is no error."""
    done: dict[str, set[str]] = {}
    for score in store.scores(taskset=taskset):
        if score.rater_kind == "check":
            answered = done.setdefault(score.trajectory, set())
            if score.status == ScoreStatus.ERROR:
                answered.discard(score.criterion)
            else:
                answered.add(score.criterion)
    return done


def _scoring_report(made: list[Score], runs: int) -> ScoringReport:
    errors = [score for score in made if score.status == ScoreStatus.ERROR]
    values: dict[str, list[float]] = {}
    for score in made:
        if score.value is not None:
            values.setdefault(score.criterion, []).append(score.value)
    means = {name: sum(found) / len(found) for name, found in sorted(values.items())}
    return ScoringReport(runs, len(made), len(errors), errors[0].note.strip().splitlines()[-1] if errors else "", means)


def overalls(store: Store, ids: Collection[str], tasks: Path | None) -> dict[str, float | None]:
    """Overall value per run id; None where it cannot be known, for instance because its taskset is not here."""
    criteria: dict[str, tuple[Criterion, ...]] = {}
    by_run: dict[str, list[Score]] = {}
    for score in store.scores(list(ids)):
        by_run.setdefault(score.trajectory, []).append(score)
    found: dict[str, float | None] = dict.fromkeys(ids)
    for run in store.trajectories(RunFilter(ids=tuple(by_run))):
        if run.taskset not in criteria:
            try:
                criteria[run.taskset] = load_criteria(find_taskset(run.taskset, tasks) / "criteria.yaml")
            except AgentAlignError:
                criteria[run.taskset] = ()
        found[run.id] = overall(criteria[run.taskset], by_run[run.id])
    return found


def _scored(store: Store, taskset: Taskset, runs: Sequence[Trajectory]) -> list[Scored]:
    by_run: dict[str, list[Score]] = {run.id: [] for run in runs}
    for score in store.scores(taskset=taskset.name):
        if score.trajectory in by_run:
            by_run[score.trajectory].append(score)
    return [(run, worth(taskset.criteria, by_run[run.id])) for run in runs]


def make_pairs(
    store: Store,
    taskset: Taskset,
    *,
    split: str | None = "train",
    margin: float = 0.25,
    per_task: int = 4,
    level: Level = "both",
    cap: int = 200,
    seed: int = 0,
    dry_run: bool = False,
) -> MadePairs:
    """Preferences from the scores of a taskset's runs, balanced over families and branches; stored unless `dry_run`.

    Pairs that were made of the same runs before and are not among them are taken back: DPO and the reward model learn from what the
    scores say now. The same scores again add nothing.

    Args:
        split: runs of this split only, and imported runs without one; None for all.
        margin: least difference of the overall values by the criteria that both runs were judged by.
        per_task: most pairs of one task and kind.
        level: whole runs, single steps (where two runs part, and where an expert acts otherwise), or both.
        cap: most pairs of one branch of a family.
    """
    runs = [run for run in store.trajectories(RunFilter(taskset=taskset.name)) if split is None or run.split in (split, "")]
    if not runs:
        where = f" in split '{split}'" if split else ""
        raise DataError(f"there are no runs of {taskset.name}{where} to compare. Make some: `agentalign rollout {taskset.name} --n 4`.")
    by_id = {run.id: run for run in runs}
    scored = _scored(store, taskset, [run for run in runs if not run.is_one_step])
    experts = [pair for pair in scored if pair[0].origin.kind in TEACHERS]
    others = [pair for pair in scored if pair[0].origin.kind not in TEACHERS]
    found: list[Preference] = []
    said = store.preferences(taskset.name)
    if level != "step":
        found += task_pairs(others, margin=margin, per_task=per_task, seed=seed)
    if level != "run":
        found += step_pairs(others, margin=margin, per_task=per_task, seed=seed)
        found += corrections(experts, others, margin=margin, per_task=per_task, seed=seed)
        found += corrected_pairs(by_id, [word for word in said if word.source == "correction"])
    tasks = {task.id: task for task in taskset.tasks()}
    groups: dict[str, Group] = {
        run.id: (run.family, tasks[run.task_id].branch if run.task_id and run.task_id in tasks else "") for run in runs
    }
    branches = {(task.family, task.branch) for task in tasks.values() if task.branch and (split is None or task.split == split)}

    def group_of(preference: Preference) -> Group:
        return groups[preference.items[0].trajectory]

    kept = balance(found, group_of, cap, name_of=lambda preference: preference.id, seed=seed, branches=branches)
    pairs, gone = words(kept, said, by_id, whole=level != "step", steps=level != "run")
    known = {word.id for word in said}
    new = [pair for pair in pairs if pair.id not in known]
    missing = sum(known is None for _, known in scored)
    made = MadePairs(pairs, describe(pairs, group_of), len(scored), missing, len(new), len(pairs) - len(new), len(gone))
    if dry_run:
        return made._replace(stored=0, known=0)
    store.add_preferences([*gone, *new])  # at once: nobody learns from half of the change
    return made
