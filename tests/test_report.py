"""Reports hold every figure, need nothing but themselves, and never run what a team or a model wrote."""

import json
import re
from html.parser import HTMLParser

import pytest

from agentalign.environments.task import Task
from agentalign.errors import DataError
from agentalign.evaluation import plots
from agentalign.evaluation.curves import _values
from agentalign.evaluation.evaluate import Evaluation, summarise
from agentalign.evaluation.report import LISTED_TASKS, StageResult, write_demo_report, write_report
from agentalign.evaluation.tables import duration, signed
from agentalign.records.criterion import Criterion, Score
from agentalign.records.trajectory import Message, Origin, StopReason, Trajectory

HOSTILE = "<script>alert('x')</script> $\\frac{ <img src=https://evil.example/x> 订单"


def evaluation(adapter: str, solved: float, *, families=("cancel", "lookup", "gift"), tasks=12) -> Evaluation:
    criteria = (
        Criterion(name="task_success", description="Done?", kind="check", check="done"),
        Criterion(name="policy_kept", description="Allowed?", kind="check", check="kept", gate=True),
    )
    made, runs, scores = {}, [], []
    for family in families:
        for number in range(tasks):
            branch = ("open", "shipped")[number % 2] if family == "cancel" else ""
            task = Task(id=f"{family}-{number}", split="test", family=family, unseen=family == "gift", data={"branch": branch})
            origin = Origin(kind="rollout", reference=adapter, task=task.id)
            run = Trajectory(
                taskset="desk",
                messages=(Message(role="user", content=task.id), Message(role="assistant", content="Done.")),
                origin=origin,
                task_id=task.id,
                family=family,
                split="test",
                stop_reason=StopReason.ANSWERED,
            )
            made[task.id] = task
            runs.append(run)
            for name, value in (("task_success", number < solved * tasks), ("policy_kept", number != 0)):
                scores.append(Score(trajectory=run.id, criterion=f"{name}@1", value=float(value), rater="check", rater_kind="check"))
    return summarise(adapter, "test", criteria, runs, scores, made)


def stages():
    learning = [{"step": i, "loss": 2.0 / (i + 1), "note": "text", **({"eval/score": i / 40} if i % 10 == 0 else {})} for i in range(30)]
    reward = [{"step": i, "loss": 0.1, "kl": 0.01 * i, "reward/mean": 0.5 + 0.02 * i} for i in range(6)]
    return [
        StageResult("base", "base", evaluation("base", 0.0), 0.0),
        StageResult("sft", "desk@1", evaluation("desk@1", 0.6), 90.0, learning),
        StageResult("more sft", "desk@2", evaluation("desk@2", 0.65), 30.0, compared_to="sft", control=True),
        StageResult("dpo", "desk@3", evaluation("desk@3", 0.8), 40.0, notes=("dev gate rolled back to step 8",)),
        StageResult("reward", "desk-reward@1", None, 20.0),
        StageResult("ppo", "desk@4", evaluation("desk@4", 0.9), 60.0, reward),
    ]


class Checked(HTMLParser):
    """Counts tags, checks that they close, and collects the text."""

    VOID = {"meta", "br", "img", "link"}

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: dict[str, int] = {}
        self.text = ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags[tag] = self.tags.get(tag, 0) + 1
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_demo_report_json_has_the_agreed_form(tmp_path):
    paths = write_demo_report(tmp_path / "report", stages(), base="smollm2-135m", seconds=251.5)
    data = json.loads(paths.json.read_text())
    assert (data["seconds"], data["base"]) == (251.5, "smollm2-135m")
    assert [stage["name"] for stage in data["stages"]] == ["base", "sft", "more sft", "dpo", "ppo"]
    ppo = data["stages"][-1]
    assert (ppo["adapter"], ppo["split"], ppo["n"]) == ("desk@4", "test", 24)
    assert ppo["success"] == pytest.approx(22 / 24)
    assert ppo["ci"][0] < ppo["success"] < ppo["ci"][1]
    assert ppo["unseen_families"]["n"] == 12
    assert list(ppo["unseen_families"]["families"]) == ["gift"]
    assert set(ppo["criteria"]) == {"task_success", "policy_kept"}
    assert set(ppo["families"]) == {"cancel", "lookup"}
    assert [training["name"] for training in data["trainings"]] == ["base", "sft", "more sft", "dpo", "reward", "ppo"]


def test_stages_are_compared_to_the_one_they_continue_and_controls_are_nobodys_base(tmp_path):
    data = json.loads(write_demo_report(tmp_path, stages(), base="b", seconds=1.0).json.read_text())
    assert [one["name"] for one in data["comparisons"]] == ["base → sft", "sft → more sft", "sft → dpo", "dpo → ppo"]


def test_the_page_shows_stages_differences_families_and_curves(tmp_path):
    html = write_demo_report(tmp_path, stages(), base="b", seconds=1.0, notes=("Open it with agentalign ui.",)).html.read_text()
    page = Checked(html)
    for word in ("91.7 %", "desk@4", "never in training", "dpo → ppo", "policy_kept", "dev gate rolled back to step 8", "agentalign ui"):
        assert word in page.text
    # Success, time; loss of sft and ppo; dev score of sft; three of KL and reward.
    assert page.tags["figure"] == 8


def test_the_page_needs_nothing_from_anywhere(tmp_path):
    html = write_demo_report(tmp_path, stages(), base="b", seconds=1.0).html.read_text()
    assert "http:" not in html
    assert "https:" not in html
    assert re.findall(r"<(?:script|link|img|iframe)", html) == []
    assert all(target.startswith("#") for target in re.findall(r'href="([^"]*)"', html))
    assert "default-src 'none'" in html


