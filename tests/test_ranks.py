"""Several processes train the adapter that one would: same gradients, one result, one voice, and a failure is everybody's."""

import fcntl
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from agentalign.errors import TrainingError
from agentalign.training import ranks
from agentalign.training.metrics import StepSums, means

ROOT = Path(__file__).parents[1]
TRAIN = """
import json, os, sys
from pathlib import Path
import torch
from agentalign.training import ranks
from agentalign.training.engine import train
from agentalign.training.schedule import Plan
from agentalign.training.step import Learner, Pass
from tests.test_attention import CONFIGS, make_model
from tests.test_engine import packed, sft

torch.set_num_threads(1)
folder = Path(sys.argv[1])
# Before the group: in one, transformers saves on the first process only.
model = make_model(folder / os.environ["RANK"], CONFIGS["llama"])
ranks.start()
if ranks.rank() == 1:
    model.give_up_trees()  # as after a check that failed in one process only
seen = []

def loss(model, batch):
    seen.append(batch.tree.n_runs)
    # Only the second of two processes runs out of memory; a single one never does.
    if ranks.rank() == 1 and batch.tree.n_runs > 1:
        raise torch.OutOfMemoryError("CUDA out of memory.")
    return sft(model, batch)

steps = lambda start: ([Pass("policy", packed, loss)] for _ in range(start, 3))
plan = Plan(total_steps=3, schedule="constant", save_every_steps=1)
train(model, [Learner("policy", learning_rate=1e-3)], steps, plan, folder=folder / "run")
assert model.tree_capable == (ranks.world() == 1), "the processes compute in different ways"
found = [(p.detach().tolist(), p.grad.tolist()) for p in model.parameters_of("policy")]
(folder / f"found-{ranks.rank()}.json").write_text(json.dumps([found, seen]))
ranks.stop()
"""
TALK = """
import sys
from agentalign.errors import DataError, TrainingError
from agentalign.training import ranks

ranks.start()
me = ranks.rank()
assert ranks.world() == 2
assert ranks.gathered(f"rank {me}") == ["rank 0", "rank 1"]
assert ranks.first(lambda: me) == 0
assert ranks.shares(["aaaa", "bb", "c", "d"], len) == [["aaaa"], ["bb", "c", "d"]]
def refuse():
    assert me == 0, "the work was done by more than the first"
    raise DataError("there is nothing to learn from.")
try:
    ranks.first(refuse)
except DataError as error:
    assert str(error) == "there is nothing to learn from."
else:
    raise AssertionError
def broken():
    raise KeyError("x")
try:
    ranks.first(broken)
except (KeyError, TrainingError) as error:
    assert isinstance(error, KeyError if me == 0 else TrainingError)
else:
    raise AssertionError
ranks.stop()
print("said", me)
"""

STOPPED = """
import os, signal, sys
from pathlib import Path
from agentalign.errors import TrainingStoppedError
from agentalign.training import ranks
from agentalign.training.engine import train
from agentalign.training.schedule import Plan
from agentalign.training.step import Evaluated, Learner, Pass
from tests.test_attention import CONFIGS, make_model
from tests.test_engine import packed, sft

folder = Path(sys.argv[1])
model = make_model(folder / os.environ["RANK"], CONFIGS["llama"])
ranks.start()

def minutes(step):
    if step == 2:
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("the gate went on after the request to end")
    return Evaluated(0.0, {})

steps = lambda start: ([Pass("policy", packed, sft)] for _ in range(start, 4))
plan = Plan(total_steps=4, save_every_steps=10, eval_every_steps=2)
try:
    train(model, [Learner("policy")], steps, plan, folder=folder / "run", evaluate=lambda step, first: ranks.first(lambda: minutes(step)))
except TrainingStoppedError as error:
    print(error)
ranks.stop()
"""
READ = """
import os, sys
from pathlib import Path
from agentalign.recipes.data import Part, Turn, fixed_logprobs, reading_budget
from agentalign.training import ranks
from tests.test_attention import CONFIGS, make_model, three_levels_deep

model = make_model(Path(sys.argv[1]) / os.environ["RANK"], CONFIGS["llama"])
parts = [Part(run.turns) for run in three_levels_deep()]
apart = [Part((Turn(tuple(range(5 + n, 45 + n)), tuple(range(10))),)) for n in range(4)]
print(reading_budget(model, parts, 45), reading_budget(model, apart, 50))
ranks.start()
print(reading_budget(model, parts, 45), reading_budget(model, apart, 50))
if ranks.rank() == 0:
    model.give_up_trees()  # as after a check that failed in one process only
found = fixed_logprobs(model, "policy", parts, max_tokens=45)
print(model.tree_capable, [len(one) for one in found], sum(float(one.sum()) for one in found))
ranks.stop()
"""
HELD = """
import os, sys
from pathlib import Path
from agentalign.errors import TrainingError
from agentalign.recipes.workspace import Workspace
from agentalign.training import ranks

class Named:
    id, taskset, config, trainings = "x", "desk", "{}", Path(sys.argv[1])

ranks.start()
try:
    # Of the project the folder of trainings is needed, and of the rest nothing before the folder is held.
    with Workspace(Named, None, None, None, None).recording(Named, "none"):
        print("went on")
except TrainingError as error:
    print(error)
ranks.stop()
"""


