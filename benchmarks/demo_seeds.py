"""The demo with several seeds, put together: each stage against the one before, paired by task over all seeds, per family.

    .venv/bin/python benchmarks/demo_seeds.py --full --seeds 0 1 2    # hours; every seed is a project of its own in .cache/demo-seeds
    .venv/bin/python benchmarks/demo_seeds.py                         # only puts together what is there

Adapters, samples and orders differ between seeds, the tasks do not. A seed that was cut goes on where it stopped.
"""

import argparse
import itertools
from pathlib import Path

from agentalign.config.project import Project
from agentalign.demo import TASKSET, run
from agentalign.errors import AgentAlignError
from agentalign.evaluation.compare import Comparison, compare_seeds
from agentalign.evaluation.evaluate import Evaluation
from agentalign.evaluation.run_eval import stored_evaluation
from agentalign.store.store import Store

ROOT = Path(".cache/demo-seeds")
STAGES = ("base", "sft", "dpo", "ppo")


def main() -> None:
    """Run what is asked for, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="run the demo for every seed first")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    found: dict[str, list[Evaluation]] = {stage: [] for stage in STAGES}
    for seed in arguments.seeds:
        project = Project.create((ROOT / str(seed)).resolve())
        if arguments.full:
            run(project, "default", seed, every_task=True)
        for stage, evaluation in zip(STAGES, _evaluations(project), strict=False):
            found[stage].append(evaluation)
    seeds = len(found["base"])
    if not seeds:
        print(f"no evaluated base under {ROOT}; run this with --full (hours)")
        return
    # A seed that was cut has its first stages only; what is compared over seeds has to be there for all of them.
    whole = [stage for stage in STAGES if len(found[stage]) == seeds]
    print(f"{seeds} seed(s), {found['base'][0].everything.n} held-out tasks each, greedy")
    for stage in STAGES:
        print(f"{stage:5}", " ".join(f"{100 * one.headline.success.mean:5.1f} %" for one in found[stage]) or "not evaluated")
    for before, after in itertools.pairwise(whole):
        _show(before, after, compare_seeds(found[before], found[after]))


def _evaluations(project: Project) -> list[Evaluation]:
    """Of base, SFT, DPO and PPO on the test tasks, up to the first that is not evaluated yet."""
    with Store(project.store_url) as store:
        # The first of each recipe is the stage; later ones are controls.
        adapters: dict[str, str] = {
            training.recipe: training.adapter for training in reversed(store.trainings(TASKSET)) if training.status == "done"
        }
    found = []
    for stage in STAGES:
        name = "base" if stage == "base" else adapters.get(stage)
        evaluation = stored_evaluation(project, name, TASKSET, "test") if name else None
        if evaluation is None:
            break
        found.append(evaluation)
    return found


def _show(before: str, after: str, found: Comparison) -> None:
    print(f"\n{before} -> {after}")
    for group in (found.headline, found.unseen, *found.families):
        if group is not None:
            change = group.success
            print(
                f"  {group.name:18} {100 * group.before:5.1f} -> {100 * group.after:5.1f} %   {100 * change.delta:+5.1f} "
                f"[{100 * change.low:+.1f}, {100 * change.high:+.1f}]   won {group.won}, lost {group.lost}"
            )


if __name__ == "__main__":
    try:
        main()
    except AgentAlignError as error:
        raise SystemExit(str(error)) from None
