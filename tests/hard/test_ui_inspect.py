"""Looking at a run in a real browser: addresses, the strip, folding, relatives, and hostile text in every field."""

# Fixtures come from another file of this folder, and a parameter of their name is how pytest hands them over.
# ruff: noqa: F401, F811

import json
from itertools import product

import pytest
from playwright.sync_api import Page, expect
from small_desk import long_run, make_run
from test_ui_browser import PATIENCE, Server, Watched, browser, server, store, watched

from agentalign.records.criterion import Score
from agentalign.records.trajectory import Message, Origin, ToolCall, Trajectory
from agentalign.store.store import Store

pytestmark = [pytest.mark.hard, pytest.mark.browser]

VECTORS = (
    "<script>window.pwned=1;fetch('CANARY')</script>",
    "<img src=CANARY onerror=window.pwned=1>",
    "<svg onload=window.pwned=1>",
    "<svg><image href=CANARY /></svg>",
    "<iframe src=CANARY srcdoc='<script>parent.pwned=1</script>'></iframe>",
    "<object data=CANARY>",
    "<embed src=CANARY>",
    "<link rel=stylesheet href=CANARY>",
    "<style>@import 'CANARY'; *{background:url(CANARY)}</style>",
    "<base href=CANARY>",
    "<meta http-equiv=refresh content='0;url=CANARY'>",
    "<form action=CANARY><button autofocus>Sign in</button></form>",
    "<details open ontoggle=window.pwned=1>",
    "<video><source onerror=window.pwned=1 src=CANARY></video>",
    "<a href=javascript:window.pwned=1>x</a>",
    "<body onload=window.pwned=1>",
    "<input autofocus onfocus=window.pwned=1>",
    "<marquee onstart=window.pwned=1>",
    "<math href=javascript:pwned=1>",
    "![beacon](CANARY/x.png)",
    "[click](javascript:window.pwned=1)",
    "<!--#include virtual=CANARY-->",
    "${window.pwned=1}",
    "{{constructor.constructor('pwned=1')()}}",
    "`${window.pwned=1}`",
    "{% raw %}<script>pwned=1</script>",
    "javascript:window.pwned=1",
    "data:text/html,<script>window.pwned=1</script>",
    "data:image/svg+xml;base64,PHN2ZyBvbmxvYWQ9cHduZWQ9MT4=",
    "\x1b]52;c;cHduZWQ=\x07\x1b[31mred",
    "\u202egnp.exe\u2066x\u2069",
    "nul\x00 \x7f \x9b31m",
    "lone \ud800 surrogate \udfff",
    "\u200bzero\u200fwidth\ufeff",
    "C:\\new\\table\\u0041 \\x41",
    "__proto__",
    '=HYPERLINK("CANARY")',
    "a" * 900,
    "]]>&lt;script&gt;&amp;#60;",
    "\U000e0041\U000e0042 tags \u2028 line \u2029",
)
WRAPPED = ("{}", '">{}', "'}}{}", "</pre></span>{}", "\n{}\n\t")
CANARY = "http://203.0.113.7:8099/canary"
PAYLOADS = [frame.replace("{}", vector.replace("CANARY", CANARY)) for vector, frame in product(VECTORS, WRAPPED)]

# What a page shows, with its visible escapes turned back into the characters that they stand for.
SHOWN = """(element) => {
  const copy = element.cloneNode(true);
  for (const escape of copy.querySelectorAll(".esc")) {
    const code = /^\\\\u\\{?([0-9a-f]+)\\}?$/.exec(escape.textContent)[1];
    escape.replaceWith(String.fromCodePoint(Number.parseInt(code, 16)));
  }
  return JSON.stringify(copy.textContent);
}"""


def open_run(page: Page, server: Server, run: Trajectory, step: str = "") -> None:
    page.goto(f"{server.url}/run/{run.id}{step}")
    page.wait_for_selector(".timeline .entry")


def test_two_hundred_payloads_in_every_text_of_a_run_do_nothing_and_are_shown_whole(
    watched: Watched,
    server: Server,
    store: Store,
) -> None:
    assert len(PAYLOADS) == 200
    messages: list[Message] = []
    for number, text in enumerate(PAYLOADS):
        calls = (
            ToolCall(id=f"a{number}", name=text, arguments=json.dumps({text: [text]})),
            ToolCall(id=f"b{number}", name="f", arguments=text),
        )
        messages += [
            Message(role="user", content=text),
            Message(role="assistant", content=text, reasoning=text, malformed=text, tool_calls=calls),
        ]
        messages += [
            Message(role="tool", content=text, tool_call_id=f"a{number}"),
            Message(role="tool", content=json.dumps([text]), tool_call_id=f"b{number}"),
        ]
        messages += [Message(role="system", content=text), Message(role="tool", content=text, name=text)]
    run = Trajectory(taskset="desk", messages=tuple(messages), origin=Origin(kind="import", reference="f"), error=PAYLOADS[0])
    store.add([run])
    page = watched.page
    open_run(page, server, run)
    page.evaluate("document.querySelectorAll('.timeline .entry.folded .fold').forEach((button) => button.click())")
    page.evaluate("document.querySelectorAll('.timeline details').forEach((details) => (details.open = true))")

    def shown(selector: str) -> list[str]:
        return [json.loads(text) for text in page.evaluate(f"(s) => [...document.querySelectorAll(s)].map({SHOWN})", selector)]

    assert shown(".entry.user > .content > pre.text") == PAYLOADS
    assert shown(".entry.system > .content > pre.text") == PAYLOADS
    assert shown(".entry.tool > .content > pre.result") == PAYLOADS
    assert shown(".entry.step > .content > pre.text") == PAYLOADS
    assert shown(".entry.step .reasoning pre") == PAYLOADS
    assert [text.removeprefix("The call could not be read: ") for text in shown(".entry.step > .content > p.fault")] == PAYLOADS
    assert shown(".call:nth-child(1 of .call) .call-head .tool-name") == PAYLOADS
    assert shown(".call:nth-child(1 of .call) > pre.result") == PAYLOADS
    squeezed = ["".join(text.split()) for text in shown(".call:nth-child(1 of .call) :is(code.args, .json.args, pre.args)")]
    assert squeezed == ["".join(call.arguments.split()) for message in run.messages for call in message.tool_calls[:1]]
    page.keyboard.press("t")
    page.goto(f"{server.url}/#/runs")
    page.reload()
    page.wait_for_selector("table.runs tbody tr")
    assert page.evaluate("window.pwned") is None
    assert page.locator(".aa :is(script, iframe, img, form, object, embed, video, base, link, svg, style)").count() == 0


