"""The distance between two policies: nothing between a policy and itself, and the right number where it can be known by hand."""

from typing import NamedTuple

import pytest
import torch
from small_base import make_base
from torch.nn.functional import kl_div

from agentalign.training.base import prepare_base
from agentalign.training.model import Model
from agentalign.training.policy_distance import TOKENS, policy_distance


class Turn(NamedTuple):
    context: tuple[int, ...]
    completion: tuple[int, ...]


TURNS = [Turn((1, 30, 40, 50), (60, 61, 2)), Turn((1, 30, 41), (70, 2)), Turn((1, 30, 41), (71, 9, 2))]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("distance")
    found = Model.load(prepare_base(str(make_base(folder / "base")), folder), quantization="none", device="cpu", dtype=torch.float32)
    for name, std in (("policy", 0.3), ("other", 0.4)):
        found.add_adapter(name, r=4, alpha=8)
        torch.manual_seed(len(name))
        for key, tensor in found.adapter_tensors(name).items():
            if ".lora_B." in key:
                tensor.data.normal_(std=std)
    return found


def test_a_policy_lies_at_no_distance_from_itself(model: Model) -> None:
    found = policy_distance(model, "policy", model, "policy", TURNS)
    assert found.kl == 0
    assert found.floor < 1e-6
    assert found.tokens == 8


def test_the_distance_is_the_mean_divergence_over_the_vocabulary(model: Model) -> None:
    away = []
    with torch.no_grad():
        for turn in TURNS:
            ids = torch.tensor([[*turn.context, *turn.completion]])
            rows = slice(len(turn.context) - 1, -1)
            p, q = (model.merged_copy(name)(ids).logits[0, rows].log_softmax(-1) for name in ("policy", "other"))
            away.append(kl_div(q, p, log_target=True, reduction="none").sum(-1))
    expected = torch.cat(away)
    found = policy_distance(model, "policy", model, "other", TURNS)
    assert found.kl == pytest.approx(float(expected.mean()), rel=1e-3)
    assert found.worst == pytest.approx(float(expected.max()), rel=1e-3)
    assert found.kl > 100 * found.floor


def test_a_base_is_compared_too_and_long_turns_are_cut(model: Model) -> None:
    long = Turn((1, 30), tuple(range(3, 3 + 2 * TOKENS)))
    found = policy_distance(model, "policy", model, None, [long])
    assert found.tokens == TOKENS
    assert found.kl > 0
