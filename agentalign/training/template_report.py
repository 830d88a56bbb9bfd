"""What a chat template can say, and the sentence that refuses a run which needs more."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from agentalign.records.trajectory import Message


@dataclass(frozen=True)
class TemplateReport:
    """What one template can say and what can be read back from it; found by `template_probe.probe`."""

    without_tools: bool = False
    """It writes a chat in which no tools are offered."""
    system: bool = False
    """It writes a system message."""
    tools: bool = False
    """It writes the offered tools."""
    calls: bool = False
    """It writes an assistant's tool call."""
    readable_calls: bool = False
    """What it writes for a call can be read back."""
    results: bool = False
    """It writes a tool's result."""
    results_of_malformed: bool = False
    """It writes a tool's message that answers no call: the error message for a call that could not be read."""
    parallel_calls: bool = False
    """It writes two calls in one turn."""
    text_with_call: bool = False
    """It writes the text beside a call."""
    reasoning: bool = False
    """It writes the reasoning of a turn, beside text and beside a call."""
    turn_ends: tuple[str, ...] = ()
    """Special tokens that end an assistant turn; empty where it writes none."""
    readable_text: bool = False
    """What it writes for a plain answer can be read back."""
    argument_form: Literal["dict", "string"] = "dict"
    """How arguments must be handed over so that they are not encoded twice."""
    id_form: Literal["plain", "named"] = "plain"
    """"named" where the template writes the tool's name only as part of the call's id (functions.NAME:0)."""
    empty_content: str | None = ""
    """What to hand over as the text of a call without text."""
    writes_date: bool = False
    """Its prompts contain today's date (which is fixed, see `Base.template_kwargs`)."""
    prefix_preserving: bool = False
    """A longer chat begins with the text of a shorter one."""

    def refusal(self, messages: Sequence[Message], tools: str) -> str:
        """Why a run cannot be said in this template, as one sentence; empty where it can."""
        agent = [m for m in messages if m.role == "assistant"]
        calling = [m for m in agent if m.tool_calls]
        try:
            offered = bool(json.loads(tools))
        except RecursionError:
            return "the offered tools are nested too deeply to be read. Leave such runs out."
        needs: list[tuple[object, bool, str]] = [
            (True, bool(self.turn_ends), "writes no end-of-turn token after an assistant message, so the model could not learn to stop"),
            (True, self.readable_text, "writes an assistant's text in a form that cannot be read back"),
            (not offered, self.without_tools, "cannot write a chat without tools"),
            (offered, self.tools, "does not write the offered tools, so the model would never see them"),
            (any(m.role == "system" for m in messages), self.system, "cannot write a system message"),
            (calling, self.calls, "does not write tool calls"),
            (calling, self.readable_calls, "writes tool calls in a form that cannot be read back"),
            (any(m.role == "tool" for m in messages), self.results, "does not write tool results"),
            (any(m.malformed for m in agent), self.results_of_malformed, "cannot write an error message for a call that could not be read"),
            (any(len(m.tool_calls) > 1 for m in agent), self.parallel_calls, "cannot write two calls in one turn"),
            (any(m.content.strip() for m in calling), self.text_with_call, "drops the text beside a tool call"),
            (any(m.reasoning.strip() for m in agent), self.reasoning, "does not write the agent's reasoning so that it can be read back"),
        ]
        for needed, able, what in needs:
            if needed and not able:
                return f"the base's chat template {what}. Use another template for this base, or leave such runs out."
        return ""
