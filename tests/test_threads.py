"""What is computed apart leaves no threads behind, and says what went wrong."""

import os
import subprocess
import sys

import pytest

from agentalign.errors import ModelError
from agentalign.training.threads import apart

COUNT = """
import os, time, torch
from agentalign.training.threads import apart
def compute():
    return float((torch.ones(600, 600) @ torch.ones(600, 600)).sum()) + float(torch.ones(2_000_000).exp().sum())
def threads():
    return len(os.listdir("/proc/self/task"))
def shown(work):
    before = threads()
    work()
    until = time.monotonic() + (5 if threads() != before else 0)
    while threads() != before and time.monotonic() < until:  # a thread that ends is listed for a moment still
        time.sleep(0.05)
    return threads() - before
torch.set_num_threads(3)
print(shown(lambda: apart(compute)), shown(compute))
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="threads are counted where Linux lists them")
def test_helpers_end_with_the_thread_they_help():
    done = subprocess.run([sys.executable, "-c", COUNT], capture_output=True, text=True, check=True)
    apart_left, here_left = map(int, done.stdout.split())
    assert apart_left == 0
    assert here_left == 2, "in a thread that goes on they stay: else this test would prove nothing"


def test_what_is_raised_apart_arrives():
    assert apart(lambda: 7) == 7
    with pytest.raises(ModelError, match="no such base"):
        apart(_fails)


def _fails():
    raise ModelError("no such base.")
