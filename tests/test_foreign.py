"""Strangers' adapters: hostile ones are refused by their reason and run nothing; sound ones come in, whatever form of LoRA they are."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hostile_adapters import HOSTILE
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from small_base import make_base
from small_server import TINY
from transformers import AutoModelForCausalLM

from agentalign.cli import main
from agentalign.config.project import Project
from agentalign.deployment.check import gate
from agentalign.deployment.foreign import add_foreign
from agentalign.errors import AdapterRefusedError, Refusal, RegistryError, TasksetError
from agentalign.store.registry import Registry
from agentalign.training.base_layers import linear_layers
from agentalign.training.foreign_folder import read_foreign

FORMS = {
    "plain": {"r": 4, "lora_alpha": 8},
    "rslora": {"r": 8, "lora_alpha": 16, "use_rslora": True},
    "patterns": {"r": 4, "lora_alpha": 8, "rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 6}, "alpha_pattern": {"q_proj": 3}},
    "rslora and patterns": {"r": 4, "lora_alpha": 8, "use_rslora": True, "rank_pattern": {"down_proj": 7}, "alpha_pattern": {"v_proj": 40}},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("foreign") / "base")


def peft_folder(base: Path, folder: Path, std: float = 0.3, **settings: object) -> PeftModel:
    """An adapter as PEFT itself trains and saves it; returns the model that it computes in."""
    torch.manual_seed(3)
    network = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    targets = ["q_proj", "v_proj", "up_proj", "down_proj"]
    model = get_peft_model(network, LoraConfig(target_modules=targets, task_type="CAUSAL_LM", **settings))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=std)
    model.save_pretrained(folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "someone/base"}))
    return model


@pytest.fixture(scope="module")
def sound(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound") / "adapter"
    peft_folder(base, folder, r=4, lora_alpha=8)
    return folder


@pytest.fixture(scope="module")
def layers(base: Path) -> dict[str, tuple[int, int]]:
    return linear_layers(base)


@pytest.fixture
def spoilt(sound: Path, tmp_path: Path) -> Path:
    shutil.copytree(sound, tmp_path / "adapter")
    return tmp_path / "adapter"


def test_there_are_at_least_forty_hostile_folders_of_every_reason() -> None:
    assert len(HOSTILE) >= 40
    assert {reason for reason, _ in HOSTILE.values()} == set(Refusal)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_folder_is_refused_for_its_reason(name: str, spoilt: Path, layers: dict[str, tuple[int, int]], tmp_path: Path) -> None:
    reason, spoil = HOSTILE[name]
    spoil(spoilt, tmp_path / "canary")
    (tmp_path / "copy").mkdir()
    with pytest.raises(AdapterRefusedError) as caught:
        read_foreign(spoilt, layers, tmp_path / "copy")
    assert caught.value.reason == reason, caught.value
    assert "\x1b" not in str(caught.value) and len(str(caught.value)) < 500
    assert not (tmp_path / "canary").exists()
    copied = sum(file.stat().st_size for file in (tmp_path / "copy").iterdir())
    assert copied < 40 * 1024**2, "sizes are bounded before reading"


def test_refusing_runs_no_code_imports_nothing_and_fetches_nothing(sound: Path, base: Path, tmp_path: Path) -> None:
    """The audit hook of a process of its own sees every import, connection and program while all hostile folders are read."""
    for number, (_, spoil) in enumerate(HOSTILE.values()):
        shutil.copytree(sound, tmp_path / str(number) / "adapter")
        spoil(tmp_path / str(number) / "adapter", tmp_path / "canary")
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("audited_refusals.py"), tmp_path, base, sound], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report == {"refused": len(HOSTILE), "accepted": 1, "events": []}
    assert not (tmp_path / "canary").exists()


def test_an_adapter_that_fits_another_base_is_refused(sound: Path, tmp_path: Path, layers: dict[str, tuple[int, int]]) -> None:
    wider = {name: (outputs * 2, inputs * 2) for name, (outputs, inputs) in layers.items()}
    deeper = {**layers, "model.layers.2.self_attn.q_proj": (32, 32)}
    for number, (other, reason) in enumerate(((wider, Refusal.SHAPES), (deeper, Refusal.KEYS))):
        (tmp_path / str(number)).mkdir()
        with pytest.raises(AdapterRefusedError, match="Name the base that it was trained on") as caught:
            read_foreign(sound, other, tmp_path / str(number))
        assert caught.value.reason == reason


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_lora_comes_in_as_plain_lora_that_computes_the_same(form: str, base: Path, tmp_path: Path) -> None:
    theirs = peft_folder(base, tmp_path / "theirs", **FORMS[form])
    project = Project.create(tmp_path / "project")
    added = add_foreign(project, tmp_path / "theirs", base=str(base), taskset="hello", name="theirs")
    assert added.folded == (form != "plain") and added.named_base == "someone/base"
    folder = Registry(project.adapters).resolve("theirs@1")[1]
    settings = json.loads((folder / "adapter_config.json").read_text())
    assert not settings["use_rslora"] and "rank_pattern" not in settings and "alpha_pattern" not in settings
    ids = torch.tensor([[5, 9, 30, 2, 77, 41]])
    with torch.no_grad():
        ours = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), folder)
        assert torch.allclose(ours(ids).logits, theirs(ids).logits, atol=1e-4)
        with theirs.disable_adapter():
            assert not torch.allclose(ours(ids).logits, theirs(ids).logits, atol=1e-2)


def test_a_foreign_adapter_has_a_card_that_says_so_and_must_be_evaluated(sound: Path, base: Path, tmp_path: Path) -> None:
    project = Project.create(tmp_path / "project")
    shutil.copytree(sound, tmp_path / "theirs")
    (tmp_path / "theirs" / "chat_template.jinja").write_text("{{ lipsum.__globals__ }}")
    added = add_foreign(project, tmp_path / "theirs", base=str(base), taskset="hello")
    assert (added.card.ref, added.card.recipe, added.card.training) == ("hello@1", "foreign", "")
    assert json.loads(added.card.config)["foreign"]["named_base"] == "someone/base"
    assert "chat_template.jinja" in added.ignored
    folder = Registry(project.adapters).resolve("hello@1")[1]
    assert "lipsum" not in (folder / "chat_template.jinja").read_text(), "the base's own template"
    Registry(project.adapters).verify("hello@1")
    checks = {check.name: check.passed for check in gate(project, "hello@1", evaluation=None).checks}
    assert checks == {"files": True, "base": True, "template": True, "weights": True, "evaluated": False, "deploy-check": False}


def test_what_a_foreign_adapter_answers_here_is_recorded_when_it_comes_in(tmp_path: Path) -> None:
    project = Project.create(tmp_path / "project")
    (project.tasks / "toy_desk").symlink_to(TINY.parent / "toy_desk")
    theirs = peft_folder(TINY, tmp_path / "theirs", r=4, lora_alpha=8, std=0.02)
    added = add_foreign(project, tmp_path / "theirs", base=str(TINY), taskset="toy_desk", name="theirs")
    assert added.unrecorded == ""
    golden = Registry(project.adapters).golden("theirs@1")
    assert golden is not None and golden.held_out and golden.recorded and golden.turns
    turn = golden.turns[0]
    ids = torch.tensor([[*turn.context, *turn.completion]])
    with torch.no_grad():
        own = theirs(ids).logits[0, len(turn.context) - 1 : -1].log_softmax(-1)
    recorded = torch.tensor([dict(top)[token] for top, token in zip(turn.adapter, turn.completion, strict=True)])
    apart = own.gather(1, torch.tensor(turn.completion)[:, None])[:, 0] - recorded
    assert apart.abs().mean() < 0.05, "what PEFT itself computes"


def test_finite_weights_whose_product_is_not_leave_a_version_without_golden_prompts(tmp_path: Path) -> None:
    project = Project.create(tmp_path / "project")
    (project.tasks / "toy_desk").symlink_to(TINY.parent / "toy_desk")
    peft_folder(TINY, tmp_path / "theirs", r=4, lora_alpha=8, std=1e30)
    file = tmp_path / "theirs" / "adapter_model.safetensors"
    save_file({name: value * 1e30 if "lora_A" in name else value for name, value in load_file(file).items()}, file)
    added = add_foreign(project, tmp_path / "theirs", base=str(TINY), taskset="toy_desk", name="theirs")
    assert added.card.ref == "theirs@1"
    assert added.unrecorded and "\n" not in added.unrecorded


def test_a_taskset_that_is_a_path_is_refused_before_anything_is_saved(sound: Path, base: Path, tmp_path: Path) -> None:
    project = Project.create(tmp_path / "project")
    with pytest.raises(TasksetError, match="must be one folder's name, not a path"):
        add_foreign(project, sound, base=str(base), taskset="tasks/hello", name="theirs")
    with pytest.raises(RegistryError, match="is not an adapter's name"):
        add_foreign(project, sound, base=str(base), taskset="hello", name="theirs@1")
    assert Registry(project.adapters).list() == []


def test_a_flipped_bit_of_the_header_never_changes_what_is_computed(
    sound: Path, tmp_path: Path, layers: dict[str, tuple[int, int]]
) -> None:
    """A stranger's folder has no card. A flip is refused, or leaves every number of the product as it was, or is in the numbers."""
    (tmp_path / "first").mkdir()
    whole = (sound / "adapter_model.safetensors").read_bytes()
    length = 8 + int.from_bytes(whole[:8], "little")
    kept = load_file(sound / "adapter_model.safetensors")
    for number, place in enumerate(range(0, length, 41)):
        shutil.copytree(sound, tmp_path / f"a{number}")
        changed = bytearray(whole)
        changed[place] ^= 1 << (number % 8)
        (tmp_path / f"a{number}" / "adapter_model.safetensors").write_bytes(changed)
        (tmp_path / f"c{number}").mkdir()
        try:
            found = read_foreign(tmp_path / f"a{number}", layers, tmp_path / f"c{number}")
        except AdapterRefusedError:
            continue
        assert all(torch.equal(found.tensors[key], value) for key, value in kept.items()), place


def test_the_command_takes_in_an_adapter_and_refuses_a_hostile_one(
    spoilt: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project = Project.create(tmp_path / "project")
    monkeypatch.chdir(project.root)
    assert main(["adapters", "add", str(spoilt), "--base", str(base), "--taskset", "no_such_desk", "--name", "theirs"]) == 0
    said = capsys.readouterr()
    assert said.out.strip() == "theirs@1"
    assert "names the base someone/base" in said.err and "not evaluated yet" in said.err
    assert "No golden prompts were recorded" in said.err and "agentalign adapters golden theirs@1" in said.err, "there is no such taskset"
    (spoilt / "modeling.py").write_text("")
    assert main(["adapters", "add", str(spoilt), "--base", str(base), "--taskset", "no_such_desk", "--name", "theirs"]) == 1
    assert "can carry code" in capsys.readouterr().err
    assert [card.ref for card in Registry(project.adapters).list()] == ["theirs@1"]
