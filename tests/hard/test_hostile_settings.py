"""Settings that nobody meant to write: whatever the file holds, the answer is a config or sentences, never a traceback."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentalign import strict_yaml
from agentalign.config.base import Config
from agentalign.config.load import resolve
from agentalign.errors import ConfigError

pytestmark = pytest.mark.hard

_PIECES = [
    "beta",
    "name",
    ": ",
    "- ",
    "\n",
    "  ",
    "'",
    '"',
    "[",
    "]",
    "{",
    "}",
    ",",
    "&a",
    "*a",
    "!!int ",
    "1e-5",
    ".nan",
    "0x",
    "#",
    "|",
    ">",
    "? ",
    "---",
    "\t",
    "\u2028",
    "é",
]


class Sample(Config):
    beta: float = 0.1
    name: str = ""
    targets: tuple[str, ...] = ()
    steps: int | None = None


@given(st.lists(st.sampled_from(_PIECES) | st.text(max_size=3), max_size=40).map("".join))
def test_broken_yaml_is_a_value_or_one_sentence(text: str) -> None:
    try:
        json.dumps(strict_yaml.loads(text, "f.yaml"), allow_nan=False)
    except ConfigError as error:
        assert str(error).startswith("f.yaml")
        assert len(str(error).splitlines()) == 1


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(
    st.dictionaries(st.sampled_from(["beta", "name", "targets", "steps", "bets"]), _VALUES),
    st.dictionaries(st.sampled_from(["beta", "targets", "steps"]), st.text(max_size=8)),
)
def test_any_settings_are_a_config_or_sentences(mapping: dict[str, object], flags: dict[str, str]) -> None:
    try:
        resolve(Sample, mapping, flags, "f.yaml")
    except ConfigError as error:
        assert all(line.startswith(("f.yaml: ", "command line: ", "--")) for line in str(error).splitlines())
