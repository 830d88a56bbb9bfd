"""What a chat template can say, found out by asking it, and the sentence that refuses a run which needs more.

A probe is a small chat with words that occur nowhere else; the template can say a thing when the word comes out.
"""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import JsonValue

from agentalign.errors import TemplateError
from agentalign.records.trajectory import Message

Render = Callable[[list[dict[str, Any]], JsonValue, bool], str]
"""(messages, tools, add_generation_prompt) -> text; raises TemplateError where the template refuses."""


@dataclass(frozen=True)
class TemplateReport:
    """What one template can say."""

    system: bool
    """It writes a system message."""
    tools: bool
    """It writes the offered tools."""
    calls: bool
    """It writes an assistant's tool call."""
    results: bool
    """It writes a tool's result."""
    parallel_calls: bool
    """It writes two calls in one turn."""
    text_with_call: bool
    """It writes the text beside a call."""
    reasoning: bool
    """It writes the reasoning of the last turn, between `<think>` and `</think>`."""
    argument_form: Literal["dict", "string"]
    """How arguments must be handed over so that they are not encoded twice."""
    writes_date: bool
    """Its prompts contain today's date (which is fixed, see `template_kwargs`)."""
    prefix_preserving: bool
    """A longer chat begins with the text of a shorter one."""
    call_format: str
    """Name of the parser that reads its calls; "text" where none can."""
    turn_ends: tuple[str, ...]
    """Special tokens that end an assistant turn."""

    def refusal(self, messages: Sequence[Message], tools: str) -> str:
        """Why a run cannot be said in this template, as one sentence; empty where it can."""
        agent = [m for m in messages if m.role == "assistant"]
        needs: list[tuple[bool, bool, str]] = [
            (True, bool(self.turn_ends), "writes no end-of-turn token after an assistant message, so the model could not learn to stop"),
            (any(m.role == "system" for m in messages), self.system, "cannot write a system message"),
            (bool(json.loads(tools)), self.tools, "does not write the offered tools, so the model would never see them"),
            (any(m.tool_calls for m in agent), self.calls, "does not write tool calls"),
            (any(m.tool_calls for m in agent), self.call_format != "text", "writes tool calls in a form that cannot be read back"),
            (any(m.role == "tool" for m in messages), self.results, "does not write tool results"),
            (any(len(m.tool_calls) > 1 for m in agent), self.parallel_calls, "cannot write two calls in one turn"),
            (any(m.tool_calls and m.content.strip() for m in agent), self.text_with_call, "drops the text beside a tool call"),
            (any(m.reasoning.strip() for m in agent), self.reasoning, "drops the agent's reasoning"),
        ]
        for needed, able, what in needs:
            if needed and not able:
                return f"the base's chat template {what}. Use another template for this base, or leave such runs out."
        return ""

    def split_reasoning(self, text: str) -> tuple[str, str]:
        """Reasoning and the rest of a turn. An unclosed `<think>` is left in the text."""
        if self.reasoning:
            match = re.match(r"\s*(?:<think>)?(.*?)</think>\s*", text, re.DOTALL)
            if match:
                return match[1].strip(), text[match.end() :]
        return "", text


_TOOLS: JsonValue = [
    {
        "type": "function",
        "function": {
            "name": "probetool",
            "description": "Probedescription.",
            "parameters": {"type": "object", "properties": {"probekey": {"type": "string", "description": "Probeargument."}}, "required": ["probekey"]},
        },
    }
]


def probe(render: Render, special: Iterable[str]) -> TemplateReport:
    """Ask a template what it can say.

    Raises:
        TemplateError: it does not even write a user's message and an answer.
    """
    user = {"role": "user", "content": "probeuser"}
    answer = {"role": "assistant", "content": "probeanswer"}

    def text(chat: list[dict[str, Any]], tools: JsonValue = None, generate: bool = False) -> str:
        try:
            return render(chat, tools, generate)
        except TemplateError:
            return ""

    plain = text([user, answer])
    if "probeuser" not in plain or "probeanswer" not in plain:
        raise TemplateError("the chat template does not write a user's message and an answer. Name a chat template that does.")
    form: Literal["dict", "string"] = "dict"
    called = text([user, _calling(form)], _TOOLS)
    if not _wrote(called):
        form, called = "string", text([user, _calling("string")], _TOOLS)
        if not _wrote(called):
            form = "dict"
    result = {"role": "tool", "name": "probetool", "tool_call_id": "call00000", "content": "proberesult"}
    both = text([user, _calling(form, 2)], _TOOLS)
    beside = text([user, _calling(form, content="probetext")], _TOOLS)
    thought = {"role": "assistant", "content": "probeanswer", "reasoning_content": "probethought", "thinking": "probethought"}
    chat = [user, _calling(form), result, answer, {"role": "user", "content": "probemore"}]
    if not text(chat, _TOOLS):
        chat = [user, answer, {"role": "user", "content": "probemore"}]
    starts = [text(chat[:1], _TOOLS, True), text(chat[:2], _TOOLS), text(chat, _TOOLS, True)]
    tokens = sorted((t for t in special if t), key=len, reverse=True)
    return TemplateReport(
        system="probesystem" in text([{"role": "system", "content": "probesystem"}, user]),
        tools="probetool" in text([user], _TOOLS, True),
        calls=_wrote(called),
        results="proberesult" in text([user, _calling(form), result], _TOOLS),
        parallel_calls="probevalue0" in both and "probevalue1" in both,
        text_with_call=_wrote(beside) and "probetext" in beside,
        reasoning="<think>" in text([user, thought]) and "probethought" in text([user, thought]),
        argument_form=form,
        writes_date=False,
        prefix_preserving=all(b.startswith(a) for a, b in zip(starts, starts[1:], strict=False)),
        call_format=_call_format(called),
        turn_ends=tuple(dict.fromkeys(end for end in (_end(plain, "probeanswer", tokens), _end(called, "probevalue0", tokens)) if end)),
    )


def _calling(form: str, count: int = 1, content: str = "") -> dict[str, Any]:
    calls = []
    for index in range(count):
        arguments: JsonValue = {"probekey": f"probevalue{index}"}
        value = arguments if form == "dict" else json.dumps(arguments)
        calls.append({"id": f"call{index:05d}", "type": "function", "function": {"name": "probetool", "arguments": value}})
    return {"role": "assistant", "content": content, "tool_calls": calls}


def _wrote(text: str) -> bool:
    return "probevalue0" in text and '\\"probevalue0' not in text


def _call_format(called: str) -> str:
    if re.search(r'<tool_call>\s*\{"name": ?"probetool", ?"arguments": ?\{"probekey": ?"probevalue0"\}\}\s*</tool_call>', called):
        return "hermes"
    if re.search(r'\{(?:"type": ?"function", ?)?"name": ?"probetool", ?"parameters": ?\{"probekey": ?"probevalue0"\}\}', called):
        return "llama3_json"
    return "text"


def _end(text: str, after: str, tokens: Sequence[str]) -> str:
    """The first special token behind the last occurrence of `after`; empty where there is none."""
    start = text.rfind(after)
    if start < 0:
        return ""
    places = [(place, -len(token), token) for token in tokens if (place := text.find(token, start + len(after))) >= 0]
    return min(places)[2] if places else ""
