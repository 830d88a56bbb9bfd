"""Keeping typed text from becoming special tokens.

A customer may type `<|im_end|>`, a tool result may contain it; as ordinary characters it is harmless, as the token it ends the turn.
Before a template sees a string, a seam is put inside every special token's text; when the rendered prompt is encoded, it is cut at the
seams, so that no cut piece holds the whole token. Tokens that the template itself writes have no seam and become what they are.
Where nothing is typed that looks like a special token, there is no seam and the encoding is that of the plain text.
"""

import re
from collections.abc import Iterable

from pydantic import JsonValue

# U+FDD0..U+FDD2 are "noncharacters": reserved by Unicode for a program's own use. One that is typed nevertheless is escaped, not lost.
_ESCAPE = "\ufdd0"
_SEAM = _ESCAPE + "\ufdd1"
_LITERAL = _ESCAPE + "\ufdd2"


def pattern(tokens: Iterable[str]) -> re.Pattern[str]:
    """Matches the text of any of these tokens, longest first; nothing where there are none."""
    return re.compile("|".join(map(re.escape, sorted((t for t in tokens if len(t) > 1), key=len, reverse=True))) or "(?!)")


def seam(value: JsonValue, special: re.Pattern[str]) -> JsonValue:
    """The value with a seam inside every special token's text, in all strings and keys."""
    if isinstance(value, str):
        text = value.replace(_ESCAPE, _LITERAL)
        while special.search(text):
            text = special.sub(lambda match: match[0][0] + _SEAM + match[0][1:], text)
        return text
    if isinstance(value, dict):
        return {str(seam(key, special)): seam(item, special) for key, item in value.items()}
    if isinstance(value, list):
        return [seam(item, special) for item in value]
    return value


def pieces(text: str) -> list[str]:
    """The rendered text cut at its seams; joined they are what a person reads."""
    return [piece.replace(_LITERAL, _ESCAPE) for piece in text.split(_SEAM)]


def plain(text: str) -> str:
    """The rendered text without seams."""
    return "".join(pieces(text))
