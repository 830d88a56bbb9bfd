"""Commands about runs: rollout, score, runs, pairs; import is `cli_import`."""

import argparse
import os
from pathlib import Path

from agentalign import cli_import
from agentalign.cli_arguments import Commands, add_filters, add_json, at_least, command, run_filter, temperature, verbs
from agentalign.cli_output import plain, progress, say, show, show_json, show_table
from agentalign.config.project import Project
from agentalign.errors import UsageError


def add(commands: Commands) -> None:
    """Declare them in the order of use."""
    _add_rollout(commands)
    cli_import.add(commands)
    parser = command(
        commands,
        "score",
        "apply a taskset's checks to its stored runs",
        run=_score,
        examples=("agentalign score order_desk --only-new\nagentalign score order_desk --criteria policy_kept,economy"),
    )
    parser.add_argument("taskset")
    parser.add_argument("--only-new", action="store_true", help="only runs without a current score, or whose check broke")
    parser.add_argument("--criteria", metavar="A,B", help="only these criteria")
    add_json(parser)
    _add_runs(commands)

    parser = command(
        commands,
        "pairs",
        "make preferences from scores",
        run=_pairs,
        more=(
            "DPO and reward models learn from them. Whole runs of one task are compared, steps where two runs part, "
            "and steps where an expert acts otherwise."
        ),
        examples="agentalign pairs order_desk --dry-run\nagentalign pairs order_desk --margin 0.3 --level step",
    )
    parser.add_argument("taskset")
    parser.add_argument("--margin", type=float, default=0.25, help="least difference of the overall values; default: %(default)s")
    parser.add_argument("--per-task", type=at_least(1), default=4, metavar="N", help="most pairs of a task and kind; default: %(default)s")
    parser.add_argument("--cap", type=at_least(1), default=200, metavar="N", help="most pairs of a family's branch; default: %(default)s")
    parser.add_argument("--level", choices=("run", "step", "both"), default="both", help="default: %(default)s")
    parser.add_argument("--split", default="train", help="runs of this split, and imported ones; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="draws which pairs are kept; default: %(default)s")
    parser.add_argument("--dry-run", action="store_true", help="count them, store nothing")
    add_json(parser)


def _add_rollout(commands: Commands) -> None:
    parser = command(
        commands,
        "rollout",
        "let a policy act on tasks, and store its runs",
        run=_rollout,
        more=(
            "The policy is an adapter, the bare base, the taskset's expert, or a model on an OpenAI-compatible server "
            "(its key is read from OPENAI_API_KEY)."
        ),
        examples=(
            "agentalign rollout order_desk --policy expert --split train --tag expert\n"
            "agentalign rollout order_desk --adapter order_desk@1 --n 4 --limit 100\n"
            "agentalign rollout order_desk --endpoint http://localhost:8000/v1 --model my-model --split dev"
        ),
    )
    parser.add_argument("taskset")
    who = parser.add_mutually_exclusive_group(required=True)
    who.add_argument("--adapter", metavar="NAME@V", help="an adapter, such as order_desk, order_desk@3 or order_desk@production")
    who.add_argument("--policy", choices=("expert", "base"), help="the taskset's expert.py, or the bare base model")
    who.add_argument("--endpoint", metavar="URL", help="a server, such as http://localhost:8000/v1")
    parser.add_argument("--model", metavar="NAME", help="with --endpoint: the model to ask for")
    parser.add_argument("--split", default="train", help="default: %(default)s")
    parser.add_argument("--tag", help="only tasks with this tag")
    parser.add_argument("--limit", type=at_least(1), metavar="N", help="so many tasks of the split, drawn by chance, always the same")
    parser.add_argument("--n", type=at_least(1), default=1, metavar="N", help="runs per task; default: %(default)s")
    parser.add_argument("--temperature", type=temperature, default=0.8, help="0 takes the likeliest token; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--batch", type=at_least(1), metavar="N", help="runs under way at once; default: what suits model and memory")
    add_base(parser)
    add_json(parser)


def add_base(parser: argparse.ArgumentParser) -> None:
    """Which base "base" is."""
    parser.add_argument("--base", default="smollm2-135m", help="what the bare base is: a hub name or a folder; default: %(default)s")
    parser.add_argument(
        "--quantization", choices=("nf4", "int8", "none"), default="nf4", help="how the bare base is held; default: %(default)s"
    )


def _add_runs(commands: Commands) -> None:
    examples = "agentalign runs\nagentalign runs --taskset order_desk --stop error\nagentalign runs show 3fa9"
    runs = verbs(command(commands, "runs", "look at stored runs", examples=examples))
    parser = command(
        runs,
        "list",
        "list runs, newest first",
        run=_runs_list,
        examples=(
            "agentalign runs\n"
            "agentalign runs list --taskset order_desk --policy order_desk@2 --stop max_turns\n"
            "agentalign runs list --search refund --errors --json\n"
            "agentalign runs list --taskset order_desk --criterion tone@1 --score-at-most 2"
        ),
    )
    add_filters(parser)
    parser.add_argument("--limit", type=at_least(1), default=20, metavar="N", help="default: %(default)s")
    parser.add_argument("--after", metavar="PLACE", help="go on where a list ended")
    add_json(parser)
    parser = command(
        runs,
        "show",
        "show one run with its scores",
        run=_runs_show,
        more="The beginning of an id is enough.",
        examples="agentalign runs show 3fa9\nagentalign runs show 3fa9 --tokens",
    )
    parser.add_argument("id")
    parser.add_argument("--tokens", action="store_true", help="as training sees it: trained tokens in colour")
    parser.add_argument("--base", help="with --tokens: whose tokens; default: the base that made the run, else the built-in one")
    add_json(parser)
    parser = command(
        runs,
        "export",
        "write runs as a file that `import` reads",
        run=_runs_export,
        more="As Parquet where its name ends so, for `datasets`, else as JSON Lines.",
        examples="agentalign runs export good.jsonl --taskset order_desk --kind expert",
    )
    parser.add_argument("file", type=Path)
    add_filters(parser)


def _rollout(arguments: argparse.Namespace) -> None:
    from agentalign.environments.taskset import load_taskset
    from agentalign.environments.worker import WorkerPool
    from agentalign.rollouts.collect import choose_jobs, choose_policy, collect
    from agentalign.store.store import Store

    if bool(arguments.endpoint) != bool(arguments.model):
        raise UsageError("--endpoint URL and --model NAME go together: a server, and the model to ask it for. Give both or neither.")
    project = Project.find()
    taskset = load_taskset(arguments.taskset, project.tasks)
    jobs = choose_jobs(taskset, arguments.split, arguments.tag, limit=arguments.limit, samples=arguments.n)
    with Store(project.store_url) as store, WorkerPool(taskset) as pool, progress("rollout") as tick:
        policy = choose_policy(
            project,
            pool,
            adapter=arguments.adapter,
            policy=arguments.policy,
            endpoint=arguments.endpoint,
            model=arguments.model,
            base=arguments.base,
            quantization=arguments.quantization,
            temperature=arguments.temperature,
            seed=arguments.seed,
            api_key=os.environ.get("OPENAI_API_KEY", "none"),
        )
        made = collect(store, taskset, policy, jobs, pool=pool, seed=arguments.seed, batch=arguments.batch, progress=tick)
    stops = made.stop_reasons()
    if arguments.json:
        counts = {"stored": made.stored, "known": made.known, "forgotten": made.forgotten}
        show_json({**counts, "stop_reasons": stops, "ids": [run.id for run in made.runs]})
        return
    show(f"{made.stored} runs stored, {made.known} were there already; they ended: {_counted(stops)}")
    if made.forgotten:
        show(f"{made.forgotten} are equal to runs that were forgotten, and were not kept again")
    if made.known and not made.stored:
        say("The same policy, tasks and seed give the same runs. Give another --seed for new ones.")
    errors = [run for run in made.runs if run.error]
    if errors:
        say(f"{len(errors)} runs broke; the first, {errors[0].id[:12]}: {errors[0].error.strip().splitlines()[-1]}")


def _score(arguments: argparse.Namespace) -> None:
    from agentalign.environments.taskset import load_taskset
    from agentalign.environments.worker import WorkerPool
    from agentalign.scoring.stored import score_stored
    from agentalign.store.store import Store

    project = Project.find()
    taskset = load_taskset(arguments.taskset, project.tasks)
    criteria = arguments.criteria.split(",") if arguments.criteria else None
    with Store(project.store_url) as store, WorkerPool(taskset) as pool, progress("score") as tick:
        report = score_stored(store, taskset, pool=pool, criteria=criteria, only_new=arguments.only_new, progress=tick)
    if arguments.json:
        show_json(report._asdict())
        return
    show_table(("criterion", "mean"), list(report.means.items()), empty="Nothing was scored.")
    say(f"{report.runs} runs scored, {report.scores} scores stored.")
    if report.errors:
        say(f"{report.errors} checks broke; the first: {report.first_error}")


def _runs_list(arguments: argparse.Namespace) -> None:
    from agentalign.scoring.stored import overalls
    from agentalign.store.store import Store

    project = Project.find()
    with Store(project.store_url) as store:
        page = store.runs(run_filter(arguments), limit=arguments.limit, after=arguments.after)
        values = overalls(store, [row.id for row in page.rows], project.tasks)
    if arguments.json:
        rows = [{**row._asdict(), "overall": values[row.id]} for row in page.rows]
        show_json({"runs": rows, "next": page.next, "total": page.total, "is_exact": page.is_exact})
        return
    header = ("run", "taskset", "task", "split", "policy", "kind", "ended", "steps", "calls", "overall")
    table = [
        (
            row.id[:12],
            row.taskset,
            row.task_id,
            row.split,
            row.policy,
            row.origin_kind,
            row.stop_reason,
            row.n_steps,
            row.n_calls,
            values[row.id],
        )
        for row in page.rows
    ]
    show_table(header, table, empty="No run is so. `agentalign rollout` makes runs, `agentalign import` brings them in.")
    if page.next:
        say(f"{len(page.rows)} of {page.total}{'' if page.is_exact else ' or more'} runs; the next: --after {page.next}")


def _runs_show(arguments: argparse.Namespace) -> None:
    from agentalign.store.store import Store

    project = Project.find()
    with Store(project.store_url) as store:
        run = store.trajectory(store.resolve_id(arguments.id))
        if arguments.tokens:
            from agentalign.rollouts.token_view import token_view

            print(token_view(project, store, run.id, arguments.base))
            return
        scores = store.scores([run.id])
    if arguments.json:
        show_json({**run.model_dump(mode="json"), "scores": [score.model_dump(mode="json") for score in scores]})
        return
    show(
        f"run {run.id} of {run.taskset}, task {run.task_id or '-'}; {run.origin.kind} by {run.origin.reference}; "
        f"ended: {run.stop_reason.value}"
    )
    for message in run.messages:
        mark = " (error)" if message.error else ""
        show(f"\n[{message.role}{' ' + message.name if message.name else ''}{mark}]")
        for text in (message.reasoning and f"(thinks) {message.reasoning}", message.content):
            if text:
                show(text)
        for call in message.tool_calls:
            show(f"-> {call.name} {call.arguments}")
    if run.error:
        show(f"\n{run.error}")
    show()
    rows = [(s.criterion, s.step, s.status.value if s.value is None else s.value, s.rater_kind, s.rater, s.note) for s in scores]
    header = ("criterion", "step", "value", "kind", "rater", "note")
    show_table(header, rows, empty="Not scored yet: `agentalign score`, or rate it in `agentalign ui`.")


def _runs_export(arguments: argparse.Namespace) -> None:
    from agentalign.rollouts.ingest import write_runs
    from agentalign.store.store import Store

    with Store(Project.find().store_url) as store:
        written = write_runs(store, run_filter(arguments), arguments.file)
    say(f"{written.runs} runs are in {arguments.file}.")
    if written.left_out:
        say(f"{written.left_out} corrected steps and proposals are left out: as runs they would break off. --kind correction writes them.")


def _pairs(arguments: argparse.Namespace) -> None:
    from agentalign.environments.taskset import load_taskset
    from agentalign.scoring.stored import make_pairs
    from agentalign.store.store import Store

    project = Project.find()
    taskset = load_taskset(arguments.taskset, project.tasks)
    with Store(project.store_url) as store:
        made = make_pairs(
            store,
            taskset,
            split=arguments.split,
            margin=arguments.margin,
            per_task=arguments.per_task,
            level=arguments.level,
            cap=arguments.cap,
            seed=arguments.seed,
            dry_run=arguments.dry_run,
        )
    if arguments.json:
        figures = {"stored": made.stored, "known": made.known, "withdrawn": made.withdrawn, "runs": made.runs, "counts": made.counts}
        show_json({"pairs": len(made.preferences), **figures})
        return
    rows = [(group, name, count) for group, counts in made.counts.items() for name, count in counts.items()]
    empty = (
        f"No two runs of a task are {arguments.margin} apart by the criteria that both have answers to. "
        "Make more runs of the same tasks, rate several of each, or lower --margin."
    )
    if made.without_overall:
        empty = f"No pair yet: {made.without_overall} of {made.runs} runs have no overall value. `agentalign score {taskset.name}` first."
    show_table(("by", "which", "pairs"), rows, empty=empty)
    done = "counted only" if arguments.dry_run else f"{made.stored} stored, {made.known} known, {made.withdrawn} of before taken back"
    say(f"{len(made.preferences)} pairs from {made.runs} runs, {made.without_overall} of them without an overall value; {done}.")


def _counted(counts: dict[str, int]) -> str:
    return plain(", ".join(f"{count} {name}" for name, count in counts.items()) or "none")
