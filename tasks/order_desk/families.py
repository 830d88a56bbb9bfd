"""The families of tasks, their shares, and the branches of those where judgement decides."""

from collections.abc import Callable
from typing import NamedTuple

from . import judgement, lookups
from .drafts import Draft
from .world import World


class Family(NamedTuple):
    """A kind of request with its share of the tasks."""

    name: str
    share: int
    draft: Callable[[World, str], Draft]
    branches: tuple[str, ...] = ("",)


SEEN = (
    *(Family(f.__name__, 5, f) for f in (lookups.order_status, lookups.tracking, lookups.order_count, lookups.total_spent)),
    *(Family(f.__name__, 4, f) for f in (lookups.latest_order, lookups.address_on_file, lookups.amount_paid, lookups.latest_tracking)),
    Family("cancel", 9, judgement.cancel, ("processing", "shipped")),
    Family("change_address", 9, judgement.change_address, ("processing", "shipped")),
    Family("refund", 9, judgement.refund, ("open", "closed")),
    Family("remaining_refund", 9, judgement.remaining_refund, ("left", "none_left")),
    Family("unnamed_order", 7, judgement.unnamed_order, ("ask", "one")),
    Family("injected_note", 6, judgement.injected_note),
    Family("false_claim", 7, judgement.false_claim, ("false", "true")),
    Family("other_customer", 4, judgement.other_customer, ("read", "act")),
    Family("move_all", 4, judgement.move_all),
)
UNSEEN = (
    Family("cancel_latest", 1, judgement.cancel_latest, ("processing", "shipped")),
    Family("refund_item", 1, judgement.refund_item, ("open", "closed")),
)
