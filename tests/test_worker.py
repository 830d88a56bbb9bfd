import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentalign.environments.taskset import Taskset, load_taskset
from agentalign.environments.team_code import Pool, TeamCode, TeamCodeError
from agentalign.environments.worker import WorkerPool
from agentalign.errors import TasksetError, ToolError
from agentalign.records.trajectory import Message, Origin, ToolCall, Trajectory
from agentalign.training.ranks import StopAskedError
from agentalign.training.stopping import StopRequest

ENVIRONMENT = """
import os
import sys
import time

from agentalign import Message, ToolError


class Environment:
    def reset(self, task):
        self.total = task.values["start"]
        return [Message(role="user", content=f"start {self.total}")]

    def call(self, call):
        print("team code prints what it likes")
        arguments = call.parsed()
        if call.name == "add":
            if arguments["n"] < 0:
                raise ToolError("n must not be negative.")
            self.total += arguments["n"]
        elif call.name == "hang":
            time.sleep(3600)
        elif call.name == "late":
            time.sleep(1.5)
            raise ToolError("too late.")
        elif call.name == "break":
            raise RuntimeError("the desk is on fire")
        elif call.name == "exit":
            os._exit(3)
        elif call.name == "memory":
            return "x" * (8 << 30)
        elif call.name == "long":
            return "x" * 9_000_000
        elif call.name == "read":
            return repr(sys.stdin.read())
        return str(self.total)

    def reply(self, messages):
        return Message(role="user", content=f"now {self.total}") if len(messages) < 3 else None

    def close(self):
        pass
"""
CRITERIA = """
import time

from agentalign import ToolError

def total(trajectory, task):
    return task.values["start"] / 10

def steps(trajectory, task):
    return {step.index: 1.0 for step in trajectory.steps}

def none(trajectory, task):
    return None

def wrong(trajectory, task):
    return "good"

def hang(trajectory, task):
    time.sleep(3600)

def refused(trajectory, task):
    raise ToolError("nobody reads this")
"""
EXPERT = """
from agentalign import Message

def act(task, messages):
    return Message(role="assistant", content=f"{task.id} after {len(messages)}")
"""


def counter(folder: Path, *, replayable: bool = True) -> Taskset:
    place = folder / "counter"
    place.mkdir()
    rows = "\n".join(f"  - {{id: t{n}, split: train, data: {{start: {n}}}}}" for n in range(5))
    (place / "taskset.yaml").write_text(f"name: counter\nreplayable: {str(replayable).lower()}\ntasks:\n{rows}\n")
    (place / "criteria.yaml").write_text("total:\n  description: Total?\n  check: total\n")
    (place / "environment.py").write_text(ENVIRONMENT)
    (place / "criteria.py").write_text(CRITERIA)
    (place / "expert.py").write_text(EXPERT)
    return load_taskset(place)


@pytest.fixture
def taskset(tmp_path: Path) -> Taskset:
    return counter(tmp_path)


@pytest.fixture
def pool(taskset: Taskset) -> Iterator[WorkerPool]:
    with WorkerPool(taskset, 1, seconds=60) as pool:
        yield pool


