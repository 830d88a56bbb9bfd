"""Batched generation: exact against plain forwards and Hugging Face's generate, on tiny random models in fp32."""

from types import SimpleNamespace

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from agentalign.errors import ModelError
from agentalign.training.decode_attention import MOST_ROWS, ROWS, rows_at_once, rows_that_fit
from agentalign.training.generate import Generator
from agentalign.training.sampling import Sampler

VOCABULARY = 61
STOP = frozenset({7})
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.25,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
}


def llama() -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**SIZES))


def qwen3() -> PreTrainedModel:
    return Qwen3ForCausalLM(Qwen3Config(**SIZES))


def mistral() -> PreTrainedModel:
    return MistralForCausalLM(MistralConfig(**SIZES, sliding_window=6))


def gemma3() -> PreTrainedModel:
    layers = ["sliding_attention", "full_attention", "sliding_attention"]
    return Gemma3ForCausalLM(Gemma3TextConfig(**SIZES, sliding_window=5, layer_types=layers, query_pre_attn_scalar=8))


def gemma2() -> PreTrainedModel:
    return Gemma2ForCausalLM(Gemma2Config(**SIZES, sliding_window=5))


def mamba() -> PreTrainedModel:
    config = MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, state_size=4, eos_token_id=None, pad_token_id=0)
    return MambaForCausalLM(config)


BATCHED = [llama, qwen3, mistral, gemma3]


def build(make) -> PreTrainedModel:
    torch.manual_seed(11)
    return make().float().eval()


def text(seed: int, length: int) -> list[int]:
    return torch.randint(8, VOCABULARY, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def plain_logprobs(model: PreTrainedModel, context: list[int], completion: tuple[int, ...]) -> list[float]:
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*context, *completion]])).logits[0].float()
    rows = torch.log_softmax(logits[len(context) - 1 : -1], dim=-1)
    return rows[torch.arange(len(completion)), list(completion)].tolist()


def assert_plain(model: PreTrainedModel, context: list[int], found, greedy: bool = True) -> None:
    expected = plain_logprobs(model, context, found.ids)
    assert found.logprobs == pytest.approx(expected, abs=1e-5)
    if greedy:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*context, *found.ids]])).logits[0]
        assert logits[len(context) - 1 : -1].argmax(-1).tolist() == list(found.ids)


@pytest.mark.parametrize("make", BATCHED)
def test_greedy_equals_hugging_face_generate_token_for_token(make):
    model = build(make)
    contexts = {slot: text(1, 20) + text(10 + slot, 3 + 4 * slot) for slot in range(4)}
    generator = Generator(model, STOP)
    assert generator.refusal == ""
    found = generator.session().generate(contexts, max_new_tokens=12)
    for slot, context in contexts.items():
        expected = model.generate(torch.tensor([context]), max_new_tokens=12, do_sample=False, eos_token_id=list(STOP), pad_token_id=0)
        assert list(found[slot].ids) == expected[0, len(context) :].tolist()
        assert_plain(model, context, found[slot])
        assert found[slot].stopped == (found[slot].ids[-1] in STOP)


@pytest.mark.parametrize("make", BATCHED)
def test_ragged_turns_over_a_shared_prefix_equal_separate_full_forwards(make):
    model = build(make)
    session = Generator(model, STOP).session()
    shared = text(1, 30)
    contexts = {slot: shared + text(10 + slot, 2 + 3 * slot) for slot in range(5)}
    for turn in range(3):
        budgets, seeds = {s: 2 + s for s in contexts}, {s: 9 * s + turn for s in contexts}
        found = session.generate(contexts, max_new_tokens=budgets, temperature=1.0, seeds=seeds)
        for slot, context in contexts.items():
            assert_plain(model, context, found[slot], greedy=False)
            # The tool result of this turn: of another length for every slot.
            contexts[slot] = context + list(found[slot].ids) + text(100 * turn + slot, 1 + (slot * 7 + turn) % 11)
        contexts.pop(turn)


