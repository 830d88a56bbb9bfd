from enum import StrEnum
from typing import Literal

import pytest
from pydantic import Field

from agentalign.config.base import Config
from agentalign.config.load import describe, resolve
from agentalign.errors import ConfigError


class Shade(StrEnum):
    LIGHT = "light"
    DARK = "dark"


class Sample(Config):
    beta: float = Field(default=0.1, gt=0)
    """KL strength, > 0;
    higher stays nearer the reference."""
    lora_r: int = 16
    name: str
    """Adapter name."""
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    quantization: Literal["nf4", "int8", "none"] = "nf4"
    resume: bool = False
    max_steps: int | None = None
    note: str | None = None
    shade: Shade = Shade.LIGHT


def test_a_flag_wins_over_the_file() -> None:
    config = resolve(Sample, {"name": "a", "beta": 0.2, "lora_r": 8}, {"beta": "1e-2", "lora-r": "4"}, "dpo.yaml")
    assert (config.beta, config.lora_r, config.name) == (0.01, 4, "a")


def test_flags_are_read_as_yaml_scalars() -> None:
    flags = {
        "name": "5",
        "targets": "[q_proj]",
        "resume": "true",
        "max_steps": "null",
        "quantization": "none",
        "note": "null",
        "shade": "dark",
    }
    config = resolve(Sample, {}, flags, "dpo.yaml")
    assert config.name == "5"
    assert config.targets == ("q_proj",)
    assert config.resume is True
    assert config.max_steps is None
    assert config.quantization == "none"
    assert config.note is None
    assert config.shade is Shade.DARK


def test_an_unknown_key_names_file_key_and_nearest_match() -> None:
    with pytest.raises(ConfigError, match=r"^dpo\.yaml: there is no setting 'betta'; did you mean 'beta'\? Settings: beta, lora_r"):
        resolve(Sample, {"name": "a", "betta": 1.0}, {}, "dpo.yaml")
    with pytest.raises(ConfigError, match=r"^command line: there is no setting '--lora_rank'; did you mean 'lora_r'\?"):
        resolve(Sample, {"name": "a"}, {"lora-rank": "3"}, "dpo.yaml")


@pytest.mark.parametrize(
    ("mapping", "flags", "words"),
    [
        ({"name": "a", "lora_r": "16"}, {}, ["dpo.yaml", "'lora_r'", '"16"', "whole number"]),
        ({"name": "a", "resume": 1}, {}, ["'resume'", "true | false"]),
        ({"name": "a", "beta": -1}, {}, ["'beta'", "-1", "greater than 0"]),
        ({"name": "a", "quantization": "nf5"}, {}, ["'quantization'", "nf4 | int8 | none"]),
        ({"name": "a", "targets": ["q", 3]}, {}, ["'targets.1'", "list of text"]),
        ({"name": "a"}, {"beta": "high"}, ["command line", "'--beta'", '"high"', "number"]),
        ({"name": "a"}, {"beta": ".nan"}, ["--beta", "not a finite number"]),
        ({"name": "a", "beta": float("nan")}, {}, ["dpo.yaml", "JSON"]),
        ({}, {}, ["dpo.yaml", "'name' is missing", "Adapter name."]),
        (["beta"], {}, ["dpo.yaml", "holds a list"]),
        ("beta", {}, ["dpo.yaml", "holds a text"]),
    ],
)
def test_a_wrong_value_is_one_sentence_with_place_and_wish(mapping: object, flags: dict[str, str], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(Sample, mapping, flags, "dpo.yaml")
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_several_wrong_values_are_a_line_each() -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(Sample, {"name": 1, "lora_r": 1.5}, {}, "dpo.yaml")
    assert len(str(caught.value).splitlines()) == 2


def test_an_empty_file_takes_the_defaults() -> None:
    assert resolve(Sample, None, {"name": "x"}, "dpo.yaml").beta == 0.1


def test_help_comes_from_the_text_beneath_a_field() -> None:
    settings = {setting.name: setting for setting in describe(Sample)}
    assert settings["beta"].doc == "KL strength, > 0; higher stays nearer the reference."
    assert settings["beta"].default == 0.1
    assert settings["name"].required
    assert settings["targets"].type == "list of text"
    assert settings["targets"].default == ["q_proj", "v_proj"]
    assert settings["max_steps"].type == "whole number | null"
    assert settings["shade"].type == "light | dark"


def test_a_config_cannot_be_changed() -> None:
    config = resolve(Sample, {"name": "a"}, {}, "f")
    with pytest.raises(ValueError, match="frozen"):
        config.beta = 2.0  # type: ignore[misc]
