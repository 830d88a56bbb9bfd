import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from agentalign.environments.check import check_taskset, expert_run
from agentalign.environments.taskset import Task, find_taskset, list_tasksets, load_taskset
from agentalign.environments.team_code import TeamCode, TeamCodeError, generate
from agentalign.errors import ConfigError, TasksetError, ToolError
from agentalign.records.trajectory import Message, ToolCall

TASKS = Path(__file__).parents[1] / "tasks"
YAML = "name: lights\nsystem_prompt: You switch lights.\ntasks:\n  - {id: a, split: train, data: {prompt: Light on}}\n"
TOOLS = '''
from agentalign import ToolError, tool

from .rooms import ROOMS

@tool
def switch(room: str) -> str:
    """Switch a light."""
    if room not in ROOMS:
        raise ToolError(f"there is no room {room}.")
    return f"{room} on"

@tool
def broken() -> str:
    """Break."""
    raise KeyError("fuse")
'''


def lights(folder: Path, **files: str) -> Path:
    place = folder / "lights"
    place.mkdir(parents=True, exist_ok=True)
    texts = {"taskset_yaml": YAML, "criteria_yaml": "good:\n  description: Good?\n", "tools_py": TOOLS, "rooms_py": "ROOMS = ['hall']\n"}
    for name, text in (texts | files).items():
        stem, _, ending = name.rpartition("_")
        (place / f"{stem}.{ending}").write_text(text)
    return place


def test_a_folder_of_yaml_and_functions_is_a_taskset(tmp_path: Path) -> None:
    taskset = load_taskset(lights(tmp_path))
    assert (taskset.name, taskset.has_environment, taskset.has_expert, taskset.replayable) == ("lights", True, False, False)
    assert [tool["function"]["name"] for tool in json.loads(taskset.tools)] == ["switch", "broken"]
    assert [c.key for c in taskset.criteria] == ["good@1"]
    assert [task.id for task in taskset.tasks("train")] == ["a"]
    assert taskset.tasks("test") == []
    with TeamCode(taskset.folder) as code:
        assert code.reset(0, taskset.task("a")) == [Message(role="user", content="Light on")]
        assert code.call(0, ToolCall(id="1", name="switch", arguments='{"room": "hall"}')) == "hall on"
        with pytest.raises(ToolError, match="there is no room attic"):
            code.call(0, ToolCall(id="2", name="switch", arguments='{"room": "attic"}'))
        assert code.reply(0, []) is None


def test_what_team_code_prints_when_it_is_read_leaves_the_answer_of_a_command_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = lights(tmp_path)
    (folder / "tools.py").write_text("print('3 rooms')\n" + (folder / "tools.py").read_text())
    made = "from agentalign import Task\ndef generate():\n    print('a task')\n    return [Task(id='a', split='train')]\n"
    (folder / "made.py").write_text(made)
    load_taskset(folder)
    generate(folder, "made.py", {})
    assert capsys.readouterr() == ("", "3 rooms\na task\n")


def test_what_team_code_raises_keeps_its_traceback(tmp_path: Path) -> None:
    taskset = load_taskset(lights(tmp_path))
    with TeamCode(taskset.folder) as code:
        code.reset(0, taskset.task("a"))
        with pytest.raises(TeamCodeError, match=r"tool 'broken' failed[\s\S]*tools.py\", line 16[\s\S]*KeyError: 'fuse'"):
            code.call(0, ToolCall(id="1", name="broken"))


def test_two_tasksets_with_files_of_one_name_do_not_meet(tmp_path: Path) -> None:
    one = load_taskset(lights(tmp_path / "one"))
    two = load_taskset(lights(tmp_path / "two", rooms_py="ROOMS = ['cellar']\n"))
    for taskset, room in ((one, "hall"), (two, "cellar")):
        with TeamCode(taskset.folder) as code:
            code.reset(0, taskset.task("a"))
            assert code.call(0, ToolCall(id="1", name="switch", arguments=json.dumps({"room": room}))) == f"{room} on"


@pytest.mark.parametrize("name", ["../elsewhere/lights", "/{}/elsewhere/lights", "..", ".", "", "lights/", "..\\elsewhere\\lights", "a\0b"])
def test_a_name_from_outside_is_never_followed_as_a_path(tmp_path: Path, name: str) -> None:
    lights(tmp_path / "elsewhere")
    with pytest.raises(TasksetError, match=r"is not the name of a taskset: .*\.$"):
        find_taskset(name.format(tmp_path), tmp_path)


