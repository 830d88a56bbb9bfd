"""Make the golden turns of an adapter while the engine that trained it is still in memory.

The prompts are of the dev split: the adapter acts on a few tasks, and of each run the first and the last turn are kept, so that calls
and answers both occur. Without an environment they come from stored runs. Answers are greedy, from the merged copy that rollouts use;
their log-probabilities are computed again on the path that training computes.
"""

import logging
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from agentalign.environments.taskset import Taskset
from agentalign.environments.team_code import Pool
from agentalign.errors import AgentAlignError, DataError
from agentalign.records.golden import Golden, GoldenTurn
from agentalign.records.trajectory import Message, Trajectory
from agentalign.rollouts.collect import spread
from agentalign.rollouts.policy import LocalPolicy
from agentalign.rollouts.rollout import Job, rollout
from agentalign.store.filters import RunFilter
from agentalign.store.store import Store
from agentalign.training.adapter_generator import adapter_generator
from agentalign.training.dialect import Dialect
from agentalign.training.generate import Generator
from agentalign.training.model import Model
from agentalign.training.top_tokens import apart, top_tokens

logger = logging.getLogger("agentalign")
GOLDEN_FILE = "golden.json"
TASKS = 4
"""Held-out tasks, or stored runs; two turns of each at most."""
POSITIONS = 24
"""Tokens of an answer that are kept: enough for the name of a call and its first arguments."""


class Prompt(NamedTuple):
    """What an agent had before it."""

    task: str
    messages: tuple[Message, ...]
    tools: str


class _Turn(NamedTuple):
    context: tuple[int, ...]
    completion: tuple[int, ...]


def make_golden(model: Model, adapter: str, taskset: Taskset, pool: Pool, store: Store) -> Golden | None:
    """The golden turns of an adapter in memory; None, said as a warning, where none could be made. It never ends a training."""
    try:
        return golden_turns(model, adapter, taskset, pool, store)
    except (AgentAlignError, RuntimeError, MemoryError, ValueError) as error:  # ValueError: a record of what is no number
        reason = " ".join(str(error).split())[:300]
        logger.warning("no golden prompts are kept beside the adapter, so a server cannot be held against it later: %s", reason)
        return None


def golden_turns(model: Model, adapter: str, taskset: Taskset, pool: Pool, store: Store) -> Golden:
    """The golden turns of an adapter in memory; DataError where there is nothing that it could be asked."""
    generator = adapter_generator(model, adapter)
    prompts = _acted(generator, model.dialect, taskset, pool)
    held_out = True
    if not prompts:
        prompts, held_out = _stored(store, taskset, model.dialect)
    contexts = {i: tuple(model.dialect.context_ids(prompt.messages, prompt.tools)) for i, prompt in enumerate(prompts)}
    answers = generator.session().generate(contexts, max_new_tokens=taskset.limits.max_turn_tokens) if contexts else {}
    kept = [i for i in contexts if answers[i].ids]
    if not kept:
        raise DataError(f"taskset '{taskset.name}' has no dev tasks that can be acted out, and no stored runs. Give it either.")
    turns = [_Turn(contexts[i], answers[i].ids[:POSITIONS]) for i in kept]
    tops = top_tokens(model, adapter, turns, together=True)
    alone = top_tokens(model, adapter, turns, together=False)
    base = top_tokens(model, None, turns, together=True)
    return Golden(
        dialect=model.dialect.digest,
        quantization=model.quantization,
        dtype=str(model.dtype).removeprefix("torch."),
        device=model.device.type,
        held_out=held_out,
        noise=sum(apart(a, b) for a, b in zip(tops, alone, strict=True)) / len(turns),
        turns=tuple(
            GoldenTurn(
                task=prompts[i].task,
                messages=prompts[i].messages,
                tools=prompts[i].tools,
                context=turn.context,
                completion=turn.completion,
                answer=model.dialect.parse_ids(answers[i].ids),
                adapter=top,
                base=bare,
            )
            for i, turn, top, bare in zip(kept, turns, tops, base, strict=True)
        ),
    )


def _acted(generator: Generator, dialect: Dialect, taskset: Taskset, pool: Pool) -> list[Prompt]:
    tasks = spread(taskset.tasks("dev"), TASKS) if taskset.has_environment else []
    if not tasks:
        return []
    policy = LocalPolicy(generator, dialect, "golden", temperature=0.0)
    runs = [result.trajectory for result in rollout(taskset, policy, [Job(task) for task in tasks], pool=pool)]
    return list(_prompts(runs, dialect))


def _stored(store: Store, taskset: Taskset, dialect: Dialect) -> tuple[list[Prompt], bool]:
    """Prompts of stored runs, and whether they are held out."""
    for split in ("dev", None):
        found: list[Prompt] = []
        for run in store.trajectories(RunFilter(taskset=taskset.name, split=split)):
            if run.split != "test":
                found += _prompts([run], dialect)
            if len(found) >= 2 * TASKS:
                break
        if found:
            return found, split == "dev"
    return [], False


def _prompts(runs: Sequence[Trajectory], dialect: Dialect) -> Iterator[Prompt]:
    """The first and the last turn's prompt of each run that the template can say."""
    for run in runs:
        steps = [step.message_index for step in run.steps if run.messages[: step.message_index]]
        for index in dict.fromkeys([*steps[:1], *steps[-1:]]):
            messages = run.messages[:index]
            # What a call that could not be read led to has no form of its own in the OpenAI API: no server could be asked the same.
            odd = any(one.malformed or (one.role == "tool" and one.tool_call_id is None) for one in messages)
            if not odd and not dialect.report.refusal(messages, run.tools):
                yield Prompt(run.task_id or run.id, messages, run.tools)
