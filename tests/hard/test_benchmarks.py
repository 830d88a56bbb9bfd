"""Our side of the comparison with TRL trains: nobody runs a benchmark for weeks, and what it calls moves on meanwhile."""

import importlib
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TINY = Path(__file__).parents[1] / "fixtures" / "tiny"
MAKE = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from workloads import load_maker, make_job
job = make_job(load_maker(sys.argv[3], "none"), "order desk", sys.argv[2], Path("."))
Path("job.json").write_text(json.dumps({**job, "rows": job["rows"], "tuned": True, "micro_batch_tokens": 4096}))
"""


@pytest.mark.hard
@pytest.mark.parametrize("recipe", ["sft", "dpo", "reward"])
def test_our_side_of_every_comparison_trains(tmp_path: Path, recipe: str) -> None:
    base = shutil.copytree(TINY, tmp_path / "base")
    settings = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**settings, "max_position_embeddings": 4096}))  # its tokenizer writes long rows
    asked = [sys.executable, "-c", MAKE, str(BENCHMARKS / "peers"), recipe, str(base)]
    made = subprocess.run(asked, check=False, cwd=tmp_path, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "peers" / "our_side.py"), "job.json"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found["losses"]) == 4 and all(math.isfinite(loss) for loss in found["losses"])


@pytest.mark.hard
def test_what_a_longer_comparison_had_measured_outlives_a_shorter_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    peers = importlib.import_module("peers")
    one, other = peers.Cell("order desk", "sft", "tuned"), peers.Cell("order desk", "dpo", "default")
    progress = peers.Progress(tmp_path / "progress.json", "this machine")
    progress.add(other, {"losses": [1.0]}, {"losses": [2.0]})
    progress.add_exact(one, {"losses": [3.0]}, {"losses": [4.0]})  # and cut before its first repetition
    again = peers.Progress(tmp_path / "progress.json", "this machine")
    assert again.exact(one) == {"ours": {"losses": [3.0]}, "trl": {"losses": [4.0]}} and again.sides(one) == {"ours": [], "trl": []}
    again.add(one, {"losses": [5.0]}, {"losses": [6.0]})
    again.done(one)
    again.forget([one])
    last = peers.Progress(tmp_path / "progress.json", "this machine")
    assert last.sides(one)["ours"] == [] and not last.is_done(one)
    assert last.sides(other) == {"ours": [{"losses": [1.0]}], "trl": [{"losses": [2.0]}]}
    assert peers.Progress(tmp_path / "progress.json", "other code").sides(other)["ours"] == []


@pytest.mark.hard
@pytest.mark.parametrize(("ours", "trl", "equal"), [(0.0953, 0.0899, True), (0.1010, 0.0969, False)])
def test_losses_are_equal_where_fp32_is_and_ours_stays_near_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ours, trl, equal) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    peers = importlib.import_module("peers")
    cell, job = peers.Cell("order desk", "dpo", "tuned"), {"bf16": True}
    progress = peers.Progress(tmp_path / "progress.json", "this machine")
    progress.add_exact(cell, {"losses": [0.6931, 0.0969]}, {"losses": [0.6931, 0.0969]})
    progress.add(cell, {"losses": [0.6931, ours]}, {"losses": [0.6931, trl]})
    assert peers.compared(cell, job, progress)[1] is equal
    progress.add_exact(cell, {"losses": [0.6931, 0.0969]}, {"losses": [0.6931, 0.0972]})
    assert not peers.compared(cell, job, progress)[1], "what differs in fp32 is no rounding"


@pytest.mark.hard
def test_what_a_gpu_is_measured_with_runs_and_its_ways_compute_the_same(tmp_path: Path) -> None:
    asked = ["--device", "cpu", "--tiny", "--repetitions", "1", "--only", "pairs", "ppo", "rollouts", "--json", "rows.json"]
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "gpu.py"), *asked, "--base", str(TINY)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["workload"] for row in rows] == ["pairs", "ppo", "rollouts"]
    assert all(row["losses_equal"] for row in rows), done.stdout
