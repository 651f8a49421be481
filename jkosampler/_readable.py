"""A sampler's parameters in words, for those who read about a fit."""

from __future__ import annotations

import inspect
import re
from dataclasses import replace
from typing import Any

from jkosampler.diagnostics import FitRecord, Report

__all__ = ["readable", "with_settings"]

_LONGEST = 300  # letters of a value
_WITHOUT_EFFECT = ("progress",)  # on the fit


def with_settings(report: Report, sampler: object) -> Report:
    """The report, which remembers the sampler's parameters: those that were set, and those left alone."""
    usual = {name: option.default for name, option in inspect.signature(type(sampler)).parameters.items()}
    chosen: dict[str, str] = {}
    left: dict[str, str] = {}
    for name in usual:  # in the order in which they are documented
        value = getattr(sampler, name)
        if name not in _WITHOUT_EFFECT:
            (left if _same(value, usual[name]) else chosen)[name] = readable(value)
    return replace(report, record=replace(report.record or FitRecord(), settings=chosen, defaults=left))


def readable(value: Any) -> str:
    """A value as its user would know it: functions by name, objects without their addresses, nothing long."""
    if inspect.isroutine(value):
        text = f"{value.__module__}.{value.__qualname__}".replace("<locals>.", "").replace("<lambda>", "lambda")
    else:
        text = re.sub(r"<([\w.]+) object at 0x[0-9a-f]+>", r"\1()", " ".join(repr(value).split()))
        text = re.sub(r" at 0x[0-9a-fA-F]+", "", text)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _same(value: Any, usual: Any) -> bool:
    """Whether a parameter has its default: None, a bool or a number, which any array would compare with by entry."""
    return type(value) is type(usual) and bool(value == usual)
