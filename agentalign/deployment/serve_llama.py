"""Serve an exported folder by llama.cpp's own server out of PyPI's xllamacpp. Every GGUF export carries a copy of this file.

    python -m venv .venv-llama && .venv-llama/bin/pip install -r requirements-llama.txt
    .venv-llama/bin/python serve_llama.py --port 8080

It needs no compiler and nothing of agentalign. A `llama-server` that was built for the machine does the same (serve_llama.sh) and may be
faster: these wheels use AVX2 at most. Surprise: llama.cpp's server answers every web page that a browser here shows; this one does not.
"""

import argparse
import json
import os
import signal
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
INSTALL = "xllamacpp is not installed in this Python: python -m pip install -r requirements-llama.txt"
LOCAL = ("127.0.0.1", "localhost", "::1")


def main() -> None:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", default="127.0.0.1", help="anything but this machine needs a key in LLAMA_API_KEY")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--base", type=Path, default=os.environ.get("BASE_GGUF", "base.gguf"), help="the base (default base.gguf beside)")
    parser.add_argument("--context", type=int, default=8192, help="tokens of all requests under way together (default 8192)")
    parser.add_argument("--slots", type=int, default=4, help="requests at once (default 4)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="default: one per core")
    asked = parser.parse_args()
    key = os.environ.get("LLAMA_API_KEY", "")
    if asked.host not in LOCAL and not key:
        sys.exit(f"{asked.host} is open to other machines, and no key is set. Set LLAMA_API_KEY, or leave --host away.")
    base = (HERE / asked.base).resolve()
    if not base.is_file():
        sys.exit(f"{base} is not there: the base as GGUF. Export with --with-base, or name it: --base FILE.")
    try:
        import xllamacpp
    except ImportError as error:
        sys.exit(f"{INSTALL} ({error})")
    settings = xllamacpp.CommonParams()
    settings.model.path = str(base)
    settings.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(HERE / "adapter.gguf"), 1.0)]
    settings.chat_template = (HERE / "chat_template.jinja").read_text("utf-8")
    settings.model_alias = {json.loads((HERE / "card.json").read_text("utf-8"))["name"]}
    settings.use_jinja, settings.ui, settings.endpoint_slots = True, False, False
    settings.hostnames, settings.port, settings.api_keys = [asked.host], asked.port, [key] if key else []
    settings.cors_origins, settings.cors_credentials = "", False
    settings.n_ctx, settings.n_parallel, settings.kv_unified = asked.context, asked.slots, True
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = asked.threads
    server = xllamacpp.Server(settings)
    sys.stderr.write(f"serving at {server.listening_address}/v1\n")
    sys.stderr.flush()
    for sign in (signal.SIGTERM, signal.SIGINT):
        signal.signal(sign, lambda *_: sys.exit(0))
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
