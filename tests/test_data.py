"""What is only read is read in few and large batches, whatever becomes of them."""

import pytest
import torch

from agentalign.recipes.data import READING, Part, Turn, fixed_logprobs, reading_budget
from agentalign.training.model import Model
from tests.test_attention import CONFIGS, ids, make_model

PREFIX = 60


@pytest.fixture
def model(tmp_path) -> Model:
    return make_model(tmp_path, CONFIGS["llama"])


@pytest.fixture
def parts() -> list[Part]:
    """Eight runs of ten tokens behind the same sixty."""
    draw = torch.Generator().manual_seed(2)
    prompt = ids(draw, PREFIX)
    return [Part((Turn((*prompt, *ids(draw, 6)), ids(draw, 4)),)) for _ in range(8)]


def watched(model: Model, *, most: int = 10**9) -> list[int]:
    """The tokens of every forward from now on; more than `most` do not fit into memory."""
    sizes: list[int] = []

    def look(_module, _given, named):
        sizes.append(named["input_ids"].numel())
        if sizes[-1] > most:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    model.backbone.register_forward_pre_hook(look, with_kwargs=True)
    return sizes


def one_by_one(model: Model, parts: list[Part]) -> list[torch.Tensor]:
    return [fixed_logprobs(model, "policy", [part], max_tokens=1000)[0] for part in parts]


def same(found, expected) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_what_fills_a_micro_batch_by_itself_is_still_shared_where_it_is_only_read(model, parts):
    expected = one_by_one(model, parts)
    assert model.paths_checked < 2  # no tree has branched yet
    settled = fixed_logprobs(model, "policy", parts, max_tokens=PREFIX)
    assert model.paths_checked == 2, "a tree that branches was read before it was looked at"
    sizes = watched(model)
    found = fixed_logprobs(model, "policy", parts, max_tokens=PREFIX)
    assert sizes == [PREFIX + 8 * 10]
    same(settled, expected)
    same(found, expected)


@pytest.mark.parametrize(("most", "sizes"), [(120, [140, 120, 80]), (100, [140, 120, *[70] * 8])])
def test_what_does_not_fit_is_read_in_smaller_pieces_from_then_on(model, parts, caplog, most, sizes):
    expected = one_by_one(model, parts)
    fixed_logprobs(model, "policy", parts, max_tokens=PREFIX)
    seen = watched(model, most=most)
    same(fixed_logprobs(model, "policy", parts, max_tokens=PREFIX), expected)
    assert seen == sizes
    assert "out of memory while reading runs" in caplog.text
    seen.clear()
    same(fixed_logprobs(model, "policy", parts, max_tokens=PREFIX), expected)
    assert seen == [size for size in sizes if size <= most][-len(seen) :]


def test_rows_are_read_as_many_at_once_as_they_are_trained(model, parts):
    assert reading_budget(model, parts, 100) == READING * 100
    model.give_up_trees()
    assert reading_budget(model, parts, 100) == 100
