"""What was computed once by the same weights on the same tokens is read from disk."""

import pytest
import torch

from agentalign.recipes.data import Part, Turn, fixed_logprobs
from agentalign.training.logprob_cache import cached, owner_of
from tests.test_attention import CONFIGS, make_model

NAMES = ["a", "b", "c"]


def values(indices):
    return [torch.full((index + 1,), float(index)) for index in indices]


def test_only_what_is_not_known_is_computed(tmp_path):
    asked = []

    def compute(indices):
        asked.append(list(indices))
        return values(indices)

    first = cached(tmp_path, "owner", NAMES[:2], compute)
    again = cached(tmp_path, "owner", NAMES, compute)
    assert asked == [[0, 1], [2]]
    for one, other in zip([*first, *values([2])], again, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    cached(tmp_path, "another owner", NAMES[:1], compute)
    assert asked[-1] == [0]


def test_what_is_no_number_is_handed_on_and_never_kept(tmp_path):
    bad = torch.tensor([-1.0, float("nan")])
    first = cached(tmp_path, "owner", NAMES, lambda indices: [*values(indices[:2]), bad])
    assert first[2].isnan().any()
    asked = []
    again = cached(tmp_path, "owner", NAMES, lambda indices: (asked.append(list(indices)), values(indices))[1])
    assert asked == [[2]] and torch.equal(again[2], values([2])[0])


def test_a_damaged_file_is_made_anew(tmp_path, caplog):
    cached(tmp_path, "owner", NAMES, values)
    (tmp_path / "owner.safetensors").write_bytes(b"torn")
    assert len(cached(tmp_path, "owner", NAMES, values)) == 3
    assert "made anew" in caplog.text


def test_other_weights_or_tokens_are_another_matter(tmp_path):
    model = make_model(tmp_path / "model", CONFIGS["llama"])
    parts = [Part((Turn((5, 6, 7), (8, 9)),)), Part((Turn((5, 6, 7), (9, 8)),))]
    plain = fixed_logprobs(model, "policy", parts, max_tokens=100)
    first = fixed_logprobs(model, "policy", parts, max_tokens=100, cache=tmp_path)
    again = fixed_logprobs(model, "policy", parts[::-1], max_tokens=100, cache=tmp_path)
    for one, two, three in zip(plain, first, again[::-1], strict=True):
        torch.testing.assert_close(one, two)
        assert torch.equal(two, three)
    before = owner_of(model, "policy")
    with torch.no_grad():
        model.parameters_of("policy")[1].add_(0.5)
    assert owner_of(model, "policy") != before
    moved = fixed_logprobs(model, "policy", parts, max_tokens=100, cache=tmp_path)
    assert (moved[0] - first[0]).abs().max() > 1e-4
    assert len(list(tmp_path.glob("*.safetensors"))) == 2


def test_the_same_weights_otherwise_scaled_or_computed_are_another_matter(tmp_path):
    model = make_model(tmp_path, CONFIGS["llama"])
    for name, alpha in (("one", 8), ("same", 8.0), ("louder", 16)):
        model.add_adapter(name, r=4, alpha=alpha, seed=3)
    assert owner_of(model, "one") == owner_of(model, "same")
    assert owner_of(model, "one") != owner_of(model, "louder")
    before = owner_of(model, "one")
    model.give_up_trees()
    assert owner_of(model, "one") != before


def test_a_folder_that_cannot_be_written_costs_only_time(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    found = cached(tmp_path / "file", "owner", NAMES, values)
    assert [len(value) for value in found] == [1, 2, 3]
    assert "computed again" in caplog.text


@pytest.mark.parametrize("count", [0, 1])
def test_nothing_and_one(tmp_path, count):
    assert len(cached(tmp_path, "owner", NAMES[:count], values)) == count
