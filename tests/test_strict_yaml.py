import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentalign import strict_yaml
from agentalign.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("1E+3", 1000.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("0o17", 15),
        ("0x1f", 31),
        ("017", 17),
        ("-3", -3),
        ("no", "no"),
        ("on", "on"),
        ("Yes", "Yes"),
        ("2024-01-01", "2024-01-01"),
        ("12:30:45", "12:30:45"),
        ("1_000", "1_000"),
        ("nan", "nan"),
        ("~", None),
        ("null", None),
        ("True", True),
        ("false", False),
        ("'5'", "5"),
        ('"true"', "true"),
        ("[1, no, {a: 1e2}]", [1, "no", {"a": 100.0}]),
    ],
)
def test_scalars_mean_what_yaml_1_2_says(text: str, value: object) -> None:
    loaded = strict_yaml.loads(f"key: {text}", "f.yaml")
    assert loaded == {"key": value}
    assert type(loaded["key"]) is type(value)
    assert strict_yaml.scalar(text) == value


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ("a: 1\nb: 2\na: 3", ":3:1:", "the key 'a' stands twice, first in line 1"),
        ("x:\n  1: a\n  '1': b", ":3:3:", "stands twice"),
        ("a: &x 1", ":1:4:", "anchor"),
        ("a: *x", ":1:4:", "alias"),
        ("&k a: 1", ":1:1:", "anchor"),
        ("a: !!python/object:os.system x", ":1:4:", "tag"),
        ("!!str a: 1", ":1:1:", "tag"),
        ("a:\n  b: .nan", ":2:6:", "not a finite number"),
        ("a: -.inf", ":1:4:", "not a finite number"),
        ("a: 1e999", ":1:4:", "too large"),
        ("a: " + "9" * 5000, ":1:4:", "64 bits"),
        ("a: 1\n---\nb: 2", ":2:1:", "a second document"),
        ("%YAML 1.1\n---\na: 1", ":1:1:", "directives"),
        ("[a]: 1", ":1:1:", "a key must be text"),
        ("'': 1\n? \n: 2", ":2:", "a key must be text"),
        ("a: [1,", "", "not valid YAML"),
        ("a:\n\t- b", ":2:1:", "not valid YAML"),
        ("\x00", "", "not valid YAML"),
        ("[" * 60, ":1:41:", "levels of nesting"),
        ("- " * 60 + "1", "", "levels of nesting"),
    ],
)
def test_refusals_name_file_line_and_column(text: str, where: str, what: str) -> None:
    with pytest.raises(ConfigError) as caught:
        strict_yaml.loads(text, "mine.yaml")
    sentence = str(caught.value)
    assert sentence.startswith(f"mine.yaml{where}")
    assert what in sentence
    assert "\n" not in sentence


def test_keys_are_text_as_written() -> None:
    assert strict_yaml.loads("1: rude\n5: warm\nno: x\n<<: y", "f") == {"1": "rude", "5": "warm", "no": "x", "<<": "y"}


def test_an_empty_text_is_nothing() -> None:
    assert strict_yaml.loads("# only a comment\n", "f") is None


def test_an_empty_flag_is_empty_text() -> None:
    assert strict_yaml.scalar("") == ""


def test_a_flag_with_a_colon_stays_text() -> None:
    assert strict_yaml.scalar("note: see above") == "note: see above"


def test_too_large_a_text_is_refused() -> None:
    with pytest.raises(ConfigError, match="more than the"):
        strict_yaml.loads("a" * (strict_yaml.MAX_CHARACTERS + 1), "f")


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"name: caf\xe9\n")
    for path, what in ((tmp_path / "missing.yaml", "no such file"), (tmp_path, "a folder"), (latin, "not UTF-8")):
        with pytest.raises(ConfigError, match=what) as caught:
            strict_yaml.load(path)
        assert str(path) in str(caught.value)


def test_a_file_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    path = tmp_path / "bom.yaml"
    path.write_bytes(b"\xef\xbb\xbfbeta: 0.1\n")
    assert strict_yaml.load(path) == {"beta": 0.1}


_TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="\u2028\u2029\ufeff\ufffe\uffff"), max_size=8)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False) | _TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXT, inner, max_size=4),
    max_leaves=12,
)


@given(_JSON)
def test_json_is_read_as_what_it_says(value: object) -> None:
    assert strict_yaml.loads(json.dumps([value], ensure_ascii=False), "f") == [value]


@given(st.text(max_size=60))
def test_any_text_is_a_value_or_one_sentence(text: str) -> None:
    try:
        value = strict_yaml.loads(text, "f.yaml")
    except ConfigError as error:
        assert str(error).startswith("f.yaml")
        assert "\n" not in str(error)
    else:
        json.dumps(value, allow_nan=False)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_survive_a_flag(number: float) -> None:
    read = strict_yaml.scalar(repr(number))
    assert isinstance(read, float)
    assert math.copysign(1, read) == math.copysign(1, number)
    assert read == number
