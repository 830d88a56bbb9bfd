"""An adapter as a folder for somebody else's server: checked for it, in the one form that all compute alike, and tried before it stands.

Four forms: the adapter itself for PEFT; that with what vLLM needs; a plain merged model; a GGUF LoRA for llama.cpp. Whatever the form,
the target's questions (`targets`) are asked first, scales are folded into plain LoRA, and every file is readable by others (safetensors
writes 0600). Surprise: the folder appears whole or not at all; it is built beside its place and moved there at the end.
"""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from torch import Tensor

from agentalign.config.project import Project
from agentalign.deployment.export_card import write_readme, write_record
from agentalign.deployment.export_files import Written, base_path
from agentalign.deployment.export_gguf import forced_order, require_converter, write_base_gguf, write_gguf
from agentalign.deployment.export_merged import load_plain, require_mergeable, write_merged, write_plain
from agentalign.deployment.export_peft import write_peft
from agentalign.deployment.targets import Target, findings, require_deployable
from agentalign.deployment.trial import OUT_OF_MEMORY, Trial, try_out, unmeasured
from agentalign.environments.taskset import find_taskset, load_taskset
from agentalign.errors import RegistryError, TasksetError
from agentalign.rollouts.bundle import Bundle, open_bundle, require_runnable
from agentalign.store.files import sha256
from agentalign.store.registry import Registry
from agentalign.training.adapter_files import CONFIG_FILE, WEIGHTS_FILE, AdapterConfig, write_adapter
from agentalign.training.base_layers import linear_layers
from agentalign.training.foreign_config import read_foreign_config
from agentalign.training.foreign_folder import read_values
from agentalign.training.lora_form import canonical
from agentalign.training.model import Model

Form = Literal["vllm", "peft", "merged", "gguf"]
FORMS: tuple[Form, ...] = get_args(Form)
ASKED: dict[Form, tuple[Target, ...]] = {
    "vllm": ("peft", "vllm"), "peft": ("peft",), "merged": ("transformers",), "gguf": ("llama.cpp",),
}  # fmt: skip
"""The targets whose questions each form must pass."""
BASE_FOLDER = "base"
"""Inside the folder for vLLM: the base that training saw, where it was asked for."""
FOLDED = (3,)
"""The row about rsLoRA and patterns: its remedy is what every export does."""


class Exported(NamedTuple):
    """What was written."""

    folder: Path
    adapter: str
    """"name@version"."""
    base: str
    """Where the base is expected: a hub name or a folder."""
    command: str
    """Serves it; "" for PEFT alone."""
    trial: Trial | None = None
    """What was measured; None where nothing was asked for."""
    unmeasured: tuple[str, ...] = ()
    """What the target does with it that nobody measured, or that breaks it."""


class _Adapter(NamedTuple):
    """The plain LoRA that every form starts from."""

    folder: Path
    config: AdapterConfig
    tensors: dict[str, Tensor]


def export(
    project: Project,
    ref: str,
    target: Path,
    form: Form = "vllm",
    *,
    tasks: int = 0,
    dtype: str = "bfloat16",
    converter: Path | None = None,
    with_base: bool = False,
) -> Exported:
    """Write a policy adapter to a new folder.

    Args:
        tasks: held-out tasks that it is tried on; 0: no task, and of the forms only a merged one is compared with the trained policy.
        dtype: of merged weights: bfloat16 or float32.
        converter: llama.cpp's convert_lora_to_gguf.py, for gguf.
        with_base: write the base that training saw too: as GGUF, or dequantised in bf16 for vLLM, whose command then names it.

    Raises:
        RegistryError: an adapter that was changed, does not fit its base, or that the target would not compute as trained; or a base
            asked for that is the one as it is.
        ConfigError: no converter.
    """
    target = target.absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise RegistryError(f"{target} exists and is not an empty folder. Name a new folder.")
    bundle = open_bundle(project, ref)
    require_runnable(project, bundle)
    tool = require_converter(converter) if form == "gguf" else None
    if form == "merged":
        require_mergeable(bundle, dtype)
    home = base_path(bundle)
    if form == "vllm" and with_base:
        _require_rounded(bundle)
        home = str(target / BASE_FOLDER)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as name:
            adapter, folder = Path(name) / "adapter", Path(name) / "folder"
            folder.mkdir()
            plain, doubts = _plain_adapter(bundle, form, adapter, home)
            written, trial = _write(project, bundle, plain, target, folder, form, tasks=tasks, dtype=dtype, converter=tool, base=with_base)
            shutil.copyfile(bundle.folder / "card.json", folder / "card.json")
            write_readme(bundle, folder, written, trial, form=form)
            content = Registry(project.adapters).content(bundle.card.ref)
            write_record(
                bundle, folder, form=form, content=content, trial=trial, dtype=dtype if form == "merged" else "",
                converter=sha256(tool) if tool else "",
            )  # fmt: skip
            _place(folder, target)
    except OSError as error:
        raise RegistryError(f"{target}: the export could not be written ({error}). Free some space, or choose another folder.") from error
    said = [_broken_calls(project, bundle) if form == "gguf" else "", _other_base(bundle) if form == "vllm" and not with_base else ""]
    return Exported(target, bundle.card.ref, home, written.command, trial, (*filter(None, said), *doubts))


