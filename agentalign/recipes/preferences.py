"""Which preferences a recipe may learn from."""

from agentalign.errors import DataError
from agentalign.recipes.workspace import Workspace
from agentalign.records.preference import Preference, in_force
from agentalign.records.trajectory import Trajectory
from agentalign.scoring.corrected import standing
from agentalign.store.filters import RunFilter


def choose_preferences(work: Workspace, criterion: str) -> tuple[list[Preference], dict[str, Trajectory]]:
    """Decided preferences on a criterion among runs of the train split (or imported), and the runs they speak of.

    Raises:
        DataError: there is none.
    """
    stored = work.store.preferences(work.taskset.name, criterion=criterion)
    found = [preference for preference in in_force(stored) if preference.decided]
    wanted = tuple(sorted({item.trajectory for p in found for item in p.items}))
    runs = {r.id: r for r in work.store.trajectories(RunFilter(ids=wanted))} if wanted else {}
    replaced = {r.id for r in runs.values() if r.is_corrected_step} - standing(
        runs.values(), work.store.preferences(work.taskset.name, source="correction")
    ).keys()
    # Dev and test are for judging: a preference on such a run stays out of training, whoever made it.
    usable = [
        p for p in found if all(runs[item.trajectory].split in ("train", "") for item in p.items) and p.items[0].trajectory not in replaced
    ]
    if not usable:
        raise DataError(
            f"there are no decided preferences on '{criterion}' among train runs of taskset '{work.taskset.name}'. Compare runs in "
            f"`agentalign ui`, or make pairs from scores with `agentalign pairs {work.taskset.name}`."
        )
    kept = {item.trajectory for p in usable for item in p.items}
    return usable, {r: t for r, t in runs.items() if r in kept}
