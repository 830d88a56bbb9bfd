"""Crafted adapter folders that must be refused: each spoils a sound one in its own way, and names the reason it must be refused for."""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from agentalign.errors import Refusal

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
Spoil = Callable[[Path, Path], None]
"""(the folder to spoil, a canary file that must never appear)."""


def setting(**changes: Any) -> Spoil:
    def spoil(folder: Path, _canary: Path) -> None:
        (folder / CONFIG).write_text(json.dumps(json.loads((folder / CONFIG).read_text()) | changes))

    return spoil


def text(words: str) -> Spoil:
    return lambda folder, _canary: (folder / CONFIG).write_text(words) and None


def file(name: str, content: bytes = b"x") -> Spoil:
    return lambda folder, _canary: (folder / name).write_bytes(content) and None


def _pickle(name: str) -> Spoil:
    def spoil(folder: Path, canary: Path) -> None:
        # What torch.load or pickle.load would run, written by hand: os.system("touch <canary>").
        (folder / name).write_bytes(b"cos\nsystem\n(S'touch " + str(canary).encode() + b"'\ntR.")
        if name == "adapter_model.bin":
            (folder / WEIGHTS).unlink()  # then PEFT would fall back to it

    return spoil


def _code(folder: Path, canary: Path) -> None:
    (folder / "modeling_lora.py").write_text(f"open({str(canary)!r}, 'w')")


