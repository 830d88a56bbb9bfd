"""A run is no longer than the positions for which the base's rotary frequencies stay the same."""

import pytest
import torch
from transformers import LlamaConfig, Phi3Config

from agentalign.errors import DataError
from agentalign.training.generate import Generator
from agentalign.training.positions import position_limit
from agentalign.training.render import render
from agentalign.training.tree import build_tree
from tests.test_attention import SHAPE, Run, Turn, ids, make_model
from tests.test_pairs import run

ROPE = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [8.0] * 4}
LONG = Phi3Config(**SHAPE, original_max_position_embeddings=64, rope_parameters={**ROPE, "rope_theta": 10000.0})


def test_the_limit_is_that_of_positions_or_of_fixed_frequencies():
    assert position_limit(LlamaConfig(**SHAPE)) == 512
    assert position_limit(LONG) == 64
    assert position_limit(LlamaConfig(**SHAPE, rope_parameters={"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0})) == 512


def test_beyond_it_a_run_would_depend_on_who_is_in_the_batch_and_is_refused(tmp_path):
    model = make_model(tmp_path, LONG)
    draw = torch.Generator().manual_seed(1)
    short, long = (Run((Turn(ids(draw, size), ids(draw, 5)),)) for size in (40, 90))
    with torch.no_grad(), model.using("policy"):
        alone, beside = (model.token_logprobs(build_tree(runs))[:5] for runs in ([short], [short, long]))
    assert (alone - beside).abs().max() > 1e-3, "the reason for the limit is gone"
    assert model.dialect.longest == Generator(model.merged_copy("policy"), model.dialect.stop_ids).limit == 64
    with pytest.raises(DataError, match=r"it has \d+ tokens, and the base takes 64: it has no more positions, or other rotary frequencies"):
        render(run("word " * 80), model.dialect, max_tokens=4096)