def test_slots_that_come_later_or_share_less_of_the_prefix_are_exact():
    model = build(gemma3)
    session = Generator(model, STOP).session()
    shared = text(1, 30)
    first = session.generate({0: shared + text(2, 4), 1: shared + text(3, 9)}, max_new_tokens=5)
    assert session.prefix == shared
    session.drop(0)
    session.drop(99)
    contexts = {2: shared[:11] + text(4, 6), 1: shared + text(3, 9) + list(first[1].ids) + text(5, 4), 3: text(6, 8), 4: shared}
    for slot, completion in session.generate(contexts, max_new_tokens=6).items():
        assert_plain(model, contexts[slot], completion)


def test_a_slot_that_joins_those_that_hold_something_is_exact():
    model = build(mistral)
    session = Generator(model, STOP).session()
    contexts = {0: text(1, 20), 1: text(1, 9) + text(2, 5), 2: text(3, 4)}
    for slot, context in contexts.items():
        assert_plain(model, context, session.generate({slot: context}, max_new_tokens=5)[slot])


@pytest.mark.parametrize("broken", range(4))
def test_a_call_that_broke_off_leaves_nothing_half_done(monkeypatch, broken):
    model = build(llama)
    generator = Generator(model, STOP)
    left = [broken]
    forward = generator.forward

    def breaking(*given):
        left[0] -= 1
        if left[0] == -1:
            raise KeyboardInterrupt
        return forward(*given)

    monkeypatch.setattr(generator, "forward", breaking)
    session = generator.session()
    contexts = {0: text(1, 20) + text(2, 4), 1: text(1, 20) + text(3, 9)}
    with pytest.raises(KeyboardInterrupt):
        session.generate(contexts, max_new_tokens=5)
    other = {0: text(1, 12) + text(5, 3), 1: contexts[1]}
    for slot, completion in session.generate(other, max_new_tokens=5).items():
        assert_plain(model, other[slot], completion)
    session.drop(0)
    assert_plain(model, contexts[0], session.generate({0: contexts[0]}, max_new_tokens=5)[0])


def test_a_rewritten_history_is_computed_again_from_where_it_differs():
    model = build(qwen3)
    session = Generator(model, STOP).session()
    old = {slot: text(1, 20) + text(10 + slot, 9) for slot in range(3)}
    session.generate(old, max_new_tokens=8)
    new = {0: old[0][:23] + text(50, 5), 1: old[1][:12] + text(51, 3), 2: old[2]}
    for slot, completion in session.generate(new, max_new_tokens=8).items():
        assert_plain(model, new[slot], completion)


def test_long_contexts_are_computed_in_pieces(monkeypatch):
    monkeypatch.setattr("agentalign.training.generate.PIECE", 4)
    monkeypatch.setattr("agentalign.training.generate.PASS_TOKENS", 9)
    model = build(mistral)
    contexts = {slot: text(1, 10) + text(10 + slot, 1 + 5 * slot) for slot in range(4)}
    for slot, completion in Generator(model, STOP).session().generate(contexts, max_new_tokens=70).items():
        assert_plain(model, contexts[slot], completion)


def test_a_slot_does_not_depend_on_its_neighbours():
    model = build(llama)
    contexts = {slot: text(1, 15) + text(10 + slot, 2 + slot) for slot in range(6)}
    seeds = {slot: 100 + slot for slot in contexts}
    for temperature, top_p in ((0.0, 1.0), (1.0, 1.0), (0.7, 0.8)):
        settings = {"max_new_tokens": 10, "temperature": temperature, "top_p": top_p, "seeds": seeds}
        together = Generator(model, STOP).session().generate(contexts, **settings)
        for slot, context in contexts.items():
            alone = Generator(model, STOP).session().generate({slot: context}, **settings)[slot]
            assert alone.ids == together[slot].ids
            assert alone.logprobs == pytest.approx(together[slot].logprobs, abs=1e-5)


