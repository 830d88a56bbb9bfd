"""One desk: a database built from the task, and a customer who follows a short script."""

import json
import sqlite3
from collections.abc import Sequence
from typing import Any

from agentalign.environments.task import Task
from agentalign.environments.tool import run_tool
from agentalign.records.trajectory import Message, ToolCall

from .tools import SCHEMA, TOOLS


class Environment:
    """The order desk. State is the database alone, so `reset` and the same calls lead back to it."""

    def __init__(self) -> None:
        self.db = _empty()
        self.data: dict[str, Any] = {}

    def reset(self, task: Task) -> list[Message]:
        """Build the task's database; the customer opens."""
        self.db.close()
        self.db = _empty()
        self.data = json.loads(task.data)
        world = self.data["world"]
        self.db.executemany("insert into customers values (:customer_id, :name, :email, :address)", world["customers"])
        self.db.executemany(
            "insert into orders values"
            " (:order_id, :customer_id, :item, :total, :status, :address, :refund_window, :carrier, :arrives, :note)",
            world["orders"],
        )
        self.db.executemany("insert into refunds values (:order_id, :refunded)", [order for order in world["orders"] if order["refunded"]])
        return [Message(role="user", content=self.data["prompt"])]

    def call(self, call: ToolCall) -> str:
        """Run one tool on the database."""
        return run_tool(TOOLS, call, self.db)

    def reply(self, messages: Sequence[Message]) -> Message | None:
        """The scripted customer speaks once more: when asked (`when: asked`), or whatever the agent says (`when: always`)."""
        script = self.data.get("reply")
        if not script or sum(message.role == "user" for message in messages) > 1:
            return None
        if script["when"] == "asked" and "?" not in messages[-1].content:
            return None
        return Message(role="user", content=script["text"])

    def close(self) -> None:
        """Drop the database."""
        self.db.close()


def _empty() -> sqlite3.Connection:
    # Workers answer from one thread at a time, but not always the one that opened the database.
    db = sqlite3.connect(":memory:", check_same_thread=False)
    db.row_factory = sqlite3.Row
    db.executescript(SCHEMA)
    return db
