"""One base's way of writing chats: template, tool-call parser and end-of-turn ids, in one object.

Everything that writes a prompt or reads a model's words goes through here: training, rollouts, serving, export.
Surprise: a longer chat need not begin with the text of a shorter one (some templates drop old reasoning), so `continue_ids` may say None.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from functools import cached_property
from typing import Any

from jinja2.exceptions import TemplateError as JinjaError
from pydantic import JsonValue
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import _compile_jinja_template

from agentalign.errors import TemplateError
from agentalign.records.base import digest
from agentalign.records.trajectory import Message, ToolCall
from agentalign.training import special_text
from agentalign.training.base import Base
from agentalign.training.parsers import TurnForm
from agentalign.training.positions import UNLIMITED, position_limit
from agentalign.training.template_probe import call_id, probe
from agentalign.training.turn_text import TurnText, turn_text

DEFAULT_TODAY = "2026-01-01"
"""The date that templates with a clock see where the base's config names none: a fixed one, or no prompt would ever repeat."""

_SHOWN = (*range(33, 127), *range(161, 173), *range(174, 256))
_BYTES = {chr(byte): byte for byte in _SHOWN} | {chr(256 + n): byte for n, byte in enumerate(b for b in range(256) if b not in _SHOWN)}
"""Sign -> byte, as GPT-2's byte-level vocabularies write bytes (`bytes_to_unicode` in its encoder.py)."""


