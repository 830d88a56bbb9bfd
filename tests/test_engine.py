"""The loop: exact accumulation, a gate that wins over good-looking losses, resume, and bad numbers."""

import json
import math
import os
import signal
from dataclasses import replace

import pytest
import torch

from agentalign.errors import TrainingError, TrainingStoppedError
from agentalign.recipes.data import Part, Turn
from agentalign.training import model as model_module
from agentalign.training import tree_check
from agentalign.training.attention import leaf_paths
from agentalign.training.engine import train
from agentalign.training.losses import sft_loss
from agentalign.training.schedule import Plan
from agentalign.training.step import Evaluated, Learner, LossTerms, MicroBatch, Pass, Term, in_pieces, row_tokens
from agentalign.training.tree import build_tree, pack
from tests.test_attention import CONFIGS, make_model, three_levels_deep


def micro(runs):
    tree = build_tree(runs)
    return MicroBatch(tree, {"sft": float(len(tree.occurrences))}, trajectories=tuple(str(i) for i in range(len(runs))))


def sft(model, batch):
    return LossTerms({"sft": Term(sft_loss(model.token_logprobs(batch.tree)))}, {})


def steps_of(make_batches, total):
    return lambda start: ([Pass("policy", lambda _, step=step: make_batches(step), sft)] for step in range(start, total))


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters_of("policy")])


def trained(tmp_path, name, make_batches, **plan):
    model = make_model(tmp_path / name, CONFIGS["llama"])
    plan = Plan(**{"total_steps": 3, "schedule": "constant", **plan})
    outcome = train(
        model, [Learner("policy", learning_rate=1e-3)], steps_of(make_batches, plan.total_steps), plan, folder=tmp_path / name / "run"
    )
    return model, outcome


def test_accumulation_over_many_micro_batches_equals_one(tmp_path):
    runs = three_levels_deep()
    one, first = trained(tmp_path, "one", lambda _: [micro(runs)], total_steps=1)
    many, second = trained(tmp_path, "many", lambda _: [micro([run]) for run in runs], total_steps=1)
    for a, b in zip(one.parameters_of("policy"), many.parameters_of("policy"), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-5, rtol=0)
    assert first.last_metrics["loss"] == pytest.approx(second.last_metrics["loss"], abs=1e-5)


def test_loss_falls_and_rows_are_written(tmp_path):
    _, outcome = trained(tmp_path, "one", lambda _: [micro(three_levels_deep())], total_steps=8)
    rows = [json.loads(line) for line in (tmp_path / "one" / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 9))
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.01
    assert outcome.steps == 8
    assert rows[-1]["num_tokens"] == 8 * build_tree(three_levels_deep()).n_tokens


def test_two_trainings_from_one_seed_are_equal(tmp_path):
    one, _ = trained(tmp_path, "one", lambda _: [micro(three_levels_deep())])
    two, _ = trained(tmp_path, "two", lambda _: [micro(three_levels_deep())])
    assert torch.equal(weights(one), weights(two))


