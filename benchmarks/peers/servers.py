"""Servers as the benchmarks start them: ours, and other projects' by what an export gives them. One at a time, ended afterwards.

Each of the others lives in an environment of its own, and is named by that environment's Python. Surprise: a server that ends while it
starts has said why in its log, mostly not in the last line; so the first line that names an error is what is passed on.
"""

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import httpx

from agentalign.config.project import Project
from agentalign.deployment.export import Exported, export
from agentalign.errors import ModelError
from agentalign.records.adapter import AdapterCard

START_SECONDS = 900
END_SECONDS = 30
QUIET = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
# vLLM on a CPU takes a share of the machine's memory for its cache, which may not be free, and one core less than there are.
VLLM_CPU = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


class Server(NamedTuple):
    """How to start one, and what to ask it for."""

    name: str
    model: str
    command: tuple[str, ...]
    """Without host and port."""
    environment: Mapping[str, str]


def ours(ref: str, *more: str) -> Server:
    """`agentalign serve`."""
    return Server("agentalign serve", ref, (sys.executable, "-m", "agentalign", "serve", ref, *more), {})


def transformers_serve(exported: Exported) -> Server:
    """`transformers serve` of this Python, over a merged export; its model goes by the folder's name."""
    folder = str(exported.folder)
    start = "from transformers.cli.transformers import main; main()"
    return Server("transformers serve", folder, (sys.executable, "-c", start, "serve", folder, "--continuous-batching"), QUIET)


def vllm(exported: Exported, card: AdapterCard, python: Path, *more: str) -> Server:
    """The words of the export's own command, for the adapter or the merged model, by the module that vllm and vllm-cpu both have."""
    base, *rest = shlex.split(exported.command)[2:]
    words = ("-m", "vllm.entrypoints.openai.api_server", "--model", base, *rest, *more)
    return Server("vLLM", card.name, (str(python.absolute()), *words), QUIET | VLLM_CPU)


def llama(exported: Exported, card: AdapterCard, python: Path | None, server: Path | None) -> Server:
    """llama.cpp out of xllamacpp by the export's serve_llama.py, or a `llama-server` by its serve_llama.sh."""
    if server is not None:
        return Server("llama.cpp", card.name, (exported.command,), {"LLAMA_SERVER": str(server.absolute())})
    assert python is not None
    return Server("llama.cpp", card.name, (str(python.absolute()), str(exported.folder / "serve_llama.py")), {})


def exported_gguf(project: Project, ref: str, folder: Path, converter: Path | None) -> Exported:
    """Adapter and base for llama.cpp."""
    return export(project, ref, folder, "gguf", converter=converter, with_base=True)


@contextmanager
def started(server: Server, folder: Path) -> Iterator[str]:
    """Its URL, once it is healthy; ModelError with its own words where it never is."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # or the server would outlive a script that is ended
    port, log = free_port(), folder / f"{server.name.replace(' ', '-')}.log"
    words = [*server.command, "--host", "127.0.0.1", "--port", str(port)]
    with log.open("w") as out:
        process = subprocess.Popen(words, stdout=out, stderr=out, env={**os.environ, **server.environment}, process_group=0)
        try:
            _wait(process, port, server.name, log)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            _end(process)


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(process: subprocess.Popen[bytes], port: int, name: str, log: Path) -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        if process.poll() is not None:
            raise ModelError(f"{name} ended with {process.returncode} before it served: {_said(log)}")
        try:
            if httpx.get(f"http://127.0.0.1:{port}/health", timeout=5, trust_env=False).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(1)
    raise ModelError(f"{name} was not healthy after {START_SECONDS} s: {_said(log)}")


def _said(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    telling = next((line for line in lines if "Error:" in line or "error:" in line or "instruction" in line), "")
    return (telling or (lines[-1] if lines else "it said nothing"))[:300]


def _end(process: subprocess.Popen[bytes]) -> None:
    """It and what it started: vLLM's engine is a process of its own."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(END_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
