"""Scripts and styles from memory: kept for good under their digest, asked about again without it; and the page's early head."""

import gzip
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_desk import HOME, make_desk
from starlette.testclient import TestClient

from agentalign.ui.api import STATIC, create_api
from agentalign.ui.assets import FIRST, RATING, SHEETS, Assets, page_head
from agentalign.ui.early import early


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    with TestClient(create_api(make_desk(tmp_path), rater="rater"), base_url=HOME) as client:
        yield client


def test_a_file_under_its_digest_is_kept_for_good(client: TestClient) -> None:
    assets = Assets(STATIC)
    answer = client.get(assets.at("main.js"))
    assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert answer.content == (STATIC / "main.js").read_bytes()
    assert answer.headers["content-encoding"] == "gzip" and answer.headers["content-type"] == "text/javascript; charset=utf-8"
    assert client.get(assets.at("main.js"), headers={"Accept-Encoding": "identity"}).headers["content-length"] == str(len(answer.content))


def test_a_file_without_its_digest_is_asked_about_again_and_not_sent_again(client: TestClient) -> None:
    first = client.get("/ui/login.js")
    assert first.headers["cache-control"] == "no-cache"
    again = client.get("/ui/login.js", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    # A page that stayed open over an update loads its other screens, and keeps none of them.
    stale = client.get(f"/ui/{'0' * 16}/training.js")
    assert stale.status_code == 200 and stale.headers["cache-control"] == "no-cache"


@pytest.mark.parametrize("path", ["/ui/", "/ui/nothing.js", "/ui/..%2fauth.py", "/ui/%2e%2e/auth.py", f"/ui/{'0' * 16}/..%2f..%2fauth.py"])
def test_nothing_but_these_files_is_served(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404
    assert client.post("/ui/main.js").status_code == 405


def test_the_digest_changes_with_any_file(tmp_path: Path) -> None:
    for name in SHEETS:
        (tmp_path / f"{name}.css").write_text(f".{name} {{}}")
    before = Assets(tmp_path)
    assert gzip.decompress(before.files["page.css"].packed) == "\n".join(f".{name} {{}}" for name in SHEETS).encode()
    (tmp_path / "play.css").write_text("")
    assert Assets(tmp_path).digest != before.digest


def test_the_head_names_every_script_that_rating_imports_and_no_other() -> None:
    # What is imported but not named loads one step later; what is named but not imported loads for nothing.
    wanted, waiting = set(), {"main"}
    while waiting:
        name = waiting.pop()
        wanted.add(name)
        waiting |= set(re.findall(r'^import .* from "\./(\w+)\.js";', (STATIC / f"{name}.js").read_text("utf-8"), re.M)) - wanted
    assert wanted == {*FIRST, *RATING}
    assert re.findall(r'modulepreload" href="[^"]*/(\w+)\.js"', page_head(Assets(STATIC))) == [*FIRST, *RATING]


def test_every_sheet_but_the_logins_stands_in_the_pages_one() -> None:
    assert {path.stem for path in STATIC.glob("*.css")} == {*SHEETS, "login"}


def test_gradios_entry_waits_for_the_page_and_other_html_is_left_alone() -> None:
    entry = '<script type="module" crossorigin src="./assets/index-Dp_h-1.js"></script>'
    html = early(f"<head>\n{entry}</head><body>", "<link>")
    assert html.startswith("<head><link>\n") and 'import("/assets/index-Dp_h-1.js")' in html and "crossorigin" not in html
    assert early("<p>no head</p>", "<link>") == "<p>no head</p>"
