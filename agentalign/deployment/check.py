"""The gate: may this adapter be promoted? Each check is one question that is answered by measuring, never by trust.

PEFT loads truncated, misnamed or NaN adapters without a word, so completeness and shapes are computed from the base's own architecture,
on the meta device: no weights of the base are loaded.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from agentalign.config.project import Project
from agentalign.errors import AgentAlignError, RegistryError
from agentalign.evaluation.compare import compare
from agentalign.evaluation.evaluate import MOST_UNUSABLE, Evaluation
from agentalign.evaluation.run_eval import stored_evaluations
from agentalign.records.adapter import GateCheck, GateReport
from agentalign.rollouts.bundle import Bundle, open_bundle, other_base, other_template
from agentalign.store.registry import Registry
from agentalign.training.adapter_files import AdapterConfig, read_adapter
from agentalign.training.base_layers import linear_layers
from agentalign.training.lora_form import LoraForm

SPLITS = ("test", "dev", "train")
NOT_WORSE = "not worse than production"
DEPLOY_CHECKED = "deploy-check"


def gate(
    project: Project, ref: str, *, evaluation: Evaluation | None, production: Evaluation | None = None, rival: str = "", forced: str = ""
) -> GateReport:
    """Ask every question about an adapter.

    Args:
        evaluation: how good it is; None fails the gate.
        production: the version in production by the same plan on the same split; None where there is none to beat, or it has no such one.
        rival: the version in production, "name@version"; without its evaluation the gate fails. Empty where there is none to beat.
        forced: a reason to promote it although a check fails.
    """
    bundle = open_bundle(project, ref)
    questions: list[tuple[str, Callable[[], str]]] = [
        ("files", lambda: _files(project, bundle)),
        ("base", lambda: _fine(other_base(bundle), f"digest {bundle.base.digest[:12]}")),
        ("template", lambda: _fine(other_template(bundle), f"digest {bundle.card.template_digest[:12]}")),
        ("weights", lambda: _weights(bundle)),
        ("evaluated", lambda: _evaluated(project, bundle, evaluation)),
        (DEPLOY_CHECKED, lambda: _deploy_checked(project, bundle.card.ref)),
    ]
    if evaluation is not None and production is not None:
        before, after = production, evaluation
        questions.append((NOT_WORSE, lambda: _not_worse(before, after)))
    elif evaluation is not None and rival:
        problem = f"{rival} is in production and was not evaluated on split {evaluation.split} by the same plan. Compare them: "
        problem += f"`agentalign eval {bundle.card.ref} --against {rival} --split {evaluation.split}`."
        questions.append((NOT_WORSE, lambda: _fine(problem, "")))
    content = Registry(project.adapters).content(bundle.card.ref)
    return GateReport(
        adapter=bundle.card.ref, content=content, checks=tuple(_ask(name, question) for name, question in questions), forced=forced
    )


def promote(project: Project, ref: str, stage: str, *, forced: str = "", canary: float | None = None) -> GateReport:
    """Run the gate on stored evaluations and promote the version if it passes or a reason is given.

    Of the splits that this version was evaluated on, the one that production was evaluated on too speaks; else test before dev. On a
    split its largest plan speaks, and production must have been evaluated by that same plan: what twenty tasks say is no match for all.
    """
    registry = Registry(project.adapters)
    card, _ = registry.resolve(ref)
    held = registry.stages(card.name).get("production")
    before = f"{card.name}@{held}" if held is not None and held != card.version else None
    sides = []
    for split in SPLITS:
        found = stored_evaluations(project, card.ref, card.taskset, split)
        rivals = stored_evaluations(project, before, card.taskset, split) if before else []
        sides.append(_speaking(found, rivals))
    evaluation, production = max(sides, key=lambda side: (side[0] is not None, side[1] is not None))
    report = gate(project, card.ref, evaluation=evaluation, production=production, rival=before or "", forced=forced)
    registry.promote(card.ref, stage, report, canary=canary)
    return report


def expected_tensors(base_folder: Path, config: AdapterConfig) -> dict[str, tuple[int, int]]:
    """Name -> shape of every tensor that a LoRA on this base has, by PEFT's names."""
    return LoraForm(r=config.r, alpha=config.alpha, targets=config.targets).shapes(linear_layers(base_folder))


def _speaking(found: Sequence[Evaluation], rivals: Sequence[Evaluation]) -> tuple[Evaluation | None, Evaluation | None]:
    """Of the evaluations over the most tasks the one that production has a match for, and the match; else the first of them."""
    largest = [one for one in found if one.settings.get("tasks") == found[0].settings.get("tasks")]
    pairs = [(one, rival) for one in largest for rival in rivals if rival.settings == one.settings]
    pairs.sort(key=lambda pair: pair[0].taskset_digest != pair[1].taskset_digest)
    return pairs[0] if pairs else (largest[0] if largest else None, None)


def _ask(name: str, question: Callable[[], str]) -> GateCheck:
    try:
        return GateCheck(name=name, passed=True, detail=question())
    except AgentAlignError as error:
        return GateCheck(name=name, passed=False, detail=str(error))


def _fine(problem: str, detail: str) -> str:
    if problem:
        raise RegistryError(problem)
    return detail


def _files(project: Project, bundle: Bundle) -> str:
    Registry(project.adapters).verify(bundle.card.ref)
    return f"{len(bundle.card.files)} files are as they were saved"


