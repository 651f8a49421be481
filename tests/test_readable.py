"""What a report remembers of its sampler, and what a page says of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from jkosampler import JKOSampler, engines
from jkosampler._readable import readable
from jkosampler.targets import Target


def log_target(x):
    return -0.5 * x.square().sum(1)


@pytest.fixture(scope="module")
def sampler():
    target = Target(lambda x: -x[:, 0] - 0.5 * x[:, 1].square(), names=["scale", "mean"], support={"scale": "positive"})
    options = {"n_steps": 2, "n_particles": 500, "max_target_evaluations": 50_000, "random_state": 0}
    return JKOSampler(target, progress=False, max_time=60, **options).fit()


def test_diagnose_remembers_what_its_page_shows(sampler):
    report = sampler.diagnose(n=200)
    record = report.record
    assert record.names == ["scale", "mean"]
    assert record.draws.shape == (200, 2)
    assert (record.draws[:, 0] > 0).all()  # the user's parameters
    assert record.log_weights.shape == (200,)
    assert len(record.history) == sampler.n_steps_
    assert list(record.settings)[:3] == ["log_target", "n_steps", "max_time"]  # as documented
    assert record.settings["n_steps"] == "2"
    assert record.defaults["order"] == "1"
    assert "progress" not in record.settings | record.defaults
    assert record.facts["steps"] == str(sampler.n_steps_)


def test_the_page_of_a_fit_can_be_written(sampler, tmp_path):
    text = sampler.diagnose(n=200).to_html(tmp_path / "report.html").read_text(encoding="utf-8")
    assert "History of the fit" in text
    assert "scale" in text


def test_a_saved_sampler_keeps_no_draws_of_its_report(sampler, tmp_path):
    assert sampler.report_.record.draws.shape == (4000, 2)
    sampler.save(tmp_path / "fit.safetensors")
    found = JKOSampler.load(tmp_path / "fit.safetensors").report_
    assert found.pareto_k == sampler.pareto_k_
    assert found.record.draws is None
    assert found.record.settings["n_steps"] == "2"


def test_values_are_said_as_their_user_knows_them():
    assert readable(None) == "None"
    assert readable(log_target).endswith("test_readable.log_target")
    assert readable(lambda x: x).endswith("lambda")
    assert readable(engines.Lagrangian(potential="explicit")) == "Lagrangian(potential='explicit')"
    assert readable(torch.float32) == "torch.float32"
    assert "0x" not in readable(np.random.default_rng(0))
    assert readable(object()) == "object()"
    assert len(readable("a" * 1000)) == 300
