"""A recorded run answers the calls of a chat: the same tool with the same arguments gets the result that it got then.

What was called several times answers in that order, and then goes on with its last result. Surprise: nothing is guessed. A call that the
run does not hold, spelled to the letter of its canonical arguments, is a question for the person who chats.
"""

from collections.abc import Sequence

from agentalign.errors import DataError
from agentalign.records.trajectory import Message, ToolCall, Trajectory


class Replay:
    """The results of one run, for one side of a chat."""

    def __init__(self, run: Trajectory) -> None:
        self._results: dict[tuple[str, str], list[Message]] = {}
        for step in run.steps:
            for call in step.message.tool_calls:
                found = next((result for result in step.results if result.tool_call_id == call.id), None)
                if found is not None:
                    self._results.setdefault((call.name, call.arguments), []).append(found)

    def answer(self, call: ToolCall) -> Message | None:
        """What came back for this call then; None where it was not made."""
        results = self._results.get((call.name, call.arguments))
        if results is None:
            return None
        found = results.pop(0) if len(results) > 1 else results[0]
        return found.model_copy(update={"tool_call_id": call.id, "name": call.name})


def opening(run: Trajectory) -> Sequence[Message]:
    """What was said before the agent's first act: where a chat on this run begins."""
    first = run.steps[0].message_index if run.steps else len(run.messages)
    found = run.messages[:first]
    if not found or found[-1].role != "user":
        raise DataError("this run does not begin with words for the agent to answer, so nothing of it can be replayed. Choose another run.")
    return found
