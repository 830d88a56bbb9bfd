"""Ratings out: scores and preferences as JSON Lines or CSV.

JSON Lines is exact: every line is a record as stored and reads back equal. CSV is for spreadsheets, so a cell that a spreadsheet
would run as a formula gets an apostrophe in front; numbers stay numbers.
"""

import csv
import io
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence

from pydantic import ValidationError

from agentalign.errors import DataError
from agentalign.records.base import canonical_json
from agentalign.records.criterion import Score
from agentalign.records.preference import Preference

SCORE_COLUMNS = ("id", "trajectory", "step", "criterion", "status", "value", "rater_kind", "rater", "chips", "note", "time")
PREFERENCE_COLUMNS = (
    "id", "taskset", "criterion", "better", "better_step", "worse", "worse_step", "others", "strength", "tie", "both_bad",
    "withdrawn", "cant_judge", "left", "source", "rater", "chips", "note", "time",
)  # fmt: skip

FORMULA_STARTS = frozenset("=+-@|%\t\r\n")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def rating_lines(ratings: Iterable[Score | Preference]) -> Iterator[str]:
    """One JSON line per rating, `kind` first: "score" or "preference"."""
    for rating in ratings:
        kind = "score" if isinstance(rating, Score) else "preference"
        # Surrogates that a model wrote alone cannot be UTF-8: such a line is written with ASCII escapes.
        line = canonical_json({"kind": kind, **rating.model_dump(mode="json")})
        yield (line if _is_utf8(line) else json.dumps(json.loads(line), sort_keys=True, separators=(",", ":"))) + "\n"


def read_rating_line(line: str, source: str) -> Score | Preference:
    """The record of one line that `rating_lines` wrote; DataError naming `source` otherwise."""
    try:
        fields = json.loads(line)
        kind = fields.pop("kind")
        if kind not in ("score", "preference"):
            raise ValueError(f"kind is {kind!r}")
        return Score.model_validate(fields) if kind == "score" else Preference.model_validate(fields)
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        what = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise DataError(f"{source}: not a rating ({what}). Each line is an object of kind 'score' or 'preference', as exported.") from None


def score_table(scores: Iterable[Score]) -> Iterator[str]:
    """CSV lines of scores, the header first."""
    rows = (score.model_dump(mode="json") | {"chips": "; ".join(score.chips)} for score in scores)
    yield from _csv(SCORE_COLUMNS, ([row[column] for column in SCORE_COLUMNS] for row in rows))


def preference_table(preferences: Iterable[Preference]) -> Iterator[str]:
    """CSV lines of preferences, the header first; a ranking's third and later items stand in `others`, best first."""
    yield from _csv(PREFERENCE_COLUMNS, (_preference_cells(preference) for preference in preferences))


def _preference_cells(preference: Preference) -> list[object]:
    first, second, *rest = preference.items
    others = " ".join(item.trajectory if item.step is None else f"{item.trajectory}#{item.step}" for item in rest)
    fields: dict[str, object] = preference.model_dump(mode="json")
    fields |= {"better": first.trajectory, "better_step": first.step, "worse": second.trajectory, "worse_step": second.step}
    fields |= {"others": others, "chips": "; ".join(preference.chips)}
    return [fields[column] for column in PREFERENCE_COLUMNS]


def _csv(header: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    yield _csv_line(header)
    for cells in rows:
        yield _csv_line([neutral_cell(cell) for cell in cells])


def _csv_line(cells: Sequence[object]) -> str:
    # Everything is quoted: a spreadsheet that splits at ";" then finds no second formula in the middle of a note.
    out = io.StringIO()
    csv.writer(out, quoting=csv.QUOTE_ALL, lineterminator="\r\n").writerow(cells)
    return out.getvalue()


def neutral_cell(value: object) -> str:
    """The cell as text that no spreadsheet runs as a formula (OWASP, "CSV Injection"); a plain number is left as it is."""
    if value is None:
        return ""
    text = str(value).encode("utf-8", "backslashreplace").decode("utf-8")
    if NUMBER.fullmatch(text):
        return text
    # Full-width signs are folded by some importers, and blanks, separators and control characters are skipped by others.
    bare = unicodedata.normalize("NFKC", text).lstrip(_SKIPPED)
    dangerous = text[:1] in FORMULA_STARTS or bare[:1] in FORMULA_STARTS
    return "'" + text if dangerous else text


_SKIPPED = "".join(map(chr, range(33))) + "\x7f\x85\xa0\u200b\u200e\u200f\u2028\u2029\ufeff;,\"'"


def _is_utf8(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
