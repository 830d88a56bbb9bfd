"""A small shop under construction: one customer who writes in, one other, and their orders."""

import random
from typing import NamedTuple

FIRST = (
    "ann bob carl dana ella finn gina hugo iris jack kate liam mary nina omar paul rosa sam tina vera will zoe adam beth cora "
    "dean emma fred grace henry ivan julia kim leo mona noah olga peter rita sara tom uma"
).split()
LAST = (
    "lee fox hall reed bell cook dunn ford gray hill king lane moss nash page rice stone todd vance ward york wood west snow rose "
    "pike park north marsh lamb kent hart green frost flint day cole brook black ash"
).split()
COLOURS = ("red", "blue", "green", "black", "white")
THINGS = ("lamp", "mug", "chair", "clock", "bag", "scarf", "kettle", "vase")
ITEMS = [f"{colour} {thing}" for colour in COLOURS for thing in THINGS]
STREETS = "Oak Elm Park Hill Lake River Mill Church Garden School Bridge Station".split()
KINDS = ("Road", "Street", "Lane")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday")
CARRIERS = ("UPS", "DHL", "FedEx")
GIFT_NOTES = ("gift wrap", "leave at the door", "call before delivery", "birthday gift")
Row = dict[str, str | int]


class Pool(NamedTuple):
    """The entities one split may use."""

    orders: list[str]
    customers: list[str]
    names: list[tuple[str, str]]

    @staticmethod
    def all_names() -> list[tuple[str, str]]:
        """Every first and last name together."""
        return [(first, last) for first in FIRST for last in LAST]


class World:
    """The rows of one task's database."""

    def __init__(self, rng: random.Random, pool: Pool) -> None:
        self.rng = rng
        self._ids = iter(rng.sample(pool.orders, 12))
        self._people = zip(rng.sample(pool.customers, 2), rng.sample(pool.names, 2), strict=True)
        self.customers: list[Row] = []
        self.orders: list[Row] = []
        self.owner = self._customer()
        self.other = self._customer()
        self.order(customer=self.other)

    def order(self, status: str = "", customer: Row | None = None, refund_window: str = "", refunded: int = 0, note: str = "") -> Row:
        """Add an order, newest last; what is not said is drawn."""
        rng, owner = self.rng, customer or self.owner
        taken = {row["item"] for row in self.orders if row["customer_id"] == owner["customer_id"]}
        row: Row = {
            "order_id": next(self._ids),
            "customer_id": owner["customer_id"],
            "item": rng.choice([item for item in ITEMS if item not in taken]),
            "total": 5 * rng.randint(2, 40) + rng.choice((0, 0, 4, 9)),
            "status": status or rng.choice(("processing", "shipped", "delivered")),
            "address": owner["address"],
            "refund_window": refund_window or rng.choice(("open", "closed")),
            "carrier": rng.choice(CARRIERS),
            "arrives": rng.choice(DAYS),
            "note": note,
            "refunded": refunded,
        }
        self.orders.append(row)
        return row

    def some(self, low: int, high: int, status: str = "") -> None:
        """Add between `low` and `high` orders of the owner that the request is not about."""
        for _ in range(self.rng.randint(low, high)):
            self.order(status)

    def address(self) -> str:
        """A new address."""
        return f"{self.rng.randint(1, 98)} {self.rng.choice(STREETS)} {self.rng.choice(KINDS)}"

    def rows(self) -> dict[str, list[Row]]:
        """What the environment puts into the database."""
        return {"customers": self.customers, "orders": self.orders}

    def _customer(self) -> Row:
        number, (first, last) = next(self._people)
        row: Row = {
            "customer_id": number,
            "name": f"{first.title()} {last.title()}",
            "email": f"{first}.{last}@mail.com",
            "address": self.address(),
        }
        self.customers.append(row)
        return row
