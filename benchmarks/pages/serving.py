"""`agentalign ui` in a process of its own, and people who rate over HTTP at a pace of theirs."""

import http.client
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.cookies import SimpleCookie

from agentalign.config.project import DATABASE_VARIABLE, Project
from agentalign.records.trajectory import Message, Origin, ToolCall, Trajectory
from agentalign.store.store import Store

PASSWORD = "a password of no worth"
PAUSE = 1.0
"""Seconds between two marks of one person: quicker than anybody reads."""
CRITERIA = """
tone:
  description: Is the agent friendly?
  scale: [1, 5]
"""


def make_desk(project: Project) -> None:
    """A taskset to rate by."""
    folder = project.tasks / "desk"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "taskset.yaml").write_text("name: desk\nsystem_prompt: Help.\n")
    (folder / "criteria.yaml").write_text(CRITERIA)


def long_run(n_steps: int, sample: int) -> Trajectory:
    """A run of so many calls, about 650 characters each."""
    messages = [Message(role="user", content="Go on.")]
    for step in range(n_steps):
        call = ToolCall(id=f"c{step}", name="lookup", arguments=f'{{"order": "W{step}", "note": "{"x" * 100}"}}')
        messages += [Message(role="assistant", content=f"Step {step}.", tool_calls=(call,))]
        messages += [Message(role="tool", content="line of a result\n" * 30, tool_call_id=f"c{step}", name="lookup")]
    return Trajectory(taskset="desk", messages=tuple(messages), origin=Origin(kind="rollout", reference="base", sample=sample))


@contextmanager
def serving(project: Project, store_url: str, *flags: str) -> Iterator[int]:
    """The real command on a free port; yields the port."""
    command = [sys.executable, "-m", "agentalign", "ui", "--port", "0", *flags]
    environment = os.environ | {DATABASE_VARIABLE: store_url}
    process = subprocess.Popen(command, cwd=project.root, env=environment, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said = ""
    while (found := re.search(r"http://127\.0\.0\.1:(\d+)", said)) is None:
        line = process.stderr.readline()
        if not line:
            raise SystemExit(f"the server ended: {said}")
        said += line
    try:
        while not _answers(int(found[1])):
            time.sleep(0.05)
        yield int(found[1])
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate()


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("GET", "/login")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def rated(port: int, people: list[str], runs: list[str], marks: int) -> list[float]:
    """Milliseconds from each mark to its acknowledgement: everybody gives so many, one a second, all at once."""
    found: list[list[float]] = [[] for _ in people]

    def rate(number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        headers = {"Content-Type": "application/json"}
        _, cookie = _post(connection, "/api/login", {"name": people[number], "password": PASSWORD}, headers)
        headers["Cookie"] = cookie
        time.sleep(PAUSE * number / len(people))
        for mark in range(marks + 1):
            body = {"key": secrets.token_hex(8), "trajectory": runs[(number * marks + mark) % len(runs)], "criterion": "tone@1", "value": 4}
            began = time.perf_counter()
            saved, _ = _post(connection, "/api/scores", body, headers)
            found[number].append((time.perf_counter() - began) * 1000)
            if saved.get("saved") is not True:
                raise SystemExit(f"a mark was not saved: {saved}")
            time.sleep(PAUSE)
        connection.close()

    threads = [threading.Thread(target=rate, args=(number,)) for number in range(len(people))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [milliseconds for one in found for milliseconds in one[1:]]


def _post(
    connection: http.client.HTTPConnection, path: str, body: dict[str, object], headers: dict[str, str]
) -> tuple[dict[str, object], str]:
    connection.request("POST", path, json.dumps(body), headers)
    answer = connection.getresponse()
    found: dict[str, object] = json.loads(answer.read())
    cookies = SimpleCookie(answer.headers.get("Set-Cookie", ""))
    return found, "; ".join(f"{name}={morsel.value}" for name, morsel in cookies.items())


def make_people(store_url: str, number: int) -> list[str]:
    """So many accounts."""
    people = [f"rater-{one}" for one in range(number)]
    with Store(store_url) as store:
        for person in people:
            store.accounts.set(person, "rater", PASSWORD)
    return people
