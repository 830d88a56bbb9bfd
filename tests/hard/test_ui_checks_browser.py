"""The deploy-check of a version in a real browser: started, watched, read, and promoted with a reason; hostile words stay text."""

import pytest
from playwright.sync_api import Page, expect

from agentalign.config.project import Project
from agentalign.deployment.record_golden import record_golden
from agentalign.records.adapter import GateCheck, GateReport
from agentalign.store.registry import Registry
from tests.small_browser import PATIENCE, page_fixture
from tests.small_server import TINY, add_soft_adapter

pytestmark = [pytest.mark.hard, pytest.mark.browser]
page = page_fixture("lea")
EVIL = "<img src=x onerror=window.pwned=1>"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """toy_desk@1 with golden prompts and one red report in hostile words."""
    found = Project.create(tmp_path_factory.mktemp("project"))
    (found.tasks / "toy_desk").symlink_to(TINY.parent / "toy_desk")
    add_soft_adapter(found, TINY, name="toy_desk", std=0.15, seed=1)
    record_golden(found, "toy_desk@1")
    registry = Registry(found.adapters)
    check = GateCheck(name=EVIL, passed=False, detail=EVIL)
    registry.keep("toy_desk@1", GateReport(adapter="toy_desk@1", content=registry.content("toy_desk@1"), target=EVIL, checks=(check,)))
    return found


def test_a_version_is_checked_and_promoted_from_its_page(page: Page, project: Project) -> None:
    expect.set_options(timeout=PATIENCE)
    page.goto("/#/lineage?ref=toy_desk%401")
    page.click('[data-act="Check and promote"]')
    sheet = page.locator(".checks-sheet")
    expect(sheet.locator("summary", has_text="<img")).to_be_visible()
    expect(sheet.locator("table.checks", has_text="<img")).to_be_visible()
    assert page.evaluate("window.pwned") is None and page.locator(".aa img").count() == 0
    production = sheet.locator('[data-stage="production"]')
    expect(production).to_be_disabled()  # red, and no reason
    sheet.locator('[data-act="Deploy-check"]').click()
    expect(sheet.locator(".working")).to_be_visible()
    expect(sheet.locator('[role=status] [data-verdict="green"]')).to_be_visible()
    first = sheet.locator("details").first
    assert first.locator('[data-verdict="passed"]').count() == 4
    expect(first).to_contain_text("adapter applied")
    assert Registry(project.adapters).checks("toy_desk@1")[-1].state == "green"
    # Green opens the way to the gate, which wants an evaluation; a reason goes against it.
    production.click()
    expect(sheet.locator(".fault")).to_contain_text("never evaluated")
    sheet.locator(".reason").fill("agreed <b>with</b> the desk")
    production.click()
    expect(sheet.locator(".promoted")).to_contain_text("toy_desk@1 is production now")
    assert Registry(project.adapters).stages("toy_desk") == {"production": 1}
    assert Registry(project.adapters).history("toy_desk")[-1].gate.forced == "agreed <b>with</b> the desk (lea)"
    page.keyboard.press("Escape")
    expect(sheet).to_have_count(0)
