"""What of a chat reaches the store: its runs, what its person said about them, and the calls that they changed, as corrections.

A changed call leaves three runs: the chat as it went, the turn as the agent wrote it (a *proposal*), and that turn as the person made it (a
correction, with the pair "this, not that" at the same state). Surprise: keeping is the only way in which anything of a chat reaches the
store, and for two sides keeping is voting: nothing could be told about a blind pair whose sides stand in the list of runs.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from agentalign.errors import DataError
from agentalign.records.base import digest, now
from agentalign.records.criterion import Score
from agentalign.records.preference import Item, Preference
from agentalign.records.trajectory import Origin, TokenRecord, Trajectory
from agentalign.scoring.corrected import Act, correct_step, correction_pair, inherited_tokens
from agentalign.store.store import Store
from agentalign.ui.compare import STRENGTH, Choice
from agentalign.ui.play_chat import Chat
from agentalign.ui.play_lane import Lane

WRITTEN_IN = "chat"
"""Who made a proposal, as it says. The adapter is named by the chat's own run alone, which may be hidden in a queue; this one is not."""


class Changed(NamedTuple):
    """A turn of which a person changed a call."""

    proposal: Trajectory
    corrected: Trajectory
    tokens: list[TokenRecord]
    """Of both."""


def keep(store: Store, chat: Chat, *, choice: Choice | None, scores: Sequence[Score], queue: bool, note: str, corrections: bool) -> None:
    """Store the chat's runs and what was said about them; the chat's lock is held. Doing it again does nothing more.

    Args:
        corrections: what was changed in calls is to be learned from.

    Raises:
        DataError: there is nothing to keep yet, a pair without a vote, or the run that it replays was forgotten.
    """
    if (choice is not None) != (len(chat.lanes) == 2):
        raise DataError("two sides are kept with a vote between them, and one side without. Send the one or the other.")
    if chat.kept:
        return
    runs = chat.as_runs()
    sides = zip(chat.lanes, runs, strict=True)
    changed = [one for lane, run in sides for one in changed_turns(lane, run, chat.owner, chat.sides.base)] if corrections else []
    made = [run for one in changed for run in (one.proposal, one.corrected)]
    tokens = [*chat.tokens_of(runs), *(record for one in changed for record in one.tokens)]
    words = [_vote(chat, runs, choice, note)] if choice is not None else []
    words += [correction_pair(one.corrected, one.proposal) for one in changed]
    # One commit: a blind pair whose vote was lost would stand in the list of runs with its makers.
    store.add_judged([*runs, *made], tokens, scores, words)
    chat.runs = runs
    if queue:
        store.queue_items.add([run.id for run in runs])
    # Names are told from here on: after everything is committed.
    chat.kept, chat.proposals = True, tuple(one.proposal.id for one in changed)
    chat.sides.seen += 1


def changed_turns(lane: Lane, run: Trajectory, author: str, base: str) -> Iterator[Changed]:
    """The turns of a side's run of which its person changed a call.

    Args:
        base: digest of the tokenizer and template that tokens belong to.
    """
    denied = {change["call"] for change in lane.changes if change["did"] == "denied"}
    for place, wrote in sorted(lane.wrote.items()):
        step = sum(message.role == "assistant" for message in run.messages[:place])
        proposal = Trajectory(
            taskset=run.taskset, messages=(*run.messages[:place], wrote.message), tools=run.tools, split=run.split, parent=(run.id, step),
            origin=Origin(kind="proposal", reference=WRITTEN_IN, task=run.origin.task, seed=run.origin.seed), created=now(),
        )  # fmt: skip
        made = tuple((call.name, call.arguments) for call in run.messages[place].tool_calls if call.id not in denied)
        try:
            corrected = correct_step(proposal, step, Act(wrote.message.content, wrote.message.reasoning, made), author)
        except DataError:
            continue  # another call of the turn fits no tool, or all were denied: what was made is no example either
        turns = (*(turn for turn in lane.turns if turn.message_index < place), *([wrote.tokens] if wrote.tokens else []))
        record = TokenRecord(trajectory=proposal.id, base=base, turns=turns) if turns else None
        yield Changed(proposal, corrected, [*([record] if record else []), *inherited_tokens(corrected, record)])


def _vote(chat: Chat, runs: Sequence[Trajectory], choice: Choice, note: str) -> Preference:
    items = tuple(Item(run.id) for run in runs)
    return Preference(
        taskset=chat.about.taskset,
        items=items[::-1] if choice in ("right", "right_far") else items,
        strength=STRENGTH[choice],
        tie=choice == "tie",
        both_bad=choice == "both_bad",
        left=runs[0].id,
        source="human",
        rater=chat.owner,
        note=note,
        id=digest(["chat", chat.id]),
    )
