"""The whole app as its own process: Gradio's routes behind the same guard, kills, and a port that is taken."""

import os
import re
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator

import httpx
import pytest
from small_desk import make_desk, make_run

from agentalign.config.project import Project
from agentalign.errors import ConfigError
from agentalign.store.store import Store
from agentalign.ui.app import serve_ui
from agentalign.ui.auth import MAX_BODY_BYTES

pytestmark = pytest.mark.hard

SERVE = """
import sys
from pathlib import Path
from agentalign.config.project import Project
from agentalign.ui.app import serve_ui
serve_ui(Project(Path(sys.argv[1])), port=int(sys.argv[2]))
"""


class Running:
    """A server process and a client of it."""

    def __init__(self, project: Project, port: int = 0) -> None:
        self.process = subprocess.Popen([sys.executable, "-c", SERVE, str(project.root), str(port)], stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        said = ""
        while "agentalign ui:" not in said:
            line = self.process.stderr.readline()
            assert line, f"the server ended: {said}"
            said += line
        found = re.search(r"http://127\.0\.0\.1:(\d+)", said)
        assert found
        self.port = int(found[1])
        # Connections are taken as soon as the socket listens; the answer comes when the app has started.
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=60, trust_env=False)

    def end(self, number: int) -> int:
        self.client.close()
        self.process.send_signal(number)
        code = self.process.wait(60)
        assert self.process.stderr is not None
        self.process.stderr.close()
        return code


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return make_desk(tmp_path_factory.mktemp("desk"))


@pytest.fixture(scope="module")
def running(project: Project) -> Iterator[Running]:
    running = Running(project)
    yield running
    if running.process.poll() is None:
        running.end(signal.SIGKILL)


def test_gradios_own_routes_stand_behind_the_same_guard(running: Running) -> None:
    client = running.client
    for path in ("/config", "/gradio_api/info", "/gradio_api/queue/data?session_hash=a", "/gradio_api/file=/etc/passwd"):
        assert client.get(path).status_code in (401, 403, 404), path
        assert client.get(path, headers={"Origin": "https://evil.example"}).status_code == 403, path
        assert client.get(path, headers={"Host": "evil.example"}).status_code == 400, path
    assert client.post("/gradio_api/queue/join", json={"data": [], "fn_index": 0, "session_hash": "a"}).status_code == 401
    page = client.get("/")
    assert "gradio-app" in page.text
    assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
    assert client.get("/config").status_code == 200, "the page's cookie opens the rest"
    for path in ("/gradio_api/file=/etc/passwd", "/gradio_api/file=http://127.0.0.1/", "/gradio_api/proxy=http://127.0.0.1/x", "/docs"):
        answer = client.get(path)
        assert answer.status_code in (400, 403, 404, 405), path
        assert "root:" not in answer.text
    assert client.post("/gradio_api/upload", files={"files": b"x" * (MAX_BODY_BYTES + 1)}).status_code == 413


def test_a_taken_port_is_one_clear_sentence(running: Running, project: Project) -> None:
    with pytest.raises(ConfigError, match=rf"127\.0\.0\.1:{running.port} cannot be used .* --port {running.port + 1}"):
        serve_ui(project, port=running.port)


def test_the_secret_is_its_owners_alone(running: Running, project: Project) -> None:
    secret = project.state / "ui" / "secret"
    assert oct(os.stat(secret).st_mode)[-3:] == "600"
    assert secret.read_text() not in running.client.get("/").text


def test_what_was_acknowledged_outlives_a_kill(running: Running, project: Project) -> None:
    runs = [make_run(answer=f"Answer {number}.", sample=number) for number in range(20)]
    with Store(project.store_url) as store:
        store.add(runs)
    running.client.get("/")
    acknowledged = []
    for run in runs:
        mark = {"key": secrets.token_hex(8), "trajectory": run.id, "criterion": "tone@1", "value": 4}
        answer = running.client.post("/api/scores", json=mark)
        assert answer.json()["saved"] is True
        acknowledged.append(answer.json()["id"])
    running.end(signal.SIGKILL)
    again = Running(project)
    again.client.cookies = running.client.cookies
    lines = again.client.get("/api/export/scores.jsonl").text.splitlines()
    assert len(lines) == len(acknowledged)
    assert all(id in line for id, line in zip(acknowledged, lines, strict=True))
    assert again.end(signal.SIGINT) == 0
