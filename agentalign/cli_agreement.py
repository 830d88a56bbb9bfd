"""The command about raters: agreement."""

import argparse
from typing import TYPE_CHECKING

from agentalign.cli_arguments import Commands, add_json, command
from agentalign.cli_output import say, show, show_json, show_table
from agentalign.config.project import Project

if TYPE_CHECKING:
    from agentalign.scoring.agreement import Estimate
    from agentalign.scoring.intervals import Share


def add(commands: Commands) -> None:
    """Declare it."""
    parser = command(
        commands,
        "agreement",
        "see how far raters agree",
        run=_agreement,
        more=(
            "Krippendorff's alpha per criterion over people, weighted kappa for every two raters, and each person's habits, with "
            "intervals and counts. Below 20 items nothing is said. Disputes are decided in `agentalign ui`."
        ),
        examples="agentalign agreement order_desk\nagentalign agreement order_desk --json",
    )
    parser.add_argument("taskset")
    add_json(parser)


def _agreement(arguments: argparse.Namespace) -> None:
    from agentalign.environments.taskset import find_taskset, load_criteria
    from agentalign.scoring.agreement_report import agreement_report, stored_panel
    from agentalign.store.store import Store

    project = Project.find()
    criteria = load_criteria(find_taskset(arguments.taskset, project.tasks) / "criteria.yaml")
    with Store(project.store_url) as store:
        report = agreement_report(stored_panel(store, arguments.taskset), arguments.taskset, criteria)
    if arguments.json:
        show_json(report.model_dump(mode="json"))
        return
    rows = [
        (q.question.criterion, q.level, q.metric, _figure(q.alpha), q.alpha.n, q.shared, q.split, q.open, q.decided)
        for q in report.questions
    ]
    header = ("criterion", "of", "metric", "alpha", "n", "shared", "split", "open", "decided")
    show_table(header, rows, empty="Nobody has rated or compared runs of this taskset. `agentalign ui` is where people do.")
    pairs = [
        (q.question.criterion, q.level, f"{k.first.kind} {k.first.name}", f"{k.second.kind} {k.second.name}", _figure(k.kappa), k.kappa.n)
        for q in report.questions
        for k in q.kappas
    ]
    if pairs:
        show()
        show_table(("criterion", "of", "rater", "and", "kappa", "n"), pairs, empty="")
    people = [
        (p.name, p.marks, p.pairs, _share(p.left), _share(p.repeat), _share(p.swapped), _share(p.upheld), p.seconds_per_run)
        for p in report.people
    ]
    if people:
        show()
        show_table(("person", "marks", "pairs", "left side", "repeated alike", "swapped alike", "upheld", "s/run"), people, empty="")
    for person in report.people:
        for flag in person.flags:
            say(f"{person.name} {flag}.")


def _figure(estimate: "Estimate") -> str:
    if estimate.value is None:
        return estimate.why
    interval = "" if estimate.low is None or estimate.high is None else f" [{estimate.low:.2f}, {estimate.high:.2f}]"
    return f"{estimate.value:.2f}{interval}"


def _share(share: "Share | None") -> str:
    return "-" if share is None else f"{share.share:.0%} [{share.low:.0%}, {share.high:.0%}] of {share.n}"
