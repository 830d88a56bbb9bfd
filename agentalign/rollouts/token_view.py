"""What training would see of a stored run: its tokens, the trained ones in colour."""

from agentalign.config.project import Project
from agentalign.errors import AgentAlignError
from agentalign.rollouts.bundle import open_bundle
from agentalign.store.store import Store
from agentalign.training.base import prepare_base
from agentalign.training.dialect import Dialect
from agentalign.training.render import colour_print, render


def token_view(project: Project, store: Store, id: str, base: str | None = None) -> str:
    """The run as text with ANSI colours.

    Args:
        base: whose tokens; default: the base of the adapter that made the run, else the built-in one.
    """
    run = store.trajectory(id)
    if base is not None:
        dialect = Dialect.load(prepare_base(base, project.cache))
    else:
        try:
            dialect = Dialect.load(open_bundle(project, run.origin.reference).base)
        except AgentAlignError:  # made by an expert, a person or a server
            dialect = Dialect.load(prepare_base("smollm2-135m", project.cache))
    return colour_print(render(run, dialect, tokens=store.tokens(run.id), max_tokens=None), dialect)
