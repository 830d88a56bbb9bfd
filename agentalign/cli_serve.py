"""The command that serves adapters: serve."""

import argparse

from agentalign.cli_arguments import Commands, at_least, command
from agentalign.config.project import Project


def add(commands: Commands) -> None:
    """Declare it."""
    parser = command(
        commands,
        "serve",
        "serve adapters to agents, as the OpenAI API has it",
        run=_serve,
        more=(
            "One base, and every adapter trained on it by name, such as order_desk@production. Promoting and rolling back take effect at "
            "the next conversation. It listens on this machine only; `--host 0.0.0.0` lets others in, and wants keys in "
            "AGENTALIGN_API_KEYS. It is made for agents, tests and small teams; for load it names the command for vLLM."
        ),
        examples="agentalign serve\nagentalign serve order_desk@production order_desk@4 --port 8001",
    )
    parser.add_argument("refs", nargs="*", metavar="NAME@V", help="adapters to load first; default: all in production")
    parser.add_argument("--host", default="127.0.0.1", help="default: %(default)s")
    parser.add_argument("--port", type=int, default=8000, help="default: %(default)s")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), help="default: %(default)s")
    for name, value, help in (
        ("running", 8, "requests in the batch"),
        ("waiting", 64, "requests that may wait; more get a 429"),
        ("adapters", 16, "adapters kept in memory"),
        ("max-tokens", 1024, "most tokens of an answer"),
        ("max-context", 4096, "most tokens of prompt and answer"),
        ("max-seconds", 300, "most time of a request"),
        ("max-body-kib", 1024, "largest request"),
    ):
        parser.add_argument(f"--{name}", type=at_least(1), default=value, metavar="N", help=f"{help}; default: %(default)s")


def _serve(arguments: argparse.Namespace) -> None:
    from importlib.util import find_spec

    from agentalign.errors import ConfigError

    missing = [name for name in ("fastapi", "uvicorn", "prometheus_client") if not find_spec(name)]
    if missing:
        raise ConfigError(f"serving needs {', '.join(missing)}, which is not installed. Run `pip install 'agentalign[serve]'`.")
    from agentalign.deployment.serve import Settings, serve
    from agentalign.deployment.serving.chat import Limits

    limits = Limits(arguments.max_tokens, arguments.max_context, arguments.max_seconds)
    settings = Settings(arguments.running, arguments.waiting, arguments.adapters, arguments.max_body_kib * 1024, limits)
    serve(Project.find(), arguments.refs, host=arguments.host, port=arguments.port, settings=settings, device=arguments.device)
