"""The web app: /api and the page on one port of this machine.

Everything runs in one process and holds no state but the store's. The surprise: it binds to this machine only and says so; a server
for a team needs logins, which this version does not have.
"""

import getpass
import socket
import sys
from contextlib import suppress
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from agentalign.config.project import Project
from agentalign.errors import ConfigError
from agentalign.ui.api import create_api
from agentalign.ui.auth import LOOPBACK, MAX_BODY_BYTES, rater_of


def create_app(project: Project, *, rater: str | None = None) -> FastAPI:
    """The whole app, page included. Importing Gradio takes seconds; tests of the routes use `create_api`."""
    import gradio as gr

    from agentalign.ui import pages

    app = create_api(project, rater=rater or person())
    gr.mount_gradio_app(
        app,
        pages.build_blocks(),
        "/",
        server_name="127.0.0.1",
        footer_links=[],
        run_history=False,
        auth_dependency=rater_of,
        show_error=False,
        max_file_size=MAX_BODY_BYTES,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        favicon_path=str(Path(__file__).parent / "static" / "icon.svg"),
        theme=pages.theme(),
        head=pages.HEAD,
    )
    return app


def serve_ui(project: Project, host: str = "127.0.0.1", port: int = 7860) -> None:
    """Serve the pages until interrupted.

    Raises:
        ConfigError: the host is not this machine, or the port is taken.
    """
    if host not in LOOPBACK:
        raise ConfigError(
            f"--host {host}: the pages have no login yet, so anyone who reaches {host} could read and rate runs. Use 127.0.0.1, and from "
            f"another machine `ssh -L {port}:127.0.0.1:{port} THIS_MACHINE`."
        )
    listener = _listen(host, port)
    sys.stderr.write("Starting ...\n")
    app = create_app(project)
    shown = f"[{host}]" if ":" in host else host
    sys.stderr.write(f"agentalign ui: http://{shown}:{listener.getsockname()[1]}  (rating as {person()}; Ctrl+C ends it)\n")
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, proxy_headers=False, timeout_graceful_shutdown=5
    )
    with suppress(KeyboardInterrupt):  # Ctrl+C is how this ends
        uvicorn.Server(config).run(sockets=[listener])


def person() -> str:
    """The name under which this machine's person rates: the account's."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "someone"


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        reason = error.strerror if isinstance(error, OSError) else "there is no such port"
        raise ConfigError(
            f"{host}:{port} cannot be used ({reason}). Choose another port: `agentalign ui --port {port % 60000 + 1}`."
        ) from None
    return listener
