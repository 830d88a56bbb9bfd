"""README tells the truth: its tree is the tree, its commands exist, its links lead somewhere, its Python imports."""

import ast
import functools
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import agentalign
from agentalign.environments.check import check_taskset, result_of
from agentalign.environments.task import Task
from agentalign.environments.taskset import Limits, Settings, Taskset, load_taskset
from agentalign.environments.team_code import TeamCode
from agentalign.records.base import canonical_json
from agentalign.records.criterion import Criterion
from agentalign.records.trajectory import Message, Origin, ToolCall, Trajectory
from agentalign.scoring.score import score_trajectories

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def shell_commands(program: str) -> list[list[str]]:
    """Words of every command of a program that README names, in blocks and in `code`; comments and pipes cut off."""
    lines = [line for block in blocks("(?:bash|sh|console)") for line in block.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", README, flags=re.MULTILINE | re.DOTALL))
    commands = [re.split(r"\s#|[|;&>]", line.strip().removeprefix("$ "))[0].split() for line in lines]
    return [words for words in commands if words and words[0] == program]


def written_tree() -> tuple[set[str], set[str]]:
    """(every entry, folders whose content is listed) of README's annotated tree: one entry a line, two spaces a level."""
    (tree,) = blocks("tree")
    entries: set[str] = set()
    listed: set[str] = set()
    path: list[str] = []
    for line in tree.splitlines():
        indent, name = re.match(r"( *)(\S+)", line).groups()  # type: ignore[union-attr]
        assert len(indent) % 2 == 0, line
        path = [*path[: len(indent) // 2], name.rstrip("/")]
        entries.add("/".join(path) + ("/" if name.endswith("/") else ""))
        listed.add("/".join(path[:-1]))
    return entries, listed


def real_tree(listed: set[str]) -> set[str]:
    if not shutil.which("git") or not (ROOT / ".git").exists():
        pytest.skip("the tree can only be compared in a git checkout")
    # Deleted files are still listed until they are committed.
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout.splitlines()
    entries = set()
    for name in names:
        parts = name.split("/")
        if not (ROOT / name).exists() or parts[-1] == "__init__.py" or (len(parts) == 1 and name.startswith(".")):
            continue
        if len(parts) > 1 and (ROOT / parts[0] / ".agentalign").is_dir():  # somebody's project, as the tour makes one
            continue
        for depth in range(len(parts)):
            if "/".join(parts[:depth]) in listed:
                entries.add("/".join(parts[: depth + 1]) + ("/" if depth + 1 < len(parts) else ""))
    return entries


def test_the_annotated_tree_is_the_real_tree() -> None:
    entries, listed = written_tree()
    real = real_tree(listed)
    hidden = {entry for entry in real if entry.startswith(".")}
    assert real - hidden - entries == set(), "in the repository, but not in README's tree"
    assert entries - real == set(), "in README's tree, but not in the repository"


def test_every_make_target_that_readme_names_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {word for words in shell_commands("make") for word in words[1:] if re.fullmatch(r"[a-z-]+", word)}
    assert {"demo", "test"} <= named
    assert named <= targets


@functools.cache
def help_of(*words: str) -> str:
    done = subprocess.run([sys.executable, "-m", "agentalign.cli", *words, "--help"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, f"agentalign {' '.join(words)} --help: {done.stderr}"
    return done.stdout


def test_every_command_and_flag_that_readme_names_exists() -> None:
    commands = shell_commands("agentalign")
    assert commands
    for words in commands:
        path: list[str] = []
        for word in words[1:]:
            choices = re.search(r"\{([a-z_,-]+)\}", help_of(*path))
            if not choices or word not in choices.group(1).split(","):
                break
            path.append(word)
        if len(words) > 1 and re.fullmatch(r"[a-z]+", words[1]):
            assert path, f"README names `{' '.join(words)}`, but there is no command '{words[1]}'"
        for flag in (word.split("=")[0] for word in words if word.startswith("--")):
            assert flag in help_of(*path), f"README names `{' '.join(words)}`, but that command has no {flag}"


def test_every_link_inside_the_repository_leads_somewhere() -> None:
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
        broken = [target for target in targets if "://" not in target and not (page.parent / target).exists()]
        assert not broken, page.name


def test_the_page_about_tasksets_names_all_that_their_files_may_say() -> None:
    page = (ROOT / "docs" / "tasksets.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^\| `(\w+)`", page, re.MULTILINE))
    for record in (Settings, Limits, Task, Criterion):
        missing = set(record.model_fields) - {"name" if record is Criterion else ""} - named
        assert not missing, f"docs/tasksets.md says nothing of {record.__name__}: {sorted(missing)}"


def test_python_in_readme_parses_and_imports_public_names() -> None:
    for block in blocks("python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module == "agentalign":
                assert {alias.name for alias in node.names} <= set(agentalign.__all__)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "agentalign":
                assert node.attr in agentalign.__all__


def lights(folder: Path) -> Taskset:
    for block in blocks("yaml") + blocks("python"):
        place = re.match(r"# (tasks/lights/\S+)\n", block)
        if place:
            (folder / place.group(1)).parent.mkdir(parents=True, exist_ok=True)
            (folder / place.group(1)).write_text(block, encoding="utf-8")
    return load_taskset("lights", folder / "tasks")


def test_the_taskset_in_readme_keeps_its_promises(tmp_path: Path) -> None:
    taskset = lights(tmp_path)
    with TeamCode(taskset.folder) as pool:
        report = check_taskset(taskset, pool)
    assert report.problems == ()
    assert report.played == len(taskset.tasks()) == 3


@pytest.mark.parametrize("mistake", ['{"on": true}', '["study"]', '{"room": "study", "o', '{"room": "cellar", "on": true}'])
@pytest.mark.parametrize("then_right", [True, False])
def test_the_checks_in_readme_judge_an_agent_that_fumbles_its_calls(tmp_path: Path, mistake: str, then_right: bool) -> None:
    taskset = lights(tmp_path)
    task = taskset.tasks()[0]
    tried = [mistake, canonical_json({"room": task.values["room"], "on": True})] if then_right else [mistake]
    messages = [Message(role="user", content="Light, please.")]
    with TeamCode(taskset.folder) as pool:
        pool.reset(0, task)
        for number, arguments in enumerate(tried):
            call = ToolCall(id=f"call_{number}", name="set_light", arguments=arguments)
            messages += [Message(role="assistant", tool_calls=(call,)), result_of(pool, 0, call)]
        assert messages[2].error
        messages.append(Message(role="assistant", content="Done."))
        run = Trajectory(taskset="lights", messages=tuple(messages), origin=Origin(kind="rollout", reference="a"), task_id=task.id)
        scores = score_trajectories(taskset, [run], pool=pool)
    found = {score.criterion.split("@")[0]: score.value for score in scores}
    assert found == {"task_success": float(then_right), "nothing_else": 1.0}