def _other_base(bundle: Bundle) -> str:
    """What serving on the base as it is means; "" where training saw just that."""
    rounding = bundle.card.quantization
    if rounding == "none":
        return ""
    return (
        f"vLLM computes on the base as it is, and this adapter was trained on it in {rounding}: another policy, which may be much worse "
        "(one adapter did 9 of 20 tasks there, in place of 18). --with-base writes the base that training saw; --to merged needs none."
    )


def _broken_calls(project: Project, bundle: Bundle) -> str:
    """What llama.cpp breaks of the taskset's calls; "" too where the taskset is not here."""
    try:
        return forced_order(load_taskset(find_taskset(bundle.card.taskset, project.tasks), project.tasks).tools)
    except TasksetError:
        return ""


def _require_rounded(bundle: Bundle) -> None:
    """RegistryError where there is no other base to write than the one as it is, or where it cannot be told from it."""
    if bundle.card.quantization == "none":
        raise RegistryError(f"{bundle.card.ref} was trained on its base as it is: {base_path(bundle)}. There is no other to write.")
    require_mergeable(bundle, "bfloat16")


def _plain_adapter(bundle: Bundle, form: Form, folder: Path, home: str) -> tuple[_Adapter, tuple[str, ...]]:
    """The adapter in its one plain form, in a folder of its own, once every target has been asked; and what nobody has measured."""
    layers = linear_layers(bundle.base.folder)
    raw = folder / "raw"
    raw.mkdir(parents=True)
    shutil.copyfile(bundle.folder / WEIGHTS_FILE, raw / WEIGHTS_FILE)
    settings = json.loads((bundle.folder / CONFIG_FILE).read_text("utf-8"))
    # Whatever base it names, the card's is the one: it was compared by its digest.
    (raw / CONFIG_FILE).write_text(json.dumps({**settings, "base_model_name_or_path": None}), "utf-8")
    doubts = []
    for target in ASKED[form]:
        require_deployable(raw, layers, target, besides=FOLDED)
        found = (finding for finding in findings(raw, layers, target) if finding.number not in FOLDED)
        doubts += [f"{finding.question} ({finding.detail}): what {target} does with it was not measured" for finding in found]
    form_of, _ = read_foreign_config((raw / CONFIG_FILE).read_bytes())
    config, tensors = canonical(form_of, read_values(raw / WEIGHTS_FILE, str(bundle.folder / WEIGHTS_FILE)))
    shutil.rmtree(raw)
    write_adapter(folder, config, tensors, base=home, heads={})
    return _Adapter(folder, config, tensors), tuple(doubts)


