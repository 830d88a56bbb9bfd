"""KTO: good runs become likelier and bad ones less likely, without a single pair."""

import pytest
import torch

from agentalign.config.kto import KTOConfig
from agentalign.errors import DataError
from agentalign.recipes import kto
from agentalign.recipes.data import Part, RunData, Turn
from agentalign.recipes.kto import Rated, moved, rated_batches, rated_loss, step_runs
from agentalign.store.registry import Registry
from agentalign.store.store import Store
from agentalign.training.tree import build_tree
from tests.small_project import DPO, make_project
from tests.test_attention import CONFIGS, ids, make_model
from tests.test_dpo import rendered
from tests.test_pairs import run
from tests.test_recipes import rows


def rated(count, *, desirable, seed):
    draw = torch.Generator().manual_seed(seed)
    prompt = ids(draw, 30)
    return [Rated(Part((Turn(prompt, ids(draw, 3 + i)),)), desirable, f"{desirable}-{i}", reference=-20.0) for i in range(count)]


def test_good_and_bad_runs_come_as_often_however_many_there_are():
    good, bad = rated(3, desirable=True, seed=1), rated(40, desirable=False, seed=2)
    config = KTOConfig(taskset="toy", batch_size=5)
    found = [step_runs(good, bad, config, step) for step in range(20)]
    assert all(sum(one.desirable for one in some) == 3 and len(some) == 5 for some in found)
    assert {one.trajectory for some in found for one in some} == {one.trajectory for one in (*good, *bad)}


def test_micro_batches_hold_what_one_batch_holds(tmp_path):
    model = make_model(tmp_path, CONFIGS["llama"])
    config = KTOConfig(taskset="toy", nll_coefficient=0.5)
    items = [*rated(2, desirable=True, seed=1), *rated(3, desirable=False, seed=2)]
    draw = torch.Generator().manual_seed(5)
    replay = [rendered("again", (ids(draw, 12), ids(draw, 4)))]

    def totals(budget):
        found = {"kto": 0.0, "nll": 0.0}
        batches = rated_batches(items, replay, 0.25, budget)
        for micro in batches:
            with model.using("policy"), torch.no_grad():
                for name, term in rated_loss(model, micro, config).terms.items():
                    assert len(term.values) == micro.counts[name]
                    found[name] += float(term.values.sum())
        return len(batches), found

    one, whole = totals(4096)
    several, parts = totals(40)
    assert (one, several > 1) == (1, True)
    assert parts == pytest.approx(whole, rel=1e-5)
    # Two good runs and the replayed one stand under the anchor; by hand for the first good run.
    (micro,) = rated_batches(items, replay, 0.25, 4096)
    with model.using("policy"), torch.no_grad():
        ratio = micro.tree.sum_by_run(model.token_logprobs(micro.tree))[0] + 20.0
        value = rated_loss(model, micro, config).terms["kto"].values[0]
    torch.testing.assert_close(value, 1 - torch.sigmoid(0.1 * (ratio - 0.25)))
    assert micro.counts == {"kto": 5.0, "nll": 3.0}


def test_how_far_the_policy_moved_is_read_from_contexts_with_another_runs_words(tmp_path):
    model = make_model(tmp_path, CONFIGS["llama"])
    model.copy_adapter("policy", "reference", trainable=False)
    config, some = KTOConfig(taskset="toy"), rated(3, desirable=True, seed=1)
    assert moved(model, some, config) == 0.0

    def sums(adapter):
        turns = [one.part.turns[0] for one in some]
        mixed = [Part((Turn(turns[i].context, turns[(i + 1) % 3].completion),)) for i in range(3)]
        with model.using(adapter), torch.no_grad():
            return [float(model.token_logprobs(build_tree([part])).sum()) for part in mixed]

    for changed in ("policy", "reference"):
        for key, tensor in model.adapter_tensors(changed).items():
            if ".lora_B." in key:
                tensor.data.mul_(3.0 if changed == "policy" else 10.0)
        expected = sum(a - b for a, b in zip(sums("policy"), sums("reference"), strict=True)) / 3
        assert moved(model, some, config) == pytest.approx(max(0.0, expected), abs=1e-4)


@pytest.mark.parametrize(("value", "said"), [(1.0, "2 good and 0 bad"), (0.2, "0 good and 2 bad")])
def test_one_side_alone_is_refused_in_a_sentence(value, said):
    runs = [run("a", "one"), run("b", "two")]
    draw = torch.Generator().manual_seed(1)
    data = RunData({one.id: rendered(one.id, (ids(draw, 5), ids(draw, 3))) for one in runs}, [])
    with pytest.raises(DataError, match=said):
        kto.sides({one.id: value >= 0.5 for one in runs}, data, KTOConfig(taskset="toy"))


def test_kto_raises_good_runs_over_bad_ones_and_its_dry_run_counts_them(tmp_path):
    project = make_project(tmp_path)
    config = KTOConfig(**DPO, start="toy_desk@1", max_steps=6, learning_rate=2e-3, replay=2, batch_size=8)
    planned = kto.run(config, project, dry_run=True)
    assert planned.items["good runs"] > 0
    assert planned.items["bad runs"] > 0
    training = kto.run(config, project)
    first, last = (rows(project, training)[i] for i in (0, -1))
    # fp32 and no quantization: the reference is the start.
    assert first["kl"] == pytest.approx(0.0, abs=1e-4)
    assert first["rewards/chosen"] == pytest.approx(0.0, abs=1e-3)
    assert first["loss/kto"] == pytest.approx(0.5, abs=1e-3)
    assert last["rewards/chosen"] > last["rewards/rejected"]
    card, _ = Registry(project.adapters).resolve(training.adapter)
    assert (card.recipe, card.kind, card.parents) == ("kto", "policy", ("toy_desk@1",))
    assert card.data_counts["good"] == planned.items["good runs"]
    assert kto.run(config, project).id == training.id
    with Store(project.store_url) as store:
        assert store.training(training.id).status == "done"
