"""A base in memory with its adapters and the thread that works on it: what a server and the playground have in common.

Surprise: on a CPU the base answers from plain weights that hold exactly what its quantized weights hold: the same model, faster.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from agentalign.config.project import Project
from agentalign.deployment.serving.adapters import Adapters
from agentalign.deployment.serving.worker import Worker
from agentalign.rollouts.bundle import Bundle
from agentalign.training.continuous import Batch
from agentalign.training.dialect import Dialect
from agentalign.training.generate import Generator
from agentalign.training.mixed_lora import MixedLora
from agentalign.training.model import Model
from agentalign.training.threads import apart


class Engine(NamedTuple):
    """What answers. The worker is not started yet."""

    bundle: Bundle
    """Of the adapter that named the base."""
    dialect: Dialect
    generator: Generator
    adapters: Adapters
    worker: Worker


def open_engine(
    project: Project,
    bundle: Bundle,
    *,
    running: int,
    kept: int,
    waiting: int,
    loaded: int,
    device: str = "auto",
    told: Callable[[str], None] = lambda _step: None,
) -> Engine:
    """Load the bundle's base; adapters come when they are asked for.

    Args:
        running: requests in the batch.
        kept: rows that stay behind for requests that go on from them.
        waiting: requests that may wait for a row.
        loaded: adapters in memory.
        told: what is being done now, in words, since this takes a while.
    """
    dialect, generator = apart(lambda: _loaded(bundle, device, told))
    lora = MixedLora(generator.model)
    worker = Worker(Batch(generator, lora, running=running, kept=kept), max_waiting=waiting)
    adapters = Adapters(project, bundle.base, lora, worker, quantization=bundle.card.quantization, max_loaded=loaded)
    return Engine(bundle, dialect, generator, adapters, worker)


def _loaded(bundle: Bundle, device: str, told: Callable[[str], None]) -> tuple[Dialect, Generator]:
    told(f"loading {bundle.base.name}")
    model = Model.load(bundle.base, quantization=bundle.card.quantization, device=device)
    plain = model.device.type == "cpu" and model.quantization != "none"
    if plain:
        told("writing its weights out for this CPU")
    network = model.merged_copy(None) if plain else model.network
    return model.dialect, Generator(network, model.dialect.stop_ids, model.dialect.pad_id)


def begin(engine: Engine, refs: Sequence[str]) -> None:
    """Start the worker and bring these adapters into memory. Where one cannot be served the worker ends, and the base can be forgotten.

    Raises:
        RegistryError: an adapter that cannot be served.
    """
    engine.worker.start()
    try:
        for ref in refs:
            version = engine.adapters.choose(ref, None)
            engine.adapters.acquire(version)
            engine.adapters.release(version)
    except BaseException:
        engine.worker.stop()
        raise