def test_the_prefix_is_stored_once_and_the_turn_before_is_not_computed_again(monkeypatch):
    generator = Generator(build(llama), STOP)
    computed: list[int] = []
    forward = generator.forward
    monkeypatch.setattr(generator, "forward", lambda ids, *rest: (computed.append(len(ids)), forward(ids, *rest))[1])
    session = generator.session()
    contexts = {slot: text(1, 40) + text(10 + slot, 5) for slot in range(8)}
    found = session.generate(contexts, max_new_tokens=1)
    assert sum(computed) == 40 + 8 * 5
    keys, _ = session.cache.prefix[0]
    assert keys.shape == (2, 40, 8)
    computed.clear()
    session.generate({slot: context + list(found[slot].ids) + [9, 9] for slot, context in contexts.items()}, max_new_tokens=1)
    assert sum(computed) == 8 * 3


def test_runs_one_after_the_other_keep_the_prefix_they_share(monkeypatch):
    model = build(mistral)
    generator = Generator(model, STOP)
    computed: list[int] = []
    forward = generator.forward
    monkeypatch.setattr(generator, "forward", lambda ids, *rest: (computed.append(len(ids)), forward(ids, *rest))[1])
    session = generator.session()
    for run, new in ((1, 35), (2, 5), (3, 5)):
        computed.clear()
        context = text(1, 30) + text(10 + run, 5)
        assert_plain(model, context, session.generate({0: context}, max_new_tokens=1)[0])
        assert sum(computed) == new
        session.drop(0)


def test_finished_slots_leave_the_batch_at_once(monkeypatch):
    generator = Generator(build(llama), STOP)
    sizes: list[int] = []
    forward = generator.forward
    monkeypatch.setattr(generator, "forward", lambda ids, *rest: (sizes.append(len(ids)), forward(ids, *rest))[1])
    contexts = {slot: text(10 + slot, 5) for slot in range(3)}
    generator.session().generate(contexts, max_new_tokens={0: 4, 1: 2, 2: 6}, temperature=0.0)
    assert sizes[1:] == [3, 2, 2, 1, 1]


def test_a_stop_id_belongs_to_the_completion_and_ends_it():
    model = build(llama)
    context = text(5, 10)
    free = Generator(model, frozenset({VOCABULARY + 1})).session().generate({0: context}, max_new_tokens=8)[0]
    assert not free.stopped
    assert len(free.ids) == 8
    stop = free.ids[3]
    cut = Generator(model, frozenset({stop})).session().generate({0: context}, max_new_tokens=8)[0]
    assert cut.stopped
    assert cut.ids == free.ids[: free.ids.index(stop) + 1]


def test_the_models_own_length_is_a_limit():
    model = build(llama)
    found = Generator(model, frozenset({99})).session().generate({0: text(5, 254), 1: text(6, 256)}, max_new_tokens=8)
    assert [len(found[slot].ids) for slot in (0, 1)] == [2, 0]
    assert not found[0].stopped


@pytest.mark.parametrize("make", [mamba, gemma2])
@pytest.mark.filterwarnings("ignore")
def test_models_with_other_layers_are_generated_one_by_one_and_exact(make, caplog):
    model = build(make)
    generator = Generator(model, STOP)
    assert generator.refusal
    assert "one by one" in caplog.text
    session = generator.session()
    contexts = {slot: text(10 + slot, 6 + slot) for slot in range(2)}
    for _ in range(2):
        found = session.generate(contexts, max_new_tokens=5)
        for slot, context in contexts.items():
            assert_plain(model, context, found[slot])
            contexts[slot] = context + list(found[slot].ids) + text(slot, 3)


def test_the_model_is_left_as_it_was_found():
    model = build(llama)
    model.train()
    before = model.config._attn_implementation
    Generator(model, STOP).session().generate({0: text(1, 5)}, max_new_tokens=2)
    assert model.training
    assert model.config._attn_implementation == before


def test_an_empty_context_and_missing_stop_ids_are_refused():
    with pytest.raises(ModelError, match="empty context"):
        Generator(build(llama), STOP).session().generate({3: []}, max_new_tokens=2)
    with pytest.raises(ModelError, match="no stop ids"):
        Generator(build(llama), frozenset())