def _linked(name: str, to: str) -> Spoil:
    def spoil(folder: Path, _canary: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(to)

    return spoil


def _sound_link(folder: Path, _canary: Path) -> None:
    (folder / WEIGHTS).rename(folder.parent / "elsewhere")
    (folder / WEIGHTS).symlink_to(folder.parent / "elsewhere")


def _pipe(folder: Path, _canary: Path) -> None:
    (folder / WEIGHTS).unlink()
    os.mkfifo(folder / WEIGHTS)  # reading it would wait for ever


def _many(folder: Path, _canary: Path) -> None:
    for number in range(200):
        (folder / f"README{number}.md").write_text("")


def tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Spoil:
    def spoil(folder: Path, _canary: Path) -> None:
        held = load_file(folder / WEIGHTS)
        change(held)
        save_file(held, folder / WEIGHTS)

    return spoil


def _first(held: dict[str, torch.Tensor], part: str = "lora_B") -> str:
    return next(key for key in sorted(held) if part in key)


def _rename(held: dict[str, torch.Tensor], name: str) -> None:
    held[name] = held.pop(_first(held))


def _set(held: dict[str, torch.Tensor], change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    held[_first(held)] = change(held[_first(held)]).contiguous()


def raw(change: Callable[[bytes], bytes]) -> Spoil:
    return lambda folder, _canary: (folder / WEIGHTS).write_bytes(change((folder / WEIGHTS).read_bytes())) and None


def header(change: Callable[[dict[str, Any]], Any]) -> Spoil:
    def spoil(whole: bytes) -> bytes:
        length = struct.unpack("<Q", whole[:8])[0]
        held = json.loads(whole[8 : 8 + length])
        words = change(held)
        held = words if isinstance(words, str) else json.dumps(held)
        return struct.pack("<Q", len(held)) + held.encode() + whole[8 + length :]

    return raw(spoil)


def _overlap(held: dict[str, Any]) -> None:
    names = sorted(name for name in held if "lora_B" in name)
    twins = next((a, b) for a in names for b in names if a < b and held[a]["shape"] == held[b]["shape"])
    held[twins[1]]["data_offsets"] = held[twins[0]]["data_offsets"]


def _empties(held: dict[str, Any]) -> None:
    held |= {f"base_model.model.x{number}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for number in range(70_000)}


def _huge(folder: Path, _canary: Path) -> None:
    with (folder / WEIGHTS).open("r+b") as handle:
        handle.truncate(5 * 1024**3)  # sparse: nothing on the disk, and five gigabytes to read


HOSTILE: dict[str, tuple[Refusal, Spoil]] = {
    "pickled weights": (Refusal.CODE, _pickle("adapter_model.bin")),
    "pickle beside": (Refusal.CODE, _pickle("training_args.pt")),
    "optimizer state": (Refusal.CODE, _pickle("optimizer.pth")),
    "pickle by another name": (Refusal.CODE, _pickle("scaler.JOBLIB")),
    "distributed checkpoint": (Refusal.CODE, _pickle(".metadata")),
    "python file": (Refusal.CODE, _code),
    "numpy archive": (Refusal.CODE, file("weights.npz")),
    "shell script": (Refusal.CODE, file("install.sh")),
    "second weights": (Refusal.FILE, file("model.safetensors")),
    "base config": (Refusal.FILE, file("config.json", b'{"auto_map": {"AutoModel": "evil--modeling.Evil"}}')),
    "odd name": (Refusal.FILE, file("a b\x1b[31m")),
    "additional template": (Refusal.LINK, lambda folder, _: (folder / "additional_chat_templates").mkdir()),
    "link to a secret": (Refusal.LINK, _linked("README.md", "/etc/passwd")),
    "config by link": (Refusal.LINK, _linked(CONFIG, "/etc/hostname")),
    "weights by link": (Refusal.LINK, _sound_link),
    "named pipe": (Refusal.LINK, _pipe),
    "very many files": (Refusal.FOLDER, _many),
    "no config": (Refusal.FILE, lambda folder, _: (folder / CONFIG).unlink()),
    "no JSON": (Refusal.CONFIG, text("{'peft_type': 'LORA'}")),
    "a list": (Refusal.CONFIG, text("[]")),
    "deep": (Refusal.CONFIG, text('{"a":' * 20_000 + "1" + "}" * 20_000)),
    "deep, but read": (Refusal.CONFIG, text('{"a":' * 600 + "1" + "}" * 600)),
    "nested a little": (Refusal.CONFIG, text('{"a":' * 12 + "{}" + "}" * 12)),
    "key twice": (Refusal.CONFIG, text('{"peft_type": "LORA", "r": 4, "r": 4000}')),
    "NaN alpha": (Refusal.CONFIG, setting(lora_alpha=float("nan"))),
    "very long config": (Refusal.SIZE, text('{"a": "' + "x" * 300_000 + '"}')),
    "unknown key": (Refusal.CONFIG, setting(loader="evil.py")),
    "auto_map": (Refusal.CODE, setting(auto_map={"AutoModelForCausalLM": "modeling.Evil"})),
    "remote code": (Refusal.CODE, setting(trust_remote_code=True)),
    "auto_mapping": (Refusal.CODE, setting(auto_mapping={"base_model_class": "Evil", "parent_library": "evil_library"})),
    "megatron_config": (Refusal.CODE, setting(megatron_config={"a": 1})),
    "megatron_core": (Refusal.CODE, setting(megatron_core="evil_library")),
    "kernel": (Refusal.CODE, setting(kernels={"rms_norm": "evil/kernel"})),
    "revision": (Refusal.CODE, setting(revision="refs/pr/1")),
    "base by path": (Refusal.BASE, setting(base_model_name_or_path="/tmp/evil-base")),
    "base by relative path": (Refusal.BASE, setting(base_model_name_or_path="../evil-base")),
    "base by address": (Refusal.BASE, setting(base_model_name_or_path="https://evil.example/base")),
    "base is a list": (Refusal.BASE, setting(base_model_name_or_path=["a"])),
    "another kind": (Refusal.KIND, setting(peft_type="LOHA")),
    "another task": (Refusal.KIND, setting(task_type="SEQ_CLS")),
    "DoRA": (Refusal.KIND, setting(use_dora=True)),
    "modules_to_save": (Refusal.KIND, setting(modules_to_save=["lm_head"])),
    "bias": (Refusal.KIND, setting(bias="all")),
    "PiSSA": (Refusal.KIND, setting(init_lora_weights="pissa_niter_16")),
    "layer replication": (Refusal.KIND, setting(layer_replication=[[0, 100000]])),
    "excluded by expression": (Refusal.KIND, setting(exclude_modules="(.*.*)*x")),
    "regular expression": (Refusal.TARGETS, setting(target_modules="(.*.*)*c_attnX$")),
    "regular expression in a list": (Refusal.TARGETS, setting(target_modules=["q_proj", "(a+)+$"])),
    "pattern of ranks": (Refusal.TARGETS, setting(rank_pattern={"(.*.*)*q_projX": 8})),
    "output matrix": (Refusal.TARGETS, setting(target_modules=["lm_head"])),
    "embeddings": (Refusal.TARGETS, setting(target_modules=["embed_tokens"])),
    "layer that is not there": (Refusal.TARGETS, setting(target_modules=["c_attn"])),
    "absurd rank": (Refusal.SIZE, setting(r=200_000_000)),
    "negative rank": (Refusal.SIZE, setting(r=-1)),
    "rank is true": (Refusal.SIZE, setting(r=True)),
    "absurd rank of one layer": (Refusal.SIZE, setting(rank_pattern={"q_proj": 2**40})),
    "endless alpha": (Refusal.CONFIG, text('{"peft_type": "LORA", "lora_alpha": Infinity}')),
    "enormous alpha": (Refusal.SIZE, setting(lora_alpha=10**400)),
    "five gigabytes": (Refusal.SIZE, _huge),
    "no bytes": (Refusal.HEADER, raw(lambda _: b"")),
    "cut short": (Refusal.HEADER, raw(lambda whole: whole[:-100])),
    "bytes behind": (Refusal.HEADER, raw(lambda whole: whole + b"x" * 100)),
    "endless header": (Refusal.HEADER, raw(lambda whole: struct.pack("<Q", 2**63) + whole[8:])),
    "header is no JSON": (Refusal.HEADER, header(lambda _: "not json")),
    "tensors overlap": (Refusal.HEADER, header(_overlap)),
    "tensor twice": (Refusal.HEADER, header(lambda held: json.dumps(held)[:-1] + "," + json.dumps(held)[1:])),
    "very many tensors": (Refusal.SIZE, header(_empties)),
    "shape overflows": (Refusal.HEADER, header(lambda held: held[_first(held)].update(shape=[2**40, 2**40]))),
    "offsets backwards": (Refusal.HEADER, header(lambda held: held[_first(held)].update(data_offsets=[64, 0]))),
    "name leads out": (Refusal.KEYS, tensors(lambda held: _rename(held, "../../x"))),
    "every name wrong": (Refusal.KEYS, tensors(lambda held: [held.update({f"x.{key}": held.pop(key)}) for key in list(held)])),
    "one tensor missing": (Refusal.KEYS, tensors(lambda held: held.pop(_first(held)))),
    "one tensor too many": (Refusal.KEYS, tensors(lambda held: held.update({"base_model.model.lm_head.weight": torch.ones(2, 2)}))),
    "another shape": (Refusal.SHAPES, tensors(lambda held: _set(held, lambda value: value[:, :2]))),
    "another rank than it says": (Refusal.SHAPES, setting(r=8)),
    "whole numbers": (Refusal.VALUES, tensors(lambda held: _set(held, lambda value: value.to(torch.int32)))),
    "NaN": (Refusal.VALUES, tensors(lambda held: _set(held, lambda value: value * float("nan")))),
    "infinity": (Refusal.VALUES, tensors(lambda held: held[_first(held, "lora_A")].fill_(float("-inf")))),
    "nothing learned": (Refusal.VALUES, tensors(lambda held: [value.zero_() for key, value in held.items() if "lora_B" in key])),
}
