import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from agentalign.errors import ConfigError, ModelError, TemplateError
from agentalign.training.base import BUILT_IN, TEMPLATES, prepare_base
from agentalign.training.dialect import Dialect

TINY = Path(__file__).parent / "fixtures" / "tiny"


def write_gguf(path: Path, *, pre: str = "smollm", template: str | None = "{{ messages[0].content }}") -> None:
    """The tiny fixture as a GGUF file, with the end of a turn as padding token, as SmolLM2's has it."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32), json.loads((TINY / "tokenizer.json").read_text())
    config, writer = model.config, gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    words = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(words)
    writer.add_token_types([gguf.TokenType.CONTROL if index < 3 else gguf.TokenType.NORMAL for index in range(len(words))])
    writer.add_token_merges([" ".join(merge) for merge in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    if template is not None:
        writer.add_chat_template(template)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
        values = tensor.numpy()
        if heads:  # GGUF's llama turns pairs of dimensions where Hugging Face's turns halves
            values = values.reshape(heads, 2, values.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(values.shape)
        if name != "lm_head.weight":
            writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gguf")
    write_gguf(folder / "tiny.gguf")
    return (
        folder / "tiny.gguf",
        prepare_base(str(folder / "tiny.gguf"), folder / "cache", template=TEMPLATES / "smollm2_tools.jinja"),
        folder,
    )


def test_a_gguf_becomes_a_folder_that_computes_the_same(converted):
    _, base, _ = converted
    ids = torch.tensor([[1, 5, 9, 200, 301, 2]])
    wanted = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)(ids).logits
    got = AutoModelForCausalLM.from_pretrained(base.folder, dtype=torch.float32)
    assert all(p.dtype == torch.bfloat16 for p in AutoModelForCausalLM.from_pretrained(base.folder).parameters())
    assert torch.allclose(got(ids).logits, wanted, atol=1e-4)
    assert got.get_parameter("model.layers.0.mlp.up_proj.weight").requires_grad and not hasattr(got.config, "quantization_config")


def test_digits_after_white_space_are_split_as_the_model_learned_them(converted):
    tokenizer = AutoTokenizer.from_pretrained(converted[1].folder)
    pieces = [piece for piece, _ in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("a  12\n\n1")]
    assert pieces == ["a", "ĠĠ", "1", "2", "ĊĊ", "1"]


def test_padding_is_not_the_end_of_a_turn(converted):
    tokenizer = AutoTokenizer.from_pretrained(converted[1].folder)
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<|endoftext|>", "<|im_end|>")


def test_the_folder_carries_the_template_that_every_stage_uses(converted):
    _, base, _ = converted
    assert base.template == (TEMPLATES / "smollm2_tools.jinja").read_text() == AutoTokenizer.from_pretrained(base.folder).chat_template
    assert Dialect.load(base).report.tools


def test_a_file_is_converted_once_and_again_when_it_changes(converted):
    file, base, folder = converted
    weights = base.folder / "model.safetensors"
    written = weights.stat().st_mtime_ns
    again = prepare_base(str(file), folder / "cache", template=TEMPLATES / "smollm2_tools.jinja")
    assert again == base and weights.stat().st_mtime_ns == written
    own = prepare_base(str(file), folder / "cache")
    assert own.folder != base.folder and own.template == "{{ messages[0].content }}"


def test_a_machine_that_is_offline_makes_the_same_base(converted, tmp_path):
    # What is converted under HF_HUB_OFFLINE was another base, by one line of tokenizer_config.json, and refused adapters made without it.
    file, base, _ = converted
    offline = {"HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "0"} if os.environ.get("HF_HUB_OFFLINE") == "1" else {"HF_HUB_OFFLINE": "1"}
    program = (
        "import sys; from pathlib import Path; from agentalign.training.base import prepare_base; "
        "print(prepare_base(sys.argv[1], Path(sys.argv[2]), template=Path(sys.argv[3])).digest)"
    )
    asked = [sys.executable, "-c", program, str(file), str(tmp_path / "cache"), str(TEMPLATES / "smollm2_tools.jinja")]
    done = subprocess.run(asked, env=os.environ | offline, capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == base.digest


def test_what_differs_between_two_bases_is_named(tmp_path):
    shutil.copytree(TINY, tmp_path / "a")
    with (tmp_path / "a" / "tokenizer_config.json").open("a") as handle:
        handle.write(" ")
    here, there = prepare_base(str(TINY), tmp_path / "cache"), prepare_base(str(tmp_path / "a"), tmp_path / "cache")
    assert there.unlike(here.files) == "tokenizer_config.json" and there.unlike(there.files) == "" and there.unlike({}) == ""
    assert there.unlike({**there.files, "more.safetensors": "0"}) == "more.safetensors"


def test_a_conversion_that_breaks_leaves_nothing(tmp_path):
    write_gguf(tmp_path / "odd.gguf", pre="some-new-rule")
    with pytest.raises(ModelError, match="splits text by the rule 'some-new-rule'"):
        prepare_base(str(tmp_path / "odd.gguf"), tmp_path / "cache")
    assert list((tmp_path / "cache" / "bases").iterdir()) == []
    (tmp_path / "text.gguf").write_text("hello")
    with pytest.raises(ModelError, match="not a GGUF file"):
        prepare_base(str(tmp_path / "text.gguf"), tmp_path / "cache")


def test_a_folder_is_used_where_it_lies(tmp_path):
    base = prepare_base(str(TINY), tmp_path, {"today": "2025-05-05"})
    assert (base.folder, base.template_kwargs) == (TINY.resolve(), {"today": "2025-05-05"})
    assert base.template == (TEMPLATES / "smollm2_tools.jinja").read_text(), "run tests/fixtures/make_tiny.py again, or copy the template"


def test_the_digest_follows_weights_and_tokenizer(tmp_path):
    shutil.copytree(TINY, tmp_path / "a")
    digests = [prepare_base(str(tmp_path / "a"), tmp_path / "cache").digest]
    for name in ("model.safetensors", "tokenizer.json"):
        file = tmp_path / "a" / name
        file.write_bytes(file.read_bytes().replace(b"Sorry", b"sorry") if name == "tokenizer.json" else file.read_bytes()[:-1] + b"x")
        with (tmp_path / "a" / name).open("ab") as handle:
            handle.write(b" ")
        digests.append(prepare_base(str(tmp_path / "a"), tmp_path / "cache").digest)
    assert len(set(digests)) == 3
    assert prepare_base(str(TINY), tmp_path / "cache").digest == digests[0]


def test_what_is_missing_is_said(tmp_path):
    for name, message in (("./nowhere", "no such folder"), ("nowhere.gguf", "no such file"), ("a/b/c", "one of: smollm2-135m")):
        with pytest.raises(ConfigError, match=message):
            prepare_base(name, tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(TemplateError, match="no chat template"):
        prepare_base(str(tmp_path / "empty"), tmp_path)
    (tmp_path / "empty" / "chat_template.jinja").write_text("x")
    with pytest.raises(ModelError, match=r"no config\.json"):
        prepare_base(str(tmp_path / "empty"), tmp_path)
    (tmp_path / "empty" / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"no \.safetensors weights"):
        prepare_base(str(tmp_path / "empty"), tmp_path)
    with pytest.raises(ConfigError, match=r"Give the path of a \.jinja file"):
        prepare_base(str(TINY), tmp_path, template=tmp_path / "none.jinja")


def test_the_tool_template_is_chosen_where_a_tokenizer_has_several(tmp_path):
    shutil.copytree(TINY, tmp_path / "a")
    (tmp_path / "a" / "chat_template.jinja").unlink()
    config = json.loads((tmp_path / "a" / "tokenizer_config.json").read_text())
    config["chat_template"] = [{"name": "default", "template": "one"}, {"name": "tool_use", "template": "two"}]
    (tmp_path / "a" / "tokenizer_config.json").write_text(json.dumps(config))
    assert prepare_base(str(tmp_path / "a"), tmp_path / "cache").template == "two"


def test_a_template_is_the_same_text_before_and_after_it_was_kept_as_a_file(tmp_path):
    shutil.copytree(TINY, tmp_path / "a")
    (tmp_path / "a" / "chat_template.jinja").unlink()
    config = json.loads((tmp_path / "a" / "tokenizer_config.json").read_text())
    config["chat_template"] = "{% for message in messages %}\r\n{{ message.content }}\r{% endfor %}\r\n"
    (tmp_path / "a" / "tokenizer_config.json").write_text(json.dumps(config))
    template = prepare_base(str(tmp_path / "a"), tmp_path / "cache").template
    (tmp_path / "kept.jinja").write_text(template, "utf-8")
    assert prepare_base(str(tmp_path / "a"), tmp_path / "cache", template=tmp_path / "kept.jinja").template == template


@pytest.mark.hard
def test_the_built_in_base_speaks(tmp_path):
    try:
        base = prepare_base("smollm2-135m", tmp_path)
    except ConfigError as error:
        pytest.skip(str(error))
    assert BUILT_IN["smollm2-135m"].template == "smollm2_tools.jinja"
    tokenizer, model = AutoTokenizer.from_pretrained(base.folder), AutoModelForCausalLM.from_pretrained(base.folder)
    ids = tokenizer("<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n", return_tensors="pt")
    text = tokenizer.decode(model.generate(**ids, max_new_tokens=12, do_sample=False)[0])
    assert "Paris" in text.rpartition("assistant")[2]