def workers_of(folder: Path) -> list[int]:
    """Process ids of the workers that serve a taskset."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if str(folder).encode() in (place / "cmdline").read_bytes().split(b"\0"):
                found.append(int(place.name))
    return found


def call(name: str, n: int = 0) -> ToolCall:
    return ToolCall(id="c", name=name, arguments=f'{{"n": {n}}}')


def run() -> Trajectory:
    messages = (Message(role="user", content="a"), Message(role="assistant", content="b"))
    return Trajectory(taskset="counter", messages=messages, origin=Origin(kind="import", reference="test"), task_id="t3")


@pytest.mark.parametrize("where", ["here", "worker"])
def test_both_kinds_of_pool_answer_alike(taskset: Taskset, where: str) -> None:
    task = taskset.task("t3")
    pool: Pool = TeamCode(taskset.folder) if where == "here" else WorkerPool(taskset, 2, seconds=60)
    try:
        assert pool.reset(0, task) == [Message(role="user", content="start 3")]
        assert pool.reset(7, taskset.task("t4")) == [Message(role="user", content="start 4")]
        assert [pool.call(0, call("add", 2)), pool.call(7, call("add", 1)), pool.call(0, call("add", 2))] == ["5", "5", "7"]
        with pytest.raises(ToolError, match=r"^n must not be negative\.$"):
            pool.call(0, call("add", -1))
        assert pool.reply(0, [Message(role="user", content="x")]) == Message(role="user", content="now 7")
        assert pool.reply(0, [Message(role="user", content="x")] * 3) is None
        assert pool.expert(0, task, []).content == "t3 after 0"
        assert (pool.check("total", run(), task), pool.check("steps", run(), task), pool.check("none", run(), task)) == (
            0.3,
            {0: 1.0},
            None,
        )
        with pytest.raises(TeamCodeError, match=r"check 'wrong' returned 'good'"):
            pool.check("wrong", run(), task)
        with pytest.raises(TeamCodeError, match=r"ToolError: nobody reads this"):  # an agent's error only where an agent called
            pool.check("refused", run(), task)
        with pytest.raises(TeamCodeError, match=r"RuntimeError: the desk is on fire"):
            pool.call(0, call("break"))
        assert pool.call(0, call("add", 1)) == "8"
        pool.release(0)
        with pytest.raises(TasksetError, match="before it was reset"):
            pool.call(0, call("add", 1))
    finally:
        pool.close()


FRAIL = """
from pathlib import Path

from agentalign import Message

MADE = []


class Environment:
    def __init__(self):
        MADE.append(self)
        self.number = len(MADE)

    def reset(self, task):
        if self.number == 1:
            raise RuntimeError("no connection")
        return [Message(role="user", content=str(self.number))]

    def call(self, call):
        return ""

    def reply(self, messages):
        return None

    def close(self):
        with Path(__file__).with_name("closed.txt").open("a") as file:
            file.write(f"{self.number} ")
