"""The page of a report: what it shows, that nothing in it runs or is loaded, and how a browser sees it."""

from __future__ import annotations

import base64
import dataclasses
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from browser import Browser, chromium

import jkosampler
from jkosampler.diagnostics import FitRecord, Report, report_from_log_weights
from jkosampler.diagnostics.page import CITATION
from jkosampler.errors import ArgumentError, WriteError

EVIL = "<script>document.title = 'run'</script>"
MATHS = r"$\no_formula$ & \"quoted\" $"


def fitted(dim: int = 2, spread: float = 0.05, seed: int = 0, **values) -> Report:
    """A report of normal log weights, with everything that a page may show."""
    random = np.random.default_rng(seed)
    log_weights = spread * random.standard_normal(1000) - 3.0
    steps = [{"energy": 3.0 + 4.0**-k, "step_size": 2.0**k, "ess": 1 - 0.5**k, "residual": 0.1} for k in range(6)]
    record = FitRecord(
        draws=random.standard_normal((500, dim)) * 0.01 + 104.0,
        names=[EVIL, MATHS, "温度", "a" * 200, *(f"u{i}" for i in range(dim))][:dim],
        log_weights=log_weights,
        history=steps,
        settings={"log_target": f"posterior.{EVIL}", "n_steps": "4"},
        defaults={"order": "1"},
        facts={"ended because": EVIL},
    )
    report = report_from_log_weights(log_weights, stationarity=0.01, converged=True, dim=dim, **values)
    return dataclasses.replace(report, record=record)


def written(report: Report, folder: Path) -> str:
    return report.to_html(folder / "report.html").read_text(encoding="utf-8")


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return written(fitted(dim=7), tmp_path_factory.mktemp("page"))


def test_the_page_has_every_part(text):
    headings = re.findall(r"<h2>(.*?)</h2>", text)
    assert headings == [
        "Trust these draws",
        "Numbers",
        "Marginals",
        "Pairs",
        "k-hat and weights",
        "Stationarity",
        "History of the fit",
        "Settings of the sampler",
        "To cite",
    ]
    assert "Limited to the first 5 of 7 coordinates." in text
    assert "n_steps" in text
    assert re.search(r">10[34]\.\d{4}<", text)  # a mean to a hundredth of its sd, 0.01


def test_numbers_are_those_of_the_report(text):
    for name, value, note in fitted(dim=7)._rows():
        assert name in text
        assert value in text
        assert note in text


def test_names_and_settings_are_escaped(text):
    found = Tags(text)
    assert "script" not in [tag for tag, _ in found.tags]
    assert not [key for _, attributes in found.tags for key in attributes if key.startswith("on")]
    assert f"posterior.{EVIL}" in found.words
    assert any(attributes.get("alt", "").endswith(EVIL) for _, attributes in found.tags)


def test_nothing_is_loaded_from_elsewhere(text):
    for tag, attributes in Tags(text).tags:
        for key in ("src", "href", "srcset", "data", "action"):
            assert attributes.get(key, "data:").startswith("data:"), (tag, attributes)
    assert not re.search(r"url\(|@import", text)
    assert "default-src 'none'" in text


def test_images_are_whole(text):
    images = [attributes["src"] for tag, attributes in Tags(text).tags if tag == "img"]
    assert len(images) == 7 + 1 + 2 + 1 + 4
    for source in images:
        assert base64.b64decode(source.removeprefix("data:image/png;base64,")).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("report", "title", "kind"),
    [
        (fitted(), "Trust these draws", "trust"),
        (fitted(warnings=[f"look: {EVIL}"]), "Use with care", "care"),
        (fitted(spread=4.0), "Do not trust these draws", "distrust"),
    ],
)
def test_the_verdict_comes_first_in_its_colour(tmp_path, report, title, kind):
    assert report.judgement == kind
    text = written(dataclasses.replace(report, record=None), tmp_path)
    assert f'<section class="verdict {kind}"><h2>{title}</h2>' in text
    assert ("<h2>Warnings</h2>" in text) == bool(report.warnings)
    assert EVIL not in text


def test_a_report_without_a_record_shows_what_it_has(tmp_path):
    report = dataclasses.replace(fitted(), record=None, stationarity=np.nan)
    text = written(report, tmp_path)
    assert re.findall(r"<h2>(.*?)</h2>", text) == ["Trust these draws", "Numbers", "To cite"]


@pytest.mark.parametrize("spread", [0.0, 40.0])
def test_extreme_weights_can_be_drawn(tmp_path, spread):
    report = fitted(dim=1, spread=spread)
    record = dataclasses.replace(report.record, draws=np.zeros((30, 1)), history=[{"energy": np.nan, "ess": 0.0}])
    assert "<h2>Pairs</h2>" not in written(dataclasses.replace(report, record=record), tmp_path)


def test_weights_of_zero_are_left_out_of_the_logarithms(tmp_path):
    log_weights = np.where(np.arange(100) < 98, -np.inf, 0.0)
    report = report_from_log_weights(log_weights, stationarity=None, converged=False, dim=1)
    report = dataclasses.replace(report, record=FitRecord(log_weights=log_weights))
    assert "<h2>k-hat and weights</h2>" in written(report, tmp_path)


def test_the_record_is_no_part_of_what_a_report_says():
    report = dataclasses.replace(fitted(), stationarity_se=0.001)
    bare = dataclasses.replace(report, record=None)
    assert bare == report
    assert repr(bare) == repr(report)
    assert repr(fitted().record) == "FitRecord(draws (500, 2), 6 steps)"


def test_a_folder_or_a_place_that_is_not_there_is_an_argument_error(tmp_path):
    report = dataclasses.replace(fitted(), record=None)
    with pytest.raises(ArgumentError, match="is a folder"):
        report.to_html(tmp_path)
    with pytest.raises(ArgumentError, match="make it first"):
        report.to_html(tmp_path / "none" / "report.html")
    with pytest.raises(ArgumentError, match="path"):
        report.to_html(3)


def test_a_failed_write_leaves_the_old_page(tmp_path, monkeypatch):
    report = dataclasses.replace(fitted(), record=None)
    path = report.to_html(tmp_path / "report.html")
    before = path.read_bytes()

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(WriteError, match=r"report\.html' can't be written: No space left on device"):
        report.to_html(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def test_the_citation_is_that_of_the_repository():
    cff = (Path(jkosampler.__file__).parents[1] / "CITATION.cff").read_text(encoding="utf-8")
    cited = " ".join(CITATION).format(jkosampler.__version__)
    assert f"version: {jkosampler.__version__}" in cff
    for part in re.findall(r'(?:title|value): "(.*?)"|family-names: (\w+)', cff):
        assert (part[0] or part[1]) in cited


@pytest.mark.skipif(chromium() is None, reason="no Chromium on this machine")
def test_a_browser_shows_the_page(tmp_path):
    page = fitted(dim=7, warnings=["w" * 300]).to_html(tmp_path / "report.html")
    with Browser(tmp_path / "profile") as browser:
        for width in (1200, 390):
            browser.resize(width, 900)
            browser.open(page)
            assert browser.value("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
            assert browser.value("document.documentElement.scrollWidth") <= width  # nothing sticks out
            assert browser.value("document.title").startswith("Diagnosis of 1000 draws")  # no name has run
        assert browser.messages == []
        assert [address for address in browser.requests if not address.startswith("data:")] == [page.as_uri()] * 2
