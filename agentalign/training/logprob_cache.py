"""Log-probabilities that are asked for again: the reference's, in every run of a recipe on the same data.

One file per owner (base, precision and adapter, by digest), values by the digest of their token ids. A file that cannot be read is
made anew: nothing in it is worth more than the time it took. Numbers that are not finite are never kept: what went wrong once may not
go wrong again.
"""

import hashlib
import logging
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from agentalign.training import ranks
from agentalign.training.model import Model

logger = logging.getLogger("agentalign")


def owner_of(model: Model, adapter: str) -> str:
    """Digest of everything that decides a log-prob: base, quantization, precision, trees or rows, and the adapter's form and weights."""
    form = model.adapter_config(adapter)
    about = [model.base.digest, model.quantization, model.dtype, model.base.template_kwargs, model.tree_capable]
    about += ["shards"] if ranks.sharded() else []  # quantized in main memory, which need not round as a card does
    # A rank or alpha may be written 8 or 8.0; the scale of the same weights is what they decide.
    found = hashlib.sha256("/".join(map(str, [*about, form.r, float(form.alpha), form.targets])).encode())
    for key, value in sorted(model.adapter_tensors(adapter).items()):
        found.update(key.encode())
        found.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def cached(folder: Path, owner: str, names: Sequence[str], compute: Callable[[list[int]], list[Tensor]]) -> list[Tensor]:
    """A tensor per name, from disk where it is known.

    Args:
        names: digest of each item's content.
        compute: gets the indices of the items that are not known, and returns their tensors in that order.
    """
    path = folder / f"{owner}.safetensors"
    known = ranks.first(lambda: _read(path))
    missing = [index for index, name in enumerate(names) if name not in known]
    if missing:
        made = compute(missing)
        known |= {names[index]: value for index, value in zip(missing, made, strict=True)}
        if ranks.rank() == 0:
            _write(path, known)
    logger.info("log-probabilities: %d of %d were known", len(names) - len(missing), len(names))
    return [known[name] for name in names]


def _read(path: Path) -> dict[str, Tensor]:
    if not path.exists():
        return {}
    try:
        found: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        logger.warning("%s cannot be read (%s); it is made anew", path, error)
        return {}
    return {name: value for name, value in found.items() if value.isfinite().all()}


def _write(path: Path, values: dict[str, Tensor]) -> None:
    """Whole or not at all; a disk that is full costs the cache, not the training."""
    partial = path.with_suffix(f".{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: value.contiguous() for name, value in values.items() if value.isfinite().all()}, partial)
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        logger.warning("%s was not written (%s); these log-probabilities will be computed again", path, error)
        with suppress(OSError):
            partial.unlink(missing_ok=True)
