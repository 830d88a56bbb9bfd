"""Asking a chat template what it can say.

A probe is a small chat with words that occur nowhere else. The template can say a thing when the word comes out *and* what it wrote for
the turn can be read back. How to read it is learned from the same probes: most templates that have a form of their own still write a
name and JSON arguments between fixed words.
"""

import json
import re
from collections.abc import Sequence
from datetime import date
from itertools import pairwise, product
from typing import Any, Literal, NamedTuple, Protocol

from pydantic import JsonValue

from agentalign.errors import TemplateError
from agentalign.training.parsers import ID_TEXT, Call, CallForm, TurnForm
from agentalign.training.template_report import TemplateReport
from agentalign.training.turn_text import turn_text

Entry = dict[str, Any]


class DatedRender(Protocol):
    """Renders a chat on some day; raises TemplateError where the template refuses."""

    def __call__(self, chat: Sequence[Entry], tools: JsonValue, generate: bool, *, today: date | None = None) -> str: ...


class _Shape(NamedTuple):
    """How a call must be handed to this template."""

    argument_form: Literal["dict", "string"]
    id_form: Literal["plain", "named"]
    empty_content: str | None


def call_id(index: int, name: str, form: str) -> str:
    """The id under which a template sees the run's n-th call: always of one length, or with the tool's name in it."""
    return f"functions.{name}:{index}" if form == "named" else f"call{index:05d}"


USER: Entry = {"role": "user", "content": "probeuser"}
ANSWER: Entry = {"role": "assistant", "content": "probeanswer"}
MORE: Entry = {"role": "user", "content": "probemore"}
THOUGHT: Entry = {"reasoning_content": "probethought", "thinking": "probethought"}
THINKING = ANSWER | THOUGHT
TOOLS: JsonValue = [
    {
        "type": "function",
        "function": {
            "name": "probetool",
            "description": "Probedescription.",
            "parameters": {
                "type": "object",
                "properties": {"probekey": {"type": "string", "description": "Probeargument."}},
                "required": ["probekey"],
            },
        },
    }
]


class _Probe:
    """One template under question; what it refuses comes out as empty text."""

    def __init__(self, render: DatedRender, special: Sequence[str], eos: str) -> None:
        self.render = render
        self.eos = eos
        self.special = sorted((t for t in special if t), key=len, reverse=True)
        self.tools: JsonValue = None if self.text([USER, ANSWER]) else TOOLS
        self.shape = _Shape("dict", "plain", "")

    def text(self, chat: Sequence[Entry], tools: JsonValue = None, generate: bool = False, today: date | None = None) -> str:
        try:
            return self.render(chat, tools, generate, today=today)
        except TemplateError:
            return ""

    def turn(self, entry: Entry, tools: JsonValue = None) -> str:
        try:
            return turn_text(self.render, [USER, entry], tools).text
        except TemplateError:
            return ""

    def calling(self, count: int = 1, content: str = "") -> Entry:
        calls = []
        for index in range(count):
            arguments: JsonValue = {"probekey": f"probevalue{index}"}
            value = arguments if self.shape.argument_form == "dict" else json.dumps(arguments)
            function = {"name": "probetool", "arguments": value}
            calls.append({"id": call_id(index, "probetool", self.shape.id_form), "type": "function", "function": function})
        return {"role": "assistant", "content": content or self.shape.empty_content, "tool_calls": calls}

    def result(self, index: int = 0) -> Entry:
        return {
            "role": "tool",
            "name": "probetool",
            "tool_call_id": call_id(index, "probetool", self.shape.id_form),
            "content": f"proberesult{index}",
        }

    def find_shape(self) -> bool:
        """Choose how calls are handed over, and say whether the template writes them at all."""
        forms: tuple[Literal["dict", "string"], ...] = ("dict", "string")
        ids: tuple[Literal["plain", "named"], ...] = ("plain", "named")
        for id_form, form, empty in product(ids, forms, ("", None)):
            self.shape = _Shape(form, id_form, empty)
            written = self.turn(self.calling(), TOOLS)
            if "probetool" in written and "probevalue0" in written and '\\"probevalue0' not in written:
                return True
        self.shape = _Shape("dict", "plain", "")
        return False

    def end(self, written: str, after: str, known: Sequence[str]) -> str:
        """The token that ends a turn: a known one, else the tokenizer's own, else the first special token behind the turn's last word."""
        start = written.rfind(after)
        behind = written[start + len(after) :] if start >= 0 else ""
        for token in (*known, self.eos):
            if token and token in behind:
                return token
        places = [(place, -len(token), token) for token in self.special if (place := behind.find(token)) >= 0]
        # The words that close a call may be special tokens too: there the turn ends with the last.
        return (max(places) if known else min(places))[2] if places else ""


def probe(render: DatedRender, special: Sequence[str], eos: str) -> tuple[TemplateReport, TurnForm]:
    """What a template can say, and how its turns are read.

    Args:
        render: The template.
        special: The tokenizer's special tokens.
        eos: Its end-of-sequence token; empty where it has none.

    Raises:
        TemplateError: it does not even write a user's message and an answer.
    """
    ask = _Probe(render, special, eos)
    plain = ask.text([USER, ANSWER], ask.tools)
    if "probeuser" not in plain or "probeanswer" not in plain:
        raise TemplateError("the chat template does not write a user's message and an answer. Name a chat template that does.")
    writes_calls = ask.find_shape()
    answer, called = ask.turn(ANSWER, ask.tools), ask.turn(ask.calling(), TOOLS) if writes_calls else ""
    ends = tuple(filter(None, [ask.end(answer, "probeanswer", ())]))
    if ends and called:
        ends = tuple(dict.fromkeys(filter(None, [*ends, ask.end(called, "probevalue0", ends)])))
    form = _learn(_cut(answer, ends), _cut(called, ends), _cut(ask.turn(ask.calling(2), TOOLS), ends), ask.turn(THINKING, ask.tools))
    return _report(ask, form, ends, writes_calls), form


