"""What can be said of a turn while it is still being written: text goes out at once, half a call never.

A beginning of the turn is *certain* when it stays the beginning of the turn's text whatever follows. Everything else waits: reasoning until
it is closed, what may become a call until it is one or is not, white space that a call would take with it, half a character.
Surprise: nothing here reads calls. The one parser does that when the turn is over, so a streamed turn and a whole one cannot differ.
"""

import re
from collections.abc import Callable, Sequence

from agentalign.training.parsers import TurnForm

Decode = Callable[[Sequence[int]], str]
WINDOW = 8
"""Ids that are decoded again with those after them: enough for one character in bytes."""
BEGINNING = 48
"""Ids that are looked back at for the beginning of a call: it is written in pieces, and some forms let white space stand in it."""


def certain_text(form: TurnForm, text: str) -> str:
    """The part of an unfinished turn's text that will not change."""
    rest = _after_reasoning(form, text)
    if rest is None:
        return ""
    if form.text_lead:
        body = rest.lstrip()
        if form.text_lead.startswith(body):
            return ""
        if body.startswith(form.text_lead):
            rest = body[len(form.text_lead) :].lstrip()
    for start in form.call_starts:
        rest = _before(rest, start)
    rest = rest.rstrip()
    if form.text_tail:
        rest = _before(rest, form.text_tail).rstrip()
    return rest


def _after_reasoning(form: TurnForm, text: str) -> str | None:
    """None while reasoning may still be going on."""
    if form.reasoning is None:
        return text
    before, after = form.reasoning
    body = text.lstrip()
    if before.startswith(body) or (body.startswith(before) and after not in body):
        return None
    return body[len(before) :].partition(after)[2].lstrip() if body.startswith(before) else text


def _before(text: str, word: str) -> str:
    """The text before a word, or before what may become the word."""
    found = text.find(word)
    if found >= 0:
        return text[:found]
    held = next((n for n in range(min(len(word) - 1, len(text)), 0, -1) if text.endswith(word[:n])), 0)
    return text[: len(text) - held]


class Unfolding:
    """The text of ids that come one by one, each decoded a few times however long the turn is."""

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._settled = ""
        self._context: list[int] = []
        """Ids whose text is settled; those after them are decoded behind them, since some tokenizers treat a first word otherwise."""
        self._open: list[int] = []

    def add(self, token: int) -> str:
        """The whole text so far, without the bytes of a character that is not complete."""
        self._open.append(token)
        before = self._decode(self._context)
        new = self._decode([*self._context, *self._open])[len(before) :]
        whole = not new.endswith("\ufffd")
        if whole and len(self._open) >= WINDOW:
            self._settled += new
            self._context, self._open = self._open, []
            return self._settled
        return self._settled + (new if whole else new.rstrip("\ufffd"))


class StopWords:
    """Ends a turn where its text says one of some words; see `continuous.Stop`.

    Its text is what is shown, so neither reasoning nor the inside of a call: line breaks and braces there are the template's own.
    """

    def __init__(self, words: Sequence[str], form: TurnForm, decode: Decode) -> None:
        self._words, self._form, self._unfolding = tuple(words), form, Unfolding(decode)
        self.over = False

    def advance(self, token: int) -> None:
        """Look for the words in what is certain now."""
        self.over = text_before(certain_text(self._form, self._unfolding.add(token)), self._words) is not None


def text_before(text: str, words: Sequence[str]) -> str | None:
    """The text before the first of some words; None where it says none of them."""
    places = [place for place in map(text.find, words) if place >= 0]
    return text[: min(places)] if places else None


def without_words(text: str, words: Sequence[str]) -> str:
    """What may be shown of a text that is not over: nothing from one of the words on, nor from what may become one."""
    return min((_before(text, word) for word in words), key=len, default=text)


class Silence:
    """The constraint of a turn that may call nothing: nothing that would be read as the beginning of a call is ever completed."""

    over = False

    def __init__(self, form: TurnForm, decode: Decode) -> None:
        self._begun, self._decode = re.compile("|".join(form.call_begun)) if form.call_begun else None, decode
        self._reach = max([BEGINNING, *map(len, form.call_starts)])
        self._recent: list[int] = []

    def allowed(self) -> None:
        """Any id may be allowed; each is asked about alone."""

    def refuses(self, token: int) -> bool:
        """Whether the text would then hold the beginning of a call."""
        return bool(self._begun and self._begun.search(self._decode([*self._recent, token])))

    def advance(self, token: int) -> None:
        """Remember enough ids to see a beginning that is written in pieces; each id is at least one byte."""
        self._recent = [*self._recent, token][-self._reach :] if self._begun else []