class Dialect:
    """Messages to tokens and back, for one tokenizer under one template."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: str,
        template_kwargs: Mapping[str, JsonValue] | None = None,
        *,
        stop_ids: Iterable[int] = (),
    ) -> None:
        """Ask the template what it can say.

        Args:
            tokenizer: The base's tokenizer.
            template: The chat template's text.
            template_kwargs: Its fixed arguments; see `Base.template_kwargs`.
            stop_ids: Ids that end a turn beside those that the template writes.

        Raises:
            TemplateError: the template cannot be compiled or writes no chat at all.
        """
        self.tokenizer = tokenizer
        self.template = template
        self.longest = UNLIMITED
        """Most tokens of one run that the base takes; see `position_limit`."""
        self.template_kwargs = dict(template_kwargs or {})
        today = self.template_kwargs.get("today", DEFAULT_TODAY)
        try:
            self._today = date.fromisoformat(str(today))
        except ValueError:
            raise TemplateError(f"template_kwargs: today is {today!r}, which is no date. Write it as YYYY-MM-DD.") from None
        try:
            self._compiled = _compile_jinja_template(template)
        except JinjaError as error:
            raise TemplateError(f"the chat template is not valid Jinja ({error}). Correct it or name another template file.") from error
        added = tokenizer.added_tokens_decoder.values()
        special = [token.content for token in added if token.special]
        written = [token.content for token in added if not token.special and token.content in template and not token.content.isspace()]
        self._special = special_text.pattern(special)
        self._written = special_text.pattern(special + written)
        newline = tokenizer.encode("\n", add_special_tokens=False)
        self._newline: list[int] = [int(i) for i in newline]
        self._letter: list[int] = [int(i) for i in tokenizer.encode("a", add_special_tokens=False)]
        self._before = self.decode(self._letter)
        self._spelled: dict[int, str] = {}
        self.report, self._form = probe(self._render, special, str(tokenizer.eos_token or ""))
        self.stop_ids = self._find_stop_ids() | frozenset(stop_ids)
        self._stop = special_text.pattern(str(tokenizer.convert_ids_to_tokens(i)) for i in self.stop_ids)
        # Whoever masks padding must not mask the end of a turn.
        candidates = (tokenizer.pad_token_id, *range(len(self.stop_ids) + 1))
        self.pad_id = next(int(i) for i in candidates if i is not None and i not in self.stop_ids)

    @classmethod
    def load(cls, base: Base) -> "Dialect":
        """The dialect of a prepared base."""
        settings = base.folder / "generation_config.json"
        ends = json.loads(settings.read_text("utf-8")).get("eos_token_id") if settings.is_file() else None
        stop_ids = ends if isinstance(ends, list) else [] if ends is None else [ends]
        dialect = cls(AutoTokenizer.from_pretrained(base.folder), base.template, base.template_kwargs, stop_ids=stop_ids)
        dialect.longest = position_limit(AutoConfig.from_pretrained(base.folder))
        return dialect

    @cached_property
    def digest(self) -> str:
        """Hash over tokenizer, template and its arguments: recorded tokens are reused only where it is equal."""
        fast = isinstance(self.tokenizer, PreTrainedTokenizerFast)
        vocabulary: str = self.tokenizer.backend_tokenizer.to_str() if fast else json.dumps(self.tokenizer.get_vocab(), sort_keys=True)
        return digest([hashlib.sha256(vocabulary.encode()).hexdigest(), self.template, self.template_kwargs, str(self._today)])

    # ---- writing

    def context_text(self, messages: Sequence[Message], tools: str = "[]") -> str:
        """The prompt that a server would send before the agent's next turn, as a person reads it."""
        return special_text.plain(self.seamed_text(messages, tools, generate=True))

    def context_ids(self, messages: Sequence[Message], tools: str = "[]") -> list[int]:
        """The prompt's token ids."""
        return self.encode_seamed(self.seamed_text(messages, tools, generate=True))

    def continue_ids(
        self, context: Sequence[int], completion: Sequence[int], messages: Sequence[Message], tools: str = "[]"
    ) -> list[int] | None:
        """The next prompt as the old prompt, the tokens that were sampled, and what came after: nothing is encoded twice.

        Args:
            context: The prompt of the last assistant message in `messages`.
            completion: What was sampled for it, with or without the end-of-turn id.
            messages: All messages up to now: that assistant message and what came back for it.
            tools: The offered tools.

        Returns:
            The ids, or None where the template writes the old turns differently now; then use `context_ids`.
        """
        last = max(i for i, message in enumerate(messages) if message.role == "assistant")
        before = self.seamed_text(messages[:last], tools, generate=True)
        turn = self.seamed_text(messages[: last + 1], tools)
        now = self.seamed_text(messages, tools, generate=True)
        end = self._stop.search(turn, len(before))
        if not turn.startswith(before) or end is None or not now.startswith(turn[: end.end()]):
            return None
        following = now[end.end() :]
        stopped = bool(completion) and completion[-1] in self.stop_ids
        # The stop token is encoded along, so that what it does to the characters after it happens, and dropped where it stands already.
        ids = self.encode_seamed(end[0] + following, first=False)
        return [*context, *completion, *(ids[1:] if stopped else ids)]

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; the text of special tokens in it becomes those tokens. Adds nothing."""
        return [int(i) for i in self.tokenizer.encode(text, add_special_tokens=False)]

    def encode_seamed(self, text: str, *, first: bool = True) -> list[int]:
        """Token ids of a text from `seamed_text`; typed special tokens stay ordinary text.

        Args:
            text: Text with seams.
            first: The text stands at the start of the prompt (some tokenizers put a space before the first word).
        """
        ids: list[int] = []
        for index, piece in enumerate(special_text.pieces(text)):
            ids += self.encode(piece) if first and index == 0 else self._encode_inside(piece)
        return ids

    def _encode_inside(self, piece: str) -> list[int]:
        ids = self.encode("\n" + piece)
        length = len(self._newline)
        return ids[length:] if ids[:length] == self._newline else self.encode(piece)

    def seamed_text(self, messages: Sequence[Message], tools: str = "[]", *, generate: bool = False) -> str:
        """The rendered chat with a seam inside every special token's text that somebody typed; see `special_text`.

        Raises:
            TemplateError: the template refuses these messages.
        """
        with _not_too_deep():
            return self._render(self._seamed_chat(messages), self._seamed_tools(tools), generate)

    def turn_text(self, messages: Sequence[Message], tools: str = "[]") -> TurnText:
        """What the template writes for the last message, an assistant's, with seams.

        Raises:
            TemplateError: the template refuses these messages, or writes nothing for the last.
        """
        with _not_too_deep():
            return turn_text(self._render, self._seamed_chat(messages), self._seamed_tools(tools))

    def _seamed_tools(self, tools: str) -> JsonValue:
        return special_text.seam(json.loads(tools), self._written)

    def _seamed_chat(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        """Messages as templates expect them. Call ids are made anew, so that a template that writes them gets what it wants."""
        ids: dict[str | None, str] = {}
        for message in messages:
            for call in message.tool_calls:
                ids.setdefault(call.id, call_id(len(ids), call.name, self.report.id_form))
        # Tokens that are not special (`<think>` in some vocabularies) may be written by the agent itself, but by nobody else.
        return [
            _seamed_entry(self._entry(message, ids), self._special if message.role == "assistant" else self._written)
            for message in messages
        ]

    def _entry(self, message: Message, ids: Mapping[str | None, str]) -> dict[str, Any]:
        entry: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.reasoning:
            entry |= {"reasoning_content": message.reasoning, "thinking": message.reasoning}
        if message.tool_calls:
            entry["content"] = message.content or self.report.empty_content
            entry["tool_calls"] = [
                {"id": ids[call.id], "type": "function", "function": {"name": call.name, "arguments": self._arguments(call)}}
                for call in message.tool_calls
            ]
        if message.role == "tool":
            entry |= {"name": message.name} if message.name else {}
            entry |= {"tool_call_id": ids[message.tool_call_id]} if message.tool_call_id in ids else {}
        return entry

    def _arguments(self, call: ToolCall) -> JsonValue:
        if self.report.argument_form == "string":
            return call.arguments
        try:
            return call.parsed()
        except ValueError:
            return call.arguments

    def _render(self, chat: Sequence[dict[str, Any]], tools: JsonValue, generate: bool, *, today: date | None = None) -> str:
        variables: dict[str, Any] = {**self.tokenizer.special_tokens_map, **self.template_kwargs}
        clock = (today or self._today).strftime
        try:
            text: str = self._compiled.render(
                **variables, messages=list(chat), tools=tools or None, documents=None, add_generation_prompt=generate, strftime_now=clock
            )
        except (JinjaError, TypeError, KeyError, ValueError, AttributeError) as error:
            raise TemplateError(f"the chat template refuses these messages: {error}") from error
        return text

    # ---- reading

    def decode(self, ids: Sequence[int]) -> str:
        """The text of these ids, special tokens included, nothing cleaned up."""
        text = self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return str(text)

    def token_text(self, token: int) -> str:
        """The text of a token as it stands behind others: some decoders strip the space before a first word."""
        if token not in self._spelled:  # log-probs ask for the same few thousand again and again
            both = self.decode([*self._letter, token])
            self._spelled[token] = both.removeprefix(self._before) if both.startswith(self._before) else self.decode([token])
        return self._spelled[token]

    def token_bytes(self, token: int) -> bytes:
        """What a token stands for, in bytes: the text of one that is a part of a character does not say which part."""
        text = self.token_text(token)
        if "\ufffd" in text:
            piece = str(self.tokenizer.convert_ids_to_tokens(token))
            single = re.fullmatch("<0x([0-9A-F]{2})>", piece)
            found = bytes([int(single[1], 16)]) if single else bytes(_BYTES[sign] for sign in piece if sign in _BYTES)
            if found.decode("utf-8", "replace") == text:
                return found
        return text.encode("utf-8", "replace")

    def parse(self, text: str, *, first_call: int = 0) -> Message:
        """The assistant message that a turn's text says; `malformed` tells why where a call could not be read. Never raises.

        Args:
            text: What the model wrote, with or without its end-of-turn token.
            first_call: Number of the first call's id, so that ids are unique within a run.
        """
        ends = list(self._stop.finditer(text))
        return self._read(text[: ends[-1].start()] if ends and ends[-1].end() == len(text) else text, first_call)

    def parse_ids(self, ids: Sequence[int], *, first_call: int = 0) -> Message:
        """The assistant message of a sampled turn; end-of-turn ids at its end are dropped."""
        end = len(ids)
        while end and ids[end - 1] in self.stop_ids:
            end -= 1
        return self._read(self.decode(ids[:end]), first_call)

    def _read(self, text: str, first_call: int) -> Message:
        text = text.encode("utf-8", "replace").decode("utf-8")
        parsed = self._form.parse(text)
        if parsed.malformed:
            return Message(role="assistant", content=text, malformed=parsed.malformed)
        calls = tuple(ToolCall(id=f"call_{first_call + i}", name=c.name, arguments=c.arguments) for i, c in enumerate(parsed.calls))
        return Message(role="assistant", content=parsed.content, reasoning=parsed.reasoning, tool_calls=calls)

    @property
    def form(self) -> TurnForm:
        """How turns are read."""
        return self._form

    @property
    def call_format(self) -> str:
        """How calls are read: "hermes", "llama3_json", "learned" from the template, or "text" where they cannot be."""
        return self._form.call_format

    def completion_ids(self, text: str) -> list[int] | None:
        """Ids of a turn's seamed text up to and including the first end-of-turn id; None where it has none."""
        ids = self.encode_seamed(text, first=False)
        for index, token in enumerate(ids):
            if token in self.stop_ids:
                return ids[: index + 1]
        return None

    def _find_stop_ids(self) -> frozenset[int]:
        found = {self.tokenizer.convert_tokens_to_ids(token) for token in self.report.turn_ends}
        if self.tokenizer.eos_token_id is not None:
            found.add(self.tokenizer.eos_token_id)
        return frozenset(int(i) for i in found if isinstance(i, int))


@contextmanager
def _not_too_deep() -> Iterator[None]:
    """Arguments and schemas are somebody's JSON, and what walks through it calls itself, here and in the template's `tojson`."""
    try:
        yield
    except RecursionError:
        raise TemplateError("a call's arguments or a tool's schema are nested too deeply to be written. Leave such runs out.") from None


def _seamed_entry(entry: dict[str, Any], tokens: re.Pattern[str]) -> dict[str, Any]:
    return {key: value if key == "role" else special_text.seam(value, tokens) for key, value in entry.items()}
