"""Does what is deployed behave like what was trained? Asked in numbers, of this process or of a server.

Every question is held against the golden turns that the training left. Surprise: whether an adapter is applied at all is seen without
the bare base: a server's log-probs must lie nearer to the record of the adapter than to the record of the base. What cannot be measured
is said and does not pass: a report with nothing worse in it is "not measured", which is not green.
"""

import json
from collections.abc import Callable, Sequence

from agentalign.config.project import Project
from agentalign.deployment.endpoint import Answer, Endpoint
from agentalign.deployment.record_golden import read_golden
from agentalign.deployment.served_tasks import TASKS, tasks_through_server
from agentalign.environments.taskset import find_taskset, load_taskset
from agentalign.errors import ConfigError, ModelError
from agentalign.evaluation.statistics import FEWEST
from agentalign.records.adapter import GateCheck, GateReport
from agentalign.records.golden import Golden, GoldenTurn, TopTokens
from agentalign.rollouts.bundle import Bundle, open_bundle, require_runnable
from agentalign.store.registry import Registry
from agentalign.training.dialect import Dialect
from agentalign.training.model import Model
from agentalign.training.quantize import Quantization
from agentalign.training.top_tokens import apart, top_tokens

LEAST_NOISE = 1e-5
"""Nats: log-probs are written with six digits."""
HALF_NOISE = 5e-4
"""Nats: bfloat16 rounds logits of 16 to 32 by up to 2^-4, and a divergence is about half the variance of such errors, 2^-8 / 3. A base
that is not rounded, for an adapter that was trained on NF4, is some hundred times as far (0.028 and 0.054 nats were measured)."""
DISTANCE, APPLIED, CONTROL, CALLS, TEMPLATE = "log-probs", "adapter applied", "control beside it", "tool calls", "template"
GOLDEN = "golden prompts"
FEW = 2
"""Turns that noise and control are measured on in process: more prove nothing new, and a check that takes long is not made."""
REMEDIES = {
    DISTANCE: "The weights there are others: another base, a base rounded in another way than was said, or an adapter that was merged back "
    "into quantized weights. Serve the adapter unmerged, or merge it into the dequantized base.",
    APPLIED: "These are the answers of the base: the adapter is not loaded there, or the name leads to the base. Load it, and name it with "
    "--model.",
    CONTROL: "Requests that come together get each other's weights. Serve a zero adapter in place of the base, or every adapter alone.",
    CALLS: "Template and tool-call parser do not belong together there. Choose the parser of this call format.",
    TEMPLATE: "Prompts are written in another way there. Start the server with the version's own chat_template.jinja.",
}
"""What to do about a check that failed."""
CONTROLS = ("zero", "identity", "base")
PRECISIONS = ("bfloat16", "float16", "float32")
Tops = Sequence[Sequence[TopTokens]]


def deploy_check(
    project: Project, ref: str, *, endpoint: str = "", model: str = "", control: str = "", quantization: Quantization | str = "",
    api_key: str = "none", tasks: int = 0, told: Callable[[str], None] = lambda _step: None,
) -> GateReport:  # fmt: skip
    """Ask every question; the report is kept beside the version, whatever it says, and promotion asks for it.

    Args:
        endpoint: address of a server, such as "http://127.0.0.1:8000/v1"; empty: in this process.
        model: the adapter's name there; default "name@version" where it serves that, else "name".
        control: a zero adapter or the base on that server; default: the first of zero, identity, base that it serves.
        quantization: how the base is rounded there, and after a slash what it computes in, such as "nf4/bfloat16"; empty where nobody
            says. Where the second is not said, half precision is allowed for.
        tasks: so many held-out tasks are acted out through the server and held against the version's evaluation; 0 for none.
        told: what is being asked now, in words, since this takes a while.

    Raises:
        RegistryError: files, base or template are not what the card says; nothing is asked of such a version.
        ModelError: the server does not answer.
        ConfigError: a precision that no server computes in.
    """
    if quantization.partition("/")[2] not in ("", *PRECISIONS):
        raise ConfigError(
            f"{quantization!r} is no quantization: after the slash stands one of {', '.join(PRECISIONS)}. Give e.g. nf4/bfloat16."
        )
    bundle = open_bundle(project, ref)
    require_runnable(project, bundle)
    registry = Registry(project.adapters)
    content = registry.content(bundle.card.ref)
    golden = read_golden(bundle)
    if golden is None:
        detail = f"{bundle.card.ref} has none, so there is nothing to hold against. "
        detail += f"`agentalign adapters golden {bundle.card.ref}` records what it answers in this engine"
        checks: list[GateCheck] = [GateCheck(name=GOLDEN, passed=False, measured=False, detail=detail)]
    elif endpoint:
        told(f"asking {endpoint}")
        checks = _asked_of_server(project, bundle, golden, endpoint, model, control, quantization, api_key, tasks)
    else:
        checks = _in_process(bundle, golden, told)
    if golden is not None and golden.recorded:
        since = f" The record is of {golden.recorded[:16]}, made from the saved files and not by the training"
        checks = [one.model_copy(update={"detail": f"{one.detail}.{since}"}) if one.name == DISTANCE else one for one in checks]
    report = GateReport(adapter=bundle.card.ref, content=content, target=endpoint or "in process", checks=tuple(checks))
    registry.keep(bundle.card.ref, report)
    return report