def test_payloads_in_names_and_searches_do_nothing(watched: Watched, server: Server, store: Store) -> None:
    plain = [text for text in PAYLOADS if "\x00" not in text and "\ud800" not in text and len(text) <= 500]
    for start in range(0, len(plain), 40):
        store.add([make_run(text, policy=text, task=text, sample=number) for number, text in enumerate(plain[start : start + 40])])
    page = watched.page
    page.goto(server.url)
    page.wait_for_selector("table.runs tbody tr")
    texts = page.evaluate(f"() => [...document.querySelectorAll('table.runs tbody tr .task')].map({SHOWN})")
    assert [json.loads(text) for text in texts] == [row.task_id for row in store.runs(limit=50).rows]
    page.fill("input[type=search]", plain[0])
    page.keyboard.press("Enter")
    expect(page.locator(".count")).to_have_text("5 runs", timeout=PATIENCE)  # it stands in five frames
    page.click("table.runs tbody tr:last-child .request a")
    page.wait_for_selector(".run-head")
    assert page.evaluate("window.pwned") is None


def test_an_address_opens_a_run_at_its_step(watched: Watched, server: Server, store: Store) -> None:
    run = long_run(60)
    store.add([run])
    page = watched.page
    open_run(page, server, run, "#s42")
    expect(page.locator(".entry.at")).to_have_attribute("data-step", "42", timeout=PATIENCE)
    expect(page.locator(".entry.at")).to_be_in_viewport()
    expect(page.locator(".entry.at .content")).to_contain_text("Now 42.")
    expect(page.locator(".minimap .cell.at")).to_have_attribute("title", "step 42: count")
    assert page.url.endswith(f"/#/run/{run.id}?s=42")


def test_steps_are_lines_that_open_and_a_failed_one_is_open_already(watched: Watched, server: Server, store: Store) -> None:
    run = long_run(60)
    store.add([run])
    page = watched.page
    open_run(page, server, run)
    assert page.locator(".entry.step").count() == page.locator(".minimap .cell.step").count() == 60
    assert page.locator(".entry.step:not(.folded)").count() == page.locator(".minimap .cell.bad").count() == 1
    assert page.locator(".entry.folded .content > *").count() == 0, "what is folded is not built"
    assert "count" in (page.locator('.entry[data-step="7"] .gist').text_content() or "")
    page.locator(".minimap .cell.step").nth(7).click()
    expect(page.locator(".entry.at")).to_have_attribute("data-step", "7", timeout=PATIENCE)
    tree = page.locator('.entry[data-step="7"] .json.args')
    assert "".join((tree.text_content() or "").split()) == "".join(run.steps[7].message.tool_calls[0].arguments.split())
    branch = tree.locator("details summary", has_text='"notes"')
    branch.click()
    expect(tree.locator(".line", has_text='"from"')).to_be_hidden()


def test_relatives_and_pictures_are_links_and_step_scores_colour_the_strip(watched: Watched, server: Server, store: Store) -> None:
    data = "data:image/png;base64," + "iVBORw0KGgo" * 9
    parent = make_run(f"See {data} and https://elsewhere.example/a.png")
    child = Trajectory(
        taskset="desk", messages=parent.messages[:3], origin=Origin(kind="correction", reference="ada"), parent=(parent.id, 1)
    )
    store.add([parent, child])
    store.add_scores([Score(trajectory=parent.id, criterion="good_step@1", step=s, value=s, rater="j", rater_kind="judge") for s in (0, 1)])
    page = watched.page
    open_run(page, server, parent)
    expect(page.locator(".entry.user .pictures a")).to_have_count(2)
    with page.expect_download() as download:
        page.click(".entry.user .pictures a >> nth=0")
    assert download.value.suggested_filename == "image.png"
    page.select_option(".minimap select", label="good_step@1 · judge")
    assert page.locator('.minimap .cell[style*="--unit"]').count() == 2
    page.click('.entry[data-step="1"] .relative')
    expect(page.locator(".run-head .relative")).to_contain_text("began at step 1 of", timeout=PATIENCE)
    page.click(".run-head .relative")
    expect(page.locator(".entry.at")).to_have_attribute("data-step", "1", timeout=PATIENCE)
