"""Requests as the OpenAI API writes them, as far as this server honours them; everything else is refused by name.

A field that is not here is a 400, and so is a value that would change nothing although it asks for something (`ChatRequest.in_vain`).
Values that ask for nothing (`logit_bias: {}`, `store: false`, `top_p: 1`) are taken, since clients send them; so is a `seed` without
a temperature, which asks for the same answer each time and gets it.
Surprise: `temperature` is 0 where it is left out, not 1: adapters are evaluated greedily, and that is the agent that was promoted.
"""

from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator

MAX_MESSAGES, MAX_TOOLS, MAX_TOP = 2000, 128, 20
MAX_CHOICES, MAX_STOPS, MAX_STOP_LENGTH = 8, 4, 256
Penalty = Annotated[float, Field(ge=-2, le=2)]
StopWord = Annotated[str, Field(min_length=1, max_length=MAX_STOP_LENGTH)]


class Part(BaseModel):
    """Anything a client may send or get; unknown fields are refused."""

    model_config = ConfigDict(extra="forbid")


class Function(Part):
    """An offered function."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    description: str | None = None
    parameters: dict[str, JsonValue] | None = None
    strict: bool | None = None
    """The arguments will fit `parameters`; needs llguidance."""


class Tool(Part):
    """An offered tool."""

    type: Literal["function"]
    function: Function


class NamedFunction(Part):
    """A function by name."""

    name: str


class NamedChoice(Part):
    """The tool that must be called."""

    type: Literal["function"]
    function: NamedFunction


class JsonSchema(Part):
    """The shape of an answer."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    schema_: dict[str, JsonValue] | None = Field(default=None, alias="schema")
    description: str | None = None
    strict: bool | None = None
    """Always kept, whatever this says."""


class TextFormat(Part):
    """Any text."""

    type: Literal["text"]


class ObjectFormat(Part):
    """Any JSON object."""

    type: Literal["json_object"]


class SchemaFormat(Part):
    """JSON of one shape."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


class StreamOptions(Part):
    """What a stream holds."""

    include_usage: bool = False


class Vain(NamedTuple):
    """A parameter that would change nothing although it asks for something."""

    param: str
    why: str


class ChatRequest(Part):
    """A chat completion."""

    model: str = Field(min_length=1, max_length=200)
    """"order_desk@production", "order_desk@3", "order_desk" for the newest version, or "base"."""
    messages: list[dict[str, JsonValue]] = Field(min_length=1, max_length=MAX_MESSAGES)
    tools: list[Tool] | None = Field(default=None, max_length=MAX_TOOLS)
    tool_choice: Literal["none", "auto", "required"] | NamedChoice | None = None
    parallel_tool_calls: bool | None = None
    """false: one call at most; needs llguidance."""
    response_format: Annotated[TextFormat | ObjectFormat | SchemaFormat, Field(discriminator="type")] | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int | None = Field(default=None, ge=-(2**63), le=2**63 - 1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP)
    return_token_ids: bool | None = None
    """Add the ids of prompt and answer, and the answer's log-probs; for recording what was sampled."""
    return_tokens_as_token_ids: bool | None = None
    """Write "token_id:450" in place of a token's text among the log-probs, as vLLM does."""
    metadata: dict[str, str] | None = Field(default=None, max_length=16)
    """`conversation_id` names the conversation; the rest is not looked at."""
    user: str | None = None
    """Not looked at: who a person is changes nothing."""
    stop: StopWord | Annotated[list[StopWord], Field(max_length=MAX_STOPS)] | None = None
    """The answer's text ends before the first of these. What is looked at is text that is shown: no reasoning, and no inside of a call."""
    n: int | None = Field(default=None, ge=1, le=MAX_CHOICES)
    """So many answers, sampled side by side; more than one needs a temperature."""
    frequency_penalty: Penalty | None = None
    """Off the logit of a token for each time that this answer has it already; the prompt does not count."""
    presence_penalty: Penalty | None = None
    """Off the logit of a token that this answer has already, once."""
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None
    store: Literal[False] | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts that end an answer."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def choices(self) -> int:
        """How many answers are asked for."""
        return self.n or 1

    @property
    def in_vain(self) -> Vain | None:
        """The first parameter that would change nothing although it asks for something.

        An explicit temperature of 0 with a top_p asks for the likeliest id and gets it; a top_p alone asks for sampling.
        """
        if self.choices > 1 and not self.temperature:
            why = f"n is {self.n}, and at temperature 0, the default here, all answers are one. Ask for one, or give a temperature."
            return Vain("n", why)
        if self.temperature is None and self.top_p is not None and self.top_p < 1:
            why = f"top_p is {self.top_p:g}, and at temperature 0, the default here, nothing is drawn. Give a temperature, or leave it out."
            return Vain("top_p", why)
        if self.top_logprobs and not self.logprobs:
            return Vain("top_logprobs", f"top_logprobs is {self.top_logprobs}, and without logprobs none are sent. Add logprobs: true.")
        if self.return_tokens_as_token_ids and not self.logprobs:
            return Vain(
                "return_tokens_as_token_ids", "return_tokens_as_token_ids is about log-probs, and none are sent. Add logprobs: true."
            )
        if self.stream_options and self.stream_options.include_usage and not self.stream:
            why = "stream_options.include_usage is about streams; an answer that is not streamed always has its usage. Leave it out."
            return Vain("stream_options", why)
        return None

    @field_validator("messages")
    @classmethod
    def _no_nulls_of_clients(cls, messages: list[dict[str, JsonValue]]) -> list[dict[str, JsonValue]]:
        """Clients that send an answer back add fields that say null."""
        return [{key: value for key, value in message.items() if value is not None or key == "content"} for message in messages]


class ErrorBody(BaseModel):
    """What was wrong."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorReply(BaseModel):
    """An error as the OpenAI API writes it."""

    error: ErrorBody
