"""Constrained decoding by llguidance: at each place, the ids after which the turn can still become what the grammar says.

llguidance is an extra: `pip install 'agentalign[constrained]'`. Without it nothing is promised that would need it.
Surprise: a matcher never raises. It remembers its error and allows nothing more, so every answer of it is asked whether it is one.
"""

import importlib.util
import threading
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from agentalign.errors import ConfigError, ModelError
from agentalign.training.dialect import Dialect

REQUIREMENT = "agentalign[constrained]"


def installed() -> bool:
    """Whether there is llguidance."""
    return importlib.util.find_spec("llguidance") is not None


class Grammars:
    """Makes constraints for one base. What llguidance needs to know of the vocabulary takes a second to build, once, when first used."""

    def __init__(self, dialect: Dialect, vocabulary: int) -> None:
        self._dialect, self._vocabulary = dialect, vocabulary
        self._tokenizer: Any = None
        self._lock = threading.Lock()

    def constraint(self, grammar: str) -> "Grammar":
        """The constraint of a Lark grammar; may be called by any thread.

        Raises:
            ConfigError: llguidance cannot read the grammar, such as a JSON Schema with a keyword that it does not know.
        """
        from llguidance import LLMatcher

        with self._lock:
            if self._tokenizer is None:
                self._tokenizer = self._build()
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise ConfigError(_first_line(matcher.get_error()))
        return Grammar(matcher, self._vocabulary, self._dialect.stop_ids)

    def _build(self) -> Any:
        from llguidance.hf import from_tokenizer

        if not isinstance(self._dialect.tokenizer, PreTrainedTokenizerFast):
            raise ConfigError("the base's tokenizer has no fast form, which constrained decoding needs.")
        return from_tokenizer(self._dialect.tokenizer, eos_token=sorted(self._dialect.stop_ids))


class Grammar:
    """A turn that must be what a grammar says; see `continuous.Constraint`."""

    def __init__(self, matcher: Any, vocabulary: int, stop_ids: Iterable[int]) -> None:
        self._matcher, self._vocabulary, self._stops = matcher, vocabulary, sorted(stop_ids)

    @property
    def over(self) -> bool:
        """The grammar is done: nothing but the end of the turn could follow."""
        return bool(self._matcher.is_stopped())

    def allowed(self) -> Tensor:
        """(V,) ids that may come next."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        self._raise_error()
        allowed = torch.zeros(self._vocabulary, dtype=torch.bool)
        mask = torch.from_numpy(np.unpackbits(bits, bitorder="little")[: self._vocabulary].astype(bool))
        allowed[: len(mask)] = mask
        # A base may end its turns in several ways; each is an end of the text.
        allowed[self._stops] = bool(self._matcher.is_accepting())
        return allowed

    def refuses(self, token: int) -> bool:
        """The mask has said all."""
        return False

    def advance(self, token: int) -> None:
        """Follow what was written."""
        if token not in self._stops:
            self._matcher.consume_token(token)
            self._raise_error()

    def _raise_error(self) -> None:
        if self._matcher.is_error():
            raise ModelError(f"constrained decoding cannot go on: {_first_line(self._matcher.get_error())}. Simplify the schema.")


def _first_line(text: str) -> str:
    """What llguidance says, without the grammar that it quotes."""
    return text.strip().splitlines()[0].partition("failed to compile JSON schema: ")[2] or text.strip().splitlines()[0]