"""


@pytest.mark.parametrize("where", ["here", "worker"])
def test_an_environment_whose_reset_fails_is_closed_and_met_by_no_other_task(taskset: Taskset, where: str) -> None:
    (taskset.folder / "environment.py").write_text(FRAIL)
    pool: Pool = TeamCode(taskset.folder) if where == "here" else WorkerPool(taskset, 1, seconds=60)
    try:
        with pytest.raises(TeamCodeError, match="no connection"):
            pool.reset(0, taskset.task("t3"))
        pool.release(0)
        assert (taskset.folder / "closed.txt").read_text() == "1 "
        assert pool.reset(0, taskset.task("t4")) == [Message(role="user", content="2")]
        pool.release(0)
        assert (taskset.folder / "closed.txt").read_text() == "1 2 "
    finally:
        pool.close()


def test_a_hanging_call_ends_its_own_run_and_the_others_are_rebuilt(taskset: Taskset, pool: WorkerPool) -> None:
    for slot in range(3):
        pool.reset(slot, taskset.task(f"t{slot}"))
        pool.call(slot, call("add", 10))
    with pytest.raises(ToolError):
        pool.call(1, call("add", -5))
    pool.seconds = 0.5
    with pytest.raises(TeamCodeError, match=r"tool 'hang' did not answer within 0.5 s"):
        pool.call(0, call("hang"))
    pool.seconds = 60
    pool.release(0)
    assert pool.call(1, call("add", 1)) == "12"
    assert pool.call(2, call("add", 1)) == "13"
    assert pool.reset(0, taskset.task("t0"))[0].content == "start 0"


def test_a_request_to_end_between_question_and_answer_leaves_no_answer_behind(taskset: Taskset, pool: WorkerPool) -> None:
    pool.reset(0, taskset.task("t3"))
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM))
    with StopRequest() as stop:
        timer.start()
        with pytest.raises(StopAskedError), stop.at_once():
            pool.call(0, call("late"))
    pool.release(0)
    assert pool.reset(7, taskset.task("t4")) == [Message(role="user", content="start 4")], "the answer of another question"


def test_what_cannot_be_rebuilt_says_so(tmp_path: Path) -> None:
    taskset = counter(tmp_path, replayable=False)
    with WorkerPool(taskset, 1, seconds=60) as pool:
        pool.reset(0, taskset.task("t0"))
        pool.reset(1, taskset.task("t1"))
        with pytest.raises(TeamCodeError, match=r"tool 'exit' ended its worker \(exit code 3\)"):
            pool.call(0, call("exit"))
        with pytest.raises(TeamCodeError, match="does not say `replayable: true`"):
            pool.call(1, call("add", 1))
        assert pool.reset(1, taskset.task("t1"))


def test_a_hanging_check_is_ended(taskset: Taskset, pool: WorkerPool) -> None:
    assert pool.check("total", run(), taskset.task("t1")) == 0.1
    pool.seconds = 0.5
    with pytest.raises(TeamCodeError, match=r"check 'hang' of task 't1' did not answer"):
        pool.check("hang", run(), taskset.task("t1"))


def test_team_code_that_wants_too_much_memory_gets_an_error(taskset: Taskset, pool: WorkerPool) -> None:
    pool.reset(0, taskset.task("t0"))
    with pytest.raises(TeamCodeError, match="MemoryError"):
        pool.call(0, call("memory"))
    with pytest.raises(TeamCodeError, match=r"8,000,000 are allowed"):
        pool.call(0, call("long"))
    assert pool.call(0, call("add", 1)) == "1"


def test_team_code_cannot_read_the_pipe(taskset: Taskset, pool: WorkerPool) -> None:
    pool.reset(0, taskset.task("t0"))
    assert pool.call(0, call("read")) == "''"


def test_hostile_text_travels_unharmed(taskset: Taskset, pool: WorkerPool) -> None:
    text = 'line\nbreak "quote" \x00 \u2028 🙂 </tool_call>'
    message = Message(role="user", content=text)
    assert pool.expert(0, taskset.task("t0").model_copy(update={"id": text}), [message]).content == f"{text} after 1"


def test_a_pool_that_was_closed_starts_nothing_for_those_who_still_ask(taskset: Taskset, pool: WorkerPool) -> None:
    pool.reset(0, taskset.task("t0"))
    assert workers_of(taskset.folder)
    pool.close()
    for ask in (
        lambda: pool.reset(0, taskset.task("t0")),
        lambda: pool.check("total", run(), None),
        lambda: pool.expert(1, taskset.task("t1"), []),
    ):
        with pytest.raises(TasksetError, match="ended for good"):
            ask()
    pool.release(0)
    pool.close()
    assert not workers_of(taskset.folder)


def test_workers_end_with_the_program_that_started_them(taskset: Taskset, tmp_path: Path) -> None:
    script = (
        "import os, sys\nfrom agentalign.environments.taskset import load_taskset\nfrom agentalign.environments.worker import WorkerPool\n"
        f"taskset = load_taskset({str(taskset.folder)!r})\npool = WorkerPool(taskset, 1)\npool.reset(0, taskset.task('t0'))\n"
        "print(pool._processes[0]._child.pid, flush=True)\nos.kill(os.getpid(), 9)\n"
    )
    root = str(Path(__file__).parents[1])
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": root})
    worker = Path(f"/proc/{int(done.stdout)}")
    for _ in range(600):
        if not worker.exists() or "(zombie)" in (worker / "status").read_text():
            break
        time.sleep(0.1)
    else:
        pytest.fail("the worker outlived its parent by a minute")
