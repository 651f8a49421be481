"""A report as a page: one file of HTML, its style and figures inside, which loads nothing and runs nothing.

Whatever comes from the user, names and settings and warnings, is escaped, and the page's own policy forbids scripts.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from importlib import resources
from pathlib import Path
from string import Template

import numpy as np

import jkosampler
from jkosampler._whole_files import whole_file
from jkosampler.diagnostics import page_figures as figures
from jkosampler.diagnostics.record import FitRecord
from jkosampler.diagnostics.report import BLIND_SPOT, Report

__all__ = ["CITATION", "page", "write_page"]

_JUDGEMENTS = {
    "trust": "Trust these draws",
    "care": "Use with care",
    "distrust": "Do not trust these draws",
}
_MOST_ROWS = 100  # of the table of coordinates

# as in CITATION.cff, which an installed package has not at hand
CITATION = (
    "The jkosampler developers, *jkosampler: posterior sampling and gradient-flow PDEs by neural JKO steps*, "
    "version {}.",
    "Wonjun Lee, Li Wang, Wuchen Li, *Deep JKO: time-implicit particle methods for general nonlinear gradient flows*, "
    "arXiv:2311.06700, 2023.",
    "Min Sue Park, Cheolhyeong Kim, Hwijae Son, Hyung Ju Hwang, *The deep minimizing movement scheme*, "
    "arXiv:2109.14851, 2021.",
)


def page(report: Report, rows: Sequence[tuple[str, str, str]]) -> str:
    """The page as text.

    Parameters
    ----------
    report : Report
        What it knows besides its numbers is in `report.record`.
    rows : sequence of (str, str, str)
        Name, value and note of each number.
    """
    record = report.record or FitRecord()
    sections = [
        _verdict(report),
        _warnings(report.warnings),
        _section("Numbers", _numbers(rows)),
        _of_draws(record),
        _of_weights(report, record),
        _of_stationarity(report),
        _of_history(report, record),
        _settings(record),
        _citation(),
    ]
    text = resources.files("jkosampler.diagnostics").joinpath("page.html").read_text(encoding="utf-8")
    return Template(text).substitute(
        title=f"Diagnosis of {report.n} draws in {report.dim} dimension{'s' if report.dim != 1 else ''}",
        subtitle=_prose(record.settings.get("log_target", "A fitted law against its target")),
        sections="\n".join(section for section in sections if section),
        version=escape(jkosampler.__version__),
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def write_page(text: str, path: str | os.PathLike[str]) -> Path:
    """Write a page as a whole or not at all; see `Report.to_html` for what it raises."""
    with whole_file(path, "path") as temporary:
        temporary.write_text(text, encoding="utf-8", errors="replace")
    return Path(path)


def _verdict(report: Report) -> str:
    title = _JUDGEMENTS[report.judgement]
    reasons = report.verdict.removeprefix("Verdict: ").removesuffix(BLIND_SPOT)
    reasons = reasons.removeprefix(title[0].lower() + title[1:]).lstrip(".: ").replace("warnings above", "warnings")
    return (
        f'<section class="verdict {report.judgement}"><h2>{title}</h2>'
        f'<p>{_prose(reasons[:1].upper() + reasons[1:])}</p><p class="note">{_prose(BLIND_SPOT)}</p></section>'
    )


def _warnings(texts: Sequence[str]) -> str:
    if not texts:
        return ""
    items = "".join(f"<li>{_prose(text)}</li>" for text in texts)
    return f'<section class="warnings"><h2>Warnings</h2><ul>{items}</ul></section>'


def _numbers(rows: Sequence[tuple[str, str, str]]) -> str:
    lines = (
        f'<tr><th scope="row">{escape(name)}</th><td class="number">{escape(value)}</td>'
        f'<td class="note">{escape(note)}</td></tr>'
        for name, value, note in rows
    )
    return f'<table class="numbers">{"".join(lines)}</table>'


def _of_draws(record: FitRecord) -> str:
    if record.draws is None or not len(record.draws):
        return ""
    draws = np.asarray(record.draws, dtype=float)
    draws = draws[np.isfinite(draws).all(axis=1)]
    d = draws.shape[1]
    names = list(record.names) if record.names is not None else [f"x{i + 1}" for i in range(d)]
    marginals = _grid(figures.marginals(draws, names), "small")
    if d > figures.MOST_MARGINALS:
        marginals += _note(f"The first {figures.MOST_MARGINALS} of {d} coordinates. The line is the median.")
    else:
        marginals += _note("The line is the median.")
    found = _section("Marginals", marginals + _quantiles(draws, names))
    pairs = figures.pairs(draws, names)
    if pairs is not None:
        limited = (
            _note(f"Limited to the first {figures.MOST_PAIRED} of {d} coordinates.") if d > figures.MOST_PAIRED else ""
        )
        found += "\n" + _section("Pairs", _image(pairs) + limited)
    return found


def _quantiles(draws: np.ndarray, names: Sequence[str]) -> str:
    columns = np.column_stack([draws.mean(0), draws.std(0, ddof=1), *np.quantile(draws, [0.05, 0.5, 0.95], axis=0)])
    head = "".join(f'<th class="number" scope="col">{name}</th>' for name in ("mean", "sd", "5 %", "median", "95 %"))
    lines = "".join(
        f'<tr><th scope="row">{escape(name)}</th>'
        + "".join(f'<td class="number">{value}</td>' for value in _rounded(row))
        + "</tr>"
        for name, row in zip(names[:_MOST_ROWS], columns, strict=False)
    )
    limited = _note(f"The first {_MOST_ROWS} of {len(names)} coordinates.") if len(names) > _MOST_ROWS else ""
    table = f'<div class="scroll"><table><tr><th scope="col"></th>{head}</tr>{lines}</table></div>{limited}'
    return table if len(names) <= 8 else f"<details><summary>Means and quantiles</summary>{table}</details>"


def _rounded(row: np.ndarray) -> list[str]:
    """Mean, sd and quantiles of a coordinate, to a hundredth of the sd or so."""
    digits = 2 - int(np.floor(np.log10(row[1]))) if row[1] > 0 else 3
    plain = 0 <= digits <= 8 and np.abs(row).max() < 1e6
    return [f"{value:.{digits}f}" if plain else f"{value:.4g}" for value in row]


def _of_weights(report: Report, record: FitRecord) -> str:
    if record.log_weights is None:
        return ""
    text = (
        "Importance weights, target over law, of the draws. Where the law is the target all are equal. k-hat is the "
        f"shape of the tail fitted to the largest: {report.pareto_k:.2f} here, good below "
        f"{report.pareto_k_threshold:.2f}."
    )
    return _section("k-hat and weights", f"<p>{escape(text)}</p>" + _grid(figures.weights(record.log_weights, report)))


def _of_stationarity(report: Report) -> str:
    picture = figures.standing(report)
    if picture is None:
        return ""
    text = (
        "The relative Fisher information of the law with respect to the target: 0 where the flow has come to rest. It "
        "looks at slopes, not at weights, and so sees other faults than k-hat."
    )
    return _section("Stationarity", f"<p>{escape(text)}</p>" + _image(picture))


def _of_history(report: Report, record: FitRecord) -> str:
    if not record.history:
        return ""
    pictures = figures.history(record.history, report.log_evidence)
    return _section("History of the fit", _pairs_table(record.facts) + _grid(pictures))


def _settings(record: FitRecord) -> str:
    if not record.settings and not record.defaults:
        return ""
    chosen = _pairs_table(record.settings) if record.settings else _note("All parameters have their defaults.")
    left = f"<details><summary>Defaults left as they are</summary>{_pairs_table(record.defaults)}</details>"
    return _section("Settings of the sampler", chosen + (left if record.defaults else ""))


def _pairs_table(pairs: Mapping[str, str]) -> str:
    lines = (f'<tr><th scope="row">{escape(key)}</th><td>{_prose(value)}</td></tr>' for key, value in pairs.items())
    return f'<table class="facts">{"".join(lines)}</table>' if pairs else ""


def _citation() -> str:
    texts = [CITATION[0].format(jkosampler.__version__), *CITATION[1:]]
    items = (re.sub(r"\*(.*?)\*", r"<cite>\1</cite>", escape(text)) for text in texts)
    listed = "".join(f"<li>{item}</li>" for item in items)
    return _section("To cite", f"<p>The package, and the paper whose method was used:</p><ol>{listed}</ol>")


def _section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{content}</section>"


def _note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'


def _grid(pictures: Sequence[figures.Picture], kind: str = "") -> str:
    return f'<div class="grid {kind}">{"".join(_image(picture) for picture in pictures)}</div>'


def _image(picture: figures.Picture) -> str:
    return (
        f'<figure><img src="data:image/png;base64,{picture.png}" alt="{escape(picture.words)}" '
        f'width="{picture.width}" height="{picture.height}"></figure>'
    )


def _prose(text: str) -> str:
    """Escaped text, with what stands between backticks as code."""
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(text))