def test_interrupted_training_resumes_to_the_same_weights(tmp_path):
    runs = three_levels_deep()

    def batches(step):
        return [micro([runs[step % 4]])]

    whole, _ = trained(tmp_path, "whole", batches, total_steps=6, schedule="cosine")

    def breaks(step):
        if step == 4:
            raise KeyboardInterrupt
        return batches(step)

    model = make_model(tmp_path / "cut", CONFIGS["llama"])
    plan = Plan(total_steps=6, schedule="cosine", save_every_steps=2)
    with pytest.raises(KeyboardInterrupt):
        train(model, [Learner("policy", learning_rate=1e-3)], steps_of(breaks, 6), plan, folder=tmp_path / "cut" / "run")
    again = make_model(tmp_path / "again", CONFIGS["llama"])
    train(again, [Learner("policy", learning_rate=1e-3)], steps_of(batches, 6), plan, folder=tmp_path / "cut" / "run")
    assert torch.equal(weights(again), weights(whole))
    rows = [json.loads(line)["step"] for line in (tmp_path / "cut" / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows == [1, 2, 3, 4, 5, 6]


def test_best_evaluated_weights_win_even_those_of_the_start(tmp_path):
    model = make_model(tmp_path, CONFIGS["llama"])
    start = weights(model).clone()
    scores = {0: 0.9, 2: 0.85, 4: 0.88}
    plan = Plan(total_steps=4, eval_every_steps=2)
    outcome = train(
        model, [Learner("policy", learning_rate=1e-2)], steps_of(lambda _: [micro(three_levels_deep())], 4), plan, folder=tmp_path / "run",
        evaluate=lambda step, first: Evaluated(scores[step], {}),
    )  # fmt: skip
    assert outcome.best_step == 0
    assert outcome.evaluations == [(0, 0.9), (2, 0.85), (4, 0.88)]
    assert torch.equal(weights(model), start)


def test_what_the_first_evaluation_found_is_known_to_later_ones_also_after_a_resume(tmp_path):
    seen = []

    def evaluate(step, first):
        seen.append((step, dict(first)))
        return Evaluated(0.5, {"family/a": float(step)})

    def breaks(step):
        if step == 3:
            raise KeyboardInterrupt
        return [micro(three_levels_deep())]

    plan = Plan(total_steps=4, eval_every_steps=2, save_every_steps=2)
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(
            make_model(tmp_path / "a", CONFIGS["llama"]), [Learner("policy")], steps_of(breaks, 4), plan, folder=folder, evaluate=evaluate
        )
    again = make_model(tmp_path / "b", CONFIGS["llama"])
    train(again, [Learner("policy")], steps_of(lambda _: [micro(three_levels_deep())], 4), plan, folder=folder, evaluate=evaluate)
    assert seen == [(0, {}), (2, {"family/a": 0.0}), (4, {"family/a": 0.0})]


def test_a_training_that_is_killed_after_its_last_gate_ends_with_the_same_figures(tmp_path):
    plan = Plan(total_steps=2, eval_every_steps=2, save_every_steps=1)

    def outcome(name):
        def evaluate(step, first):
            return Evaluated(0.5, {"family/a": float(step)})

        batches = steps_of(lambda _: [micro(three_levels_deep())], 2)
        return train(
            make_model(tmp_path / name, CONFIGS["llama"]), [Learner("policy")], batches, plan, folder=tmp_path / "run", evaluate=evaluate
        )

    whole = outcome("whole")
    assert whole.last_metrics["eval/family/a"] == 2.0
    # Its checkpoint is all that is left of it.
    assert outcome("again") == whole


def test_fall_below_the_start_ends_the_training_and_rolls_back(tmp_path):
    model = make_model(tmp_path, CONFIGS["llama"])
    start = weights(model).clone()
    scores = iter([0.8, 0.5])
    plan = Plan(total_steps=10, eval_every_steps=1, max_drop=0.2)
    outcome = train(
        model, [Learner("policy", learning_rate=1e-2)], steps_of(lambda _: [micro(three_levels_deep())], 10), plan, folder=tmp_path / "run",
        evaluate=lambda step, first: Evaluated(next(scores), {}),
    )  # fmt: skip
    assert outcome.steps == 1
    assert "0.500 fell more than 0.2" in outcome.stopped
    assert torch.equal(weights(model), start)


def test_non_finite_step_is_skipped_and_several_end_the_training(tmp_path):
    model = make_model(tmp_path, CONFIGS["llama"])
    start = weights(model).clone()

    def bad(model, batch):
        return LossTerms({"sft": Term(sft_loss(model.token_logprobs(batch.tree)) * math.nan)}, {})

    def steps(start):
        return ([Pass("policy", lambda _: [micro(three_levels_deep())], bad)] for _ in range(start, 10))

    with pytest.raises(TrainingError, match=r"3 steps in a row.*learning_rate"):
        train(model, [Learner("policy", learning_rate=1e-2)], steps, Plan(total_steps=10), folder=tmp_path / "run")
    assert torch.equal(weights(model), start)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(row["skipped"] == 1.0 for row in rows)
    assert "loss" in rows[0]["not_finite"]
    named = [json.loads(line) for line in (tmp_path / "run" / "not_finite.jsonl").read_text().splitlines()]
    assert [row["step"] for row in named] == [1, 2, 3]
    assert named[0]["trajectories"] == ["0", "1", "2", "3"]
    with pytest.raises(TrainingError, match=r"1 step had non-finite numbers"):
        train(model, [Learner("policy")], steps, Plan(total_steps=10, nan_policy="stop"), folder=tmp_path / "strict")


def test_a_gradient_that_is_not_finite_is_not_applied_though_the_loss_is(tmp_path):
    def steep(model, batch):
        found = sft(model, batch)
        found.terms["sft"].values.register_hook(lambda gradient: gradient * float("inf"))
        return found

    model = make_model(tmp_path, CONFIGS["llama"])
    start = weights(model).clone()
    steps = lambda start: ([Pass("policy", lambda _: [micro(three_levels_deep())], steep)] for _ in range(start, 10))
    with pytest.raises(TrainingError, match="had non-finite numbers"):
        train(model, [Learner("policy", learning_rate=1e-2)], steps, Plan(total_steps=10, nan_policy="stop"), folder=tmp_path / "run")
    assert torch.equal(weights(model), start)
    (row,) = [json.loads(line) for line in (tmp_path / "run" / "not_finite.jsonl").read_text().splitlines()]
    assert row["not_finite"] == "grad_norm/policy" and row["trajectories"] == ["0", "1", "2", "3"]


def packed(budget):
    """Micro-batches as a recipe makes them: as many runs as the budget allows."""
    return [micro(some) for some in pack(three_levels_deep(), max_tokens=budget, runs_of=lambda run: [run])]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
        MemoryError(),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_out_of_memory_makes_smaller_micro_batches_and_the_same_gradient(tmp_path, caplog, error):
    sizes = []

    def tight(model, batch):
        sizes.append(batch.tree.n_runs)
        if batch.tree.n_runs > 2:
            raise error
        return sft(model, batch)

    plan = Plan(total_steps=2, schedule="constant", save_every_steps=1)
    steps = lambda start: ([Pass("policy", packed, tight)] for _ in range(start, 2))
    model = make_model(tmp_path / "tight", CONFIGS["llama"])
    train(model, [Learner("policy", learning_rate=1e-3)], steps, plan, folder=tmp_path / "run")
    roomy, _ = trained(tmp_path, "roomy", lambda _: packed(4096), total_steps=2)
    for a, b in zip(model.parameters_of("policy"), roomy.parameters_of("policy"), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-5, rtol=0)
    assert sizes[0] == 4
    assert max(sizes[1:]) <= 2, "the second step still tried what did not fit in the first"
    assert "with the same gradient" in caplog.text
    assert json.loads((tmp_path / "run" / "checkpoints" / "step-00000001" / "state.json").read_text())["notes"]["micro_batch_tokens"] < 4096
    sizes.clear()
    steps = lambda start: ([Pass("policy", packed, tight)] for _ in range(start, 3))
    longer = replace(plan, total_steps=3)
    train(make_model(tmp_path / "again", CONFIGS["llama"]), [Learner("policy", learning_rate=1e-3)], steps, longer, folder=tmp_path / "run")
    assert sizes and max(sizes) <= 2, "taken up again, it tried once more what had not fit"


def test_a_step_computes_every_distinct_token_once_and_the_head_every_distinct_label(tmp_path, monkeypatch):
    runs = three_levels_deep()
    micros = [micro(runs[:2]), micro(runs[2:])]
    model = make_model(tmp_path, CONFIGS["llama"])
    forwards, heads = [], []
    model.backbone.register_forward_pre_hook(lambda _module, _given, named: forwards.append(named["input_ids"].numel()), with_kwargs=True)
    real = model_module.token_logprobs
    monkeypatch.setattr(model_module, "token_logprobs", lambda hidden, *more: (heads.append(len(hidden)), real(hidden, *more))[1])
    train(model, [Learner("policy")], steps_of(lambda _: micros, 3), Plan(total_steps=3, schedule="constant"), folder=tmp_path / "run")
    # The first step looks at a tree beside two of its paths; from then on nothing is computed but the step itself.
    assert forwards[-2:] == forwards[-4:-2] == [one.tree.n_tokens for one in micros]
    assert len(forwards) == 3 * 2 + 3
    assert heads[-2:] == [len(one.tree.labels) for one in micros]
    alone = [build_tree([run]) for run in runs]
    assert sum(one.tree.n_tokens for one in micros) < sum(tree.n_tokens for tree in alone)


def test_trees_are_looked_at_as_soon_as_one_branches(tmp_path, monkeypatch, caplog):
    runs = three_levels_deep()
    made = [[micro(runs[:1])], [micro(runs[:1]), micro(runs)], [micro(runs)]]
    model = make_model(tmp_path, CONFIGS["llama"])
    real = tree_check.check_tree
    looked = []
    monkeypatch.setattr(tree_check, "check_tree", lambda model, batch: (looked.append(len(leaf_paths(batch))), real(model, batch))[1])
    train(model, [Learner("policy")], steps_of(lambda step: made[step], 3), Plan(total_steps=3), folder=tmp_path / "run")
    assert looked == [1, len(leaf_paths(build_tree(runs)))], "a chain proves nothing of a tree that branches, and one that does is enough"


def test_where_no_tree_fits_micro_batches_are_cut_by_what_the_rows_compute(tmp_path):
    runs = [Part((Turn((*range(5, 45), 50 + number), (6, 7, 8)),)) for number in range(6)]  # 40 tokens in common, 4 of their own
    one = Pass("policy", lambda tokens: [micro(some) for some in pack(runs, max_tokens=tokens, runs_of=lambda run: [run])], sft)
    assert [len(in_pieces(one, 100, 1, trees=trees)) for trees in (True, False)] == [1, 3]
    assert all(row_tokens(piece.tree) <= 100 for piece in in_pieces(one, 100, 1, trees=False))
    assert len(in_pieces(one, 10, 1, trees=False)) == 6, "each alone, and no further"
    runs.append(Part((Turn(tuple(range(100, 220)), (6, 7, 8)),)))
    assert [row_tokens(piece.tree) for piece in in_pieces(one, 100, 1, trees=False)] == [88, 88, 88, 123], (
        "one is long: no reason to cut more"
    )


def test_out_of_memory_gives_up_the_merged_copy_before_micro_batches_are_cut(tmp_path, caplog):
    sizes = []

    def tight(model, batch):
        sizes.append(batch.tree.n_runs)
        if len(sizes) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return sft(model, batch)

    model = make_model(tmp_path / "tight", CONFIGS["llama"])
    model.merged_copy("policy")
    steps = lambda start: ([Pass("policy", packed, tight)] for _ in range(start, 2))
    plan = Plan(total_steps=2, schedule="constant", save_every_steps=1)
    train(model, [Learner("policy", learning_rate=1e-3)], steps, plan, folder=tmp_path / "run")
    assert sizes == [4, 4, 4] and "is given up until it acts again" in caplog.text
    assert not model.forget_merged_copy(), "it was given up already"
    notes = json.loads((tmp_path / "run" / "checkpoints" / "step-00000001" / "state.json").read_text())["notes"]
    assert notes["micro_batch_tokens"] == plan.micro_batch_tokens


def test_a_run_that_does_not_fit_alone_says_what_to_change(tmp_path):
    def full(model, batch):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    steps = lambda start: ([Pass("policy", packed, full)] for _ in range(start, 2))
    with pytest.raises(TrainingError, match="gradient_checkpointing: auto, lower max_tokens"):
        train(make_model(tmp_path, CONFIGS["llama"]), [Learner("policy")], steps, Plan(total_steps=2), folder=tmp_path / "run")


def test_activations_are_recomputed_where_smaller_micro_batches_do_not_help(tmp_path, caplog):
    asked = []

    def tight(model, batch):
        asked.append((batch.tree.n_runs, model.recomputes))
        if not model.recomputes:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return sft(model, batch)

    model = make_model(tmp_path / "tight", CONFIGS["llama"])
    model.may_recompute = True
    steps = lambda start: ([Pass("policy", packed, tight)] for _ in range(start, 3))
    plan = Plan(total_steps=2, schedule="constant", save_every_steps=1)
    train(model, [Learner("policy", learning_rate=1e-3)], steps, plan, folder=tmp_path / "run")
    roomy, _ = trained(tmp_path, "roomy", lambda _: packed(4096), total_steps=2)
    for a, b in zip(model.parameters_of("policy"), roomy.parameters_of("policy"), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-5, rtol=0)
    # The runs share most of their tokens: halves of the batch would compute the shared ones twice.
    assert asked == [(4, False), (4, True), (4, True)]
    assert "activations are recomputed from here on" in caplog.text
    again = make_model(tmp_path / "again", CONFIGS["llama"])
    again.may_recompute = True
    train(again, [Learner("policy", learning_rate=1e-3)], steps, replace(plan, total_steps=3), folder=tmp_path / "run")
    assert again.recomputes, "a resumed training forgot what did not fit"


def test_other_errors_are_not_taken_for_a_lack_of_memory(tmp_path):
    def broken(model, batch):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    steps = lambda start: ([Pass("policy", packed, broken)] for _ in range(start, 2))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        train(make_model(tmp_path, CONFIGS["llama"]), [Learner("policy")], steps, Plan(total_steps=2), folder=tmp_path / "run")


@pytest.mark.parametrize("together", [1, 2])
def test_sigterm_saves_the_last_whole_step_and_the_same_command_goes_on(tmp_path, together):
    def asked(step):
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return [micro([three_levels_deep()[step % 4]])]

    before = signal.getsignal(signal.SIGTERM)
    plan = Plan(total_steps=6, schedule="cosine", save_every_steps=100, steps_together=together)
    with pytest.raises(TrainingStoppedError, match="step 3; step 3 is saved" if together == 1 else "step 3; nothing was saved"):
        train(
            make_model(tmp_path / "cut", CONFIGS["llama"]), [Learner("policy", learning_rate=1e-3)], steps_of(asked, 6), plan,
            folder=tmp_path / "run",
        )  # fmt: skip
    assert signal.getsignal(signal.SIGTERM) is before
    again = make_model(tmp_path / "again", CONFIGS["llama"])
    kind = steps_of(lambda step: [micro([three_levels_deep()[step % 4]])], 6)
    train(again, [Learner("policy", learning_rate=1e-3)], kind, plan, folder=tmp_path / "run")
    whole, _ = trained(tmp_path, "whole", lambda step: [micro([three_levels_deep()[step % 4]])], total_steps=6, schedule="cosine")
    assert torch.equal(weights(again), weights(whole))


@pytest.mark.parametrize("where", ["gate", "acting"])
def test_sigterm_is_answered_inside_the_gate_and_while_acting_and_nothing_is_lost(tmp_path, where):
    asks = True
    evaluated = []

    def minutes():
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("the work went on after the request to end")

    def evaluate(step, first):
        if where == "gate" and step == 2 and asks:
            minutes()
        evaluated.append(step)
        return Evaluated(-0.1 * step, {"success": 1.0})

    def acted(start):
        for step in range(start, 4):
            if where == "acting" and step == 2 and asks:
                minutes()
            yield [Pass("policy", lambda _, step=step: [micro([three_levels_deep()[step % 4]])], sft)]

    plan = Plan(total_steps=4, save_every_steps=3, eval_every_steps=2)
    with pytest.raises(TrainingStoppedError, match="step 2; step 2 is saved"):
        train(make_model(tmp_path / "cut", CONFIGS["llama"]), [Learner("policy")], acted, plan, folder=tmp_path / "run", evaluate=evaluate)
    asks = False
    again = train(
        make_model(tmp_path / "on", CONFIGS["llama"]), [Learner("policy")], acted, plan, folder=tmp_path / "run", evaluate=evaluate
    )
    assert evaluated == [0, 2, 4], "an evaluation was left out, or done twice"
    assert [step for step, _ in again.evaluations] == [0, 2, 4]


def test_a_kill_inside_the_gate_loses_no_step(tmp_path):
    class Killed(BaseException):
        pass

    steps_done, dies = [], True

    def evaluate(step, first):
        if step == 2 and dies:
            raise Killed
        return Evaluated(0.0, {})

    def make(step):
        steps_done.append(step)
        return [micro([three_levels_deep()[step % 4]])]

    plan = Plan(total_steps=4, save_every_steps=100, eval_every_steps=2)
    with pytest.raises(Killed):
        train(
            make_model(tmp_path / "cut", CONFIGS["llama"]), [Learner("policy")], steps_of(make, 4), plan, folder=tmp_path / "run",
            evaluate=evaluate,
        )  # fmt: skip
    dies = False
    steps_done.clear()
    train(
        make_model(tmp_path / "on", CONFIGS["llama"]), [Learner("policy")], steps_of(make, 4), plan, folder=tmp_path / "run",
        evaluate=evaluate,
    )  # fmt: skip
    assert sorted(set(steps_done)) == [2, 3]
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "eval/score" in row] == [0, 2, 4]


def test_what_ended_by_a_fall_on_dev_does_not_go_on_when_it_is_resumed(tmp_path):
    plan = Plan(total_steps=6, save_every_steps=100, eval_every_steps=2, max_drop=0.1)
    make = lambda step: [micro([three_levels_deep()[step % 4]])]
    evaluated = []

    def evaluate(step, first):
        evaluated.append(step)
        return Evaluated(-float(step), {})

    for _ in range(2):
        model = make_model(tmp_path / "model", CONFIGS["llama"])
        done = train(model, [Learner("policy")], steps_of(make, 6), plan, folder=tmp_path / "run", evaluate=evaluate)
        assert (done.steps, done.best_step) == (2, 0)
        assert "fell more than" in done.stopped
    assert evaluated == [0, 2], "the evaluation was done again"


def test_head_is_trained_with_its_adapter_and_resumed(tmp_path):
    def pull(model, batch):
        values = model.apply_head("value", model.hidden(batch.tree)[batch.tree.turn_state]).squeeze(1)
        return LossTerms({"value": Term((values - 1.0) ** 2)}, {})

    model = make_model(tmp_path, CONFIGS["llama"])
    model.add_head("value", 1)
    batch = micro(three_levels_deep())
    batch = MicroBatch(batch.tree, {"value": float(batch.tree.n_turns)})
    steps = lambda start: ([Pass("policy", lambda _: [batch], pull)] for _ in range(start, 30))
    learner = Learner("policy", ("value",), 1e-3, head_rate=1e-1)
    outcome = train(model, [learner], steps, Plan(total_steps=30, schedule="constant"), folder=tmp_path / "run")
    assert outcome.last_metrics["loss"] < 0.2


def test_two_terms_are_divided_by_their_own_counts(tmp_path):
    model = make_model(tmp_path, CONFIGS["llama"])
    seen = []

    def loss(model, batch):
        values = sft_loss(model.token_logprobs(batch.tree))
        seen.append(float(values.detach().sum()))
        return LossTerms({"sft": Term(values), "extra": Term(values[:1], 0.5)}, {})

    tree = build_tree(three_levels_deep())
    batch = MicroBatch(tree, {"sft": float(len(tree.occurrences)), "extra": 1.0})
    outcome = train(
        model,
        [Learner("policy")],
        lambda start: iter([[Pass("policy", lambda _: [batch], loss)]]),
        Plan(total_steps=1),
        folder=tmp_path / "run",
    )
    metrics = outcome.last_metrics
    assert metrics["loss/sft"] == pytest.approx(seen[0] / len(tree.occurrences), rel=1e-5)
    assert metrics["loss"] == pytest.approx(metrics["loss/sft"] + 0.5 * metrics["loss/extra"], rel=1e-5)