def _weights(bundle: Bundle) -> str:
    config, tensors = read_adapter(bundle.folder)  # refuses anything but plain LoRA, and NaN
    expected = expected_tensors(bundle.base.folder, config)
    missing, surplus = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    wrong = sorted(name for name in expected.keys() & tensors.keys() if tuple(tensors[name].shape) != expected[name])
    for what, names in (("missing", missing), ("without a place in the base", surplus), ("of another shape", wrong)):
        if names:
            raise RegistryError(f"{len(names)} tensors are {what}, the first {names[0]}; of {len(expected)} expected. Train it anew.")
    if not any(tensor.any() for name, tensor in tensors.items() if ".lora_B." in name):
        raise RegistryError("every B matrix is zero, so the adapter changes nothing. Train it, or promote its parent.")
    return f"{len(tensors)} tensors of rank {config.r} are finite and fit the base"


def _deploy_checked(project: Project, ref: str) -> str:
    """The newest report of these files is asked; what others of other places said is told beside it."""
    reports = Registry(project.adapters).checks(ref)
    if not reports:
        raise RegistryError(f"{ref} has no green deploy-check of exactly these files. Run `agentalign deploy-check {ref}`.")
    newest = reports[-1]
    where = f"{newest.target}, {newest.time[:16]}"
    if newest.state != "green":
        wrong = [check for check in newest.checks if not (check.passed and check.measured)]
        reasons = " ".join(f"{check.name}: {check.detail.rstrip('.')}." for check in wrong)
        raise RegistryError(f"the last one is {newest.state} ({where}). {reasons} Then run `agentalign deploy-check {ref}` again.")
    by_target = {report.target: report for report in reports}
    others = [f"{report.state} at {target}" for target, report in sorted(by_target.items()) if report.state != "green"]
    return "; ".join([f"green ({where})", *others])


def _evaluated(project: Project, bundle: Bundle, evaluation: Evaluation | None) -> str:
    if evaluation is None:
        raise RegistryError(f"{bundle.card.ref} was never evaluated with these files. Run `agentalign eval {bundle.card.ref}`.")
    if evaluation.adapter != bundle.card.ref:
        raise RegistryError(f"the evaluation is about {evaluation.adapter}, not {bundle.card.ref}. Evaluate this one.")
    if evaluation.content != Registry(project.adapters).content(bundle.card.ref) or not evaluation.taskset_digest:
        why = "is about other files" if evaluation.content else "does not say which files it is about, nor how the taskset was"
        raise RegistryError(f"the evaluation of {bundle.card.ref} {why}. Run `agentalign eval {bundle.card.ref}` again.")
    if evaluation.unusable > MOST_UNUSABLE:
        said = " ".join(evaluation.trouble) or "Runs broke, or could not be scored."
        raise RegistryError(
            f"{evaluation.unusable:.0%} of its runs say nothing about {bundle.card.ref}. {said} Mend that and evaluate again."
        )
    head = evaluation.headline
    return f"success {head.success.mean:.1%} on {head.n} tasks of {evaluation.taskset}, {evaluation.split}"


def _not_worse(before: Evaluation, after: Evaluation) -> str:
    if (before.taskset, before.split, before.settings) != (after.taskset, after.split, after.settings):
        raise RegistryError(
            f"production ({before.adapter}) was evaluated on {_plan(before)}, this one on {_plan(after)}; "
            f"evaluate both on one split by one plan: `agentalign eval {after.adapter} --against {before.adapter}`."
        )
    if before.taskset_digest != after.taskset_digest:
        raise RegistryError(
            f"{after.taskset} was changed between the evaluations of {before.adapter} and {after.adapter}, so they cannot be compared. "
            f"Evaluate both now: `agentalign eval {after.adapter} --against {before.adapter} --split {after.split}`."
        )
    found = compare(before, after)
    tasks = found.everything.success.n + found.unpaired
    if found.unpaired > MOST_UNUSABLE * tasks:
        raise RegistryError(
            f"{found.unpaired} of {tasks} tasks have a result of {before.adapter} or {after.adapter} only, so the rest decides nothing. "
            "Find out why the others could not be scored, and evaluate again."
        )
    difference = found.headline.success
    figures = f"{difference.delta:+.1%} [{difference.low:+.1%}, {difference.high:+.1%}] against {before.adapter}"
    aside = "".join(f" {sentence}" for sentence in found.notes)
    if difference.verdict == "worse":
        raise RegistryError(f"success is {figures}: worse beyond chance. Keep production, or find out why it fell.{aside}")
    # Success may be one criterion alone: what a veto forbids, or what else was asked for, can fall as it rises.
    fell = [f"{name} {one.delta:+.1%} [{one.low:+.1%}, {one.high:+.1%}]" for name, one in found.criteria.items() if one.verdict == "worse"]
    if fell:
        raise RegistryError(
            f"success is {figures}, but {', '.join(fell)}: worse beyond chance. Keep production, or look at these runs first.{aside}"
        )
    return f"success is {figures}.{aside}" if aside else f"success is {figures}"


def _plan(evaluation: Evaluation) -> str:
    settings = (f"{name} {value}" for name, value in evaluation.settings.items())
    return ", ".join((evaluation.taskset, evaluation.split, *settings))
