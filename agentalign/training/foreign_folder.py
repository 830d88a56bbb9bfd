"""A stranger's adapter folder: looked at, copied within bounds, and refused before a tensor is read wherever that can be known.

Asked in this order: is it a folder of few plain files, all of kinds that an adapter has; is the config strict and plain; does the header
of the weights list exactly the tensors that this base needs; and only then, are the numbers finite. Everything after the first look is
read from our own copy, so that nothing changes under our eyes.
Surprise: PEFT asks none of this. It loads truncated, misnamed, flipped and NaN adapters without an error.
"""

import json
import os
import re
import stat
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from agentalign.errors import AdapterRefusedError, Refusal
from agentalign.training.adapter_files import CONFIG_FILE, WEIGHTS_FILE
from agentalign.training.foreign_config import read_foreign_config, strict_object
from agentalign.training.lora_form import LoraForm

MAX_ENTRIES = 64
MAX_CONFIG_BYTES = 256 * 1024
MAX_WEIGHT_BYTES = 8 * 1024**3
MAX_HEADER_BYTES = 16 * 1024**2
MAX_TENSORS = 65_536
_ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
_KEY = re.compile(r"[A-Za-z0-9_.\-]{1,300}")
_NAME = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.-]{0,99}")
_CODE = (
    ".py", ".pyc", ".so", ".dll", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".npz", ".dill", ".metadata", ".sh",
    ".h5", ".onnx", ".distcp", ".exe", ".js", ".html", ".svg",
)  # fmt: skip
# Beside an adapter's own two files these may lie there; none of them is read.
_HARMLESS = (
    "README.md", "LICENSE", "LICENSE.txt", "NOTICE", ".gitattributes", "card.json", "export.json", "export.sha256", "requirements.txt",
    "chat_template.jinja", "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "generation_config.json", "trainer_state.json", "all_results.json", "train_results.json",
    "eval_results.json",
)  # fmt: skip


class ForeignAdapter(NamedTuple):
    """A folder that passed, read."""

    form: LoraForm
    tensors: dict[str, Tensor]
    """By PEFT's keys; complete, of the right shapes, finite, and not without effect."""
    base: str
    """The base that its config names, "" for none. Only ever shown."""
    ignored: tuple[str, ...]
    """Files that lay beside and were not read."""


def read_foreign(folder: Path, layers: Mapping[str, tuple[int, int]], copy: Path, *, base_names: tuple[str, ...] = ()) -> ForeignAdapter:
    """Read a stranger's folder for one base.

    Args:
        layers: of the base that the team chose: name -> (outputs, inputs) of each linear layer that may be adapted.
        copy: an empty folder of ours; config and weights are copied there and read from there.
        base_names: see `read_foreign_config`.

    Raises:
        AdapterRefusedError: with the reason.
    """
    ignored = require_plain_files(folder)
    config = _bounded_copy(folder / CONFIG_FILE, copy / CONFIG_FILE, MAX_CONFIG_BYTES)
    form, base = read_foreign_config(config.read_bytes(), base_names=base_names)
    expected = form.shapes(layers)
    unknown = set(form.targets) - {key.rsplit(".", 3)[-3] for key in expected}
    if unknown:
        raise AdapterRefusedError(
            Refusal.TARGETS,
            f"{folder / CONFIG_FILE}: target_modules names {', '.join(sorted(unknown))}, and the base has no linear layer of that name. "
            "Name the base that it was trained on.",
        )
    # What this base can need at four bytes a number, and a header: more is never read.
    needed = sum(rows * columns * 4 for rows, columns in expected.values()) + 8 + MAX_HEADER_BYTES
    weights = _bounded_copy(folder / WEIGHTS_FILE, copy / WEIGHTS_FILE, min(needed, MAX_WEIGHT_BYTES))
    require_shapes(read_header(weights), expected, str(folder / WEIGHTS_FILE))
    return ForeignAdapter(form, _values(weights, str(folder / WEIGHTS_FILE)), base, ignored)


def require_plain_files(folder: Path) -> tuple[str, ...]:
    """Names of the harmless files that will not be read; AdapterRefusedError where anything else lies there."""
    try:
        if folder.is_symlink() or not folder.is_dir():
            raise AdapterRefusedError(Refusal.FOLDER, f"{folder} is not a folder. Name the folder that holds {CONFIG_FILE}.")
        with os.scandir(folder) as found:
            entries = list(islice(found, MAX_ENTRIES + 1))
        if len(entries) > MAX_ENTRIES:
            raise AdapterRefusedError(Refusal.FOLDER, f"{folder} holds more than {MAX_ENTRIES} files. Keep the adapter's own files.")
        for entry in entries:
            _require_plain(entry)
    except OSError as error:
        raise AdapterRefusedError(Refusal.FOLDER, f"{folder} cannot be read ({error.strerror}). Fix the rights.") from error
    names = {entry.name for entry in entries}
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if name not in names:
            raise AdapterRefusedError(Refusal.FILE, f"{folder} has no {name}. An adapter is {CONFIG_FILE} and {WEIGHTS_FILE}.")
    return tuple(sorted(names - {CONFIG_FILE, WEIGHTS_FILE}))


