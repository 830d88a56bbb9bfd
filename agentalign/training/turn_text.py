"""What a template writes for one assistant turn, found by comparing what it writes with and without it.

Most templates write a chat with the turn as the prompt before it and then the turn. About a quarter do not (they drop an opened
`<think>`, space roles differently, merge tool results): there the turn is where renders of different answers start to differ.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

from pydantic import JsonValue

from agentalign.errors import TemplateError

Chat = Sequence[dict[str, Any]]
Render = Callable[[Chat, JsonValue, bool], str]
"""(messages, tools, add_generation_prompt) -> text; raises TemplateError where the template refuses."""


class TurnText(NamedTuple):
    """The text of a turn, end-of-turn token and all that follows it included."""

    text: str
    rerendered: bool
    """The template does not continue the prompt; the text was found by comparing renders."""


def turn_text(render: Render, chat: Chat, tools: JsonValue) -> TurnText:
    """What the template writes for the last message of the chat.

    Raises:
        TemplateError: the template refuses the chat, or writes nothing for the message.
    """
    context = render(chat[:-1], tools, True)
    full = render(chat, tools, False)
    if full.startswith(context):
        return TurnText(full[len(context) :], rerendered=False)
    answers = [render([*chat[:-1], {"role": "assistant", "content": word}], tools, False) for word in ("one answer", "another answer")]
    text = full[shared_prefix(*answers, full) :]
    if not text:
        raise TemplateError("the chat template writes nothing for an assistant message.")
    # What the prompt already ended with (an opened `<think>`) was not the agent's, though the template writes it again.
    overlap = next((n for n in range(min(len(text), len(context)), 0, -1) if context.endswith(text[:n])), 0)
    return TurnText(text[overlap:], rerendered=True)


def shared_prefix(*sequences: Sequence[Hashable]) -> int:
    """How many items all sequences have in common at their start."""
    return next((i for i, items in enumerate(zip(*sequences, strict=False)) if len(set(items)) > 1), min(map(len, sequences)))
