"""The table of targets: what each does with each kind of adapter, asked of folders that PEFT wrote or somebody damaged."""

import json
import shutil
from pathlib import Path

import pytest
from small_base import make_base
from test_foreign import FORMS, peft_folder

from agentalign.deployment.targets import QUESTIONS, TARGETS, findings, require_deployable
from agentalign.errors import AdapterRefusedError
from agentalign.training.base_layers import linear_layers


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("targets") / "base")


@pytest.fixture(scope="module")
def layers(base: Path) -> dict[str, tuple[int, int]]:
    return linear_layers(base)


@pytest.fixture(scope="module")
def plain(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain") / "adapter"
    peft_folder(base, folder, **FORMS["plain"])
    return folder


def changed(plain: Path, folder: Path, **settings: object) -> Path:
    shutil.copytree(plain, folder)
    held = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(held | settings))
    return folder


def test_plain_lora_may_go_everywhere(plain: Path, layers: dict[str, tuple[int, int]]) -> None:
    for target in TARGETS:
        assert findings(plain, layers, target) == ()
        require_deployable(plain, layers, target)


def test_a_base_that_is_named_by_its_folder_is_the_one_that_was_chosen(
    plain: Path, base: Path, tmp_path: Path, layers: dict[str, tuple[int, int]]
) -> None:
    folder = changed(plain, tmp_path / "a", base_model_name_or_path="./base")
    for target in TARGETS:
        assert findings(folder, layers, target, base_names=("./base", str(base))) == ()
        assert [(one.number, one.verdict, one.detail) for one in findings(folder, layers, target)] == [(12, "unmeasured", "'./base'")]
    whole = (folder / "adapter_model.safetensors").read_bytes()
    (folder / "adapter_model.safetensors").write_bytes(whole[:-64])
    assert [one.number for one in findings(folder, layers, "peft", base_names=(str(base),))] == [11, 12], "its weights were looked at"


@pytest.mark.parametrize("form", ["rslora", "patterns"])
def test_only_llama_cpp_stops_other_scales_because_it_would_compute_them_wrongly_in_silence(
    form: str, base: Path, tmp_path: Path, layers: dict[str, tuple[int, int]]
) -> None:
    peft_folder(base, tmp_path / "a", **FORMS[form])
    for target in ("peft", "vllm", "transformers"):
        require_deployable(tmp_path / "a", layers, target)
    with pytest.raises(AdapterRefusedError, match=r"llama\.cpp computes something else without a word.*fold the scales"):
        require_deployable(tmp_path / "a", layers, "llama.cpp")


@pytest.mark.parametrize(
    ("settings", "verdicts"),
    [
        ({"use_dora": True}, ("ok", "error", "error", "unmeasured")),
        ({"modules_to_save": ["lm_head"]}, ("ok", "error", "error", "unmeasured")),
        ({"bias": "lora_only"}, ("ok", "error", "unmeasured", "unmeasured")),
        ({"target_modules": ["embed_tokens"]}, ("ok", "ok", "abort", "unmeasured")),
        ({"init_lora_weights": "pissa"}, ("silent", "error", "unmeasured", "silent")),
        ({"peft_type": "LOHA"}, ("unmeasured", "error", "error", "unmeasured")),
    ],
)
def test_each_target_has_its_own_verdict(
    settings: dict[str, object], verdicts: tuple[str, ...], plain: Path, tmp_path: Path, layers: dict[str, tuple[int, int]]
) -> None:
    folder = changed(plain, tmp_path / "a", **settings)
    for target, verdict in zip(TARGETS, verdicts, strict=True):
        found = findings(folder, layers, target)
        assert [finding.verdict for finding in found] == ([] if verdict == "ok" else [verdict]), target


def test_truncated_weights_and_another_base_are_stopped_on_every_target(
    plain: Path, tmp_path: Path, layers: dict[str, tuple[int, int]]
) -> None:
    folder = changed(plain, tmp_path / "a")
    whole = (folder / "adapter_model.safetensors").read_bytes()
    (folder / "adapter_model.safetensors").write_bytes(whole[:-64])
    wider = {name: (outputs * 2, inputs) for name, (outputs, inputs) in layers.items()}
    for target in TARGETS:
        with pytest.raises(AdapterRefusedError, match="it was cut short"):
            require_deployable(folder, layers, target)
        with pytest.raises(AdapterRefusedError, match="Name the base that it was trained on"):
            require_deployable(plain, wider, target)


def test_rows_are_numbered_once_and_name_what_to_do() -> None:
    assert [row.number for row in QUESTIONS] == list(range(1, 11))
    assert all(len(row.verdicts) == len(TARGETS) and row.action for row in QUESTIONS)
