"""Commands that make adapters better and say whether they are: train, eval."""

import argparse
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from agentalign.cli_arguments import Commands, add_json, at_least, command, temperature, verbs
from agentalign.cli_output import duration, progress, say, show, show_json, show_table
from agentalign.cli_runs import add_base
from agentalign.config.project import Project
from agentalign.errors import UsageError

if TYPE_CHECKING:
    from agentalign.config.training import TrainingConfig
    from agentalign.recipes.dry_run import DryRun

RECIPES = {
    "sft": ("SFTConfig", "learn to do what good runs did"),
    "reward": ("RewardConfig", "learn to tell better runs from worse ones"),
    "dpo": ("DPOConfig", "learn which of two runs, or steps, is better"),
    "kto": ("KTOConfig", "learn from runs that are good or bad by themselves"),
    "ppo": ("PPOConfig", "act, be scored, move towards what scored better"),
}


def add(commands: Commands) -> None:
    """Declare them in the order of use."""
    examples = "agentalign train sft --help\nagentalign train sft --taskset order_desk\nagentalign train dpo dpo.yaml --beta 0.2 --dry-run"
    more = "Settings come from a YAML file, from flags, or from both; a flag wins. The same command again goes on where it stopped."
    recipes = verbs(command(commands, "train", "train an adapter with a recipe", more=more, examples=examples), "recipes")
    for name, (_, help) in RECIPES.items():
        recipes.add_parser(name, help=help, add_help=False).set_defaults(run=_train, recipe=name)

    more = "Tasks of the split are acted out, scored and summed up with intervals. With --against, both are compared task by task."
    examples = (
        "agentalign eval order_desk\n"
        "agentalign eval order_desk@3 --against order_desk@production\n"
        "agentalign eval base --taskset order_desk"
    )
    parser = command(commands, "eval", "measure an adapter, alone or against another", run=_eval, more=more, examples=examples)
    parser.add_argument("name", metavar="NAME", help="an adapter, such as order_desk@3, or base")
    parser.add_argument("--against", metavar="NAME", help="another adapter, or base")
    parser.add_argument("--taskset", metavar="NAME", help="default: the adapter's own")
    parser.add_argument("--split", default="test", help="choose by dev, report test; default: %(default)s")
    parser.add_argument("--samples", type=at_least(1), default=1, metavar="N", help="runs per task; default: %(default)s")
    parser.add_argument("--limit", type=at_least(1), metavar="N", help="so many tasks of the split, drawn by chance, always the same")
    parser.add_argument("--temperature", type=temperature, default=0.0, help="0 takes the likeliest token; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    add_base(parser)
    add_json(parser)


def _train(arguments: argparse.Namespace) -> None:
    file, flags = _read_words(arguments.recipe, arguments.dials)
    if flags.keys() & {"help", "h"}:
        _show_dials(arguments.recipe)
        return
    from agentalign import strict_yaml
    from agentalign.config.load import COMMAND_LINE, resolve

    dry_run, as_json = (flags.pop(name, None) is not None for name in ("dry_run", "json"))
    if as_json and not dry_run:
        raise UsageError("--json is about what --dry-run says. Give both, or neither.")
    config = resolve(_config(arguments.recipe), strict_yaml.load(file) if file else None, flags, str(file or COMMAND_LINE))
    from agentalign.training import ranks

    ranks.start()
    done = import_module(f"agentalign.recipes.{arguments.recipe}").run(config, Project.find(), dry_run=dry_run)
    speaks = ranks.rank() == 0
    ranks.stop()
    if not speaks:
        return
    if dry_run:
        show_json(_as_json(done)) if as_json else _show_dry_run(done)
        return
    show(done.adapter)
    say(f"Training {done.id} is {done.status}{': ' + done.note if done.note else ''}. Next: agentalign eval {done.adapter}")


def _read_words(recipe: str, words: Sequence[str]) -> tuple[Path | None, dict[str, str]]:
    """[FILE] --dial value --dial=value; a dial without a value is set to true."""
    file, flags, waiting = None, {}, list(words)
    while waiting:
        word = waiting.pop(0)
        if word.startswith("-") and word.lstrip("-"):
            name, equals, value = word.lstrip("-").partition("=")
            name = name.replace("-", "_")
            takes_value = name not in ("dry_run", "json", "help", "h") and bool(waiting) and not waiting[0].startswith("--")
            flags[name] = value if equals else waiting.pop(0) if takes_value else "true"
        elif file is None:
            file = Path(word)
        else:
            raise UsageError(f"train {recipe} takes one file, but got {file} and {word}. Write other settings as --name value.")
    return file, flags


def _config(recipe: str) -> "type[TrainingConfig]":
    config: type[TrainingConfig] = getattr(import_module(f"agentalign.config.{recipe}"), RECIPES[recipe][0])
    return config


def _show_dials(recipe: str) -> None:
    from agentalign.config.load import describe

    show(f"usage: agentalign train {recipe} [FILE.yaml] [--dry-run [--json]] [--DIAL VALUE ...]\n")
    show(f"{RECIPES[recipe][1].capitalize()}.\n\n  --dry-run\n      say what would be done, and how long it may take; train nothing")
    for dial in describe(_config(recipe)):
        default = "required" if dial.required else f"default: {_written(dial.default)}"
        show(f"  --{dial.name}  {dial.type}  ({default})\n      {dial.doc}")
    show(f"\nexamples:\n  agentalign train {recipe} --taskset hello --dry-run\n  agentalign train {recipe} {recipe}.yaml --seed 1")


def _written(value: object) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(str(item) for item in value) + "]"
    return {None: "null", True: "true", False: "false"}.get(value, str(value)) if isinstance(value, bool | None) else str(value)


def _as_json(done: "DryRun") -> dict[str, object]:
    stats, refused = done.stats._asdict(), [refusal._asdict() for refusal in done.refused]
    data: dict[str, object] = {"data": list(done.data.ids), "labels": dict(done.data.labels)}
    return {**done._asdict(), "stats": stats, "refused": refused, "training": done.training.model_dump(mode="json"), **data}


def _show_dry_run(done: "DryRun") -> None:
    stats = done.stats
    show(f"{done.recipe}: {', '.join(f'{count} {what}' for what, count in done.items.items())}; {done.steps} optimizer steps")
    if stats.tokens:
        show(
            f"{stats.tokens} tokens in {stats.runs} runs, {stats.trainable / stats.tokens:.0%} of them trainable; the longest run has "
            f"{stats.longest}; shared beginnings save a factor of {stats.sharing:.2f}"
        )
    show_table(("tokens up to", "runs"), stats.histogram, empty="")
    show(f"training {done.training.id}, of {len(done.data.ids)} ids with digest {done.training.data_digest[:12]}")
    # Without stored runs there are no tokens to reckon with: it learns from what it does.
    seconds = duration(done.seconds) if stats.tokens else "time not known before it acts"
    copy = f", and {done.copy_gb:.1f} GB for the copy that acts, where there is room" if done.copy_gb else ""
    show(f"estimate: {seconds}, {done.memory_gb:.1f} GB{copy} (within a factor of two)")
    for refusal in done.refused[:10]:
        show(f"refused: {refusal.reason}")
    if len(done.refused) > 10:
        show(f"and {len(done.refused) - 10} more are refused")


def _eval(arguments: argparse.Namespace) -> None:
    from agentalign.evaluation.run_eval import EvalPlan, evaluate
    from agentalign.store.store import Store

    project = Project.find()
    plan = EvalPlan(
        arguments.split, arguments.samples, arguments.limit, arguments.temperature, arguments.seed, arguments.base, arguments.quantization
    )
    with Store(project.store_url) as store, progress("eval") as tick:
        done = evaluate(project, store, arguments.name, against=arguments.against, taskset=arguments.taskset, plan=plan, progress=tick)
    for one in (done.evaluation, done.against):
        if one is not None:
            for sentence in one.trouble:
                say(f"{one.adapter}: {sentence}")
    if done.comparison and done.comparison.unpaired:
        say(f"{done.comparison.unpaired} tasks have a result on one side only; they are in no figure of the comparison.")
    for sentence in done.comparison.notes if done.comparison else ():
        say(sentence)
    if arguments.json:
        comparison = done.comparison.model_dump(mode="json") if done.comparison else None
        show_json({"evaluation": done.evaluation.model_dump(mode="json"), "comparison": comparison, "report": done.report.html})
        return
    groups = [group for group in (done.evaluation.seen, done.evaluation.unseen, *done.evaluation.families) if group]
    rows = [(group.name, group.n, *_interval(group.success)) for group in groups]
    show_table(("tasks of", "n", "success", "low", "high"), rows, empty="")
    show()
    criteria = [(name, rate.n, *_interval(rate)) for name, rate in done.evaluation.headline.criteria.items()]
    show_table(("criterion", "n", "mean", "low", "high"), criteria, empty="No criterion was answered.")
    if done.comparison:
        show()
        parts = [done.comparison.headline, *([done.comparison.unseen] if done.comparison.unseen else []), *done.comparison.families]
        table = [(p.name, p.before, p.after, p.success.delta, p.success.low, p.success.high, p.success.verdict) for p in parts]
        show_table((f"against {done.comparison.before}", "before", "after", "change", "low", "high", ""), table, empty="")
    say(f"The report is {done.report.html}")


def _interval(rate: "object") -> tuple[float, float, float]:
    return rate.mean, rate.low, rate.high  # type: ignore[attr-defined]
