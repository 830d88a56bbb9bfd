"""Which run, or which step, is better: a pair or a ranking, by the team's word or by its scores."""

from collections.abc import Iterable
from typing import Literal, NamedTuple

from pydantic import Field, JsonValue, model_validator

from agentalign.records.base import Record, digest, now

PAIR_ANSWERS = ("first", "second", "tie", "both bad")
"""What the values 0 to 3 of an answer about a pair mean; first and second by the order of the items' ids, never by side."""


class Item(NamedTuple):
    """A whole run, or one step of it."""

    trajectory: str
    step: int | None = None
    """Step index; None for the whole run."""


class Preference(Record):
    """Items of one task (or of one state, for steps) ordered best first. Append-only."""

    taskset: str
    items: tuple[Item, ...]
    """Best first, two or more. Under `tie` or `both_bad` the order means nothing."""
    criterion: str = "overall"
    """"overall" or "name@version"."""
    strength: float = Field(default=1.0, gt=0, le=10)
    """How clear it is; multiplies the loss (1 slightly, 2 clearly, 3 far better)."""
    tie: bool = False
    both_bad: bool = False
    withdrawn: bool = False
    """The rater took an earlier answer on these items back and has none now."""
    cant_judge: bool = False
    """The question applies, but this rater cannot tell. Counts as no answer, and is kept, as `ScoreStatus.CANT_JUDGE` is."""
    chips: tuple[str, ...] = ()
    """Those of the criterion's chips that the rater ticked."""
    left: str | None = None
    """Trajectory id that was shown on the left; None where no person compared."""
    source: Literal["human", "scores", "correction", "judge", "adjudicator"]
    """An adjudicator is a person who decides what holds after seeing everyone's choices, and says why in `note`."""
    rater: str
    note: str = ""
    time: str = Field(default_factory=now)
    id: str = ""
    """Idempotency key; made from the content when left empty."""

    @model_validator(mode="after")
    def _sound(self) -> "Preference":
        if len(self.items) < 2 or len(set(self.items)) != len(self.items):
            count, different = len(self.items), len(set(self.items))
            raise ValueError(f"a preference orders at least two different items; got {count}, {different} of them different.")
        if len({item.step is None for item in self.items}) > 1:
            raise ValueError("a preference compares whole runs with whole runs, or steps with steps, not one with the other.")
        if self.tie + self.both_bad + self.withdrawn + self.cant_judge > 1:
            raise ValueError("a preference is a tie, both bad, withdrawn or not to be judged, not two of them at once.")
        return self

    def model_post_init(self, _context: object) -> None:
        if not self.id:
            # What says nothing is left out, so that a record of an earlier version gets the id that it had.
            silent = {name for name in ("cant_judge", "chips") if not getattr(self, name)}
            content: JsonValue = self.model_dump(mode="json", exclude={"id", *silent})
            object.__setattr__(self, "id", digest(content))

    @property
    def decided(self) -> bool:
        """True where there is a better and a worse item to learn from."""
        return not self.tie and not self.both_bad and self.is_answer

    @property
    def is_answer(self) -> bool:
        """False where it supersedes the rater's earlier answer and then counts as none."""
        return not self.withdrawn and not self.cant_judge

    @property
    def pair(self) -> str | None:
        """What the queue knows the two whole runs by, whichever of them is better; None for steps and rankings."""
        return pair_id(*(item.trajectory for item in self.items)) if len(self.items) == 2 and self.items[0].step is None else None

    @property
    def pair_answer(self) -> float:
        """An answer about two items, as a place in `PAIR_ANSWERS`."""
        if not self.decided:
            return 2.0 if self.tie else 3.0
        first = min(self.items, key=lambda item: (item.trajectory, -1 if item.step is None else item.step))
        return 0.0 if self.items[0] == first else 1.0


def pair_id(one: str, two: str) -> str:
    """Both runs' ids, the lower one first, with a "+" between."""
    return "+".join(sorted((one, two)))


def in_force(preferences: Iterable[Preference]) -> list[Preference]:
    """Of every rater the newest word on the same items and criterion; where an adjudicator decided, the newest decision alone.

    Args:
        preferences: in the order they were stored; who compares the same items again has changed their mind, a tie included.
    """
    newest: dict[tuple[object, ...], Preference] = {}
    decisions: dict[tuple[object, ...], Preference] = {}
    for preference in preferences:
        place = (preference.criterion, frozenset(preference.items))
        newest[(*place, preference.source, preference.rater)] = preference
        if preference.source == "adjudicator":
            decisions[place] = preference
            if not preference.is_answer:  # a decision taken back leaves the question to the raters again
                del decisions[place]
    return [preference for key, preference in newest.items() if decisions.get(key[:2], preference) is preference]
