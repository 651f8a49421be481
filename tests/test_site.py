"""The built documentation in a browser: `make docs`, then `pytest -m slow tests/test_site.py`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from browser import Browser, chromium

SITE = Path(__file__).parents[1] / "docs" / "_build" / "html"
PAGES = sorted(str(path.relative_to(SITE)) for path in SITE.rglob("*.html"))
FORMULAS = "https://cdn.jsdelivr.net/npm/mathjax"  # all that comes from elsewhere; without it formulas stay TeX

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PAGES, reason="the documentation is not built"),
    pytest.mark.skipif(chromium() is None, reason="no Chromium on this machine"),
]


@pytest.mark.parametrize("width", [390, 1200])
def test_pages_fit_the_window_and_nothing_fails(tmp_path, width):
    with Browser(tmp_path / "profile", width=width) as browser:
        for page in PAGES:
            browser.messages.clear()
            browser.requests.clear()
            browser.open(SITE / page)
            assert browser.value("document.documentElement.scrollWidth") <= width, page
            elsewhere = [url for url in browser.requests if not url.startswith(("file:", "data:", "blob:"))]
            assert all(url.startswith(FORMULAS) for url in elsewhere), page
            failed = [said for said in browser.messages if not (elsewhere and is_of_the_network(said))]
            assert not failed, (page, failed)


def is_of_the_network(message: str) -> bool:
    """Whether the browser says that it did not reach an address; a file that is missing is none."""
    return message.startswith("error: Failed to load resource: net::") and "ERR_FILE" not in message


def test_a_wide_page_is_seen(tmp_path):
    page = tmp_path / "wide.html"
    text = '<!doctype html><meta name="viewport" content="width=device-width"><pre style="width: 500px">'
    page.write_text(f"{text}a line</pre><img src='missing.png'>")
    with Browser(tmp_path / "profile", width=390) as browser:
        browser.open(page)
        assert browser.value("document.documentElement.scrollWidth") > 390
        assert browser.messages
        assert not any(map(is_of_the_network, browser.messages))


def test_the_landing_page_leads_to_all_that_the_navigation_has(tmp_path):
    with Browser(tmp_path / "profile") as browser:
        browser.open(SITE / "index.html")

        def links(selector: str) -> set[str]:
            found = f"Array.from(document.querySelectorAll('{selector}'))"
            return set(json.loads(browser.value(f"JSON.stringify({found}.map(a => a.getAttribute('href')))")))

        pages = links(".sidebar-tree .toctree-l1 > a")
        assert links(".cards a") <= pages
        assert pages - links(".cards a") <= {"contributing.html", "changes.html"}
