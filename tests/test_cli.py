"""The command line, through `main`: the way in order of use, and one clear sentence for whatever goes wrong."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
from small_base import make_base

import agentalign
from agentalign.cli import NOUNS, ORDER, main, parse
from agentalign.cli_arguments import KINDS, STOPS
from agentalign.cli_output import duration, plain, progress
from agentalign.cli_train import RECIPES, _show_dry_run
from agentalign.config.project import Project
from agentalign.recipes.begun import TrainedOn
from agentalign.recipes.data import token_stats
from agentalign.recipes.dry_run import DryRun
from agentalign.records.adapter import Training
from agentalign.records.trajectory import Message, Origin, StopReason, ToolCall, Trajectory
from agentalign.store.store import Store

COMMANDS = [
    *("init", "tasks", "rollout", "import", "score", "runs", "pairs", "train", "eval"),
    *("adapters", "deploy-check", "promote", "export", "ui", "demo", "backup", "restore"),
]
Say = Callable[..., str]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A fresh project, and the current folder in it."""
    monkeypatch.chdir(tmp_path)
    assert main(["init"]) == 0
    return Project(tmp_path)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Say:
    """Run a command that must go well; its stdout."""

    def call(*words: str) -> str:
        capsys.readouterr()
        code = main(words)
        out, err = capsys.readouterr()
        assert code == 0, err
        return out

    return call


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Say:
    """Run a command that must be refused; what it says on stderr."""

    def call(*words: str) -> str:
        capsys.readouterr()
        assert main(words) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("agentalign: ")
        assert err.rstrip().endswith((".", "`", ")"))
        assert "Traceback" not in err
        return err

    return call


def test_help_names_every_command_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from agentalign.cli import build_parser; print(build_parser().format_help());"
        "heavy = ('torch', 'transformers', 'gradio', 'pydantic', 'sqlalchemy', 'rich', 'numpy');"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines if line.startswith("    ") and line.split()[0] in COMMANDS] == COMMANDS
    assert lines[-1] == "[]"


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--version"])
    assert (left.value.code, capsys.readouterr().out) == (0, f"agentalign {agentalign.__version__}\n")


def words_of(help: str) -> list[str]:
    return [line.strip() for line in help.partition("examples:\n")[2].splitlines() if line.strip()]


