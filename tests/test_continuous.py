"""Requests that join and leave a running batch, under different adapters: each gets what it would get alone."""

from pathlib import Path

import pytest
import torch
from small_base import add_adapter, make_base
from transformers import MambaConfig, MambaForCausalLM

from agentalign.config.project import Project
from agentalign.errors import ModelError, RegistryError
from agentalign.store.registry import Registry
from agentalign.training.base import prepare_base
from agentalign.training.continuous import Batch, Work, Written
from agentalign.training.decode_attention import NAME
from agentalign.training.generate import Generator
from agentalign.training.mixed_lora import MixedLora
from agentalign.training.model import Model
from agentalign.training.sampling import Sampler

ADAPTERS = ("hello@1", "hello@2", None)


class Small:
    """A base with two adapters, and each of the three as a plain merged network to compare with."""

    def __init__(self, project: Project) -> None:
        folder = make_base(project.root / "base")
        for seed in (1, 2):
            add_adapter(project, folder, seed=seed)
        self.model = Model.load(prepare_base(str(folder), project.cache), quantization="none", device="cpu", dtype=torch.float32)
        self.folders = {ref: Registry(project.adapters).resolve(ref)[1] for ref in ADAPTERS if ref}
        self.generator = Generator(self.model.network, frozenset({2}))
        self.lora = MixedLora(self.model.network)
        for ref, place in self.folders.items():
            self.lora.add(ref, self.lora.read(place))
        self.plain = {ref: self._merged(project, folder, ref) for ref in ADAPTERS}

    def _merged(self, project: Project, folder: Path, ref: str | None) -> Generator:
        """PEFT's own layers merged into a copy: another way to the same network."""
        model = Model.load(prepare_base(str(folder), project.cache), quantization="none", device="cpu", dtype=torch.float32)
        if ref:
            model.load_adapter("policy", self.folders[ref])
        return Generator(model.merged_copy("policy" if ref else None), frozenset({2}))

    def batch(self, running: int = 8, kept: int = 4) -> Batch:
        return Batch(self.generator, self.lora, running=running, kept=kept)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return Small(Project.create(tmp_path_factory.mktemp("project")))