def test_a_name_from_outside_is_looked_up_in_tasks_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lights(tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(TasksetError, match="'lights' is not in this project"):
        find_taskset("lights", tmp_path / "tasks")
    assert find_taskset("lights", lights(tmp_path / "tasks").parent) == tmp_path / "tasks" / "lights"
    assert find_taskset("hello").name == "hello"


def test_a_projects_taskset_is_found_by_name_before_a_packaged_one(tmp_path: Path) -> None:
    lights(tmp_path)
    assert load_taskset("lights", tmp_path).folder == tmp_path / "lights"
    assert [found.name for found in list_tasksets(tmp_path) if not found.packaged] == ["lights"]
    with pytest.raises(TasksetError, match=r"there is no taskset 'lamps'.*lights"):
        load_taskset("lamps", tmp_path)


def test_a_taskset_of_criteria_alone_loads_and_offers_no_tools() -> None:
    taskset = load_taskset("chat_quality", TASKS)
    assert (taskset.tools, taskset.has_environment, taskset.tasks()) == ("[]", False, [])
    assert taskset.criterion("helpfulness").scale == (1, 5)
    with TeamCode(taskset.folder) as code, pytest.raises(TasksetError, match="its runs can be rated, but none can be made"):
        code.reset(0, Task(id="a", split="train"))


@pytest.mark.parametrize(
    ("files", "error", "words"),
    [
        ({"taskset_yaml": "name: lights\ntask: []\n"}, TasksetError, r"unknown key 'task'\. Known: name"),
        ({"taskset_yaml": "name: lamps\n"}, TasksetError, "name is 'lamps' but the folder is 'lights'"),
        ({"taskset_yaml": "name: lights\nname: lights\n"}, ConfigError, "name"),
        ({"taskset_yaml": "- lights\n"}, TasksetError, "must be a mapping"),
        ({"taskset_yaml": "name: lights\nlimits: {max_turns: many}\n"}, TasksetError, "limits.max_turns"),
        ({"taskset_yaml": "name: lights\nlimits: {max_turn: 3}\n"}, TasksetError, r"unknown key 'limits.max_turn'\. Known: max_turns"),
        ({"criteria_yaml": "good:\n  description: Good?\n  scale: [1, 1]\n"}, TasksetError, "low must be below high"),
        ({"criteria_yaml": "good:\n  describe: Good?\n"}, TasksetError, "unknown key 'describe'"),
        ({"criteria_yaml": "good: yes please\n"}, TasksetError, "must be a mapping with at least a description"),
        ({"criteria_yaml": "{}\n"}, TasksetError, "has no criteria"),
        ({"tools_py": "x = 1\n"}, TasksetError, "has no tools"),
        ({"tools_py": "import no_such_module\n"}, TeamCodeError, r"cannot be imported[\s\S]*no_such_module"),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused_with_a_reason(
    tmp_path: Path, files: dict[str, str], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        load_taskset(lights(tmp_path, **files))


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"taskset_yaml": "name: lights\ntasks: [{id: a, split: train}, {id: a, split: dev}]\n"}, "two tasks have the id 'a'"),
        ({"taskset_yaml": "name: lights\ntasks: [{id: a}]\n"}, "task 0: split"),
        ({"taskset_yaml": "name: lights\ntasks: tasks.jsonl\n"}, "which is not there"),
        (
            {"taskset_yaml": "name: lights\ntasks: tasks.jsonl\n", "tasks_jsonl": '{"id": "a", "split": "dev"}\n{"id"\n'},
            "tasks.jsonl:2: not JSON",
        ),
        ({"taskset_yaml": "name: lights\ntasks: make.py\n", "make_py": "x = 1\n"}, "no function or class `generate`"),
        (
            {"taskset_yaml": "name: lights\ntasks: make.py\n", "make_py": "def generate():\n    return [1]\n"},
            "list of agentalign Task records",
        ),
        (
            {"taskset_yaml": "name: lights\ntasks: make.py\ngenerator: {n: 1}\n", "make_py": "def generate():\n    return []\n"},
            "argument 'n'",
        ),
    ],
)
def test_tasks_that_cannot_be_read_are_refused_with_a_reason(tmp_path: Path, files: dict[str, str], words: str) -> None:
    taskset = load_taskset(lights(tmp_path, **files))
    with pytest.raises(TasksetError, match=words):
        taskset.tasks()


def test_a_file_of_tasks_keeps_every_character_and_says_when_it_is_no_text(tmp_path: Path) -> None:
    prompt = "one\u2028two\x85three"
    row = json.dumps({"id": "a", "split": "train", "data": {"prompt": prompt}}, ensure_ascii=False)
    place = lights(tmp_path, taskset_yaml="name: lights\ntasks: tasks.jsonl\n")
    (place / "tasks.jsonl").write_text(f"{row}\r\n\n", encoding="utf-8", newline="")
    assert [task.values["prompt"] for task in load_taskset(place).tasks()] == [prompt]
    (place / "tasks.jsonl").write_bytes(b"\xff")
    with pytest.raises(TasksetError, match=r"tasks\.jsonl: cannot be read"):
        load_taskset(place).tasks()


def test_task_data_is_an_object_and_cannot_be_changed_from_outside() -> None:
    task = Task(id="a", split="train", data='{"b": [2], "branch": "left"}')
    assert task.data == '{"b":[2],"branch":"left"}'
    task.values["branch"] = "right"
    assert task.branch == "left"
    with pytest.raises(ValueError, match="must be a JSON object"):
        Task(id="a", split="train", data="[]")