def test_sampling_follows_the_tempered_distribution():
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.2, 0.0]])).expand(4000, 4)
    random = [torch.Generator().manual_seed(seed) for seed in range(4000)]
    ids, logprobs = Sampler(temperature=0.5)(logits, random)
    shares = torch.bincount(torch.tensor(ids), minlength=4) / 4000
    expected = torch.tensor([0.25, 0.09, 0.04, 0.0]) / 0.38
    assert torch.allclose(shares, expected, atol=0.03)
    # The log-prob is the model's own, not the tempered one.
    assert logprobs[ids.index(0)] == pytest.approx(torch.log(torch.tensor(0.5)).item(), abs=1e-6)


def test_top_p_keeps_the_smallest_set_with_that_mass():
    logits = torch.log(torch.tensor([[0.1, 0.6, 0.3]])).expand(500, 3)
    random = [torch.Generator().manual_seed(seed) for seed in range(500)]
    assert set(Sampler(temperature=1.0, top_p=0.5)(logits, random)[0]) == {1}
    assert set(Sampler(temperature=1.0, top_p=0.7)(logits, random)[0]) == {1, 2}


@pytest.mark.parametrize("temperature", [1e-45, 1e-40, 1e-9])
@pytest.mark.parametrize("top_p", [1.0, 0.5])
def test_next_to_no_temperature_takes_the_likeliest_id(temperature, top_p):
    logits = torch.tensor([[0.1, 60.0, 0.3], [3.0, -80.0, 0.3]])
    random = [torch.Generator().manual_seed(seed) for seed in range(2)]
    assert Sampler(temperature, top_p)(logits, random)[0] == [1, 0]


@pytest.mark.parametrize("top_p", [1.0, 0.5])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_that_is_no_number_has_an_id_of_the_vocabulary_and_leaves_its_neighbour_alone(temperature, top_p):
    sound = torch.tensor([0.1, 60.0, 0.3])
    logits = torch.stack([torch.full((3,), torch.nan), sound, sound * torch.inf])
    ids, logprobs = Sampler(temperature, top_p)(logits, [torch.Generator().manual_seed(seed) for seed in range(3)])
    assert set(ids) <= {0, 1, 2}
    assert ids[1] == 1
    assert [torch.isfinite(torch.tensor(value)).item() for value in logprobs] == [False, True, False]


@pytest.mark.parametrize("make", [llama, mamba])
def test_scores_that_are_no_numbers_end_the_call_with_a_sentence(make):
    model = build(make)
    generator = Generator(model, STOP)
    model.get_input_embeddings().weight.data[9] = torch.nan
    with pytest.raises(ModelError, match="no numbers"):
        generator.session().generate({0: [8, 9, 10]}, max_new_tokens=2, temperature=1.0)


def test_a_gpu_holds_as_many_rows_as_its_free_memory_has_keys_and_values_for():
    # 8 heads of 128 in 32 layers: 128 KiB a token in bfloat16, so 0.3 of 80 GiB holds 96 rows of 2,048 tokens.
    eight_b = LlamaConfig(hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8)
    assert rows_that_fit(eight_b, torch.bfloat16, 2048, 80 * 2**30) == 96
    assert rows_that_fit(eight_b, torch.float32, 2048, 80 * 2**30) == 48
    assert rows_that_fit(eight_b, torch.bfloat16, 2048, 0) == 1
    assert rows_that_fit(eight_b, torch.bfloat16, 1, 80 * 2**30) == MOST_ROWS
    assert Generator(llama(), STOP).rows_at_once(2048) == ROWS


def test_what_torch_keeps_for_itself_counts_as_free_for_rows(monkeypatch):
    """After a training step the driver calls the step's whole peak taken."""
    eight_b = LlamaConfig(hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8)
    card = SimpleNamespace(device=torch.device("cuda"), config=eight_b, dtype=torch.bfloat16)
    for name, value in {"mem_get_info": (4 * 2**30, 80 * 2**30), "memory_reserved": 76 * 2**30, "memory_allocated": 0}.items():
        monkeypatch.setattr(torch.cuda, name, lambda _, value=value: value)
    assert rows_at_once(card, 2048) == 96
