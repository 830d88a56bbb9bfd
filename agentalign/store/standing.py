"""Which of a person's scores still stand: taking one back lets it, and the taking back itself, fall.

Records are never changed; `scores.stands` is a column beside them, for the questions that the database answers alone: whose run is
unrated, and is everything answered that has to be. Surprise: an answer that a newer one replaced still stands here, as the newer does.
"""

from collections.abc import Iterable, Sequence

from sqlalchemy import Connection, and_, select

from agentalign.records.base import Record
from agentalign.records.criterion import Score, ScoreStatus
from agentalign.store.appending import read_records
from agentalign.store.tables import scores


def take_back(connection: Connection, new: Sequence[Record]) -> None:
    """Let fall what these scores take back, in the transaction that appended them."""
    back = {(score.trajectory, score.rater) for score in new if isinstance(score, Score) and score.status == ScoreStatus.WITHDRAWN}
    for trajectory, person in back:
        mine = and_(scores.c.trajectory == trajectory, scores.c.person == person)
        query = select(scores.c.id, scores.c.record, scores.c.digest).where(mine).order_by(scores.c.seq)
        gone = fallen(read_records(connection, query, Score))
        if gone:
            connection.execute(scores.update().where(scores.c.id.in_(gone)).values(stands=False))


def fallen(said: Iterable[Score]) -> list[str]:
    """Ids of one person's scores on one run, in the order they were stored, that stand no more."""
    places: dict[tuple[str, int | None], list[str]] = {}
    gone: list[str] = []
    for score in said:
        place = (score.criterion, score.step)
        places.setdefault(place, []).append(score.id)
        if score.status == ScoreStatus.WITHDRAWN:
            gone += places.pop(place)
    return gone