def test_check_finds_an_environment_that_does_not_replay_and_an_expert_that_never_ends(tmp_path: Path) -> None:
    folder = lights(
        tmp_path,
        taskset_yaml=YAML + "replayable: true\nlimits: {max_turns: 3}\n",
        tools_py=(
            'from agentalign import tool\n\ncount = [0]\n\n@tool\ndef tick() -> str:\n    """Count."""\n'
            "    count[0] += 1\n    return str(count)\n"
        ),
        expert_py=(
            "from agentalign import Message, ToolCall\n\ndef act(task, messages):\n"
            "    return Message(role='assistant', tool_calls=(ToolCall(id=f'c{len(messages)}', name='tick'),))\n"
        ),
    )
    taskset = load_taskset(folder)
    with TeamCode(folder) as code:
        report = check_taskset(taskset, code)
        assert len(expert_run(taskset, taskset.task("a"), code).steps) == 3
    assert report.played == 1
    assert any("did not end within 3 turns" in problem for problem in report.problems)
    assert any("other results when replayed" in problem for problem in report.problems)


PLAYED = {
    "expert_py": "from agentalign import Message\n\ndef act(task, messages):\n    return Message(role='assistant', content='Done.')\n",
    "criteria_yaml": "task_success:\n  description: Done?\n  check: done\ntidy:\n  description: Tidy?\n  check: tidy\n",
}


@pytest.mark.parametrize(
    ("done", "tidy", "words"),
    [
        ("return True", "return 0", ""),
        ("return True", "return None", ""),
        ("return True", None, "criterion 'tidy': .* has no function or class `tidy`"),
        ("return True", "return trajectory.nothing", "criterion 'tidy': (.|\n)*AttributeError"),
        ("return True", "return 100", "criterion 'tidy': check 'tidy' returned 100, outside"),
        ("return 100", "return 1", "criterion 'task_success': check 'done' returned 100, outside"),
        ("return {0: 1.0}", "return 1", "criterion 'task_success': check 'done' returned values per step"),
        ("return None", "return 1", "'task_success' applies to no task"),
        ("return 0.5", "return 1", "the expert's run fails 'task_success'"),
    ],
)
def test_check_asks_every_check_and_takes_only_what_can_be_scored(tmp_path: Path, done: str, tidy: str | None, words: str) -> None:
    code = f"def done(trajectory, task):\n    {done}\n" + (f"def tidy(trajectory, task):\n    {tidy}\n" if tidy else "")
    folder = lights(tmp_path, criteria_py=code, **PLAYED)
    with TeamCode(folder) as pool:
        problems = check_taskset(load_taskset(folder), pool).problems
    assert len(problems) == bool(words)
    assert not words or re.search(words, problems[0])


def test_a_prompt_of_the_environments_own_is_replayed_like_the_rest(tmp_path: Path) -> None:
    world = (
        "from agentalign import Message\n\nclass Environment:\n    def reset(self, task):\n"
        "        return [Message(role='system', content='House 7.'), Message(role='user', content='Light on')]\n"
        "    def call(self, call):\n        return ''\n    def reply(self, messages):\n        return None\n"
        "    def close(self):\n        pass\n"
    )
    code = "def done(trajectory, task):\n    return True\n\ntidy = done\n"
    folder = lights(tmp_path, environment_py=world, criteria_py=code, taskset_yaml=YAML + "replayable: true\n", **PLAYED)
    with TeamCode(folder) as pool:
        assert check_taskset(load_taskset(folder), pool).problems == ()


def test_check_says_where_no_adapter_can_be_called_after_a_taskset(tmp_path: Path) -> None:
    folder = lights(tmp_path)
    taskset = load_taskset(folder)
    with TeamCode(folder) as code:
        assert not [problem for problem in check_taskset(taskset, code).problems if "called" in problem]
        for name in ("OrderDesk", "order desk", "x" * 94):
            (problem,) = check_taskset(replace(taskset, name=name), code, []).problems
            assert "none may be called" in problem
        assert check_taskset(replace(taskset, name="x" * 93), code, []).problems == ()


READ = ("faq.md", "shop.sqlite", "data/prices.yaml")
ASIDE = ("guidelines.md", "recipes/sft.yaml", ".notes.swp")


@pytest.mark.parametrize("file", [*READ, *ASIDE])
def test_every_file_that_team_code_may_read_makes_it_another_taskset(tmp_path: Path, file: str) -> None:
    shutil.copytree(TASKS / "hello", tmp_path / "hello")
    before = load_taskset(tmp_path / "hello").digest("test")
    (tmp_path / "hello" / file).parent.mkdir(exist_ok=True)
    (tmp_path / "hello" / file).write_text("W1: 30 days")
    assert (load_taskset(tmp_path / "hello").digest("test") != before) is (file in READ)