def _in_process(bundle: Bundle, golden: Golden, told: Callable[[str], None]) -> list[GateCheck]:
    told(f"loading {bundle.base.name}")
    model = Model.load(bundle.base, quantization=bundle.card.quantization)
    model.load_adapter("policy", bundle.folder)
    model.add_adapter("control", r=1, alpha=1.0, trainable=False)  # B is zero: it must change nothing
    turns, few = golden.turns, golden.turns[:FEW]
    told(f"asking {len(turns)} golden prompts")
    first = top_tokens(model, "policy", turns, together=True)
    told("asking a control beside it, and again")
    beside = top_tokens(model, "control", few, together=True)
    again = top_tokens(model, "policy", few, together=False)
    bare = top_tokens(model, None, few, together=True)
    noise = max(golden.noise, _mean(first[:FEW], again), LEAST_NOISE)
    same = (golden.dtype, golden.device) == (str(model.dtype).removeprefix("torch."), model.device.type)
    adapter, base = [turn.adapter for turn in turns], [turn.base for turn in turns]
    dialect = model.dialect.digest == golden.dialect
    said = (
        "tokenizer, template and its arguments are those of the record" if dialect else "another tokenizer or template than in the record"
    )
    stray = _mean(beside, bare)
    control = f"a zero adapter between two rounds is {stray:.2g} nats from the base; {2 * noise:.2g} allowed"
    return [
        _distance(first, adapter, noise, own=same),
        _applied(first, adapter, base, noise),
        _measured(CONTROL, stray <= 2 * noise, control, distance=stray),
        _measured(TEMPLATE, dialect, said),
    ]


def _asked_of_server(
    project: Project,
    bundle: Bundle,
    golden: Golden,
    url: str,
    model: str,
    control: str,
    quantization: str,
    api_key: str,
    tasks: int,
) -> list[GateCheck]:
    dialect = Dialect.load(bundle.base)
    limit = load_taskset(find_taskset(bundle.card.taskset, project.tasks)).limits.max_turn_tokens
    server = Endpoint(url, api_key=api_key, max_new_tokens=limit, dialect=dialect)
    served = server.models()
    name = model or next((one for one in (bundle.card.ref, bundle.card.name) if one in served), "")
    if name not in served:
        raise ModelError(f"{url} does not serve {name or bundle.card.ref}; it serves {', '.join(served[:10])}. Name it with --model.")
    beside = control or next((one for one in CONTROLS if one in served), "")
    acted = [tasks_through_server(project, bundle, url, name, api_key, tasks)] if tasks else []
    alone = [server.ask(name, turn) for turn in golden.turns]
    again = [server.ask(name, turn) for turn in golden.turns]
    # A text that no id of the base has says nothing about the weights, neither good nor bad.
    read = [i for i, (one, two) in enumerate(zip(alone, again, strict=True)) if one.along.tops and two.along.tops]
    problem = ""
    if not all(answer.along.tops or answer.foreign for answer in alone + again):
        problem = "the server gives no log-probs, so nothing can be compared. Start it with them."
    elif 2 * len(read) <= len(alone):
        problem = "the server writes tokens in a form of its own, so nothing can be compared. Start it so that its log-probs say token ids."
    if problem:
        return [*(GateCheck(name=one, passed=False, measured=False, detail=problem) for one in (DISTANCE, APPLIED, CONTROL)),
                _calls(alone, golden, dialect), _template(alone, golden), *acted]  # fmt: skip
    alongs = [alone[i].along for i in read]
    tops, adapter, base = ([along[side] for along in alongs] for side in range(3))
    noise = max(golden.noise, _mean(tops, [again[i].along.tops for i in read]), LEAST_NOISE)
    how, _, precision = quantization.partition("/")
    # A server's engine rounds in other places than ours; only where both are known to compute in float32 is that nothing.
    rounded = noise if golden.dtype == precision == "float32" else max(noise, HALF_NOISE)
    own = (how, precision or golden.dtype) == (golden.quantization, golden.dtype)
    distance = _distance(tops, adapter, rounded, own=own, hint="" if precision else _precision_hint(golden, how))
    if not how:
        words = f"{distance.detail}. The server's quantization is unknown, so this cannot be judged: give --quantization."
        distance = distance.model_copy(update={"passed": False, "measured": False, "detail": words})
    elif not own and all(one.passed and one.figures["tasks"] < FEWEST for one in acted) and distance.figures["distance"] > 2 * rounded:
        # Of one adapter on the base as it is, 0.23 nats away, every answer could be read, and half of its tasks were lost.
        words = f"the weights there compute another policy; whether it is as good only {FEWEST} tasks or more can tell, such as --tasks 20"
        acted = [GateCheck(name=TASKS, passed=False, measured=False, detail=words)]
    return [
        distance,
        _applied(tops, adapter, base, noise),
        _beside(server, name, beside, [golden.turns[i] for i in read], [alone[i] for i in read], noise),
        _calls(alone, golden, dialect),
        _template(alone, golden),
        *acted,
    ]


