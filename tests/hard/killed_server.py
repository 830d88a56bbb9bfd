"""A team's server that can be killed and is back in a moment: the real `serve_ui`, forked from a process that has imported it.

Importing Gradio takes seconds, which a test of many kills cannot spend at each; a fork shares nothing with its elder that matters here:
no store, no connection and no thread is open in it.
"""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any

from agentalign.config.project import DATABASE_VARIABLE, Project
from agentalign.store.store import Store

PASSWORD = "a password of no worth"

HOST = """
import os, signal, sys
from pathlib import Path
from agentalign.config.project import Project
from agentalign.ui import agreement_api, app, correct_api, lineage_api, pages, training_api

child = 0
print("ready", flush=True)
for _ in sys.stdin:
    if child:
        os.waitpid(child, 0)
    child = os.fork()
    if not child:
        app.serve_ui(Project(Path(sys.argv[1])), port=int(sys.argv[2]), team=True)
        os._exit(0)
    print(child, flush=True)
if child:
    os.kill(child, signal.SIGKILL)
"""


class KilledServer:
    """`agentalign ui --team` for a project, on one port over all its lives."""

    def __init__(self, project: Project, raters: list[str], store_url: str) -> None:
        with Store(store_url) as store:
            for rater in raters:
                store.accounts.set(rater, "rater", PASSWORD)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.log = project.root / "server.log"
        self.lives = 0
        self.seconds: list[float] = []
        """How long each life took to answer."""
        with self.log.open("ab") as log:
            self._host = subprocess.Popen(
                [sys.executable, "-c", HOST, str(project.root), str(self.port)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=os.environ | {DATABASE_VARIABLE: store_url},
            )
        assert self._said() == "ready", self.log.read_text()
        self.start()

    def start(self) -> None:
        """Begin a life; returns when the server answers."""
        assert self._host.stdin is not None
        self._host.stdin.write(b"start\n")
        self._host.stdin.flush()
        self._pid = int(self._said())
        self.lives += 1
        began = time.monotonic()
        while not self._answers():
            assert Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z", self.log.read_text()
            time.sleep(0.02)
        self.seconds.append(time.monotonic() - began)

    def kill(self) -> None:
        """End it without a word."""
        os.kill(self._pid, signal.SIGKILL)

    def close(self) -> None:
        """End it and the process that it is forked from."""
        self._host.communicate()

    def __enter__(self) -> "KilledServer":
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _said(self) -> str:
        assert self._host.stdout is not None
        return self._host.stdout.readline().decode().strip()

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=60):
                pass
        except OSError:
            return False
        client = Client(self.port)
        try:
            return client.post("/api/queue/next", {})[0] == 401  # nobody is logged in, and it is awake enough to say so
        finally:
            client.close()


class Client:
    """A browser's way to the server, less costly than a library's: one connection, and the cookie that the login sets."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self._headers = {"Content-Type": "application/json"}

    def log_in(self, name: str) -> bool:
        """Whether the server let the person in."""
        return self.post("/api/login", {"name": name, "password": PASSWORD})[0] == 200

    def post(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Status and answer; OSError or HTTPException where there was none."""
        try:
            self._connection.request("POST", path, json.dumps(body), self._headers)
            answer = self._connection.getresponse()
            text = answer.read()
        except BaseException:
            self.close()
            raise
        for name, morsel in SimpleCookie(answer.headers.get("Set-Cookie", "")).items():
            self._headers["Cookie"] = f"{name}={morsel.value}"
        return answer.status, json.loads(text)

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        self._connection.close()
