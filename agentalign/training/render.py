"""A run as tokens: for every assistant turn the prompt it was given and the tokens it wrote; only the latter are trained.

One masking engine for every stage and template. Recorded token ids are used where they exist; otherwise a turn's tokens are what the
template writes for it. The judge is the inverse: what was rendered must parse back to the message, or the run is refused by name.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from agentalign.errors import DataError, TemplateError
from agentalign.records.base import canonical_json
from agentalign.records.trajectory import Message, TokenRecord, ToolCall, Trajectory, TurnTokens
from agentalign.training import special_text
from agentalign.training.dialect import Dialect
from agentalign.training.turn_text import shared_prefix


@dataclass(frozen=True)
class RenderedTurn:
    """One assistant turn as tokens."""

    message_index: int
    context: tuple[int, ...]
    """The prompt; never trained."""
    completion: tuple[int, ...]
    """What the agent wrote, up to and including the end-of-turn id; all of it trained."""
    logprobs: tuple[float, ...] = ()
    """The sampler's log-probabilities (nats) of the completion; empty unless recorded."""
    rerendered: bool = False
    """The template writes this turn differently once it is past than the prompt before it promised."""


@dataclass(frozen=True)
class Rendered:
    """One run as tokens."""

    trajectory: str
    turns: tuple[RenderedTurn, ...]
    inherited: int = 0
    """How many of the first turns another run's maker wrote: a correction or fork begins after them."""

    @property
    def own(self) -> "Rendered":
        """The run with the turns alone that its maker wrote: what may be imitated. Those before stand in the first one's context."""
        return replace(self, turns=self.turns[self.inherited :], inherited=0) if self.inherited else self

    @property
    def n_tokens(self) -> int:
        """Length of the longest path from the first token to the end of a turn."""
        return max((len(turn.context) + len(turn.completion) for turn in self.turns), default=0)

    @property
    def n_trainable(self) -> int:
        """Tokens that the run's own maker wrote."""
        return sum(len(turn.completion) for turn in self.turns[self.inherited :])


def render(trajectory: Trajectory, dialect: Dialect, *, tokens: TokenRecord | None = None, max_tokens: int | None) -> Rendered:
    """The run's turns as tokens.

    Args:
        trajectory: The run.
        dialect: Template and tokenizer of the base.
        tokens: Recorded ids of the run; used where their digest equals the dialect's.
        max_tokens: Longest path allowed; None for looking at a run of any length, also of one that the base does not take.

    Raises:
        DataError: the template cannot say this run, a turn does not parse back, nothing is trainable, or it is too long.
    """
    where = f"run {trajectory.id}"
    recorded = {turn.message_index: turn for turn in tokens.turns} if tokens and tokens.base == dialect.digest else {}
    agent = [step.message_index for step in trajectory.steps]
    if any(index not in recorded for index in agent):
        if refusal := dialect.report.refusal(trajectory.messages, trajectory.tools):
            raise DataError(f"{where}: {refusal}")
    turns: list[RenderedTurn] = []
    try:
        for index in agent:
            turns.append(_recorded_turn(recorded[index]) if index in recorded else _turn(trajectory, index, dialect, turns, where))
    except TemplateError as error:
        raise DataError(f"{where}: {error}") from error
    rendered = Rendered(trajectory.id, tuple(turns), trajectory.parent[1] if trajectory.parent else 0)
    if rendered.n_trainable == 0:
        raise DataError(f"{where}: the agent wrote nothing in it, so there is nothing to train on. Leave it out.")
    if max_tokens is not None and rendered.n_tokens > dialect.longest:
        raise DataError(
            f"{where}: it has {rendered.n_tokens} tokens, and the base takes {dialect.longest}: it has no more positions, or other rotary "
            "frequencies beyond. Leave the run out, or take a base for longer ones."
        )
    if max_tokens is not None and rendered.n_tokens > max_tokens:
        raise DataError(f"{where}: it has {rendered.n_tokens} tokens, more than max_tokens {max_tokens}. Raise max_tokens or leave it out.")
    return rendered


def _recorded_turn(turn: TurnTokens) -> RenderedTurn:
    return RenderedTurn(turn.message_index, turn.context, turn.completion, turn.logprobs)


def _turn(trajectory: Trajectory, index: int, dialect: Dialect, before: Sequence[RenderedTurn], where: str) -> RenderedTurn:
    messages, message = trajectory.messages, trajectory.messages[index]
    context = _context(messages[:index], trajectory.tools, dialect, before)
    text, rerendered = dialect.turn_text(messages[: index + 1], trajectory.tools)
    completion = dialect.completion_ids(text)
    if completion is None:
        shown = _short(special_text.plain(text)[-60:])
        raise DataError(f"{where}, message {index}: the template writes no end of turn after {shown}. Use another template.")
    if lost := _difference(message, dialect.parse_ids(completion)):
        reason = f"the base's template and parser do not give it back: {lost}"
        raise DataError(f"{where}, message {index}: {reason}. Use another template, or leave the run out.")
    return RenderedTurn(index, context, tuple(completion), rerendered=rerendered)


def _context(messages: Sequence[Message], tools: str, dialect: Dialect, before: Sequence[RenderedTurn]) -> tuple[int, ...]:
    if before:
        last = before[-1]
        ids = dialect.continue_ids(last.context, last.completion, messages, tools)
        if ids is not None:
            return tuple(ids)
    return tuple(dialect.context_ids(messages, tools))


def _difference(wanted: Message, got: Message) -> str:
    """What parsing the rendered turn lost, as a phrase; empty where nothing."""
    if bool(wanted.malformed) != bool(got.malformed):
        return f"a call became unreadable ({got.malformed})" if got.malformed else "an unreadable call became readable"
    calls = [[(call.name, _meant(call)) for call in message.tool_calls] for message in (wanted, got)]
    if calls[0] != calls[1]:
        return f"tool calls {calls[0]} became {calls[1]}"
    if wanted.reasoning.strip() != got.reasoning.strip():
        return f"reasoning {_short(wanted.reasoning)} became {_short(got.reasoning)}"
    if wanted.content.strip() != got.content.strip():
        return f"text {_short(wanted.content)} became {_short(got.content)}"
    return ""


def _meant(call: ToolCall) -> str:
    # Templates write values, not texts: of a number with more digits than a float what every tool would be given.
    try:
        return canonical_json(call.parsed())
    except (ValueError, RecursionError):
        return call.arguments


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")


def colour_print(rendered: Rendered, dialect: Dialect) -> str:
    """The run as text with ANSI colours: trained tokens green, alternating light and dark per token; the rest grey."""
    out: list[str] = []
    shown: tuple[int, ...] = ()
    for turn in rendered.turns:
        common = shared_prefix(shown, turn.context)
        if shown and common < len(shown):
            out.append("\n\x1b[33m--- the template writes the past differently from here on ---\x1b[0m\n")
            common = 0
        out.append("\x1b[90m" + _inert(dialect.decode(turn.context[common:])) + "\x1b[0m")
        out.extend(
            f"\x1b[{'30;42' if i % 2 else '30;102'}m{_inert(dialect.decode([token]))}\x1b[0m" for i, token in enumerate(turn.completion)
        )
        shown = turn.context + turn.completion
    return "".join(out)


def _inert(text: str) -> str:
    """Text of a run steers no terminal: control characters but tab and newline are shown as escapes."""
    return "".join(c if c.isprintable() or c in "\t\n" else c.encode("unicode_escape").decode("ascii") for c in text)