def run_two(code, *arguments, processes=2):
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    about = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    started = [
        subprocess.Popen(
            command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | about | {"RANK": str(rank)}
        )
        for rank in range(processes)
    ]
    found = [process.communicate(timeout=240) for process in started]
    assert not any(process.returncode for process in started), "\n".join(errors[-1500:] for _, errors in found)
    return [output for output, _ in found]


def test_two_processes_end_in_the_weights_of_one(tmp_path):
    alone, both = tmp_path / "alone", tmp_path / "both"
    for folder, processes in ((alone, 1), (both, 2)):
        folder.mkdir()
        run_two(TRAIN, folder, processes=processes)
    expected, whole = json.loads((alone / "found-0.json").read_text())
    found, seen = zip(*(json.loads((both / f"found-{rank}.json").read_text()) for rank in (0, 1)), strict=True)
    assert found[0] == found[1], "the processes hold different weights"
    for one, two in zip(expected, found[0], strict=True):
        for a, b in zip(one, two, strict=True):
            torch.testing.assert_close(torch.tensor(a), torch.tensor(b), atol=1e-5, rtol=0)
    assert whole == [4, 4, 4]
    # The first attempt was cut in two for two processes; what did not fit the second one was cut for both.
    assert sum(seen[0][-6:]) + sum(seen[1][-6:]) == 12
    assert all(runs == 1 for some in seen for runs in some[-6:])
    rows = [json.loads(line) for line in (both / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3], "both processes wrote their rows"
    lone = json.loads((alone / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert rows[-1]["loss"] == pytest.approx(lone["loss"], abs=1e-5)
    assert len(list((both / "run" / "checkpoints").glob("step-*"))) == 2


def test_the_first_one_works_for_all_and_its_errors_are_raised_by_all():
    assert run_two(TALK) == ["said 0\n", "said 1\n"]


def test_a_request_to_end_inside_the_gate_of_the_first_one_ends_all_and_saves(tmp_path):
    told = run_two(STOPPED, tmp_path)
    assert told[0] == told[1]
    assert "step 2; step 2 is saved" in told[0]


def test_what_is_read_is_read_in_one_way_by_all(tmp_path):
    told = run_two(READ, tmp_path)
    assert told[0] == told[1]
    alone, together, read = told[0].splitlines()
    assert (alone, together) == ("180 200", "180 100"), "what shares nothing leaves no process idle"
    assert read.startswith("False [5, 13, 11, 12]")


def test_a_folder_that_another_training_holds_is_refused_to_all(tmp_path):
    (tmp_path / "x").mkdir()
    with (tmp_path / "x" / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        told = run_two(HELD, tmp_path)
    assert told[0] == told[1]
    assert "running in another process" in told[0]


def test_one_process_does_everything_itself():
    assert (ranks.world(), ranks.rank(), ranks.gathered(3), ranks.first(lambda: 4)) == (1, 0, [3], 4)
    assert ranks.shares([5, 1], int) == [[5, 1]]


def test_figures_of_all_processes_make_the_step_s_means():
    one, two = StepSums(), StepSums()
    one.add("loss", 0.25, 0)
    two.add("loss", 0.5, 0)
    one.add("accuracy", 3.0, 3)
    two.add("accuracy", 0.0, 1)
    assert means([one, two]) == {"loss": 0.75, "accuracy": 0.75}


def test_a_launcher_that_asks_for_what_would_not_happen_is_refused(monkeypatch):
    for variable, name in (("ACCELERATE_USE_DEEPSPEED", "DeepSpeed"), ("ACCELERATE_USE_MEGATRON_LM", "Megatron-LM")):
        monkeypatch.setenv(variable, "true")
        with pytest.raises(TrainingError, match=rf"asks for {name}.*every process holds the whole base"):
            ranks.start()
        monkeypatch.setenv(variable, "false")
    ranks.start()
    assert ranks.world() == 1