@pytest.mark.parametrize(
    "command", [*COMMANDS, *(f"{noun} list" for noun in NOUNS), "tasks check", "runs show", "runs export", "adapters verify"]
)
def test_every_help_says_what_it_does_and_its_examples_are_right(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([*command.split(), "--help"])
    help = capsys.readouterr().out
    assert left.value.code == 0
    assert ". " in help or ".\n" in help
    assert words_of(help) or command not in COMMANDS
    for example in words_of(help):
        assert parse(shlex.split(example)[1:]).run or "--help" in example


def test_the_order_of_use_has_what_the_next_step_needs() -> None:
    lines = [shlex.split(line)[1:] for line in re.findall(r"^  (agentalign .*?)  +", ORDER, re.MULTILINE)]
    assert all(parse(words).run for words in lines)
    done = [words[0] for words in lines]
    assert done[done.index("pairs") - 1] == "score", "pairs are made of scores"
    assert done[done.index("promote") - 1] == "deploy-check", "its gate asks for one"
    assert done.index("eval") < done.index("promote")


def test_a_filter_knows_every_kind_of_run_and_every_way_to_end() -> None:
    assert get_args(Origin.model_fields["kind"].annotation) == KINDS
    assert tuple(reason.value for reason in StopReason) == STOPS


@pytest.mark.parametrize("recipe", RECIPES)
def test_help_of_a_recipe_names_its_dials_with_their_meaning(recipe: str, run: Say) -> None:
    help = run("train", recipe, "--help")
    assert "--learning_rate  number  (default: " in help
    assert "Peak learning rate" in help or "Learning rate" in help
    assert "--taskset  text  (required)" in help


def test_the_way_in_order_of_use_without_a_model(project: Project, run: Say) -> None:
    assert "hello" in run("tasks")
    assert run("tasks", "check", "hello").startswith("hello: 3 train, 1 dev, 2 test")
    assert "train-1" in run("tasks", "show", "hello", "--split", "train")
    assert run("rollout", "hello", "--policy", "expert").startswith("3 runs stored, 0 were there already; they ended: 3 answered")
    assert run("score", "hello").split() == ["criterion", "mean", "looked_up@1", "1.000", "task_success@1", "1.000"]
    assert json.loads(run("score", "hello", "--only-new", "--json"))["runs"] == 0
    listed = json.loads(run("runs", "--json", "--split", "train", "--limit", "2"))
    assert (len(listed["runs"]), listed["total"], listed["runs"][0]["overall"]) == (2, 3, 1.0)
    id = listed["runs"][0]["id"]
    assert run("runs").splitlines()[1].startswith(id[:12])
    shown = run("runs", "show", id[:10])
    assert "-> find_name" in shown
    assert "task_success@1" in shown
    run("runs", "export", "runs.jsonl", "--kind", "expert")
    assert run("import", "runs.jsonl", "--taskset", "hello").startswith("3 rows read: 3 stored, 0 known")
    again = json.loads(run("import", "runs.jsonl", "--taskset", "hello", "--json"))
    assert (again["stored"], again["known"]) == (0, 3)
    run("runs", "export", "runs.parquet", "--kind", "expert")
    assert run("import", "runs.parquet", "--taskset", "hello").splitlines()[1] == "3 of the stored equal another run, the first in row 1"
    assert json.loads(run("pairs", "hello", "--dry-run", "--json"))["stored"] == 0
    run("backup", "all.db")
    run("restore", "all.db", "--force")
    assert json.loads(run("runs", "--json"))["total"] == 9


def test_a_dry_run_without_stored_tokens_says_what_is_not_known(capsys: pytest.CaptureFixture[str]) -> None:
    training = Training(id="desk-ppo-0123456789ab", recipe="ppo", taskset="desk", config="{}", data_digest="d" * 32)
    _show_dry_run(DryRun("ppo", {"tasks": 9}, token_stats([], batch_size=1), [], 4, 0.0, 1.5, training, TrainedOn([])))
    out = capsys.readouterr().out
    assert "9 tasks; 4 optimizer steps" in out and "time not known before it acts, 1.5 GB" in out and "of 0 ids" in out


def test_the_way_with_a_model_from_training_to_export(project: Project, run: Say, refused: Say) -> None:
    make_base(project.root / "tiny")
    base = "--base", str(project.root / "tiny"), "--quantization", "none"
    run("rollout", "hello", "--policy", "expert")
    Path("sft.yaml").write_text("taskset: hello\nmax_steps: 2\nlearning_rate: 0.05\n")
    assert "optimizer steps" in run("train", "sft", "sft.yaml", *base, "--dry-run")
    assert run("adapters", "--json") == "[]\n"
    assert run("train", "sft", "sft.yaml", *base, "--lora_r=4") == "hello@1\n"
    assert run("train", "sft", "sft.yaml", *base, "--lora_r", "4", "--seed", "1") == "hello@2\n"
    assert "was never evaluated" in refused("promote", "hello@1", "production")
    evaluated = json.loads(run("eval", "hello@1", "--against", "base", *base, "--json"))
    assert (evaluated["evaluation"]["adapter"], evaluated["comparison"]["before"]) == ("hello@1", "base")
    assert Path(evaluated["report"]).is_file()
    assert "against hello@1" in run("eval", "hello@2", "--against", "hello@1")
    assert "Run `agentalign deploy-check hello@1`" in refused("promote", "hello@1", "production")
    assert "passed" in run("deploy-check", "hello@1")
    assert "evaluated" in run("promote", "hello@1", "production")
    run("promote", "hello@2", "production", "--force", "the check is for later")
    shown = run("adapters", "show", "hello@2")
    assert "promote production, forced: the check is for later" in shown
    assert ("deploy-check green" in shown, "evaluated on" in shown) == (False, True)
    assert run("promote", "hello", "--rollback") == "hello@1 is in production again\n"
    assert [card["stages"] for card in json.loads(run("adapters", "--json"))] == ["production", ""]
    run("promote", "hello@2", "candidate", "--force", "to try it", "--canary", "0.25")
    assert run("promote", "hello", "--canary", "0.5") == "hello@candidate answers 50.0% of the conversations\n"
    assert "hello@1 is not it" in refused("promote", "hello@1", "--canary", "0.5")
    assert json.loads(run("promote", "hello@2", "--canary", "0", "--json")) == {"name": "hello", "canary": 0}
    assert run("promote", "hello", "--canary", "0") == "hello has no canary now\n"
    assert "sft" in run("adapters", "show", "hello@production")
    assert run("adapters", "verify", "hello@2").startswith("hello@2: all")
    assert json.loads(run("rollout", "hello", "--adapter", "hello@production", "--limit", "1", "--n", "2", "--json"))["stored"] == 2
    id = json.loads(run("runs", "--json", "--policy", "hello@1"))["runs"][0]["id"]
    assert "\x1b[30;42m" in run("runs", "show", id, "--tokens")
    assert run("export", "hello@production", "served").strip() == str(project.root / "served")


def test_adapters_are_listed_beside_one_that_is_being_copied_in(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    (project.adapters / "other" / "7").mkdir(parents=True)
    for words in (["adapters"], ["adapters", "--json"]):
        capsys.readouterr()
        assert main(words) == 1
        out, err = capsys.readouterr()
        assert out.strip() in ("", "[]") and "other@7 is damaged" in err and "Traceback" not in err


def test_eval_says_what_broke(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    make_base(project.root / "tiny")
    checks = project.tasks / "hello" / "criteria.py"
    code = checks.read_text().replace(
        "if task is None:", "if task is not None and task.id == 'test-1':\n        raise KeyError('room')\n    if task is None:"
    )
    checks.write_text(code)
    assert main(["eval", "base", "--taskset", "hello", "--base", str(project.root / "tiny"), "--quantization", "none"]) == 0
    said = capsys.readouterr().err
    assert "base: The success of 1 of 2 runs could not be known" in said
    assert "KeyError: 'room'" in said


def test_an_import_says_what_will_not_be_trained_on(project: Project, run: Say) -> None:
    chat: dict[str, Any] = {
        "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}],
        "task_id": "theirs",
        "split": "test",
    }
    Path("theirs.jsonl").write_text(json.dumps(chat))
    said = run("import", "theirs.jsonl", "--taskset", "hello").splitlines()
    assert said[1] == "1 say of themselves that they are of another split than train: nothing is trained on them"
    assert json.loads(run("import", "theirs.jsonl", "--taskset", "hello", "--json"))["held_out"] == 1
    chat["messages"][1] = {"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "look", "arguments": "{}"}}]}
    Path("calls.jsonl").write_text(json.dumps(chat))
    assert "1 call tools and offer none" in run("import", "calls.jsonl", "--taskset", "hello")
    Path("schemas.json").write_text(json.dumps([{"name": "look"}]))
    assert "only to rows that name their tools" in run("import", "calls.jsonl", "--taskset", "hello", "--tools", "schemas.json")


def test_pairs_of_runs_without_a_score_say_that_they_have_none(project: Project, run: Say, capsys: pytest.CaptureFixture[str]) -> None:
    run("rollout", "hello", "--policy", "expert")
    assert main(["pairs", "hello"]) == 0
    assert "3 of 3 runs have no overall value. `agentalign score hello` first." in capsys.readouterr().err


def test_init_leaves_what_is_there(project: Project, run: Say) -> None:
    file = project.tasks / "hello" / "taskset.yaml"
    file.write_text("name: hello\n")
    run("init")
    assert file.read_text() == "name: hello\n"


def bad_yaml(project: Project) -> None:
    Path("bad.yaml").write_text("taskset: [hello\n")


def unknown_key(project: Project) -> None:
    Path("bad.yaml").write_text("taskset: hello\nlearning_rat: 1e-4\n")


def damaged_store(project: Project) -> None:
    project.state.joinpath("store.db").write_bytes(b"SQLite format 3\0" + os.urandom(8000))


def broken_taskset(project: Project) -> None:
    (project.tasks / "hello" / "criteria.yaml").write_text("tone: {scale: [1, 1], description: x}\n")


def broken_tools(project: Project) -> None:
    (project.tasks / "hello" / "tools.py").write_text("from nowhere import nothing\n")


def two_rows(project: Project) -> None:
    Path("rows.jsonl").write_text('{"prompt": 1}\n{\n')


def a_full_folder(project: Project) -> None:
    Path("full").mkdir()
    Path("full/file").touch()


def nothing(project: Project) -> None:
    pass


@pytest.mark.parametrize(
    ("prepare", "command", "words"),
    [
        (nothing, "tasks check nowhere", "no taskset 'nowhere'"),
        (nothing, "rollout nowhere --policy expert", "no taskset 'nowhere'"),
        (nothing, "rollout hello --policy expert --split final", "no tasks in split 'final'"),
        (nothing, "rollout hello --policy expert --tag rare", "with tag 'rare'"),
        (nothing, "rollout chat_quality --policy expert", "no tasks"),
        (nothing, "rollout hello --adapter nobody@1", "no adapter 'nobody'"),
        (nothing, "rollout hello --adapter Nobody!", "not an adapter reference"),
        (nothing, "score hello --criteria kindness", "no criterion 'kindness'"),
        (nothing, "runs show ffff", "no run's id begins"),
        (nothing, "runs list --after x", "not a place"),
        (nothing, "pairs hello", "no runs of hello"),
        (nothing, "import nowhere.jsonl --taskset hello", "no such file"),
        (two_rows, "import rows.jsonl --taskset hello", "row 1"),
        (two_rows, "import rows.jsonl --taskset hello --tools nowhere.json", "nowhere.json: no such file"),
        (two_rows, "import rows.jsonl --taskset hello --tools rows.jsonl", "rows.jsonl: not JSON"),
        (nothing, "train sft nowhere.yaml", "nowhere.yaml: no such file"),
        (bad_yaml, "train sft bad.yaml", "bad.yaml:2:1: not valid YAML"),
        (unknown_key, "train sft bad.yaml", "bad.yaml: there is no setting 'learning_rat'; did you mean 'learning_rate'?"),
        (nothing, "train sft --taskset hello --base /nowhere", "/nowhere"),
        (nothing, "eval nobody", "no adapter 'nobody'"),
        (nothing, "adapters show nobody", "no adapter 'nobody'"),
        (nothing, "adapters verify nobody@3", "no adapter 'nobody'"),
        (nothing, "promote nobody@1 production", "no adapter 'nobody'"),
        (nothing, "promote nobody --rollback", "no adapter 'nobody'"),
        (a_full_folder, "export nobody full", "not an empty folder"),
        (nothing, "backup .agentalign", "exists"),
        (nothing, "restore nowhere.db", "no backup nowhere.db"),
        (two_rows, "restore rows.jsonl", "rows.jsonl"),
        (nothing, "ui --host 0.0.0.0", "0.0.0.0"),
        (damaged_store, "runs", "agentalign restore"),
        (damaged_store, "rollout hello --policy expert", "agentalign restore"),
        (broken_taskset, "tasks show hello", "low must be below high"),
        (broken_tools, "tasks show hello", "No module named 'nowhere'"),
    ],
)
def test_bad_input_gets_one_clear_sentence(
    prepare: Callable[[Project], None], command: str, words: str, project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(project)
    capsys.readouterr()
    assert main(command.split()) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert err.count("agentalign: ") == 1
    if prepare is not broken_tools:
        assert "Traceback" not in err


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("rollout hello --endpoint http://localhost:1/v1", "--model"),
        ("rollout hello --policy expert --model small", "--endpoint"),
        ("train sft --taskset hello --bta 1", "no setting '--bta'"),
        ("train dpo --taskset hello --beta high", "--beta"),
        ("train sft", "'taskset' is missing"),
        ("train sft a.yaml b.yaml", "one file"),
        ("eval base", "--taskset"),
        ("eval base --taskset hello --samples 4", "temperature 0"),
        ("promote nobody@1", "either a stage"),
        ("promote nobody@1 production --canary 0.1", "--canary"),
        ("promote nobody --rollback --canary 0.1", "--canary"),
        ("promote nobody production --rollback", "either a stage"),
        ("promote nobody --rollback --force 'it was better'", "--force"),
        ("promote nobody --canary 0.1 --force 'it was better'", "--force"),
        ("export nobody out --converter tool.py", "--to gguf"),
        ("export nobody out --to merged --with-base", "--to gguf or vllm"),
        ("export nobody out --dtype float32", "--to merged"),
    ],
)
def test_words_that_do_not_go_together_end_with_two_and_a_sentence(
    command: str, words: str, project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(shlex.split(command)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert err.startswith("agentalign: ")
    assert err.endswith(f"`agentalign {command.split()[0]} --help` says more.\n")


def test_bad_input_loses_nothing(project: Project, run: Say, refused: Say) -> None:
    run("rollout", "hello", "--policy", "expert")
    before = run("runs", "--json")
    two_rows(project)
    refused("import", "rows.jsonl", "--taskset", "hello")
    refused("restore", "rows.jsonl", "--force")
    refused("score", "hello", "--criteria", "kindness")
    assert run("runs", "--json") == before


def test_outside_a_project_one_is_told_how_to_make_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Say) -> None:
    monkeypatch.chdir(tmp_path)
    assert "agentalign init" in refused("runs")


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["fly"],
        ["tasks", "fly"],
        ["rollout", "hello"],
        ["runs", "--limit", "0"],
        ["runs", "list", "--kind", "rolout"],
        ["forget", "--stop", "answerd", "--reason", "x"],
        ["export", "hello", "out", "--tasks", "-1"],
        ["rollout", "hello", "--adapter", "hello@1", "--temperature", "-0.8"],
        ["rollout", "hello", "--adapter", "hello@1", "--temperature", "nan"],
        ["eval", "hello@1", "--temperature", "8"],
        ["train"],
        ["train", "grpo"],
        ["demo", "--quick", "--full"],
    ],
)
def test_wrong_usage_ends_with_two(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(words)
    assert left.value.code == 2
    assert "usage: agentalign" in capsys.readouterr().err


def test_text_of_runs_cannot_steer_the_terminal(project: Project, run: Say) -> None:
    evil = "\x1b]0;owned\x07\x1b[2J\u202egnp.exe \x9b31m \ud800"
    call = ToolCall(id="1", name=evil, arguments="{}")
    messages = Message(role="user", content=evil), Message(role="assistant", content=evil, tool_calls=(call,))
    stored = Trajectory(taskset="hello", messages=messages, origin=Origin(kind="import", reference="file", task="1"), error=evil)
    with Store(project.store_url) as store:
        store.add([stored])
    for words in (["runs"], ["runs", "show", stored.id], ["runs", "show", stored.id, "--json"], ["runs", "--json"]):
        out = run(*words)
        assert not any(bad in out for bad in "\x1b\x07\x9b\u202e\ud800")
    assert "\\x1b[2J" in run("runs", "show", stored.id)
    assert plain("é\n\t中") == "é\n\t中"


def test_ctrl_c_ends_with_130_and_a_sentence(project: Project) -> None:
    pipe = project.root / "pipe"
    os.mkfifo(pipe)
    command = [sys.executable, "-m", "agentalign.cli", "import", str(pipe), "--taskset", "hello"]

    def listen() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # tests in the background of a script inherit that it is ignored

    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=project.root, preexec_fn=listen) as child:
        with pipe.open("w"):  # open as soon as the command reads from it
            child.send_signal(signal.SIGINT)
            _, said = child.communicate()
    assert child.returncode == 130
    assert said.startswith("agentalign: stopped.")
    assert "Traceback" not in said


def test_a_reader_that_has_seen_enough_is_no_error(project: Project) -> None:
    command = [sys.executable, "-m", "agentalign.cli", "tasks", "show", "order_desk", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=project.root) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.read(10)
        child.stdout.close()
        said = child.stderr.read()
    assert (child.returncode, said) == (0, b"")


def test_progress_without_a_terminal_is_ten_lines_at_most(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("rollout") as tick:
        for done in range(1, 1001):
            tick(done, 1000)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 10
    assert lines[-1].startswith("rollout: 1000 of 1000, 0 s left")


@pytest.mark.parametrize(("seconds", "words"), [(0.4, "0 s"), (59.4, "59 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")])
def test_durations_read_as_people_say_them(seconds: float, words: str) -> None:
    assert duration(seconds) == words
