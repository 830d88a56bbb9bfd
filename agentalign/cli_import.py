"""The command that stores runs which were made elsewhere."""

import argparse
from pathlib import Path

from agentalign.cli_arguments import Commands, add_json, command
from agentalign.cli_output import progress, show, show_json
from agentalign.config.project import Project


def add(commands: Commands) -> None:
    """Declare it."""
    parser = command(
        commands,
        "import",
        "store runs that were made elsewhere",
        run=_import,
        more=(
            "FILE holds one JSON object per line with `messages` and `tools` as the OpenAI API writes them, plain or "
            ".gz; or it is a .parquet file or a folder of `datasets.save_to_disk` with both as JSON text. Every row is stored or "
            "refused with a reason; the same file again stores nothing new. A row whose `split` is not train is kept out of training."
        ),
        examples=(
            "agentalign import chats.jsonl --taskset chat_quality\n"
            "agentalign import runs.jsonl.gz --taskset chat_quality --tools schemas.json\n"
            "agentalign import runs.parquet --taskset chat_quality"
        ),
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("--taskset", required=True, metavar="NAME", help="whose criteria the runs are rated by")
    parser.add_argument("--tools", type=Path, metavar="FILE", help="JSON with function schemas, for rows that only name their tools")
    add_json(parser)


def _import(arguments: argparse.Namespace) -> None:
    from agentalign.environments.taskset import load_taskset
    from agentalign.rollouts.ingest import import_file
    from agentalign.store.store import Store

    project = Project.find()
    taskset = load_taskset(arguments.taskset, project.tasks)
    with Store(project.store_url) as store, progress("import") as tick:
        report = import_file(arguments.file, store, taskset, tools_file=arguments.tools, progress=tick)
    if arguments.json:
        listed = {"duplicates": [d._asdict() for d in report.duplicates], "refused": [r._asdict() for r in report.refused]}
        show_json({**report._asdict(), **listed})
        return
    show(f"{report.read} rows read: {report.stored} stored, {report.known} known from an earlier import, {len(report.refused)} refused")
    if report.forgotten:
        show(f"{report.forgotten} were forgotten earlier (`agentalign forget`) and were not kept again")
    if report.duplicates:
        show(f"{len(report.duplicates)} of the stored equal another run, the first in row {report.duplicates[0].row}")
    if report.held_out:
        show(f"{report.held_out} say of themselves that they are of another split than train: nothing is trained on them")
    if report.without_tools:
        unused = " The schemas of --tools are given only to rows that name their tools." if arguments.tools else ""
        show(
            f"{report.without_tools} call tools and offer none: training on them would show the model no tools. Give each row its `tools`."
            + unused
        )
    for refusal in report.refused[:10]:
        show(f"  row {refusal.row}: {refusal.reason}")
    if len(report.refused) > 10:
        show(f"  and {len(report.refused) - 10} more; --json lists all")
