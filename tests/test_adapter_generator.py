"""Where a merged copy does not fit into memory, the policy acts from the base with its adapter beside, and says the same."""

import pytest
import torch

from agentalign.training.adapter_generator import adapter_generator
from agentalign.training.generate import Generator
from agentalign.training.merging import MergedCopy
from agentalign.training.model import Model
from tests.test_attention import CONFIGS, draw_lora, make_model, three_levels_deep, tree_pass

STOP = frozenset({2})
CONTEXTS = {slot: list(range(5, 40 + 3 * slot)) for slot in range(4)}


def loaded(folder, quantization="none"):
    base = make_model(folder, CONFIGS["llama"]).base
    model = Model.load(base, quantization=quantization, device="cpu", dtype=torch.float32)
    model.add_adapter("policy", r=4, alpha=8, seed=3)
    draw_lora(model)
    return model


def answers(generator):
    session = generator.session()
    first = session.generate(CONTEXTS, max_new_tokens=6)
    later = {slot: [*CONTEXTS[slot], *first[slot].ids, 9, 11] for slot in CONTEXTS}
    second = session.generate(later, max_new_tokens=6, temperature=0.8, seeds={slot: slot for slot in CONTEXTS})
    return [done for some in (first, second) for done in some.values()]


@pytest.fixture
def full(monkeypatch):
    """A call after which no copy fits; the memory it fills is none of our code."""

    def fill():
        def of(*_):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 16 GiB")

        monkeypatch.setattr(MergedCopy, "of", of)

    return fill


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_without_room_for_a_copy_the_policy_says_the_same(tmp_path, caplog, full, quantization):
    model = loaded(tmp_path, quantization)
    copied = answers(adapter_generator(model, "policy"))
    bare = answers(Generator(model.merged_copy(None), STOP))
    full()
    generator = adapter_generator(model, "policy")
    beside = answers(generator)
    assert "Tried to allocate 16 GiB" in caplog.text and "its adapter beside" in caplog.text
    assert [one.ids for one in beside] == [one.ids for one in copied] != [one.ids for one in bare]
    for one, other in zip(beside, copied, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
    assert generator.refusal == "", "in a batch"


def test_what_is_no_lack_of_memory_is_raised(tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(MergedCopy, "of", broken)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        adapter_generator(loaded(tmp_path), "policy")


def test_training_goes_on_as_if_nobody_had_acted(tmp_path, full):
    model = loaded(tmp_path)
    model.recompute_activations()
    runs = three_levels_deep()
    modes = [layer.training for layer in model.network.modules()]
    before, attention = tree_pass(model, runs), model.network.config._attn_implementation
    assert any(modes) and not all(modes)
    full()
    answers(adapter_generator(model, "policy"))
    assert [layer.training for layer in model.network.modules()] == modes, "or activations are kept from here on"
    assert model.network.config._attn_implementation == attention
    after = tree_pass(model, runs)
    assert torch.equal(before[0], after[0])
    assert all(torch.equal(one, other) for one, other in zip(before[1], after[1], strict=True))