def _write(
    project: Project,
    bundle: Bundle,
    plain: _Adapter,
    target: Path,
    folder: Path,
    form: Form,
    *,
    tasks: int,
    dtype: str,
    converter: Path | None,
    base: bool,
) -> tuple[Written, Trial | None]:
    if form == "merged":
        trained = _trained(bundle, plain.folder)
        written = write_merged(bundle, trained, target, folder, dtype=dtype)
        where = f"the merged folder, loaded again in {dtype} on {trained.device.type}"
        try:
            served = load_plain(bundle, folder, folder.parent / "cache", dtype=dtype)
        except OUT_OF_MEMORY as error:
            return written, Trial(where=where, unmeasured=(unmeasured("everything", error),))
        return written, try_out(project, bundle, trained, served, None, where=where, tasks=tasks)
    if form == "gguf":
        assert converter is not None
        broken = _broken_calls(project, bundle)
        written, found = write_gguf(bundle, plain.folder, plain.config, plain.tensors, converter, target, folder, broken)
        if base:
            write_base_gguf(bundle, _trained(bundle, plain.folder), converter, folder)
        words = f"what llama.cpp makes of it, which does not run in this process. {found}; ask a running "
        words += "server by `agentalign deploy-check --endpoint`, or several at once by benchmarks/deploy.py."
        trial = _tried_numbers(project, bundle, plain, folder.parent, tasks) if tasks else Trial(where="a GGUF file that was read back")
        return written, trial.model_copy(update={"unmeasured": (*trial.unmeasured, words)})
    for file in plain.folder.iterdir():
        shutil.copyfile(file, folder / file.name)
    if form == "vllm" and base:
        write_plain(bundle, _trained(bundle, plain.folder), None, folder / BASE_FOLDER, dtype="bfloat16")
        written = write_peft(bundle, target, folder, vllm=True, base=str(target / BASE_FOLDER))
        return written, _tried_beside_base(project, bundle, folder, tasks) if tasks else None
    written = write_peft(bundle, target, folder, vllm=form == "vllm")
    return written, _tried_adapter(project, bundle, folder, form, tasks) if tasks else None


def _tried_adapter(project: Project, bundle: Bundle, folder: Path, form: Form, tasks: int) -> Trial:
    """As PEFT computes on the base that training rounded, or as vLLM does on the base as it is."""
    rounding = bundle.card.quantization
    rounded = form == "peft" and rounding != "none"
    where = f"the exported adapter on the base {f'rounded to {rounding}' if rounded else 'as it is, not rounded'}"
    try:
        trained = _trained(bundle, bundle.folder)
        served = trained if rounded or rounding == "none" else Model.load(bundle.base, quantization="none")
        served.load_adapter("exported", folder)
    except OUT_OF_MEMORY as error:
        return Trial(where=where, unmeasured=(unmeasured("everything", error),))
    return try_out(project, bundle, trained, served, "exported", where=f"{where}, on {served.device.type}", tasks=tasks)


def _tried_beside_base(project: Project, bundle: Bundle, folder: Path, tasks: int) -> Trial:
    """As vLLM computes on the base that lies in the folder."""
    where = "the exported adapter on the dequantised base in bfloat16, loaded from this folder"
    try:
        trained = _trained(bundle, bundle.folder)
        served = load_plain(bundle, folder / BASE_FOLDER, folder.parent / "cache", dtype="bfloat16")
        served.load_adapter("exported", folder)
    except OUT_OF_MEMORY as error:
        return Trial(where=where, unmeasured=(unmeasured("everything", error),))
    return try_out(project, bundle, trained, served, "exported", where=f"{where}, on {served.device.type}", tasks=tasks)


def _tried_numbers(project: Project, bundle: Bundle, plain: _Adapter, scratch: Path, tasks: int) -> Trial:
    """What the file's numbers, which are the adapter's, compute on the base that belongs beside it: dequantised, its matrices in f16."""
    where = "the numbers of the GGUF file on the dequantised base in f16, computed here and not by llama.cpp"
    try:
        trained = _trained(bundle, plain.folder)
        write_plain(bundle, trained, None, scratch / "base", dtype="float32")
        served = load_plain(bundle, scratch / "base", scratch / "cache", dtype="float32")
        for parameter in served.network.parameters():
            if parameter.dim() > 1:  # llama.cpp keeps vectors in float32
                parameter.data = parameter.data.half().float()
        served.load_adapter("exported", plain.folder)
    except OUT_OF_MEMORY as error:
        return Trial(where=where, unmeasured=(unmeasured("everything", error),))
    return try_out(project, bundle, trained, served, "exported", where=where, tasks=tasks)


def _trained(bundle: Bundle, adapter: Path) -> Model:
    model = Model.load(bundle.base, quantization=bundle.card.quantization)
    model.load_adapter("policy", adapter)
    return model


def _place(folder: Path, target: Path) -> None:
    """Readable by everybody, and in its place."""
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() or path.suffix == ".sh" else 0o644)
    folder.chmod(0o755)
    if target.exists():
        target.rmdir()
    folder.rename(target)
