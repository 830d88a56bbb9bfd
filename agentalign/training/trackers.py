"""Where a training's rows may go beside metrics.jsonl: TensorBoard, trackio or wandb, through one function.

Nothing is sent anywhere unless `report_to` names a tracker, and none of their packages is a dependency.
"""

import importlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from agentalign.errors import ConfigError

logger = logging.getLogger("agentalign")
TrackerName = Literal["none", "tensorboard", "trackio", "wandb"]
Report = Callable[[int, Mapping[str, float]], None]
"""(step, figures): called for every row of metrics.jsonl; after a kill, again for the steps that are done again."""


@contextmanager
def tracker(name: TrackerName, training: str, *, project: str, config: str, folder: Path) -> Iterator[Report]:
    """A tracker that is closed at the end, whatever happens.

    Args:
        training: id of the training: the run's name there. A training that goes on after a kill goes on in the same run.
        project: what runs are grouped by.
        config: the training's settings as JSON text.
        folder: TensorBoard's event files go into its `tensorboard/`.

    Raises:
        ConfigError: the tracker's package is not installed.
    """
    if name == "none":
        yield lambda step, figures: None
    elif name == "tensorboard":
        writer = _imported("torch.utils.tensorboard", name).SummaryWriter(str(folder / "tensorboard"))
        writer.add_text("config", f"```json\n{json.dumps(json.loads(config), indent=1)}\n```")
        try:
            yield _harmless(name, lambda step, figures: _to_tensorboard(writer, step, figures))
        finally:
            _harmless(name, lambda step, figures: writer.close())(0, {})
    else:
        # trackio has wandb's interface.
        package = _imported(name, name)
        options = {"id": training} if name == "wandb" else {}
        package.init(project=project, name=training, config=json.loads(config), resume="allow", **options)
        try:
            yield _harmless(name, lambda step, figures: package.log(dict(figures), step=step))
        finally:
            _harmless(name, lambda step, figures: package.finish())(0, {})


def _harmless(name: str, report: Report) -> Report:
    """A tracker that fails (a full disk, a server that is gone) is told nothing more; metrics.jsonl has it all, and training goes on."""
    failed = False

    def guarded(step: int, figures: Mapping[str, float]) -> None:
        nonlocal failed
        if failed:
            return
        try:
            report(step, figures)
        except Exception as error:  # noqa: BLE001 - what a tracker's package may raise is not ours to know
            failed = True
            logger.warning("%s failed (%s: %s) and gets no more rows; metrics.jsonl has them all", name, type(error).__name__, error)

    return guarded


def _to_tensorboard(writer: Any, step: int, figures: Mapping[str, float]) -> None:
    for name, value in figures.items():
        writer.add_scalar(name, value, step)


def _imported(module: str, name: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(f"report_to: {name} needs the package {name} ({error}). Install it: pip install {name}") from None
