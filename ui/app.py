"""The web app: /api and the page on one port of this machine.

Everything runs in one process and holds no state but the store's. The surprise: without a login it binds to this machine only and says
so; a server for a team needs accounts, and beyond this machine an address with TLS.
"""

import re
import socket
import sys
from contextlib import suppress
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from agentalign.config.project import Project
from agentalign.errors import ConfigError
from agentalign.store.accounts import own_name
from agentalign.store.store import Store
from agentalign.ui.api import create_api
from agentalign.ui.assets import page_head
from agentalign.ui.auth import LOOPBACK, MAX_BODY_BYTES, rater_of
from agentalign.ui.early import EarlyPage


def create_app(project: Project, *, rater: str | None = None, team: bool = False, home: str | None = None) -> FastAPI:
    """The whole app, page included. Importing Gradio takes seconds; tests of the routes use `create_api`."""
    import gradio as gr

    from agentalign.ui import pages

    app = create_api(project, rater=rater or own_name(), team=team, home=home)
    assets = app.state.assets
    app.add_middleware(EarlyPage, head=page_head(assets))
    gr.mount_gradio_app(
        app,
        pages.build_blocks(assets.at("main.js")),
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
    )
    return app


def serve_ui(
    project: Project,
    host: str = "127.0.0.1",
    port: int = 7860,
    *,
    team: bool = False,
    home: str | None = None,
    certificate: tuple[Path, Path] | None = None,
) -> None:
    """Serve the pages until interrupted.

    Args:
        project: Whose runs are shown.
        host: Address to listen on.
        port: 0 takes any free one.
        team: People log in to accounts of their own.
        home: Address under which a team reaches the server, such as https://rate.example.org.
        certificate: Files of a certificate and its key, where no proxy in front speaks TLS.

    Raises:
        ConfigError: others could reach the host and there is no login or no TLS, or the port is taken.
    """
    if not team and host in LOOPBACK and (home or certificate):
        raise ConfigError("--url and a certificate are for a server with a login. Make accounts and add --team: `agentalign users add`.")
    if not team and host not in LOOPBACK:
        raise ConfigError(
            f"--host {host}: the pages have no login yet, so anyone who reaches {host} could read and rate runs. Use 127.0.0.1, and from "
            f"another machine `ssh -L {port}:127.0.0.1:{port} THIS_MACHINE`; or make accounts and serve a team: `agentalign ui --team`."
        )
    if team:
        _refuse_unsafe_team(project, host, home)
    listener = _listen(host, port)
    sys.stderr.write("Starting ...\n")
    app = create_app(project, team=team, home=home)
    shown = f"[{host}]" if ":" in host else host
    address = home or f"http://{shown}:{listener.getsockname()[1]}"
    sys.stderr.write(f"agentalign ui: {address}  ({'with accounts' if team else 'rating as ' + own_name()}; Ctrl+C ends it)\n")
    certfile, keyfile = certificate or (None, None)
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=5,
        ssl_certfile=certfile,
        ssl_keyfile=keyfile,
    )
    with suppress(KeyboardInterrupt):  # Ctrl+C is how this ends
        uvicorn.Server(config).run(sockets=[listener])


def _refuse_unsafe_team(project: Project, host: str, home: str | None) -> None:
    if home is not None and not re.fullmatch(r"https://[a-z0-9.-]+(:[0-9]{1,5})?", home):
        raise ConfigError(f"--url {home}: passwords travel to it, so it has to be https://NAME or https://NAME:PORT, without a path.")
    if host not in LOOPBACK and home is None:
        raise ConfigError(
            f"--host {host}: people would send passwords to {host} in the clear. Give the address that they open, --url https://NAME, and "
            "let a proxy in front speak TLS, or this server itself: --tls-cert FILE --tls-key FILE."
        )
    with Store(project.store_url) as store:
        if not store.accounts.all():
            raise ConfigError(
                "--team: there are no accounts yet, so nobody could log in. Make one: `agentalign users add NAME --role admin`."
            )


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
