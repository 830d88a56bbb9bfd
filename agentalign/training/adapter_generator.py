"""A generator that speaks as an adapter does: from a merged copy, or, where that does not fit beside the training, from the base itself.

The copy is a whole base in 16 bits: 16 GB for 8B parameters, three times what the quantized base takes. Without it every product restores
quantized weights and adds the adapter's: slower, the same policy, and no more memory than training has already.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from agentalign.training import ranks
from agentalign.training.generate import Generator
from agentalign.training.memory import give_back, is_out_of_memory
from agentalign.training.model import Model

logger = logging.getLogger("agentalign")


def adapter_generator(model: Model, adapter: str) -> Generator:
    """Of an adapter in memory, as its weights are now: they may not change while it is in use. A base in shards is never copied."""
    stop_ids, pad_id = model.dialect.stop_ids, model.dialect.pad_id
    if ranks.sharded():
        return Generator(model.network, stop_ids, pad_id, within=lambda: _speaking(model, adapter), refusal=model.batched_refusal)
    try:
        return Generator(model.merged_copy(adapter), stop_ids, pad_id)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        problem = (str(error) or type(error).__name__).splitlines()[0]
    # Outside of the handler: the error's traceback holds what did fit of the copy.
    model.forget_merged_copy()
    give_back(model.device)
    logger.warning("no memory for a merged copy (%s): the policy acts from the base with its adapter beside, more slowly", problem)
    return Generator(model.network, stop_ids, pad_id, within=lambda: _speaking(model, adapter))


@contextmanager
def _speaking(model: Model, adapter: str) -> Iterator[None]:
    with model.using(adapter), model.precision():
        yield