def test_hostile_names_stay_text(tmp_path):
    one = evaluation("desk@1", 0.5, families=(HOSTILE, "lookup"))
    results = [
        StageResult("base", HOSTILE, one, 0.0),
        StageResult(HOSTILE, "desk@1", one, 1.0, [{"step": 0, "loss": 1.0}, {"step": 1, "loss": 0.5}], [HOSTILE]),
    ]
    for html in (
        write_demo_report(tmp_path, results, base=HOSTILE, seconds=1.0, title=HOSTILE, notes=[HOSTILE]).html.read_text(),
        write_report(tmp_path, one, one).html.read_text(),
    ):
        page = Checked(html)
        assert "script" not in page.tags
        assert "img" not in page.tags
        assert HOSTILE in page.text


def test_one_evaluation_has_a_report_of_its_own(tmp_path):
    one = evaluation("desk@1", 0.5)
    paths = write_report(tmp_path, one)
    assert Evaluation.model_validate(json.loads(paths.json.read_text())["evaluation"]) == one
    page = Checked(paths.html.read_text())
    assert "desk@1 on desk/test" in page.text
    assert "cancel-11 (cancel/shipped)" in page.text, "failed tasks are named"


def test_tasks_that_only_one_side_has_are_counted(tmp_path):
    before, after = evaluation("desk@1", 0.5, tasks=100), evaluation("desk@2", 0.8, tasks=100)
    part = after.model_copy(update={"tasks": after.tasks[:-7], "trouble": ("7 runs broke.",)})
    page = Checked(write_report(tmp_path, part, before).html.read_text())
    assert "Tasks that only one side has a result of, in no figure: 7 (desk@1 → desk@2)" in page.text
    assert "7 runs broke." in page.text
    fewer = before.model_copy(update={"seen": before.headline.model_copy(update={"n": 93})})
    assert (
        "Of other sides: 93 (desk@3)"
        in Checked(write_report(tmp_path, fewer.model_copy(update={"adapter": "desk@3"}), before).html.read_text()).text
    )


def test_a_comparison_names_the_tasks_that_changed(tmp_path):
    before, after = evaluation("desk@1", 0.5, tasks=100), evaluation("desk@2", 0.8, tasks=100)
    paths = write_report(tmp_path, after, before)
    page = Checked(paths.html.read_text())
    assert "Tasks won" in page.text
    assert "Tasks lost" not in page.text
    assert f"and {90 - LISTED_TASKS} more, see the JSON" in page.text
    assert "+30.0" in page.text
    assert json.loads(paths.json.read_text())["comparison"]["seen"]["won"] == 60


def test_a_report_without_stages_or_with_an_unknown_reference_is_refused(tmp_path):
    with pytest.raises(DataError, match="None of the stages"):
        write_demo_report(tmp_path, [StageResult("reward", "r@1", None, 1.0)], base="b", seconds=1.0)
    one = evaluation("desk@1", 0.5)
    with pytest.raises(DataError, match="'sfd', which was not evaluated"):
        write_demo_report(tmp_path, [StageResult("dpo", "d@1", one, 1.0, compared_to="sfd")], base="b", seconds=1.0)
    with pytest.raises(DataError, match="different names"):
        write_demo_report(tmp_path, [StageResult("sft", "d@1", one, 1.0), StageResult("sft", "d@2", one, 1.0)], base="b", seconds=1.0)
    assert list(tmp_path.iterdir()) == []


def test_metrics_that_are_no_numbers_or_of_a_skipped_step_are_not_drawn(tmp_path):
    rows = [{"step": i, "loss": value} for i, value in enumerate(("nan", None, float("nan"), 1.0))]
    one = StageResult("base", "base", evaluation("base", 0.0), 0.0, rows)
    assert _values([*rows, {"step": 3, "loss": 0.5}, {"step": 4, "loss": 0.0, "skipped": 1.0}], "loss") == {3: 0.5}
    page = Checked(write_demo_report(tmp_path, [one], base="b", seconds=1.0).html.read_text())
    assert page.tags["figure"] == 2


def test_the_same_plot_gives_the_same_bytes():
    def draw():
        return plots.interval_plot(["base", "sft"], {"seen": [plots.Point(0, 1, 4), None]}, y_label="success (%)")

    assert draw() == draw()
    assert "var(--c1)" in draw()
    assert not re.search(r"#[0-9a-f]{6}\b(?!\")", draw().replace("var(", "")), "all colours come from the page"


def test_durations_and_points_read_well():
    assert [duration(s) for s in (0, 4.26, 59.4, 75, 3725)] == ["0 s", "4.3 s", "59 s", "1 min 15 s", "1 h 02 min"]
    assert [signed(v) for v in (0.05, -0.05, 0.0, -0.0001)] == ["+5.0", "−5.0", "0.0", "0.0"]


@pytest.mark.browser
def test_a_browser_shows_the_page_in_both_schemes_without_a_request_or_complaint(tmp_path, chromium):
    from playwright.sync_api import sync_playwright

    paths = write_demo_report(tmp_path, stages(), base="b", seconds=1.0)
    complaints, requests = [], []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu", "--disable-quic"])
        inks = set()
        for scheme in ("light", "dark"):
            page = browser.new_context(color_scheme=scheme, viewport={"width": 420, "height": 900}).new_page()
            page.on("console", lambda message: complaints.append(message.text))
            page.on("request", lambda request: requests.append(request.url))
            page.goto(paths.html.as_uri())
            assert page.evaluate("document.documentElement.scrollWidth") <= 420, "only tables scroll sideways"
            inks.add(page.evaluate("getComputedStyle(document.querySelector('figure svg text')).fill"))
        browser.close()
    assert complaints == []
    assert requests == [paths.html.as_uri()] * 2
    assert len(inks) == 2, "plots follow the scheme"
