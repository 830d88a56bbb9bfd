"""An OpenAI-compatible server in this process: one base, many adapters, mixed in one batch.

It is the default for agents, tests and small teams. For load there is vLLM, and the server says so when it starts, with the commands.
"""

import os
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

import uvicorn
from fastapi import FastAPI

from agentalign.config.project import Project
from agentalign.deployment.serving.app import create_app
from agentalign.deployment.serving.chat import Chat, Limits
from agentalign.deployment.serving.engine import begin, open_engine
from agentalign.deployment.serving.guard import LOOPBACK
from agentalign.deployment.serving.metrics import Metrics
from agentalign.errors import ConfigError, RegistryError
from agentalign.rollouts.bundle import Bundle, open_bundle, require_runnable
from agentalign.store.registry import Registry
from agentalign.training.constraints import Grammars

KEYS = "AGENTALIGN_API_KEYS"
"""Environment variable with the API keys, separated by commas."""


class Settings(NamedTuple):
    """How much a server does at once."""

    running: int = 8
    """Requests in the batch."""
    waiting: int = 64
    """Requests that may wait for a row; more get a 429."""
    loaded: int = 16
    """Adapters in memory."""
    body_bytes: int = 1 << 20
    limits: Limits = Limits()


class Served(NamedTuple):
    """A server that is ready."""

    app: FastAPI
    chat: Chat
    bundle: Bundle
    """Of the adapter that named the base."""


def open_server(
    project: Project, refs: Sequence[str] = (), *, settings: Settings = Settings(), keys: Sequence[str] = (), device: str = "auto"
) -> Served:
    """Load a base and these adapters; others of the same base come when they are asked for.

    Args:
        refs: the first names the base; by default all that are in production.
    """
    wanted = list(refs) or _in_production(project)
    bundle = open_bundle(project, wanted[0])
    require_runnable(project, bundle)
    engine = open_engine(
        project, bundle, running=settings.running, kept=settings.running, waiting=settings.waiting, device=device,
        loaded=max(settings.loaded, len(wanted)),
    )  # fmt: skip
    adapters, worker, generator = engine.adapters, engine.worker, engine.generator
    limits = settings.limits._replace(max_context=min(settings.limits.max_context, generator.limit))
    chat = Chat(engine.dialect, adapters, worker, Grammars(engine.dialect, _vocabulary(generator.model)), limits)
    app = create_app(chat, Metrics(worker), keys=keys, max_body_bytes=settings.body_bytes)
    begin(engine, wanted)
    return Served(app, chat, bundle)


def serve(
    project: Project,
    refs: Sequence[str] = (),
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    settings: Settings = Settings(),
    device: str = "auto",
    environment: Mapping[str, str] = os.environ,
) -> None:
    """Serve until interrupted.

    Raises:
        ConfigError: the host is not this machine and there are no API keys, or the port is taken.
        RegistryError: an adapter that cannot be served.
    """
    keys = read_keys(environment)
    if host not in LOOPBACK and not keys:
        raise ConfigError(f"--host {host}: without API keys anyone who reaches {host} could use the model. Set {KEYS}, or use 127.0.0.1.")
    with _listen(host, port) as listener:
        sys.stderr.write("Starting ...\n")
        served = open_server(project, refs, settings=settings, keys=keys, device=device)
        shown = f"[{host}]" if ":" in host else host
        where = f"http://{shown}:{listener.getsockname()[1]}/v1"
        sys.stderr.write(
            f"agentalign serve: {where}  ({', '.join(served.chat.adapters.loaded)}; Ctrl+C ends it)\n{for_load(served.bundle)}"
        )
        config = uvicorn.Config(
            served.app, log_level="warning", access_log=False, server_header=False, proxy_headers=False, timeout_graceful_shutdown=5
        )
        with suppress(KeyboardInterrupt):  # Ctrl+C is how this ends
            uvicorn.Server(config).run(sockets=[listener])


def for_load(bundle: Bundle) -> str:
    """What to do where this server is too slow."""
    name, base = bundle.card.name, "" if bundle.card.quantization == "none" else " --with-base"
    return (
        "This server is made for agents, tests and small teams. For load, serve with vLLM:\n"
        f"  agentalign export {bundle.card.ref} served/{name}{base} && served/{name}/serve_vllm.sh\n"
    )


def read_keys(environment: Mapping[str, str]) -> list[str]:
    """API keys of the environment; ConfigError for one that is too short to be a secret."""
    keys = [key.strip() for key in environment.get(KEYS, "").split(",") if key.strip()]
    if any(len(key) < 16 for key in keys):
        raise ConfigError(f"{KEYS} holds a key of fewer than 16 characters, which can be guessed. Make one: `openssl rand -hex 24`.")
    return keys


def _in_production(project: Project) -> list[str]:
    registry = Registry(project.adapters)
    cards, problems = registry.readable()
    for problem in problems:
        sys.stderr.write(f"not served: {problem}\n")
    found = []
    for name in sorted({card.name for card in cards if card.kind == "policy"}):
        with suppress(RegistryError):  # stages that cannot be read are among the problems
            found += [f"{name}@production"] if "production" in registry.stages(name) else []
    if not found:
        raise RegistryError("no adapter is in production. Name one: `agentalign serve NAME@VERSION`, or promote one: `agentalign promote`.")
    return found


def _vocabulary(network: object) -> int:
    return int(network.get_output_embeddings().weight.shape[0])  # type: ignore[attr-defined]


def _listen(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        reason = error.strerror if isinstance(error, OSError) else "there is no such port"
        raise ConfigError(f"{host}:{port} cannot be used ({reason}). Choose another port with --port.") from None
    return listener