def text(seed: int, length: int) -> list[int]:
    return torch.randint(3, 259, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def run(batch: Batch, works: list[Work], *, every: int = 1) -> dict[int, list[Written]]:
    """Admit one request each `every` steps, as room allows, until all are over."""
    found: dict[int, list[Written]] = {work.key: [] for work in works}
    waiting, step = list(works), 0
    with batch.generator.ready(NAME):
        while waiting or batch.works:
            if waiting and batch.room and step % every == 0:
                batch.admit(waiting.pop(0))
            for written in batch.step():
                found[written.key].append(written)
            step += 1
    return found


def work(key: int, adapter: str | None, context: list[int], budget: int = 12, **more) -> Work:
    return Work(key=key, context=context, adapter=adapter, budget=budget, **more)


def assert_alone(small: Small, one: Work, found: list[Written]) -> None:
    session = small.plain[one.adapter].session()
    sampler = one.sampler
    alone = session.generate(
        {0: one.context}, max_new_tokens=one.budget, temperature=sampler.temperature, top_p=sampler.top_p, seeds={0: one.seed}
    )[0]
    assert [written.token for written in found] == list(alone.ids)
    assert [written.logprob for written in found] == pytest.approx(list(alone.logprobs), abs=1e-4)
    assert found[-1].end == ("stop" if alone.stopped else "length")
    assert not any(written.end for written in found[:-1])


def test_rows_of_different_adapters_each_equal_their_solo_output(small: Small) -> None:
    works = [work(i, ADAPTERS[i % 3], text(1, 20) + text(10 + i, 3 + 4 * i), 12 + i) for i in range(7)]
    found = run(small.batch(), works)
    for one in works:
        assert_alone(small, one, found[one.key])
    assert len({tuple(w.token for w in found[i]) for i in range(3)}) == 3


@pytest.mark.parametrize("every", [1, 3])
def test_requests_that_join_between_steps_change_nothing_for_the_others(small: Small, every: int) -> None:
    works = [work(i, ADAPTERS[i % 3], text(20 + i, 5 + 9 * (i % 4)), 6 + 5 * (i % 3), sampler=Sampler(1.0, 0.9), seed=i) for i in range(12)]
    found = run(small.batch(running=4, kept=2), works, every=every)
    for one in works:
        assert_alone(small, one, found[one.key])


def test_long_prompts_are_computed_piece_by_piece_beside_the_others(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentalign.training.continuous.PIECE", 8)
    monkeypatch.setattr("agentalign.training.continuous.PASS_TOKENS", 16)
    batch = small.batch()
    works = [work(0, "hello@1", text(1, 5), 20), work(1, "hello@2", text(2, 70), 5), work(2, None, text(3, 33), 5)]
    order: list[int] = []
    with batch.generator.ready(NAME):
        for one in works:
            batch.admit(one)
        found: dict[int, list[Written]] = {0: [], 1: [], 2: []}
        while batch.works:
            for written in batch.step():
                order.append(written.key)
                found[written.key].append(written)
    for one in works:
        assert_alone(small, one, found[one.key])
    assert order[:4] == [0, 0, 0, 0], "the short one wrote while the long ones were still read"


def test_a_conversation_that_goes_on_computes_only_what_is_new(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = small.batch()
    computed: list[int] = []
    forward = batch.generator.forward
    monkeypatch.setattr(batch.generator, "forward", lambda ids, *rest: (computed.append(len(ids)), forward(ids, *rest))[1])
    context = text(1, 40)
    first = run(batch, [work(0, "hello@1", context, 5)])[0]
    longer = [*context, *(w.token for w in first), *text(2, 6)]
    again = work(1, "hello@1", longer, 5)
    computed.clear()
    found = run(batch, [again])[1]
    assert_alone(small, again, found)
    assert computed[0] == 7, "the new tokens, and the last one written, which was never computed"
    assert again.cached == 44
    assert len(batch.rows) == 1


def test_a_beginning_is_shared_under_one_adapter_and_never_under_another(small: Small) -> None:
    batch = small.batch()
    shared = text(1, 60)
    works = [work(i, adapter, shared + text(10 + i, 30), 6) for i, adapter in enumerate(("hello@1", "hello@1", "hello@2", None, "hello@1"))]
    found = run(batch, works, every=4)
    for one in works:
        assert_alone(small, one, found[one.key])
    assert [one.cached for one in works] == [0, 60, 0, 0, 60]


def test_what_was_computed_for_one_owner_is_no_others(small: Small) -> None:
    batch = small.batch()
    prompt = text(1, 60)
    works = [work(i, "hello@1", prompt, 6, owner=owner) for i, owner in enumerate(("anna", "boris", "anna", "boris"))]
    found = run(batch, works, every=4)
    for one in works:
        assert_alone(small, one, found[one.key])
    assert [one.cached for one in works] == [0, 0, 59, 59]


def test_a_row_whose_scores_are_no_numbers_fails_alone_and_leaves_nothing_behind(small: Small) -> None:
    batch = small.batch(running=2, kept=0)
    sound = work(0, "hello@1", text(1, 20), 6)
    bad = [work(i, ref, [*text(2, 30), 1], 6, sampler=Sampler(1.0, 0.9)) for i, ref in ((1, "hello@2"), (2, "hello@2"))]

    def spoil(_: torch.nn.Module, given: tuple[torch.Tensor], vectors: torch.Tensor) -> torch.Tensor:
        return vectors.masked_fill((given[0] == 1)[..., None], torch.nan)

    hook = batch.generator.model.get_input_embeddings().register_forward_hook(spoil)
    try:
        found = run(batch, [sound, *bad])
    finally:
        hook.remove()
    assert_alone(small, sound, found[0])
    for one in bad:
        (said,) = found[one.key]
        assert said.problem.startswith("the scores of hello@2 are no numbers")
    after = [work(3, "hello@2", text(3, 9), 6), work(4, "hello@1", text(4, 9), 6)]
    found = run(batch, after)
    for one in after:
        assert_alone(small, one, found[one.key])


def test_kept_rows_give_way_and_rows_never_grow_beyond_the_limit(small: Small) -> None:
    batch = small.batch(running=2, kept=1)
    works = [work(i, ADAPTERS[i % 2], text(i, 20 + i), 4) for i in range(9)]
    found = run(batch, works)
    for one in works:
        assert_alone(small, one, found[one.key])
    assert len(batch.rows) == 3


def test_a_request_that_is_dropped_frees_its_row(small: Small) -> None:
    batch = small.batch(running=1, kept=0)
    with batch.generator.ready(NAME):
        batch.admit(work(0, "hello@1", text(1, 10), 50))
        batch.step()
        assert batch.room == 0
        batch.drop(0)
        batch.drop(99)
        assert batch.room == 1
    other = work(1, "hello@2", text(2, 10), 5)
    assert_alone(small, other, run(batch, [other])[1])


def test_a_batch_that_was_cleared_goes_on_with_the_same_tokens(small: Small) -> None:
    batch = small.batch()
    works = [work(i, ADAPTERS[i], text(i, 15), 14, sampler=Sampler(1.0), seed=i) for i in range(3)]
    found: dict[int, list[Written]] = {0: [], 1: [], 2: []}
    with batch.generator.ready(NAME):
        for one in works:
            batch.admit(one)
        for step in range(40):
            if step == 6:
                for one in batch.clear():
                    batch.admit(one)
            for written in batch.step():
                found[written.key].append(written)
    for one in works:
        assert_alone(small, one, found[one.key])


def test_the_likeliest_ids_come_with_their_logprobs(small: Small) -> None:
    found = run(small.batch(), [work(0, "hello@1", text(1, 10), 4, top=3)])[0]
    for written in found:
        assert written.top[0] == (written.token, pytest.approx(written.logprob, abs=1e-5))
        assert [p for _, p in written.top] == sorted((p for _, p in written.top), reverse=True)
        assert len(written.top) == 3


class Only:
    """A constraint that allows some ids, refuses others one by one, and ends after a number of them."""

    def __init__(self, mask: torch.Tensor | None, refused: frozenset[int], length: int) -> None:
        self.mask, self.refused, self.left = mask, refused, length

    @property
    def over(self) -> bool:
        return self.left == 0

    def allowed(self) -> torch.Tensor | None:
        return self.mask

    def refuses(self, token: int) -> bool:
        return token in self.refused

    def advance(self, token: int) -> None:
        self.left -= 1


def test_a_constraint_binds_its_own_row_and_ends_it(small: Small) -> None:
    mask = torch.zeros(259, dtype=torch.bool)
    mask[[40, 41, 42]] = True
    bound = work(0, "hello@1", text(1, 10), 9, constraint=Only(mask, frozenset({41}), 4))
    free = work(1, "hello@1", text(1, 10), 9)
    found = run(small.batch(), [bound, free])
    assert {w.token for w in found[0]} <= {40, 42}
    assert (len(found[0]), found[0][-1].end) == (4, "stop")
    assert_alone(small, free, found[1])
    logits = small.plain["hello@1"].model(torch.tensor([text(1, 10)])).logits[0, -1].float()
    assert found[0][0].logprob == pytest.approx(torch.log_softmax(logits, -1)[found[0][0].token].item(), abs=1e-4)


def test_a_constraint_without_a_way_out_ends_its_own_row_with_a_reason(small: Small) -> None:
    mask = torch.zeros(259, dtype=torch.bool)
    mask[40] = True
    stuck = work(0, "hello@1", text(1, 10), 9, constraint=Only(mask, frozenset({40}), 4))
    free = work(1, "hello@2", text(1, 10), 9)
    found = run(small.batch(), [stuck, free])
    assert "allowed" in found[0][0].problem
    assert_alone(small, free, found[1])


def test_a_constraint_that_cannot_follow_ends_its_own_row_with_a_reason(small: Small) -> None:
    class Lost(Only):
        def advance(self, token: int) -> None:
            super().advance(token)
            if not self.left:
                raise ModelError("the grammar is too large.")

    bound = work(0, "hello@1", text(1, 10), 9, constraint=Lost(None, frozenset(), 3))
    free = work(1, "hello@2", text(1, 10), 9)
    found = run(small.batch(), [bound, free])
    assert [w.problem for w in found[0]] == ["", "", "the grammar is too large."]
    assert len(bound.ids) == 2, "what it could not follow is not written"
    assert_alone(small, free, found[1])


def test_what_was_written_before_a_step_broke_is_not_lost(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    batch, forward, calls = small.batch(), small.generator.forward, 0

    def breaking(*given):
        nonlocal calls
        calls += 1
        if calls == 2:
            raise RuntimeError("out of memory")
        return forward(*given)

    monkeypatch.setattr(batch.generator, "forward", breaking)
    short, long = work(0, "hello@1", text(1, 20), 1), work(1, "hello@2", text(2, 20), 9)
    with batch.generator.ready(NAME):
        for one in (short, long):
            batch.admit(one)
        with pytest.raises(RuntimeError):  # the prompts are computed, and give a token each; the long one's second breaks
            batch.step()
        found = batch.take()
        assert [(w.key, w.end) for w in found] == [(0, "length"), (1, "")]
        assert batch.take() == []
        for one in batch.clear():
            batch.admit(one)
        while batch.works:
            found += batch.step()
    monkeypatch.undo()
    for one in (short, long):
        assert_alone(small, one, [w for w in found if w.key == one.key])


def test_an_adapter_that_is_not_in_memory_is_named(small: Small) -> None:
    batch = small.batch()
    with batch.generator.ready(NAME):
        batch.admit(work(0, "hello@9", text(1, 5)))
        with pytest.raises(ModelError, match=r"no adapter 'hello@9'"):
            batch.step()
    batch.clear()
    assert small.lora.names == {"hello@1", "hello@2"}


def test_an_adapter_of_another_shape_is_refused(small: Small, tmp_path: Path) -> None:
    other = Project.create(tmp_path / "other")
    model = Model.load(small.model.base, quantization="none", device="cpu", dtype=torch.float32)
    model.add_adapter("policy", r=2, alpha=4, targets=["q_proj"])
    model.save_adapter("policy", tmp_path / "files")
    assert len(small.lora.read(tmp_path / "files")) == 2
    settings = (tmp_path / "files" / "adapter_config.json").read_text().replace('"q_proj"', '"q_proj", "k_proj"')
    (tmp_path / "files" / "adapter_config.json").write_text(settings)
    with pytest.raises(RegistryError, match="4 tensors are missing"):
        small.lora.read(tmp_path / "files")
    assert other.root


def test_a_base_without_batched_attention_is_refused() -> None:
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=61, hidden_size=32, num_hidden_layers=2, state_size=4, eos_token_id=None, pad_token_id=0)
    generator = Generator(MambaForCausalLM(config).eval(), frozenset({7}))
    with pytest.raises(ModelError, match="cannot be served"):
        Batch(generator, MixedLora(generator.model), running=2, kept=2)