def read_header(path: Path) -> dict[str, tuple[int, ...]]:
    """Key -> shape of a safetensors file, from its header alone.

    Raises:
        AdapterRefusedError: a header that is too large, not strict, or does not say where every byte belongs.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little") if size >= 8 else -1
        if not 2 <= length <= size - 8:
            raise _damaged("its length does not fit the file")
        if length > MAX_HEADER_BYTES:
            raise AdapterRefusedError(Refusal.SIZE, f"{WEIGHTS_FILE}: its header has {length} bytes; {MAX_HEADER_BYTES} are allowed.")
        header = strict_object(file.read(length), f"the header of {WEIGHTS_FILE}", Refusal.HEADER)
    header.pop("__metadata__", None)
    if len(header) > MAX_TENSORS:
        raise AdapterRefusedError(Refusal.SIZE, f"{WEIGHTS_FILE}: it lists {len(header)} tensors; {MAX_TENSORS} are allowed.")
    shapes: dict[str, tuple[int, ...]] = {}
    spans: list[tuple[int, int]] = []
    for key, entry in header.items():
        if not _KEY.fullmatch(key):
            raise AdapterRefusedError(
                Refusal.KEYS, f"{WEIGHTS_FILE}: {ascii(key)[:80]} is no tensor's name. Ask its maker for a sound file."
            )
        shapes[key], span = _entry(key, entry)
        spans.append(span)
    end = 0
    for first, last in sorted(spans):
        if first != end:
            raise _damaged("its tensors overlap or leave gaps")
        end = last
    if end != size - 8 - length:
        raise _damaged(f"its tensors end at byte {end} of {size - 8 - length}: it was cut short, or something was added")
    return shapes


def require_shapes(found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, int]], where: str) -> None:
    """AdapterRefusedError where a tensor is missing, has no place in the base, or is of another shape."""
    for what, names in (("missing", expected.keys() - found.keys()), ("without a place in the base", found.keys() - expected.keys())):
        if names:
            raise AdapterRefusedError(
                Refusal.KEYS,
                f"{where}: {len(names)} tensors are {what}, the first {min(names)[:120]}; of {len(expected)} expected. Name the base that "
                "it was trained on, or get a whole copy.",
            )
    wrong = sorted(key for key, shape in expected.items() if found[key] != shape)
    if wrong:
        raise AdapterRefusedError(
            Refusal.SHAPES,
            f"{where}: {wrong[0]} has shape {found[wrong[0]]}, the base needs {expected[wrong[0]]}. Name the base that it was trained on.",
        )


def _require_plain(entry: "os.DirEntry[str]") -> None:
    shown = ascii(entry.name)[:100]
    if entry.is_symlink() or not entry.is_file(follow_symlinks=False):
        raise AdapterRefusedError(
            Refusal.LINK, f"{shown} is a link, a folder or a device; an adapter is plain files beside each other. Remove it."
        )
    lower = entry.name.lower()
    if lower.endswith(_CODE):
        raise AdapterRefusedError(
            Refusal.CODE, f"{shown} can carry code; an adapter's tensors are kept as .safetensors. Remove or convert it."
        )
    if entry.name not in (CONFIG_FILE, WEIGHTS_FILE, *_HARMLESS) or not _NAME.fullmatch(entry.name):
        raise AdapterRefusedError(Refusal.FILE, f"{shown} is no file of a LoRA adapter. Remove it, if you know what it is.")


def _bounded_copy(source: Path, target: Path, limit: int) -> Path:
    try:
        descriptor = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise AdapterRefusedError(
            Refusal.LINK, f"{source} cannot be opened as a plain file ({error.strerror}). Put a plain file there."
        ) from error
    with open(descriptor, "rb") as file, target.open("xb") as copy:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise AdapterRefusedError(Refusal.LINK, f"{source} is no plain file. Put a plain file there.")
        left = limit + 1
        while left and (block := file.read(min(left, 1 << 20))):
            copy.write(block)
            left -= len(block)
        if not left:
            raise AdapterRefusedError(
                Refusal.SIZE,
                f"{source} is larger than {limit} bytes, the most that it can need on this base. Name the base it was trained on.",
            )
    return target


def _entry(key: str, entry: object) -> tuple[tuple[int, ...], tuple[int, int]]:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise _damaged(f"the entry of {key} is none")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _ITEM_BYTES:
        raise AdapterRefusedError(
            Refusal.VALUES, f"{WEIGHTS_FILE}: {key} is made of {json.dumps(dtype)[:40]}; adapters are F32, F16 or BF16. Convert it."
        )
    if not _counts(shape, 4) or not _counts(offsets, 2) or len(offsets) != 2:
        raise _damaged(f"shape or place of {key} is no list of counts")
    bytes_needed = _ITEM_BYTES[dtype]
    for length in shape:
        bytes_needed *= length
    if offsets[1] - offsets[0] != bytes_needed:
        raise _damaged(f"{key} has another number of bytes than its shape says")
    return tuple(shape), (offsets[0], offsets[1])


def _counts(value: object, most: int) -> bool:
    return isinstance(value, list) and len(value) <= most and all(type(item) is int and 0 <= item <= MAX_WEIGHT_BYTES for item in value)


def _values(path: Path, where: str) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise _damaged(ascii(str(error))[1:80]) from error
    bad = sorted(key for key, value in tensors.items() if not torch.isfinite(value).all())
    if bad:
        raise AdapterRefusedError(Refusal.VALUES, f"{where}: {bad[0]} holds NaN or infinity; the file is damaged or its training diverged.")
    if not any(value.any() for key, value in tensors.items() if ".lora_B." in key):
        raise AdapterRefusedError(Refusal.VALUES, f"{where}: every B matrix is zero, so the adapter changes nothing. Get a trained one.")
    return tensors


def _damaged(words: str) -> AdapterRefusedError:
    return AdapterRefusedError(Refusal.HEADER, f"{WEIGHTS_FILE} is damaged: {words}. Get a whole copy from its maker.")
