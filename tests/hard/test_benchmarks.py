"""Our side of the comparison with TRL trains: nobody runs a benchmark for weeks, and what it calls moves on meanwhile."""

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