def _beside(server: Endpoint, name: str, control: str, turns: Sequence[GoldenTurn], adapter: Sequence[Answer], noise: float) -> GateCheck:
    """Adapter and control asked in turn, many at once: some servers answer one with the other's weights then."""
    if not control:
        detail = "the server offers no zero adapter and no base. Serve one, and name it with --control."
        return GateCheck(name=CONTROL, passed=False, measured=False, detail=detail)
    quiet = [server.ask(control, turn) for turn in turns]
    mixed = server.ask_all([(who, turn) for turn in turns for who in (name, control)])
    sides = ((adapter, mixed[::2], quiet), (quiet, mixed[1::2], adapter))
    wrong = 0
    for before, now, other in sides:
        for one, two, three in zip(before, now, other, strict=True):
            if not (one.foreign or two.foreign or three.foreign):
                tops, now_tops, other_tops = one.along.tops, two.along.tops, three.along.tops
                wrong += apart(tops, now_tops) > max(2 * noise, 0.1 * apart(tops, other_tops))
    return _measured(CONTROL, not wrong, f"{wrong} of {len(mixed)} answers changed when {name} and {control} were asked side by side")


def _precision_hint(golden: Golden, how: str) -> str:
    other = "bfloat16" if golden.dtype == "float32" else "float32"
    hint = f". The record was computed in {golden.dtype} on {golden.device}; if the server computes in another precision, say so"
    return f"{hint}, as in --quantization {how}/{other}"


def _distance(served: Tops, record: Tops, noise: float, *, own: bool, hint: str = "") -> GateCheck:
    found = _mean(record, served)
    text = f"{found:.2g} nats from the training-time record; two runs of the same weights are up to {noise:.2g} apart"
    if not own:
        return _measured(
            DISTANCE, True, f"{text}. The base is computed in another way here, so this is told and not judged", distance=found
        )
    passed = found <= 2 * noise
    return _measured(DISTANCE, passed, f"{text}; twice that is allowed{'' if passed else hint}", distance=found, noise=noise)


def _applied(served: Tops, adapter: Tops, base: Tops, noise: float) -> GateCheck:
    effect, to_adapter, to_base = _mean(adapter, base), _mean(adapter, served), _mean(base, served)
    if effect <= 4 * noise:
        detail = f"the adapter moves the golden prompts by {effect:.2g} nats only, too little to see above {noise:.2g} of noise"
        return GateCheck(name=APPLIED, passed=False, measured=False, detail=detail)
    text = f"{to_adapter:.2g} nats from the adapter's record, {to_base:.2g} from the base's; they are {effect:.2g} apart"
    return _measured(APPLIED, to_adapter < to_base, text, to_adapter=to_adapter, to_base=to_base, effect=effect)


def _calls(answers: Sequence[Answer], golden: Golden, dialect: Dialect) -> GateCheck:
    """Share of readable answers, against the training engine's; a call left in the text means that template and parser disagree."""

    def readable(answer: Answer) -> bool:
        left = dialect.parse(answer.content)
        return not left.tool_calls and not left.malformed and all(_is_object(text) for _, text in answer.calls)

    here = [readable(answer) for answer in answers]
    engine = [not turn.answer.malformed for turn in golden.turns]
    lost = sum(then and not now for then, now in zip(engine, here, strict=True))
    called = sum(bool(turn.answer.tool_calls) for turn in golden.turns)
    missing = sum(bool(turn.answer.tool_calls) and not answer.calls for turn, answer in zip(golden.turns, answers, strict=True))
    text = (
        f"{sum(here)} of {len(here)} answers can be read, {sum(engine)} of the training engine's; {missing} of {called} calls did not come"
    )
    return _measured(CALLS, not lost and missing * 2 <= called, text)


def _template(answers: Sequence[Answer], golden: Golden) -> GateCheck:
    ids = [answer.prompt_ids for answer in answers]
    counts = [answer.prompt_tokens for answer in answers]
    if all(one is not None for one in ids):
        wrong, how = sum(one != turn.context for one, turn in zip(ids, golden.turns, strict=True)), "by token ids"
    elif all(one is not None for one in counts):
        wrong, how = sum(one != len(turn.context) for one, turn in zip(counts, golden.turns, strict=True)), "by their number of tokens only"
    else:
        return GateCheck(
            name=TEMPLATE, passed=False, measured=False, detail="the server says neither ids nor number of the prompt's tokens"
        )
    return _measured(TEMPLATE, not wrong, f"{wrong} of {len(answers)} prompts are other ones than in training, {how}")


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _mean(first: Tops, second: Tops) -> float:
    return sum(apart(one, two) for one, two in zip(first, second, strict=True)) / len(first)


def _measured(name: str, passed: bool, detail: str, **figures: float) -> GateCheck:
    return GateCheck(name=name, passed=passed, detail=detail if passed else f"{detail}. {REMEDIES[name]}", figures=figures)