def _report(ask: _Probe, form: TurnForm, ends: tuple[str, ...], writes_calls: bool) -> TemplateReport:
    def reads(entry: Entry, tools: JsonValue, content: str = "", calls: int = 0, reasoning: str = "") -> bool:
        got = form.parse(_cut(ask.turn(entry, tools), ends))
        wanted = tuple(Call("probetool", f'{{"probekey":"probevalue{index}"}}') for index in range(calls))
        return (got.content.strip(), got.calls, got.malformed, got.reasoning) == (content, wanted, "", reasoning)

    two = ask.text([USER, ask.calling(2), ask.result(), ask.result(1)], TOOLS)
    thinks = reads(THINKING, ask.tools, "probeanswer", reasoning="probethought")
    return TemplateReport(
        without_tools=ask.tools is None,
        system="probesystem" in ask.text([{"role": "system", "content": "probesystem"}, USER], ask.tools, generate=True),
        tools="probetool" in ask.text([USER], TOOLS, generate=True),
        calls=writes_calls,
        readable_calls=reads(ask.calling(), TOOLS, calls=1),
        results="proberesult0" in ask.text([USER, ask.calling() if writes_calls else ANSWER, ask.result()], TOOLS),
        results_of_malformed="proberesult0" in ask.text([USER, ANSWER, {"role": "tool", "content": "proberesult0"}], TOOLS, generate=True),
        parallel_calls=reads(ask.calling(2), TOOLS, calls=2) and "proberesult0" in two and "proberesult1" in two,
        text_with_call=reads(ask.calling(content="probetext"), TOOLS, "probetext", calls=1),
        reasoning=thinks and (not writes_calls or reads(ask.calling() | THOUGHT, TOOLS, calls=1, reasoning="probethought")),
        turn_ends=ends,
        readable_text=reads(ANSWER, ask.tools, "probeanswer"),
        argument_form=ask.shape.argument_form,
        id_form=ask.shape.id_form,
        empty_content=ask.shape.empty_content,
        writes_date=ask.text([USER], TOOLS, True, date(2001, 2, 3)) != ask.text([USER], TOOLS, True, date(2012, 11, 14)),
        prefix_preserving=_appends_only(ask, writes_calls),
    )


def _appends_only(ask: _Probe, writes_calls: bool) -> bool:
    chat = [USER, ask.calling() | THOUGHT, ask.result(), THINKING, MORE] if writes_calls else [USER, THINKING, MORE]
    tools = TOOLS if writes_calls else ask.tools
    turns = [i for i, entry in enumerate(chat) if entry["role"] == "assistant"]
    texts = [t for i in turns for t in (ask.text(chat[:i], tools, True), ask.text(chat[: i + 1], tools))]
    texts.append(ask.text(chat, tools, True))
    return all(texts) and all(longer.startswith(shorter) for shorter, longer in pairwise(texts))


def _cut(written: str, ends: Sequence[str]) -> str:
    places = [place for end in ends if (place := written.find(end)) >= 0]
    return written[: min(places)] if places else written


def _learn(answer: str, called: str, both: str, thought: str) -> TurnForm:
    """How the template's turns are read, from what it wrote for the probes."""
    reasoning = None
    match = re.match(r"(.*?)probethought(.*?)probeanswer", thought, re.DOTALL)
    if match and match[2].strip():
        reasoning = (match[1].strip(), match[2].strip())
    lead, tail = (part.strip() for part in answer.partition("probeanswer")[::2])
    if reasoning and "".join(lead.split()) == "".join(reasoning):
        lead = ""  # an empty thought, which is read as one
    call_format, calls = _learn_calls(called, both)
    return TurnForm(call_format, calls, lead, tail, reasoning)


def _learn_calls(called: str, both: str) -> tuple[str, CallForm | None]:
    if re.search(r'<tool_call>\s*\{"name": ?"probetool", ?"arguments": ?\{"probekey": ?"probevalue0"\}\}\s*</tool_call>', called):
        return "hermes", None
    if re.search(r'\{(?:"type": ?"function", ?)?"name": ?"probetool", ?"parameters": ?\{"probekey": ?"probevalue0"\}\}\s*$', called):
        return "llama3_json", None
    one, two = _split_calls(called, 1), _split_calls(both, 2)
    if one is None:
        return "text", None
    form = CallForm(lead=one[0], mid=one[1], between="", tail=one[2])
    if two is not None and two[:2] == one[:2] and two[3] == one[1] and two[4] == one[2]:
        form = CallForm(lead=one[0], mid=one[1], between=two[2], tail=one[2])
    return ("learned", form) if form.marker and len(form.marker) > 1 else ("text", None)


def _split_calls(written: str, count: int) -> list[str] | None:
    """The literals around names and arguments of `count` probe calls: lead, mid, (between, mid)*, tail."""
    literals: list[str] = []
    for index in range(count):
        match = re.match(rf'(.*?)probetool(.*?)\{{\s*"probekey"\s*:\s*"probevalue{index}"\s*\}}', written, re.DOTALL)
        if not match:
            return None
        literals += [match[1], match[2]]
        written = written[match.end() :]
    # Ids and their numbers are free; see `call_id`.
    return [re.sub(r"call0000\d|(?<=[:\"])[01]\b", ID_TEXT, literal) for literal in [*literals, written]]
