"""Which of a person's scores, and words on pairs, still stand: taking one back lets it, and the taking back itself, fall.

Records are never changed; `stands` is a column beside them, for the questions that the database answers alone: whose run is unrated,
which pairs did someone compare, and is everything answered that has to be. Surprise: an answer that a newer one replaced still stands
here, as the newer does.
"""

from collections.abc import Iterable, Sequence

from sqlalchemy import Connection, and_, select

from agentalign.records.base import Record
from agentalign.records.criterion import Score, ScoreStatus
from agentalign.records.preference import Preference
from agentalign.store.appending import read_records
from agentalign.store.tables import preferences, scores


def take_back(connection: Connection, new: Sequence[Record]) -> None:
    """Let fall what these scores or preferences take back, in the transaction that appended them."""
    for person, item in {(word.rater, word.pair) for word in new if isinstance(word, Preference) and word.withdrawn and word.pair}:
        told = and_(preferences.c.item == item, preferences.c.person == person)
        words = select(preferences.c.id, preferences.c.record, preferences.c.digest).where(told).order_by(preferences.c.seq)
        lost = _fallen((word.criterion, word.id, word.withdrawn) for word in read_records(connection, words, Preference))
        if lost:
            connection.execute(preferences.update().where(preferences.c.id.in_(lost)).values(stands=False))
    back = {(score.trajectory, score.rater) for score in new if isinstance(score, Score) and score.status == ScoreStatus.WITHDRAWN}
    for trajectory, person in back:
        mine = and_(scores.c.trajectory == trajectory, scores.c.person == person)
        query = select(scores.c.id, scores.c.record, scores.c.digest).where(mine).order_by(scores.c.seq)
        said = read_records(connection, query, Score)
        gone = _fallen(((score.criterion, score.step), score.id, score.status == ScoreStatus.WITHDRAWN) for score in said)
        if gone:
            connection.execute(scores.update().where(scores.c.id.in_(gone)).values(stands=False))


def _fallen(said: Iterable[tuple[object, str, bool]]) -> list[str]:
    """Ids of what one person said, given as (place, id, takes back) in the order they were stored, that stand no more."""
    places: dict[object, list[str]] = {}
    gone: list[str] = []
    for place, id, is_back in said:
        places.setdefault(place, []).append(id)
        if is_back:
            gone += places.pop(place)
    return gone
