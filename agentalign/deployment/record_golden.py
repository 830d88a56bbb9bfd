"""Golden prompts for a version that came without them: somebody else's adapter, or one from before they were kept.

The saved files are loaded as training would load them, act on held-out tasks, and what they answer is written down beside the version.
Surprise: this says what the adapter computes *here, now*. It cannot know what it computed where it was trained, and the record says so;
what it can prove is that a server, or this machine next year, does the same.
"""

from agentalign.config.project import Project
from agentalign.environments.taskset import find_taskset, load_taskset
from agentalign.environments.worker import WorkerPool
from agentalign.errors import RegistryError
from agentalign.records.base import now
from agentalign.records.golden import Golden
from agentalign.rollouts.bundle import Bundle, open_bundle, require_runnable
from agentalign.rollouts.golden import GOLDEN_FILE, golden_turns
from agentalign.store.registry import Registry
from agentalign.store.store import Store
from agentalign.training.model import Model


def read_golden(bundle: Bundle) -> Golden | None:
    """The golden turns of a version: those that training left in it, else those that were recorded later; None where there are none."""
    file = bundle.folder / GOLDEN_FILE
    if not file.is_file():
        return Registry(bundle.folder.parents[1]).golden(bundle.card.ref)
    try:
        return Golden.model_validate_json(file.read_bytes())
    except ValueError as error:
        raise RegistryError(f"{file} cannot be read, so nothing can be held against it. Save the adapter anew.") from error


def record_golden(project: Project, ref: str) -> Golden:
    """Record golden turns of a saved version, and keep them beside it.

    Raises:
        RegistryError: it has some, or its files, base or template are not what the card says.
        TasksetError: its taskset is not here.
        DataError: there is nothing that it could be asked.
    """
    bundle = open_bundle(project, ref)
    require_runnable(project, bundle)
    if read_golden(bundle) is not None:
        raise RegistryError(f"{bundle.card.ref} has its golden prompts. Hold it against them: `agentalign deploy-check {bundle.card.ref}`.")
    taskset = load_taskset(find_taskset(bundle.card.taskset, project.tasks), project.tasks)
    model = Model.load(bundle.base, quantization=bundle.card.quantization)
    model.load_adapter("policy", bundle.folder)
    with Store(project.store_url) as store, WorkerPool(taskset) as pool:
        found = golden_turns(model, "policy", taskset, pool, store)
    golden = found.model_copy(update={"recorded": now()})
    Registry(project.adapters).keep(bundle.card.ref, golden)
    return golden
